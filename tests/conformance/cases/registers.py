"""Cases of registers: every index and every bit, what may be written and what it reads afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tests.conformance.setup import Setup, Step, code, cpuid, host_read, host_write, rdpmc, read, write
from tests.conformance.table import Case
from tests.conformance.twin import (
    ABSENT,
    DEBUGCTL,
    EVENTSEL,
    FIXED,
    FIXED_CTR,
    FIXED_CTR_CTRL,
    FULL_PMC,
    GLOBAL_CTRL,
    GLOBAL_OVF_CTRL,
    GLOBAL_STATUS,
    LVTPC,
    PERF_CAPABILITIES,
    PMC,
)

DESIGNS: Final = ("legacy", "optimized")
RULE_SETS: Final = ("5.0", "7.0")
GUESTS: Final = [Setup(d, k, version) for d in DESIGNS for k in RULE_SETS for version in (2, 1)]
HARDWARE: Final = [Setup("native"), Setup("native", nr_gp=8)]
SMALL: Final = [
    Setup(d, k, nr_gp=n, nr_fixed=m) for d in DESIGNS for k in RULE_SETS for n, m in ((1, 2), (0, 1))
]

ALL: Final = (1 << 64) - 1
WORDS: Final = (
    0,
    1,
    0xDEAD,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    0x1_0000_0000,
    0x1234_8765_4321,
    0x7FFF_FFFF_FFFF,
    0x8000_0000_0000,
    0xFFFF_FFFF_FFFF,
    0x1_0000_0000_0000,
    0x8000_0000_0000_0000,
    ALL,
)
INDEXES: Final = (
    *range(10),
    31,
    32,
    33,
    64,
    0xFF,
    0xFFFF,
    0x10000,
    0x10001,
    0x10002,
    0x20000000,
    0x3FFFFFFF,
    *range(FIXED, FIXED + 5),
    FIXED + 0x1F,
    FIXED + 0x10000,
    0x7FFFFFFF,
    *range(0x80000000, 0x80000005),
    *range(0xC0000000, 0xC0000004),
    0xFFFFFFFF,
)
_BIT_RULES: Final = {
    16: "A2.2",
    17: "A2.3",
    18: "A2.4",
    19: "A2.5",
    20: "A2.6",
    21: "A2.7",
    22: "A2.8",
    23: "A2.9",
}


def bit_rule(bit: int) -> str:
    """Return the rule about a bit of PERFEVTSELx."""
    if bit < 16:
        return "A2.1"
    if bit < 24:
        return _BIT_RULES[bit]
    if bit < 32:
        return "A2.10"
    return "A2.11" if bit < 34 else "A2.12"


def cases() -> Iterator[Case]:
    """Return the cases of all setups."""
    for setup in [*GUESTS, *HARDWARE, *SMALL]:
        yield from _eventsels(setup)
        yield from _controls(setup)
        yield from _counters(setup)
        yield from _rdpmc(setup)
        yield from _absent(setup)
        yield from _others(setup)
        yield from _by_host(setup)
        leaf = tuple(cpuid(register) for register in range(4))
        yield Case(("A6.1", "A6.2", "A6.3", "A6.4", "A6.5", "A6.7", "A6.8"), setup, (), leaf)


def _eventsels(setup: Setup) -> Iterator[Case]:
    """Each bit of each selector that may be set alone, and the others in one sweep."""
    hardware = setup.design == "native"
    free = [bit for bit in range(34 if hardware else 32) if hardware or bit != 21]
    for index in range(setup.nr_gp):
        msr = EVENTSEL + index
        look = (read(msr), read(PMC + index))
        for bit in free:
            extra = ("D3.14",) if bit == 19 and not hardware else ()
            yield Case((bit_rule(bit), "A1.2", "D3.15", *extra), setup, (), (write(msr, 1 << bit),), look)
        kept = (write(msr, 0x13003C),)
        for rule, bits_ in (("A2.7", [21]), ("A2.11", [32, 33]), ("A2.12", range(34, 64))):
            sweep = tuple(write(msr, 1 << bit) for bit in bits_ if bit not in free)
            if sweep:
                yield Case((rule, "A3.1", "D3.13", "E3.4"), setup, kept, sweep, look)
        yield Case(("A3.1", "D3.13", "E3.4"), setup, kept, (write(msr, ALL), write(msr, 0x10053003C)), look)


def _controls(setup: Setup) -> Iterator[Case]:
    """Each bit of FIXED_CTR_CTRL, GLOBAL_CTRL, GLOBAL_OVF_CTRL and LVTPC."""
    rule: tuple[str, ...]
    for bit in range(12):
        rule = ("A3.10", "D3.2") if bit & 3 == 2 else ("A1.6", "D3.15")
        rule += ("E3.2", "D3.3", "F1.6") if bit // 4 >= setup.nr_fixed else ()
        yield _one(rule, setup, FIXED_CTR_CTRL, bit, 0x1)
    yield _sweep(("A3.2", "D3.2"), setup, FIXED_CTR_CTRL, range(12, 64), 0x8)
    for bit in [*range(8), *range(32, 36)]:
        there = bit < setup.nr_gp or 32 <= bit < 32 + setup.nr_fixed
        rule = ("A1.8", "D3.15") if there else ("A3.8", "A3.3", "D3.5", "F1.6")
        yield _one(rule, setup, GLOBAL_CTRL, bit, 0)
    yield _sweep(("A3.3", "D3.5"), setup, GLOBAL_CTRL, [*range(8, 32), *range(35, 64)], 1)
    for bit in (55, 58, 59, 60, 61, 62, 63):
        about = {55: "A1.12", 61: "A1.12", 62: "D3.7", 63: "D3.7"}.get(bit, "A4.20")
        yield _one((about, "A3.4", "E3.3", "D3.8", "E3.15"), setup, GLOBAL_OVF_CTRL, bit, 0)
    others = [*range(8, 32), *range(35, 55), 56, 57]
    yield _sweep(("A3.4", "E3.3"), setup, GLOBAL_OVF_CTRL, others, 0)
    for bit in range(19):
        yield _one(("A4.15", "A4.10"), setup, LVTPC, bit, 0x10000)
    yield _sweep(("A4.15",), setup, LVTPC, range(19, 64), 0x400)
    yield from _overflow_bits(setup)


def _one(rules: tuple[str, ...], setup: Setup, msr: int, bit: int, before: int) -> Case:
    absent = ("A6.6", "D3.17") if setup.version == 1 and msr != LVTPC else ()
    look = (read(msr),) if msr != GLOBAL_OVF_CTRL else (read(msr), read(GLOBAL_STATUS))
    return Case((*rules, *absent), setup, (write(msr, before),), (write(msr, 1 << bit),), look)


def _sweep(rules: tuple[str, ...], setup: Setup, msr: int, bits_: range | list[int], before: int) -> Case:
    """Every bit of a range, one after the other."""
    sweep = tuple(write(msr, 1 << bit) for bit in bits_)
    return Case(rules, setup, (write(msr, before),), sweep, (read(msr),))


def overflow_all(setup: Setup) -> tuple[Step, ...]:
    """Return the steps that make every counter overflow, but that of reference cycles."""
    steps: list[Step] = []
    for index in range(setup.nr_gp):
        steps += [write(PMC + index, 0xFFFFFFFC), write(EVENTSEL + index, 0x4100C4 if index else 0x41003C)]
    for index in range(min(setup.nr_fixed, 2)):
        steps.append(write(FIXED_CTR + index, 0xFFFFFFFFFFFC))
    return (*steps, write(FIXED_CTR_CTRL, 0x022 if setup.nr_fixed > 1 else 0x2), *on(setup), code(10))


def on(setup: Setup) -> tuple[Step, ...]:
    """Return what sets every bit of GLOBAL_CTRL."""
    return (write(GLOBAL_CTRL, ((1 << setup.nr_gp) - 1) | ((1 << setup.nr_fixed) - 1) << 32),)


def _overflow_bits(setup: Setup) -> Iterator[Case]:
    """GLOBAL_OVF_CTRL bit by bit while every counter's bit of GLOBAL_STATUS is set."""
    for bit in [*range(8), *range(32, 36)]:
        there = bit < setup.nr_gp or 32 <= bit < 32 + setup.nr_fixed
        rules = ("A1.13", "A1.7", "A1.9", "A4.6", "A4.7", "F3.2", "F3.3") if there else ("A3.8", "A3.4")
        access = (write(GLOBAL_OVF_CTRL, 1 << bit),)
        look = (read(GLOBAL_STATUS), read(GLOBAL_OVF_CTRL))
        yield Case((*rules, "D3.8", "E3.15"), setup, overflow_all(setup), access, look)


