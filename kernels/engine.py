"""Advancing physical CPUs: guest code, accesses, exits, host perf calls, interrupts, switches, to a stop.

A physical CPU is a state machine; one step takes it from one decision to the next. It stops where it needs
someone else, and goes on, when that is done, as if nothing had been.
"""

import numpy as np

from vpmu.kernels.columns import (
    G_OUTSIDE,
    G_STILL,
    G_TIMER_AT,
    H_HELD,
    HW_GLOBAL_STATUS,
    HW_LVTPC,
    HW_PMI,
    NO_SLOT,
    P_ASK,
    P_CALL,
    P_CALL_COST,
    P_CALL_SLOT,
    P_CALL_STAGE,
    P_CALL_VALUE,
    P_CALL_VCPU,
    P_CALLS,
    P_CAUSES,
    P_CPU_HW,
    P_CURRENT,
    P_EXITS,
    P_HASH,
    P_HOST,
    P_ID,
    P_IDLE,
    P_INTERCEPTS,
    P_IRQ_AT,
    P_LIMIT,
    P_NOW,
    P_NR_TOOLS,
    P_OUT_STATE,
    P_PMIS,
    P_REMOTE_GUEST,
    P_REMOTE_PERF,
    P_RESCHED,
    P_STATE,
    P_STOP,
    P_STOP_AT,
    P_SWITCHES,
    P_TICKED,
    P_TIMER_AT,
    P_TOOLS,
    P_WAKE_AT,
    R_LOG_CAPACITY,
    R_LOG_COUNT,
    R_STEPS,
    REQUESTS,
    TO_START_AT,
    TO_STATE,
    TO_STOP_AT,
    TOOL_COLUMNS,
    U_MUX_AT,
    V_CALL,
    V_COMPLETE,
    V_DONE,
    V_GUEST,
    V_GUEST_NS,
    V_HAS_EVENT,
    V_HW_OWNED,
    V_HW_SLOT,
    V_ID,
    V_INJECT,
    V_MOVE,
    V_NR_EVENTS,
    V_OUTCOME,
    V_PMI,
    V_REASON,
    V_REQ_COUNT,
    V_REQ_HEAD,
    V_REQS,
    V_SLEEP_NS,
    V_STILL,
    V_VALUE,
    V_WAKE_AT,
    V_WORK_NS,
)
from vpmu.kernels.costs import (
    COST_HALT_WAKE,
    COST_HW_LVT,
    COST_HW_RDMSR,
    COST_HW_WRMSR,
    COST_NMI,
    COST_VCPU_SWITCH,
)
from vpmu.kernels.designs.access import ON_WITH_NMI, OUT
from vpmu.kernels.designs.dispatch import (
    access,
    deliver_pmi,
    destroy,
    perf_arguments,
    perf_done,
    sched_in,
    sched_out,
    vm_entry,
    vm_exit,
)
from vpmu.kernels.guest.step import (
    GUEST_ACCESS,
    GUEST_DONE,
    GUEST_HALT,
    GUEST_LIMIT,
    GUEST_OVERFLOW,
    GUEST_RUN,
    GUEST_WAIT,
    guest_go,
    guest_resume,
)
from vpmu.kernels.hardware import hw_account, hw_watch
from vpmu.kernels.host.clock import (
    CAUSE_EXITS,
    CAUSE_GUEST,
    CAUSE_IDLE,
    CAUSE_PMI,
    CAUSE_RESERVE,
    CAUSE_SAVE,
    CAUSE_SWITCH,
    CAUSE_TOOLS,
    CAUSE_UNRESERVE,
    interrupt,
    pcpu_cost,
    spend,
    wake_clock,
)
from vpmu.kernels.host.move import move_step
from vpmu.kernels.host.perf import (
    CALL_CREATE,
    CALL_NONE,
    CALL_PERIOD,
    CALL_PMI,
    CALL_RELEASE,
    CALL_ROTATE,
    CALL_TASK_IN,
    CALL_TASK_OUT,
    CALL_TICK,
    CALL_TOOL_CLOSE,
    CALL_TOOL_OPEN,
    CALL_UPDATE,
    perf_call,
    quiet_tick,
)
from vpmu.kernels.host.scheduler import (
    VCPU_BLOCKED,
    VCPU_DONE,
    VCPU_GONE,
    VCPU_HALTED,
    VCPU_READY,
    dequeue,
    pick,
    scheduler_tick,
    switch_in,
    switch_out,
    wake_due,
)
from vpmu.kernels.integers import NEVER, U0, U1, U8, lowest_bit
from vpmu.kernels.jit import U64, Arena, inlined, kernel
from vpmu.kernels.log import RECORD_SWITCH, head_word, keeps, log_record, mix
from vpmu.kernels.msr import LVT_NMI
from vpmu.kernels.perf.schedule import slot_bit

