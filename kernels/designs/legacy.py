"""The vPMU of Linux 5.0: each vPMC that counts is a host perf event, created anew at every change.

Its semantic gaps (docs/design.md lists them) follow from doing the same: they are not modelled one by one.
"""

import numpy as np

from vpmu.kernels.columns import (
    FIXED_SLOT,
    HW_GUEST_CTRL,
    HW_HOST_CTRL,
    NO_SLOT,
    P_CALL_CONFIG,
    P_CALL_FLAGS,
    P_CALL_VALUE,
    SLOTS,
    V_COUNTER,
    V_EVENTSEL,
    V_FIXED_CTRL,
    V_GLOBAL_CTRL,
    V_GLOBAL_STATUS,
    V_HAS_EVENT,
    V_LVTPC,
    V_MASK,
    V_MASKED,
    V_OPERATION,
    V_PMI,
    V_PRIVATE,
    V_REGISTER,
    V_REQ_COUNT,
    V_RULES,
    V_VALUE,
)
from vpmu.kernels.costs import (
    COST_ENTRY,
    COST_EXIT,
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
    RULE_MASK_LVTPC,
    RULE_REARM,
    STOP_NONE,
    STOP_PERF,
    book_grants,
    check_read,
    check_write,
    emulated_slots,
    fully_enabled,
    has_event,
    interrupts,
    perf_config,
    rdpmc_slot,
    rdpmc_value,
    request,
    still,
    vcpu_cost,
)
from vpmu.kernels.hardware import GP, OK, hw_global, slots_of
from vpmu.kernels.host.perf import CALL_CREATE, CALL_PERIOD, CALL_READ, CALL_RELEASE
from vpmu.kernels.integers import U0, U1, U2, U3, U8, lowest_bit
from vpmu.kernels.jit import U64, Arena, kernel
from vpmu.kernels.msr import LVT_MASKED
from vpmu.kernels.perf.interrupt import ACCESS_WRITE
from vpmu.kernels.perf.schedule import slot_bit

DESCRIPTION = "Linux 5.0: a host perf event per counting vPMC, created anew at every change"
INTERCEPTS = True

_WRITTEN = V_PRIVATE
"""Private column: the word that a write of a running counter is to leave there."""
_BUMPED = U64(V_PRIVATE + 1)
"""Private column: bit per vPMC that an emulated instruction was counted on, a wrap not yet looked for."""
_FIELD = U64(0xF)
_SLOTS = U64(SLOTS)

Result = tuple[np.uint64, np.uint64, np.uint64, np.uint64]


@kernel
def _reprogram(s: Arena, v: np.uint64, slot: np.uint64) -> None:
    """Stop a vPMC and, if it is to count, create its event (reprogram_counter())."""
    if has_event(s, v, slot):
        request(s, v, CALL_RELEASE, slot)
    if fully_enabled(s, v, slot):
        request(s, v, CALL_CREATE, slot)


