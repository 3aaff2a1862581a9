"""One call advances every physical CPU of a process to the end of a window, host by host.

The physical CPUs of a host run side by side. Where one needs the host-wide reservation it stops, and is
served in the order of (time, CPU) once no other CPU of the host can still ask earlier; so neither the
window's length nor the order of CPUs changes a byte.
"""

import numpy as np

from vpmu.kernels.columns import (
    H_BALANCE_AT,
    H_BALANCE_NS,
    H_FLOATING,
    H_MIGRATIONS,
    H_NR_PCPUS,
    H_PCPUS,
    H_REMOTE,
    HOST_COLUMNS,
    P_ID,
    P_MIN_VRUNTIME,
    P_NOW,
    P_QUEUE_HEAD,
    P_STOP,
    P_STOP_AT,
    PCPU_COLUMNS,
    R_HOSTS,
    R_NR_HOSTS,
    R_STEPS,
    V_MIGRATIONS,
    V_NEXT,
    V_PINNED,
    V_STATE,
    V_VRUNTIME,
)
from vpmu.kernels.costs import COST_VCPU_MIGRATE
from vpmu.kernels.engine import (
    STOP_BUDGET,
    STOP_GUEST,
    STOP_LOG,
    STOP_NONE,
    STOP_RESERVE,
    STOP_UNRESERVE,
    STOP_WINDOW,
    reservation_done,
    run_pcpu,
)
from vpmu.kernels.host.clock import CAUSE_SWITCH, pcpu_cost, spend
from vpmu.kernels.host.reservation import reserve, unreserve
from vpmu.kernels.host.scheduler import VCPU_READY, busiest_and_idlest, dequeue, enqueue, survey
from vpmu.kernels.integers import NEVER, U0, U1
from vpmu.kernels.jit import U64, Arena, entry, kernel

_PCPU = U64(PCPU_COLUMNS)
_HOST = U64(HOST_COLUMNS)


@kernel
def _run_all(s: Arena, log: Arena, h: np.uint64, until: np.uint64) -> np.uint64:
    """Run a host's free CPUs to the window's end or a stop; STOP_WINDOW when all are there."""
    p = s[h + H_PCPUS]
    for _ in range(s[h + H_NR_PCPUS]):
        if s[p + P_STOP] == STOP_NONE and s[p + P_NOW] < until:
            stop = run_pcpu(s, log, p, until)
            if stop == STOP_LOG or stop == STOP_BUDGET:
                return stop
        p += _PCPU
    return STOP_WINDOW


@kernel
def first_request(s: Arena, h: np.uint64, until: np.uint64) -> np.uint64:
    """Return the physical CPU whose request for the reservation comes next, 0 if none can be served."""
    best = U0
    at = until
    p = s[h + H_PCPUS]
    for _ in range(s[h + H_NR_PCPUS]):
        stop = s[p + P_STOP]
        if stop != STOP_NONE and s[p + P_STOP_AT] < at:
            at = s[p + P_STOP_AT]
            best = p if stop == STOP_RESERVE or stop == STOP_UNRESERVE else U0
        p += _PCPU
    return best


@kernel
def serve_request(s: Arena, h: np.uint64, p: np.uint64) -> None:
    """Serve a physical CPU's request for the host's hardware reservation, or to give it up."""
    now = s[p + P_STOP_AT]
    if s[p + P_STOP] == STOP_RESERVE:
        start, work = reserve(s, h, s[p + P_ID], now)
    else:
        start, work = unreserve(s, h, s[p + P_ID], now)
    reservation_done(s, p, start, work)


@kernel
def _advance_window(s: Arena, log: Arena, h: np.uint64, until: np.uint64) -> np.uint64:
    """Run a host to the window's end, requests for the reservation included."""
    stop = _run_all(s, log, h, until)
    while stop == STOP_WINDOW:
        p = first_request(s, h, until)
        if p == U0:
            return stop
        serve_request(s, h, p)
        if s[p + P_NOW] < until:
            after = run_pcpu(s, log, p, until)
            if after == STOP_LOG or after == STOP_BUDGET:
                return after
    return stop