STOP_NONE = U64(0)
STOP_WINDOW = U64(1)
"""The end of the window is reached."""
STOP_RESERVE = U64(2)
STOP_UNRESERVE = U64(3)
"""The host's hardware reservation may pass through zero."""
STOP_PERF = U64(4)
"""Message mode: host perf has to answer the call in P_CALL."""
STOP_GUEST = U64(5)
"""The guest has to answer P_ASK: in message mode, or because it decides outside the kernels."""
STOP_LOG = U64(6)
"""The log has to be drained."""
STOP_BUDGET = U64(7)
STOP_WAIT = U64(9)
"""A guest whose accesses come from outside has none to go on with."""

STATE_PICK = U64(0)
STATE_IN = U64(1)
STATE_HOST = U64(2)
STATE_GUEST = U64(3)
STATE_OUT = U64(4)

STAGE_NEW = U64(0)
STAGE_RESERVED = U64(1)
STAGE_SERVED = U64(2)
STAGE_RELEASED = U64(3)

ASK_RESUME = U64(1)
ASK_GO = U64(2)
ASK_ROWS = U64(3)
"""The rows of the vCPU that is being switched in have to come; P_ASK is ROWS_HERE once they have."""
ASK_AWAY = U64(4)
"""The rows of the vCPU in P_LIMIT, just switched out, may leave."""
ROWS_HERE = U64(5)

GUEST_ANSWERS = U64(1)
"""P_REMOTE_GUEST: guests answer by message."""
GUEST_TRAVELS = U64(2)
"""P_REMOTE_GUEST: a guest's rows come when it is switched in and leave when it is switched out."""

STOP_AWAY = U64(8)
"""In P_STOP: this physical CPU lives in another process."""

_STRETCH_NS = U64(1 << 25)
"""At most how long guest code runs uninterrupted: at 64 events a cycle and 4 GHz, fewer than 2**33 events."""
_LOG_MARGIN = U64(256)
_CALL_WORDS = U64(8)
_REQUESTS = U64(REQUESTS)
_TOOL = U64(TOOL_COLUMNS)
_BYTE = U64(0xFF)
_CAUSE_OF_CALL = np.array([13, 4, 5, 6, 5, 10, 10, 12, 13, 13, 13, 13, 5], dtype=np.uint64)


@kernel
def begin_call(s: Arena, p: np.uint64, call: np.uint64, v: np.uint64, slot: np.uint64) -> None:
    """Put a call to host perf; the next steps serve it."""
    s[p + P_CALL] = call
    s[p + P_CALL_VCPU] = v
    s[p + P_CALL_SLOT] = slot
    s[p + P_CALL_VALUE] = U0
    s[p + P_CALL_STAGE] = STAGE_NEW


@kernel
def _needs_reservation(s: Arena, p: np.uint64, call: np.uint64) -> bool:
    """Return whether a call may take the host's count of PMU users up from zero."""
    if s[s[p + P_HOST] + H_HELD] != U0:
        return False
    return call == CALL_TOOL_OPEN or (call == CALL_CREATE and s[s[p + P_CALL_VCPU] + V_NR_EVENTS] == U0)


