"""The host's scheduler: vCPU threads on a physical CPU, by fair time slices (Linux 5.0 CFS, main lines)."""

import numpy as np

from vpmu.kernels.columns import (
    P_CURRENT,
    P_GRANULARITY_NS,
    P_LATENCY_NS,
    P_LEAST_VRUNTIME,
    P_MIN_VRUNTIME,
    P_NOW,
    P_NR_READY,
    P_NR_VCPUS,
    P_QUEUE_HEAD,
    P_RESCHED,
    P_SLICE_AT,
    P_WAKE_AT,
    P_WAKEUP_NS,
    V_ID,
    V_NEXT,
    V_PCPU,
    V_RAN_FROM,
    V_READY_AT,
    V_STATE,
    V_STEAL_NS,
    V_VRUNTIME,
    V_WAKE_AT,
)
from vpmu.kernels.integers import NEVER, U0, U1, U2
from vpmu.kernels.jit import U64, Arena, kernel

VCPU_READY = U64(0)
VCPU_RUNNING = U64(1)
VCPU_HALTED = U64(2)
"""Idle in HLT until V_WAKE_AT."""
VCPU_BLOCKED = U64(3)
"""Asleep in mid-exit until V_WAKE_AT: the reservation's mutex."""
VCPU_DONE = U64(4)
VCPU_GONE = U64(5)
"""Not on this host any more."""


@kernel
def enqueue(s: Arena, p: np.uint64, v: np.uint64) -> None:
    """Put a vCPU into a physical CPU's list, which is kept in the order of vCPU numbers."""
    s[v + V_PCPU] = p
    before = U0
    after = s[p + P_QUEUE_HEAD]
    while after != U0 and s[after + V_ID] < s[v + V_ID]:
        before = after
        after = s[after + V_NEXT]
    s[v + V_NEXT] = after
    if before == U0:
        s[p + P_QUEUE_HEAD] = v
    else:
        s[before + V_NEXT] = v
    s[p + P_NR_VCPUS] += U1


@kernel
def dequeue(s: Arena, p: np.uint64, v: np.uint64) -> None:
    """Take a vCPU out of a physical CPU's list."""
    if s[p + P_QUEUE_HEAD] == v:
        s[p + P_QUEUE_HEAD] = s[v + V_NEXT]
    else:
        before = s[p + P_QUEUE_HEAD]
        while s[before + V_NEXT] != v:
            before = s[before + V_NEXT]
        s[before + V_NEXT] = s[v + V_NEXT]
    s[v + V_NEXT] = U0
    s[p + P_NR_VCPUS] -= U1


@kernel
def charge(s: Arena, p: np.uint64) -> None:
    """Charge the running vCPU for its time (update_curr())."""
    v = s[p + P_CURRENT]
    now = s[p + P_NOW]
    s[v + V_VRUNTIME] += now - s[v + V_RAN_FROM]
    s[v + V_RAN_FROM] = now
    least = min(s[v + V_VRUNTIME], s[p + P_LEAST_VRUNTIME])
    s[p + P_MIN_VRUNTIME] = max(s[p + P_MIN_VRUNTIME], least)


@kernel
def scheduler_tick(s: Arena, p: np.uint64) -> None:
    """Ask for a switch if the running vCPU has had its slice and another one waits."""
    charge(s, p)
    waiting = s[p + P_NR_READY]
    if waiting == U0:
        return
    slice_ns = max(s[p + P_LATENCY_NS] // (waiting + U1), s[p + P_GRANULARITY_NS])
    if s[p + P_NOW] - s[p + P_SLICE_AT] >= slice_ns:
        s[p + P_RESCHED] = U1


@kernel
def pick(s: Arena, p: np.uint64) -> np.uint64:
    """Return the ready vCPU that has run least, 0 if none is ready; the lowest number of equals."""
    best = U0
    least = NEVER
    v = s[p + P_QUEUE_HEAD]
    while v != U0:
        if s[v + V_STATE] == VCPU_READY and s[v + V_VRUNTIME] < least:
            least = s[v + V_VRUNTIME]
            best = v
        v = s[v + V_NEXT]
    return best


@kernel
def survey(s: Arena, p: np.uint64) -> None:
    """Find what a run queue holds whose vCPUs have changed: who waits, and when the first sleeper wakes.

    Ticks are ten times as many as changes, and read it only.
    """
    at = NEVER
    least = NEVER
    ready = U0
    v = s[p + P_QUEUE_HEAD]
    while v != U0:
        state = s[v + V_STATE]
        if state == VCPU_READY:
            ready += U1
            least = min(least, s[v + V_VRUNTIME])
        elif state == VCPU_HALTED or state == VCPU_BLOCKED:
            at = min(at, s[v + V_WAKE_AT])
        v = s[v + V_NEXT]
    s[p + P_WAKE_AT] = at
    s[p + P_NR_READY] = ready
    s[p + P_LEAST_VRUNTIME] = least


@kernel
def wake_due(s: Arena, p: np.uint64) -> None:
    """Make the vCPUs ready whose time has come; a wakened one may preempt."""
    now = s[p + P_NOW]
    current = s[p + P_CURRENT]
    if current != U0:
        charge(s, p)
    v = s[p + P_QUEUE_HEAD]
    while v != U0:
        asleep = s[v + V_STATE] == VCPU_HALTED or s[v + V_STATE] == VCPU_BLOCKED
        if asleep and s[v + V_WAKE_AT] <= now:
            s[v + V_STATE] = VCPU_READY
            s[v + V_READY_AT] = s[v + V_WAKE_AT]
            credit = s[p + P_LATENCY_NS] >> U1
            floor = s[p + P_MIN_VRUNTIME] - credit if s[p + P_MIN_VRUNTIME] > credit else U0
            s[v + V_VRUNTIME] = max(s[v + V_VRUNTIME], floor)
            if current != U0 and s[current + V_VRUNTIME] > s[v + V_VRUNTIME] + s[p + P_WAKEUP_NS]:
                s[p + P_RESCHED] = U1
        v = s[v + V_NEXT]
    survey(s, p)


@kernel
def switch_in(s: Arena, p: np.uint64, v: np.uint64) -> None:
    """Let a vCPU have the physical CPU."""
    now = s[p + P_NOW]
    s[p + P_CURRENT] = v
    s[v + V_STATE] = VCPU_RUNNING
    s[v + V_STEAL_NS] += now - s[v + V_READY_AT]
    s[v + V_RAN_FROM] = now
    s[p + P_SLICE_AT] = now
    s[p + P_RESCHED] = U0
    survey(s, p)


@kernel
def switch_out(s: Arena, p: np.uint64, state: np.uint64) -> None:
    """Take the physical CPU from its vCPU, which goes on in the given state."""
    charge(s, p)
    v = s[p + P_CURRENT]
    s[v + V_STATE] = state
    s[v + V_READY_AT] = s[p + P_NOW]
    s[p + P_CURRENT] = U0
    survey(s, p)


@kernel
def busiest_and_idlest(
    s: Arena, first: np.uint64, n: np.uint64, stride: np.uint64
) -> tuple[np.uint64, np.uint64]:
    """Return the physical CPUs of a host with the most and the least runnable vCPUs; the first of equals."""
    most = U0
    least = NEVER
    busiest = first
    idlest = first
    p = first
    for _ in range(n):
        load = s[p + P_NR_READY] + (U1 if s[p + P_CURRENT] != U0 else U0)
        if load > most:
            most = load
            busiest = p
        if load < least:
            least = load
            idlest = p
        p += stride
    if most < least + U2:
        return first, first
    return busiest, idlest
