"""The counters of a physical CPU: architectural PMU version 3 as on Broadwell-EP (SDM 18.2).

Kernels take the offset ``p`` of a physical CPU's row and use its HW_ columns only.
"""

import numpy as np

from vpmu.kernels.columns import (
    FIXED_SLOT,
    G_NWATCH,
    G_WATCH,
    HW_ACTIVE,
    HW_ARMED,
    HW_COUNTER,
    HW_CPL,
    HW_DEBUGCTL,
    HW_EVENTSEL,
    HW_FIXED_CTRL,
    HW_GLOBAL_CTRL,
    HW_GLOBAL_STATUS,
    HW_KIND,
    HW_LVTPC,
    HW_MASK,
    HW_MASKED,
    HW_NR_FIXED,
    HW_NR_GP,
    HW_PMI,
    R_KINDS,
    W_CPL,
    W_KIND,
    W_LEFT,
    W_RETIRED,
    WATCH_COLUMNS,
)
from vpmu.kernels.events import FIXED_KIND, event_kind
from vpmu.kernels.integers import U0, U1, U2, U3, lowest_bit, sign_extend32
from vpmu.kernels.jit import U64, Arena, kernel
from vpmu.kernels.msr import (
    DEBUGCTL,
    DEBUGCTL_FREEZE_PERFMON,
    DEBUGCTL_RESERVED,
    EVENTSEL0,
    EVENTSEL_EN,
    EVENTSEL_INT,
    EVENTSEL_RESERVED_V3,
    FIXED_CTR0,
    FIXED_CTR_CTRL,
    FIXED_PMI,
    FULL_PMC0,
    GLOBAL_CTRL,
    GLOBAL_OVF_CTRL,
    GLOBAL_STATUS,
    LVT_MASKED,
    LVT_RESERVED,
    LVT_STATUS,
    LVTPC,
    PERF_CAPABILITIES,
    PMC0,
    RDPMC_FIXED,
    STATUS_COND_CHANGED,
    STATUS_DS_OVERFLOW,
    STATUS_TOPA_PMI,
    STATUS_UNCORE_OVERFLOW,
)
from vpmu.kernels.perf.schedule import slot_bit

OK = U64(0)
GP = U64(1)
"""Outcome of an access: general-protection fault."""

CPL_KERNEL = U64(1)
CPL_USER = U64(2)

_WATCH = U64(WATCH_COLUMNS)
_FIELD = U64(0xF)
_GP_BITS = U64(0xFF)
_FIXED_BITS = U64(0x700)
_U24 = U64(24)
_STATUS_OTHERS = STATUS_TOPA_PMI | STATUS_UNCORE_OVERFLOW | STATUS_DS_OVERFLOW | STATUS_COND_CHANGED
_CAPABILITIES = U64(0x32C4)
_TOO_FAR = U64(1 << 33)
"""Events left beyond which a counter cannot overflow within one stretch of guest code."""


@kernel
def slots_of(bits: np.uint64) -> np.uint64:
    """Return the slot set of a GLOBAL_CTRL word."""
    return (bits & _GP_BITS) | ((bits >> _U24) & _FIXED_BITS)


@kernel
def global_valid(s: Arena, p: np.uint64) -> np.uint64:
    """Return the GLOBAL_CTRL bits that this CPU has."""
    return ((U1 << s[p + HW_NR_GP]) - U1) | (((U1 << s[p + HW_NR_FIXED]) - U1) << U64(32))


@kernel
def hw_global(s: Arena, p: np.uint64, value: np.uint64) -> None:
    """Load GLOBAL_CTRL."""
    s[p + HW_GLOBAL_CTRL] = value
    s[p + HW_ACTIVE] = s[p + HW_ARMED] & slots_of(value)


