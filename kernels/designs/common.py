"""What designs share: a guest's PMU registers and their rules, requests, stood-still time.

The rules are those of KVM in Linux 5.0; V_RULES says which later ones hold (``kvm = "7.0"``). They are the
same for every design: how it finds its counters is its own matter.
"""

import numpy as np

from vpmu.kernels.columns import (
    FIXED_SLOT,
    NO_SLOT,
    P_GRANT,
    REQUESTS,
    SLOTS,
    V_BLOCKED,
    V_CAPABILITIES,
    V_EVENTSEL,
    V_EVENTSEL_RESERVED,
    V_FILTER,
    V_FIXED_CTRL,
    V_FIXED_RESERVED,
    V_GLOBAL_CTRL,
    V_GLOBAL_STATUS,
    V_GLOBAL_VALID,
    V_HAS_EVENT,
    V_HOST,
    V_ID,
    V_INDEX,
    V_LVTPC,
    V_MASK,
    V_NR_FIXED,
    V_NR_GP,
    V_OVF_CTRL,
    V_REQ_COUNT,
    V_REQ_HEAD,
    V_REQS,
    V_RULES,
    V_STILL,
    V_STILL_AT,
    V_STILL_NS,
    V_VERSION,
)
from vpmu.kernels.designs.filter import filter_allows
from vpmu.kernels.hardware import slots_of
from vpmu.kernels.host.clock import cost
from vpmu.kernels.integers import NEVER, U0, U1, U2, U3, U8, U16, lowest_bit, sign_extend32
from vpmu.kernels.jit import U64, Arena, inlined, kernel
from vpmu.kernels.msr import (
    CAPABILITIES_FULL_WIDTH,
    DEBUGCTL,
    EVENTSEL0,
    EVENTSEL_EN,
    EVENTSEL_INT,
    EVENTSEL_OS,
    EVENTSEL_USR,
    FIXED_CTR0,
    FIXED_CTR_CTRL,
    FIXED_PMI,
    FULL_PMC0,
    GLOBAL_CTRL,
    GLOBAL_OVF_CTRL,
    GLOBAL_STATUS,
    LVTPC,
    P6_EVENTSEL1,
    P6_PMC1,
    PERF_CAPABILITIES,
    PMC0,
    RDPMC_FIXED,
    STATUS_COND_CHANGED,
    STATUS_DS_OVERFLOW,
)

STOP_NONE = U64(0)
STOP_PERF = U64(1)
"""The design queued requests to host perf: the access goes on when they are served."""

RULE_CAPABILITIES = U64(1)
"""IA32_PERF_CAPABILITIES is there, and with its bit 13 the full-width counters (Linux 5.8)."""
RULE_REARM = U64(2)
"""A write of a running counter moves its overflow, and one that starts from 0 overflows at its wrap (5.7)."""
RULE_EMULATED = U64(4)
"""Instructions that KVM emulates are counted (5.17)."""
RULE_MASK_LVTPC = U64(8)
"""The delivery of a PMI masks the LVTPC (6.7)."""
RULE_RDPMC_TYPE = U64(16)
"""RDPMC reads ECX[31:16] as a type, so that the fast form raises #GP (6.9)."""
RULE_FIXED_FULL = U64(32)
"""A fixed counter takes all bits of a write (5.4)."""
RULE_OVF_CTRL_ZERO = U64(64)
"""GLOBAL_OVF_CTRL reads as 0."""
RULES_5_0 = U64(0)
RULES_7_0 = U64(127)

REGISTER_STORE = U64(1)
REGISTER_NOTHING = U64(2)
REGISTER_EVENTSEL = U64(3)
REGISTER_FIXED_CTRL = U64(4)
REGISTER_GLOBAL_CTRL = U64(5)
REGISTER_COUNTER = U64(6)
REGISTER_BAD = U64(7)
REGISTER_STATUS = U64(8)

