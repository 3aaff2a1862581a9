"""The kernels of a run over several processes: each side of every call that leaves a physical CPU as a stop.

What an actor does when it is asked, and how a physical CPU goes on with the answer. The rows of either side
may live in different processes; what the other side has to know is in the message.
"""

import numpy as np

from vpmu.kernels.advance import balance
from vpmu.kernels.columns import (
    P_ASK,
    P_CALL,
    P_CALL_STAGE,
    P_CALL_VCPU,
    P_CURRENT,
    P_NR_READY,
    P_STOP,
    TO_STATE,
    V_GUEST,
)
from vpmu.kernels.engine import ASK_RESUME, STAGE_SERVED, STOP_NONE, ran, reservation_done, resumed
from vpmu.kernels.guest.step import guest_go, guest_resume
from vpmu.kernels.host.perf import CALL_TOOL_CLOSE, CALL_TOOL_OPEN, perf_call
from vpmu.kernels.host.reservation import reserve, unreserve
from vpmu.kernels.integers import U0, U1, U2
from vpmu.kernels.jit import Arena, entry


@entry
def serve_call(s: Arena, p: np.uint64) -> None:
    """Answer a physical CPU's call as host perf: from and to the words that travel."""
    perf_call(s, p)


@entry
def call_served(s: Arena, p: np.uint64) -> None:
    """Go on after a STOP_PERF with host perf's answer in the row."""
    call = s[p + P_CALL]
    if call == CALL_TOOL_OPEN:
        s[s[p + P_CALL_VCPU] + TO_STATE] = U1
    elif call == CALL_TOOL_CLOSE:
        s[s[p + P_CALL_VCPU] + TO_STATE] = U2
    s[p + P_CALL_STAGE] = STAGE_SERVED
    s[p + P_STOP] = STOP_NONE


@entry
def resume_guest(
    s: Arena,
    log: Arena,
    g: np.uint64,
    now: np.uint64,
    complete: np.uint64,
    outcome: np.uint64,
    value: np.uint64,
    nmi: np.uint64,
) -> np.uint64:
    """Enter a guest as its vCPU: guest_resume(), its flags as words."""
    return guest_resume(s, log, g, now, complete != U0, outcome, value, nmi != U0)


@entry
def let_guest_go(
    s: Arena, log: Arena, g: np.uint64, now: np.uint64, limit: np.uint64
) -> tuple[np.uint64, np.uint64]:
    """Let a guest run as its vCPU: guest_go()."""
    return guest_go(s, log, g, now, limit)


@entry
def guest_answered(s: Arena, p: np.uint64, end: np.uint64, reason: np.uint64, has_run: np.uint64) -> None:
    """Go on after a STOP_GUEST with what the guest wants since ``end``.

    If it has run (``has_run`` is 1), what it retired is in its watch list.
    """
    v = s[p + P_CURRENT]
    if s[p + P_ASK] == ASK_RESUME:
        resumed(s, v, reason)
    if has_run != U0:
        ran(s, p, v, s[v + V_GUEST], end, reason)
    s[p + P_ASK] = U0
    s[p + P_STOP] = STOP_NONE


@entry
def take_reservation(s: Arena, h: np.uint64, actor: np.uint64, now: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Serve a STOP_RESERVE as host perf: reserve()."""
    return reserve(s, h, actor, now)


@entry
def give_reservation(s: Arena, h: np.uint64, actor: np.uint64, now: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Serve a STOP_UNRESERVE as host perf: unreserve()."""
    return unreserve(s, h, actor, now)


@entry
def reservation_served(s: Arena, p: np.uint64, start: np.uint64, work_ns: np.uint64) -> None:
    """Go on after a STOP_RESERVE or STOP_UNRESERVE: reservation_done()."""
    reservation_done(s, p, start, work_ns)


@entry
def runnable_vcpus(s: Arena, p: np.uint64) -> np.uint64:
    """Return a physical CPU's load as balance() sees it."""
    return s[p + P_NR_READY] + (U1 if s[p + P_CURRENT] != U0 else U0)


@entry
def balance_host(s: Arena, h: np.uint64) -> None:
    """Balance a host whose physical CPUs' rows and run queues are all here: balance()."""
    balance(s, h)
