"""What designs share: a guest's PMU registers and their rules (KVM 5.0), requests, stood-still time."""

import numpy as np

from vpmu.kernels.columns import (
    FIXED_SLOT,
    NO_SLOT,
    P_GRANT,
    REQUESTS,
    SLOTS,
    V_EVENTSEL,
    V_FIXED_CTRL,
    V_GLOBAL_CTRL,
    V_GLOBAL_STATUS,
    V_GLOBAL_VALID,
    V_HAS_EVENT,
    V_ID,
    V_INDEX,
    V_LVTPC,
    V_NR_FIXED,
    V_NR_GP,
    V_OVF_CTRL,
    V_REQ_COUNT,
    V_REQ_HEAD,
    V_REQS,
    V_STILL,
    V_STILL_AT,
    V_STILL_NS,
)
from vpmu.kernels.hardware import slots_of
from vpmu.kernels.host.clock import cost
from vpmu.kernels.integers import NEVER, U0, U1, U2, U3, U8
from vpmu.kernels.jit import U64, Arena, inlined, kernel
from vpmu.kernels.msr import (
    DEBUGCTL,
    EVENTSEL0,
    EVENTSEL_EN,
    EVENTSEL_INT,
    EVENTSEL_OS,
    EVENTSEL_RESERVED_V2,
    EVENTSEL_USR,
    FIXED_CTR0,
    FIXED_CTR_CTRL,
    FIXED_PMI,
    FIXED_RESERVED_V2,
    GLOBAL_CTRL,
    GLOBAL_OVF_CTRL,
    GLOBAL_STATUS,
    LVTPC,
    PMC0,
    RDPMC_FIXED,
    STATUS_COND_CHANGED,
    STATUS_DS_OVERFLOW,
)

STOP_NONE = U64(0)
STOP_PERF = U64(1)
"""The design queued requests to host perf: the access goes on when they are served."""

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
_U4 = U64(4)
_FAST = U64(1 << 31)
_INDEX_BITS = U64(0x3FFFFFFF)
_MASK32 = U64(0xFFFFFFFF)
_KEEP = U64(0xFF8CFFFF)
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
    """Return whether a vPMC's own control lets it count."""
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
def check_write(s: Arena, v: np.uint64, msr: np.uint64, value: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Apply the rules of a guest's WRMSR that all designs share (intel_pmu_set_msr(), Linux 5.0).

    Parameters
    ----------
    s : uint64[n]
        The arena.
    v : uint64
        Offset of the vCPU's row.
    msr, value : uint64

    Returns
    -------
    (what, slot) : uint64
        REGISTER_NOTHING if the write is done or changes nothing, REGISTER_BAD for #GP; otherwise what is left
        to the design: REGISTER_EVENTSEL, REGISTER_FIXED_CTRL, REGISTER_GLOBAL_CTRL (nothing stored yet) or
        REGISTER_COUNTER, with its slot.
    """
    if msr == GLOBAL_CTRL:
        if s[v + V_GLOBAL_CTRL] == value:
            return REGISTER_NOTHING, U0
        return (REGISTER_GLOBAL_CTRL if value & ~s[v + V_GLOBAL_VALID] == U0 else REGISTER_BAD), U0
    if msr - EVENTSEL0 < s[v + V_NR_GP]:
        slot = msr - EVENTSEL0
        if s[v + V_EVENTSEL + slot] == value:
            return REGISTER_NOTHING, slot
        return (REGISTER_EVENTSEL if value & EVENTSEL_RESERVED_V2 == U0 else REGISTER_BAD), slot
    if msr - PMC0 < s[v + V_NR_GP]:
        return REGISTER_COUNTER, msr - PMC0
    if msr == FIXED_CTR_CTRL:
        if s[v + V_FIXED_CTRL] == value:
            return REGISTER_NOTHING, U0
        return (REGISTER_FIXED_CTRL if value & FIXED_RESERVED_V2 == U0 else REGISTER_BAD), U0
    if msr - FIXED_CTR0 < s[v + V_NR_FIXED]:
        return REGISTER_COUNTER, FIXED_SLOT + (msr - FIXED_CTR0)
    return _check_other(s, v, msr, value), U0


@kernel
def _check_other(s: Arena, v: np.uint64, msr: np.uint64, value: np.uint64) -> np.uint64:
    """Apply the rules of the rarer registers: GLOBAL_OVF_CTRL, LVTPC and DEBUGCTL."""
    if msr == GLOBAL_OVF_CTRL:
        if value & ~(s[v + V_GLOBAL_VALID] | STATUS_COND_CHANGED | STATUS_DS_OVERFLOW) != U0:
            return REGISTER_BAD
        s[v + V_GLOBAL_STATUS] &= ~value
        s[v + V_OVF_CTRL] = value
        return REGISTER_STATUS
    if msr == LVTPC:
        s[v + V_LVTPC] = value
        return REGISTER_NOTHING
    if msr == DEBUGCTL and value & ~U3 == U0:
        return REGISTER_NOTHING
    return REGISTER_BAD


@inlined
def check_read(s: Arena, v: np.uint64, msr: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Apply the rules of a guest's RDMSR that all designs share.

    Returns
    -------
    (what, word) : uint64
        REGISTER_STORE with the value read, REGISTER_COUNTER with the slot to read, REGISTER_STATUS with the
        stored GLOBAL_STATUS, or REGISTER_BAD.
    """
    if msr == GLOBAL_STATUS:
        return REGISTER_STATUS, s[v + V_GLOBAL_STATUS]
    if msr == FIXED_CTR_CTRL:
        return REGISTER_STORE, s[v + V_FIXED_CTRL]
    if msr == GLOBAL_CTRL:
        return REGISTER_STORE, s[v + V_GLOBAL_CTRL]
    if msr - EVENTSEL0 < s[v + V_NR_GP]:
        return REGISTER_STORE, s[v + V_EVENTSEL + (msr - EVENTSEL0)]
    if msr - PMC0 < s[v + V_NR_GP]:
        return REGISTER_COUNTER, msr - PMC0
    if msr - FIXED_CTR0 < s[v + V_NR_FIXED]:
        return REGISTER_COUNTER, FIXED_SLOT + (msr - FIXED_CTR0)
    if msr == GLOBAL_OVF_CTRL:
        return REGISTER_STORE, s[v + V_OVF_CTRL]
    if msr == LVTPC:
        return REGISTER_STORE, s[v + V_LVTPC]
    if msr == DEBUGCTL:
        return REGISTER_STORE, U0
    return REGISTER_BAD, U0


@inlined
def rdpmc_slot(s: Arena, v: np.uint64, index: np.uint64) -> np.uint64:
    """Return the slot of an RDPMC index as KVM 5.0 decodes it (bits 31:30 stripped), or NO_SLOT."""
    number = index & _INDEX_BITS
    if index & RDPMC_FIXED != U0:
        return FIXED_SLOT + number if number < s[v + V_NR_FIXED] else NO_SLOT
    return number if number < s[v + V_NR_GP] else NO_SLOT


@inlined
def rdpmc_value(index: np.uint64, value: np.uint64) -> np.uint64:
    """Cut a counter as a fast RDPMC (bit 31) asks."""
    return value & _MASK32 if index & _FAST != U0 else value


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
