"""The guest's scheduler: fair, with slices, tick, preemption, sleepers (CFS of Linux 5.0, main lines)."""

import numpy as np

from vpmu.kernels.columns import (
    G_ACCOUNTED_AT,
    G_CURRENT,
    G_GRANULARITY_NS,
    G_ID,
    G_INDEX,
    G_LATENCY_NS,
    G_MIN_VRUNTIME,
    G_NR_THREADS,
    G_RESCHED,
    G_RUNNING,
    G_SLICE_AT,
    G_THREADS,
    G_WAKE_AT,
    G_WAKEUP_NS,
    R_SEED,
    TH_BURST_CYCLES,
    TH_CPU_NS,
    TH_CURSOR,
    TH_END,
    TH_FINISHED_AT,
    TH_MISSED,
    TH_STARTED_AT,
    TH_STATE,
    TH_TYPE,
    TH_VRUNTIME,
    TH_WAKE_AT,
    TH_WAKE_MEAN_NS,
    TH_WAKE_REGULAR,
    THREAD_COLUMNS,
)
from vpmu.kernels.integers import NEVER, U0, U1
from vpmu.kernels.jit import U64, Arena, kernel
from vpmu.kernels.program_layout import CUR_POS
from vpmu.kernels.random import STREAM_WAKE, draw, exponential

THREAD_PROGRAM = U64(0)
THREAD_SPIN = U64(1)
THREAD_SLEEPER = U64(2)
THREAD_REPLAY = U64(3)

RUNNABLE = U64(0)
SLEEPING = U64(1)
FINISHED = U64(2)
WAITING = U64(3)
"""Not started yet; TH_WAKE_AT says when."""

_STRIDE = U64(THREAD_COLUMNS)


@kernel
def update_current(s: Arena, g: np.uint64, now: np.uint64) -> None:
    """Charge the time since the last call to the current thread (update_curr())."""
    thread = s[g + G_CURRENT]
    span = now - s[g + G_ACCOUNTED_AT]
    s[g + G_ACCOUNTED_AT] = now
    if thread != U0:
        s[thread + TH_VRUNTIME] += span
        s[thread + TH_CPU_NS] += span
        s[g + G_MIN_VRUNTIME] = max(s[g + G_MIN_VRUNTIME], _least(s, g))


@kernel
def _least(s: Arena, g: np.uint64) -> np.uint64:
    """Return the least virtual runtime of the runnable threads, 0 if there is none."""
    thread = pick_next(s, g)
    return s[thread + TH_VRUNTIME] if thread != U0 else U0


@kernel
def pick_next(s: Arena, g: np.uint64) -> np.uint64:
    """Return the runnable thread that has run least, 0 if there is none; the first of equals."""
    best = U0
    least = NEVER
    thread = s[g + G_THREADS]
    for _ in range(s[g + G_NR_THREADS]):
        if s[thread + TH_STATE] == RUNNABLE and s[thread + TH_VRUNTIME] < least:
            least = s[thread + TH_VRUNTIME]
            best = thread
        thread += _STRIDE
    return best


@kernel
def nr_runnable(s: Arena, g: np.uint64) -> np.uint64:
    """Return how many threads could run."""
    n = U0
    thread = s[g + G_THREADS]
    for _ in range(s[g + G_NR_THREADS]):
        if s[thread + TH_STATE] == RUNNABLE:
            n += U1
        thread += _STRIDE
    return n


@kernel
def scheduler_tick(s: Arena, g: np.uint64, now: np.uint64) -> None:
    """Ask for a switch if the current thread has had its slice (check_preempt_tick())."""
    update_current(s, g, now)
    runnable = nr_runnable(s, g)
    if runnable < U64(2):
        return
    slice_ns = max(s[g + G_LATENCY_NS] // runnable, s[g + G_GRANULARITY_NS])
    if now - s[g + G_SLICE_AT] > slice_ns:
        s[g + G_RESCHED] = U1


@kernel
def next_wake(s: Arena, g: np.uint64) -> np.uint64:
    """Return the thread whose wake-up comes first, 0 if none is to come; sets G_WAKE_AT."""
    best = U0
    at = NEVER
    thread = s[g + G_THREADS]
    for _ in range(s[g + G_NR_THREADS]):
        if s[thread + TH_WAKE_AT] < at:
            at = s[thread + TH_WAKE_AT]
            best = thread
        thread += _STRIDE
    s[g + G_WAKE_AT] = at
    return best


@kernel
def wake_due(s: Arena, g: np.uint64, now: np.uint64) -> None:
    """Wake the threads whose time has come (try_to_wake_up()), draw their next time, preempt for them."""
    update_current(s, g, now)
    thread = next_wake(s, g)
    while thread != U0 and s[thread + TH_WAKE_AT] <= now:
        state = s[thread + TH_STATE]
        if state == WAITING:
            s[thread + TH_WAKE_AT] = NEVER
            s[thread + TH_STARTED_AT] = now
        else:
            s[thread + TH_WAKE_AT] += _gap(s, g, thread)
        if state == SLEEPING or state == WAITING:
            _enqueue(s, g, thread)
        else:
            s[thread + TH_MISSED] += U1
        thread = next_wake(s, g)


@kernel
def _gap(s: Arena, g: np.uint64, thread: np.uint64) -> np.uint64:
    """Return how long a sleeper sleeps: its interval, or a draw around it."""
    if s[thread + TH_WAKE_REGULAR] != U0:
        return s[thread + TH_WAKE_MEAN_NS]
    s[g + G_INDEX] += U1
    bits = draw(s[R_SEED], s[g + G_ID], STREAM_WAKE, s[g + G_INDEX])
    return max(exponential(bits, s[thread + TH_WAKE_MEAN_NS]), U1)


@kernel
def _enqueue(s: Arena, g: np.uint64, thread: np.uint64) -> None:
    """Make a thread runnable with a sleeper's credit, and preempt for it (check_preempt_wakeup())."""
    s[thread + TH_STATE] = RUNNABLE
    if s[thread + TH_TYPE] == THREAD_SLEEPER:
        s[thread + TH_END] = s[thread + TH_CURSOR + CUR_POS] + s[thread + TH_BURST_CYCLES]
    credit = s[g + G_LATENCY_NS] >> U1
    floor = s[g + G_MIN_VRUNTIME] - credit if s[g + G_MIN_VRUNTIME] > credit else U0
    s[thread + TH_VRUNTIME] = max(s[thread + TH_VRUNTIME], floor)
    current = s[g + G_CURRENT]
    if current == U0 or s[current + TH_VRUNTIME] > s[thread + TH_VRUNTIME] + s[g + G_WAKEUP_NS]:
        s[g + G_RESCHED] = U1


@kernel
def end_of_work(s: Arena, g: np.uint64, now: np.uint64) -> None:
    """Let the current thread, which is at the end of its work, sleep or exit."""
    thread = s[g + G_CURRENT]
    update_current(s, g, now)
    s[g + G_RESCHED] = U1
    if s[thread + TH_TYPE] == THREAD_SLEEPER:
        s[thread + TH_STATE] = SLEEPING
    else:
        s[thread + TH_STATE] = FINISHED
        s[thread + TH_FINISHED_AT] = now
        s[g + G_RUNNING] -= U1