@kernel
def set_msr(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Write a PMU register (intel_pmu_set_msr()).

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
        OK or GP; 0; software time; STOP_PERF if host perf has work to do first.
    """
    ns = vcpu_cost(s, v, COST_MSR_INTERCEPT)
    what, slot, word = check_write(s, v, index, value)
    if what == REGISTER_BAD:
        return GP, U0, ns, STOP_NONE
    if what == REGISTER_GLOBAL_CTRL:
        changed = slots_of(s[v + V_GLOBAL_CTRL] ^ value)
        s[v + V_GLOBAL_CTRL] = value
        while changed != U0:
            _reprogram(s, v, lowest_bit(changed))
            changed &= changed - U1
    elif what == REGISTER_EVENTSEL:
        s[v + V_EVENTSEL + slot] = value
        _reprogram(s, v, slot)
    elif what == REGISTER_FIXED_CTRL:
        changed = s[v + V_FIXED_CTRL] ^ value
        s[v + V_FIXED_CTRL] = value
        for i in range(U3):
            if (changed >> (U64(i) << U2)) & _FIELD != U0:
                _reprogram(s, v, FIXED_SLOT + U64(i))
    elif what == REGISTER_COUNTER:
        _write_counter(s, v, slot, word)
    return OK, U0, ns, _stop(s, v)


@kernel
def _write_counter(s: Arena, v: np.uint64, slot: np.uint64, word: np.uint64) -> None:
    """Move a vPMC's base so that it reads the word written.

    In Linux 5.0 the event runs on as it was; later its period is that of the new count.
    """
    if has_event(s, v, slot):
        request(s, v, CALL_READ, slot)
        s[v + _WRITTEN] = word
        if s[v + V_RULES] & RULE_REARM != U0:
            request(s, v, CALL_PERIOD, slot)
    else:
        s[v + V_COUNTER + slot] = word


@kernel
def _stop(s: Arena, v: np.uint64) -> np.uint64:
    """Return STOP_PERF if the access left requests to host perf."""
    return STOP_PERF if s[v + V_REQ_COUNT] != U0 else STOP_NONE


@kernel
def get_msr(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Read a PMU register (intel_pmu_get_msr()); parameters and result as for set_msr()."""
    ns = vcpu_cost(s, v, COST_MSR_INTERCEPT)
    what, word = check_read(s, v, index)
    if what == REGISTER_BAD:
        return GP, U0, ns, STOP_NONE
    if what == REGISTER_COUNTER:
        return _read_counter(s, v, word, ns)
    return OK, word, ns, STOP_NONE


@kernel
def _read_counter(s: Arena, v: np.uint64, slot: np.uint64, ns: np.uint64) -> Result:
    """Read a vPMC: its event through host perf, or the stored count (pmc_read_counter())."""
    if has_event(s, v, slot):
        request(s, v, CALL_READ, slot)
        return OK, U0, ns, STOP_PERF
    return OK, s[v + V_COUNTER + slot], ns, STOP_NONE


@kernel
def rdpmc(s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64) -> Result:
    """Execute RDPMC (kvm_pmu_rdpmc()); parameters and result as for set_msr()."""
    ns = vcpu_cost(s, v, COST_RDPMC_INTERCEPT)
    slot = rdpmc_slot(s, v, index)
    if slot == NO_SLOT:
        return GP, U0, ns, STOP_NONE
    outcome, word, ns, stop = _read_counter(s, v, slot, ns)
    return outcome, rdpmc_value(index, word), ns, stop


@kernel
def deliver_pmi(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Take host overflows of this vCPU's events (kvm_perf_overflow_intr()); ``index`` is a set of slots."""
    slots = index
    while slots != U0:
        slot = lowest_bit(slots)
        slots &= slots - U1
        _overflowed(s, v, slot)
        if has_event(s, v, slot):
            _reprogram(s, v, slot)
    return OK, U0, U0, _stop(s, v)


@kernel
def perf_done(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Take host perf's answer to a request; ``index`` is call | slot << 8, ``value`` the event's count."""
    call = index & U64(0xFF)
    slot = index >> U8
    count = (s[v + V_COUNTER + slot] + value) & s[v + V_MASK]
    if call == CALL_RELEASE:
        s[v + V_COUNTER + slot] = count
        s[v + V_HAS_EVENT] &= ~(U1 << slot)
        still(s, v, slot, False, now)
    elif call == CALL_CREATE:
        s[v + V_HAS_EVENT] |= U1 << slot
        book_grants(s, v, p, now)
    elif call == CALL_READ and s[v + V_OPERATION] == ACCESS_WRITE:
        s[v + V_COUNTER + slot] += s[v + _WRITTEN] - count
    elif call == CALL_PERIOD:
        _judge(s, v, slot, count)
    elif call == CALL_READ:
        s[v + V_VALUE] = rdpmc_value(s[v + V_REGISTER], count) if s[v + V_OPERATION] != U1 else count
    return OK, U0, U0, STOP_NONE


@kernel
def _judge(s: Arena, v: np.uint64, slot: np.uint64, count: np.uint64) -> None:
    """Take notice if an emulated instruction has made a vPMC wrap."""
    bumped = s[v + _BUMPED] & (U1 << slot)
    s[v + _BUMPED] &= ~bumped
    if bumped != U0 and count == U0:
        _overflowed(s, v, slot)


@kernel
def _overflowed(s: Arena, v: np.uint64, slot: np.uint64) -> None:
    """Set a vPMC's overflow bit and ask for a PMI, if it is to raise one."""
    s[v + V_GLOBAL_STATUS] |= slot_bit(slot)
    if interrupts(s, v, slot):
        s[v + V_PMI] = U1


@kernel
def trigger_event(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Count an instruction that KVM emulated; ``index`` says what it retires, ``value`` its level.

    The event is paused, and goes on with the period of the new count (reprogram_counter() of Linux 6.8).
    """
    slots = emulated_slots(s, v, index, value)
    while slots != U0:
        slot = lowest_bit(slots)
        slots &= slots - U1
        if has_event(s, v, slot):
            # Once what the access itself asks for is done: it may be a write of this counter.
            s[v + _BUMPED] |= U1 << slot
            request(s, v, CALL_PERIOD, slot)
            continue
        s[v + V_COUNTER + slot] = (s[v + V_COUNTER + slot] + U1) & s[v + V_MASK]
        if s[v + V_COUNTER + slot] == U0:
            _overflowed(s, v, slot)
    return OK, U0, U0, _stop(s, v)


@kernel
def perf_arguments(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Fill in the arguments of the request that is about to be served; ``index`` is call | slot << 8."""
    if index & U64(0xFF) == CALL_CREATE:
        slot = index >> U8
        s[p + P_CALL_CONFIG] = perf_config(s, v, slot)
        s[p + P_CALL_VALUE] = _period(s, v, slot)
        s[p + P_CALL_FLAGS] = U0
    elif index & U64(0xFF) == CALL_PERIOD:
        slot = index >> U8
        bumped = (s[v + _BUMPED] >> slot) & U1
        s[v + V_COUNTER + slot] = (s[v + V_COUNTER + slot] + bumped) & s[v + V_MASK]
        s[p + P_CALL_VALUE] = (U0 - s[v + V_COUNTER + slot]) & s[v + V_MASK]
        s[p + P_CALL_CONFIG] = s[v + V_MASK]
    return OK, U0, U0, STOP_NONE


@kernel
def _period(s: Arena, v: np.uint64, slot: np.uint64) -> np.uint64:
    """Return how many events a vPMC is from its wrap (get_sample_period()); in Linux 5.0, 0 if it reads 0."""
    period = (U0 - s[v + V_COUNTER + slot]) & s[v + V_MASK]
    if period == U0 and s[v + V_RULES] & RULE_REARM != U0:
        return s[v + V_MASK] + U1
    return period


@kernel
def sched_in(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Come back to a physical CPU: host perf did its part; an event that found no counter stays in ERROR."""
    book_grants(s, v, p, now)
    return OK, U0, U0, STOP_NONE


@kernel
def sched_out(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Leave a physical CPU: host perf alone has work."""
    return OK, U0, U0, STOP_NONE


@kernel
def vm_entry(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Enter the guest with its events on; the value is 1 if a PMI is injected (kvm_pmu_deliver_pmi()).

    In Linux 5.0 the injection leaves the LVT's mask bit as it is.
    """
    hw_global(s, p, s[p + HW_GUEST_CTRL])
    ns = vcpu_cost(s, v, COST_ENTRY)
    if s[v + V_PMI] == U0:
        return OK, U0, ns, STOP_NONE
    s[v + V_PMI] = U0
    if s[v + V_LVTPC] & LVT_MASKED != U0:
        return OK, U0, ns, STOP_NONE
    if s[v + V_RULES] & RULE_MASK_LVTPC != U0:
        s[v + V_LVTPC] |= s[v + V_MASKED]
    return OK, U1, ns + vcpu_cost(s, v, COST_INJECT), STOP_NONE


@kernel
def vm_exit(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Leave the guest: the host's counters are on."""
    hw_global(s, p, s[p + HW_HOST_CTRL])
    return OK, U0, vcpu_cost(s, v, COST_EXIT), STOP_NONE


@kernel
def destroy(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Give every counter back to the host."""
    for i in range(_SLOTS):
        if has_event(s, v, U64(i)):
            request(s, v, CALL_RELEASE, U64(i))
    return OK, U0, U0, _stop(s, v)
