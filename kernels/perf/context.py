"""Contexts of perf events, and which events are on the PMU (Linux 5.0 kernel/events/core.c)."""

import numpy as np

from vpmu.kernels.columns import (
    C_COUNT,
    C_EVENTS,
    C_NR_ACTIVE,
    C_NR_FREQUENCY,
    C_STAMP,
    E_ENABLED_NS,
    E_FLAGS,
    E_FREQUENCY,
    E_LEADER,
    E_LEFT,
    E_PERIOD,
    E_RUNNING,
    E_RUNNING_NS,
    E_SLOT,
    E_STAMP,
    E_STATE,
    EVENT_ACTIVE,
    EVENT_ERROR,
    EVENT_INACTIVE,
    FLAG_FREQUENCY,
    FLAG_PINNED,
    NO_SLOT,
    RUN_STOPPED,
    U_CPU_CONTEXT,
    U_FAILED,
    U_MUX_AT,
    U_MUX_NS,
    U_TASK_CONTEXT,
)
from vpmu.kernels.integers import NEVER, U0, U1, U2, U3
from vpmu.kernels.jit import U64, Arena, kernel
from vpmu.kernels.perf.schedule import add_group, group_size, pmu_disable, pmu_enable, remove_event

PINNED = U1
FLEXIBLE = U2
BOTH = U3


@kernel
def class_of(s: Arena, e: np.uint64) -> np.uint64:
    """Return PINNED or FLEXIBLE: the class of an event, which is its group leader's."""
    return PINNED if s[s[e + E_LEADER] + E_FLAGS] & FLAG_PINNED != U0 else FLEXIBLE


@kernel
def context_in(s: Arena, u: np.uint64, c: np.uint64, classes: np.uint64, now: np.uint64) -> None:
    """Schedule a context's inactive groups of one class in (pinned_sched_in(), flexible_sched_in()).

    A pinned group that does not fit goes to ERROR. After the first flexible group that does not fit, no
    other of this pass is tried, and the multiplexing timer is armed.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    u, c : uint64
        Offsets of the CPU's perf block and of the context; no context if ``c`` is 0.
    classes : uint64
        PINNED or FLEXIBLE.
    now : uint64, ns
    """
    if c == U0:
        return
    count = s[c + C_COUNT]
    i = U0
    while i < count:
        first = c + C_EVENTS + i
        e = s[first]
        members = group_size(s, first, count - i)
        i += members
        if s[e + E_STATE] != EVENT_INACTIVE or class_of(s, e) != classes:
            continue
        if add_group(s, u, first, members, now):
            s[c + C_NR_ACTIVE] += members
        elif classes == PINNED:
            _fail(s, u, first, members)
        else:
            _arm_multiplexing(s, u, now)
            return


@kernel
def _fail(s: Arena, u: np.uint64, first: np.uint64, members: np.uint64) -> None:
    """Put a pinned group that found no counters into ERROR."""
    for i in range(members):
        s[s[first + U64(i)] + E_STATE] = EVENT_ERROR
    s[u + U_FAILED] += members


@kernel
def _arm_multiplexing(s: Arena, u: np.uint64, now: np.uint64) -> None:
    """Start the multiplexing timer unless it runs (perf_mux_hrtimer_restart())."""
    if s[u + U_MUX_AT] == NEVER:
        s[u + U_MUX_AT] = now + s[u + U_MUX_NS]


@kernel
def context_out(s: Arena, u: np.uint64, c: np.uint64, classes: np.uint64, now: np.uint64) -> None:
    """Schedule a context's active events of the given classes out (ctx_sched_out())."""
    if c == U0 or s[c + C_NR_ACTIVE] == U0:
        return
    for i in range(s[c + C_COUNT]):
        e = s[c + C_EVENTS + U64(i)]
        if s[e + E_STATE] == EVENT_ACTIVE and class_of(s, e) & classes != U0:
            event_out(s, u, c, e, now)


@kernel
def event_out(s: Arena, u: np.uint64, c: np.uint64, e: np.uint64, now: np.uint64) -> None:
    """Schedule one active event out (event_sched_out())."""
    account_time(s, e, now)
    remove_event(s, u, e)
    s[e + E_STATE] = EVENT_INACTIVE
    s[c + C_NR_ACTIVE] -= U1


@kernel
def account_time(s: Arena, e: np.uint64, now: np.uint64) -> None:
    """Add the time since the last change to an active event's enabled and running times."""
    span = now - s[e + E_STAMP]
    s[e + E_RUNNING_NS] += span
    s[e + E_STAMP] = now


@kernel
def _context_time(s: Arena, c: np.uint64, now: np.uint64) -> None:
    """Add the time since a context came on to the enabled time of its enabled events."""
    span_ns = now - s[c + C_STAMP]
    for i in range(s[c + C_COUNT]):
        e = s[c + C_EVENTS + U64(i)]
        if s[e + E_STATE] == EVENT_ACTIVE or s[e + E_STATE] == EVENT_INACTIVE:
            s[e + E_ENABLED_NS] += span_ns


@kernel
def all_in(s: Arena, u: np.uint64, now: np.uint64) -> None:
    """Schedule in what fits: CPU pinned, task pinned, CPU flexible, task flexible (perf_event_sched_in())."""
    cpu = s[u + U_CPU_CONTEXT]
    task = s[u + U_TASK_CONTEXT]
    context_in(s, u, cpu, PINNED, now)
    context_in(s, u, task, PINNED, now)
    context_in(s, u, cpu, FLEXIBLE, now)
    context_in(s, u, task, FLEXIBLE, now)


