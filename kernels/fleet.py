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
from vpmu.kernels.host.move import MOVE_COMES, MOVE_GONE, MOVE_LEAVES, MOVE_NONE, MOVE_ON, comes, reset_pmu
from vpmu.kernels.host.scheduler import (
    VCPU_DONE,
    VCPU_GONE,
    VCPU_HALTED,
    VCPU_READY,
    VCPU_RUNNING,
    dequeue,
    survey,
)
from vpmu.kernels.jit import Arena, entry, kernel


@entry
def send_away(s: Arena, v: np.uint64) -> None:
    """Ask a vCPU to leave its physical CPU; it has when V_MOVE is MOVE_GONE.

    One that runs is kicked out of its guest, one that halts wakes for it, one that waits for the
    reservation's mutex leaves once it has it, and one that is done goes at once, as does one that has come
    but not run yet. One that is just being switched out, to halt or because it is done, comes in once more
    for it. One whose PMU is being restored leaves after that. Who was asked already is not asked again.
    """
    p = s[v + V_PCPU]
    stage = s[v + V_MOVE]
    state = s[v + V_STATE]
    if stage > MOVE_COMES or (stage == MOVE_COMES and state == VCPU_RUNNING):
        s[v + V_MOVE] |= MOVE_ON
    elif stage == MOVE_COMES:
        s[v + V_STATE] = VCPU_GONE
        _go(s, p, v)
    elif stage == MOVE_NONE:
        s[v + V_MOVE] = MOVE_LEAVES
        if state == VCPU_RUNNING:
            _call_out(s, p, v)
        elif state == VCPU_HALTED:
            s[v + V_WAKE_AT] = min(s[v + V_WAKE_AT], s[p + P_NOW])
            survey(s, p)
        elif state == VCPU_DONE:
            _go(s, p, v)


@kernel
def _call_out(s: Arena, p: np.uint64, v: np.uint64) -> None:
    """Let a vCPU that holds its physical CPU see that it is to leave."""
    out_state = s[p + P_OUT_STATE]
    if s[p + P_STATE] == STATE_GUEST:
        leave_guest(s, p, v)
    elif s[p + P_STATE] == STATE_OUT and (out_state == VCPU_HALTED or out_state == VCPU_DONE):
        s[p + P_OUT_STATE] = VCPU_READY


@kernel
def _go(s: Arena, p: np.uint64, v: np.uint64) -> None:
    """Take a vCPU that waits out of its run queue: it is gone."""
    dequeue(s, p, v)
    survey(s, p)
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
