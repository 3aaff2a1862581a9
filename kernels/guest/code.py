"""Guest code runs: cycles pass, a program goes on, events retire."""

import numpy as np

from vpmu.kernels.columns import (
    G_BUS_RATE,
    G_CORE_RATE,
    G_CURRENT,
    G_IN_KERNEL,
    G_KERNEL_CURSOR,
    G_KERNEL_NS,
    G_KERNEL_PROGRAM,
    G_NWATCH,
    G_TSC_RATE,
    G_USER_NS,
    G_WATCH,
    T_REF,
    TH_CURSOR,
    TH_END,
    TH_PROGRAM,
    W_CPL,
    W_KIND,
    W_LEFT,
    W_RETIRED,
    WATCH_COLUMNS,
)
from vpmu.kernels.events import KIND_BUS_CYCLES, KIND_CYCLES, KIND_NONE, KIND_REF_CYCLES
from vpmu.kernels.integers import U0, U1, U2, rate_at, ticks_until
from vpmu.kernels.jit import U64, Arena, kernel
from vpmu.kernels.program import program_count, program_cycles_until, program_seek
from vpmu.kernels.program_layout import CUR_POS

_WATCH = U64(WATCH_COLUMNS)


@kernel
def _counts_others(s: Arena, g: np.uint64, level: np.uint64) -> bool:
    """Return whether a watched counter counts something else than cycles at this level."""
    others = False
    w = g + G_WATCH
    for _ in range(s[g + G_NWATCH]):
        others = others or (s[w + W_KIND] != KIND_CYCLES and s[w + W_CPL] & level != U0)
        w += _WATCH
    return others


@kernel
def _deadline(s: Arena, g: np.uint64, level: np.uint64, now: np.uint64, limit: np.uint64) -> np.uint64:
    """Return the earlier of ``limit`` and the overflow of a watched counter that counts time."""
    w = g + G_WATCH
    for _ in range(s[g + G_NWATCH]):
        if s[w + W_LEFT] != U0 and s[w + W_CPL] & level != U0:
            if s[w + W_KIND] == KIND_REF_CYCLES:
                limit = min(limit, now + ticks_until(now, s[g + G_TSC_RATE], s[w + W_LEFT]))
            elif s[w + W_KIND] == KIND_BUS_CYCLES:
                limit = min(limit, now + ticks_until(now, s[g + G_BUS_RATE], s[w + W_LEFT]))
        w += _WATCH
    return limit


@kernel
def _cycles_left(
    s: Arena, g: np.uint64, level: np.uint64, program: np.uint64, cursor: np.uint64, most: np.uint64
) -> np.uint64:
    """Return after how many cycles the code ends or a watched counter overflows, at most ``most``."""
    w = g + G_WATCH
    for _ in range(s[g + G_NWATCH]):
        left = s[w + W_LEFT]
        kind = s[w + W_KIND]
        if left != U0 and s[w + W_CPL] & level != U0 and kind != KIND_NONE:
            if kind == KIND_CYCLES:
                most = min(most, left)
            elif kind != KIND_REF_CYCLES and kind != KIND_BUS_CYCLES:
                most = min(most, program_cycles_until(s, program, cursor, kind, left))
        w += _WATCH
    return most


@kernel
def _mark(s: Arena, g: np.uint64, level: np.uint64, program: np.uint64, cursor: np.uint64) -> None:
    """Take down the watched counts before a stretch of code: W_RETIRED minus, W_LEFT plus."""
    w = g + G_WATCH
    for _ in range(s[g + G_NWATCH]):
        kind = s[w + W_KIND]
        if (
            s[w + W_CPL] & level != U0
            and kind < KIND_NONE
            and kind != KIND_REF_CYCLES
            and kind != KIND_BUS_CYCLES
        ):
            before = program_count(s, program, cursor, kind)
            s[w + W_RETIRED] -= before
            s[w + W_LEFT] += before if s[w + W_LEFT] != U0 else U0
        w += _WATCH


