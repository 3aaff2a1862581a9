"""From a Callgrind profile to a program: a start-up, a loop over the hot functions, and a tail.

The start-up holds the functions outside the hot loop, one segment each, in the order of the calls.  The loop
body visits the hot functions as the calls suggest, 40,000 cycles at a time.  The tail holds what does not
divide, so that the program's totals are the profile's, to the event.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from vpmu.program.callgrind import Arc, FunctionKey, Profile, read_callgrind
from vpmu.program.context import CallGraph, loop_body
from vpmu.program.layout import ChainTable, Costs, lay_out, short_segments, visits, whole_segment
from vpmu.program.model import PROGRAM_VERSION, Function, Phase, Program, ProgramError, Segment
from vpmu.program.penalties import Penalties, estimate, load_penalties

UNATTRIBUTED: Final = FunctionKey("", "[unattributed]")
"""Holds what a profile's summary counts and no function does: the block in which the program exits."""
PROGRAM_BASE: Final = 0x401000
LIBRARY_BASE: Final = 0x7F00_0000_0000
LIBRARY_STRIDE: Final = 0x100_0000
FUNCTION_BYTES: Final = 256
_PLT = " [PLT]"


def import_callgrind(path: Path, penalties: Penalties | None = None) -> Program:
    """Turn a Callgrind profile into a program.

    Parameters
    ----------
    path
        A file that ``valgrind --tool=callgrind --cache-sim=yes --branch-sim=yes`` wrote.
    penalties
        What fills in for what Callgrind cannot know; the package's own by default.

    Raises
    ------
    ProgramError
        The file is not such a profile, or its costs do not fit a program.
    """
    path = Path(path)
    profile = read_callgrind(path)
    penalties = penalties or load_penalties()
    if any(profile.unattributed()):
        profile.self_cost[UNATTRIBUTED] = profile.unattributed()
    keys = list(dict.fromkeys([*profile.self_cost, *(key for arc in profile.arcs for key in arc)]))
    if not any(profile.totals()):
        raise ProgramError("the profile has no cost at all", file=str(path))
    command = f" of {profile.command}" if profile.command else ""
    program = Program(
        PROGRAM_VERSION,
        _program_name(path),
        f"Callgrind profile {path.name}{command}, penalties {penalties.name}",
        *_build(profile, keys, penalties),
    )
    try:
        program.encode()
    except ValueError as error:
        raise ProgramError(str(error), file=str(path)) from None
    return program


def _program_name(path: Path) -> str:
    name = path.name.removeprefix("callgrind.out.")
    return name.removesuffix(".callgrind") or path.name


def _build(
    profile: Profile, keys: Sequence[FunctionKey], penalties: Penalties
) -> tuple[tuple[Function, ...], tuple[tuple[int, ...], ...], tuple[Phase, ...]]:
    number = {key: index for index, key in enumerate(keys)}
    functions = _symbols(profile, keys)
    costs = _costs(profile, keys, penalties)
    arcs = {
        (number[caller], number[callee]): estimate(arc.cost, penalties)["cycles"]
        for (caller, callee), arc in profile.arcs.items()
    }
    graph = CallGraph([cost["cycles"] for cost in costs], arcs)
    chains = ChainTable(frozenset(index for index, key in enumerate(keys) if key.name.endswith(_PLT)))
    order = loop_body(graph)
    hot = {piece.function for piece in order}
    startup = [
        whole_segment(function, chains.number(graph.heaviest_chain(function)), functions, costs[function])
        for function in graph.order()
        if function not in hot and any(costs[function].values())
    ]
    iterations, body, tail = lay_out(visits(order), costs, functions, chains)
    return functions, tuple(chains.chains), _phases(startup, iterations, body, tail)


def _phases(
    startup: list[Segment], iterations: int, body: list[Segment], tail: list[Segment]
) -> tuple[Phase, ...]:
    parts = (("start-up", 1, startup), ("loop", iterations, body), ("tail", 1, tail))
    return tuple(
        Phase(name, n, tuple(short_segments(segments, n))) for name, n, segments in parts if segments
    )


def _costs(profile: Profile, keys: Sequence[FunctionKey], penalties: Penalties) -> list[Costs]:
    calls = dict.fromkeys(keys, 0)
    for (caller, _), arc in profile.arcs.items():
        calls[caller] += arc.calls
    nothing = (0,) * len(profile.totals())
    return [
        estimate(
            profile.self_cost.get(key, nothing), penalties, calls=calls[key], is_plt=key.name.endswith(_PLT)
        )
        for key in keys
    ]


def _symbols(profile: Profile, keys: Sequence[FunctionKey]) -> tuple[Function, ...]:
    """Name the functions and, since Callgrind's positions are lines, give them synthetic addresses."""
    words = profile.command.split()
    program = PurePosixPath(words[0]).name if words else ""
    objects = list(dict.fromkeys(key.object for key in keys))
    bases = {name: LIBRARY_BASE + index * LIBRARY_STRIDE for index, name in enumerate(objects)}
    bases |= {name: PROGRAM_BASE for name in objects if program and PurePosixPath(name).name == program}
    functions = []
    for key in keys:
        name, file = _symbol_name(key, profile), "" if key.object == "???" else PurePosixPath(key.object).name
        functions.append(Function(name, bases[key.object], FUNCTION_BYTES, file))
        bases[key.object] += FUNCTION_BYTES
    return tuple(functions)


def _symbol_name(key: FunctionKey, profile: Profile) -> str:
    """Name a PLT stub, of which Callgrind knows the address only, by the function it leads to."""
    if not key.name.endswith(_PLT):
        return key.name
    led: dict[str, Arc] = {
        callee.name: arc for (caller, callee), arc in profile.arcs.items() if caller == key
    }
    if not led:
        return key.name
    return max(led, key=lambda name: led[name].calls) + "@plt"
