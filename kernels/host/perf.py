"""Host perf's answer to calls from its physical CPUs: create, release, read, task switch, PMI, tick, tools.

A call works on the perf block, the CPU's and the task's contexts, and the hardware registers, and on nothing
else, so that host perf can live in another process: the registers travel there and back. Its cost is in
P_CALL_COST; the caller lets the time pass.
"""

import numpy as np

from vpmu.kernels.columns import (
    E_CONFIG,
    E_COUNT,
    E_FLAGS,
    E_FREQUENCY,
    E_INTERRUPTS,
    E_LEFT,
    E_OWNER,
    E_PERIOD,
    E_SLOT,
    E_STATE,
    EVENT_ACTIVE,
    EVENT_COLUMNS,
    EVENT_DEAD,
    FIXED_SLOT,
    FLAG_EXCLUDE_HOST,
    FLAG_PINNED,
    FLAG_SAMPLING,
    FLAG_VPMC,
    HW_GLOBAL_CTRL,
    HW_GUEST_CTRL,
    HW_HOST_CTRL,
    HW_HOST_SLOTS,
    HW_PMI,
    NO_SLOT,
    P_CALL,
    P_CALL_CONFIG,
    P_CALL_COST,
    P_CALL_FLAGS,
    P_CALL_SLOT,
    P_CALL_VALUE,
    P_CALL_VCPU,
    P_CALLS,
    P_CPU_HW,
    P_GRANT,
    P_HASH,
    P_NOW,
    P_QUEUE,
    P_REQUESTS,
    Q_COUNT,
    SLOTS,
    TO_FIRST,
    TO_NR_EVENTS,
    TO_STATE,
    TO_VCPU,
    U_ALL,
    U_CPU_CONTEXT,
    U_HOST_MASK,
    U_OVERFLOWED,
    U_TICK_SEQ,
    V_CONTEXT,
    V_EVENTS,
    V_NR_GP,
)
from vpmu.kernels.costs import (
    COST_HW_LVT,
    COST_HW_RDMSR,
    COST_HW_RDPMC,
    COST_HW_WRMSR,
    COST_NMI,
    COST_PERF_EVENT_CREATE,
    COST_PERF_EVENT_READ,
    COST_PERF_EVENT_RELEASE,
    COST_PERF_EVENT_UPDATE,
    COST_PERF_SCHED,
)
from vpmu.kernels.hardware import hw_rdpmc, hw_read, hw_write, slots_of
from vpmu.kernels.host.clock import pcpu_cost
from vpmu.kernels.integers import U0, U1, U8
from vpmu.kernels.jit import U64, Arena, kernel
from vpmu.kernels.log import mix
from vpmu.kernels.msr import LVTPC
from vpmu.kernels.perf.context import (
    all_in,
    context_add,
    context_remove,
    event_init,
    event_out,
    reschedule,
    rotate,
    task_in,
    task_out,
)
from vpmu.kernels.perf.interrupt import (
    ACCESS_RDPMC,
    ACCESS_READ,
    access_done,
    access_of,
    adjust_step,
    overflow_step,
    pmi_begin,
    pmi_end,
    tick_begin,
    tick_is_quiet,
)
from vpmu.kernels.perf.queue import (
    OP_CALL,
    OP_LAST_ACCESS,
    OP_OVERFLOW,
    OP_RDPMC,
    OP_READ_FIXED_CTRL,
    emit,
    pop,
)
from vpmu.kernels.perf.schedule import pmu_disable, pmu_enable

CALL_NONE = U64(0)
CALL_CREATE = U64(1)
CALL_RELEASE = U64(2)
CALL_READ = U64(3)
CALL_UPDATE = U64(4)
CALL_TASK_IN = U64(5)
CALL_TASK_OUT = U64(6)
CALL_PMI = U64(7)
CALL_TICK = U64(8)
CALL_ROTATE = U64(9)
CALL_TOOL_OPEN = U64(10)
CALL_TOOL_CLOSE = U64(11)
CALL_PERIOD = U64(12)

_EVENT = U64(EVENT_COLUMNS)
_SLOTS = U64(SLOTS)


@kernel
def run_queue(s: Arena, p: np.uint64) -> np.uint64:
    """Carry out the queued micro-operations on the hardware; return their cost in ns."""
    u = p + P_CPU_HW
    q = p + P_QUEUE
    kept = U0
    ns = U0
    while s[q + Q_COUNT] != U0:
        code, argument, value = pop(s, q)
        if code == OP_OVERFLOW:
            overflow_step(s, u, value, s[p + P_NOW])
        elif code == OP_CALL:
            pmi_end(s, u)
        elif code > OP_LAST_ACCESS:
            adjust_step(s, u, argument, value)
        else:
            access, register, word = access_of(s, u, code, argument, value, kept)
            if access == ACCESS_RDPMC:
                _, word = hw_rdpmc(s, p, register)
                ns += pcpu_cost(s, p, COST_HW_RDPMC)
            elif access == ACCESS_READ:
                _, word = hw_read(s, p, register)
                ns += pcpu_cost(s, p, COST_HW_RDMSR)
            else:
                hw_write(s, p, register, word)
                ns += pcpu_cost(s, p, COST_HW_LVT if register == LVTPC else COST_HW_WRMSR)
            if code == OP_READ_FIXED_CTRL:
                kept = word
            access_done(s, u, code, value, word)
    return ns