@kernel
def reschedule(s: Arena, u: np.uint64, c: np.uint64, pinned: bool, now: np.uint64) -> None:
    """Let a context's new events on (ctx_resched()).

    Parameters
    ----------
    s : uint64[n]
        The arena.
    u : uint64
        Offset of the CPU's perf block.
    c : uint64
        Offset of the context that has changed.
    pinned : bool
        Whether a pinned event was added: then flexible ones have to move, too.
    now : uint64, ns
    """
    cpu = s[u + U_CPU_CONTEXT]
    classes = BOTH if pinned else FLEXIBLE
    pmu_disable(s, u)
    context_out(s, u, s[u + U_TASK_CONTEXT], classes, now)
    if c == cpu:
        context_out(s, u, cpu, classes, now)
    elif pinned:
        context_out(s, u, cpu, FLEXIBLE, now)
    all_in(s, u, now)
    pmu_enable(s, u)


@kernel
def task_in(s: Arena, u: np.uint64, c: np.uint64, now: np.uint64) -> None:
    """Switch to a task with events (perf_event_context_sched_in())."""
    s[u + U_TASK_CONTEXT] = c
    if c == U0:
        return
    s[c + C_STAMP] = now
    if s[c + C_COUNT] == U0:
        return
    pmu_disable(s, u)
    if _has_pinned(s, c):
        context_out(s, u, s[u + U_CPU_CONTEXT], FLEXIBLE, now)
    all_in(s, u, now)
    pmu_enable(s, u)


@kernel
def _has_pinned(s: Arena, c: np.uint64) -> bool:
    """Return whether a context has a pinned event."""
    for i in range(s[c + C_COUNT]):
        if class_of(s, s[c + C_EVENTS + U64(i)]) == PINNED:
            return True
    return False


@kernel
def task_out(s: Arena, u: np.uint64, now: np.uint64) -> None:
    """Switch away from a task with events (task_ctx_sched_out())."""
    c = s[u + U_TASK_CONTEXT]
    if c != U0 and s[c + C_COUNT] != U0:
        pmu_disable(s, u)
        _context_time(s, c, now)
        context_out(s, u, c, BOTH, now)
        pmu_enable(s, u)
    s[u + U_TASK_CONTEXT] = U0


@kernel
def context_add(s: Arena, c: np.uint64, e: np.uint64) -> None:
    """Append an initialised event to a context; a group's events follow each other, the leader first."""
    s[c + C_EVENTS + s[c + C_COUNT]] = e
    s[c + C_COUNT] += U1
    if s[e + E_FLAGS] & FLAG_FREQUENCY != U0:
        s[c + C_NR_FREQUENCY] += U1


@kernel
def context_remove(s: Arena, c: np.uint64, e: np.uint64) -> None:
    """Take an inactive event out of a context."""
    count = s[c + C_COUNT]
    at = U0
    while s[c + C_EVENTS + at] != e:
        at += U1
    for i in range(at + U1, count):
        s[c + C_EVENTS + U64(i) - U1] = s[c + C_EVENTS + U64(i)]
    s[c + C_COUNT] = count - U1
    if s[e + E_FLAGS] & FLAG_FREQUENCY != U0:
        s[c + C_NR_FREQUENCY] -= U1


@kernel
def event_init(s: Arena, e: np.uint64) -> None:
    """Ready an event for its first scheduling (__hw_perf_event_init()).

    Its flags, config, period and frequency are set already.
    """
    s[e + E_STATE] = EVENT_INACTIVE
    s[e + E_SLOT] = NO_SLOT
    s[e + E_LEFT] = s[e + E_PERIOD]
    s[e + E_RUNNING] = RUN_STOPPED
    if s[e + E_FREQUENCY] != U0:
        s[e + E_PERIOD] = U1
        s[e + E_LEFT] = U1


@kernel
def rotate(s: Arena, u: np.uint64, now: np.uint64) -> bool:
    """Give waiting flexible events their turn (perf_rotate_context()); False, and no timer, if none waits.

    In each context with waiting events the first active flexible group moves to the end.
    """
    cpu = s[u + U_CPU_CONTEXT]
    task = s[u + U_TASK_CONTEXT]
    turn_cpu = _waits(s, cpu)
    turn_task = _waits(s, task)
    if not turn_cpu and not turn_task:
        s[u + U_MUX_AT] = NEVER
        return False
    pmu_disable(s, u)
    context_out(s, u, task, FLEXIBLE, now)
    if turn_cpu:
        context_out(s, u, cpu, FLEXIBLE, now)
        _first_to_end(s, cpu)
    if turn_task:
        _first_to_end(s, task)
    all_in(s, u, now)
    pmu_enable(s, u)
    s[u + U_MUX_AT] = now + s[u + U_MUX_NS]
    return True


@kernel
def _waits(s: Arena, c: np.uint64) -> bool:
    """Return whether a context has flexible events that are not on the PMU."""
    if c == U0:
        return False
    for i in range(s[c + C_COUNT]):
        e = s[c + C_EVENTS + U64(i)]
        if s[e + E_STATE] == EVENT_INACTIVE and class_of(s, e) == FLEXIBLE:
            return True
    return False


@kernel
def _first_to_end(s: Arena, c: np.uint64) -> None:
    """Move a context's first flexible group to the end of its list (list_rotate_left())."""
    count = s[c + C_COUNT]
    i = U0
    while i < count and class_of(s, s[c + C_EVENTS + i]) != FLEXIBLE:
        i += U1
    if i == count:
        return
    members = group_size(s, c + C_EVENTS + i, count - i)
    for _ in range(members):
        e = s[c + C_EVENTS + i]
        for j in range(i + U1, count):
            s[c + C_EVENTS + U64(j) - U1] = s[c + C_EVENTS + U64(j)]
        s[c + C_EVENTS + count - U1] = e
