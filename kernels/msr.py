"""MSR numbers, register fields and the layout of the PMU's registers (Intel SDM 18.2 and 19)."""

import numpy as np

from vpmu.kernels.jit import U64, inlined

PMC0 = U64(0xC1)
EVENTSEL0 = U64(0x186)
FULL_PMC0 = U64(0x4C1)
DEBUGCTL = U64(0x1D9)
FIXED_CTR0 = U64(0x309)
PERF_CAPABILITIES = U64(0x345)
FIXED_CTR_CTRL = U64(0x38D)
GLOBAL_STATUS = U64(0x38E)
GLOBAL_CTRL = U64(0x38F)
GLOBAL_OVF_CTRL = U64(0x390)
P6_PMC1 = U64(0xC2)
P6_EVENTSEL1 = U64(0x187)
"""The last of the P6's two counters and selectors, which KVM has even if the guest has no such counter."""
LVTPC = U64(0x834)
"""x2APIC register of the performance counter's local vector table entry."""

RDPMC_FIXED = U64(0x40000000)
CAPABILITIES_FULL_WIDTH = U64(1 << 13)
"""PERF_CAPABILITIES: the counters can be written in full by FULL_PMC0 and on."""

EVENTSEL_EVENT = U64(0xFFFF)
EVENTSEL_USR = U64(1 << 16)
EVENTSEL_OS = U64(1 << 17)
EVENTSEL_EDGE = U64(1 << 18)
EVENTSEL_INT = U64(1 << 20)
EVENTSEL_ANY = U64(1 << 21)
EVENTSEL_EN = U64(1 << 22)
EVENTSEL_INV = U64(1 << 23)
EVENTSEL_CMASK = U64(0xFF << 24)
EVENTSEL_RESERVED_V2 = U64(0xFFFFFFFF00200000)
"""Reserved bits that KVM 5.0 rejects: AnyThread and everything above CMASK."""
EVENTSEL_RESERVED_V3 = U64(0xFFFFFFFC00000000)

FIXED_RESERVED_V2 = U64(0xFFFFFFFFFFFFF444)
FIXED_RESERVED_V3 = U64(0xFFFFFFFFFFFFF000)
FIXED_OS = U64(1)
FIXED_USR = U64(2)
FIXED_PMI = U64(8)

STATUS_TOPA_PMI = U64(1 << 55)
STATUS_UNCORE_OVERFLOW = U64(1 << 61)
STATUS_COND_CHANGED = U64(1 << 63)
STATUS_DS_OVERFLOW = U64(1 << 62)

LVT_NMI = U64(0x400)
LVT_MASKED = U64(1 << 16)
LVT_STATUS = U64(1 << 12)
"""Delivery status: read-only."""
LVT_RESERVED = U64(0xFFFFFFFFFFFEE800)
"""All but vector, delivery mode, delivery status and mask (SDM 10.5.1)."""
DEBUGCTL_FREEZE_PERFMON = U64(1 << 12)
DEBUGCTL_RESERVED = U64(0xFFFFFFFFFFFF003C)

_ONE = U64(1)
_TWO = U64(2)
_FIRST_BITS = U64(0x111)


@inlined
def changed_fields(before: np.uint64, after: np.uint64) -> np.uint64:
    """Return the first bit of every 4-bit field of FIXED_CTR_CTRL in which two words differ."""
    changed = before ^ after
    changed |= changed >> _ONE
    return (changed | changed >> _TWO) & _FIRST_BITS