@kernel
def hw_eventsel(s: Arena, p: np.uint64, slot: np.uint64, value: np.uint64) -> None:
    """Load the event selector of a general-purpose counter."""
    s[p + HW_EVENTSEL + slot] = value
    bit = U1 << slot
    if value & EVENTSEL_EN != U0:
        cpl = (value >> U64(17)) & U1 | ((value >> U64(16)) & U1) << U1
        s[p + HW_KIND + slot] = event_kind(s, s[R_KINDS], value)
        s[p + HW_CPL + slot] = cpl
        s[p + HW_ARMED] |= bit
    else:
        s[p + HW_ARMED] &= ~bit
    s[p + HW_ACTIVE] = s[p + HW_ARMED] & slots_of(s[p + HW_GLOBAL_CTRL])


@kernel
def hw_fixed_ctrl(s: Arena, p: np.uint64, value: np.uint64) -> None:
    """Load FIXED_CTR_CTRL."""
    s[p + HW_FIXED_CTRL] = value
    armed = s[p + HW_ARMED]
    for i in range(U3):
        levels = (value >> (U64(i) << U2)) & U3
        slot = FIXED_SLOT + U64(i)
        s[p + HW_CPL + slot] = levels
        armed &= ~(U1 << slot)
        armed |= ((levels | levels >> U1) & U1) << slot
    s[p + HW_ARMED] = armed
    s[p + HW_ACTIVE] = s[p + HW_ARMED] & slots_of(s[p + HW_GLOBAL_CTRL])


@kernel
def hw_write(s: Arena, p: np.uint64, msr: np.uint64, value: np.uint64) -> np.uint64:
    """Carry out WRMSR on the hardware.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    p : uint64
        Offset of the physical CPU's row.
    msr, value : uint64

    Returns
    -------
    uint64
        OK, or GP for a reserved bit, a read-only register or a register that is not there (SDM 18.2).
    """
    gp = s[p + HW_NR_GP]
    if msr == GLOBAL_CTRL:
        if value & ~global_valid(s, p) != U0:
            return GP
        hw_global(s, p, value)
    elif msr - FULL_PMC0 < gp:
        if value & ~s[p + HW_MASK] != U0:
            return GP
        s[p + HW_COUNTER + (msr - FULL_PMC0)] = value
    elif msr - EVENTSEL0 < gp:
        if value & EVENTSEL_RESERVED_V3 != U0:
            return GP
        hw_eventsel(s, p, msr - EVENTSEL0, value)
    elif msr == FIXED_CTR_CTRL:
        if value >> (s[p + HW_NR_FIXED] << U2) != U0:
            return GP
        hw_fixed_ctrl(s, p, value)
    elif msr - FIXED_CTR0 < s[p + HW_NR_FIXED]:
        s[p + HW_COUNTER + FIXED_SLOT + (msr - FIXED_CTR0)] = value & s[p + HW_MASK]
    elif msr == GLOBAL_OVF_CTRL:
        if value & ~(global_valid(s, p) | _STATUS_OTHERS) != U0:
            return GP
        s[p + HW_GLOBAL_STATUS] &= ~value
    elif msr == LVTPC:
        if value & LVT_RESERVED != U0:
            return GP
        s[p + HW_LVTPC] = value & ~LVT_STATUS
    elif msr - PMC0 < gp:
        s[p + HW_COUNTER + (msr - PMC0)] = sign_extend32(value, s[p + HW_MASK])
    elif msr == DEBUGCTL:
        if value & DEBUGCTL_RESERVED != U0:
            return GP
        s[p + HW_DEBUGCTL] = value
    else:
        return GP
    return OK