_REQUESTS = U64(REQUESTS)
_SLOTS = U64(SLOTS)
_FIELD = U64(0xF)
_CONFIG = U64(0xFFFF)
_FAST = U64(1 << 31)
_INDEX_BITS = U64(0x3FFFFFFF)
_MASK32 = U64(0xFFFFFFFF)
_KEEP = U64(0xFF8CFFFF)
_TYPE_FIXED = U64(0x4000)
_TYPE_BITS = U64(0xFFFF)
_INSTRUCTIONS = U64(0xC0)
_BRANCHES = U64(0xC4)
_FIXED_EVENTS = np.array([0x00C0, 0x003C, 0x0300], dtype=np.uint64)


@inlined
def vcpu_cost(s: Arena, v: np.uint64, which: np.uint64) -> np.uint64:
    """Return the duration of a basic operation done for a vCPU, in ns."""
    return cost(s, s[v + V_ID], v + V_INDEX, which)


@kernel
def request(s: Arena, v: np.uint64, call: np.uint64, slot: np.uint64) -> None:
    """Queue a call to host perf (one of the CALL_ constants) for a vPMC."""
    at = (s[v + V_REQ_HEAD] + s[v + V_REQ_COUNT]) % _REQUESTS
    s[v + V_REQS + at] = call | (slot << U8)
    s[v + V_REQ_COUNT] += U1


@kernel
def has_event(s: Arena, v: np.uint64, slot: np.uint64) -> bool:
    """Return whether a host perf event stands behind a vPMC."""
    return (s[v + V_HAS_EVENT] >> slot) & U1 != U0


@kernel
def locally_enabled(s: Arena, v: np.uint64, slot: np.uint64) -> bool:
    """Return whether a vPMC's own control, and the VM's event filter, let it count."""
    if (s[v + V_BLOCKED] >> slot) & U1 != U0:
        return False
    if slot < FIXED_SLOT:
        return s[v + V_EVENTSEL + slot] & EVENTSEL_EN != U0
    return (s[v + V_FIXED_CTRL] >> ((slot - FIXED_SLOT) << U2)) & U3 != U0


@kernel
def globally_enabled(s: Arena, v: np.uint64, slot: np.uint64) -> bool:
    """Return whether GLOBAL_CTRL lets a vPMC count."""
    return (slots_of(s[v + V_GLOBAL_CTRL]) >> slot) & U1 != U0


@kernel
def fully_enabled(s: Arena, v: np.uint64, slot: np.uint64) -> bool:
    """Return whether a vPMC counts."""
    return locally_enabled(s, v, slot) and globally_enabled(s, v, slot)


@kernel
def interrupts(s: Arena, v: np.uint64, slot: np.uint64) -> bool:
    """Return whether a vPMC's overflow is to raise a PMI."""
    if slot < FIXED_SLOT:
        return s[v + V_EVENTSEL + slot] & EVENTSEL_INT != U0
    return (s[v + V_FIXED_CTRL] >> ((slot - FIXED_SLOT) << U2)) & FIXED_PMI != U0


@kernel
def perf_config(s: Arena, v: np.uint64, slot: np.uint64) -> np.uint64:
    """Return the event selector of a vPMC's host perf event: event, filters, privilege levels, INT."""
    if slot < FIXED_SLOT:
        return (
            (s[v + V_EVENTSEL + slot] & _KEEP)
            | (s[v + V_EVENTSEL + slot] & (EVENTSEL_USR | EVENTSEL_OS))
            | EVENTSEL_INT
        )
    fixed = slot - FIXED_SLOT
    field = s[v + V_FIXED_CTRL] >> (fixed << U2)
    config = _FIXED_EVENTS[fixed] | EVENTSEL_INT
    if field & U2 != U0:
        config |= EVENTSEL_USR
    if field & U1 != U0:
        config |= EVENTSEL_OS
    return config


