"""What a perf event keeps of its counter: counts, periods, frequency mode, throttling (Linux 5.0)."""

import numpy as np

from vpmu.kernels.columns import (
    E_COUNT,
    E_EXPIRED,
    E_FLAGS,
    E_FREQ_COUNT,
    E_FREQ_STAMP,
    E_FREQUENCY,
    E_INTERRUPTS,
    E_INTERRUPTS_SEQ,
    E_LAST_PERIOD,
    E_LATE,
    E_LEFT,
    E_MERGED,
    E_PERIOD,
    E_PREVIOUS,
    E_RELOAD,
    E_SAMPLED,
    E_SAMPLES,
    E_SKID,
    E_SKID_MAX,
    E_THROTTLES,
    FLAG_FREQUENCY,
    FLAG_SAMPLING,
    FLAG_WATCHDOG,
    U_ALLOWED_NS,
    U_COUNTER_MASK,
    U_MAX_PERIOD,
    U_MAX_SAMPLES,
    U_RUNNING_LENGTH,
    U_SAMPLE_RATE,
    U_TICK_NS,
    U_TICK_SEQ,
)
from vpmu.kernels.integers import U0, U1, U2
from vpmu.kernels.jit import U64, Arena, kernel

THROTTLED = U64(2**64 - 1)
"""hw.interrupts of a throttled event (MAX_INTERRUPTS)."""

_BILLION = U64(1_000_000_000)
_COUNT_LIMIT = U64(1 << 34)
_SEVEN = np.int64(7)
_EIGHT = np.int64(8)
_I0 = np.int64(0)
_I1 = np.int64(1)
_I2 = np.int64(2)
_AVERAGED = U64(128)
_QUARTER = U64(25)
_HUNDRED = U64(100)
_FOUR = U64(4)


@kernel
def event_update(s: Arena, u: np.uint64, e: np.uint64, value: np.uint64) -> None:
    """Account to an event what its counter has gained (x86_perf_event_update()).

    Parameters
    ----------
    s : uint64[n]
        The arena.
    u : uint64
        Offset of the CPU's perf block.
    e : uint64
        Offset of the event.
    value : uint64
        The counter, as RDPMC gave it.
    """
    delta = (value - s[e + E_PREVIOUS]) & s[u + U_COUNTER_MASK]
    s[e + E_PREVIOUS] = value
    s[e + E_COUNT] += delta
    s[e + E_LEFT] -= delta


@kernel
def set_period(s: Arena, u: np.uint64, e: np.uint64) -> np.uint64:
    """Begin the next (part of a) period: return the counter's new word (x86_perf_event_set_period()).

    E_EXPIRED says whether a whole period had elapsed. A period longer than the largest that the
    counter can be programmed with takes several overflows.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    u, e : uint64
        Offsets of the CPU's perf block and of the event.

    Returns
    -------
    uint64
        Minus the events left, cut to the counter's width.
    """
    left = np.int64(s[e + E_LEFT])
    period = np.int64(s[e + E_PERIOD])
    expired = U0
    late = U64(-left)
    if left <= -period:
        s[e + E_MERGED] += late
        left = period
        expired = U1
    elif left <= _I0:
        left += period
        expired = U1
    if expired != U0:
        s[e + E_LATE] = late
        # Until overflow() has taken the sample: it does not, if no PMI handler finds the period ended.
        s[e + E_MERGED] += s[e + E_PERIOD]
        s[e + E_LEFT] = U64(left)
        s[e + E_LAST_PERIOD] = s[e + E_PERIOD]
    s[e + E_EXPIRED] = expired
    left = max(left, _I2)
    limit = np.int64(s[u + U_MAX_PERIOD])
    left = min(left, limit)
    value = U64(-left) & s[u + U_COUNTER_MASK]
    s[e + E_PREVIOUS] = value
    return value


@kernel
def adjust_period(s: Arena, e: np.uint64, span_ns: np.uint64, count: np.uint64) -> bool:
    """Move a frequency event's period an eighth of the way to its target (perf_adjust_period()).

    Parameters
    ----------
    s : uint64[n]
        The arena.
    e : uint64
        Offset of the event.
    span_ns : uint64, ns
        Time in which ``count`` events came.
    count : uint64, events

    Returns
    -------
    bool
        True if the period in progress is much too long and must be begun anew.
    """
    events = count
    span = span_ns
    while events >= _COUNT_LIMIT:
        events >>= U1
        span >>= U1
    divisor = span * s[e + E_FREQUENCY]
    target = events * _BILLION // divisor if divisor != U0 else events
    period = np.int64(s[e + E_PERIOD])
    difference = np.int64(target) - period + _SEVEN
    # C's division truncates towards zero, Python's and numba's // does not.
    step = difference // _EIGHT if difference >= _I0 else -((-difference) // _EIGHT)
    period = max(period + step, _I1)
    s[e + E_PERIOD] = U64(period)
    return bool(np.int64(s[e + E_LEFT]) > _EIGHT * period)


