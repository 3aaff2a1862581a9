"""The vPMU of the RFC "Intel Virtual PMU Optimization" v2 (2019): host perf allocates, then KVM drives.

A vPMC that is first enabled gets a pinned host event, which stays while the vPMC is used. Guest writes go to
the hardware counter that serves it, wherever that is (cross-mapping); the counters' state moves with the vCPU
in the scheduling hooks; an event that was not used for V_PARAMETER[0] time slices is released.
"""

import numpy as np

from vpmu.kernels.columns import (
    FIXED_SLOT,
    FLAG_HELD,
    HW_ACTIVE,
    HW_ARMED,
    HW_COUNTER,
    HW_FIXED_CTRL,
    HW_GLOBAL_CTRL,
    HW_GLOBAL_STATUS,
    HW_GUEST_CTRL,
    HW_HOST_CTRL,
    HW_HOST_SLOTS,
    HW_NR_FIXED,
    HW_NR_GP,
    NO_SLOT,
    P_CALL_CONFIG,
    P_CALL_FLAGS,
    P_CALL_VALUE,
    P_GRANT,
    SLOTS,
    V_BLOCKED,
    V_COUNTER,
    V_EVENTSEL,
    V_FIXED_CTRL,
    V_GLOBAL_CTRL,
    V_GLOBAL_STATUS,
    V_HAS_EVENT,
    V_HW_CTRL,
    V_HW_OWNED,
    V_HW_SLOT,
    V_LIFE,
    V_LOADED,
    V_LVTPC,
    V_MASK,
    V_MASKED,
    V_NR_GP,
    V_PARAMETER,
    V_PMI,
    V_PRIVATE,
    V_REQ_COUNT,
    V_USED,
)
from vpmu.kernels.costs import (
    COST_ENTRY,
    COST_EXIT,
    COST_HW_RDMSR,
    COST_HW_RDPMC,
    COST_HW_WRMSR,
    COST_INJECT,
    COST_MSR_INTERCEPT,
    COST_RDPMC_INTERCEPT,
)
from vpmu.kernels.designs.common import (
    REGISTER_BAD,
    REGISTER_COUNTER,
    REGISTER_EVENTSEL,
    REGISTER_FIXED_CTRL,
    REGISTER_GLOBAL_CTRL,
    REGISTER_STATUS,
    STOP_NONE,
    STOP_PERF,
    check_read,
    check_write,
    emulated_slots,
    fully_enabled,
    has_event,
    interrupts,
    locally_enabled,
    perf_config,
    rdpmc_slot,
    rdpmc_value,
    request,
    still,
    vcpu_cost,
)
from vpmu.kernels.events import constraint_mask
from vpmu.kernels.hardware import GP, OK, hw_eventsel, hw_fixed_ctrl, hw_global, slots_of
from vpmu.kernels.host.perf import CALL_CREATE, CALL_RELEASE, CALL_UPDATE
from vpmu.kernels.integers import U0, U1, U2, U8, lowest_bit
from vpmu.kernels.jit import U64, Arena, inlined, kernel
from vpmu.kernels.msr import EVENTSEL_EN, FIXED_PMI, GLOBAL_STATUS, LVT_MASKED, changed_fields
from vpmu.kernels.perf.schedule import fixed_field, slot_bit

DESCRIPTION = "RFC v2 of 2019: counters are allocated once and driven by KVM, saved and restored at switches"
PARAMETERS = {"life": 2}
"""Design parameters and their defaults, in V_PARAMETER's order.

`life`: time slices that an unused event lives; with 0 it is released as soon as GLOBAL_CTRL switches it off.
"""
INTERCEPTS = True

_SERVED = V_PRIVATE
"""Private column: bit per vPMC that a hardware counter serves."""
_CROSSED = U64(V_PRIVATE + 1)
"""Private column: not 0 if a vPMC is served by a counter with another slot."""
_EN = U64(22)
_FIELD = U64(0xF)
_SLOTS = U64(SLOTS)
_FILTERS = U64(0xFF8CFFFF)

Result = tuple[np.uint64, np.uint64, np.uint64, np.uint64]


@kernel
def _hw_slot(s: Arena, v: np.uint64, slot: np.uint64) -> np.uint64:
    """Return the hardware slot that serves a vPMC right now, NO_SLOT if none does."""
    return s[v + V_HW_SLOT + slot] if s[v + V_LOADED] != U0 else NO_SLOT


