"""The truth: what each counter must read, from what the guest programmed and what it retired.

The account shares no code with the counters. It follows the guest's own writes and, wherever a counter goes
on or off, takes the difference of two totals of retired events; nothing is added up stretch by stretch, and
no hardware, save, restore or host perf has a part in it. Every counter that the guest reads is compared.
"""

import numpy as np

from vpmu.kernels.columns import (
    FIXED_SLOT,
    G_CURRENT,
    G_FULL_WIDTH,
    G_KERNEL_CURSOR,
    G_KERNEL_PROGRAM,
    G_MASK,
    G_STILL,
    R_KINDS,
    T_ARMED,
    T_BASE,
    T_COUNT,
    T_DUE,
    T_EDGE,
    T_EVENTSEL,
    T_FIXED_CTRL,
    T_GLOBAL_CTRL,
    T_LOST,
    T_MEANING,
    T_ON,
    T_READS,
    T_REF,
    T_SEEN,
    T_SHORT,
    T_STILL,
    T_TAKEN,
    T_WRONG,
    TH_CURSOR,
    TH_PROGRAM,
)
from vpmu.kernels.events import FIXED_KIND, KIND_BUS_CYCLES, KIND_NONE, KIND_REF_CYCLES, event_kind
from vpmu.kernels.integers import MASK32, U0, U1, U2, U3, U4, U8, U16, lowest_bit, popcount
from vpmu.kernels.jit import U64, Arena, kernel
from vpmu.kernels.msr import (
    EVENTSEL0,
    FIXED_CTR0,
    FIXED_CTR_CTRL,
    FULL_PMC0,
    GLOBAL_CTRL,
    GLOBAL_OVF_CTRL,
    PMC0,
)
from vpmu.kernels.program import program_count

_KINDS = np.array([int(kind) for kind in FIXED_KIND], dtype=np.uint64)
_SIGN = U64(1 << 31)
_EN = U64(22)
_INT = U64(20)
_KIND = U64(0xFF)
_FIELD = U64(15)


@kernel
def retired(s: Arena, g: np.uint64, kind: np.uint64, levels: np.uint64) -> np.uint64:
    """Return a running total of events at the given privilege levels.

    Only differences within one thread's turn mean something.
    """
    if kind == KIND_NONE:
        return U0
    if kind == KIND_REF_CYCLES or kind == KIND_BUS_CYCLES:
        first = g + T_REF if kind == KIND_REF_CYCLES else g + T_REF + U2
        return (levels & U1) * s[first] + (levels >> U1) * s[first + U1]
    total = U0
    thread = s[g + G_CURRENT]
    if levels & U2 != U0 and thread != U0:
        total += program_count(s, s[thread + TH_PROGRAM], thread + TH_CURSOR, kind)
    if levels & U1 != U0:
        total += program_count(s, s[g + G_KERNEL_PROGRAM], g + G_KERNEL_CURSOR, kind)
    return total


@kernel
def _programmed(s: Arena, g: np.uint64, slot: np.uint64) -> None:
    """Note what a counter is programmed to count from now on."""
    if slot < FIXED_SLOT:
        selector = s[g + T_EVENTSEL + slot]
        levels = ((selector >> U64(17)) & U1) | ((selector >> U64(15)) & U2)
        word = event_kind(s, s[R_KINDS], selector) | levels << U8 | ((selector >> _INT) & U1) << U16
        armed = (selector >> _EN) & U1
    else:
        fixed = slot - FIXED_SLOT
        field = s[g + T_FIXED_CTRL] >> (fixed * U4)
        word = _KINDS[fixed] | (field & U3) << U8 | ((field >> U3) & U1) << U16
        armed = U1 if field & U3 != U0 else U0
    s[g + T_MEANING + slot] = word
    s[g + T_ARMED] = (s[g + T_ARMED] & ~(U1 << slot)) | armed << slot


@kernel
def _total(s: Arena, g: np.uint64, slot: np.uint64) -> np.uint64:
    """Return the running total of what a counter counts."""
    word = s[g + T_MEANING + slot]
    return retired(s, g, word & _KIND, (word >> U8) & U3)


@kernel
def _slots(bits: np.uint64) -> np.uint64:
    """Return the slots of a GLOBAL_CTRL word's bits."""
    return (bits & U64(0xFF)) | ((bits >> U64(24)) & U64(0x700))


@kernel
def _close(s: Arena, g: np.uint64, slot: np.uint64) -> None:
    """Add what was retired since _open() to a counter's count; note a wrap, and the PMI due for it.

    What was retired while the counter stood still is kept apart.
    """
    events = _total(s, g, slot) - s[g + T_EDGE + slot]
    if (s[g + T_STILL] >> slot) & U1 != U0:
        s[g + T_LOST + slot] += events
        return
    s[g + T_COUNT + slot] += events
    if s[g + T_BASE + slot] + s[g + T_COUNT + slot] > s[g + G_MASK]:
        s[g + T_BASE + slot] -= s[g + G_MASK] + U1
        s[g + T_DUE] += s[g + T_MEANING + slot] >> U16


@kernel
def _open(s: Arena, g: np.uint64, slot: np.uint64) -> None:
    """Take down the running total as a counter goes on."""
    s[g + T_EDGE + slot] = _total(s, g, slot)


@kernel
def truth_pause(s: Arena, g: np.uint64) -> None:
    """Close all intervals: another thread comes, or the account is read."""
    on = s[g + T_ON]
    while on != U0:
        _close(s, g, lowest_bit(on))
        on &= on - U1


