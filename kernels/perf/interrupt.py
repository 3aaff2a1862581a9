"""Micro-operations carried out: results of accesses, the PMI handler (intel_pmu_handle_irq()), the tick."""

import numpy as np

from vpmu.kernels.columns import (
    C_NR_FREQUENCY,
    E_FLAGS,
    E_INTERRUPTS,
    E_OWNER,
    E_RELOAD,
    E_RUNNING,
    FLAG_FREQUENCY,
    FLAG_VPMC,
    RUN_COUNTING,
    U_ALL,
    U_BY_SLOT,
    U_COUNTER_MSR,
    U_CPU_CONTEXT,
    U_ENABLED,
    U_EVENT,
    U_GUEST_MASK,
    U_MASKED,
    U_NR_EVENTS,
    U_OVERFLOWED,
    U_PMI_ENABLED,
    U_PMI_QUEUE,
    U_QUEUE,
    U_STATUS,
    U_TASK_CONTEXT,
    U_TICK_SEQ,
)
from vpmu.kernels.integers import U0, U1, lowest_bit
from vpmu.kernels.jit import U64, Arena, kernel
from vpmu.kernels.msr import FIXED_CTR_CTRL, GLOBAL_CTRL, GLOBAL_OVF_CTRL, GLOBAL_STATUS, LVT_NMI, LVTPC
from vpmu.kernels.perf.period import THROTTLED, adjust_at_tick, begin_anew, event_update, overflow, set_period
from vpmu.kernels.perf.queue import (
    OP_ADJUST,
    OP_CALL,
    OP_LVTPC,
    OP_OVERFLOW,
    OP_RDPMC,
    OP_READ_FIXED_CTRL,
    OP_READ_STATUS,
    OP_WRITE_COUNTER,
    OP_WRITE_FIXED_CTRL,
    OP_WRMSR,
    emit,
)
from vpmu.kernels.perf.schedule import (
    bit_slot,
    counter_msr,
    event_start,
    event_stop,
    pmu_disable,
    pmu_enable,
    rdpmc_index,
)

ACCESS_READ = U64(1)
ACCESS_WRITE = U64(2)
ACCESS_RDPMC = U64(3)
ACCESS_EMULATE = U64(4)
"""An instruction that the hypervisor emulates; the register says what it retires: RETIRES_ bits."""
RETIRES_INSTRUCTION = U64(1)
RETIRES_BRANCH = U64(2)

CALL_PMI_DONE = U64(1)

_STATUS_COUNTERS = U64(0x7000000FF)
_FIELD = U64(0xF)
_FIXED_SLOT = U64(8)
_TWO = U64(2)


@kernel
def access_of(
    s: Arena, u: np.uint64, code: np.uint64, argument: np.uint64, value: np.uint64, kept: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64]:
    """Return the access that a micro-operation stands for.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    u : uint64
        Offset of the CPU's perf block.
    code, argument, value : uint64
        The micro-operation, at most OP_LAST_ACCESS.
    kept : uint64
        What OP_READ_FIXED_CTRL read last.

    Returns
    -------
    (access, register, value) : uint64
        ACCESS_READ, ACCESS_WRITE or ACCESS_RDPMC, the MSR number or RDPMC index, the word to write.
    """
    if code == OP_WRMSR:
        return ACCESS_WRITE, argument, value
    if code == OP_RDPMC:
        return ACCESS_RDPMC, rdpmc_index(argument), U0
    if code == OP_WRITE_COUNTER:
        return ACCESS_WRITE, counter_msr(s[u + U_COUNTER_MSR], argument), set_period(s, u, value)
    if code == OP_READ_STATUS:
        return ACCESS_READ, GLOBAL_STATUS, U0
    if code == OP_READ_FIXED_CTRL:
        return ACCESS_READ, FIXED_CTR_CTRL, U0
    if code == OP_WRITE_FIXED_CTRL:
        shift = (argument - _FIXED_SLOT) << _TWO
        return ACCESS_WRITE, FIXED_CTR_CTRL, (kept & ~(_FIELD << shift)) | (value << shift)
    return ACCESS_WRITE, LVTPC, value


@kernel
def access_done(s: Arena, u: np.uint64, code: np.uint64, event: np.uint64, value: np.uint64) -> None:
    """Take an access's result in.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    u : uint64
        Offset of the CPU's perf block.
    code, event : uint64
        The micro-operation and its value.
    value : uint64
        What the access read.
    """
    if code == OP_RDPMC:
        event_update(s, u, event, value)
    elif code == OP_READ_STATUS:
        _status_read(s, u, value)


@kernel
def pmi_begin(s: Arena, u: np.uint64, q: np.uint64) -> None:
    """Enter the PMI handler; its micro-operations go to queue ``q`` until pmi_end()."""
    s[u + U_PMI_QUEUE] = s[u + U_QUEUE]
    s[u + U_QUEUE] = q
    s[u + U_PMI_ENABLED] = s[u + U_ENABLED]
    s[u + U_ENABLED] = U0
    s[u + U_OVERFLOWED] = U0
    emit(s, q, OP_WRMSR, GLOBAL_CTRL, U0)
    emit(s, q, OP_READ_STATUS, U0, U0)