@kernel
def event_of(s: Arena, v: np.uint64, slot: np.uint64) -> np.uint64:
    """Return the offset of the event row that backs a vPMC."""
    if slot >= FIXED_SLOT:
        slot -= FIXED_SLOT - s[v + V_NR_GP]
    return s[v + V_EVENTS] + slot * _EVENT


@kernel
def _create(s: Arena, p: np.uint64, v: np.uint64) -> np.uint64:
    """Create, install and schedule a KVM event (perf_event_create_kernel_counter()); return the cost."""
    slot = s[p + P_CALL_SLOT]
    e = event_of(s, v, slot)
    s[e + E_CONFIG] = s[p + P_CALL_CONFIG]
    s[e + E_FLAGS] = s[p + P_CALL_FLAGS] | FLAG_PINNED | FLAG_EXCLUDE_HOST | FLAG_VPMC
    period = s[p + P_CALL_VALUE]
    if period != U0:
        s[e + E_FLAGS] |= FLAG_SAMPLING
    s[e + E_PERIOD] = period if period != U0 else U64(1) << U64(47)
    s[e + E_FREQUENCY] = U0
    s[e + E_COUNT] = U0
    s[e + E_INTERRUPTS] = U0
    s[e + E_OWNER] = slot
    event_init(s, e)
    context_add(s, s[v + V_CONTEXT], e)
    reschedule(s, p + P_CPU_HW, s[v + V_CONTEXT], True, s[p + P_NOW])
    return pcpu_cost(s, p, COST_PERF_EVENT_CREATE)


@kernel
def _release(s: Arena, p: np.uint64, v: np.uint64) -> np.uint64:
    """Release a KVM event (perf_event_release_kernel()); return the cost."""
    e = event_of(s, v, s[p + P_CALL_SLOT])
    u = p + P_CPU_HW
    c = s[v + V_CONTEXT]
    if s[e + E_STATE] == EVENT_ACTIVE:
        pmu_disable(s, u)
        event_out(s, u, c, e, s[p + P_NOW])
        pmu_enable(s, u)
    context_remove(s, c, e)
    s[e + E_STATE] = EVENT_DEAD
    return pcpu_cost(s, p, COST_PERF_EVENT_RELEASE)


@kernel
def _read(s: Arena, p: np.uint64, v: np.uint64) -> np.uint64:
    """Read a KVM event (perf_event_read_value()); return the cost."""
    e = event_of(s, v, s[p + P_CALL_SLOT])
    if s[e + E_STATE] == EVENT_ACTIVE:
        emit(s, p + P_QUEUE, OP_RDPMC, s[e + E_SLOT], e)
    return pcpu_cost(s, p, COST_PERF_EVENT_READ)


@kernel
def _period(s: Arena, p: np.uint64, v: np.uint64) -> np.uint64:
    """Give a KVM event another period (perf_event_period()); return the cost.

    P_CALL_VALUE less the event's count, cut to P_CALL_CONFIG, is how many events it is from its next
    overflow; 0 stands for all of them.
    """
    e = event_of(s, v, s[p + P_CALL_SLOT])
    u = p + P_CPU_HW
    active = s[e + E_STATE] == EVENT_ACTIVE
    pmu_disable(s, u)
    if active:
        event_out(s, u, s[v + V_CONTEXT], e, s[p + P_NOW])
    ns = run_queue(s, p)
    period = (s[p + P_CALL_VALUE] - s[e + E_COUNT]) & s[p + P_CALL_CONFIG]
    s[e + E_PERIOD] = period if period != U0 else s[p + P_CALL_CONFIG] + U1
    s[e + E_LEFT] = s[e + E_PERIOD]
    s[e + E_FLAGS] |= FLAG_SAMPLING
    if active:
        all_in(s, u, s[p + P_NOW])
    pmu_enable(s, u)
    return ns + pcpu_cost(s, p, COST_PERF_EVENT_UPDATE)


@kernel
def _tool(s: Arena, p: np.uint64, tool: np.uint64, opens: bool) -> np.uint64:
    """Open or close a host tool's events; return the cost."""
    u = p + P_CPU_HW
    c = s[u + U_CPU_CONTEXT]
    if s[tool + TO_VCPU] != U0:
        c = s[s[tool + TO_VCPU] + V_CONTEXT]
    e = s[tool + TO_FIRST]
    now = s[p + P_NOW]
    pinned = False
    ns = U0
    for _ in range(s[tool + TO_NR_EVENTS]):
        if opens:
            event_init(s, e)
            context_add(s, c, e)
            pinned = pinned or s[e + E_FLAGS] & FLAG_PINNED != U0
            ns += pcpu_cost(s, p, COST_PERF_EVENT_CREATE)
        else:
            if s[e + E_STATE] == EVENT_ACTIVE:
                pmu_disable(s, u)
                event_out(s, u, c, e, now)
                pmu_enable(s, u)
            context_remove(s, c, e)
            s[e + E_STATE] = EVENT_DEAD
            ns += pcpu_cost(s, p, COST_PERF_EVENT_RELEASE)
        e += _EVENT
    reschedule(s, u, c, pinned, now)
    s[tool + TO_STATE] += U1
    return ns