@kernel
def hw_read(s: Arena, p: np.uint64, msr: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Carry out RDMSR on the hardware: outcome and value."""
    gp = s[p + HW_NR_GP]
    if msr == GLOBAL_STATUS:
        return OK, s[p + HW_GLOBAL_STATUS]
    if msr == FIXED_CTR_CTRL:
        return OK, s[p + HW_FIXED_CTRL]
    if msr == GLOBAL_CTRL:
        return OK, s[p + HW_GLOBAL_CTRL]
    if msr - EVENTSEL0 < gp:
        return OK, s[p + HW_EVENTSEL + (msr - EVENTSEL0)]
    if msr - PMC0 < gp:
        return OK, s[p + HW_COUNTER + (msr - PMC0)]
    if msr - FULL_PMC0 < gp:
        return OK, s[p + HW_COUNTER + (msr - FULL_PMC0)]
    if msr - FIXED_CTR0 < s[p + HW_NR_FIXED]:
        return OK, s[p + HW_COUNTER + FIXED_SLOT + (msr - FIXED_CTR0)]
    if msr == LVTPC:
        return OK, s[p + HW_LVTPC]
    if msr == PERF_CAPABILITIES:
        return OK, _CAPABILITIES
    if msr == DEBUGCTL:
        return OK, s[p + HW_DEBUGCTL]
    return GP, U0


@kernel
def hw_rdpmc(s: Arena, p: np.uint64, index: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Carry out RDPMC on the hardware: outcome and value."""
    if index < s[p + HW_NR_GP]:
        return OK, s[p + HW_COUNTER + index]
    if index - RDPMC_FIXED < s[p + HW_NR_FIXED]:
        return OK, s[p + HW_COUNTER + FIXED_SLOT + (index - RDPMC_FIXED)]
    return GP, U0


@kernel
def hw_interrupts(s: Arena, p: np.uint64, slot: np.uint64) -> bool:
    """Return whether a slot's overflow raises a PMI."""
    if slot < FIXED_SLOT:
        return s[p + HW_EVENTSEL + slot] & EVENTSEL_INT != U0
    return (s[p + HW_FIXED_CTRL] >> ((slot - FIXED_SLOT) << U2)) & FIXED_PMI != U0


@kernel
def hw_watch(s: Arena, p: np.uint64, g: np.uint64) -> None:
    """Tell a guest what is counted while it runs, and after how many events it has to stop."""
    active = s[p + HW_ACTIVE]
    n = U0
    while active != U0:
        slot = lowest_bit(active)
        active &= active - U1
        w = g + G_WATCH + n * _WATCH
        s[w + W_KIND] = s[p + HW_KIND + slot]
        s[w + W_CPL] = s[p + HW_CPL + slot]
        left = s[p + HW_MASK] + U1 - s[p + HW_COUNTER + slot]
        s[w + W_LEFT] = left if left < _TOO_FAR and hw_interrupts(s, p, slot) else U0
        s[w + W_RETIRED] = U0
        n += U1
    s[g + G_NWATCH] = n


@kernel
def hw_count(s: Arena, p: np.uint64, slot: np.uint64, events: np.uint64) -> None:
    """Add events to a counter; an overflow sets its status bit and raises a PMI (SDM 18.2.1, 10.5.1)."""
    value = s[p + HW_COUNTER + slot] + events
    mask = s[p + HW_MASK]
    s[p + HW_COUNTER + slot] = value & mask
    if value > mask:
        s[p + HW_GLOBAL_STATUS] |= slot_bit(slot)
        if hw_interrupts(s, p, slot):
            if s[p + HW_LVTPC] & LVT_MASKED == U0:
                s[p + HW_PMI] = U1
                s[p + HW_LVTPC] |= s[p + HW_MASKED]
            if s[p + HW_DEBUGCTL] & DEBUGCTL_FREEZE_PERFMON != U0:
                hw_global(s, p, U0)


@kernel
def hw_account(s: Arena, p: np.uint64, g: np.uint64) -> None:
    """Add to the counters what a guest retired; the watch list is that of the last hw_watch()."""
    active = s[p + HW_ACTIVE]
    w = g + G_WATCH
    while active != U0:
        slot = lowest_bit(active)
        active &= active - U1
        if s[w + W_RETIRED] != U0:
            hw_count(s, p, slot, s[w + W_RETIRED])
        w += _WATCH


@kernel
def hw_reset(s: Arena, p: np.uint64) -> None:
    """Bring a CPU's counters to the state after reset, host perf ready to use them."""
    for i in range(U3):
        s[p + HW_KIND + FIXED_SLOT + U64(i)] = U64(FIXED_KIND[i])
    s[p + HW_LVTPC] = LVT_MASKED
    s[p + HW_MASKED] = LVT_MASKED
