"""Programs: what a guest's thread executes, as a function from position to event counts.

A *position* is the number of core cycles a thread has executed since its program's start. A program is a list
of phases; a phase is a loop body, a list of *segments*, repeated ``iterations`` times; a segment is a run of
cycles in one function at constant event rates. When the last phase ends the program starts again, for ever.

No function call is simulated one by one: every count is a closed form of the position, so any way of slicing
the same cycles counts the same events. At offset ``off`` in a segment, all terms being integer multiples of
2**-20 (``off * rate``: of 2**-28, rounded down to 2**-20),

    count = repetition * total + floor(phase_base + iteration * per_iteration + segment_base + off * rate)

Bases are cumulative sums rounded down once, and rates are rounded down: so the count never decreases, is
exact at the end of every phase, and elsewhere lags the exact line by less than
``1 + iterations * 2**-20 + cycles of the segment * 2**-28`` events.

The program is read-only in the arena, so threads share it. A thread owns a *cursor*, ``CURSOR_COLUMNS`` words
of its row. Everything in a cursor is relative to the program's offset.
"""

from vpmu.kernels.events import KIND_CYCLES
from vpmu.kernels.integers import NEVER, U0, U1, u64min
from vpmu.kernels.jit import U64, Arena, kernel
from vpmu.kernels.program_layout import (
    BASE_SHIFT,
    CUR_ITERATION,
    CUR_OFFSET,
    CUR_PHASE,
    CUR_PHASE_AT,
    CUR_POS,
    CUR_REPETITION,
    CUR_SEGMENT,
    CUR_SEGMENT_AT,
    CURSOR_COLUMNS,
    CURVE_STRIDE,
    KIND_BASE,
    KIND_CURVE_AT,
    KIND_INVERSE_SHIFT,
    KIND_PER_ITERATION,
    KIND_STRIDE,
    PH_BODY,
    PH_BUCKET_SHIFT,
    PH_BUCKETS_AT,
    PH_CYCLES,
    PH_ITERATIONS,
    PH_KINDS,
    PH_RECIPROCAL,
    PH_SEGMENTS,
    PH_SEGMENTS_AT,
    PH_START,
    PHASE_STRIDE,
    PROG_CYCLES,
    PROG_LAST_PHASE_AT,
    PROG_PHASES,
    PROG_PHASES_AT,
    PROG_TOTALS,
    RATE_EXTRA_SHIFT,
    RECIPROCAL_SHIFT,
    SEG_CHAIN,
    SEG_CYCLES,
    SEG_FUNCTION,
    SEG_IP,
    SEG_START,
    SEGMENT_STRIDE,
    Phase,
    Segment,
    encode_program,
)

__all__ = [
    "CURSOR_COLUMNS",
    "Phase",
    "Segment",
    "encode_program",
    "program_chain",
    "program_count",
    "program_cycles_until",
    "program_function",
    "program_function_cycles",
    "program_function_events",
    "program_ip",
    "program_seek",
    "program_start",
]


@kernel
def program_start(s: Arena, prog: U64, cur: U64) -> None:
    """Put a cursor at a program's start.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    prog : uint64
        Offset of the program.
    cur : uint64
        Offset of the cursor, ``CURSOR_COLUMNS`` words; overwritten.
    """
    phase_at = s[prog + PROG_PHASES_AT]
    s[cur + CUR_POS] = U0
    s[cur + CUR_REPETITION] = U0
    s[cur + CUR_PHASE] = U0
    s[cur + CUR_PHASE_AT] = phase_at
    s[cur + CUR_ITERATION] = U0
    s[cur + CUR_SEGMENT] = U0
    s[cur + CUR_SEGMENT_AT] = s[prog + phase_at + PH_SEGMENTS_AT]
    s[cur + CUR_OFFSET] = U0


