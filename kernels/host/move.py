"""A vCPU leaves its host, for another one or for good: what KVM's migration interface carries, and no more.

As QEMU does it: the vCPU stops, its host events are released, KVM_GET_MSRS reads the PMU; on the other host
KVM_SET_MSRS writes it, counters first and the controls last (kvm_put_msrs()), and events are created there
anew. A PMI that was requested but not yet delivered is no part of that state (KVM_REQ_PMI): it is lost, and
counted. An NMI that is pending in the vCPU comes along (KVM_GET_VCPU_EVENTS), as does the LVTPC
(KVM_GET_LAPIC).
"""

import numpy as np

from vpmu.kernels.columns import (
    FIXED_SLOT,
    NO_SLOT,
    P_MIN_VRUNTIME,
    P_NOW,
    SLOTS,
    V_COUNTER,
    V_EVENTSEL,
    V_FIXED_CTRL,
    V_GLOBAL_CTRL,
    V_GLOBAL_STATUS,
    V_HAS_EVENT,
    V_HW_CTRL,
    V_HW_OWNED,
    V_HW_SLOT,
    V_LEFT_AT,
    V_LIFE,
    V_LOADED,
    V_LOST_PMIS,
    V_MASK,
    V_MIGRATED,
    V_MOVE,
    V_MSRS,
    V_NR_FIXED,
    V_NR_GP,
    V_OVF_CTRL,
    V_PMI,
    V_PRIVATE,
    V_REPROGRAM,
    V_STATE,
    V_STILL,
    V_STILL_AT,
    V_STILL_NS,
    V_USED,
    V_VRUNTIME,
    V_WAKE_AT,
)
from vpmu.kernels.designs.dispatch import destroy, get_msr, set_msr
from vpmu.kernels.host.clock import CAUSE_SAVE, spend
from vpmu.kernels.host.scheduler import VCPU_DONE, VCPU_HALTED, enqueue
from vpmu.kernels.integers import NEVER, U0, U1, U8
from vpmu.kernels.jit import U64, Arena, kernel
from vpmu.kernels.msr import EVENTSEL0, FIXED_CTR0, FIXED_CTR_CTRL, GLOBAL_CTRL, PMC0

MOVE_NONE = U64(0)
MOVE_LEAVES = U64(1)
"""It is to stop as soon as its host has served what it asked for."""
MOVE_STOPPED = U64(2)
"""Its events are being released."""
MOVE_GONE = U64(3)
"""It is in no run queue; V_MSRS holds its PMU."""
MOVE_COMES = U64(16)
"""From here on: which register is written next."""
MOVE_ON = U64(1 << 32)
"""Beside one of those: it is to leave again, once all are written."""

_SLOTS = U64(SLOTS)
_SELECTORS = U64(SLOTS)
_FIXED_CTRL_AT = U64(SLOTS + 8)
_GLOBAL_CTRL_AT = U64(SLOTS + 9)
_STATUS_AT = U64(SLOTS + 10)
_PRIVATE_WORDS = U64(16)


@kernel
def move_step(s: Arena, p: np.uint64, v: np.uint64) -> bool:
    """Take a vCPU that leaves or comes one step on, its requests to host perf served.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    p, v : uint64
        Offsets of the physical CPU's and the vCPU's row.

    Returns
    -------
    bool
        True if it is to be switched out for good.
    """
    now = s[p + P_NOW]
    stage = s[v + V_MOVE]
    if stage == MOVE_LEAVES:
        _, _, ns, _ = destroy(s, v, p, U0, U0, now)
        s[v + V_MOVE] = MOVE_STOPPED
    elif stage == MOVE_STOPPED:
        ns = _get_msrs(s, v, p, now)
        s[v + V_MOVE] = MOVE_GONE
        s[v + V_LEFT_AT] = now
    else:
        ns = _set_msr(s, v, p, (stage & ~MOVE_ON) - MOVE_COMES, now)
    spend(s, p, CAUSE_SAVE, ns)
    return s[v + V_MOVE] == MOVE_GONE


