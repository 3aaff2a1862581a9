"""The counters of a physical CPU against a twin written from the manual (SDM 18.2, 10.5.1; pmu-facts A)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpmu.kernels import columns as col
from vpmu.kernels.events import KINDS_WORDS, encode_kinds
from vpmu.kernels.hardware import GP, OK, hw_count, hw_rdpmc, hw_read, hw_reset, hw_write
from vpmu.kernels.jit import U64, Arena

WIDTH = 48
TOP = (1 << WIDTH) - 1
ROW = U64(col.RUN_COLUMNS + int(KINDS_WORDS))

PMC, FULL_PMC, EVENTSEL, FIXED_CTR = 0xC1, 0x4C1, 0x186, 0x309
DEBUGCTL, PERF_CAPABILITIES, FIXED_CTR_CTRL = 0x1D9, 0x345, 0x38D
GLOBAL_STATUS, GLOBAL_CTRL, GLOBAL_OVF_CTRL, LVTPC = 0x38E, 0x38F, 0x390, 0x834


class GeneralProtection(Exception):
    """The access faults."""


def bits(*positions: int) -> int:
    """Return a word with these bits set."""
    return sum(1 << position for position in positions)


@dataclass
class Twin:
    """A logical CPU of Broadwell-EP: architectural PMU version 3, counters of 48 bits, full-width writes."""

    nr_gp: int
    nr_fixed: int = 3
    counters: dict[int, int] = field(default_factory=dict)
    """By bit number in GLOBAL_CTRL: GP counters from 0, fixed ones from 32."""
    registers: dict[int, int] = field(default_factory=dict)
    pmi: bool = False

    def __post_init__(self) -> None:
        self.counters = dict.fromkeys([*range(self.nr_gp), *range(32, 32 + self.nr_fixed)], 0)
        self.registers = dict.fromkeys(range(EVENTSEL, EVENTSEL + self.nr_gp), 0)
        self.registers |= dict.fromkeys((DEBUGCTL, FIXED_CTR_CTRL, GLOBAL_STATUS, GLOBAL_CTRL), 0)
        self.registers[LVTPC] = 1 << 16

    def _valid(self, msr: int) -> int:
        """Return the bits of a register that software may set."""
        counters = bits(*self.counters)
        if EVENTSEL <= msr < EVENTSEL + self.nr_gp:
            # Event, umask, USR, OS, edge, pin control, INT, AnyThread, EN, INV, CMASK; IN_TX and IN_TXCP.
            return 0x3FFFFFFFF
        return {
            FIXED_CTR_CTRL: (1 << 4 * self.nr_fixed) - 1,  # OS, USR, AnyThread, PMI for each
            GLOBAL_CTRL: counters,
            GLOBAL_OVF_CTRL: counters | bits(55, 61, 62, 63),
            DEBUGCTL: bits(0, 1, *range(6, 16)),
            LVTPC: 0x7FF | bits(12, 16),
        }[msr]

    def counter(self, msr: int) -> int | None:
        """Return the counter that a register number stands for."""
        for first, count, bit in (
            (PMC, self.nr_gp, 0),
            (FULL_PMC, self.nr_gp, 0),
            (FIXED_CTR, self.nr_fixed, 32),
        ):
            if first <= msr < first + count:
                return msr - first + bit
        return None

    def write(self, msr: int, value: int) -> None:
        """Execute WRMSR."""
        counter = self.counter(msr)
        if counter is not None:
            self._write_counter(msr, counter, value)
        elif msr == GLOBAL_OVF_CTRL or (msr in self.registers and msr != GLOBAL_STATUS):
            if value & ~self._valid(msr):
                raise GeneralProtection
            if msr == GLOBAL_OVF_CTRL:
                self.registers[GLOBAL_STATUS] &= ~value
            else:
                self.registers[msr] = value & ~bits(12) if msr == LVTPC else value
        else:
            raise GeneralProtection

    def _write_counter(self, msr: int, counter: int, value: int) -> None:
        if PMC <= msr < PMC + self.nr_gp:
            low = value & 0xFFFFFFFF
            value = low - (1 << 32) if low >> 31 else low
        elif msr < FIXED_CTR + self.nr_fixed and msr >= FIXED_CTR:
            pass
        elif value > TOP:
            raise GeneralProtection
        self.counters[counter] = value & TOP

    def read(self, msr: int) -> int:
        """Execute RDMSR."""
        counter = self.counter(msr)
        if counter is not None:
            return self.counters[counter]
        if msr == PERF_CAPABILITIES:
            return 0x32C4
        if msr not in self.registers:
            raise GeneralProtection
        return self.registers[msr]

    def rdpmc(self, index: int) -> int:
        """Execute RDPMC."""
        kind, number = index >> 16, index & 0xFFFF
        counter = number if kind == 0 else 32 + number if kind == 0x4000 else -1
        if counter not in self.counters or (kind == 0 and number >= 32):
            raise GeneralProtection
        return self.counters[counter]

    def control(self, counter: int) -> tuple[bool, bool]:
        """Return whether a counter's own control lets it count, and whether its overflow asks for a PMI."""
        if counter < 32:
            word = self.registers[EVENTSEL + counter]
            return bool(word >> 22 & 1), bool(word >> 20 & 1)
        nibble = self.registers[FIXED_CTR_CTRL] >> 4 * (counter - 32) & 15
        return nibble & 3 != 0, nibble & 8 != 0

    def count(self, counter: int, events: int) -> None:
        """Let a counter count events."""
        total = self.counters[counter] + events
        self.counters[counter] = total & TOP
        if total <= TOP:
            return
        self.registers[GLOBAL_STATUS] |= 1 << counter
        if self.control(counter)[1]:
            if not self.registers[LVTPC] >> 16 & 1:
                self.pmi = True
                self.registers[LVTPC] |= 1 << 16
            if self.registers[DEBUGCTL] >> 12 & 1:
                self.registers[GLOBAL_CTRL] = 0


