"""The truth: what each counter must read, from what the guest programmed and what it retired.

The account shares no code with the counters. It follows the guest's own writes and, wherever a counter goes
on or off, takes the difference of two totals of retired events; nothing is added up stretch by stretch, and
no hardware, save, restore or host perf has a part in it. Every counter that the guest reads is compared.
"""

import numpy as np

from vpmu.kernels.columns import (
    FIXED_SLOT,
    G_CURRENT,
    G_FILTER,
    G_FULL_WIDTH,
    G_KERNEL_CURSOR,
    G_KERNEL_PROGRAM,
    G_LEVEL,
    G_MASK,
    G_OUTSIDE,
    G_STILL,
    G_VCPU,
    O_TOTAL,
    R_KINDS,
    T_ARMED,
    T_BASE,
    T_COUNT,
    T_DUE,
    T_EDGE,
    T_EVENTSEL,
    T_FIXED_CTRL,
    T_FRESH,
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
    TOTALS,
    V_HOST,
)
from vpmu.kernels.designs.filter import filter_allows, filter_allows_fixed
from vpmu.kernels.events import (
    FIXED_KIND,
    KIND_BRANCHES,
    KIND_BUS_CYCLES,
    KIND_INSTRUCTIONS,
    KIND_NONE,
    KIND_REF_CYCLES,
    event_kind,
)
from vpmu.kernels.integers import MASK32, U0, U1, U2, U3, U4, U8, U16, lowest_bit, popcount
from vpmu.kernels.jit import U64, Arena, inlined, kernel
from vpmu.kernels.msr import changed_fields
from vpmu.kernels.program import program_count

_KINDS = np.array([int(kind) for kind in FIXED_KIND], dtype=np.uint64)
_SIGN = U64(1 << 31)
_EN = U64(22)
_INT = U64(20)
_KIND = U64(0xFF)
_TOTALS = U64(TOTALS)


@kernel
def retired(s: Arena, g: np.uint64, kind: np.uint64, levels: np.uint64) -> np.uint64:
    """Return a running total of events at the given privilege levels.

    Only differences within one thread's turn mean something.
    """
    if kind == KIND_NONE:
        return U0
    if s[g + G_OUTSIDE] != U0:
        first = s[g + G_OUTSIDE] + O_TOTAL + kind
        return (levels & U1) * s[first] + (levels >> U1) * s[first + _TOTALS]
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
    if s[g + G_FILTER] != U0 and not _allowed(s, g, slot):
        armed = U0
    s[g + T_MEANING + slot] = word
    s[g + T_ARMED] = (s[g + T_ARMED] & ~(U1 << slot)) | armed << slot


@kernel
def _allowed(s: Arena, g: np.uint64, slot: np.uint64) -> bool:
    """Return whether the VM's event filter lets a counter count."""
    if slot < FIXED_SLOT:
        return filter_allows(s, s[g + G_FILTER], s[g + T_EVENTSEL + slot])
    return filter_allows_fixed(s, s[g + G_FILTER], slot - FIXED_SLOT)


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
    """Add what was retired since truth_runs() to a counter's count.

    What was retired while the counter stood still is kept apart.
    """
    events = _total(s, g, slot) - s[g + T_EDGE + slot]
    if (s[g + T_STILL] >> slot) & U1 != U0:
        s[g + T_LOST + slot] += events
        return
    _add(s, g, slot, events)


@kernel
def _add(s: Arena, g: np.uint64, slot: np.uint64, events: np.uint64) -> None:
    """Add events to a counter's count; note a wrap, and the PMI due for it."""
    s[g + T_COUNT + slot] += events
    if s[g + T_BASE + slot] + s[g + T_COUNT + slot] > s[g + G_MASK]:
        s[g + T_BASE + slot] -= s[g + G_MASK] + U1
        s[g + T_DUE] += s[g + T_MEANING + slot] >> U16


@inlined
def _off(s: Arena, g: np.uint64, slots: np.uint64) -> None:
    """Close the accounts of counters that go off; those that went on since code ran have counted nothing."""
    ran = slots & ~s[g + T_FRESH]
    s[g + T_FRESH] &= ~slots
    while ran != U0:
        _close(s, g, lowest_bit(ran))
        ran &= ran - U1


@inlined
def _on(s: Arena, g: np.uint64, slots: np.uint64) -> None:
    """Open the accounts of counters that go on: from where code runs next."""
    s[g + T_FRESH] |= slots


@kernel
def truth_runs(s: Arena, g: np.uint64) -> None:
    """Take down the running totals of counters that went on, before code runs; see T_FRESH."""
    fresh = s[g + T_FRESH]
    s[g + T_FRESH] = U0
    while fresh != U0:
        slot = lowest_bit(fresh)
        fresh &= fresh - U1
        s[g + T_EDGE + slot] = _total(s, g, slot)


