"""The host-wide reservation of the PMU hardware and its mutex (Linux 5.0 x86_reserve_hardware()).

Every task and every CPU with at least one hardware event holds one reference. The first reference of the host
pays for reserving the counters and the debug-store buffers of all possible CPUs, the last for undoing that;
both under one mutex, which whoever needs the hardware meanwhile waits for, asleep. The mutex is free when the
work is done: interrupts on the holder's CPU delay the holder alone.
"""

import numpy as np

from vpmu.kernels.columns import (
    H_HASH,
    H_HOLDERS,
    H_ID,
    H_INDEX,
    H_MUTEX_FREE_AT,
    H_RELEASES,
    H_RESERVES,
    H_WAIT_NS,
    H_WAITS,
)
from vpmu.kernels.costs import COST_PMU_RELEASE, COST_PMU_RESERVE
from vpmu.kernels.host.clock import cost
from vpmu.kernels.integers import U0, U1
from vpmu.kernels.jit import Arena, kernel
from vpmu.kernels.log import mix


@kernel
def reserve(s: Arena, h: np.uint64, actor: np.uint64, now: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Take a reference on the hardware.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    h : uint64
        Offset of the host row.
    actor : uint64
        Who asks, for the hash.
    now : uint64, ns
        When; calls come in the order of time.

    Returns
    -------
    (start, ns) : uint64 ns
        When the mutex is had (later than ``now``: the caller sleeps until then), and how long the caller then
        works.
    """
    start = max(now, s[h + H_MUTEX_FREE_AT])
    if start > now:
        s[h + H_WAITS] += U1
        s[h + H_WAIT_NS] += start - now
    work = U0
    if s[h + H_HOLDERS] == U0:
        work = cost(s, s[h + H_ID], h + H_INDEX, COST_PMU_RESERVE)
        s[h + H_MUTEX_FREE_AT] = start + work
        s[h + H_RESERVES] += U1
    s[h + H_HOLDERS] += U1
    s[h + H_HASH] = mix(s[h + H_HASH], start, actor, work)
    return start, work


@kernel
def unreserve(s: Arena, h: np.uint64, actor: np.uint64, now: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Give a reference back; parameters and result as for reserve()."""
    s[h + H_HOLDERS] -= U1
    start = now
    work = U0
    if s[h + H_HOLDERS] == U0:
        start = max(now, s[h + H_MUTEX_FREE_AT])
        work = cost(s, s[h + H_ID], h + H_INDEX, COST_PMU_RELEASE)
        s[h + H_MUTEX_FREE_AT] = start + work
        s[h + H_RELEASES] += U1
    s[h + H_HASH] = mix(s[h + H_HASH], start, actor, work)
    return start, work