@kernel
def _get_msrs(s: Arena, v: np.uint64, p: np.uint64, now: np.uint64) -> np.uint64:
    """Read the PMU as KVM_GET_MSRS does, to V_MSRS; return the cost in ns."""
    cost = U0
    for i in range(s[v + V_NR_GP]):
        _, s[v + V_MSRS + U64(i)], ns, _ = get_msr(s, v, p, PMC0 + U64(i), U0, now)
        _, s[v + V_MSRS + _SELECTORS + U64(i)], more, _ = get_msr(s, v, p, EVENTSEL0 + U64(i), U0, now)
        cost += ns + more
    for i in range(s[v + V_NR_FIXED]):
        _, s[v + V_MSRS + FIXED_SLOT + U64(i)], ns, _ = get_msr(s, v, p, FIXED_CTR0 + U64(i), U0, now)
        cost += ns
    s[v + V_MSRS + _FIXED_CTRL_AT] = s[v + V_FIXED_CTRL]
    s[v + V_MSRS + _GLOBAL_CTRL_AT] = s[v + V_GLOBAL_CTRL]
    s[v + V_MSRS + _STATUS_AT] = s[v + V_GLOBAL_STATUS]
    s[v + V_LOST_PMIS] += s[v + V_PMI]
    for i in range(_SLOTS):
        if s[v + V_STILL_AT + U64(i)] != NEVER:
            s[v + V_STILL_NS + U64(i)] += now - s[v + V_STILL_AT + U64(i)]
            s[v + V_STILL_AT + U64(i)] = NEVER
    return cost


@kernel
def _set_msr(s: Arena, v: np.uint64, p: np.uint64, number: np.uint64, now: np.uint64) -> np.uint64:
    """Write one register as KVM_SET_MSRS does, or the counters at once; return the cost in ns.

    The host's write of a counter takes all bits, and that of GLOBAL_STATUS is no acknowledgement.
    """
    selectors = s[v + V_NR_GP]
    s[v + V_MOVE] += U1
    if number == U0:
        for i in range(_SLOTS):
            s[v + V_COUNTER + U64(i)] = s[v + V_MSRS + U64(i)] & s[v + V_MASK]
        s[v + V_GLOBAL_STATUS] = s[v + V_MSRS + _STATUS_AT]
        return U0
    if number <= selectors:
        which = number - U1
        _, _, ns, _ = set_msr(s, v, p, EVENTSEL0 + which, s[v + V_MSRS + _SELECTORS + which], now)
    elif number == selectors + U1:
        _, _, ns, _ = set_msr(s, v, p, FIXED_CTR_CTRL, s[v + V_MSRS + _FIXED_CTRL_AT], now)
    else:
        _, _, ns, _ = set_msr(s, v, p, GLOBAL_CTRL, s[v + V_MSRS + _GLOBAL_CTRL_AT], now)
        s[v + V_MOVE] = MOVE_NONE if s[v + V_MOVE] & MOVE_ON == U0 else MOVE_LEAVES
    return ns


@kernel
def reset_pmu(s: Arena, v: np.uint64) -> None:
    """Make the PMU of a vCPU that has left its host what it is after a reset; V_MSRS holds what it was."""
    for i in range(U8):
        s[v + V_EVENTSEL + U64(i)] = U0
    for i in range(_SLOTS):
        s[v + V_COUNTER + U64(i)] = U0
        s[v + V_HW_SLOT + U64(i)] = NO_SLOT
        s[v + V_LIFE + U64(i)] = U0
    for i in range(_PRIVATE_WORDS):
        s[v + V_PRIVATE + U64(i)] = U0
    s[v + V_FIXED_CTRL], s[v + V_GLOBAL_CTRL], s[v + V_GLOBAL_STATUS] = U0, U0, U0
    s[v + V_OVF_CTRL], s[v + V_HAS_EVENT], s[v + V_REPROGRAM], s[v + V_PMI] = U0, U0, U0, U0
    s[v + V_USED], s[v + V_HW_CTRL], s[v + V_HW_OWNED], s[v + V_LOADED], s[v + V_STILL] = U0, U0, U0, U0, U0
    s[v + V_MIGRATED] += U1


@kernel
def comes(s: Arena, p: np.uint64, v: np.uint64, at: np.uint64) -> None:
    """Put a vCPU that has left another host on a physical CPU's run queue.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    p, v : uint64
        Offsets of the physical CPU's and the vCPU's row, of which only its thread is touched.
    at : uint64, ns
        When it may go on.
    """
    s[v + V_VRUNTIME] = s[p + P_MIN_VRUNTIME]
    if s[v + V_STATE] == VCPU_DONE:
        s[v + V_MOVE] = MOVE_NONE
    else:
        s[v + V_MOVE] = MOVE_COMES
        s[v + V_STATE] = VCPU_HALTED
        s[v + V_WAKE_AT] = at
    enqueue(s, p, v)
