"""A physical CPU's time: what passes in the host, and the host interrupts that lengthen it.

Every nanosecond of a physical CPU is booked to one cause; the causes add up to its clock.
"""

import numpy as np

from vpmu.kernels.columns import (
    HW_ARMED,
    HW_CPL,
    HW_HOST_SLOTS,
    HW_KIND,
    P_BUS_RATE,
    P_CAUSES,
    P_CORE_RATE,
    P_CURRENT,
    P_HOST_CURSOR,
    P_HOST_OWED,
    P_HOST_PROGRAM,
    P_ID,
    P_INDEX,
    P_INTERCEPTS,
    P_IRQ_AT,
    P_NOISE_AT,
    P_NOISE_INDEX,
    P_NOISE_NS,
    P_NOW,
    P_TICK_AT,
    P_TICK_NS,
    P_TICKED,
    P_TSC_RATE,
    R_CONSTANT,
    R_COSTS,
    R_SCRATCH,
    R_SEED,
)
from vpmu.kernels.costs import C_SPREAD, COST_COLUMNS, COST_HOST_IRQ, COST_L1D_FLUSH, draw_cost
from vpmu.kernels.events import KIND_BUS_CYCLES, KIND_CYCLES, KIND_NONE, KIND_REF_CYCLES
from vpmu.kernels.hardware import hw_count
from vpmu.kernels.integers import NEVER, U0, U1, lowest_bit, rate_at
from vpmu.kernels.jit import U64, Arena, inlined, kernel
from vpmu.kernels.program import program_count, program_seek
from vpmu.kernels.random import STREAM_IRQ_COST, STREAM_IRQ_GAP, draw, exponential

CAUSE_NAMES = (
    "idle",
    "guest",
    "exits",
    "accesses",
    "create",
    "release",
    "read",
    "reservation",
    "last release",
    "interrupts",
    "switches",
    "save and restore",
    "pmi",
    "host tools",
)
CAUSE_IDLE = U64(0)
CAUSE_GUEST = U64(1)
CAUSE_EXITS = U64(2)
CAUSE_ACCESSES = U64(3)
CAUSE_CREATE = U64(4)
CAUSE_RELEASE = U64(5)
CAUSE_READ = U64(6)
CAUSE_RESERVE = U64(7)
CAUSE_UNRESERVE = U64(8)
CAUSE_IRQ = U64(9)
CAUSE_SWITCH = U64(10)
CAUSE_SAVE = U64(11)
CAUSE_PMI = U64(12)
CAUSE_TOOLS = U64(13)

_COLUMNS = U64(COST_COLUMNS)


@inlined
def cost(s: Arena, actor: np.uint64, index_at: np.uint64, which: np.uint64) -> np.uint64:
    """Return the duration of one basic operation.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    actor : uint64
        Who draws; with the counter at ``index_at`` it makes the draw its own.
    index_at : uint64
        Offset of the actor's counter of draws; an operation that always takes the same time needs none.
    which : uint64
        One of the COST_ constants.

    Returns
    -------
    uint64, ns
    """
    ns = s[R_CONSTANT + which]
    if ns != U0:
        return ns
    return _drawn_cost(s, actor, index_at, which)


@kernel
def _drawn_cost(s: Arena, actor: np.uint64, index_at: np.uint64, which: np.uint64) -> np.uint64:
    """Return the duration of an operation with a spread, or of one that takes no time."""
    row = s[R_COSTS] + which * _COLUMNS
    if s[row + C_SPREAD] == U0:
        return U0
    s[index_at] += U1
    return draw_cost(s, row, s[R_SEED], actor, s[index_at])


@inlined
def pcpu_cost(s: Arena, p: np.uint64, which: np.uint64) -> np.uint64:
    """Return the duration of a basic operation on a physical CPU."""
    return cost(s, s[p + P_ID], p + P_INDEX, which)


@inlined
def spend(s: Arena, p: np.uint64, cause: np.uint64, ns: np.uint64) -> None:
    """Let host code run for ``ns``; interrupts that come meanwhile add their own time.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    p : uint64
        Offset of the physical CPU's row.
    cause : uint64
        What the time is booked to.
    ns : uint64, ns
    """
    end = s[p + P_NOW] + ns
    s[p + P_CAUSES + cause] += ns
    if s[p + P_IRQ_AT] < end or (ns != U0 and host_active(s, p) != U0):
        _spend(s, p, end)
    else:
        s[p + P_NOW] = end


@inlined
def pass_time(s: Arena, p: np.uint64, now: np.uint64, ns: np.uint64, counting: np.uint64) -> np.uint64:
    """Let host code run from ``now`` for ``ns``, as spend() does, and return when it ends.

    The clock's word is left alone where nothing comes in between; booking the time is the caller's, and so is
    knowing the slots that may count host code, HW_HOST_SLOTS.
    """
    end = now + ns
    if s[p + P_IRQ_AT] < end or s[p + HW_ARMED] & counting != U0:
        s[p + P_NOW] = now
        _spend(s, p, end)
        return s[p + P_NOW]
    return end