@kernel
def _waiting_vcpu(s: Arena, p: np.uint64) -> np.uint64:
    """Return a vCPU that waits for this physical CPU and may move, 0 if there is none."""
    v = s[p + P_QUEUE_HEAD]
    while v != U0:
        if s[v + V_STATE] == VCPU_READY and s[v + V_PINNED] == U0:
            return v
        v = s[v + V_NEXT]
    return U0


@kernel
def balance(s: Arena, h: np.uint64) -> None:
    """Move waiting vCPUs from busy to idle physical CPUs of a host until none has two more than another."""
    first = s[h + H_PCPUS]
    for _ in range(s[h + H_NR_PCPUS]):
        busiest, idlest = busiest_and_idlest(s, first, s[h + H_NR_PCPUS], _PCPU)
        if busiest == idlest:
            return
        v = _waiting_vcpu(s, busiest)
        if v == U0:
            return
        dequeue(s, busiest, v)
        # What a vCPU has run is relative to its run queue.
        lag = s[v + V_VRUNTIME] - s[busiest + P_MIN_VRUNTIME]
        s[v + V_VRUNTIME] = s[idlest + P_MIN_VRUNTIME] + (lag if lag < NEVER else U0)
        enqueue(s, idlest, v)
        s[v + V_MIGRATIONS] += U1
        s[h + H_MIGRATIONS] += U1
        survey(s, busiest)
        survey(s, idlest)
        spend(s, idlest, CAUSE_SWITCH, pcpu_cost(s, idlest, COST_VCPU_MIGRATE))


@kernel
def _asks_guest(s: Arena, h: np.uint64, until: np.uint64) -> bool:
    """Return whether a physical CPU of a host waits for a guest that decides outside the kernels."""
    p = s[h + H_PCPUS]
    for _ in range(s[h + H_NR_PCPUS]):
        if s[p + P_STOP] == STOP_GUEST and s[p + P_NOW] < until:
            return True
        p += _PCPU
    return False


@kernel
def advance_host(s: Arena, log: Arena, h: np.uint64, until: np.uint64) -> np.uint64:
    """Advance one host to ``until``, with its load balancing; return a stop as `advance` does.

    A host that lives in several processes is advanced to the next balance point at most, up to its requests.
    """
    while True:
        floating = s[h + H_FLOATING] != U0
        window = min(until, s[h + H_BALANCE_AT]) if floating else until
        if s[h + H_REMOTE] != U0:
            return _run_all(s, log, h, window)
        stop = _advance_window(s, log, h, window)
        if stop == STOP_WINDOW and _asks_guest(s, h, window):
            return STOP_GUEST
        if stop != STOP_WINDOW or window == until:
            return stop
        balance(s, h)
        s[h + H_BALANCE_AT] += s[h + H_BALANCE_NS]


@entry
def advance(s: Arena, log: Arena, until: np.uint64, steps: np.uint64) -> np.uint64:
    """Advance all hosts of a process.

    Parameters
    ----------
    s, log : uint64[n]
        The arena and the log.
    until : uint64, ns
        The window's end.
    steps : uint64
        Budget: engine steps and accesses, about 0.1 s of work, so that Ctrl-C and heartbeats get their turn.
        It changes no result.

    Returns
    -------
    uint64
        STOP_WINDOW when everybody is there, STOP_GUEST if all are but those who wait for a guest outside the
        kernels, STOP_LOG when the log has to be drained, STOP_BUDGET otherwise.
    """
    s[R_STEPS] = steps
    stop = STOP_WINDOW
    h = s[R_HOSTS]
    for _ in range(s[R_NR_HOSTS]):
        found = advance_host(s, log, h, until)
        if found == STOP_LOG or found == STOP_BUDGET:
            return found
        if found == STOP_GUEST:
            stop = found
        h += _HOST
    return stop
