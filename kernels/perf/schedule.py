"""Putting events on counters: x86_schedule_events(), x86_pmu_add() and its kin (Linux 5.0)."""

import numpy as np

from vpmu.kernels.columns import (
    E_CONFIG,
    E_FLAGS,
    E_INTERRUPTS,
    E_LEADER,
    E_RUNNING,
    E_SLOT,
    E_STAMP,
    E_STATE,
    E_TAG,
    EVENT_ACTIVE,
    FIXED_SLOT,
    FLAG_EXCLUDE_GUEST,
    FLAG_EXCLUDE_HOST,
    FLAG_HELD,
    NO_SLOT,
    R_SCRATCH,
    RUN_COUNTING,
    RUN_STALE,
    RUN_STOPPED,
    U_ALL,
    U_ASSIGN,
    U_BY_SLOT,
    U_DEPTH,
    U_ENABLED,
    U_EVENT,
    U_GUEST_MASK,
    U_HOST_MASK,
    U_NR_ADDED,
    U_NR_EVENTS,
    U_NR_FIXED,
    U_NR_GP,
    U_QUEUE,
    U_TAG,
)
from vpmu.kernels.events import constraint_mask
from vpmu.kernels.integers import U0, U1, U32
from vpmu.kernels.jit import U64, Arena, kernel
from vpmu.kernels.msr import (
    EVENTSEL0,
    EVENTSEL_EN,
    EVENTSEL_OS,
    EVENTSEL_USR,
    FIXED_CTR0,
    FIXED_OS,
    FIXED_PMI,
    FIXED_USR,
    GLOBAL_CTRL,
    LVT_NMI,
    RDPMC_FIXED,
)
from vpmu.kernels.perf.period import THROTTLED
from vpmu.kernels.perf.queue import (
    OP_LVTPC,
    OP_RDPMC,
    OP_READ_FIXED_CTRL,
    OP_WRITE_COUNTER,
    OP_WRITE_FIXED_CTRL,
    OP_WRMSR,
    emit,
)
from vpmu.kernels.solver import perf_assign_events

_FIXED_BIT = U64(24)
"""Fixed slot 8 is bit 32."""


@kernel
def slot_bit(slot: np.uint64) -> np.uint64:
    """Return a slot's bit in GLOBAL_CTRL, GLOBAL_STATUS and constraint masks."""
    return U1 << slot if slot < FIXED_SLOT else U1 << (slot + _FIXED_BIT)


@kernel
def bit_slot(bit: np.uint64) -> np.uint64:
    """Return the slot of a bit number of GLOBAL_CTRL."""
    return bit if bit < U32 else bit - _FIXED_BIT


@kernel
def counter_msr(first: np.uint64, slot: np.uint64) -> np.uint64:
    """Return the MSR that holds a slot's count; ``first`` is that of general-purpose counter 0."""
    return first + slot if slot < FIXED_SLOT else FIXED_CTR0 + (slot - FIXED_SLOT)


@kernel
def rdpmc_index(slot: np.uint64) -> np.uint64:
    """Return the RDPMC index of a slot."""
    return slot if slot < FIXED_SLOT else RDPMC_FIXED + (slot - FIXED_SLOT)


@kernel
def fixed_field(config: np.uint64) -> np.uint64:
    """Return the FIXED_CTR_CTRL field of an event: its privilege levels, with PMI."""
    field = FIXED_PMI
    if config & EVENTSEL_USR != U0:
        field |= FIXED_USR
    if config & EVENTSEL_OS != U0:
        field |= FIXED_OS
    return field


@kernel
def pmu_disable(s: Arena, u: np.uint64) -> None:
    """Stop all counters, if this is the outermost call (perf_pmu_disable())."""
    s[u + U_DEPTH] += U1
    if s[u + U_DEPTH] != U1:
        return
    if s[u + U_ENABLED] != U0:
        s[u + U_ENABLED] = U0
        s[u + U_NR_ADDED] = U0
        emit(s, s[u + U_QUEUE], OP_WRMSR, GLOBAL_CTRL, U0)


