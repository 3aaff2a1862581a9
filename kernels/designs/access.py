"""A guest's access under one design, in one piece: exit, the design's work, entry.

The engine carries out most accesses this way, without a look at anything else in between.
"""

from collections.abc import Callable

import numpy as np

from vpmu.kernels.columns import (
    G_LEVEL,
    G_OPERATION,
    G_REGISTER,
    G_VALUE,
    HW_HOST_SLOTS,
    HW_PMI,
    P_CAUSES,
    P_EXITS,
    P_NOW,
    P_RESCHED,
    P_TICKED,
    V_HOST,
    V_OPERATION,
    V_REGISTER,
    V_RULES,
)
from vpmu.kernels.costs import COST_MSR_INTERCEPT
from vpmu.kernels.designs.common import RULE_EMULATED, STOP_NONE, vcpu_cost
from vpmu.kernels.hardware import OK
from vpmu.kernels.host.clock import CAUSE_ACCESSES, CAUSE_EXITS, pass_time
from vpmu.kernels.integers import U0, U1
from vpmu.kernels.jit import U64, Arena, kernel
from vpmu.kernels.perf.interrupt import ACCESS_RDPMC, ACCESS_READ, ACCESS_WRITE, RETIRES_INSTRUCTION

OUT = U64(0)
"""After an access: the guest stays out, its host has something to do."""
ON = U64(1)
"""The guest goes on."""
ON_WITH_NMI = U64(2)
"""The guest goes on, with an NMI."""

Result = tuple[np.uint64, np.uint64, np.uint64, np.uint64]
DesignKernel = Callable[[Arena, np.uint64, np.uint64, np.uint64, np.uint64, np.uint64], Result]
AccessKernel = Callable[[Arena, np.uint64, np.uint64, np.uint64], Result]


def access_kernel(
    set_msr: DesignKernel,
    get_msr: DesignKernel,
    rdpmc: DesignKernel,
    trigger_event: DesignKernel,
    vm_entry: DesignKernel,
    vm_exit: DesignKernel,
    *,
    intercepts: bool,
) -> AccessKernel:
    """Return the kernel that carries out a guest's access under one design.

    Parameters
    ----------
    set_msr, get_msr, rdpmc, trigger_event, vm_entry, vm_exit : kernel
        The design's.
    intercepts : bool
        Whether an access leaves the guest: the design's INTERCEPTS.
    """

    @kernel
    def access(s: Arena, p: np.uint64, v: np.uint64, g: np.uint64) -> Result:
        """Carry out the guest's access; return (outcome, value, now, then), P_NOW and P_STATE not set."""
        operation = s[g + G_OPERATION]
        register = s[g + G_REGISTER]
        counting = s[p + HW_HOST_SLOTS]
        now = s[p + P_NOW]
        exits_ns = U0
        if intercepts:
            _, _, exits_ns, _ = vm_exit(s, v, p, U0, U0, now)
            s[p + P_EXITS] += U1
            now = pass_time(s, p, now, exits_ns, counting)
        if operation == ACCESS_WRITE:
            outcome, value, ns, stop = set_msr(s, v, p, register, s[g + G_VALUE], now)
        elif operation == ACCESS_READ:
            outcome, value, ns, stop = get_msr(s, v, p, register, U0, now)
        elif operation == ACCESS_RDPMC:
            outcome, value, ns, stop = rdpmc(s, v, p, register, U0, now)
        else:
            outcome, value, ns, stop = OK, U0, vcpu_cost(s, v, COST_MSR_INTERCEPT), STOP_NONE
        if intercepts and s[v + V_RULES] & RULE_EMULATED != U0 and outcome | s[v + V_HOST] == OK:
            retires = register if operation > ACCESS_RDPMC else RETIRES_INSTRUCTION
            _, _, more, later = trigger_event(s, v, p, retires, s[g + G_LEVEL], now)
            ns += more
            stop |= later
        s[p + P_CAUSES + CAUSE_ACCESSES] += ns
        now = pass_time(s, p, now, ns, counting)
        then = ON
        if intercepts:
            if (stop | s[p + HW_PMI] | s[p + P_TICKED] | s[p + P_RESCHED]) != U0:
                s[v + V_OPERATION] = operation
                s[v + V_REGISTER] = register
                then = OUT
            else:
                _, inject, ns, _ = vm_entry(s, v, p, U0, U0, now)
                exits_ns += ns
                now = pass_time(s, p, now, ns, counting)
                then += inject
            s[p + P_CAUSES + CAUSE_EXITS] += exits_ns
        return outcome, value, now, then

    return access