@kernel
def _pending_pmi(s: Arena, p: np.uint64, u: np.uint64, call: np.uint64) -> np.uint64:
    """Handle a PMI that came in host code before its event can lose its counter; return the cost.

    It is of the host's own events: those of guests count in guests only, and are handled at the exit.
    """
    if call == CALL_PMI or s[p + HW_PMI] == U0:
        return U0
    s[p + HW_PMI] = U0
    pmi_begin(s, u, p + P_QUEUE)
    return pcpu_cost(s, p, COST_NMI) + run_queue(s, p)


@kernel
def perf_call(s: Arena, p: np.uint64) -> None:
    """Carry out the call in P_CALL; results: P_CALL_VALUE, P_CALL_COST, P_GRANT, the hardware registers.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    p : uint64
        Offset of the physical CPU's row.
    """
    u = p + P_CPU_HW
    v = s[p + P_CALL_VCPU]
    call = s[p + P_CALL]
    now = s[p + P_NOW]
    s[p + P_REQUESTS] += U1
    before = _pending_pmi(s, p, u, call)
    if call == CALL_CREATE:
        ns = _create(s, p, v)
    elif call == CALL_RELEASE:
        ns = _release(s, p, v)
    elif call == CALL_READ:
        ns = _read(s, p, v)
    elif call == CALL_UPDATE:
        s[event_of(s, v, s[p + P_CALL_SLOT]) + E_CONFIG] = s[p + P_CALL_CONFIG]
        ns = pcpu_cost(s, p, COST_PERF_EVENT_UPDATE)
    elif call == CALL_TASK_IN:
        task_in(s, u, s[v + V_CONTEXT], now)
        ns = pcpu_cost(s, p, COST_PERF_SCHED)
    elif call == CALL_TASK_OUT:
        task_out(s, u, now)
        ns = pcpu_cost(s, p, COST_PERF_SCHED)
    elif call == CALL_PMI:
        pmi_begin(s, u, p + P_QUEUE)
        ns = U0
    elif call == CALL_TICK:
        tick_begin(s, u)
        ns = U0
    elif call == CALL_ROTATE:
        rotate(s, u, now)
        ns = pcpu_cost(s, p, COST_PERF_SCHED)
    elif call == CALL_PERIOD:
        ns = _period(s, p, v)
    else:
        ns = _tool(s, p, v, call == CALL_TOOL_OPEN)
    s[p + P_CALL_COST] = before + ns + run_queue(s, p)
    _results(s, p, u, v, call)
    s[p + P_HASH] = mix(s[p + P_HASH], now, call | (s[p + P_CALL_SLOT] << U8), s[p + P_CALL_VALUE])


@kernel
def quiet_tick(s: Arena, p: np.uint64) -> bool:
    """Carry out a CALL_TICK at which host perf has nothing to do, at no cost; False if it has something."""
    u = p + P_CPU_HW
    if s[p + HW_PMI] != U0 or not tick_is_quiet(s, u):
        return False
    s[u + U_TICK_SEQ] += U1
    s[p + P_REQUESTS] += U1
    s[p + P_CALLS + CALL_TICK] += U1
    s[p + P_CALL_COST] = U0
    s[p + P_HASH] = mix(s[p + P_HASH], s[p + P_NOW], CALL_TICK, U0)
    return True


@kernel
def _results(s: Arena, p: np.uint64, u: np.uint64, v: np.uint64, call: np.uint64) -> None:
    """Write down what the caller gets: GLOBAL_CTRL values, a count, the counters granted."""
    s[p + HW_HOST_CTRL] = s[p + HW_GLOBAL_CTRL]
    s[p + HW_HOST_SLOTS] = slots_of(s[p + HW_GLOBAL_CTRL])
    s[p + HW_GUEST_CTRL] = s[u + U_ALL] & ~s[u + U_HOST_MASK]
    if call == CALL_PMI:
        s[p + P_CALL_VALUE] = s[u + U_OVERFLOWED]
    if call == CALL_RELEASE or call == CALL_READ or call == CALL_PERIOD:
        s[p + P_CALL_VALUE] = s[event_of(s, v, s[p + P_CALL_SLOT]) + E_COUNT]
    if call <= CALL_TASK_IN or call == CALL_PERIOD:
        for i in range(_SLOTS):
            slot = U64(i)
            s[p + P_GRANT + slot] = NO_SLOT
            if slot < s[v + V_NR_GP] or slot >= FIXED_SLOT:
                e = event_of(s, v, slot)
                if s[e + E_STATE] == EVENT_ACTIVE:
                    s[p + P_GRANT + slot] = s[e + E_SLOT]