@inlined
def check_write(
    s: Arena, v: np.uint64, msr: np.uint64, value: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64]:
    """Apply the rules of a guest's WRMSR that all designs share (intel_pmu_set_msr()).

    Parameters
    ----------
    s : uint64[n]
        The arena.
    v : uint64
        Offset of the vCPU's row.
    msr, value : uint64

    Returns
    -------
    (what, slot, word) : uint64
        REGISTER_NOTHING if the write is done or changes nothing, REGISTER_BAD for #GP; otherwise what is left
        to the design: REGISTER_EVENTSEL, REGISTER_FIXED_CTRL, REGISTER_GLOBAL_CTRL (nothing stored yet) or
        REGISTER_COUNTER, with its slot. The word is what the register is to read afterwards: a counter's is
        cut or sign-extended to its width.
    """
    if msr == GLOBAL_CTRL:
        if s[v + V_VERSION] < U2:
            return REGISTER_BAD, U0, value
        if s[v + V_GLOBAL_CTRL] == value:
            return REGISTER_NOTHING, U0, value
        return (REGISTER_GLOBAL_CTRL if value & ~s[v + V_GLOBAL_VALID] == U0 else REGISTER_BAD), U0, value
    if msr - EVENTSEL0 < s[v + V_NR_GP]:
        slot = msr - EVENTSEL0
        if s[v + V_EVENTSEL + slot] == value:
            return REGISTER_NOTHING, slot, value
        if value & s[v + V_EVENTSEL_RESERVED] != U0:
            return REGISTER_BAD, slot, value
        if s[v + V_FILTER] != U0:
            _filter(s, v, slot, value)
        return REGISTER_EVENTSEL, slot, value
    if msr - PMC0 < s[v + V_NR_GP]:
        word = sign_extend32(value, s[v + V_MASK])
        return REGISTER_COUNTER, msr - PMC0, word if s[v + V_HOST] == U0 else value & s[v + V_MASK]
    if msr == FIXED_CTR_CTRL:
        if s[v + V_FIXED_CTRL] == value:
            return (REGISTER_NOTHING if s[v + V_VERSION] >= U2 else REGISTER_BAD), U0, value
        return (REGISTER_FIXED_CTRL if value & s[v + V_FIXED_RESERVED] == U0 else REGISTER_BAD), U0, value
    if msr - FIXED_CTR0 < s[v + V_NR_FIXED]:
        word = value & s[v + V_MASK]
        if s[v + V_RULES] & RULE_FIXED_FULL == U0 and s[v + V_HOST] == U0:
            word = sign_extend32(value, s[v + V_MASK])
        return REGISTER_COUNTER, FIXED_SLOT + (msr - FIXED_CTR0), word
    if msr - FULL_PMC0 < s[v + V_NR_GP]:
        if s[v + V_CAPABILITIES] & CAPABILITIES_FULL_WIDTH == U0 or value & ~s[v + V_MASK] != U0:
            return REGISTER_BAD, U0, value
        return REGISTER_COUNTER, msr - FULL_PMC0, value
    return _check_other(s, v, msr, value), U0, value


@kernel
def _filter(s: Arena, v: np.uint64, slot: np.uint64, eventsel: np.uint64) -> None:
    """Note whether the VM's event filter blocks what a selector asks for."""
    s[v + V_BLOCKED] &= ~(U1 << slot)
    if not filter_allows(s, s[v + V_FILTER], eventsel):
        s[v + V_BLOCKED] |= U1 << slot