def _counters(setup: Setup) -> Iterator[Case]:
    """Every counter, by each of its registers, and words at the edges."""
    look: tuple[Step, ...]
    names: tuple[str, ...]
    rules = {PMC: ("A4.1", "A1.1", "D3.9"), FULL_PMC: ("A4.2", "A1.3", "A3.9", "E1.4", "E3.6", "D3.19")}
    for word in WORDS:
        marked = ("F1.3",) if word == 0xDEAD else ()
        for index in range(setup.nr_gp):
            look = (read(PMC + index), read(FULL_PMC + index), rdpmc(index), read(PMC + (index ^ 1)))
            for first, names in rules.items():
                names = (*names, "A4.4", "A1.4", *marked)
                yield Case(names, setup, (), (write(first + index, word),), look)
        for index in range(setup.nr_fixed):
            names = ("A4.3", "A1.5", "A3.11", "D3.10", "D5.9", "E1.8", "A6.5", "A4.4", *marked)
            look = (read(FIXED_CTR + index), rdpmc(FIXED + index))
            yield Case(names, setup, (), (write(FIXED_CTR + index, word),), look)


def _rdpmc(setup: Setup) -> Iterator[Case]:
    """RDPMC with indexes of every kind, all counters holding something else."""
    rules: tuple[str, ...]
    words = [write(PMC + index, 0xFFFFFF00 | index) for index in range(setup.nr_gp)]
    words += [write(FIXED_CTR + index, 0x7777_0000 | index) for index in range(setup.nr_fixed)]
    for index in INDEXES:
        number = index & 0xFFFF
        if index >> 31:
            rules = ("A5.5", "D3.23", "D3.22", "F1.4")
        elif index in (0x10000, 0x10001, 0x10002):
            rules = ("D3.25", "A5.4")
        elif index >> 16 not in (0, 0x4000):
            rules = ("A5.4", "E3.7", "D3.22")
        elif number >= (setup.nr_fixed if index >> 30 else setup.nr_gp):
            rules = ("A5.3", "F3.4", "A6.5") if index == 64 or index >> 30 else ("A5.3",)
        else:
            rules = ("A5.2", "D3.22", "A4.4") if index >> 30 else ("A5.1", "A4.4")
        yield Case(rules, setup, tuple(words), (rdpmc(index),))