@kernel
def _gives_up_reservation(s: Arena, p: np.uint64, call: np.uint64) -> bool:
    """Return whether a call may take the host's count of PMU users down to zero."""
    if s[s[p + P_HOST] + H_HELD] != U0:
        return False
    return call == CALL_TOOL_CLOSE or (call == CALL_RELEASE and s[s[p + P_CALL_VCPU] + V_NR_EVENTS] == U0)


@kernel
def _stop(s: Arena, p: np.uint64, stop: np.uint64) -> np.uint64:
    """Note that a physical CPU needs somebody else, and since when."""
    s[p + P_STOP] = stop
    s[p + P_STOP_AT] = s[p + P_NOW]
    return stop


@kernel
def _call_step(s: Arena, p: np.uint64) -> np.uint64:
    """Take a call to host perf on: reservation and work, its release; then the design's answer."""
    call = s[p + P_CALL]
    stage = s[p + P_CALL_STAGE]
    if stage == STAGE_RELEASED:
        _call_done(s, p, call)
        return STOP_NONE
    if stage == STAGE_NEW:
        if _needs_reservation(s, p, call):
            return _stop(s, p, STOP_RESERVE)
        stage = STAGE_RESERVED
        s[p + P_CALL_STAGE] = stage
    if stage == STAGE_RESERVED:
        if s[p + P_REMOTE_PERF] != U0:
            return _stop(s, p, STOP_PERF)
        perf_call(s, p)
    spend(s, p, _CAUSE_OF_CALL[call], s[p + P_CALL_COST])
    s[p + P_CALLS + call] += U1
    if call == CALL_CREATE:
        s[s[p + P_CALL_VCPU] + V_NR_EVENTS] += U1
    elif call == CALL_RELEASE:
        s[s[p + P_CALL_VCPU] + V_NR_EVENTS] -= U1
    s[p + P_CALL_STAGE] = STAGE_RELEASED
    if _gives_up_reservation(s, p, call):
        return _stop(s, p, STOP_UNRESERVE)
    return STOP_NONE


@kernel
def _call_done(s: Arena, p: np.uint64, call: np.uint64) -> None:
    """Hand host perf's answer to the design, or set the next timer of a tool."""
    v = s[p + P_CALL_VCPU]
    now = s[p + P_NOW]
    s[p + P_CALL] = CALL_NONE
    ns = U0
    if call == CALL_PMI:
        if v != U0 and s[p + P_CALL_VALUE] != U0:
            _, _, ns, _ = deliver_pmi(s, v, p, s[p + P_CALL_VALUE], U0, now)
    elif call <= CALL_UPDATE or call == CALL_PERIOD:
        _, _, ns, _ = perf_done(s, v, p, call | (s[p + P_CALL_SLOT] << U8), s[p + P_CALL_VALUE], now)
    elif call == CALL_TOOL_OPEN or call == CALL_TOOL_CLOSE:
        set_tool_timer(s, p)
    spend(s, p, CAUSE_SAVE, ns)


@kernel
def reservation_done(s: Arena, p: np.uint64, start: np.uint64, work_ns: np.uint64) -> None:
    """Go on after a STOP_RESERVE or STOP_UNRESERVE.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    p : uint64
        Offset of the physical CPU's row.
    start : uint64, ns
        When the mutex is had; if that is later than now, the vCPU (or tool) sleeps until then.
    work_ns : uint64, ns
        Work under the mutex.
    """
    reserving = s[p + P_STOP] == STOP_RESERVE
    s[p + P_STOP] = STOP_NONE
    if reserving:
        s[p + P_CALL_STAGE] = STAGE_RESERVED
    v = s[p + P_CURRENT]
    if start > s[p + P_NOW] and v != U0:
        for i in range(_CALL_WORDS):
            s[v + V_CALL + U64(i)] = s[p + P_CALL + U64(i)]
        s[p + P_CALL] = CALL_NONE
        s[v + V_WORK_NS] = work_ns
        s[v + V_WAKE_AT] = start
        s[v + V_SLEEP_NS] += start - s[p + P_NOW]
        _begin_out(s, p, v, VCPU_BLOCKED)
        return
    if start > s[p + P_NOW]:
        # A tool's own thread sleeps; the CPU has nothing else to do with it but to wait in turn.
        spend(s, p, CAUSE_TOOLS, start - s[p + P_NOW])
    spend(s, p, CAUSE_RESERVE if reserving else CAUSE_UNRESERVE, work_ns)