@kernel
def _arm(s: Arena, v: np.uint64, p: np.uint64, slot: np.uint64) -> np.uint64:
    """Write a vPMC's control to the hardware counter that serves it, translated; return the cost."""
    h = s[v + V_HW_SLOT + slot]
    config = perf_config(s, v, slot)
    on = locally_enabled(s, v, slot)
    ns = vcpu_cost(s, v, COST_HW_WRMSR)
    if h < FIXED_SLOT:
        if not interrupts(s, v, slot):
            config &= ~U64(1 << 20)
        hw_eventsel(s, p, h, config | (EVENTSEL_EN if on else U0))
        return ns
    shift = (h - FIXED_SLOT) << U2
    field = fixed_field(config) if on else U0
    if not interrupts(s, v, slot):
        field &= ~FIXED_PMI
    hw_fixed_ctrl(s, p, (s[p + HW_FIXED_CTRL] & ~(_FIELD << shift)) | (field << shift))
    return ns + vcpu_cost(s, v, COST_HW_RDMSR)


@kernel
def _disarm(s: Arena, p: np.uint64, h: np.uint64) -> None:
    """Disable a hardware counter by its own control."""
    if h < FIXED_SLOT:
        hw_eventsel(s, p, h, U0)
    else:
        shift = (h - FIXED_SLOT) << U2
        hw_fixed_ctrl(s, p, s[p + HW_FIXED_CTRL] & ~(_FIELD << shift))


@inlined
def _translate(s: Arena, v: np.uint64) -> None:
    """Translate the guest's GLOBAL_CTRL to the hardware counters that serve it."""
    if s[v + _CROSSED] == U0:
        s[v + V_HW_CTRL] = s[v + V_GLOBAL_CTRL] & s[v + V_HW_OWNED]
        return
    bits = U0
    slots = s[v + _SERVED] & slots_of(s[v + V_GLOBAL_CTRL])
    while slots != U0:
        bits |= slot_bit(s[v + V_HW_SLOT + lowest_bit(slots)])
        slots &= slots - U1
    s[v + V_HW_CTRL] = bits


@kernel
def _map(s: Arena, v: np.uint64) -> None:
    """Note which vPMCs hardware counters serve, and which counters these are."""
    served = U0
    owned = U0
    crossed = U0
    slots = s[v + V_HAS_EVENT] if s[v + V_LOADED] != U0 else U0
    while slots != U0:
        slot = lowest_bit(slots)
        slots &= slots - U1
        h = s[v + V_HW_SLOT + slot]
        if h != NO_SLOT:
            served |= U1 << slot
            owned |= slot_bit(h)
            crossed |= slot ^ h
    s[v + _SERVED] = served
    s[v + _CROSSED] = crossed
    s[v + V_HW_OWNED] = owned
    _translate(s, v)


@kernel
def _pull_status(s: Arena, v: np.uint64, p: np.uint64) -> None:
    """Move overflow bits of counters that serve this vCPU to the guest's GLOBAL_STATUS."""
    if s[p + HW_GLOBAL_STATUS] & s[v + V_HW_OWNED] == U0:
        return
    slots = s[v + V_HAS_EVENT]
    while slots != U0:
        slot = lowest_bit(slots)
        slots &= slots - U1
        h = s[v + V_HW_SLOT + slot]
        if h != NO_SLOT and s[p + HW_GLOBAL_STATUS] & slot_bit(h) != U0:
            s[p + HW_GLOBAL_STATUS] &= ~slot_bit(h)
            s[v + V_GLOBAL_STATUS] |= slot_bit(slot)


@kernel
def _unload(s: Arena, v: np.uint64, p: np.uint64) -> np.uint64:
    """Save the counters that serve this vCPU and take them off the hardware; return the cost."""
    if s[v + V_LOADED] == U0:
        return U0
    _pull_status(s, v, p)
    ns = U0
    slots = s[v + V_HAS_EVENT]
    while slots != U0:
        slot = lowest_bit(slots)
        slots &= slots - U1
        h = s[v + V_HW_SLOT + slot]
        if h != NO_SLOT:
            s[v + V_COUNTER + slot] = s[p + HW_COUNTER + h]
            s[p + HW_COUNTER + h] = U0
            _disarm(s, p, h)
            ns += vcpu_cost(s, v, COST_HW_RDPMC) + vcpu_cost(s, v, COST_HW_WRMSR)
    s[v + V_LOADED] = U0
    _map(s, v)
    return ns


