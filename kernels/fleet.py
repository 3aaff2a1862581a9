"""What happens to a fleet between windows: vCPUs leave their hosts and come to others.

Called where every physical CPU concerned has come to the same virtual time.
"""

import numpy as np

from vpmu.kernels.columns import (
    P_NOW,
    P_STATE,
    V_LEFT_AT,
    V_MASKED,
    V_MOVE,
    V_PCPU,
    V_PINNED,
    V_STATE,
    V_WAKE_AT,
)
from vpmu.kernels.engine import STATE_GUEST, leave_guest
from vpmu.kernels.host.move import MOVE_GONE, MOVE_LEAVES, comes
from vpmu.kernels.host.scheduler import (
    VCPU_DONE,
    VCPU_HALTED,
    VCPU_RUNNING,
    dequeue,
    survey,
)
from vpmu.kernels.jit import Arena, entry


@entry
def send_away(s: Arena, v: np.uint64) -> None:
    """Ask a vCPU to leave its physical CPU; it has when V_MOVE is MOVE_GONE.

    One that runs is kicked out of its guest, one that halts wakes for it, one that waits for the
    reservation's mutex leaves once it has it, and one that is done goes at once.
    """
    p = s[v + V_PCPU]
    s[v + V_MOVE] = MOVE_LEAVES
    state = s[v + V_STATE]
    if state == VCPU_RUNNING:
        if s[p + P_STATE] == STATE_GUEST:
            leave_guest(s, p, v)
    elif state == VCPU_HALTED:
        s[v + V_WAKE_AT] = min(s[v + V_WAKE_AT], s[p + P_NOW])
        survey(s, p)
    elif state == VCPU_DONE:
        dequeue(s, p, v)
        s[v + V_MOVE] = MOVE_GONE
        s[v + V_LEFT_AT] = s[p + P_NOW]


@entry
def take_in(
    s: Arena, p: np.uint64, v: np.uint64, at: np.uint64, masked: np.uint64, pinned: np.uint64
) -> None:
    """Put a vCPU that is gone from its host on a physical CPU of another: comes().

    Parameters
    ----------
    s : uint64[n]
        The arena.
    p, v : uint64
        Offsets of the physical CPU's and the vCPU's row, V_PARAMETER filled in.
    at : uint64, ns
        When it may go on.
    masked, pinned : uint64
        What a PMI sets in its LVTPC there; 1 if it stays on this CPU.
    """
    s[v + V_MASKED] = masked
    s[v + V_PINNED] = pinned
    comes(s, p, v, at)
    survey(s, p)
