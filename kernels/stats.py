"""Latency of guest actions: calls, total, maximum and a histogram, one set for each process and action.

A histogram has sixteen buckets an octave; a bucket keeps count and sum, so that a quantile is the mean of its
bucket: exact where all its values are equal, and within a thirty-second otherwise. Sums make results of
processes add up.
"""

import numpy as np

from vpmu.kernels.columns import R_STATS
from vpmu.kernels.integers import U1, U4, bit_length
from vpmu.kernels.jit import U64, Arena, kernel

ACTION_NAMES = (
    "enable global_ctrl",
    "disable global_ctrl",
    "rd/wr fixed_ctrl",
    "rd/wr eventsel",
    "rdpmc",
    "rd/wr counter",
    "global_status, ovf_ctrl",
    "lvtpc",
    "x86_pmu.handle_irq",
    "sched_in",
    "sched_out",
)
ACTION_ENABLE = U64(0)
ACTION_DISABLE = U64(1)
ACTION_FIXED_CTRL = U64(2)
ACTION_EVENTSEL = U64(3)
ACTION_RDPMC = U64(4)
ACTION_COUNTER = U64(5)
ACTION_STATUS = U64(6)
ACTION_LVTPC = U64(7)
ACTION_HANDLE_IRQ = U64(8)
ACTION_SCHED_IN = U64(9)
ACTION_SCHED_OUT = U64(10)

BUCKETS = 1024
A_MAX = U64(0)
A_BUCKETS = U64(1)
"""Pairs of count and sum: calls and total are the sums over them."""
ACTION_COLUMNS = 1 + 2 * BUCKETS

_STRIDE = U64(ACTION_COLUMNS)
_SUB = U64(15)


@kernel
def bucket_of(ns: np.uint64) -> np.uint64:
    """Return the bucket of a duration: its bit length, and the four bits after its first."""
    length = bit_length(ns)
    if length <= U4:
        return ns
    return (length << U4) | ((ns >> (length - U1 - U4)) & _SUB)


@kernel
def record_action(s: Arena, action: np.uint64, ns: np.uint64) -> None:
    """Count one guest action that took ``ns`` nanoseconds."""
    at = s[R_STATS] + action * _STRIDE
    if ns > s[at + A_MAX]:
        s[at + A_MAX] = ns
    bucket = at + A_BUCKETS + (bucket_of(ns) << U1)
    s[bucket] += U1
    s[bucket + U1] += ns