@kernel
def _load(s: Arena, v: np.uint64, p: np.uint64, now: np.uint64) -> np.uint64:
    """Put the counters of this vCPU on the hardware that host perf granted last; return the cost."""
    ns = U0
    s[v + V_LOADED] = U1
    slots = s[v + V_HAS_EVENT]
    while slots != U0:
        slot = lowest_bit(slots)
        slots &= slots - U1
        h = s[p + P_GRANT + slot]
        s[v + V_HW_SLOT + slot] = h
        still(s, v, slot, h == NO_SLOT and fully_enabled(s, v, slot), now)
        if h != NO_SLOT:
            s[p + HW_COUNTER + h] = s[v + V_COUNTER + slot]
            ns += vcpu_cost(s, v, COST_HW_WRMSR) + _arm(s, v, p, slot)
    _map(s, v)
    return ns


@kernel
def _want(s: Arena, v: np.uint64, slot: np.uint64) -> None:
    """Ask host perf for a counter if an enabled vPMC has none; an event in ERROR is replaced."""
    if not fully_enabled(s, v, slot):
        return
    if not has_event(s, v, slot):
        request(s, v, CALL_CREATE, slot)
    elif _hw_slot(s, v, slot) == NO_SLOT:
        request(s, v, CALL_RELEASE, slot)
        request(s, v, CALL_CREATE, slot)


@kernel
def _control(
    s: Arena, v: np.uint64, p: np.uint64, slot: np.uint64, before: np.uint64, now: np.uint64
) -> np.uint64:
    """Carry a changed event selector or fixed field to the hardware; return the cost.

    Only a new event that the serving counter cannot count gives up the host event; ``before`` is the host
    event's old selector.
    """
    s[v + V_USED] |= U1 << slot
    h = _hw_slot(s, v, slot)
    ns = U0
    if h != NO_SLOT:
        config = perf_config(s, v, slot)
        if (config ^ before) & _FILTERS != U0:
            if constraint_mask(config, s[p + HW_NR_GP], s[p + HW_NR_FIXED]) & slot_bit(h) == U0:
                request(s, v, CALL_RELEASE, slot)
                if fully_enabled(s, v, slot):
                    request(s, v, CALL_CREATE, slot)
                return ns
            request(s, v, CALL_UPDATE, slot)
        return ns + _arm(s, v, p, slot)
    still(s, v, slot, has_event(s, v, slot) and fully_enabled(s, v, slot), now)
    _want(s, v, slot)
    return ns


