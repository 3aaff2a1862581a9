"""The optimized vPMU, except that an event once created is kept until the guest ends."""

import numpy as np

from vpmu.kernels.columns import V_HAS_EVENT, V_USED
from vpmu.kernels.designs.optimized import (
    deliver_pmi,
    destroy,
    get_msr,
    perf_arguments,
    perf_done,
    rdpmc,
    sched_out,
    set_msr,
    trigger_event,
    vm_entry,
    vm_exit,
)
from vpmu.kernels.designs.optimized import sched_in as counting_sched_in
from vpmu.kernels.jit import Arena, kernel

DESCRIPTION = "optimized, but events are never given up while the guest lives"
INTERCEPTS = True
PARAMETERS = {"life": 1}

Result = tuple[np.uint64, np.uint64, np.uint64, np.uint64]

__all__ = [
    "deliver_pmi",
    "destroy",
    "get_msr",
    "perf_arguments",
    "perf_done",
    "rdpmc",
    "sched_in",
    "sched_out",
    "set_msr",
    "trigger_event",
    "vm_entry",
    "vm_exit",
]


@kernel
def sched_in(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Restore the counters; every event counts as used, so that none outlives its life."""
    s[v + V_USED] = s[v + V_HAS_EVENT]
    return counting_sched_in(s, v, p, index, value, now)