@kernel
def pmu_enable(s: Arena, u: np.uint64) -> None:
    """Apply a new assignment and start all counters, if this is the outermost call (perf_pmu_enable())."""
    s[u + U_DEPTH] -= U1
    if s[u + U_DEPTH] != U0 or s[u + U_ENABLED] != U0:
        return
    if s[u + U_NR_ADDED] != U0:
        _apply_assignment(s, u)
        emit(s, s[u + U_QUEUE], OP_LVTPC, U0, LVT_NMI)
    s[u + U_ENABLED] = U1
    emit(s, s[u + U_QUEUE], OP_WRMSR, GLOBAL_CTRL, s[u + U_ALL] & ~s[u + U_GUEST_MASK])


@kernel
def _apply_assignment(s: Arena, u: np.uint64) -> None:
    """Stop the events that move, then start the moved and the new ones (x86_pmu_enable())."""
    events = s[u + U_NR_EVENTS]
    running = events - s[u + U_NR_ADDED]
    for i in range(running):
        e = s[u + U_EVENT + U64(i)]
        if not _unmoved(s, u, U64(i)):
            # One that throttling has stopped stays stopped on its new counter.
            stopped = s[e + E_RUNNING] != RUN_COUNTING
            event_stop(s, u, e, True)
            if stopped:
                s[e + E_RUNNING] = RUN_STALE
    for i in range(events):
        index = U64(i)
        e = s[u + U_EVENT + index]
        if not _unmoved(s, u, index):
            _assign(s, u, index)
        elif index < running:
            continue
        if s[e + E_RUNNING] == RUN_STALE and index < running:
            s[e + E_RUNNING] = RUN_STOPPED
            continue
        event_start(s, u, e, True)
    s[u + U_NR_ADDED] = U0


@kernel
def _unmoved(s: Arena, u: np.uint64, index: np.uint64) -> bool:
    """Return whether an event stays on the counter that it was on last (match_prev_assignment())."""
    e = s[u + U_EVENT + index]
    slot = s[u + U_ASSIGN + index]
    return s[e + E_SLOT] == slot and s[e + E_TAG] == s[u + U_TAG + slot]


@kernel
def _assign(s: Arena, u: np.uint64, index: np.uint64) -> None:
    """Give an event its counter (x86_assign_hw_event())."""
    e = s[u + U_EVENT + index]
    slot = s[u + U_ASSIGN + index]
    s[u + U_TAG + slot] += U1
    s[e + E_SLOT] = slot
    s[e + E_TAG] = s[u + U_TAG + slot]


@kernel
def event_start(s: Arena, u: np.uint64, e: np.uint64, reload: bool) -> None:
    """Let an event count on its counter (x86_pmu_start()); with ``reload``, from the rest of its period."""
    slot = s[e + E_SLOT]
    q = s[u + U_QUEUE]
    s[u + U_BY_SLOT + slot] = e
    s[e + E_RUNNING] = RUN_COUNTING
    flags = s[e + E_FLAGS]
    if flags & FLAG_EXCLUDE_HOST != U0:
        s[u + U_GUEST_MASK] |= slot_bit(slot)
    if flags & FLAG_EXCLUDE_GUEST != U0:
        s[u + U_HOST_MASK] |= slot_bit(slot)
    if flags & FLAG_HELD != U0:
        return
    if reload:
        emit(s, q, OP_WRITE_COUNTER, slot, e)
    event_arm(s, u, e)


@kernel
def event_arm(s: Arena, u: np.uint64, e: np.uint64) -> None:
    """Emit what sets an event's enable bits."""
    slot = s[e + E_SLOT]
    q = s[u + U_QUEUE]
    if slot < FIXED_SLOT:
        emit(s, q, OP_WRMSR, EVENTSEL0 + slot, s[e + E_CONFIG] | EVENTSEL_EN)
    else:
        emit(s, q, OP_READ_FIXED_CTRL, U0, U0)
        emit(s, q, OP_WRITE_FIXED_CTRL, slot, fixed_field(s[e + E_CONFIG]))