@kernel
def set_tool_timer(s: Arena, p: np.uint64) -> None:
    """Find when the first tool of a physical CPU starts or stops."""
    at = NEVER
    tool = s[p + P_TOOLS]
    for _ in range(s[p + P_NR_TOOLS]):
        if s[tool + TO_STATE] == U0:
            at = min(at, s[tool + TO_START_AT])
        elif s[tool + TO_STATE] == U1:
            at = min(at, s[tool + TO_STOP_AT])
        tool += _TOOL
    s[p + P_TIMER_AT] = at


@kernel
def _begin_tool(s: Arena, p: np.uint64) -> None:
    """Open or close the host tool whose time has come."""
    now = s[p + P_NOW]
    tool = s[p + P_TOOLS]
    while True:
        if s[tool + TO_STATE] == U0 and s[tool + TO_START_AT] <= now:
            begin_call(s, p, CALL_TOOL_OPEN, tool, U0)
            return
        if s[tool + TO_STATE] == U1 and s[tool + TO_STOP_AT] <= now:
            begin_call(s, p, CALL_TOOL_CLOSE, tool, U0)
            return
        tool += _TOOL


@kernel
def _pick_turn(s: Arena, p: np.uint64, until: np.uint64) -> np.uint64:
    """Choose what the physical CPU does next: a tool's change, a vCPU, or nothing until something comes."""
    now = s[p + P_NOW]
    event_at = min(min(s[p + P_WAKE_AT], s[p + P_TIMER_AT]), s[p + P_CPU_HW + U_MUX_AT])
    if event_at <= now and s[p + P_IDLE] != U0:
        s[p + P_IDLE] = U0
        wake_clock(s, p)
    s[p + P_TICKED] = U0
    if s[p + HW_PMI] != U0:
        _host_pmi(s, p, U0)
    elif s[p + P_TIMER_AT] <= now:
        _begin_tool(s, p)
    elif s[p + P_CPU_HW + U_MUX_AT] <= now:
        begin_call(s, p, CALL_ROTATE, U0, U0)
    elif s[p + P_WAKE_AT] <= now:
        spend(s, p, CAUSE_SWITCH, pcpu_cost(s, p, COST_HALT_WAKE))
        wake_due(s, p)
    else:
        v = pick(s, p)
        if v == U0:
            return _idle(s, p, min(event_at, until), until)
        if s[p + P_IDLE] != U0:
            s[p + P_IDLE] = U0
            wake_clock(s, p)
        switch_in(s, p, v)
        s[p + P_SWITCHES] += U1
        spend(s, p, CAUSE_SWITCH, pcpu_cost(s, p, COST_VCPU_SWITCH))
        begin_call(s, p, CALL_TASK_IN, v, U0)
        s[p + P_STATE] = STATE_IN
    return STOP_NONE


@kernel
def _idle(s: Arena, p: np.uint64, to: np.uint64, until: np.uint64) -> np.uint64:
    """Let an idle physical CPU's time pass."""
    s[p + P_IDLE] = U1
    s[p + P_CAUSES + CAUSE_IDLE] += to - s[p + P_NOW]
    s[p + P_NOW] = to
    return STOP_WINDOW if to >= until else STOP_NONE


