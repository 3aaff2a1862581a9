"""perf sessions inside a guest: when they start, read their counters and stop (perf stat, perf record)."""

import numpy as np

from vpmu.kernels.columns import (
    C_STAMP,
    E_ENABLED_NS,
    E_FLAGS,
    E_RUNNING_NS,
    E_SLOT,
    E_STAMP,
    E_STATE,
    EVENT_ACTIVE,
    EVENT_COLUMNS,
    EVENT_OFF,
    FLAG_PINNED,
    G_CPU_HW,
    G_CURRENT,
    G_INTERVAL_AT,
    G_INTERVAL_SESSION,
    G_NR_SESSIONS,
    G_SESSIONS,
    S_CONTEXT,
    S_FIRST,
    S_INTERVAL_NS,
    S_INTERVALS,
    S_NEXT_AT,
    S_NR_EVENTS,
    S_START_AT,
    S_STATE,
    S_STOP_AT,
    S_THREAD,
    SESSION_COLUMNS,
    U_QUEUE,
    U_TASK_CONTEXT,
)
from vpmu.kernels.guest.due import due_begin, due_close
from vpmu.kernels.integers import NEVER, U0, U1
from vpmu.kernels.jit import U64, Arena, kernel
from vpmu.kernels.perf.context import all_in, context_add, context_remove, event_init, event_out, reschedule
from vpmu.kernels.perf.queue import OP_CALL, OP_RDPMC, emit
from vpmu.kernels.perf.schedule import pmu_disable, pmu_enable

SESSION_WAITING = U64(0)
SESSION_RUNNING = U64(1)
SESSION_STOPPED = U64(2)

CALL_INTERVAL = U64(10)
"""The reads of an interval are done: note what they gave."""

_STRIDE = U64(SESSION_COLUMNS)
_EVENT = U64(EVENT_COLUMNS)


@kernel
def session_timer(s: Arena, session: np.uint64) -> np.uint64:
    """Return when a session has something to do next."""
    state = s[session + S_STATE]
    if state == SESSION_WAITING:
        return s[session + S_START_AT]
    if state == SESSION_RUNNING:
        return min(s[session + S_NEXT_AT], s[session + S_STOP_AT])
    return NEVER


@kernel
def next_session(s: Arena, g: np.uint64) -> None:
    """Find the session that has something to do first."""
    best = U0
    at = NEVER
    session = s[g + G_SESSIONS]
    for _ in range(s[g + G_NR_SESSIONS]):
        when = session_timer(s, session)
        if when < at:
            at = when
            best = session
        session += _STRIDE
    s[g + G_INTERVAL_AT] = at
    s[g + G_INTERVAL_SESSION] = best


@kernel
def session_step(s: Arena, g: np.uint64, now: np.uint64) -> None:
    """Start, read or stop the session whose time has come."""
    session = s[g + G_INTERVAL_SESSION]
    if s[session + S_STATE] == SESSION_WAITING:
        _start(s, g, session, now)
    elif s[session + S_STOP_AT] <= now:
        session_stop(s, g, session, now)
    else:
        session_read(s, g, session)
        emit(s, s[g + G_CPU_HW + U_QUEUE], OP_CALL, CALL_INTERVAL, session)
        s[session + S_INTERVALS] += U1
        s[session + S_NEXT_AT] += s[session + S_INTERVAL_NS]
    next_session(s, g)


@kernel
def _start(s: Arena, g: np.uint64, session: np.uint64, now: np.uint64) -> None:
    """Open a session's events and enable them (perf_event_open(), perf_install_in_context())."""
    s[session + S_STATE] = SESSION_RUNNING
    s[session + S_START_AT] = now
    live = _is_live(s, g, session)
    if s[session + S_INTERVAL_NS] != U0:
        s[session + S_NEXT_AT] = now + s[session + S_INTERVAL_NS]
    e = s[session + S_FIRST]
    pinned = False
    for _ in range(s[session + S_NR_EVENTS]):
        event_init(s, e)
        due_begin(s, e)
        context_add(s, s[session + S_CONTEXT], e)
        pinned = pinned or s[e + E_FLAGS] & FLAG_PINNED != U0
        s[e + E_STAMP] = now
        if live and s[session + S_THREAD] != U0:
            # The thread's turn, which is added when it ends, began before the session.
            s[e + E_ENABLED_NS] -= now - s[s[session + S_CONTEXT] + C_STAMP]
        e += _EVENT
    if live:
        reschedule(s, g + G_CPU_HW, s[session + S_CONTEXT], pinned, now)


@kernel
def _is_live(s: Arena, g: np.uint64, session: np.uint64) -> bool:
    """Return whether a session's events may be on the PMU now: it is the CPU's, or its thread runs."""
    thread = s[session + S_THREAD]
    return thread == U0 or thread == s[g + G_CURRENT]


@kernel
def session_read(s: Arena, g: np.uint64, session: np.uint64) -> None:
    """Emit the reads of a session's active events (perf_event_read())."""
    e = s[session + S_FIRST]
    for _ in range(s[session + S_NR_EVENTS]):
        if s[e + E_STATE] == EVENT_ACTIVE:
            emit(s, s[g + G_CPU_HW + U_QUEUE], OP_RDPMC, s[e + E_SLOT], e)
        e += _EVENT


@kernel
def event_times(
    s: Arena, g: np.uint64, session: np.uint64, e: np.uint64, now: np.uint64
) -> tuple[np.uint64, np.uint64]:
    """Return the enabled and running times of a running session's event, in ns (perf_event_read_value())."""
    running = s[e + E_RUNNING_NS]
    if s[e + E_STATE] == EVENT_ACTIVE:
        running += now - s[e + E_STAMP]
    thread = s[session + S_THREAD]
    if thread == U0:
        return now - s[session + S_START_AT], running
    enabled = s[e + E_ENABLED_NS]
    if s[g + G_CPU_HW + U_TASK_CONTEXT] == s[session + S_CONTEXT]:
        enabled += now - s[s[session + S_CONTEXT] + C_STAMP]
    return enabled, running


@kernel
def session_stop(s: Arena, g: np.uint64, session: np.uint64, now: np.uint64) -> None:
    """Close a session: its events leave their context, and others get their counters."""
    s[session + S_STATE] = SESSION_STOPPED
    c = s[session + S_CONTEXT]
    u = g + G_CPU_HW
    e = s[session + S_FIRST]
    live = _is_live(s, g, session)
    if live:
        pmu_disable(s, u)
    for _ in range(s[session + S_NR_EVENTS]):
        enabled, _ = event_times(s, g, session, e, now)
        s[e + E_ENABLED_NS] = enabled
        if s[e + E_STATE] == EVENT_ACTIVE:
            event_out(s, u, c, e, now)
        context_remove(s, c, e)
        due_close(s, g, e)
        s[e + E_STATE] = EVENT_OFF
        e += _EVENT
    if live:
        all_in(s, u, now)
        pmu_enable(s, u)


@kernel
def close_session(s: Arena, g: np.uint64, now: np.uint64) -> bool:
    """Close the first session that runs, as its tool does when the guest ends; False if there is none."""
    session = s[g + G_SESSIONS]
    for _ in range(s[g + G_NR_SESSIONS]):
        if s[session + S_STATE] == SESSION_RUNNING:
            session_stop(s, g, session, now)
            next_session(s, g)
            return True
        session += _STRIDE
    return False
