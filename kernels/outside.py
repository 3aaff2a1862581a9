"""How a physical CPU goes on with the answer of a guest that decides outside the kernels: an entry."""

import numpy as np

from vpmu.kernels.columns import (
    G_OUTSIDE,
    O_COMPLETE,
    O_PMI,
    P_ASK,
    P_CURRENT,
    P_STOP,
    V_GUEST,
)
from vpmu.kernels.engine import STOP_NONE, ran
from vpmu.kernels.guest.outside import outside_accesses, outside_halts, outside_ran
from vpmu.kernels.guest.step import GUEST_ACCESS
from vpmu.kernels.integers import U0
from vpmu.kernels.jit import Arena, entry


@entry
def outside_answered(
    s: Arena,
    p: np.uint64,
    retired: Arena,
    end: np.uint64,
    reason: np.uint64,
    operation: np.uint64,
    register: np.uint64,
    value: np.uint64,
    level: np.uint64,
    timer_at: np.uint64,
) -> None:
    """Go on after a STOP_GUEST with what the guest retired up to ``end``, and what it wants.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    p : uint64
        Offset of the physical CPU's row.
    retired : uint64[2 * TOTALS], events
        By kind, in kernel mode, then in user mode.
    end : uint64, ns
        From the physical CPU's clock to the limit that it was given.
    reason : uint64
        One of the GUEST_ constants.
    operation, register, value, level : uint64
        With GUEST_ACCESS: the access, and 1 in kernel mode or 2 in user mode.
    timer_at : uint64, ns
        With GUEST_HALT: when it wakes by itself.
    """
    v = s[p + P_CURRENT]
    g = s[v + V_GUEST]
    s[s[g + G_OUTSIDE] + O_COMPLETE] = U0
    s[s[g + G_OUTSIDE] + O_PMI] = U0
    outside_ran(s, g, retired)
    outside_halts(s, g, timer_at)
    if reason == GUEST_ACCESS:
        outside_accesses(s, g, operation, register, value, level, end)
    ran(s, p, v, g, end, reason)
    s[p + P_ASK] = U0
    s[p + P_STOP] = STOP_NONE