@kernel
def truth_resume(s: Arena, g: np.uint64) -> None:
    """Open the intervals again."""
    on = s[g + T_ON]
    while on != U0:
        _open(s, g, lowest_bit(on))
        on &= on - U1


@kernel
def truth_still(s: Arena, g: np.uint64) -> None:
    """Follow the host's report of counters that stand still, before the guest goes on."""
    changed = (s[g + G_STILL] ^ s[g + T_STILL]) & s[g + T_ON]
    left = changed
    while left != U0:
        _close(s, g, lowest_bit(left))
        left &= left - U1
    s[g + T_STILL] = s[g + G_STILL]
    while changed != U0:
        _open(s, g, lowest_bit(changed))
        changed &= changed - U1


@kernel
def _refresh(s: Arena, g: np.uint64, slot: np.uint64) -> None:
    """Take a counter's new control in; turn its account on if it now counts."""
    _programmed(s, g, slot)
    if (s[g + T_ARMED] & _slots(s[g + T_GLOBAL_CTRL])) >> slot & U1 != U0:
        s[g + T_ON] |= U1 << slot
        _open(s, g, slot)


@kernel
def _control(s: Arena, g: np.uint64, slot: np.uint64) -> None:
    """Turn a counter's account off before its control changes."""
    if (s[g + T_ON] >> slot) & U1 != U0:
        _close(s, g, slot)
        s[g + T_ON] &= ~(U1 << slot)


@kernel
def _global_ctrl(s: Arena, g: np.uint64, value: np.uint64) -> None:
    """Follow a write of GLOBAL_CTRL."""
    s[g + T_GLOBAL_CTRL] = value
    enabled = s[g + T_ARMED] & _slots(value)
    off = s[g + T_ON] & ~enabled
    on = enabled & ~s[g + T_ON]
    s[g + T_ON] = enabled
    while off != U0:
        _close(s, g, lowest_bit(off))
        off &= off - U1
    while on != U0:
        _open(s, g, lowest_bit(on))
        on &= on - U1


@kernel
def _fixed_ctrl(s: Arena, g: np.uint64, value: np.uint64) -> None:
    """Follow a write of FIXED_CTR_CTRL."""
    changed = s[g + T_FIXED_CTRL] ^ value
    for i in range(U3):
        if (changed >> (U64(i) << U2)) & _FIELD != U0:
            _control(s, g, FIXED_SLOT + U64(i))
    s[g + T_FIXED_CTRL] = value
    for i in range(U3):
        if (changed >> (U64(i) << U2)) & _FIELD != U0:
            _refresh(s, g, FIXED_SLOT + U64(i))


@kernel
def truth_write(s: Arena, g: np.uint64, msr: np.uint64, value: np.uint64) -> None:
    """Follow a WRMSR that the guest carried out without a fault.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    g : uint64
        Offset of the guest row.
    msr, value : uint64
    """
    if msr == GLOBAL_CTRL:
        _global_ctrl(s, g, value)
    elif msr == FIXED_CTR_CTRL:
        _fixed_ctrl(s, g, value)
    elif msr - EVENTSEL0 < U8:
        slot = msr - EVENTSEL0
        _control(s, g, slot)
        s[g + T_EVENTSEL + slot] = value
        _refresh(s, g, slot)
    elif msr == GLOBAL_OVF_CTRL:
        s[g + T_TAKEN] += popcount(value & U64(0x7000000FF))
    elif msr - PMC0 < U8:
        word = ((value & MASK32) ^ _SIGN) - _SIGN
        _count_written(s, g, msr - PMC0, word & s[g + G_MASK])
    elif msr - FULL_PMC0 < U8 and s[g + G_FULL_WIDTH] != U0:
        _count_written(s, g, msr - FULL_PMC0, value)
    elif msr - FIXED_CTR0 < U3:
        _count_written(s, g, FIXED_SLOT + (msr - FIXED_CTR0), value & s[g + G_MASK])


@kernel
def _count_written(s: Arena, g: np.uint64, slot: np.uint64, value: np.uint64) -> None:
    """Follow a write of a counter."""
    on = (s[g + T_ON] >> slot) & U1 != U0
    if on:
        _close(s, g, slot)
    s[g + T_BASE + slot] = value
    s[g + T_COUNT + slot] = U0
    s[g + T_SEEN + slot] = U0
    s[g + T_LOST + slot] = U0
    if on:
        _open(s, g, slot)


@kernel
def truth_read(s: Arena, g: np.uint64, slot: np.uint64, value: np.uint64) -> np.uint64:
    """Compare a counter that the guest read; what is missing is added to T_SHORT, once.

    A read is wrong if it differs by anything but the events retired in reported stood-still time.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    g, slot : uint64
        Offset of the guest row; the counter.
    value : uint64
        What the guest got.

    Returns
    -------
    uint64, events
        What the counter had to count since it was last read or written.
    """
    if (s[g + T_ON] >> slot) & U1 != U0:
        _close(s, g, slot)
        _open(s, g, slot)
    expected = (s[g + T_BASE + slot] + s[g + T_COUNT + slot]) & s[g + G_MASK]
    gain = s[g + T_COUNT + slot] - s[g + T_SEEN + slot] + s[g + T_LOST + slot]
    s[g + T_READS] += U1
    if value != expected:
        s[g + T_WRONG] += U1
        s[g + T_BASE + slot] -= expected - value
    s[g + T_SHORT + slot] += expected - value + s[g + T_LOST + slot]
    s[g + T_SEEN + slot] = s[g + T_COUNT + slot]
    s[g + T_LOST + slot] = U0
    return gain
