"""Lines of a real host's trace to events: of ``trace-cmd report``, of ftrace, of ``perf script``.

Three events are read: ``kvm_msr``, ``kvm_exit`` and ``kvm_entry``.  All other lines are counted and passed
over; a line of one of the three that cannot be read is a mistake, named by file and line.  docs/replay.md
shows the forms.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NoReturn

from vpmu.errors import UserError
from vpmu.units import NS_PER_S

EVENTS: Final = ("kvm_msr", "kvm_exit", "kvm_entry")
OTHER: Final = "no event"
"""What lines are counted under that are no event at all: call chains, blank lines, a recorder's messages."""

_MOST_SHOWN: Final = 100
_WORD: Final = 1 << 64
_DIGITS_OF_NS: Final = 9

_LONGEST_HEAD: Final = 200
"""Characters before the time: more are no task's, whose name has at most 15."""

_TIMED: Final = re.compile(r"(?<!\S)(?P<time>\d+\.\d+):\s+(?:\w+:)?(?P<event>\w+):", re.ASCII)
_OURS: Final = re.compile(r"(?:^|[\s:])(kvm_msr|kvm_exit|kvm_entry):")
_FTRACE_HEAD: Final = re.compile(
    r"(?P<task>\S.*)-(?P<pid>\d+)\s+(?:\(\s*[\d-]+\)\s+)?\[(?P<cpu>\d+)\](?:\s+\S+)?", re.ASCII
)
_PERF_HEAD: Final = re.compile(r"(?P<task>\S.*?)\s+(?:\d+/)?(?P<pid>\d+)(?:\s+\[(?P<cpu>\d+)\])?", re.ASCII)
_MSR: Final = re.compile(
    r"msr_(?P<way>read|write) (?P<msr>[0-9a-f]+) = 0x(?P<value>[0-9a-f]+)(?P<fault> \(#GP\))?"
)
_EXIT: Final = re.compile(
    r"(?:vcpu (?P<vcpu>\d+) )?reason (?P<reason>[\w() ]*\S) rip 0x[0-9a-f]+"
    r"(?: info [0-9a-f]+ [0-9a-f]+(?: .*)?| info1 0x[0-9a-f]+ info2 0x[0-9a-f]+(?: .*)?)?",
    re.ASCII,
)
_ENTRY: Final = re.compile(r"vcpu (?P<vcpu>\d+)(?:,? rip 0x[0-9a-f]+(?: ?\[.*| [a-z].*)?)?", re.ASCII)
_LOST: Final = re.compile(
    r"CPU:(?P<cpu>\d+) "
    r"\[(?:LOST (?P<lost>\d+) EVENTS|(?P<dropped>\d+) EVENTS DROPPED|LOST EVENTS|EVENTS DROPPED)\]"
)
_LOOKS_LOST: Final = re.compile(r"CPU:\s*\d+\s*\[.*(?:LOST|DROPPED)", re.ASCII)
_PERF_LOST: Final = re.compile(r".*\bPERF_RECORD_LOST(?:_SAMPLES)?\b(?:.*\blost (?P<lost>\d+))?", re.ASCII)
_PERF_CPU: Final = re.compile(r"\[(\d+)\]")
_WRITTEN: Final = re.compile(r"#\s*entries-in-buffer/entries-written: (\d+)/(\d+)\b")


@dataclass(frozen=True, slots=True)
class Head:
    """Where and when an event was: line of the file, time, CPU (None if not printed), task, thread id."""

    line: int
    at_ns: int
    cpu: int | None
    task: str
    pid: int


@dataclass(frozen=True, slots=True)
class MsrEvent:
    """KVM has carried out a guest's RDMSR or WRMSR."""

    head: Head
    write: bool
    msr: int
    value: int
    fault: bool


@dataclass(frozen=True, slots=True)
class ExitEvent:
    """A vCPU has left its guest; its number is None where the kernel does not print it."""

    head: Head
    reason: str
    vcpu: int | None