@kernel
def _in_turn(s: Arena, log: Arena, p: np.uint64) -> None:
    """Let the design restore, the vCPU's perf events being on, and go on where the vCPU left off."""
    v = s[p + P_CURRENT]
    _, _, ns, _ = sched_in(s, v, p, U0, U0, s[p + P_NOW])
    spend(s, p, CAUSE_SAVE, ns)
    _note_switch(s, log, p, v, U1)
    s[p + P_STATE] = STATE_HOST
    if s[v + V_CALL] != CALL_NONE:
        for i in range(_CALL_WORDS):
            s[p + P_CALL + U64(i)] = s[v + V_CALL + U64(i)]
        s[v + V_CALL] = CALL_NONE
        reserving = s[p + P_CALL_STAGE] == STAGE_RESERVED
        spend(s, p, CAUSE_RESERVE if reserving else CAUSE_UNRESERVE, s[v + V_WORK_NS])


@kernel
def _note_switch(s: Arena, log: Arena, p: np.uint64, v: np.uint64, comes: np.uint64) -> None:
    """Put a switch of vCPUs into the hash and the log."""
    now = s[p + P_NOW]
    s[p + P_HASH] = mix(s[p + P_HASH], now, RECORD_SWITCH | (comes << U8), s[v + V_ID])
    if keeps(s, RECORD_SWITCH):
        log_record(
            s,
            log,
            head_word(RECORD_SWITCH, U0, U1 + comes),
            now,
            s[p + P_ID],
            s[p + P_SWITCHES],
            s[v + V_ID],
            comes,
        )


@kernel
def _begin_out(s: Arena, p: np.uint64, v: np.uint64, state: np.uint64) -> None:
    """Begin to switch the vCPU out: the design saves, then host perf schedules its events out."""
    _, _, ns, _ = sched_out(s, v, p, U0, U0, s[p + P_NOW])
    spend(s, p, CAUSE_SAVE, ns)
    s[p + P_OUT_STATE] = state
    begin_call(s, p, CALL_TASK_OUT, v, U0)
    s[p + P_STATE] = STATE_OUT


@kernel
def _handler_cost(s: Arena, p: np.uint64) -> np.uint64:
    """Return what the registers cost that the host's handler touches for one overflow.

    GLOBAL_CTRL off and on, GLOBAL_STATUS twice, GLOBAL_OVF_CTRL, the LVTPC (intel_pmu_handle_irq()).
    """
    ns = pcpu_cost(s, p, COST_HW_LVT)
    for _ in range(2):
        ns += pcpu_cost(s, p, COST_HW_RDMSR) + pcpu_cost(s, p, COST_HW_WRMSR)
    return ns + pcpu_cost(s, p, COST_HW_WRMSR)


@kernel
def _host_pmi(s: Arena, p: np.uint64, v: np.uint64) -> None:
    """Handle a PMI in the host: counters that KVM drives are passed to the vCPU, the rest is host perf's."""
    s[p + HW_PMI] = U0
    s[p + P_PMIS] += U1
    now = s[p + P_NOW]
    if s[p + P_INTERCEPTS] == U0:
        deliver_pmi(s, v, p, U0, U0, now)
        return
    ns = pcpu_cost(s, p, COST_NMI)
    slots = U0
    owned = s[v + V_HW_OWNED] & s[p + HW_GLOBAL_STATUS] if v != U0 else U0
    if owned != U0:
        left = s[v + V_HAS_EVENT]
        while left != U0:
            slot = lowest_bit(left)
            left &= left - U1
            h = s[v + V_HW_SLOT + slot]
            if h != NO_SLOT and owned & slot_bit(h) != U0:
                slots |= U1 << slot
        s[p + HW_GLOBAL_STATUS] &= ~owned
        ns += _handler_cost(s, p)
        s[p + HW_LVTPC] = LVT_NMI
        deliver_pmi(s, v, p, slots, U0, now)
    spend(s, p, CAUSE_PMI, ns)
    if s[p + HW_GLOBAL_STATUS] != U0:
        begin_call(s, p, CALL_PMI, v, U0)


