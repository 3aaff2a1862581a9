"""What happens to a fleet between windows: vCPUs leave their hosts and come to others.

Called where every physical CPU concerned has come to the same virtual time. What is about a vCPU's thread and
what is about its PMU are apart: in a run over several processes they may be in two of them.
"""

import numpy as np

from vpmu.kernels.columns import (
    P_NOW,
    P_OUT_STATE,
    P_STATE,
    V_LEFT_AT,
    V_MASKED,
    V_MOVE,
    V_PCPU,
    V_PINNED,
    V_STATE,
    V_WAKE_AT,
)
from vpmu.kernels.engine import STATE_GUEST, STATE_OUT, leave_guest
from vpmu.kernels.host.move import MOVE_COMES, MOVE_GONE, MOVE_LEAVES, MOVE_NONE, comes, reset_pmu
from vpmu.kernels.host.scheduler import (
    VCPU_DONE,
    VCPU_HALTED,
    VCPU_READY,
    VCPU_RUNNING,
    dequeue,
    survey,
)
from vpmu.kernels.jit import Arena, entry


@entry
def send_away(s: Arena, v: np.uint64) -> None:
    """Ask a vCPU to leave its physical CPU; it has when V_MOVE is MOVE_GONE.

    One that runs is kicked out of its guest, one that halts wakes for it, one that waits for the
    reservation's mutex leaves once it has it, and one that is done goes at once. One that is just being
    switched out, to halt or because it is done, comes in once more for it. Who was asked already is not asked
    again.
    """
    p = s[v + V_PCPU]
    if s[v + V_MOVE] != MOVE_NONE and s[v + V_MOVE] < MOVE_COMES:
        return
    s[v + V_MOVE] = MOVE_LEAVES
    state = s[v + V_STATE]
    if state == VCPU_RUNNING:
        if s[p + P_STATE] == STATE_GUEST:
            leave_guest(s, p, v)
        elif s[p + P_STATE] == STATE_OUT and (
            s[p + P_OUT_STATE] == VCPU_HALTED or s[p + P_OUT_STATE] == VCPU_DONE
        ):
            s[p + P_OUT_STATE] = VCPU_READY
    elif state == VCPU_HALTED:
        s[v + V_WAKE_AT] = min(s[v + V_WAKE_AT], s[p + P_NOW])
        survey(s, p)
    elif state == VCPU_DONE:
        dequeue(s, p, v)
        s[v + V_MOVE] = MOVE_GONE
        s[v + V_LEFT_AT] = s[p + P_NOW]


@entry
def renew(s: Arena, v: np.uint64, masked: np.uint64) -> None:
    """Make what KVM keeps of a vCPU that is gone from its host ready for another: reset_pmu().

    Parameters
    ----------
    s : uint64[n]
        The arena.
    v : uint64
        Offset of the vCPU's row, V_PARAMETER filled in.
    masked : uint64
        What a PMI sets in its LVTPC there.
    """
    s[v + V_MASKED] = masked
    reset_pmu(s, v)


@entry
def take_in(s: Arena, p: np.uint64, v: np.uint64, at: np.uint64, pinned: np.uint64) -> None:
    """Put the thread of a vCPU that is gone from its host on a physical CPU of another: comes().

    Parameters
    ----------
    s : uint64[n]
        The arena.
    p, v : uint64
        Offsets of the physical CPU's and the vCPU's row.
    at : uint64, ns
        When it may go on.
    pinned : uint64
        1 if it stays on this CPU.
    """
    s[v + V_PINNED] = pinned
    comes(s, p, v, at)
    survey(s, p)
