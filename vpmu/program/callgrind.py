"""Reads Callgrind's profile format: self cost per function and inclusive cost per call arc.

Format: "Callgrind Format Specification" in Valgrind's manual, version 1.  Names may be compressed, positions
may be relative, and a file may hold several parts, whose costs are added.  Every part must end with its
``totals:`` line and the costs read must add up to it, so that a file that was cut, or misread, is never taken
for a profile.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from vpmu.program.model import ProgramError

EVENTS: Final = ("Ir", "Dr", "Dw", "I1mr", "D1mr", "D1mw", "ILmr", "DLmr", "DLmw", "Bc", "Bcm", "Bi", "Bim")
"""What ``--cache-sim=yes --branch-sim=yes`` records, in this module's order."""
CACHE_EVENTS: Final = EVENTS[1:9]
BRANCH_EVENTS: Final = EVENTS[9:]

Cost = tuple[int, ...]
"""One number per event of `EVENTS`."""

_POSITION = re.compile(r"0x[0-9a-fA-F]+|[+-]?\d+|\*")
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+")
_COMPRESSED = re.compile(r"\((\d+)\)(?: (.*))?")
_HEADER = re.compile(r"([A-Za-z][\w ]*?):(.*)")
_ASSIGNMENT = re.compile(r"([a-z]+)=(.*)")
_POSITIONS: Final = (["line"], ["instr"], ["instr", "line"])


class FunctionKey(NamedTuple):
    """A function's identity: the object it is in and its name."""

    object: str
    name: str


@dataclass
class Arc:
    """Calls from one function to another: how many, and their inclusive cost."""

    calls: int = 0
    cost: Cost = (0,) * len(EVENTS)


@dataclass
class Profile:
    """What a Callgrind file says.

    Attributes
    ----------
    command
        The profiled command line, empty if the file does not say.
    self_cost
        Each function's own cost, callees excluded, in the file's order.
    arcs
        Caller and callee of each call arc.
    summary
        The ``summary:`` lines added up, None if the file has none.  Callgrind counts the last block before
        the program's exit there, but attributes it to no function: `unattributed`.
    """

    command: str = ""
    self_cost: dict[FunctionKey, Cost] = field(default_factory=dict)
    arcs: dict[tuple[FunctionKey, FunctionKey], Arc] = field(default_factory=dict)
    summary: Cost | None = None

    def totals(self) -> Cost:
        """Return the cost of all functions together."""
        return tuple(map(sum, zip(*self.self_cost.values(), strict=True))) or (0,) * len(EVENTS)

    def unattributed(self) -> Cost:
        """Return what the summary counts and no function does."""
        if self.summary is None:
            return (0,) * len(EVENTS)
        return tuple(max(0, whole - own) for whole, own in zip(self.summary, self.totals(), strict=True))


def read_callgrind(path: Path) -> Profile:
    """Read a file that ``valgrind --tool=callgrind --cache-sim=yes --branch-sim=yes`` wrote.

    Raises
    ------
    ProgramError
        The file cannot be read, is malformed or truncated, or was written without the two options.
    """
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            return _Reader(str(path)).read(lines)
    except OSError as error:
        raise ProgramError(f"cannot read: {error.strerror or error}", file=str(path)) from None


