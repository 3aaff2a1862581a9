"""A VM's PMU event filter (KVM_SET_PMU_EVENT_FILTER): which of its guest's events may count.

A blocked event is no error: the guest's write succeeds, the counter stands still.
"""

import numpy as np

from vpmu.kernels.columns import F_COUNT, F_DENY, F_EVENTS, F_FIXED, F_MASKED
from vpmu.kernels.integers import U0, U1, U8
from vpmu.kernels.jit import U64, Arena, kernel

_EVENT = U64(0xFF)
_CODE = U64(0xFFFF)
_UMASK_MASK = U64(56)
_EXCLUDE = U64(1 << 55)


@kernel
def filter_allows(s: Arena, f: np.uint64, eventsel: np.uint64) -> bool:
    """Return whether a filter lets the event of a selector count (check_pmu_event_filter()).

    Parameters
    ----------
    s : uint64[n]
        The arena.
    f : uint64
        Offset of the filter's row; a plain entry is event | umask << 8, a masked one has the umask's mask in
        bits 63:56 and exclusion in bit 55.
    eventsel : uint64
        Only event and umask play a part; CMASK, INV and EDGE do not.
    """
    listed = False
    for i in range(s[f + F_COUNT]):
        entry = s[f + F_EVENTS + U64(i)]
        if s[f + F_MASKED] == U0:
            listed = listed or entry == eventsel & _CODE
        elif _matches(entry, eventsel):
            if entry & _EXCLUDE != U0:
                return s[f + F_DENY] != U0
            listed = True
    return listed == (s[f + F_DENY] == U0)


@kernel
def _matches(entry: np.uint64, eventsel: np.uint64) -> bool:
    """Return whether a masked entry is about the event of a selector."""
    umask = (eventsel >> U8) & _EVENT
    wanted = (entry >> U8) & _EVENT
    return (entry ^ eventsel) & _EVENT == U0 and umask & (entry >> _UMASK_MASK) == wanted


@kernel
def filter_allows_fixed(s: Arena, f: np.uint64, fixed: np.uint64) -> bool:
    """Return whether a filter lets a fixed counter count: the bitmap decides, whatever is listed."""
    return ((s[f + F_FIXED] >> fixed) & U1 != U0) == (s[f + F_DENY] == U0)