@dataclass(frozen=True, slots=True)
class EntryEvent:
    """A vCPU is about to enter its guest."""

    head: Head
    vcpu: int


@dataclass(frozen=True, slots=True)
class LostEvents:
    """Events of a CPU (None: of any) are missing before this point; `count` is None if it is not known."""

    line: int
    at_ns: int
    cpu: int | None
    count: int | None


TraceEvent = MsrEvent | ExitEvent | EntryEvent
Item = TraceEvent | LostEvents


@dataclass(slots=True)
class Trace:
    """What was read.

    Attributes
    ----------
    file : str
        What to call it in messages.
    items : list
        Events and gaps in the order of time; of equal times, in the order of lines.
    lines : int
        Lines of the file, comments included.
    unknown : Counter
        Lines that were passed over, by the event's name, or `OTHER`.
    overwritten : int
        Events that the ring buffer had lost before its first, as ftrace's header says.
    """

    file: str
    items: list[Item] = field(default_factory=list)
    lines: int = 0
    unknown: Counter[str] = field(default_factory=Counter)
    overwritten: int = 0

    @property
    def gaps(self) -> list[LostEvents]:
        """Where events were lost."""
        return [item for item in self.items if isinstance(item, LostEvents)]


def read_trace(lines: Iterable[str], file: str) -> Trace:
    """Read a trace's lines.

    Parameters
    ----------
    lines : iterable of str
        With or without their line ends.
    file : str
        What to call them in messages.

    Raises
    ------
    UserError
        At the first malformed line of `EVENTS`, or where time runs backwards on a CPU.
    """
    reader = _Reader(Trace(file))
    for line in lines:
        reader.take(line.rstrip("\r\n"))
    return reader.finish()