def hardware(nr_gp: int) -> Arena:
    """Return an arena with one physical CPU after reset."""
    s = np.zeros(int(ROW) + col.PCPU_COLUMNS, dtype=np.uint64)
    s[col.RUN_COLUMNS : int(ROW)] = encode_kinds([])
    s[col.R_KINDS] = U64(col.RUN_COLUMNS)
    s[ROW + col.HW_NR_GP] = U64(nr_gp)
    s[ROW + col.HW_NR_FIXED] = U64(3)
    s[ROW + col.HW_MASK] = U64(TOP)
    hw_reset(s, ROW)
    return s


def slot_of(counter: int) -> int:
    """Return the arena's slot of a counter."""
    return counter if counter < 32 else counter - 24


def assert_same(s: Arena, twin: Twin) -> None:
    """Compare every register, counter and enable."""
    armed = active = 0
    for counter, value in twin.counters.items():
        slot = slot_of(counter)
        assert int(s[ROW + col.HW_COUNTER + U64(slot)]) == value
        on = twin.control(counter)[0]
        armed |= on << slot
        active |= (on and twin.registers[GLOBAL_CTRL] >> counter & 1) << slot
    for i in range(twin.nr_gp):
        assert int(s[ROW + col.HW_EVENTSEL + U64(i)]) == twin.registers[EVENTSEL + i]
    names = {
        col.HW_FIXED_CTRL: FIXED_CTR_CTRL,
        col.HW_GLOBAL_CTRL: GLOBAL_CTRL,
        col.HW_GLOBAL_STATUS: GLOBAL_STATUS,
        col.HW_DEBUGCTL: DEBUGCTL,
        col.HW_LVTPC: LVTPC,
    }
    for column, msr in names.items():
        assert int(s[ROW + column]) == twin.registers[msr], hex(msr)
    assert (int(s[ROW + col.HW_ARMED]), int(s[ROW + col.HW_ACTIVE])) == (armed, active)
    assert bool(s[ROW + col.HW_PMI]) == twin.pmi


def write_both(s: Arena, twin: Twin, msr: int, value: int) -> bool:
    """Execute WRMSR on both; return whether it faults."""
    outcome = hw_write(s, ROW, U64(msr), U64(value))
    try:
        twin.write(msr, value)
    except GeneralProtection:
        assert outcome == GP, hex(msr)
        return True
    assert outcome == OK, hex(msr)
    return False


def read_both(s: Arena, twin: Twin, msr: int, *, rdpmc: bool = False) -> None:
    """Execute RDMSR or RDPMC on both."""
    outcome, value = (hw_rdpmc if rdpmc else hw_read)(s, ROW, U64(msr))
    try:
        wanted = (twin.rdpmc if rdpmc else twin.read)(msr)
    except GeneralProtection:
        assert (outcome, value) == (GP, U64(0)), hex(msr)
    else:
        assert (outcome, int(value)) == (OK, wanted), hex(msr)


WORDS = st.integers(0, 2**64 - 1) | st.sampled_from(
    [0, 1, 0xB0, 0xBBB, 0x5300C4, 0x53003C, 0x70000000F, TOP, 1 << 31]
)
WORDS |= st.integers(0, 63).map(lambda bit: 1 << bit)
REGISTERS = st.sampled_from(
    [
        *range(PMC, PMC + 9),
        *range(FULL_PMC, FULL_PMC + 9),
        *range(EVENTSEL, EVENTSEL + 9),
        *range(FIXED_CTR, FIXED_CTR + 4),
        DEBUGCTL,
        PERF_CAPABILITIES,
        *range(FIXED_CTR_CTRL, GLOBAL_OVF_CTRL + 1),
        LVTPC,
        0xC0,
        0x4C0,
        0x185,
        0x38C,
        0x391,
        0,
    ]
)
INDEXES = st.sampled_from(
    [0, 3, 4, 7, 8, 32, 0x40000000, 0x40000002, 0x40000003, 1 << 31, 0x20000000]
) | st.integers(0, 2**32 - 1)
STEPS = st.one_of(
    st.tuples(st.just("write"), REGISTERS, WORDS),
    st.tuples(st.just("read"), REGISTERS, st.just(0)),
    st.tuples(st.just("rdpmc"), INDEXES, st.just(0)),
    st.tuples(st.just("count"), st.sampled_from([0, 1, 3, 32, 33, 34]), st.integers(0, TOP)),
)