@kernel
def program_seek(s: Arena, prog: U64, cur: U64, cycles: U64) -> None:
    """Execute `cycles` core cycles: move the cursor forward.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    prog, cur : uint64
        Offsets of the program and of the cursor; the cursor is updated.
    cycles : uint64, core cycles
        Any number; at most 2**63 less the position.
    """
    s[cur + CUR_POS] += cycles
    segment = prog + s[cur + CUR_SEGMENT_AT]
    offset = s[cur + CUR_OFFSET] + cycles
    if offset < s[segment + SEG_CYCLES]:
        s[cur + CUR_OFFSET] = offset
        return
    phase = prog + s[cur + CUR_PHASE_AT]
    body = s[phase + PH_BODY]
    in_body = s[segment + SEG_START] + offset
    if in_body >= body:
        turns = _divide(in_body, body, s[phase + PH_RECIPROCAL])
        iteration = s[cur + CUR_ITERATION] + turns
        in_body -= turns * body
        if iteration >= s[phase + PH_ITERATIONS]:
            in_body = _seek_phase(s, prog, cur, iteration * body + in_body)
        else:
            s[cur + CUR_ITERATION] = iteration
    _seek_segment(s, prog, cur, in_body)


@kernel
def _divide(x: U64, body: U64, reciprocal: U64) -> U64:
    """``x // body``, without a division where ``x`` has 32 bits; the estimate is at most one too small."""
    if x >> RECIPROCAL_SHIFT:
        return x // body
    q = (x * reciprocal) >> RECIPROCAL_SHIFT
    if x - q * body >= body:
        q += U1
    return q


@kernel
def _seek_phase(s: Arena, prog: U64, cur: U64, in_phase: U64) -> U64:
    """Leave the phase, `in_phase` cycles after its start; return the position in the new phase's body."""
    phase = prog + s[cur + CUR_PHASE_AT]
    index = s[cur + CUR_PHASE]
    at = s[phase + PH_START] + in_phase
    total = s[prog + PROG_CYCLES]
    if at >= total:
        repetitions = at // total
        s[cur + CUR_REPETITION] += repetitions
        at -= repetitions * total
        index = U0
        phase = prog + s[prog + PROG_PHASES_AT]
    while at >= s[phase + PH_START] + s[phase + PH_CYCLES]:
        index += U1
        phase += PHASE_STRIDE
    s[cur + CUR_PHASE] = index
    s[cur + CUR_PHASE_AT] = phase - prog
    at -= s[phase + PH_START]
    body = s[phase + PH_BODY]
    iteration = _divide(at, body, s[phase + PH_RECIPROCAL])
    s[cur + CUR_ITERATION] = iteration
    in_body: U64 = at - iteration * body
    return in_body


@kernel
def _seek_segment(s: Arena, prog: U64, cur: U64, in_body: U64) -> None:
    """Put the cursor on the segment that holds position `in_body` of its phase's body."""
    phase = prog + s[cur + CUR_PHASE_AT]
    index = s[prog + s[phase + PH_BUCKETS_AT] + (in_body >> s[phase + PH_BUCKET_SHIFT])]
    segment = prog + s[phase + PH_SEGMENTS_AT] + index * SEGMENT_STRIDE
    while in_body >= s[segment + SEG_START] + s[segment + SEG_CYCLES]:
        index += U1
        segment += SEGMENT_STRIDE
    s[cur + CUR_SEGMENT] = index
    s[cur + CUR_SEGMENT_AT] = segment - prog
    s[cur + CUR_OFFSET] = in_body - s[segment + SEG_START]


@kernel
def _count_in_repetition(s: Arena, prog: U64, cur: U64, kind: U64) -> U64:
    """Events of ``kind`` since the repetition's start, in units of ``2**-BASE_SHIFT``."""
    entry = prog + s[cur + CUR_PHASE_AT] + PH_KINDS + kind * KIND_STRIDE
    point = prog + s[entry + KIND_CURVE_AT] + s[cur + CUR_SEGMENT] * CURVE_STRIDE
    in_segment = (s[cur + CUR_OFFSET] * s[point + U1]) >> RATE_EXTRA_SHIFT
    in_phase = s[cur + CUR_ITERATION] * s[entry + KIND_PER_ITERATION] + s[point] + in_segment
    events: U64 = s[entry + KIND_BASE] + in_phase
    return events


@kernel
def program_count(s: Arena, prog: U64, cur: U64, kind: U64) -> U64:
    """Return the events of a kind from the program's start up to the cursor.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    prog, cur : uint64
        Offsets of the program and of the cursor.
    kind : uint64
        An event kind of `vpmu.kernels.events`; ``KIND_CYCLES`` counts the position itself.

    Returns
    -------
    uint64, events
        A function of the position alone.
    """
    events: U64 = s[cur + CUR_POS]
    if kind != KIND_CYCLES:
        events = s[cur + CUR_REPETITION] * s[prog + PROG_TOTALS + kind]
        events += _count_in_repetition(s, prog, cur, kind) >> BASE_SHIFT
    return events