def _absent(setup: Setup) -> Iterator[Case]:
    """Registers that are not there: each read, and written with 0 and with 1."""
    for rule, msrs in ABSENT.items():
        for msr in msrs:
            yield Case((rule, "D3.19"), setup, (), (read(msr), write(msr, 0), write(msr, 1), read(msr)))
    for index in range(setup.nr_gp, 9):
        for first in (PMC, EVENTSEL, FULL_PMC):
            msr = first + index
            rules = ("D3.18", "F1.5", "A3.7") if msr in (0xC1, 0xC2, 0x186, 0x187) else ("A3.7",)
            yield Case(rules, setup, (), (read(msr), write(msr, 0), write(msr, 0x53), read(msr)))
    for index in range(setup.nr_fixed, 5):
        msr = FIXED_CTR + index
        yield Case(("A1.5", "A6.5"), setup, (), (read(msr), write(msr, 0), write(msr, 0x53), read(msr)))
    for msr in (0, 0x10, 0xC0, 0x185, 0x18E, 0x308, 0x38C, 0x393, 0x4C0, 0x833, 0x835):
        yield Case(("A1.1", "A1.2"), setup, (), (read(msr), write(msr, 0), read(msr)))


def _by_host(setup: Setup) -> Iterator[Case]:
    """What the host reads and writes for a migration: all of a counter, GLOBAL_STATUS, no acknowledgement."""
    look: tuple[Step, ...]
    if setup.design == "native":
        return
    for word in WORDS:
        for msr in (PMC, FIXED_CTR, FULL_PMC):
            access = (host_write(msr, word),)
            yield Case(("D3.24",), setup, (), access, (read(msr), host_read(msr), read(GLOBAL_STATUS)))
    overflown = overflow_all(setup)
    for bit in [*range(8), 32, 33, 34, 35, 55, 58, 61, 62, 63]:
        look = (read(GLOBAL_STATUS), host_read(GLOBAL_STATUS), read(GLOBAL_OVF_CTRL))
        yield Case(("D3.6",), setup, overflown, (host_write(GLOBAL_STATUS, 1 << bit),), look)
        yield Case(("D3.27", "D3.8"), setup, overflown, (host_write(GLOBAL_OVF_CTRL, 1 << bit),), look)
    for word in (0, 0x2000, 0x32C4, 0x2001, 0x4000, 0x6000, 0x3000):
        look = (read(PERF_CAPABILITIES), host_read(PERF_CAPABILITIES), read(FULL_PMC), write(FULL_PMC, 1))
        yield Case(("D3.28",), setup, (), (host_write(PERF_CAPABILITIES, word),), look)
    for msr, word in ((EVENTSEL, 0x53003C), (EVENTSEL, 1 << 40), (FIXED_CTR_CTRL, 0xBB), (FIXED_CTR_CTRL, 4)):
        look = (host_read(msr), read(msr))
        yield Case(("D3.13" if msr == EVENTSEL else "D3.2",), setup, (), (host_write(msr, word),), look)
    counted = (write(EVENTSEL, 0x4200C0), *on(setup))
    yield Case(("D3.29", "E3.16"), setup, counted, (host_read(PMC), host_write(DEBUGCTL, 0)), (rdpmc(0),))