@kernel
def begin_anew(s: Arena, e: np.uint64) -> None:
    """Let a period that has become much too short for what is left begin anew at the next start."""
    s[e + E_LEFT] = U0
    # set_period() takes it for ended, which it is not.
    s[e + E_MERGED] -= s[e + E_PERIOD]


@kernel
def count_interrupt(s: Arena, u: np.uint64, e: np.uint64) -> bool:
    """Count a sample against the tick's limit; True to throttle (__perf_event_account_interrupt())."""
    if s[e + E_FLAGS] & FLAG_WATCHDOG != U0:
        s[e + E_INTERRUPTS] = U0
        return False
    if s[e + E_INTERRUPTS_SEQ] != s[u + U_TICK_SEQ]:
        s[e + E_INTERRUPTS_SEQ] = s[u + U_TICK_SEQ]
        s[e + E_INTERRUPTS] = U1
        return False
    s[e + E_INTERRUPTS] += U1
    if s[e + E_INTERRUPTS] < s[u + U_MAX_SAMPLES]:
        return False
    s[e + E_INTERRUPTS] = THROTTLED
    s[e + E_THROTTLES] += U1
    return True


@kernel
def overflow(s: Arena, u: np.uint64, e: np.uint64, now: np.uint64) -> tuple[bool, bool, bool]:
    """Deal with an elapsed period: whether a sample is due, the event is throttled, its period is to restart.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    u, e : uint64
        Offsets of the CPU's perf block and of the event.
    now : uint64, ns
        The clock of the system whose perf this is.

    Returns
    -------
    (sample, throttle, restart) : bool
        As __perf_event_overflow() decides; a counting event asks for nothing.
    """
    flags = s[e + E_FLAGS]
    if s[e + E_EXPIRED] == U0 or flags & FLAG_SAMPLING == U0:
        return False, False, False
    throttle = count_interrupt(s, u, e)
    restart = False
    if flags & FLAG_FREQUENCY != U0:
        span = now - s[e + E_FREQ_STAMP]
        s[e + E_FREQ_STAMP] = now
        if span > U0 and span < U2 * s[u + U_TICK_NS]:
            restart = adjust_period(s, e, span, s[e + E_LAST_PERIOD])
    s[e + E_SAMPLES] += U1
    s[e + E_SAMPLED] += s[e + E_LAST_PERIOD]
    s[e + E_MERGED] -= s[e + E_LAST_PERIOD]
    s[e + E_SKID] += s[e + E_LATE]
    s[e + E_SKID_MAX] = max(s[e + E_SKID_MAX], s[e + E_LATE])
    return flags & FLAG_WATCHDOG == U0, throttle, restart


@kernel
def adjust_at_tick(s: Arena, u: np.uint64, e: np.uint64) -> None:
    """Adapt a frequency event's period to what the last tick counted (perf_adjust_freq_unthr_context())."""
    delta = s[e + E_COUNT] - s[e + E_FREQ_COUNT]
    s[e + E_FREQ_COUNT] = s[e + E_COUNT]
    s[e + E_RELOAD] = U0
    if delta > U0:
        if adjust_period(s, e, s[u + U_TICK_NS], delta):
            begin_anew(s, e)
        s[e + E_RELOAD] = U1


@kernel
def sample_took(s: Arena, u: np.uint64, took_ns: np.uint64) -> None:
    """Lower the sampling rate if handlers take more than a quarter of the time (perf_sample_event_took()).

    Parameters
    ----------
    s : uint64[n]
        The arena.
    u : uint64
        Offset of the CPU's perf block.
    took_ns : uint64, ns
        How long the PMI handler ran.
    """
    allowed = s[u + U_ALLOWED_NS]
    if allowed == U0:
        return
    running = s[u + U_RUNNING_LENGTH]
    running = running - running // _AVERAGED + took_ns
    s[u + U_RUNNING_LENGTH] = running
    average = running // _AVERAGED
    if average <= allowed:
        return
    average += average // _FOUR
    most = s[u + U_TICK_NS] // _HUNDRED * _QUARTER
    s[u + U_ALLOWED_NS] = average
    s[u + U_MAX_SAMPLES] = max(most // average, U1) if average < most else U1
    s[u + U_SAMPLE_RATE] = s[u + U_MAX_SAMPLES] * (_BILLION // s[u + U_TICK_NS])