@kernel
def _spend(s: Arena, p: np.uint64, end: np.uint64) -> None:
    """Let host code run that is interrupted, or counted."""
    start = s[p + P_NOW]
    while s[p + P_IRQ_AT] < end:
        end += interrupt(s, p)
    s[p + P_NOW] = end
    active = host_active(s, p)
    if active != U0:
        _count_host(s, p, active, start, end)


@kernel
def host_active(s: Arena, p: np.uint64) -> np.uint64:
    """Return the slots that count host code.

    Between the load of a guest's GLOBAL_CTRL and the guest the host's value still holds.
    """
    return s[p + HW_ARMED] & s[p + HW_HOST_SLOTS]


@kernel
def interrupt(s: Arena, p: np.uint64) -> np.uint64:
    """Take the host interrupt that is due, tick or noise; return how long it takes.

    It lets the next VM entry flush the L1 data cache (vmx_l1d_flush(), conditional), which is booked with it.
    """
    ns = cost(s, s[p + P_ID] | STREAM_IRQ_COST << U64(56), p + P_NOISE_INDEX, COST_HOST_IRQ)
    if s[p + P_CURRENT] != U0 and s[p + P_INTERCEPTS] != U0:
        ns += pcpu_cost(s, p, COST_L1D_FLUSH)
    s[p + P_CAUSES + CAUSE_IRQ] += ns
    if s[p + P_TICK_AT] <= s[p + P_NOISE_AT]:
        s[p + P_TICK_AT] += s[p + P_TICK_NS]
        s[p + P_TICKED] = U1
    else:
        s[p + P_NOISE_AT] += noise_gap(s, p)
    s[p + P_IRQ_AT] = min(s[p + P_TICK_AT], s[p + P_NOISE_AT])
    return ns


@kernel
def noise_gap(s: Arena, p: np.uint64) -> np.uint64:
    """Return the time to the next device interrupt, NEVER if the machine has none."""
    if s[p + P_NOISE_NS] == U0:
        return NEVER >> U1
    s[p + P_NOISE_INDEX] += U1
    bits = draw(s[R_SEED], s[p + P_ID], STREAM_IRQ_GAP, s[p + P_NOISE_INDEX])
    return max(exponential(bits, s[p + P_NOISE_NS]), U1)


@kernel
def wake_clock(s: Arena, p: np.uint64) -> None:
    """Start the interrupts of a CPU that was idle: its tick was off."""
    now = s[p + P_NOW]
    if s[p + P_TICK_AT] < now:
        period = s[p + P_TICK_NS]
        s[p + P_TICK_AT] += ((now - s[p + P_TICK_AT]) // period + U1) * period
    if s[p + P_NOISE_AT] < now:
        s[p + P_NOISE_AT] = now + noise_gap(s, p)
    s[p + P_IRQ_AT] = min(s[p + P_TICK_AT], s[p + P_NOISE_AT])


@kernel
def _count_host(s: Arena, p: np.uint64, active: np.uint64, start: np.uint64, end: np.uint64) -> None:
    """Let the counters that are on in the host count what its kernel retires.

    Cycles need no program: it is gone through once somebody counts something else.
    """
    cycles = rate_at(end, s[p + P_CORE_RATE]) - rate_at(start, s[p + P_CORE_RATE])
    others = U0
    left = active
    while left != U0:
        slot = lowest_bit(left)
        left &= left - U1
        if s[p + HW_KIND + slot] != KIND_CYCLES:
            others |= U1 << slot
        elif s[p + HW_CPL + slot] & U1 != U0:
            hw_count(s, p, slot, cycles)
    if others == U0:
        s[p + P_HOST_OWED] += cycles
    else:
        _count_others(s, p, others, start, end, cycles)


@kernel
def _count_others(
    s: Arena, p: np.uint64, slots: np.uint64, start: np.uint64, end: np.uint64, cycles: np.uint64
) -> None:
    """Let counters of other events than cycles count what the host's kernel retires."""
    program = s[p + P_HOST_PROGRAM]
    cursor = p + P_HOST_CURSOR
    program_seek(s, program, cursor, s[p + P_HOST_OWED])
    s[p + P_HOST_OWED] = U0
    left = slots
    while left != U0:
        slot = lowest_bit(left)
        left &= left - U1
        s[R_SCRATCH + slot] = _host_total(s, p, program, cursor, slot, start)
    program_seek(s, program, cursor, cycles)
    left = slots
    while left != U0:
        slot = lowest_bit(left)
        left &= left - U1
        hw_count(s, p, slot, _host_total(s, p, program, cursor, slot, end) - s[R_SCRATCH + slot])


@kernel
def _host_total(
    s: Arena, p: np.uint64, program: np.uint64, cursor: np.uint64, slot: np.uint64, at: np.uint64
) -> np.uint64:
    """Return a running total of what a slot counts while host kernel code runs."""
    kind = s[p + HW_KIND + slot]
    if s[p + HW_CPL + slot] & U1 == U0 or kind == KIND_NONE:
        return U0
    if kind == KIND_REF_CYCLES:
        return rate_at(at, s[p + P_TSC_RATE])
    if kind == KIND_BUS_CYCLES:
        return rate_at(at, s[p + P_BUS_RATE])
    return program_count(s, program, cursor, kind)