@kernel
def pmi_end(s: Arena, u: np.uint64) -> None:
    """Leave the PMI handler's queue."""
    s[u + U_QUEUE] = s[u + U_PMI_QUEUE]


@kernel
def _status_read(s: Arena, u: np.uint64, status: np.uint64) -> None:
    """Go on with GLOBAL_STATUS: acknowledge and handle what it says, or leave the handler."""
    q = s[u + U_QUEUE]
    if status != U0:
        s[u + U_STATUS] = status & _STATUS_COUNTERS
        emit(s, q, OP_WRMSR, GLOBAL_OVF_CTRL, status)
        _next_overflow(s, u)
        return
    s[u + U_ENABLED] = s[u + U_PMI_ENABLED]
    if s[u + U_ENABLED] != U0:
        emit(s, q, OP_WRMSR, GLOBAL_CTRL, s[u + U_ALL] & ~s[u + U_GUEST_MASK])
    if s[u + U_MASKED] != U0:
        emit(s, q, OP_LVTPC, U0, LVT_NMI)
    emit(s, q, OP_CALL, CALL_PMI_DONE, U0)


@kernel
def _next_overflow(s: Arena, u: np.uint64) -> None:
    """Emit the accesses for the next overflowed counter, or the handler's next look at the status."""
    q = s[u + U_QUEUE]
    while s[u + U_STATUS] != U0:
        bit = lowest_bit(s[u + U_STATUS])
        s[u + U_STATUS] &= s[u + U_STATUS] - U1
        slot = bit_slot(bit)
        e = s[u + U_BY_SLOT + slot]
        if e != U0 and s[e + E_RUNNING] == RUN_COUNTING:
            emit(s, q, OP_RDPMC, slot, e)
            emit(s, q, OP_WRITE_COUNTER, slot, e)
            emit(s, q, OP_OVERFLOW, slot, e)
            return
    emit(s, q, OP_READ_STATUS, U0, U0)


@kernel
def overflow_step(s: Arena, u: np.uint64, e: np.uint64, now: np.uint64) -> bool:
    """Carry out OP_OVERFLOW; True if the event takes a sample."""
    sample, throttle, restart = overflow(s, u, e, now)
    if s[e + E_FLAGS] & FLAG_VPMC != U0 and sample:
        s[u + U_OVERFLOWED] |= U1 << s[e + E_OWNER]
    if restart:
        event_stop(s, u, e, True)
        begin_anew(s, e)
        event_start(s, u, e, True)
    if throttle:
        event_stop(s, u, e, False)
    _next_overflow(s, u)
    return sample


@kernel
def tick_begin(s: Arena, u: np.uint64) -> bool:
    """Do perf's part of a timer tick (perf_event_task_tick()); False if it has nothing to do."""
    s[u + U_TICK_SEQ] += U1
    if tick_is_quiet(s, u):
        return False
    pmu_disable(s, u)
    _tick_next(s, u, U0)
    return True


@kernel
def tick_is_quiet(s: Arena, u: np.uint64) -> bool:
    """Return whether perf has nothing to do at a tick: no event to unthrottle, no period to adapt."""
    if _frequency_events(s, s[u + U_CPU_CONTEXT]) or _frequency_events(s, s[u + U_TASK_CONTEXT]):
        return False
    for i in range(s[u + U_NR_EVENTS]):
        if s[s[u + U_EVENT + U64(i)] + E_INTERRUPTS] == THROTTLED:
            return False
    return True


@kernel
def _frequency_events(s: Arena, c: np.uint64) -> bool:
    """Return whether a context has events in frequency mode."""
    return c != U0 and s[c + C_NR_FREQUENCY] != U0


@kernel
def _tick_next(s: Arena, u: np.uint64, at: np.uint64) -> None:
    """Unthrottle events from index ``at`` on, up to the next one whose period is to be adapted."""
    q = s[u + U_QUEUE]
    while at < s[u + U_NR_EVENTS]:
        e = s[u + U_EVENT + at]
        at += U1
        if s[e + E_INTERRUPTS] == THROTTLED:
            s[e + E_INTERRUPTS] = U0
            event_start(s, u, e, False)
        if s[e + E_FLAGS] & FLAG_FREQUENCY != U0 and s[e + E_RUNNING] == RUN_COUNTING:
            event_stop(s, u, e, True)
            emit(s, q, OP_ADJUST, at, e)
            return
    pmu_enable(s, u)


@kernel
def adjust_step(s: Arena, u: np.uint64, at: np.uint64, e: np.uint64) -> None:
    """Carry out OP_ADJUST: adapt the period, start the event again, go on with the next from ``at`` on."""
    adjust_at_tick(s, u, e)
    event_start(s, u, e, s[e + E_RELOAD] != U0)
    _tick_next(s, u, at)
