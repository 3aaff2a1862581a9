"""What a guest's perf notes beside samples: events throttled and going on again, threads that end.

Nothing here is part of a row's hash: what is logged changes no result.
"""

import numpy as np

from vpmu.kernels.columns import (
    C_COUNT,
    C_EVENTS,
    E_INTERRUPTS,
    E_NOTED,
    E_OWNER,
    G_CPU_HW,
    G_CURRENT,
    G_ID,
    G_LOG,
    G_SEQUENCE,
    TH_ID,
    TH_STATE,
    U_CPU_CONTEXT,
    U_TASK_CONTEXT,
)
from vpmu.kernels.guest.threads import FINISHED, end_of_work
from vpmu.kernels.integers import U0, U1
from vpmu.kernels.jit import U64, Arena, kernel
from vpmu.kernels.log import RECORD_EXIT, RECORD_THROTTLE, head_word, keeps, log_record
from vpmu.kernels.perf.period import THROTTLED


@kernel
def note_throttle(s: Arena, log: Arena, g: np.uint64, e: np.uint64, now: np.uint64) -> None:
    """Log that an event was throttled or goes on, if that is news (perf_log_throttle()).

    Parameters
    ----------
    s, log : uint64[n]
        The arena and the log.
    g, e : uint64
        Offsets of the guest row and of the event.
    now : uint64, ns
    """
    if not keeps(s, RECORD_THROTTLE) or s[g + G_LOG] == U0:
        return
    throttled = U0
    if s[e + E_INTERRUPTS] == THROTTLED:
        throttled = U1
    if throttled == s[e + E_NOTED]:
        return
    s[e + E_NOTED] = throttled
    thread = U0
    if s[g + G_CURRENT] != U0:
        thread = s[s[g + G_CURRENT] + TH_ID]
    s[g + G_SEQUENCE] += U1
    head = head_word(RECORD_THROTTLE, U0, throttled)
    log_record(s, log, head, now, s[g + G_ID], s[g + G_SEQUENCE], s[e + E_OWNER], thread)


@kernel
def note_throttles(s: Arena, log: Arena, g: np.uint64, now: np.uint64) -> None:
    """Log which events of a guest's CPU and of its current thread were throttled or go on."""
    if keeps(s, RECORD_THROTTLE):
        _note_context(s, log, g, s[g + G_CPU_HW + U_CPU_CONTEXT], now)
        _note_context(s, log, g, s[g + G_CPU_HW + U_TASK_CONTEXT], now)


@kernel
def _note_context(s: Arena, log: Arena, g: np.uint64, c: np.uint64, now: np.uint64) -> None:
    """Log the news of a context's events; no context if ``c`` is 0."""
    if c == U0:
        return
    for i in range(s[c + C_COUNT]):
        note_throttle(s, log, g, s[c + C_EVENTS + U64(i)], now)


@kernel
def work_ends(s: Arena, log: Arena, g: np.uint64, now: np.uint64) -> None:
    """Let the current thread, which is at the end of its work, sleep or exit, and log an exit."""
    thread = s[g + G_CURRENT]
    end_of_work(s, g, now)
    if s[thread + TH_STATE] == FINISHED and keeps(s, RECORD_EXIT) and s[g + G_LOG] != U0:
        s[g + G_SEQUENCE] += U1
        head = head_word(RECORD_EXIT, U0, U0)
        log_record(s, log, head, now, s[g + G_ID], s[g + G_SEQUENCE], s[thread + TH_ID], U0)