class _Names:
    """One id space of name compression: ``(3) name`` defines, ``(3)`` refers; the ids are the file's."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.known: dict[str, str] = {}
        self.defined_in_part: set[str] = set()

    def resolve(self, text: str) -> str:
        match = _COMPRESSED.fullmatch(text)
        if match is None:
            return text
        number, name = match.groups()
        if name is None:
            if number not in self.known:
                raise ValueError(f"({number}) names no {self.what} yet; expected ({number}) and its name")
            return self.known[number]
        if number in self.defined_in_part and self.known[number] != name:
            raise ValueError(f"({number}) is {self.what} {self.known[number]} already, found {name}")
        self.known[number] = name
        self.defined_in_part.add(number)
        return name


class _Reader:
    """The parser's state: the current object, function, position and part."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.line_number = 0
        self.profile = Profile()
        self.objects, self.files, self.functions = _Names("object"), _Names("file"), _Names("function")
        self.columns: tuple[
            int, ...
        ] = ()  # index in EVENTS of each of the file's events, -1 if we do not use it
        self.events: list[str] = []
        self.positions = [0]
        self.object = ""
        self.function: FunctionKey | None = None
        self.called_object: str | None = None
        self.called: str | None = None
        self.calls: int | None = None
        self.part: list[int] | None = None  # the part's costs so far, in the file's order
        self.parts = 0
        self.assignments: dict[str, Callable[[str], None]] = {
            "ob": self._enter_object,
            "fl": self._enter_file,
            "fi": self._enter_file,
            "fe": self._enter_file,
            "cfi": self._enter_file,
            "cfl": self._enter_file,
            "fn": self._enter_function,
            "cob": self._call_object,
            "cfn": self._call_function,
            "calls": self._call,
            "jump": self._jump,
            "jcnd": self._jump,
        }

    def read(self, lines: Iterator[str]) -> Profile:
        for self.line_number, line in enumerate(lines, 1):
            try:
                self._read_line(line.rstrip("\r\n"), complete=line.endswith("\n"))
            except ValueError as error:
                if isinstance(error, ProgramError):
                    raise
                raise self._error(str(error)) from None
        if self.part is not None or not self.parts:
            raise self._error('the file ends before the part\'s "totals:" line; is it truncated?')
        return self.profile

    def _error(self, problem: str) -> ProgramError:
        return ProgramError(problem, file=f"{self.file}:{self.line_number}")

    def _read_line(self, line: str, *, complete: bool) -> None:
        if not complete and not line.startswith("totals:"):
            raise ValueError(f'the file ends in the middle of a line, "{line}"; is it truncated?')
        if not line or line.startswith("#"):
            return
        if line[0] in "+-*" or line[0].isdigit():
            self._read_cost(line.split())
        elif assignment := _ASSIGNMENT.fullmatch(line):
            self._read_assignment(assignment[1], assignment[2].strip())
        elif header := _HEADER.fullmatch(line):
            self._read_header(header[1], header[2].strip())
        else:
            raise ValueError(f'expected a cost line, "key=value" or "header: value", found "{line}"')

    # -- headers --

    def _read_header(self, key: str, value: str) -> None:
        if key == "version" and value != "1":
            raise ValueError(f"expected format version 1, found {value}")
        if key == "cmd":
            self.profile.command = value
        elif key == "positions":
            if value.split() not in _POSITIONS:
                raise ValueError(f'expected positions "line", "instr" or "instr line", found "{value}"')
            self.positions = [0] * len(value.split())
        elif key == "events":
            self._begin_part(value.split())
        elif key == "summary":
            summary = self._vector(value.split())
            before = self.profile.summary or (0,) * len(EVENTS)
            self.profile.summary = tuple(map(sum, zip(before, summary, strict=True)))
        elif key == "totals":
            self._end_part(value.split())

    def _begin_part(self, events: list[str]) -> None:
        if self.part is not None:
            raise ValueError('a new part begins before the last one\'s "totals:" line')
        for option, needed in (("--cache-sim=yes", CACHE_EVENTS), ("--branch-sim=yes", BRANCH_EVENTS)):
            missing = [name for name in needed if name not in events]
            if missing:
                raise ValueError(
                    f"the profile has no {', '.join(missing)} (its events: {' '.join(events)}); {option} was "
                    "missing: record it with valgrind --tool=callgrind --cache-sim=yes --branch-sim=yes"
                )
        if "Ir" not in events:
            raise ValueError(f"the profile has no Ir (its events: {' '.join(events)})")
        self.events = events
        self.columns = tuple(events.index(name) for name in EVENTS)
        self.part = [0] * len(events)
        self.function = None
        for names in (self.objects, self.files, self.functions):
            names.defined_in_part.clear()

    def _end_part(self, totals: list[str]) -> None:
        part = self._open_part()
        if self.calls is not None:
            raise ValueError('expected the cost line of the last "calls=", found totals')
        self.part = None
        self.parts += 1
        expected = self._numbers(totals)
        for name, found, total in zip(self.events, part, expected, strict=True):
            if found != total:
                raise ValueError(f"the costs of {name} add up to {found}, the totals line says {total}")

    # -- names and calls --

    def _read_assignment(self, key: str, value: str) -> None:
        handler = self.assignments.get(key)
        if handler is None:
            raise ValueError(f'unknown key "{key}=" (known: {", ".join(self.assignments)})')
        self._open_part()
        if self.calls is not None:
            raise ValueError(f'expected the cost line of the last "calls=", found "{key}="')
        handler(value)

    def _enter_object(self, value: str) -> None:
        self.object = self.objects.resolve(value)

    def _enter_file(self, value: str) -> None:
        self.files.resolve(value)  # a function is known by its object and name; the id must still be right

    def _enter_function(self, value: str) -> None:
        self.function = FunctionKey(self.object, self.functions.resolve(value))
        self.profile.self_cost.setdefault(self.function, (0,) * len(EVENTS))
        self.called_object = self.called = None

    def _call_object(self, value: str) -> None:
        self.called_object = self.objects.resolve(value)

    def _call_function(self, value: str) -> None:
        self.called = self.functions.resolve(value)

    def _call(self, value: str) -> None:
        if self.called is None:
            raise ValueError('"calls=" without a "cfn=" before it')
        count, *target = value.split()
        if not _NUMBER.fullmatch(count) or len(target) != len(self.positions):
            raise ValueError(f'expected "calls=COUNT POSITION", found "calls={value}"')
        for position in target:
            self._check_position(position)
        self.calls = int(count, 0)

    def _jump(self, value: str) -> None:
        """Pass over a jump (``--collect-jumps=yes``); a line with its position and no cost follows."""

    # -- costs --

    def _read_cost(self, words: list[str]) -> None:
        part = self._open_part()
        if self.function is None:
            raise ValueError('a cost line without a "fn=" before it')
        places = len(self.positions)
        if len(words) < places:
            raise ValueError(f"expected {places} positions and costs, found {len(words)} numbers")
        for index, text in enumerate(words[:places]):
            self._move(index, text)
        numbers = self._numbers(words[places:])
        cost = tuple(numbers[column] for column in self.columns)
        if self.calls is not None:
            self._add_call(cost)
            return
        for column, number in enumerate(numbers):
            part[column] += number
        own = self.profile.self_cost
        own[self.function] = tuple(a + b for a, b in zip(own[self.function], cost, strict=True))

    def _add_call(self, cost: Cost) -> None:
        assert self.function is not None
        assert self.called is not None
        assert self.calls is not None
        called_object = self.object if self.called_object is None else self.called_object
        arc = self.profile.arcs.setdefault((self.function, FunctionKey(called_object, self.called)), Arc())
        arc.calls += self.calls
        arc.cost = tuple(a + b for a, b in zip(arc.cost, cost, strict=True))
        self.calls = self.called = self.called_object = None

    def _move(self, index: int, text: str) -> None:
        """Follow a position: absolute, relative (``+3``, ``-2``) or the same (``*``)."""
        self._check_position(text)
        if text[0] in "+-":
            self.positions[index] += int(text)
        elif text != "*":
            self.positions[index] = int(text, 0)
        if self.positions[index] < 0:
            raise ValueError(f'position "{text}" is relative to before line 0')

    @staticmethod
    def _check_position(text: str) -> None:
        if not _POSITION.fullmatch(text):
            raise ValueError(f'expected a position (a number, +n, -n or *), found "{text}"')

    def _vector(self, words: list[str]) -> Cost:
        self._open_part()
        numbers = self._numbers(words)
        return tuple(numbers[column] for column in self.columns)

    def _numbers(self, words: list[str]) -> list[int]:
        """Read costs; those left out at a line's end are zero."""
        if len(words) > len(self.events):
            raise ValueError(f"expected at most {len(self.events)} costs, found {len(words)}")
        for word in words:
            if not _NUMBER.fullmatch(word):
                raise ValueError(f'expected a count, found "{word}"')
        return [int(word, 0) for word in words] + [0] * (len(self.events) - len(words))

    def _open_part(self) -> list[int]:
        if self.part is None:
            raise ValueError('expected an "events:" line first; is this a Callgrind profile?')
        return self.part