@kernel
def _collect(
    s: Arena,
    g: np.uint64,
    level: np.uint64,
    program: np.uint64,
    cursor: np.uint64,
    now: np.uint64,
    end: np.uint64,
) -> bool:
    """Add what the stretch retired; True if a watched counter has overflowed."""
    stop = False
    w = g + G_WATCH
    for _ in range(s[g + G_NWATCH]):
        kind = s[w + W_KIND]
        if s[w + W_CPL] & level != U0 and kind != KIND_NONE:
            before = U0
            if kind == KIND_REF_CYCLES:
                after = rate_at(end, s[g + G_TSC_RATE]) - rate_at(now, s[g + G_TSC_RATE])
            elif kind == KIND_BUS_CYCLES:
                after = rate_at(end, s[g + G_BUS_RATE]) - rate_at(now, s[g + G_BUS_RATE])
            else:
                after = program_count(s, program, cursor, kind)
            s[w + W_RETIRED] += after - before
            if s[w + W_LEFT] != U0:
                stop = stop or s[w + W_LEFT] <= after
                s[w + W_LEFT] -= after
        w += _WATCH
    return stop


@kernel
def _collect_cycles(s: Arena, g: np.uint64, level: np.uint64, cycles: np.uint64) -> bool:
    """As _collect(), where every watched counter that counts at this level counts cycles."""
    stop = False
    w = g + G_WATCH
    for _ in range(s[g + G_NWATCH]):
        if s[w + W_CPL] & level != U0:
            s[w + W_RETIRED] += cycles
            if s[w + W_LEFT] != U0:
                stop = stop or s[w + W_LEFT] <= cycles
                s[w + W_LEFT] -= cycles
        w += _WATCH
    return stop


@kernel
def run_code(s: Arena, g: np.uint64, now: np.uint64, limit: np.uint64) -> tuple[np.uint64, bool]:
    """Run the kernel code in progress, or else the current thread, until something happens.

    It ends at ``limit``, at the end of the code, or where a watched counter overflows. At a limit no cycle is
    lost: a stretch cut in two retires what the whole retires.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    g : uint64
        Offset of the guest row; its watch list says what is counted.
    now, limit : uint64, ns

    Returns
    -------
    (end, overflowed) : uint64 ns, bool
    """
    in_kernel = s[g + G_IN_KERNEL]
    if in_kernel != U0:
        level = U1
        program = s[g + G_KERNEL_PROGRAM]
        cursor = g + G_KERNEL_CURSOR
        left = in_kernel
    else:
        thread = s[g + G_CURRENT]
        level = U2
        program = s[thread + TH_PROGRAM]
        cursor = thread + TH_CURSOR
        left = s[thread + TH_END] - s[cursor + CUR_POS]
    core = s[g + G_CORE_RATE]
    others = _counts_others(s, g, level)
    end = _deadline(s, g, level, now, limit) if others else limit
    cycles = rate_at(end, core) - rate_at(now, core)
    most = _cycles_left(s, g, level, program, cursor, left)
    if most <= cycles:
        cycles = most
        end = now + ticks_until(now, core, cycles)
    if others:
        _mark(s, g, level, program, cursor)
    program_seek(s, program, cursor, cycles)
    if others:
        overflowed = _collect(s, g, level, program, cursor, now, end)
    else:
        overflowed = _collect_cycles(s, g, level, cycles)
    _pass_time(s, g, now, end, cycles)
    return end, overflowed


@kernel
def _pass_time(s: Arena, g: np.uint64, now: np.uint64, end: np.uint64, cycles: np.uint64) -> None:
    """Account a stretch to kernel or user time, in the guest's clocks and in the truth's."""
    ref = rate_at(end, s[g + G_TSC_RATE]) - rate_at(now, s[g + G_TSC_RATE])
    bus = rate_at(end, s[g + G_BUS_RATE]) - rate_at(now, s[g + G_BUS_RATE])
    if s[g + G_IN_KERNEL] != U0:
        s[g + G_IN_KERNEL] -= cycles
        s[g + G_KERNEL_NS] += end - now
        s[g + T_REF] += ref
        s[g + T_REF + U2] += bus
    else:
        s[g + G_USER_NS] += end - now
        s[g + T_REF + U1] += ref
        s[g + T_REF + U2 + U1] += bus