@given(st.sampled_from([4, 8]), st.lists(STEPS, max_size=40))
def test_any_accesses_and_counts_do_what_the_manual_says(
    nr_gp: int, steps: list[tuple[str, int, int]]
) -> None:
    s, twin = hardware(nr_gp), Twin(nr_gp)
    for kind, where, value in steps:
        if kind == "write":
            write_both(s, twin, where, value)
        elif kind == "count":
            hw_count(s, ROW, U64(slot_of(where)), U64(value))
            twin.count(where, value)
        else:
            read_both(s, twin, where, rdpmc=kind == "rdpmc")
        assert_same(s, twin)


# Lowest reserved bit of each register with four GP counters; None: every write faults.
RESERVED = {
    EVENTSEL: 34,
    EVENTSEL + 3: 34,
    FULL_PMC: 48,
    FIXED_CTR_CTRL: 12,
    GLOBAL_CTRL: 4,
    GLOBAL_OVF_CTRL: 4,
    DEBUGCTL: 2,
    LVTPC: 11,
    GLOBAL_STATUS: None,
    PERF_CAPABILITIES: None,
    PMC + 4: None,
    FULL_PMC + 4: None,
    EVENTSEL + 4: None,
    FIXED_CTR + 3: None,
    0x391: None,
}


@pytest.mark.parametrize("msr", RESERVED, ids=hex)
def test_a_reserved_bit_or_register_faults_and_changes_nothing(msr: int) -> None:
    s, bit = hardware(4), RESERVED[msr]
    before = s.copy()
    assert hw_write(s, ROW, U64(msr), U64(0 if bit is None else 1 << bit)) == GP
    assert (s == before).all()
    if bit is not None:
        assert hw_write(s, ROW, U64(msr), U64(1 << (bit - 1) if bit != 48 else TOP)) == OK


@pytest.mark.parametrize("bit", range(64))
def test_every_bit_of_every_register(bit: int) -> None:
    """AnyThread (21, and 2, 6, 10 of FIXED_CTR_CTRL) exists in version 3."""
    for msr in RESERVED:
        s, twin = hardware(4), Twin(4)
        write_both(s, twin, msr, 1 << bit)
        assert_same(s, twin)


def test_a_32_bit_write_is_sign_extended_and_a_full_one_is_not() -> None:
    s, twin = hardware(4), Twin(4)
    for msr, value, wanted in (
        (PMC, 0x80000001, 0xFFFF80000001),
        (PMC + 1, 0x123_7FFFFFFF, 0x7FFFFFFF),
        (FULL_PMC + 2, 0x80000001, 0x80000001),
        (FIXED_CTR, 0x80000001, 0x80000001),
    ):
        assert not write_both(s, twin, msr, value)
        assert int(hw_read(s, ROW, U64(msr))[1]) == wanted
    assert_same(s, twin)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("interrupt", [False, True])
@pytest.mark.parametrize("freeze", [False, True])
def test_overflow(masked: bool, interrupt: bool, freeze: bool) -> None:
    """The status bit is set in any case; a PMI needs INT and an open LVT, which it closes; freezing needs
    INT.
    """
    s, twin = hardware(4), Twin(4)
    for msr, value in (
        (LVTPC, 0x400 | masked << 16),
        (DEBUGCTL, freeze << 12),
        (EVENTSEL, 0x4300C4 | interrupt << 20),
        (GLOBAL_CTRL, 0x70000000F),
        (FULL_PMC, TOP),
    ):
        assert not write_both(s, twin, msr, value)
    hw_count(s, ROW, U64(0), U64(1))
    twin.count(0, 1)
    assert_same(s, twin)
    assert int(s[ROW + col.HW_GLOBAL_STATUS]) == 1
    assert bool(s[ROW + col.HW_PMI]) == (interrupt and not masked)
    assert (s[ROW + col.HW_ACTIVE] == 0) == (freeze and interrupt)
    hw_count(s, ROW, U64(0), U64(TOP))
    assert int(s[ROW + col.HW_COUNTER]) == TOP


def test_the_fifth_to_eighth_counter_exist_without_hyper_threading_only() -> None:
    for nr_gp in (4, 8):
        s = hardware(nr_gp)
        for i in range(9):
            for first in (PMC, FULL_PMC, EVENTSEL):
                assert hw_write(s, ROW, U64(first + i), U64(5)) == (OK if i < nr_gp else GP)
                assert hw_read(s, ROW, U64(first + i))[0] == (OK if i < nr_gp else GP)
            assert hw_rdpmc(s, ROW, U64(i))[0] == (OK if i < nr_gp else GP)
