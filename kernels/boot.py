"""What Python calls once for each row, before a run and after it: entries, which come from the cache."""

import numpy as np

from vpmu.kernels.columns import (
    E_RUNNING,
    E_SLOT,
    E_STATE,
    EVENT_ACTIVE,
    G_KERNEL_CURSOR,
    G_KERNEL_PROGRAM,
    G_NR_THREADS,
    G_THREADS,
    P_HOST_CURSOR,
    P_HOST_PROGRAM,
    RUN_COUNTING,
    TH_CURSOR,
    TH_PROGRAM,
    THREAD_COLUMNS,
)
from vpmu.kernels.engine import set_tool_timer
from vpmu.kernels.events import KIND_CYCLES
from vpmu.kernels.guest.driver import set_timer
from vpmu.kernels.guest.due import due_of, unread
from vpmu.kernels.guest.sessions import event_times, next_session
from vpmu.kernels.guest.threads import next_wake
from vpmu.kernels.hardware import hw_reset
from vpmu.kernels.host.scheduler import enqueue, survey
from vpmu.kernels.integers import U0, U1
from vpmu.kernels.jit import U64, Arena, entry
from vpmu.kernels.program import (
    program_count,
    program_function_cycles,
    program_function_events,
    program_start,
)

_THREAD = U64(THREAD_COLUMNS)


@entry
def boot_pcpu(s: Arena, p: np.uint64) -> None:
    """Reset the counters of a physical CPU whose row is filled in, and start its kernel's code."""
    hw_reset(s, p)
    program_start(s, s[p + P_HOST_PROGRAM], p + P_HOST_CURSOR)


@entry
def boot_guest(s: Arena, g: np.uint64) -> None:
    """Bring the programs of a guest, whose rows are filled in, to their starts and set its timers."""
    program_start(s, s[g + G_KERNEL_PROGRAM], g + G_KERNEL_CURSOR)
    thread = s[g + G_THREADS]
    for _ in range(s[g + G_NR_THREADS]):
        program_start(s, s[thread + TH_PROGRAM], thread + TH_CURSOR)
        thread += _THREAD
    next_wake(s, g)
    next_session(s, g)
    set_timer(s, g)


@entry
def place_vcpu(s: Arena, p: np.uint64, v: np.uint64) -> None:
    """Put a vCPU on a physical CPU's run queue before the run."""
    enqueue(s, p, v)


@entry
def boot_timers(s: Arena, p: np.uint64) -> None:
    """Set the timers of a physical CPU once its vCPUs and tools are there."""
    survey(s, p)
    set_tool_timer(s, p)


@entry
def function_cycles(s: Arena, program: np.uint64, cursor: np.uint64, function: np.uint64) -> np.uint64:
    """Return the cycles that a thread spent in a function: program_function_cycles() for Python."""
    return program_function_cycles(s, program, cursor, function)


@entry
def times_of_event(
    s: Arena, g: np.uint64, session: np.uint64, e: np.uint64, now: np.uint64
) -> tuple[np.uint64, np.uint64]:
    """Return an event's enabled and running times in ns: event_times() for Python."""
    return event_times(s, g, session, e, now)


@entry
def retired_by(
    s: Arena, program: np.uint64, cursor: np.uint64, kinds: Arena, out: Arena, work: Arena
) -> None:
    """Fill in what a thread retired, in all and by function.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    program, cursor : uint64
        Offsets of the program and of the thread's cursor.
    kinds : uint64[k]
        Event kinds.
    out : uint64[(1 + functions) * k], events
        For each kind: all of it, then each function's.
    work : uint64[functions]
        Scratch.
    """
    size = U64(len(out) // len(kinds))
    for i in range(len(kinds)):
        at = U64(i) * size
        out[at] = program_count(s, program, cursor, kinds[i])
        if kinds[i] == KIND_CYCLES:
            for function in range(size - U1):
                out[at + U1 + U64(function)] = program_function_cycles(s, program, cursor, U64(function))
        else:
            program_function_events(s, program, cursor, kinds[i], out[at + U1 : at + size], work)


@entry
def due_of_event(s: Arena, g: np.uint64, e: np.uint64, out: Arena) -> None:
    """Fill in what an event had to see, in events.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    g, e : uint64
        Offsets of the guest row and of the event.
    out : uint64[5]
        While it had a counter, was throttled, waited; of what its counter has not told yet: counted, stood
        still.
    """
    for which in range(3):
        out[which] = due_of(s, g, e, U64(which + 1))
    out[3], out[4] = U0, U0
    if s[e + E_STATE] == EVENT_ACTIVE and s[e + E_RUNNING] == RUN_COUNTING:
        out[3], out[4] = unread(s, g, s[e + E_SLOT])