@kernel
def _host_turn(s: Arena, p: np.uint64) -> None:
    """Serve a vCPU that is out of its guest, and the host's events; then enter the guest or switch."""
    v = s[p + P_CURRENT]
    now = s[p + P_NOW]
    if s[v + V_REQ_COUNT] != U0:
        word = s[v + V_REQS + s[v + V_REQ_HEAD]]
        s[v + V_REQ_HEAD] = (s[v + V_REQ_HEAD] + U1) % _REQUESTS
        s[v + V_REQ_COUNT] -= U1
        begin_call(s, p, word & _BYTE, v, word >> U8)
        perf_arguments(s, v, p, word, U0, now)
    elif s[p + HW_PMI] != U0:
        _host_pmi(s, p, v)
    elif s[p + P_TICKED] != U0 and not _tick(s, p, v):
        return
    elif s[p + P_IRQ_AT] <= now:
        s[p + P_NOW] += interrupt(s, p)
    elif s[p + P_WAKE_AT] <= now:
        spend(s, p, CAUSE_SWITCH, pcpu_cost(s, p, COST_HALT_WAKE))
        wake_due(s, p)
    elif s[v + V_MOVE] != U0:
        if move_step(s, p, v):
            _begin_out(s, p, v, VCPU_GONE)
    elif s[v + V_DONE] != U0:
        _begin_out(s, p, v, VCPU_DONE)
    elif s[p + P_RESCHED] != U0 or min(s[p + P_TIMER_AT], s[p + P_CPU_HW + U_MUX_AT]) <= now:
        _begin_out(s, p, v, VCPU_READY)
    elif s[v + V_REASON] == GUEST_HALT and s[v + V_INJECT] | s[v + V_PMI] == U0:
        _halt(s, p, v)
    else:
        _enter(s, p, v)


@kernel
def _tick(s: Arena, p: np.uint64, v: np.uint64) -> bool:
    """Take a host's tick; False if host perf still has to serve the call for its part."""
    s[p + P_TICKED] = U0
    scheduler_tick(s, p)
    begin_call(s, p, CALL_TICK, v, U0)
    if s[p + P_REMOTE_PERF] != U0 or s[p + P_IRQ_AT] <= s[p + P_NOW] or not quiet_tick(s, p):
        return False
    s[p + P_CALL] = CALL_NONE
    s[p + P_CALL_STAGE] = STAGE_RELEASED
    return True


@kernel
def _halt(s: Arena, p: np.uint64, v: np.uint64) -> None:
    """Put a vCPU in HLT to sleep until its guest's next timer."""
    at = s[s[v + V_GUEST] + G_TIMER_AT]
    if at <= s[p + P_NOW]:
        s[v + V_REASON] = U0
        return
    s[v + V_REASON] = U0
    s[v + V_WAKE_AT] = at
    _begin_out(s, p, v, VCPU_HALTED)


@inlined
def _enter(s: Arena, p: np.uint64, v: np.uint64) -> None:
    """Enter the guest, with an NMI if the design injects one."""
    _, inject, ns, _ = vm_entry(s, v, p, U0, U0, s[p + P_NOW])
    spend(s, p, CAUSE_EXITS, ns)
    if inject != U0:
        s[v + V_INJECT] = U1
        if s[v + V_REASON] != GUEST_ACCESS:
            s[v + V_REASON] = U0
    s[p + P_STATE] = STATE_GUEST


@inlined
def _leave(s: Arena, p: np.uint64, v: np.uint64) -> None:
    """Leave the guest."""
    _, _, ns, _ = vm_exit(s, v, p, U0, U0, s[p + P_NOW])
    spend(s, p, CAUSE_EXITS, ns)
    s[p + P_EXITS] += U1
    s[p + P_STATE] = STATE_HOST


@kernel
def leave_guest(s: Arena, p: np.uint64, v: np.uint64) -> None:
    """Kick a vCPU out of its guest."""
    _leave(s, p, v)


