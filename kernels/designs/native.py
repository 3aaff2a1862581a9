"""No virtualization: the program runs on the host, its perf writes the hardware's registers (the reference).

Operating systems that share a physical CPU are switched with their counters.
"""

import numpy as np

from vpmu.kernels.columns import (
    HW_COUNTER,
    HW_EVENTSEL,
    HW_FIXED_CTRL,
    HW_GLOBAL_CTRL,
    HW_GLOBAL_STATUS,
    HW_LVTPC,
    SLOTS,
    V_COUNTER,
    V_EVENTSEL,
    V_FIXED_CTRL,
    V_GLOBAL_CTRL,
    V_GLOBAL_STATUS,
    V_LVTPC,
    V_PMI,
)
from vpmu.kernels.costs import COST_HW_LVT, COST_HW_RDMSR, COST_HW_RDPMC, COST_HW_WRMSR, COST_NMI
from vpmu.kernels.designs.common import STOP_NONE, vcpu_cost
from vpmu.kernels.hardware import OK, hw_eventsel, hw_fixed_ctrl, hw_global, hw_rdpmc, hw_read, hw_write
from vpmu.kernels.integers import U0, U1, U8
from vpmu.kernels.jit import U64, Arena, kernel
from vpmu.kernels.msr import LVT_MASKED, LVTPC

DESCRIPTION = "the same program on the host, without a VM"
INTERCEPTS = False

_SLOTS = U64(SLOTS)

Result = tuple[np.uint64, np.uint64, np.uint64, np.uint64]


@kernel
def set_msr(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Execute WRMSR on the hardware.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    v, p : uint64
        Offsets of the vCPU's and the physical CPU's row.
    index, value : uint64
        MSR number, and the word written.
    now : uint64, ns

    Returns
    -------
    (outcome, value, cost_ns, stop) : uint64
        OK or GP; 0; the instruction's time; nothing to wait for.
    """
    ns = vcpu_cost(s, v, COST_HW_LVT if index == LVTPC else COST_HW_WRMSR)
    return hw_write(s, p, index, value), U0, ns, STOP_NONE


@kernel
def get_msr(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Execute RDMSR on the hardware; parameters and result as for set_msr()."""
    outcome, word = hw_read(s, p, index)
    return outcome, word, vcpu_cost(s, v, COST_HW_RDMSR), STOP_NONE


@kernel
def rdpmc(s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64) -> Result:
    """Execute RDPMC on the hardware; parameters and result as for set_msr()."""
    outcome, word = hw_rdpmc(s, p, index)
    return outcome, word, vcpu_cost(s, v, COST_HW_RDPMC), STOP_NONE


@kernel
def deliver_pmi(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Interrupt the program with the counters' NMI."""
    s[v + V_PMI] = U1
    return OK, U0, U0, STOP_NONE


@kernel
def trigger_event(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Nothing: there is no hypervisor that emulates an instruction, the hardware counts its own."""
    return OK, U0, U0, STOP_NONE


@kernel
def perf_arguments(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Nothing: there are no requests."""
    return OK, U0, U0, STOP_NONE


@kernel
def perf_done(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Nothing: there are no requests."""
    return OK, U0, U0, STOP_NONE


@kernel
def sched_in(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Load this system's counters."""
    for i in range(_SLOTS):
        s[p + HW_COUNTER + U64(i)] = s[v + V_COUNTER + U64(i)]
    for i in range(U8):
        hw_eventsel(s, p, U64(i), s[v + V_EVENTSEL + U64(i)])
    hw_fixed_ctrl(s, p, s[v + V_FIXED_CTRL])
    s[p + HW_GLOBAL_STATUS] = s[v + V_GLOBAL_STATUS]
    s[p + HW_LVTPC] = s[v + V_LVTPC]
    return OK, U0, U0, STOP_NONE


@kernel
def sched_out(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Keep this system's counters while another one runs."""
    for i in range(_SLOTS):
        s[v + V_COUNTER + U64(i)] = s[p + HW_COUNTER + U64(i)]
        s[p + HW_COUNTER + U64(i)] = U0
    for i in range(U8):
        s[v + V_EVENTSEL + U64(i)] = s[p + HW_EVENTSEL + U64(i)]
        hw_eventsel(s, p, U64(i), U0)
    s[v + V_FIXED_CTRL] = s[p + HW_FIXED_CTRL]
    hw_fixed_ctrl(s, p, U0)
    s[v + V_GLOBAL_STATUS] = s[p + HW_GLOBAL_STATUS]
    s[p + HW_GLOBAL_STATUS] = U0
    s[v + V_LVTPC] = s[p + HW_LVTPC]
    s[p + HW_LVTPC] = LVT_MASKED
    return OK, U0, U0, STOP_NONE


@kernel
def vm_entry(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Go on with the program: its GLOBAL_CTRL is loaded; the value is 1 if the NMI is delivered."""
    hw_global(s, p, s[v + V_GLOBAL_CTRL])
    if s[v + V_PMI] == U0:
        return OK, U0, U0, STOP_NONE
    s[v + V_PMI] = U0
    return OK, U1, vcpu_cost(s, v, COST_NMI), STOP_NONE


@kernel
def vm_exit(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Interrupt the program: what the host does meanwhile is not counted as the program's."""
    s[v + V_GLOBAL_CTRL] = s[p + HW_GLOBAL_CTRL]
    hw_global(s, p, U0)
    return OK, U0, U0, STOP_NONE


@kernel
def destroy(
    s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64
) -> Result:
    """Take the system's counters off the hardware."""
    return sched_out(s, v, p, index, value, now)