@kernel
def program_cycles_until(s: Arena, prog: U64, cur: U64, kind: U64, n: U64) -> U64:
    """Return the least number of cycles after which `n` more events of a kind have been counted.

    The exact inverse of `program_count`: after that many cycles the count has grown by at least `n`, one
    cycle earlier by less.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    prog, cur : uint64
        Offsets of the program and of the cursor.
    kind : uint64
        An event kind.
    n : uint64, events
        At most 2**44.

    Returns
    -------
    uint64, core cycles
        ``NEVER`` if the program has no event of that kind.
    """
    if n == U0 or kind == KIND_CYCLES:
        return n
    total = s[prog + PROG_TOTALS + kind]
    if total == U0:
        return NEVER
    target = (_count_in_repetition(s, prog, cur, kind) >> BASE_SHIFT) + n
    start = s[cur + CUR_REPETITION] * s[prog + PROG_CYCLES]
    phase = prog + s[cur + CUR_PHASE_AT]
    if target > total:
        repetitions = (target - U1) // total
        target -= repetitions * total
        start += repetitions * s[prog + PROG_CYCLES]
        phase = prog + s[prog + PROG_PHASES_AT]
    cycles: U64 = start + _position_of(s, prog, phase, kind, target << BASE_SHIFT) - s[cur + CUR_POS]
    return cycles


