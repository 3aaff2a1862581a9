"""A guest that decides outside the kernels: code in a CPU emulator, or another process.

It is granted a stretch, and answers once with what it has retired and what it wants. Its row, one of the
table ``outside``, keeps running totals of what it retired, from which the truth is told as for every guest.
"""

import numpy as np

from vpmu.kernels.columns import (
    G_ACCESSED_AT,
    G_LEVEL,
    G_MICRO,
    G_NWATCH,
    G_OPERATION,
    G_OUTSIDE,
    G_PMIS,
    G_REGISTER,
    G_STILL,
    G_TIMER_AT,
    G_VALUE,
    G_VCPU,
    G_WATCH,
    HW_LVTPC,
    O_COMPLETE,
    O_COST_NS,
    O_FAULT,
    O_LVTPC,
    O_PMI,
    O_RESULT,
    O_TOTAL,
    P_INTERCEPTS,
    T_FRESH,
    T_STILL,
    TOTALS,
    V_LVTPC,
    V_PCPU,
    W_CPL,
    W_KIND,
    W_RETIRED,
    WATCH_COLUMNS,
)
from vpmu.kernels.guest.driver import note
from vpmu.kernels.guest.truth import truth_runs, truth_still
from vpmu.kernels.integers import U0, U1, U2
from vpmu.kernels.jit import U64, Arena, kernel
from vpmu.kernels.log import RECORD_PMI
from vpmu.kernels.msr import LVT_MASKED
from vpmu.kernels.perf.queue import OP_NONE

_TOTALS = U64(TOTALS)
_WATCH = U64(WATCH_COLUMNS)


@kernel
def outside_resume(
    s: Arena,
    log: Arena,
    g: np.uint64,
    now: np.uint64,
    complete: bool,
    outcome: np.uint64,
    value: np.uint64,
    nmi: bool,
) -> None:
    """Keep what a guest that is entered has to be told until it is asked: its access's result, and a PMI.

    Parameters
    ----------
    s, log : uint64[n]
        The arena and the log.
    g : uint64
        Offset of the guest's row.
    now : uint64, ns
    complete : bool
        Whether its access is done: with ``outcome`` (OK or GP) and ``value``.
    nmi : bool
        Whether a PMI is delivered.
    """
    o = s[g + G_OUTSIDE]
    if complete:
        s[o + O_COMPLETE] = U1
        s[o + O_FAULT] = outcome
        s[o + O_RESULT] = value
        s[o + O_COST_NS] = now - s[g + G_ACCESSED_AT]
    if nmi:
        v = s[g + G_VCPU]
        p = s[v + V_PCPU]
        lvtpc = s[v + V_LVTPC] if s[p + P_INTERCEPTS] != U0 else s[p + HW_LVTPC]
        s[o + O_PMI] = U1
        s[o + O_LVTPC] = lvtpc & ~LVT_MASKED
        s[g + G_PMIS] += U1
        note(s, log, g, RECORD_PMI, now, U0, U0)


@kernel
def outside_ran(s: Arena, g: np.uint64, retired: Arena) -> None:
    """Add what a guest retired since it was asked: to its totals, and to what its physical CPU counts.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    g : uint64
        Offset of the guest's row; its watch list says what is counted.
    retired : uint64[2 * TOTALS], events
        By kind, in kernel mode, then in user mode.
    """
    if s[g + G_STILL] != s[g + T_STILL]:
        truth_still(s, g)
    if s[g + T_FRESH] != U0:
        truth_runs(s, g)
    first = s[g + G_OUTSIDE] + O_TOTAL
    for i in range(U2 * _TOTALS):
        s[first + U64(i)] += retired[i]
    w = g + G_WATCH
    for _ in range(s[g + G_NWATCH]):
        events = U0
        if s[w + W_KIND] < _TOTALS:
            if s[w + W_CPL] & U1 != U0:
                events += retired[s[w + W_KIND]]
            if s[w + W_CPL] & U2 != U0:
                events += retired[s[w + W_KIND] + _TOTALS]
        s[w + W_RETIRED] = events
        w += _WATCH


@kernel
def outside_accesses(
    s: Arena,
    g: np.uint64,
    operation: np.uint64,
    register: np.uint64,
    value: np.uint64,
    level: np.uint64,
    now: np.uint64,
) -> None:
    """Note the access that a guest asks for: an ACCESS_ constant, register, word, level, when it begins."""
    s[g + G_MICRO] = OP_NONE
    s[g + G_OPERATION] = operation
    s[g + G_REGISTER] = register
    s[g + G_VALUE] = value
    s[g + G_LEVEL] = level
    s[g + G_ACCESSED_AT] = now


@kernel
def outside_halts(s: Arena, g: np.uint64, timer_at: np.uint64) -> None:
    """Note when a guest that halts wakes by itself."""
    s[g + G_TIMER_AT] = timer_at