@kernel
def truth_emulated(s: Arena, g: np.uint64, retires: np.uint64) -> None:
    """Count an instruction, and perhaps a branch, that the hypervisor emulated: RETIRES_ bits."""
    slots = s[g + T_ON]
    while slots != U0:
        slot = lowest_bit(slots)
        slots &= slots - U1
        word = s[g + T_MEANING + slot]
        kind = word & _KIND
        counts = (kind == KIND_INSTRUCTIONS and retires & U1 != U0) or (
            kind == KIND_BRANCHES and retires & U2 != U0
        )
        if counts and (word >> U8) & s[g + G_LEVEL] != U0:
            _add(s, g, slot, U1)


@kernel
def truth_pause(s: Arena, g: np.uint64) -> None:
    """Close all intervals: another thread comes, or the account is read."""
    _off(s, g, s[g + T_ON])


@kernel
def truth_resume(s: Arena, g: np.uint64) -> None:
    """Open the intervals again."""
    _on(s, g, s[g + T_ON])


@kernel
def truth_still(s: Arena, g: np.uint64) -> None:
    """Follow the host's report of counters that stand still, before the guest goes on."""
    changed = (s[g + G_STILL] ^ s[g + T_STILL]) & s[g + T_ON]
    _off(s, g, changed)
    s[g + T_STILL] = s[g + G_STILL]
    _on(s, g, changed)


@kernel
def _refresh(s: Arena, g: np.uint64, slot: np.uint64) -> None:
    """Take a counter's new control in; turn its account on if it now counts."""
    _programmed(s, g, slot)
    if (s[g + T_ARMED] & _slots(s[g + T_GLOBAL_CTRL])) >> slot & U1 != U0:
        s[g + T_ON] |= U1 << slot
        _on(s, g, U1 << slot)


@kernel
def _control(s: Arena, g: np.uint64, slot: np.uint64) -> None:
    """Turn a counter's account off before its control changes."""
    if (s[g + T_ON] >> slot) & U1 != U0:
        _off(s, g, U1 << slot)
        s[g + T_ON] &= ~(U1 << slot)


@kernel
def truth_global_ctrl(s: Arena, g: np.uint64, value: np.uint64) -> None:
    """Follow a write of GLOBAL_CTRL."""
    s[g + T_GLOBAL_CTRL] = value
    enabled = s[g + T_ARMED] & _slots(value)
    before = s[g + T_ON]
    s[g + T_ON] = enabled
    _off(s, g, before & ~enabled)
    _on(s, g, enabled & ~before)


@kernel
def truth_fixed_ctrl(s: Arena, g: np.uint64, value: np.uint64) -> None:
    """Follow a write of FIXED_CTR_CTRL."""
    changed = changed_fields(s[g + T_FIXED_CTRL], value)
    left = changed
    while left != U0:
        _control(s, g, FIXED_SLOT + (lowest_bit(left) >> U2))
        left &= left - U1
    s[g + T_FIXED_CTRL] = value
    while changed != U0:
        _refresh(s, g, FIXED_SLOT + (lowest_bit(changed) >> U2))
        changed &= changed - U1


@kernel
def truth_eventsel(s: Arena, g: np.uint64, slot: np.uint64, value: np.uint64) -> None:
    """Follow a write of an event selector."""
    _control(s, g, slot)
    s[g + T_EVENTSEL + slot] = value
    _refresh(s, g, slot)


@inlined
def truth_ovf_ctrl(s: Arena, g: np.uint64, value: np.uint64) -> None:
    """Follow a write of GLOBAL_OVF_CTRL: the guest has taken those overflows."""
    s[g + T_TAKEN] += popcount(value & U64(0x7000000FF))


@inlined
def truth_counter(s: Arena, g: np.uint64, slot: np.uint64, value: np.uint64) -> None:
    """Follow a write of a counter.

    By its old number a general-purpose one takes 32 bits of the guest's word, sign-extended.
    """
    full = slot >= FIXED_SLOT or s[s[g + G_VCPU] + V_HOST] != U0
    word = value if full else ((value & MASK32) ^ _SIGN) - _SIGN
    _count_written(s, g, slot, word & s[g + G_MASK])


@inlined
def truth_full_counter(s: Arena, g: np.uint64, slot: np.uint64, value: np.uint64) -> None:
    """Follow a write of a counter by its full-width number."""
    if s[g + G_FULL_WIDTH] != U0:
        _count_written(s, g, slot, value)


@kernel
def _count_written(s: Arena, g: np.uint64, slot: np.uint64, value: np.uint64) -> None:
    """Follow a write of a counter."""
    on = s[g + T_ON] & (U1 << slot)
    _off(s, g, on)
    s[g + T_BASE + slot] = value
    s[g + T_COUNT + slot] = U0
    s[g + T_SEEN + slot] = U0
    s[g + T_LOST + slot] = U0
    _on(s, g, on)


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
    on = s[g + T_ON] & (U1 << slot)
    _off(s, g, on)
    _on(s, g, on)
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
