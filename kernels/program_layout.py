"""How a program lies in the arena, and the encoder that lays it there.

What it means is in `vpmu.kernels.program`. A region is: header, phases (each with one entry per event kind),
then for every phase its segments, its buckets and its curves. All offsets inside are relative to the region's
first word, so it can stand anywhere.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from vpmu.kernels.events import (
    KIND_CYCLES,
    KIND_DERIVED_FIRST,
    KIND_TIME_FIRST,
    KINDS_MAX,
    Derivation,
    derivation,
    derive_rate,
)
from vpmu.kernels.integers import RATE_LIMIT, RATE_ONE, RATE_SHIFT
from vpmu.kernels.jit import U64, Arena

BASE_SHIFT = U64(20)
"""Fractional bits of every cumulative count: 2**43 events fit, and 2**20 iterations lose less than one."""
RATE_EXTRA_SHIFT = U64(8)
"""A segment's rate has this many fractional bits more: 28 together, as everywhere in the kernels."""
RECIPROCAL_SHIFT = U64(32)
BUCKET_BITS = 7
"""A look-up table has at most 128 buckets: with 64 segments, the walk from a bucket is about one step."""

EVENTS_MAX = 2**43
"""Events of one kind, and cycles, of one repetition must stay below."""
SEGMENT_EVENTS_MAX = 2**34
"""Events of one kind in one pass through a segment must stay below."""
RATE_MAX = int(RATE_LIMIT // RATE_ONE)
"""Events of one kind per cycle must stay below."""

# The program's header, relative to its offset.
PROG_CYCLES = U64(0)  # cycles of one repetition
PROG_PHASES = U64(1)  # number of phases
PROG_PHASES_AT = U64(2)  # offset of the first phase; the others follow at PHASE_STRIDE
PROG_LAST_PHASE_AT = U64(3)
PROG_SIZE = U64(4)  # words of the whole region
PROG_TOTALS = U64(5)  # events of one repetition, one word per kind
HEADER_COLUMNS = 5 + int(KINDS_MAX)

# A phase.
PH_START = U64(0)  # cycles of the repetition before this phase
PH_CYCLES = U64(1)  # iterations * body
PH_ITERATIONS = U64(2)
PH_BODY = U64(3)  # cycles of one iteration
PH_RECIPROCAL = U64(4)  # floor(2**32 / body)
PH_SEGMENTS = U64(5)  # number of segments
PH_SEGMENTS_AT = U64(6)  # offset of the first segment
PH_BUCKETS_AT = U64(7)  # offset of the table: position in the body >> bucket shift -> segment index
PH_BUCKET_SHIFT = U64(8)
PH_KINDS = U64(9)  # one entry per kind

# A phase's entry for a kind.
KIND_BASE = U64(0)  # events of the repetition before this phase, BASE_SHIFT fractional bits
KIND_PER_ITERATION = U64(1)  # events of an iteration, BASE_SHIFT fractional bits
KIND_CURVE_AT = U64(2)  # offset of the curve
KIND_INVERSE_SHIFT = U64(3)
KIND_STRIDE = U64(4)
PHASE_STRIDE = U64(9 + 4 * int(KINDS_MAX))

# A curve: (base, rate) of every segment and of the body's end, the base relative to the iteration; behind it
# the table: events of the iteration >> inverse shift -> segment in which the walk to them begins.
CURVE_STRIDE = U64(2)

# A segment.
SEG_START = U64(0)  # cycles of the iteration before this segment
SEG_CYCLES = U64(1)
SEG_FUNCTION = U64(2)
SEG_CHAIN = U64(3)
SEG_IP = U64(4)
SEGMENT_STRIDE = U64(5)

# A cursor; the offsets in it are relative to the program.
CUR_POS = U64(0)  # cycles since the thread's start
CUR_REPETITION = U64(1)
CUR_PHASE = U64(2)  # index
CUR_PHASE_AT = U64(3)
CUR_ITERATION = U64(4)
CUR_SEGMENT = U64(5)  # index
CUR_SEGMENT_AT = U64(6)
CUR_OFFSET = U64(7)  # cycles into the segment
CURSOR_COLUMNS = 8


class Segment(NamedTuple):
    """A run of cycles in one function, at constant event rates.

    Attributes
    ----------
    cycles
        Core cycles of one pass, at least 1.
    function, chain
        Ids, as the program's owner numbers them.
    ip
        Instruction pointer, a guest virtual address.
    events
        Event kind (not cycles) -> events of *all* the phase's iterations together.
    """

    cycles: int
    function: int
    chain: int
    ip: int
    events: Mapping[int, int]


class Phase(NamedTuple):
    """A loop body and how often it is repeated."""

    iterations: int
    segments: Sequence[Segment]


def encode_program(phases: Sequence[Phase], derived: Sequence[int] = ()) -> Arena:
    """Lay a program out as its region of the arena.

    Parameters
    ----------
    phases
        At least one, each with at least one iteration and one segment.
    derived
        The run's events with edge, inv or cmask, as `vpmu.kernels.events.derived_configs` returns them: their
        rates are computed from each segment's rates, the i-th as kind ``KIND_DERIVED_FIRST + i``.

    Returns
    -------
    uint64[n]
        To be copied into the arena at any offset.

    Raises
    ------
    ValueError
        A number is out of range; the message names phase, segment and what is allowed.
    """
    if not phases:
        raise ValueError("a program needs at least one phase")
    for index, phase in enumerate(phases):
        _check_phase(index, phase)
    derivations = {int(KIND_DERIVED_FIRST) + i: derivation(config) for i, config in enumerate(derived)}
    phases = [_with_derived(phase, derivations) for phase in phases]
    totals = [sum(_phase_total(phase, kind) for phase in phases) for kind in range(int(KINDS_MAX))]
    totals[0] = sum(_cycles(phase) for phase in phases)
    for kind, total in enumerate(totals):
        if total >= EVENTS_MAX:
            raise ValueError(f"the program has {total} events of kind {kind}; fewer than 2**43 are allowed")
    return np.array(_region(phases, totals), dtype=np.uint64)


def _check_phase(index: int, phase: Phase) -> None:
    if phase.iterations < 1 or not phase.segments:
        raise ValueError(
            f"phase {index} has {phase.iterations} iterations of {len(phase.segments)} segments; "
            "at least one of each is needed"
        )
    for number, segment in enumerate(phase.segments):
        where = f"phase {index}, segment {number}"
        if segment.cycles < 1:
            raise ValueError(f"{where}: {segment.cycles} cycles; at least 1 is needed")
        for name in ("function", "chain", "ip"):
            if not 0 <= getattr(segment, name) < 2**64:
                raise ValueError(f"{where}: {name} {getattr(segment, name)} is not an unsigned 64-bit number")
        _check_events(where, phase.iterations, segment)


def _check_events(where: str, iterations: int, segment: Segment) -> None:
    limit = min(SEGMENT_EVENTS_MAX, RATE_MAX * segment.cycles) * iterations
    for kind, events in segment.events.items():
        if not 1 <= kind < int(KIND_TIME_FIRST):
            raise ValueError(f"{where}: event kind {kind}; 1 to {int(KIND_TIME_FIRST) - 1} are allowed")
        if not 0 <= events < limit:
            raise ValueError(
                f"{where}: {events} events of kind {kind} in {segment.cycles} cycles, {iterations} times; "
                f"0 to 2**34 in one pass and fewer than {RATE_MAX} per cycle are allowed"
            )


def _with_derived(phase: Phase, derivations: Mapping[int, Derivation]) -> Phase:
    """Add the events that edge, inv and cmask make of each segment's rates, as totals of the phase."""
    if not derivations:
        return phase
    reached = dict.fromkeys(derivations, 0)  # events of one pass so far, RATE_SHIFT fractional bits
    segments = []
    for segment in phase.segments:
        events = dict(segment.events)
        for kind, rule in derivations.items():
            before = reached[kind] * phase.iterations >> int(RATE_SHIFT)
            reached[kind] += segment.cycles * _derived_rate(segment, phase.iterations, rule)
            events[kind] = (reached[kind] * phase.iterations >> int(RATE_SHIFT)) - before
        segments.append(segment._replace(events=events))
    return Phase(phase.iterations, segments)


def _derived_rate(segment: Segment, iterations: int, rule: Derivation) -> int:
    rate = int(RATE_ONE)
    if rule.kind != KIND_CYCLES:
        cycles = segment.cycles * iterations
        rate = (segment.events.get(rule.kind, 0) << int(RATE_SHIFT)) // cycles
    return int(derive_rate(U64(rate), U64(rule.cmask), U64(rule.inv), U64(rule.edge)))


def _cycles(phase: Phase) -> int:
    return phase.iterations * sum(segment.cycles for segment in phase.segments)


def _phase_total(phase: Phase, kind: int) -> int:
    return sum(segment.events.get(kind, 0) for segment in phase.segments)


def _region(phases: Sequence[Phase], totals: Sequence[int]) -> list[int]:
    """Write header and phases, then append each phase's tables behind them."""
    last_phase_at = HEADER_COLUMNS + (len(phases) - 1) * int(PHASE_STRIDE)
    words = [totals[0], len(phases), HEADER_COLUMNS, last_phase_at, 0, *totals]
    words += [0] * (len(phases) * int(PHASE_STRIDE))
    start = 0
    before = [0] * int(KINDS_MAX)
    for index, phase in enumerate(phases):
        head = _phase_head(words, phase, start)
        curves: dict[tuple[int, ...], int] = {}
        for kind in range(int(KINDS_MAX)):
            per_iteration, shift, curve = _curve(phase, kind)
            if curve not in curves:  # most programs have no event of most kinds
                curves[curve] = len(words)
                words += curve
            head += [before[kind] << int(BASE_SHIFT), per_iteration, curves[curve], shift]
            before[kind] += _phase_total(phase, kind)
        at = HEADER_COLUMNS + index * int(PHASE_STRIDE)
        words[at : at + len(head)] = head
        start += _cycles(phase)
    words[int(PROG_SIZE)] = len(words)
    return words


def _phase_head(words: list[int], phase: Phase, start: int) -> list[int]:
    """Append a phase's segments and buckets; return its columns before the kinds."""
    starts = [0, *accumulate(segment.cycles for segment in phase.segments)]
    body = starts.pop()
    segments_at = len(words)
    for first, segment in zip(starts, phase.segments, strict=True):
        words += [first, segment.cycles, segment.function, segment.chain, segment.ip]
    buckets_at = len(words)
    shift = _bucket_shift(body)
    words += _buckets(starts, body, shift)
    return [
        start,
        phase.iterations * body,
        phase.iterations,
        body,
        (1 << int(RECIPROCAL_SHIFT)) // body,
        len(starts),
        segments_at,
        buckets_at,
        shift,
    ]


def _curve(phase: Phase, kind: int) -> tuple[int, int, tuple[int, ...]]:
    """Return one kind's events in an iteration, its inverse shift, and its curve with the inverse table.

    Only the cumulative sums are rounded, so that what a segment loses the next one begins with.
    """
    sums = accumulate((segment.events.get(kind, 0) for segment in phase.segments), initial=0)
    bases = [(events << int(BASE_SHIFT)) // phase.iterations for events in sums]
    curve: list[int] = []
    for segment, base, end in zip(phase.segments, bases[:-1], bases[1:], strict=True):
        curve += [base, ((end - base) << int(RATE_EXTRA_SHIFT)) // segment.cycles]
    per_iteration = bases[-1]
    shift = _bucket_shift(per_iteration)
    # n events are reached in the segment that begins with less than n: bases are looked up as n - 1.
    inverse = _buckets([0, *(base + 1 for base in bases[1:-1])], per_iteration + 1, shift)
    return per_iteration, shift, (*curve, per_iteration, 0, *inverse)


def _bucket_shift(size: int) -> int:
    return max(0, size.bit_length() - BUCKET_BITS)


def _buckets(starts: Sequence[int], size: int, shift: int) -> list[int]:
    """For every multiple of ``2**shift`` below `size`: the last index whose start is not above it."""
    buckets = []
    index = 0
    for position in range(0, size, 1 << shift):
        while index + 1 < len(starts) and starts[index + 1] <= position:
            index += 1
        buckets.append(index)
    return buckets