@kernel
def _guest_turn(s: Arena, log: Arena, p: np.uint64, until: np.uint64) -> np.uint64:
    """Let the guest run, access by access, until its physical CPU is needed for something else.

    What goes between guest and design is kept in the row only where the turn ends, or the guest answers by
    message.
    """
    v = s[p + P_CURRENT]
    g = s[v + V_GUEST]
    answers = s[p + P_REMOTE_GUEST] == GUEST_ANSWERS
    reason = s[v + V_REASON]
    complete = s[v + V_COMPLETE] != U0
    inject = s[v + V_INJECT] != U0
    outcome = s[v + V_OUTCOME]
    value = s[v + V_VALUE]
    while True:
        now = s[p + P_NOW]
        if reason == U0:
            if answers:
                s[p + P_ASK] = ASK_RESUME
                # It may go on at once if it then has code to run: that spares a question and an answer.
                s[p + P_LIMIT] = _grant(s, p, v, g, until)
                return _stop(s, p, STOP_GUEST)
            reason = guest_resume(s, log, g, now, complete, outcome, value, inject)
            if reason != GUEST_ACCESS or now >= until:
                resumed(s, v, reason)
        if now >= until:
            return STOP_WINDOW
        if reason == GUEST_ACCESS:
            s[R_STEPS] -= U1 if s[R_STEPS] != U0 else U0
            outcome, value, now, then = access(s, p, v, g)
            s[p + P_NOW] = now
            stops = s[R_STEPS] == U0 or _log_is_full(s)
            if then == OUT or answers or stops:
                _keep_result(s, p, v, outcome, value, then)
                # At the window's end the guest gets its result, whatever is left of the budget.
                if then == OUT or (stops and now < until):
                    return STOP_NONE
            reason = U0
            complete = True
            inject = then == ON_WITH_NMI
        elif reason == GUEST_RUN:
            if not _run(s, log, p, v, g, until):
                return _stop(s, p, STOP_GUEST) if s[p + P_ASK] != U0 else STOP_NONE
            reason = s[v + V_REASON]
            complete = False
            inject = False
        else:
            return _end_turn(s, p, v, reason)


@kernel
def _log_is_full(s: Arena) -> bool:
    """Return whether the log may not hold what one more step writes."""
    return s[R_LOG_COUNT] + _LOG_MARGIN > s[R_LOG_CAPACITY]


@kernel
def _keep_result(
    s: Arena, p: np.uint64, v: np.uint64, outcome: np.uint64, value: np.uint64, then: np.uint64
) -> None:
    """Keep an access's result in the row until the guest is resumed."""
    s[v + V_OUTCOME] = outcome
    s[v + V_VALUE] = value
    s[v + V_COMPLETE] = U1
    s[v + V_REASON] = U0
    if then == ON_WITH_NMI:
        s[v + V_INJECT] = U1
    if then == OUT:
        s[p + P_STATE] = STATE_HOST


@kernel
def _end_turn(s: Arena, p: np.uint64, v: np.uint64, reason: np.uint64) -> np.uint64:
    """Leave a guest that waits for its next access from outside, halts or is done."""
    if reason == GUEST_WAIT:
        s[v + V_REASON] = U0
        return _stop(s, p, STOP_WAIT)
    _leave(s, p, v)
    if reason == GUEST_DONE:
        s[v + V_DONE] = U1
        destroy(s, v, p, U0, U0, s[p + P_NOW])
    return STOP_NONE


@kernel
def resumed(s: Arena, v: np.uint64, reason: np.uint64) -> None:
    """Note what a resumed guest wants."""
    s[v + V_COMPLETE] = U0
    s[v + V_INJECT] = U0
    s[v + V_REASON] = reason


@kernel
def _grant(s: Arena, p: np.uint64, v: np.uint64, g: np.uint64, until: np.uint64) -> np.uint64:
    """Tell the guest what is counted while it runs; return how long it may, 0 if it has to be left."""
    now = s[p + P_NOW]
    limit = min(min(s[p + P_IRQ_AT], s[p + P_WAKE_AT]), min(s[p + P_TIMER_AT], s[p + P_CPU_HW + U_MUX_AT]))
    limit = min(limit, until)
    if limit <= now or s[p + HW_PMI] != U0:
        return U0
    hw_watch(s, p, g)
    s[g + G_STILL] = s[v + V_STILL]
    # A counter that hw_watch() takes for too far from its overflow stays so within a stretch.
    return min(limit, now + _STRETCH_NS)