class _Reader:
    """Takes lines one by one.

    Each CPU's lines come in the order of time, but CPUs need not be merged: ``trace_pipe`` merges them
    loosely, and somebody may have put files of ``per_cpu/`` behind each other.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._last_ns: dict[int | None, tuple[int, int]] = {}
        self._lost: list[tuple[int, int | None, int | None]] = []
        self._form: tuple[bool, bool] | None = None

    def take(self, line: str) -> None:
        """Take the next line."""
        self._trace.lines += 1
        if line.startswith("#"):
            self._header(line)
        elif not self._lost_events(line):
            self._event(line)

    def finish(self) -> Trace:
        """Return what was read, in the order of time."""
        end_ns = max((at_ns for at_ns, _ in self._last_ns.values()), default=0)
        for line, cpu, count in self._lost:
            self._trace.items.append(LostEvents(line, end_ns, cpu, count))
        self._trace.items.sort(key=_order)
        return self._trace

    def _header(self, line: str) -> None:
        match = _WRITTEN.match(line)
        if match is not None:
            held, written = map(int, match.groups())
            self._trace.overwritten += max(written - held, 0)

    def _lost_events(self, line: str) -> bool:
        """Note a line that says that events were lost; whether it was one."""
        if _LOOKS_LOST.match(line):
            match = _LOST.fullmatch(line.rstrip())
            if match is None:
                self._refuse(line, "CPU:N [LOST M EVENTS] or CPU:N [M EVENTS DROPPED]")
            count = match["lost"] or match["dropped"]
            self._lost.append((self._trace.lines, int(match["cpu"]), int(count) if count else None))
            return True
        match = _PERF_LOST.match(line) if "PERF_RECORD_LOST" in line else None
        if match is None:
            return False
        cpu = _PERF_CPU.search(line.partition("PERF_RECORD_LOST")[0])
        count = match["lost"]
        self._lost.append((self._trace.lines, int(cpu[1]) if cpu else None, int(count) if count else None))
        return True

    def _event(self, line: str) -> None:
        match = _TIMED.search(line)
        if match is None:
            if _OURS.search(line):
                self._refuse(line, "TASK-PID [CPU] FLAGS SECONDS.FRACTION: EVENT: ...")
            self._trace.unknown[OTHER] += 1
            return
        name = match["event"]
        if name not in EVENTS:
            self._trace.unknown[name] += 1
            return
        head = self._head(line[: match.start()].strip(), match["time"])
        event = self._payload(name, head, line[match.end() :].strip())
        if self._lost:
            self._note_gaps(head)
        self._trace.items.append(event)

    def _head(self, text: str, time: str) -> Head:
        """Read what stands before the event's name."""
        match = None
        if len(text) <= _LONGEST_HEAD:
            match = _FTRACE_HEAD.fullmatch(text) or _PERF_HEAD.fullmatch(text)
        if match is None:
            self._refuse(text, "TASK-PID [CPU] FLAGS or TASK PID [CPU] before the time")
        form = match.re is _FTRACE_HEAD, match["cpu"] is None
        if self._form not in (None, form):
            self._refuse(text, "task and CPU written as on the lines before")
        self._form = form
        seconds, _, fraction = time.partition(".")
        if len(fraction) > _DIGITS_OF_NS:
            self._refuse(time, "a time in seconds with at most 9 decimals")
        at_ns = int(seconds) * NS_PER_S + int(fraction.ljust(_DIGITS_OF_NS, "0"))
        cpu = None if match["cpu"] is None else int(match["cpu"])
        last_ns, last_line = self._last_ns.get(cpu, (0, 0))
        if at_ns < last_ns:
            where = "" if cpu is None else f" of CPU {cpu}"
            self._refuse(time, f"no time{where} before that of line {last_line}: each CPU's lines in order")
        self._last_ns[cpu] = at_ns, self._trace.lines
        return Head(self._trace.lines, at_ns, cpu, match["task"], int(match["pid"]))

    def _payload(self, name: str, head: Head, text: str) -> TraceEvent:
        """Read what stands behind the event's name."""
        if name == "kvm_msr":
            match = _MSR.fullmatch(text)
            if match is None or len(match["msr"]) > 8 or int(match["value"], 16) >= _WORD:
                self._refuse(text, "kvm_msr: msr_read|msr_write INDEX = 0xVALUE, perhaps with (#GP)")
            msr, value = (int(match[part], 16) for part in ("msr", "value"))
            return MsrEvent(head, match["way"] == "write", msr, value, match["fault"] is not None)
        if name == "kvm_exit":
            match = _EXIT.fullmatch(text)
            if match is None:
                self._refuse(text, "kvm_exit: [vcpu N] reason REASON rip 0xADDRESS, perhaps with info words")
            return ExitEvent(head, match["reason"], None if match["vcpu"] is None else int(match["vcpu"]))
        match = _ENTRY.fullmatch(text)
        if match is None:
            self._refuse(text, "kvm_entry: vcpu N, perhaps with rip 0xADDRESS")
        return EntryEvent(head, int(match["vcpu"]))

    def _note_gaps(self, head: Head) -> None:
        """Put what was lost on a CPU before its next event."""
        for gap in [gap for gap in self._lost if gap[1] is None or gap[1] == head.cpu]:
            self._lost.remove(gap)
            line, cpu, count = gap
            self._trace.items.append(LostEvents(line, head.at_ns, cpu, count))

    def _refuse(self, found: str, expected: str) -> NoReturn:
        where = f"{self._trace.file}:{self._trace.lines}"
        shown = found.strip()
        if len(shown) > _MOST_SHOWN:
            shown = f"{shown[:_MOST_SHOWN]}..."
        raise UserError(f"expected {expected}; found", file=where, found=shown)


def _order(item: Item) -> tuple[int, int]:
    if isinstance(item, LostEvents):
        return item.at_ns, item.line
    return item.head.at_ns, item.head.line