@kernel
def event_stop(s: Arena, u: np.uint64, e: np.uint64, update: bool) -> None:
    """Stop an event (x86_pmu_stop()); with ``update``, read its counter."""
    slot = s[e + E_SLOT]
    q = s[u + U_QUEUE]
    held = s[e + E_FLAGS] & FLAG_HELD != U0
    if s[e + E_RUNNING] == RUN_COUNTING:
        bit = slot_bit(slot)
        s[u + U_GUEST_MASK] &= ~bit
        s[u + U_HOST_MASK] &= ~bit
        if s[u + U_BY_SLOT + slot] == e:
            s[u + U_BY_SLOT + slot] = U0
        s[e + E_RUNNING] = RUN_STALE
        if not held and slot < FIXED_SLOT:
            emit(s, q, OP_WRMSR, EVENTSEL0 + slot, s[e + E_CONFIG])
        elif not held:
            emit(s, q, OP_READ_FIXED_CTRL, U0, U0)
            emit(s, q, OP_WRITE_FIXED_CTRL, slot, U0)
    if update and s[e + E_RUNNING] == RUN_STALE:
        if not held:
            emit(s, q, OP_RDPMC, slot, e)
        s[e + E_RUNNING] = RUN_STOPPED


@kernel
def schedule_events(s: Arena, u: np.uint64, n: np.uint64) -> bool:
    """Find a counter for each of the first ``n`` collected events; U_ASSIGN changes only on success."""
    masks = R_SCRATCH
    out = R_SCRATCH + U32
    used = U0
    same = True
    for i in range(n):
        index = U64(i)
        e = s[u + U_EVENT + index]
        mask = constraint_mask(s[e + E_CONFIG], s[u + U_NR_GP], s[u + U_NR_FIXED])
        s[masks + index] = mask
        slot = s[e + E_SLOT]
        if same:
            bit = slot_bit(slot) if slot != NO_SLOT else U0
            same = bit & mask != U0 and bit & used == U0
            used |= bit
    if same:
        for i in range(n):
            s[u + U_ASSIGN + U64(i)] = s[s[u + U_EVENT + U64(i)] + E_SLOT]
        return True
    if perf_assign_events(s, masks, n, s[u + U_NR_GP], out) != n:
        return False
    for i in range(n):
        s[u + U_ASSIGN + U64(i)] = bit_slot(s[out + U64(i)])
    return True


@kernel
def add_group(s: Arena, u: np.uint64, first: np.uint64, members: np.uint64, now: np.uint64) -> bool:
    """Schedule a group in, all of it or nothing (group_sched_in()).

    Parameters
    ----------
    s : uint64[n]
        The arena.
    u : uint64
        Offset of the CPU's perf block.
    first : uint64
        Offset of the word of a context's event list that names the leader; the siblings follow.
    members : uint64
        Size of the group.
    now : uint64, ns

    Returns
    -------
    bool
        False if it does not fit; then nothing has changed.
    """
    n = s[u + U_NR_EVENTS]
    if n + members > s[u + U_NR_GP] + s[u + U_NR_FIXED]:
        return False
    for i in range(members):
        s[u + U_EVENT + n + U64(i)] = s[first + U64(i)]
    if not schedule_events(s, u, n + members):
        return False
    for i in range(members):
        e = s[first + U64(i)]
        s[e + E_STATE] = EVENT_ACTIVE
        s[e + E_STAMP] = now
        s[e + E_RUNNING] = RUN_STOPPED
        if s[e + E_INTERRUPTS] == THROTTLED:
            s[e + E_INTERRUPTS] = U0
    s[u + U_NR_EVENTS] = n + members
    s[u + U_NR_ADDED] += members
    return True


@kernel
def remove_event(s: Arena, u: np.uint64, e: np.uint64) -> None:
    """Take an event off its counter and out of the list (x86_pmu_del())."""
    event_stop(s, u, e, True)
    n = s[u + U_NR_EVENTS]
    at = U0
    while s[u + U_EVENT + at] != e:
        at += U1
    if at >= n - s[u + U_NR_ADDED]:
        s[u + U_NR_ADDED] -= U1
    n -= U1
    for i in range(at, n):
        index = U64(i)
        s[u + U_EVENT + index] = s[u + U_EVENT + index + U1]
        s[u + U_ASSIGN + index] = s[u + U_ASSIGN + index + U1]
    s[u + U_NR_EVENTS] = n


@kernel
def group_size(s: Arena, first: np.uint64, most: np.uint64) -> np.uint64:
    """Return how many events from the leader named at ``first`` on belong to one group; at most ``most``."""
    leader = s[first]
    n = U1
    while n < most and s[s[first + n] + E_LEADER] == leader:
        n += U1
    return n