@kernel
def _check_other(s: Arena, v: np.uint64, msr: np.uint64, value: np.uint64) -> np.uint64:
    """Apply the rules of the rarer registers: GLOBAL_OVF_CTRL, LVTPC, DEBUGCTL and what the P6 had."""
    if msr == GLOBAL_OVF_CTRL:
        valid = s[v + V_GLOBAL_VALID] | STATUS_COND_CHANGED | STATUS_DS_OVERFLOW
        if s[v + V_VERSION] < U2 or value & ~valid != U0:
            return REGISTER_BAD
        if s[v + V_HOST] != U0:
            s[v + V_OVF_CTRL] = value if s[v + V_RULES] & RULE_OVF_CTRL_ZERO == U0 else U0
            return REGISTER_NOTHING
        s[v + V_GLOBAL_STATUS] &= ~value
        s[v + V_OVF_CTRL] = value if s[v + V_RULES] & RULE_OVF_CTRL_ZERO == U0 else U0
        return REGISTER_STATUS
    if msr == LVTPC:
        s[v + V_LVTPC] = value
        return REGISTER_NOTHING
    if s[v + V_HOST] != U0 and _host_writes(s, v, msr, value):
        return REGISTER_STATUS if msr == GLOBAL_STATUS else REGISTER_NOTHING
    if (msr == DEBUGCTL and value & ~U3 == U0) or _of_p6(msr):
        return REGISTER_NOTHING
    return REGISTER_BAD


@kernel
def _host_writes(s: Arena, v: np.uint64, msr: np.uint64, value: np.uint64) -> bool:
    """Carry out a write that only the host can make: of GLOBAL_STATUS, or of PERF_CAPABILITIES."""
    if msr == GLOBAL_STATUS:
        valid = s[v + V_GLOBAL_VALID] | STATUS_COND_CHANGED | STATUS_DS_OVERFLOW
        if s[v + V_VERSION] < U2 or (s[v + V_RULES] != U0 and value & ~valid != U0):
            return False
        s[v + V_GLOBAL_STATUS] = value
        return True
    if msr == PERF_CAPABILITIES and s[v + V_RULES] & RULE_CAPABILITIES != U0:
        if value & ~CAPABILITIES_FULL_WIDTH != U0:
            return False
        s[v + V_CAPABILITIES] = value
        return True
    return False


@kernel
def _of_p6(msr: np.uint64) -> bool:
    """Return whether an MSR is one that KVM accepts and ignores where the guest has no such counter."""
    return bool(P6_PMC1 - msr <= U1 or P6_EVENTSEL1 - msr <= U1)