@inlined
def set_msr(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Write a PMU register: straight to the hardware where a counter is assigned.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    v, p : uint64
        Offsets of the vCPU's and the physical CPU's row.
    index, value : uint64
        MSR number, and the word written.
    now : uint64, ns

    Returns
    -------
    (outcome, value, cost_ns, stop) : uint64
        OK or GP; 0; software time and hardware accesses; STOP_PERF if host perf has work to do first.
    """
    ns = vcpu_cost(s, v, COST_MSR_INTERCEPT)
    what, slot, word = check_write(s, v, index, value)
    if what == REGISTER_BAD:
        return GP, U0, ns, STOP_NONE
    if what == REGISTER_GLOBAL_CTRL:
        _global_ctrl(s, v, value, now)
    elif what == REGISTER_EVENTSEL:
        before = perf_config(s, v, slot)
        s[v + V_EVENTSEL + slot] = value
        ns += _control(s, v, p, slot, before, now)
    elif what == REGISTER_FIXED_CTRL:
        ns += _fixed_ctrl(s, v, p, value, now)
    elif what == REGISTER_COUNTER:
        ns += _write_counter(s, v, p, slot, word)
    elif what == REGISTER_STATUS:
        _pull_status(s, v, p)
        s[v + V_GLOBAL_STATUS] = value if index == GLOBAL_STATUS else s[v + V_GLOBAL_STATUS] & ~value
    return _result(s, v, p, ns)


@inlined
def _result(s: Arena, v: np.uint64, p: np.uint64, ns: np.uint64) -> Result:
    """Take the counters off the hardware before host perf moves events about."""
    if s[v + V_REQ_COUNT] == U0:
        return OK, U0, ns, STOP_NONE
    return OK, U0, ns + _unload(s, v, p), STOP_PERF


@inlined
def _global_ctrl(s: Arena, v: np.uint64, value: np.uint64, now: np.uint64) -> None:
    """Store the guest's GLOBAL_CTRL; vPMCs that it enables want a counter, the others stand still no more."""
    changed = slots_of(s[v + V_GLOBAL_CTRL] ^ value)
    enabled = slots_of(value)
    s[v + V_GLOBAL_CTRL] = value
    begin = changed & enabled
    if begin != U0:
        begin &= _locally_enabled_slots(s, v)
        s[v + V_USED] |= begin
    if s[v + V_PARAMETER] == U0:
        _give_up(s, v, changed & ~enabled)
    # One that stands still has an event, and one that wants a counter begins.
    changed &= (s[v + V_HAS_EVENT] | begin) & ~s[v + _SERVED]
    while changed != U0:
        slot = lowest_bit(changed)
        changed &= changed - U1
        if (enabled >> slot) & U1 == U0:
            still(s, v, slot, False, now)
        else:
            _want(s, v, slot)
    _translate(s, v)


@kernel
def _give_up(s: Arena, v: np.uint64, slots: np.uint64) -> None:
    """Release the events of vPMCs that are switched off: they live for no slice at all."""
    slots &= s[v + V_HAS_EVENT]
    while slots != U0:
        request(s, v, CALL_RELEASE, lowest_bit(slots))
        slots &= slots - U1


@inlined
def _locally_enabled_slots(s: Arena, v: np.uint64) -> np.uint64:
    """Return the vPMCs that their own controls let count."""
    slots = U0
    for i in range(s[v + V_NR_GP]):
        slots |= ((s[v + V_EVENTSEL + U64(i)] >> _EN) & U1) << U64(i)
    fixed = s[v + V_FIXED_CTRL]
    fixed |= fixed >> U1
    slots |= (fixed & U1) << U64(8) | ((fixed >> U64(4)) & U1) << U64(9)
    slots |= ((fixed >> U64(8)) & U1) << U64(10)
    return slots & ~s[v + V_BLOCKED]


@kernel
def _fixed_ctrl(s: Arena, v: np.uint64, p: np.uint64, value: np.uint64, now: np.uint64) -> np.uint64:
    """Store FIXED_CTR_CTRL, field by field, as each change is carried to the hardware; return the cost."""
    ns = U0
    changed = changed_fields(s[v + V_FIXED_CTRL], value)
    while changed != U0:
        shift = lowest_bit(changed)
        changed &= changed - U1
        slot = FIXED_SLOT + (shift >> U2)
        before = perf_config(s, v, slot)
        s[v + V_FIXED_CTRL] = (s[v + V_FIXED_CTRL] & ~(_FIELD << shift)) | (value & (_FIELD << shift))
        ns += _control(s, v, p, slot, before, now)
    s[v + V_FIXED_CTRL] = value
    return ns


@inlined
def _write_counter(s: Arena, v: np.uint64, p: np.uint64, slot: np.uint64, word: np.uint64) -> np.uint64:
    """Write a count to the counter that serves the vPMC, or keep it; return the cost."""
    s[v + V_USED] |= U1 << slot
    h = _hw_slot(s, v, slot)
    if h == NO_SLOT:
        s[v + V_COUNTER + slot] = word
        return U0
    s[p + HW_COUNTER + h] = word
    return vcpu_cost(s, v, COST_HW_WRMSR)


@kernel
def trigger_event(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Count an instruction that KVM emulated; ``index`` says what it retires, ``value`` its level.

    The count goes where the vPMC is: to the hardware counter that serves it, or to what is kept.
    """
    slots = emulated_slots(s, v, index, value)
    ns = U0
    while slots != U0:
        slot = lowest_bit(slots)
        slots &= slots - U1
        at = v + V_COUNTER + slot
        h = _hw_slot(s, v, slot)
        if h != NO_SLOT:
            at = p + HW_COUNTER + h
            ns += vcpu_cost(s, v, COST_HW_RDPMC) + vcpu_cost(s, v, COST_HW_WRMSR)
        s[at] = (s[at] + U1) & s[v + V_MASK]
        if s[at] == U0:
            s[v + V_GLOBAL_STATUS] |= slot_bit(slot)
            if interrupts(s, v, slot):
                s[v + V_PMI] = U1
    return OK, U0, ns, STOP_NONE


@inlined
def get_msr(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Read a PMU register; parameters and result as for set_msr()."""
    ns = vcpu_cost(s, v, COST_MSR_INTERCEPT)
    what, word = check_read(s, v, index)
    if what == REGISTER_BAD:
        return GP, U0, ns, STOP_NONE
    if what == REGISTER_COUNTER:
        return _read_counter(s, v, p, word, ns)
    if what == REGISTER_STATUS:
        _pull_status(s, v, p)
        return OK, s[v + V_GLOBAL_STATUS], ns, STOP_NONE
    return OK, word, ns, STOP_NONE


@inlined
def _read_counter(s: Arena, v: np.uint64, p: np.uint64, slot: np.uint64, ns: np.uint64) -> Result:
    """Read a vPMC from the hardware counter that serves it, else its saved count."""
    h = _hw_slot(s, v, slot)
    if h == NO_SLOT:
        return OK, s[v + V_COUNTER + slot], ns, STOP_NONE
    return OK, s[p + HW_COUNTER + h], ns + vcpu_cost(s, v, COST_HW_RDPMC), STOP_NONE


@inlined
def rdpmc(s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64) -> Result:
    """Execute RDPMC on the counter that serves the vPMC; parameters and result as for set_msr()."""
    ns = vcpu_cost(s, v, COST_RDPMC_INTERCEPT)
    slot = rdpmc_slot(s, v, index)
    if slot == NO_SLOT:
        return GP, U0, ns, STOP_NONE
    outcome, word, ns, stop = _read_counter(s, v, p, slot, ns)
    return outcome, rdpmc_value(index, word), ns, stop


@kernel
def deliver_pmi(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Take overflows that the host's PMI handler passes on; ``index`` is a set of vPMC slots."""
    slots = index
    while slots != U0:
        slot = lowest_bit(slots)
        slots &= slots - U1
        s[v + V_GLOBAL_STATUS] |= slot_bit(slot)
        if interrupts(s, v, slot):
            s[v + V_PMI] = U1
    return OK, U0, U0, STOP_NONE


@kernel
def perf_arguments(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Fill in the arguments of the request that is about to be served; ``index`` is call | slot << 8."""
    slot = index >> U8
    s[p + P_CALL_CONFIG] = perf_config(s, v, slot)
    s[p + P_CALL_VALUE] = U0
    s[p + P_CALL_FLAGS] = FLAG_HELD
    return OK, U0, U0, STOP_NONE


@kernel
def perf_done(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Take host perf's answer to a request; after the last one the counters go back on the hardware."""
    call = index & U64(0xFF)
    slot = index >> U8
    if call == CALL_RELEASE:
        s[v + V_HAS_EVENT] &= ~(U1 << slot)
        s[v + V_HW_SLOT + slot] = NO_SLOT
        still(s, v, slot, False, now)
    elif call == CALL_CREATE:
        s[v + V_HAS_EVENT] |= U1 << slot
        s[v + V_USED] |= U1 << slot
        s[v + V_LIFE + slot] = s[v + V_PARAMETER]
    if s[v + V_REQ_COUNT] != U0:
        return OK, U0, U0, STOP_NONE
    return OK, U0, _load(s, v, p, now), STOP_NONE


@kernel
def sched_in(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Restore the counters where host perf granted them; give up events that have outlived their use."""
    slots = s[v + V_HAS_EVENT]
    while slots != U0:
        slot = lowest_bit(slots)
        slots &= slots - U1
        if (s[v + V_USED] >> slot) & U1 != U0 or locally_enabled(s, v, slot):
            s[v + V_LIFE + slot] = s[v + V_PARAMETER]
        elif s[v + V_LIFE + slot] > U1:
            s[v + V_LIFE + slot] -= U1
        else:
            request(s, v, CALL_RELEASE, slot)
    s[v + V_USED] = U0
    if s[v + V_REQ_COUNT] != U0:
        return OK, U0, U0, STOP_PERF
    return OK, U0, _load(s, v, p, now), STOP_NONE


@kernel
def sched_out(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Save the counters before the vCPU leaves its physical CPU."""
    return OK, U0, _unload(s, v, p), STOP_NONE


@inlined
def vm_entry(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Enter the guest with its own enables in GLOBAL_CTRL; the value is 1 if a PMI is injected.

    The injection masks the LVT (SDM 10.5.1).
    """
    hw_global(s, p, (s[p + HW_GUEST_CTRL] & ~s[v + V_HW_OWNED]) | s[v + V_HW_CTRL])
    ns = vcpu_cost(s, v, COST_ENTRY)
    if s[v + V_PMI] == U0:
        return OK, U0, ns, STOP_NONE
    s[v + V_PMI] = U0
    if s[v + V_LVTPC] & LVT_MASKED != U0:
        return OK, U0, ns, STOP_NONE
    s[v + V_LVTPC] |= s[v + V_MASKED]
    return OK, U1, ns + vcpu_cost(s, v, COST_INJECT), STOP_NONE


@inlined
def vm_exit(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Leave the guest: its counters stop, the host's are on."""
    s[p + HW_GLOBAL_CTRL] = s[p + HW_HOST_CTRL]
    s[p + HW_ACTIVE] = s[p + HW_ARMED] & s[p + HW_HOST_SLOTS]
    return OK, U0, vcpu_cost(s, v, COST_EXIT), STOP_NONE


@kernel
def destroy(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Give every counter back to the host."""
    for i in range(_SLOTS):
        if has_event(s, v, U64(i)):
            request(s, v, CALL_RELEASE, U64(i))
    return _result(s, v, p, U0)