@kernel
def _run(s: Arena, log: Arena, p: np.uint64, v: np.uint64, g: np.uint64, until: np.uint64) -> bool:
    """Let guest code run; False if the guest has to be left, or answers by message."""
    limit = _grant(s, p, v, g, until)
    if limit == U0:
        _leave(s, p, v)
        return False
    if s[p + P_REMOTE_GUEST] == GUEST_ANSWERS or s[g + G_OUTSIDE] != U0:
        s[p + P_ASK] = ASK_GO
        s[p + P_LIMIT] = limit
        return False
    end, reason = guest_go(s, log, g, s[p + P_NOW], limit)
    ran(s, p, v, g, end, reason)
    return not _log_is_full(s)


@kernel
def ran(s: Arena, p: np.uint64, v: np.uint64, g: np.uint64, end: np.uint64, reason: np.uint64) -> None:
    """Account for guest code that has run: to the hardware counters, to the clock.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    p, v, g : uint64
        Offsets of the physical CPU's, the vCPU's and the guest's row.
    end : uint64, ns
        When it stopped.
    reason : uint64
        Why: one of the GUEST_ constants.
    """
    ns = end - s[p + P_NOW]
    hw_account(s, p, g)
    s[p + P_CAUSES + CAUSE_GUEST] += ns
    s[v + V_GUEST_NS] += ns
    s[p + P_NOW] = end
    s[v + V_REASON] = GUEST_RUN if reason == GUEST_LIMIT or reason == GUEST_OVERFLOW else reason


@kernel
def _rows_turn(s: Arena, log: Arena, p: np.uint64) -> np.uint64:
    """Go on with a vCPU that comes, once its rows are here."""
    if s[p + P_REMOTE_GUEST] == GUEST_TRAVELS and s[p + P_ASK] != ROWS_HERE:
        s[p + P_ASK] = ASK_ROWS
        return _stop(s, p, STOP_GUEST)
    s[p + P_ASK] = U0
    _in_turn(s, log, p)
    return STOP_NONE


@kernel
def _out_turn(s: Arena, log: Arena, p: np.uint64) -> np.uint64:
    """Take the physical CPU from its vCPU, whose rows may then leave."""
    v = s[p + P_CURRENT]
    _note_switch(s, log, p, v, U0)
    switch_out(s, p, s[p + P_OUT_STATE])
    if s[p + P_OUT_STATE] == VCPU_GONE:
        dequeue(s, p, v)
    s[p + P_STATE] = STATE_PICK
    if s[p + P_REMOTE_GUEST] != GUEST_TRAVELS:
        return STOP_NONE
    s[p + P_ASK] = ASK_AWAY
    s[p + P_LIMIT] = v
    return _stop(s, p, STOP_GUEST)


@kernel
def run_pcpu(s: Arena, log: Arena, p: np.uint64, until: np.uint64) -> np.uint64:
    """Advance one physical CPU to ``until`` or to a stop.

    Parameters
    ----------
    s, log : uint64[n]
        The arena and the log.
    p : uint64
        Offset of the physical CPU's row.
    until : uint64, ns

    Returns
    -------
    uint64
        One of the STOP_ constants, never STOP_NONE.
    """
    while True:
        if s[p + P_NOW] >= until:
            return STOP_WINDOW
        if _log_is_full(s):
            return STOP_LOG
        if s[R_STEPS] == U0:
            return STOP_BUDGET
        s[R_STEPS] -= U1
        stop = STOP_NONE
        state = s[p + P_STATE]
        if s[p + P_CALL] != CALL_NONE:
            stop = _call_step(s, p)
        elif state == STATE_GUEST:
            stop = _guest_turn(s, log, p, until)
        elif state == STATE_HOST:
            _host_turn(s, p)
        elif state == STATE_PICK:
            stop = _pick_turn(s, p, until)
        elif state == STATE_IN:
            stop = _rows_turn(s, log, p)
        else:
            stop = _out_turn(s, log, p)
        if stop != STOP_NONE:
            return stop