@kernel
def _position_of(s: Arena, prog: U64, phase: U64, kind: U64, need: U64) -> U64:
    """Return the first cycle of a repetition at which its events are at least `need`, in 2**-BASE_SHIFT.

    The cycle lies in `phase` (an offset in the arena) or after it; `need` is at most the repetition's total.
    """
    entry = phase + PH_KINDS + kind * KIND_STRIDE
    last = prog + s[prog + PROG_LAST_PHASE_AT]
    while phase != last and s[entry + PHASE_STRIDE + KIND_BASE] < need:
        phase += PHASE_STRIDE
        entry += PHASE_STRIDE
    need -= s[entry + KIND_BASE]
    per_iteration = s[entry + KIND_PER_ITERATION]
    iteration = s[phase + PH_ITERATIONS]
    if per_iteration != U0:
        iteration = u64min(iteration, (need - U1) // per_iteration)
    at: U64 = s[phase + PH_START] + iteration * s[phase + PH_BODY]
    if iteration == s[phase + PH_ITERATIONS]:
        return at  # what rounding has lost counts at the phase's end
    need -= iteration * per_iteration
    curve = prog + s[entry + KIND_CURVE_AT]
    inverse = curve + (s[phase + PH_SEGMENTS] + U1) * CURVE_STRIDE
    index = s[inverse + (need >> s[entry + KIND_INVERSE_SHIFT])]
    while s[curve + (index + U1) * CURVE_STRIDE] < need:
        index += U1
    point = curve + index * CURVE_STRIDE
    segment = prog + s[phase + PH_SEGMENTS_AT] + index * SEGMENT_STRIDE
    offset = s[segment + SEG_CYCLES]
    if s[point + U1] != U0:
        rate = s[point + U1]
        offset = u64min(offset, (((need - s[point]) << RATE_EXTRA_SHIFT) + rate - U1) // rate)
    at += s[segment + SEG_START] + offset
    return at


@kernel
def program_function(s: Arena, prog: U64, cur: U64) -> U64:
    """Return the id of the function that executes at the cursor."""
    function: U64 = s[prog + s[cur + CUR_SEGMENT_AT] + SEG_FUNCTION]
    return function


@kernel
def program_chain(s: Arena, prog: U64, cur: U64) -> U64:
    """Return the id of the call chain at the cursor."""
    chain: U64 = s[prog + s[cur + CUR_SEGMENT_AT] + SEG_CHAIN]
    return chain


@kernel
def program_ip(s: Arena, prog: U64, cur: U64) -> U64:
    """Return the instruction pointer at the cursor, a guest virtual address."""
    ip: U64 = s[prog + s[cur + CUR_SEGMENT_AT] + SEG_IP]
    return ip


@kernel
def program_function_cycles(s: Arena, prog: U64, cur: U64, function: U64) -> U64:
    """Return the exact cycles spent in a function itself, not its callees, from the start up to the cursor.

    Visits every segment once: for the truth at a run's end, not for the hot path.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    prog, cur : uint64
        Offsets of the program and of the cursor.
    function : uint64
        A function id; one that the program does not have spent no cycles.

    Returns
    -------
    uint64, core cycles
    """
    repetition = U0
    before = U0
    phase = prog + s[prog + PROG_PHASES_AT]
    index = U0
    while index < s[prog + PROG_PHASES]:
        body = _function_cycles_in_body(s, prog, phase, function, s[phase + PH_SEGMENTS])
        repetition += s[phase + PH_ITERATIONS] * body
        if index < s[cur + CUR_PHASE]:
            before += s[phase + PH_ITERATIONS] * body
        elif index == s[cur + CUR_PHASE]:
            before += s[cur + CUR_ITERATION] * body
            before += _function_cycles_in_body(s, prog, phase, function, s[cur + CUR_SEGMENT])
        phase += PHASE_STRIDE
        index += U1
    if program_function(s, prog, cur) == function:
        before += s[cur + CUR_OFFSET]
    cycles: U64 = s[cur + CUR_REPETITION] * repetition + before
    return cycles


@kernel
def _function_cycles_in_body(s: Arena, prog: U64, phase: U64, function: U64, segments: U64) -> U64:
    """Cycles of the first ``segments`` segments of a phase's body that belong to ``function``."""
    cycles = U0
    segment = prog + s[phase + PH_SEGMENTS_AT]
    for _ in range(segments):
        if s[segment + SEG_FUNCTION] == function:
            cycles += s[segment + SEG_CYCLES]
        segment += SEGMENT_STRIDE
    return cycles


@kernel
def program_function_events(s: Arena, prog: U64, cur: U64, kind: U64, out: Arena, work: Arena) -> None:
    """Fill in the events of a kind that each function retired itself, from the start up to the cursor.

    Each phase's part is rounded down, a function's by itself: together they miss at most an event for each
    function, phase and finished repetition against `program_count`. ``KIND_CYCLES`` is for
    `program_function_cycles`.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    prog, cur : uint64
        Offsets of the program and of the cursor.
    kind : uint64
        An event kind that programs carry.
    out : uint64[functions], events
    work : uint64[functions]
        Scratch.
    """
    for function in range(len(out)):
        out[function] = U0
        work[function] = U0
    phase = prog + s[prog + PROG_PHASES_AT]
    for index in range(s[prog + PROG_PHASES]):
        iterations = s[phase + PH_ITERATIONS]
        _add_events_of_body(s, prog, phase, kind, s[phase + PH_SEGMENTS], iterations, work)
        if U64(index) < s[cur + CUR_PHASE]:
            _add_events_of_body(s, prog, phase, kind, s[phase + PH_SEGMENTS], iterations, out)
        elif U64(index) == s[cur + CUR_PHASE]:
            done = s[cur + CUR_ITERATION]
            _add_events_of_body(s, prog, phase, kind, s[phase + PH_SEGMENTS], done, out)
            _add_events_of_body(s, prog, phase, kind, s[cur + CUR_SEGMENT], U1, out)
            curve = prog + s[phase + PH_KINDS + kind * KIND_STRIDE + KIND_CURVE_AT]
            rate = s[curve + s[cur + CUR_SEGMENT] * CURVE_STRIDE + U1]
            out[program_function(s, prog, cur)] += (s[cur + CUR_OFFSET] * rate) >> RATE_EXTRA_SHIFT
        phase += PHASE_STRIDE
    for function in range(len(out)):
        full = s[cur + CUR_REPETITION] * (work[function] >> BASE_SHIFT)
        part = (s[cur + CUR_REPETITION] * (work[function] & ((U1 << BASE_SHIFT) - U1))) >> BASE_SHIFT
        out[function] = full + part + (out[function] >> BASE_SHIFT)


@kernel
def _add_events_of_body(
    s: Arena, prog: U64, phase: U64, kind: U64, segments: U64, times: U64, out: Arena
) -> None:
    """Add the events of the first segments of a phase's body, so many times, by function."""
    curve = prog + s[phase + PH_KINDS + kind * KIND_STRIDE + KIND_CURVE_AT]
    segment = prog + s[phase + PH_SEGMENTS_AT]
    for _ in range(segments):
        out[s[segment + SEG_FUNCTION]] += times * (s[curve + CURVE_STRIDE] - s[curve])
        segment += SEGMENT_STRIDE
        curve += CURVE_STRIDE
