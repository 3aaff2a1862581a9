"""What a guest's perf events had to see: all that retired while they were enabled, by what perf let them do.

Part of the truth, apart from the counters: differences of running totals between the moments at which perf
changes its mind about an event. Nothing here is part of a row's hash.
"""

import numpy as np

from vpmu.kernels.columns import (
    C_COUNT,
    C_EVENTS,
    E_CLASS,
    E_CONFIG,
    E_DUE,
    E_EDGE,
    E_INTERRUPTS,
    E_NOTED,
    E_OWNER,
    E_STATE,
    E_WHAT,
    EVENT_ACTIVE,
    EVENT_OFF,
    G_CPU_HW,
    G_CURRENT,
    G_ID,
    G_LOG,
    G_SEQUENCE,
    R_KINDS,
    SLOTS,
    T_COUNT,
    T_EDGE,
    T_FRESH,
    T_LOST,
    T_MEANING,
    T_ON,
    T_SEEN,
    T_STILL,
    TH_ID,
    U_CPU_CONTEXT,
    U_TASK_CONTEXT,
)
from vpmu.kernels.events import event_kind
from vpmu.kernels.guest.truth import retired
from vpmu.kernels.integers import U0, U1, U2, U3, U8
from vpmu.kernels.jit import U64, Arena, kernel
from vpmu.kernels.log import RECORD_THROTTLE, head_word, keeps, log_record
from vpmu.kernels.perf.period import THROTTLED

DUE_NONE = U0
"""Not enabled, or its thread does not run."""
DUE_COUNTING = U1
"""It has a counter."""
DUE_THROTTLED = U2
"""perf has stopped it until the next tick."""
DUE_WAITING = U3
"""It waits for a counter: others have their turn (multiplexing), or it is in ERROR."""

_BYTE = U64(0xFF)
_USER = U64(15)
_KERNEL = U64(17)


@kernel
def due_begin(s: Arena, e: np.uint64) -> None:
    """Take down what an event asks for, before its session enables it."""
    config = s[e + E_CONFIG]
    levels = ((config >> _KERNEL) & U1) | ((config >> _USER) & U2)
    s[e + E_WHAT] = event_kind(s, s[R_KINDS], config) | levels << U8


@kernel
def _class_of(s: Arena, e: np.uint64) -> np.uint64:
    """Return what perf lets an enabled event do, its thread running: one of the DUE_ constants."""
    state = s[e + E_STATE]
    if state == EVENT_OFF:
        return DUE_NONE
    if state != EVENT_ACTIVE:
        return DUE_WAITING
    return DUE_THROTTLED if s[e + E_INTERRUPTS] == THROTTLED else DUE_COUNTING


@kernel
def _turn(s: Arena, g: np.uint64, e: np.uint64, to: np.uint64) -> None:
    """Close the account of an event's class and open another's."""
    total = retired(s, g, s[e + E_WHAT] & _BYTE, s[e + E_WHAT] >> U8)
    s[e + E_DUE + s[e + E_CLASS]] += total - s[e + E_EDGE]
    s[e + E_EDGE] = total
    s[e + E_CLASS] = to


@kernel
def due_close(s: Arena, g: np.uint64, e: np.uint64) -> None:
    """Close an event's account: its session stops, or its thread leaves."""
    if s[e + E_CLASS] != DUE_NONE:
        _turn(s, g, e, DUE_NONE)


@kernel
def due_pause(s: Arena, g: np.uint64) -> None:
    """Close all accounts of a guest's CPU and current thread, before another thread comes."""
    for context in range(2):
        c = s[g + G_CPU_HW + (U_TASK_CONTEXT if context == 1 else U_CPU_CONTEXT)]
        if c != U0:
            for i in range(s[c + C_COUNT]):
                due_close(s, g, s[c + C_EVENTS + U64(i)])


@kernel
def follow_event(s: Arena, log: Arena, g: np.uint64, e: np.uint64, now: np.uint64) -> None:
    """Follow what perf lets an event do; log that it was throttled or goes on (perf_log_throttle()).

    Parameters
    ----------
    s, log : uint64[n]
        The arena and the log.
    g, e : uint64
        Offsets of the guest row and of the event.
    now : uint64, ns
    """
    to = _class_of(s, e)
    if to != s[e + E_CLASS]:
        _turn(s, g, e, to)
    throttled = U1 if s[e + E_INTERRUPTS] == THROTTLED else U0
    if throttled != s[e + E_NOTED]:
        s[e + E_NOTED] = throttled
        if keeps(s, RECORD_THROTTLE) and s[g + G_LOG] != U0:
            _log_throttle(s, log, g, e, throttled, now)


@kernel
def _log_throttle(
    s: Arena, log: Arena, g: np.uint64, e: np.uint64, throttled: np.uint64, now: np.uint64
) -> None:
    """Log that an event was throttled or goes on, and which thread ran."""
    thread = U0
    if s[g + G_CURRENT] != U0:
        thread = s[s[g + G_CURRENT] + TH_ID]
    s[g + G_SEQUENCE] += U1
    head = head_word(RECORD_THROTTLE, U0, throttled)
    log_record(s, log, head, now, s[g + G_ID], s[g + G_SEQUENCE], s[e + E_OWNER], thread)


@kernel
def follow_events(s: Arena, log: Arena, g: np.uint64, now: np.uint64) -> None:
    """Follow the events of a guest's CPU and of its current thread: follow_event()."""
    for context in range(2):
        c = s[g + G_CPU_HW + (U_TASK_CONTEXT if context == 1 else U_CPU_CONTEXT)]
        if c != U0:
            for i in range(s[c + C_COUNT]):
                follow_event(s, log, g, s[c + C_EVENTS + U64(i)], now)


@kernel
def due_of(s: Arena, g: np.uint64, e: np.uint64, which: np.uint64) -> np.uint64:
    """Return an event's account of a class up to now, in events, one that is open included."""
    due: np.uint64 = s[e + E_DUE + which]
    if s[e + E_CLASS] == which and which != DUE_NONE:
        due += retired(s, g, s[e + E_WHAT] & _BYTE, s[e + E_WHAT] >> U8) - s[e + E_EDGE]
    return due


@kernel
def unread(s: Arena, g: np.uint64, slot: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Return what a counter had to count since it was last read, and what retired while it stood still.

    For the end of a run that stops in mid-session; both in events.
    """
    if slot >= U64(SLOTS):
        return U0, U0
    counted = s[g + T_COUNT + slot] - s[g + T_SEEN + slot]
    lost = s[g + T_LOST + slot]
    if (s[g + T_ON] & ~s[g + T_FRESH]) >> slot & U1 != U0:
        word = s[g + T_MEANING + slot]
        events = retired(s, g, word & _BYTE, (word >> U8) & U3) - s[g + T_EDGE + slot]
        if (s[g + T_STILL] >> slot) & U1 != U0:
            lost += events
        else:
            counted += events
    return counted, lost
