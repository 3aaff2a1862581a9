"""From costs per function to phases of segments, so that nothing is lost.

A loop body visits the functions in the order given; what does not divide by the iterations goes to a tail, so
that every function's cycles and events add up to its costs exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import groupby
from typing import Final

from vpmu.program.model import Function, Segment

BODY_CYCLES: Final = 40_000
"""A loop body's length is near this: at 4000 Hz and 2.8 GHz, 17 bodies in a sampling period."""
BODY_SEGMENTS: Final = 64
MOST_EVENTS: Final = 2**33
"""Of one kind in a segment: half of what a kernel's position can hold (`SEGMENT_EVENTS_MAX`)."""

Costs = Mapping[str, int]
"""``cycles``, and events by the names of `vpmu.program.model.EVENT_KINDS`."""


@dataclass(frozen=True)
class Piece:
    """A visit of the loop body to a function: in which call chain, and with which part of its cycles."""

    function: int
    chain: tuple[int, ...]
    weight: Fraction


@dataclass
class ChainTable:
    """Numbers call chains as they come.

    Functions in `frameless` leave no frame on the stack, as a PLT stub that jumps on: they are seen only
    while they execute themselves.
    """

    frameless: frozenset[int] = frozenset()
    chains: dict[tuple[int, ...], int] = field(default_factory=dict)

    def number(self, chain: tuple[int, ...]) -> int:
        """Return a chain's index."""
        frames = tuple(function for function in chain[:-1] if function not in self.frameless)
        return self.chains.setdefault((*frames, chain[-1]), len(self.chains))


def whole_segment(function: int, chain: int, functions: Sequence[Function], costs: Costs) -> Segment:
    """Return one segment that holds all of a function's costs."""
    events = {name: count for name, count in costs.items() if name != "cycles" and count}
    return Segment(max(1, costs["cycles"]), function, chain, functions[function].address, events)


def short_segments(segments: Iterable[Segment], iterations: int) -> list[Segment]:
    """Cut segments with more events than one pass of a phase may have into equal ones."""
    found = []
    for segment in segments:
        parts = 1 + max(segment.events.values(), default=0) // (MOST_EVENTS * iterations)
        lengths = apportion(segment.cycles, [1] * parts)
        counts = {name: apportion(count, lengths) for name, count in segment.events.items()}
        for index, length in enumerate(lengths):
            events = {name: cut[index] for name, cut in counts.items() if cut[index]}
            found.append(Segment(length, segment.function, segment.chain, segment.ip, events))
    return found


def lay_out(
    pieces: Sequence[Piece], costs: Sequence[Costs], functions: Sequence[Function], chains: ChainTable
) -> tuple[int, list[Segment], list[Segment]]:
    """Spread functions' costs over a loop body and a tail.

    Parameters
    ----------
    pieces
        The body's visits in order; every one has a positive weight.
    costs, functions
        Costs and symbol of every function of the program, by id.
    chains
        Takes the pieces' chains.

    Returns
    -------
    tuple
        The iterations, the body's segments (none if no piece has a cycle), and the tail's.
    """
    pieces = list(_merged(pieces))
    hot = list(dict.fromkeys(piece.function for piece in pieces))
    iterations = max(1, sum(costs[function]["cycles"] for function in hot) // BODY_CYCLES)
    body: dict[int, Segment] = {}
    tail: list[Segment] = []
    for function in hot:
        places = [index for index, piece in enumerate(pieces) if piece.function == function]
        rest = _spread(places, pieces, costs[function], functions[function], iterations, chains, body)
        tail += rest
    return iterations, [body[index] for index in sorted(body)], tail


def visits(order: Sequence[Piece]) -> list[Piece]:
    """Repeat an order of visits as often as a body's segments allow."""
    return list(order) * max(1, BODY_SEGMENTS // max(1, len(order)))


def apportion(total: int, weights: Sequence[Fraction | int]) -> list[int]:
    """Cut a whole into integer parts in proportion to weights; each is off by less than 1."""
    whole = sum(weights, Fraction(0))
    reached, parts, before = Fraction(0), [], 0
    for weight in weights:
        reached += weight
        mark = int(total * reached / whole)
        parts.append(mark - before)
        before = mark
    return parts


def _merged(pieces: Iterable[Piece]) -> Iterable[Piece]:
    """Make one visit of neighbours to the same function in the same chain."""
    for (function, chain), group in groupby(pieces, key=lambda piece: (piece.function, piece.chain)):
        yield Piece(function, chain, sum((piece.weight for piece in group), Fraction(0)))


def _spread(
    places: Sequence[int],
    pieces: Sequence[Piece],
    costs: Costs,
    function: Function,
    iterations: int,
    chains: ChainTable,
    body: dict[int, Segment],
) -> list[Segment]:
    """Put a function's segments into the body, and return what is left of its costs as a tail."""
    cycles = apportion(costs["cycles"] // iterations, [pieces[place].weight for place in places])
    visited = [(place, length) for place, length in zip(places, cycles, strict=True) if length]
    lengths = [length * iterations for _, length in visited]
    lengths.append(costs["cycles"] - sum(lengths))
    counts = {name: apportion(count, lengths) for name, count in costs.items() if name != "cycles" and count}
    for index, (place, length) in enumerate(visited):
        piece = pieces[place]
        ip = function.address + function.size * index // len(visited)
        events = {name: parts[index] for name, parts in counts.items() if parts[index]}
        body[place] = Segment(length, piece.function, chains.number(piece.chain), ip, events)
    if not lengths[-1]:
        return []
    first = pieces[places[0]]
    events = {name: parts[-1] for name, parts in counts.items() if parts[-1]}
    return [Segment(lengths[-1], first.function, chains.number(first.chain), function.address, events)]