def _others(setup: Setup) -> Iterator[Case]:
    """GLOBAL_STATUS and PERF_CAPABILITIES, which nobody writes, DEBUGCTL, and the state after reset."""
    v1 = ("A6.6", "D3.17") if setup.version == 1 else ()
    for word in (0, 1, 1 << 32, 1 << 63, ALL):
        look = (read(GLOBAL_STATUS),)
        yield Case(("A3.5", *v1), setup, overflow_all(setup), (write(GLOBAL_STATUS, word),), look)
    for word in (0, 0x2000, 0x32C4, 0x12000, ALL):
        look = (read(PERF_CAPABILITIES),)
        names = ("A3.6", "E3.5", "F3.1", "A1.10", "E1.4", "D3.19")
        yield Case(names, setup, (), (write(PERF_CAPABILITIES, word),), look)
    for bit in range(17):
        look = (read(DEBUGCTL),)
        names = ("A1.11", "D3.20", "D5.12", *(("A4.16",) if bit == 12 else ()))
        yield Case(names, setup, (write(DEBUGCTL, 1),), (write(DEBUGCTL, 1 << bit),), look)
    yield _sweep(("A1.11", "D3.20"), setup, DEBUGCTL, range(17, 64), 0)
    for msr in (
        FIXED_CTR_CTRL,
        GLOBAL_STATUS,
        GLOBAL_CTRL,
        GLOBAL_OVF_CTRL,
        LVTPC,
        DEBUGCTL,
        PERF_CAPABILITIES,
    ):
        of = {GLOBAL_CTRL: ("A4.18", "D3.26", "E1.7"), LVTPC: ("A4.10",), PERF_CAPABILITIES: ("A1.10",)}
        yield Case((*of.get(msr, ("A1.7", "A1.9")), *v1), setup, (), (read(msr),))
    for first, rule in ((PMC, "A1.1"), (EVENTSEL, "A1.2"), (FIXED_CTR, "A1.5"), (FULL_PMC, "A1.3")):
        count = setup.nr_fixed if first == FIXED_CTR else setup.nr_gp
        yield Case((rule,), setup, (), tuple(read(first + index) for index in range(count)) or (read(first),))