@inlined
def check_read(s: Arena, v: np.uint64, msr: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Apply the rules of a guest's RDMSR that all designs share.

    Returns
    -------
    (what, word) : uint64
        REGISTER_STORE with the value read, REGISTER_COUNTER with the slot to read, REGISTER_STATUS with the
        stored GLOBAL_STATUS, or REGISTER_BAD.
    """
    if msr - FIXED_CTR_CTRL <= U3:
        if s[v + V_VERSION] < U2:
            return REGISTER_BAD, U0
        if msr == GLOBAL_STATUS:
            return REGISTER_STATUS, s[v + V_GLOBAL_STATUS]
        if msr == FIXED_CTR_CTRL:
            return REGISTER_STORE, s[v + V_FIXED_CTRL]
        if msr == GLOBAL_CTRL:
            return REGISTER_STORE, s[v + V_GLOBAL_CTRL]
        return REGISTER_STORE, s[v + V_OVF_CTRL]
    if msr - EVENTSEL0 < s[v + V_NR_GP]:
        return REGISTER_STORE, s[v + V_EVENTSEL + (msr - EVENTSEL0)]
    if msr - PMC0 < s[v + V_NR_GP]:
        return REGISTER_COUNTER, msr - PMC0
    if msr - FIXED_CTR0 < s[v + V_NR_FIXED]:
        return REGISTER_COUNTER, FIXED_SLOT + (msr - FIXED_CTR0)
    if msr == LVTPC:
        return REGISTER_STORE, s[v + V_LVTPC]
    if msr - FULL_PMC0 < s[v + V_NR_GP] and s[v + V_CAPABILITIES] & CAPABILITIES_FULL_WIDTH != U0:
        return REGISTER_COUNTER, msr - FULL_PMC0
    if msr == PERF_CAPABILITIES and s[v + V_RULES] & RULE_CAPABILITIES != U0:
        return REGISTER_STORE, s[v + V_CAPABILITIES]
    if msr == DEBUGCTL or _of_p6(msr):
        return REGISTER_STORE, U0
    return REGISTER_BAD, U0


@inlined
def rdpmc_slot(s: Arena, v: np.uint64, index: np.uint64) -> np.uint64:
    """Return the slot of an RDPMC index, or NO_SLOT.

    KVM 5.0 strips bits 31:30; later, bits 31:16 are a type: 0 general-purpose, 0x4000 fixed.
    """
    number = index & _INDEX_BITS
    fixed = index & RDPMC_FIXED != U0
    if s[v + V_RULES] & RULE_RDPMC_TYPE != U0:
        number = index & _TYPE_BITS
        if (not fixed and index >> U16 != U0) or (fixed and index >> U16 != _TYPE_FIXED):
            return NO_SLOT
    if fixed:
        return FIXED_SLOT + number if number < s[v + V_NR_FIXED] else NO_SLOT
    return number if number < s[v + V_NR_GP] else NO_SLOT


@inlined
def rdpmc_value(index: np.uint64, value: np.uint64) -> np.uint64:
    """Cut a counter as a fast RDPMC (bit 31) asks."""
    return value & _MASK32 if index & _FAST != U0 else value


@kernel
def emulated_slots(s: Arena, v: np.uint64, retires: np.uint64, level: np.uint64) -> np.uint64:
    """Return the vPMCs that count an instruction which KVM emulates (kvm_pmu_trigger_event()).

    Parameters
    ----------
    s : uint64[n]
        The arena.
    v : uint64
        Offset of the vCPU's row.
    retires : uint64
        RETIRES_ bits: an instruction, a branch.
    level : uint64
        1 in kernel mode, 2 in user mode.

    Returns
    -------
    uint64
        Bit per slot.
    """
    found = U0
    slots = slots_of(s[v + V_GLOBAL_CTRL])
    while slots != U0:
        slot = lowest_bit(slots)
        slots &= slots - U1
        if locally_enabled(s, v, slot) and _counts_emulated(perf_config(s, v, slot), retires, level):
            found |= U1 << slot
    return found


@kernel
def _counts_emulated(config: np.uint64, retires: np.uint64, level: np.uint64) -> bool:
    """Return whether an event's selector counts what an emulated instruction retires, at its level.

    KVM compares event and umask alone.
    """
    levels = ((config >> U64(17)) & U1) | ((config >> U64(15)) & U2)
    if levels & level == U0:
        return False
    event = config & _CONFIG
    return (event == _INSTRUCTIONS and retires & U1 != U0) or (event == _BRANCHES and retires & U2 != U0)


@kernel
def still(s: Arena, v: np.uint64, slot: np.uint64, stands: bool, now: np.uint64) -> None:
    """Book whether an enabled vPMC stands still for want of a counter."""
    since = s[v + V_STILL_AT + slot]
    if stands and since == NEVER:
        s[v + V_STILL] |= U1 << slot
        s[v + V_STILL_AT + slot] = now
    elif not stands and since != NEVER:
        s[v + V_STILL] &= ~(U1 << slot)
        s[v + V_STILL_NS + slot] += now - since
        s[v + V_STILL_AT + slot] = NEVER


@kernel
def granted(s: Arena, p: np.uint64, slot: np.uint64) -> bool:
    """Return whether host perf has the event of a vPMC on a counter, by its last answer."""
    return s[p + P_GRANT + slot] != NO_SLOT


@kernel
def book_grants(s: Arena, v: np.uint64, p: np.uint64, now: np.uint64) -> None:
    """Book, after an answer of host perf, which enabled vPMCs stand still."""
    for i in range(_SLOTS):
        slot = U64(i)
        if has_event(s, v, slot):
            still(s, v, slot, fully_enabled(s, v, slot) and not granted(s, p, slot), now)
        elif s[v + V_STILL_AT + slot] != NEVER:
            still(s, v, slot, False, now)
