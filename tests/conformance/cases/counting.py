"""Cases of counters that count: what lets them, overflow, PMIs, freezing, emulated instructions, gaps."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Final

from tests.conformance.cases.registers import DESIGNS, GUESTS, HARDWARE, RULE_SETS, on, overflow_all
from tests.conformance.setup import (
    HALF,
    RATES,
    WORK,
    Setup,
    Step,
    code,
    cpuid,
    emulated,
    kernel_code,
    rdpmc,
    read,
    switched,
    write,
)
from tests.conformance.table import Case
from tests.conformance.twin import (
    DEBUGCTL,
    EVENTSEL,
    FIXED,
    FIXED_CTR,
    FIXED_CTR_CTRL,
    GLOBAL_CTRL,
    GLOBAL_OVF_CTRL,
    GLOBAL_STATUS,
    LVTPC,
    NMI,
    PMC,
)

EN, INT, USR, OS, INV, EDGE, PIN = 1 << 22, 1 << 20, 1 << 16, 1 << 17, 1 << 23, 1 << 18, 1 << 19
CYCLES: Final = 0x003C | EN | USR
INSTRUCTIONS: Final = 0x00C0 | EN | USR
BRANCHES: Final = 0x00C4 | EN | USR
LOADS: Final = 0x81D0 | EN | USR
OPEN: Final = write(LVTPC, NMI)
FREEZE: Final = 1 << 12

HIDDEN: Final = [
    Setup(d, k, hidden=("cycles", "instructions", "branches")) for d in DESIGNS for k in RULE_SETS
]
TAKEN: Final = [Setup(d, k, taken=which) for d in DESIGNS for k in RULE_SETS for which in ("all", "cycles")]


def cases() -> Iterator[Case]:
    """Return the cases of all setups."""
    for setup in [*GUESTS, *HARDWARE]:
        yield from _what_counts(setup)
        yield from _events(setup)
        yield from _overflows(setup)
        yield from _lone_bits(setup)
        yield from _interrupts(setup)
        yield from _running(setup)
        yield from _emulated(setup)
        yield from _switches(setup)
    for setup in (each for each in [*GUESTS, *HARDWARE] if each.version > 1 or each.design == "native"):
        yield from _fixed(setup)
        yield from _freeze(setup)
    for setup in (each for each in GUESTS if each.design == "legacy"):
        yield from _host_work(setup)
    for setup in HIDDEN:
        for event in (CYCLES, INSTRUCTIONS, BRANCHES):
            yield Case(("F1.1",), setup, counting(setup, event), (code(100),), (rdpmc(0),))
        yield Case(("A6.4",), setup, (), tuple(cpuid(register) for register in range(4)))
    for setup in TAKEN:
        yield from _contention(setup)
    for design, kvm in product(DESIGNS, RULE_SETS):
        yield from _around(Setup(design, kvm))


def counting(setup: Setup, event: int, value: int = 0, index: int = 0) -> tuple[Step, ...]:
    """Return what makes a general-purpose counter count from a value."""
    return (write(PMC + index, value & 0xFFFFFFFF), write(EVENTSEL + index, event), *on(setup))


def _look(setup: Setup, index: int = 0) -> tuple[Step, ...]:
    """Return reads of a counter both ways, of the overflows and of LVTPC."""
    return (read(PMC + index), rdpmc(index), read(GLOBAL_STATUS), read(LVTPC))


def _what_counts(setup: Setup) -> Iterator[Case]:
    """EN, GLOBAL_CTRL, and both levels, for each general-purpose counter."""
    for index in range(setup.nr_gp):
        for enable, user, kernel, bit in product((0, EN), (0, USR), (0, OS), (0, 1)):
            rules = ("A2.8", "A2.2", "A2.3", "A2.13", "A2.16")
            before = (
                write(EVENTSEL + index, 0x3C | enable | user | kernel),
                write(GLOBAL_CTRL, bit << index),
            )
            run = (code(100), rdpmc(index), kernel_code(50))
            yield Case(rules, setup, before[::-1], run, (rdpmc(index), read(GLOBAL_STATUS)))
            yield Case(rules, setup, before, run, (rdpmc(index), read(GLOBAL_STATUS)))
        others = ((1 << setup.nr_gp) - 1) ^ 1 << index
        before = (write(EVENTSEL + index, CYCLES), write(GLOBAL_CTRL, others))
        yield Case(("A2.13", "A2.16"), setup, before, (code(100),), (rdpmc(index),))
        kept = (*counting(setup, CYCLES, 7, index), code(30), write(EVENTSEL + index, CYCLES & ~EN))
        yield Case(("F1.2",), setup, kept, (code(30),), (rdpmc(index), read(PMC + index)))
    yield Case(
        ("A2.13", "F1.2", "A2.16"),
        setup,
        counting(setup, CYCLES),
        (code(9), write(GLOBAL_CTRL, 0), code(5)),
        (rdpmc(0),),
    )


def _events(setup: Setup) -> Iterator[Case]:
    """Every event that the model has, those that it has not, counter mask, INV, edge and pin control."""
    for event, flags in product([*RATES, 0x003D, 0x013D, 0x00FF, 0x01C4, 0x003C | PIN], (USR, USR | OS, 0)):
        marked = ("A2.5", "D3.14") if event & PIN else ()
        yield Case(
            ("A2.1", *marked), setup, counting(setup, event | flags | EN), (code(100),), _look(setup)[:2]
        )
    for cmask, inverted in product((0, 2, 5, 9), (0, INV)):
        event = BRANCHES | inverted | cmask << 24
        yield Case(("A2.10", "A2.9"), setup, counting(setup, event), (code(100),), (rdpmc(0),))
    for levels, edge, ask in product((0, USR, OS, USR | OS), (0, EDGE, EDGE | INV), (0, INT)):
        before = (OPEN, *counting(setup, HALF | EN | levels | edge | ask, -9))
        yield Case(("A2.4", "A2.9"), setup, before, (code(13), read(PMC), code(6)), _look(setup))
    yield Case(("A2.4",), setup, counting(setup, CYCLES | EDGE), (code(100),), (rdpmc(0),))
    yield Case(("D5.11",), setup, counting(setup, 0x013C | EN | USR), (code(20_000),), (rdpmc(0),))
    every = tuple(
        each for index in range(setup.nr_gp) for each in counting(setup, BRANCHES, 10 * index, index)
    )
    look = tuple(rdpmc(index) for index in range(setup.nr_gp))
    yield Case(("F3.3",), setup, every, (code(33),), look)
    yield Case(
        ("F3.3", "F3.2"), setup, overflow_all(setup), (code(5),), (*look, rdpmc(FIXED), rdpmc(FIXED + 1))
    )
    with_accesses = (*counting(setup, INSTRUCTIONS), write(FIXED_CTR_CTRL, 0x33))
    idle = (read(PMC), rdpmc(0), read(GLOBAL_CTRL), write(DEBUGCTL, 0), read(0x391), rdpmc(0))
    yield Case(("A4.19",), setup, with_accesses, idle, (rdpmc(0), rdpmc(FIXED), rdpmc(FIXED + 1)))
    yield Case(
        ("D3.16", "A4.4"), setup, counting(setup, CYCLES, 5), (code(7), read(PMC), code(7)), _look(setup)[:2]
    )


def _overflows(setup: Setup) -> Iterator[Case]:
    """A counter comes up to its top, to it, and over it, with and without INT, by every counter."""
    for index, ask, run in product(range(setup.nr_gp), (0, INT), (99, 100, 101, 250)):
        rules = ("A4.5", "A4.6", "A4.7", "A4.8", "A2.6", "E3.8", "F3.2")
        before = (OPEN, *counting(setup, CYCLES | ask, -100, index))
        yield Case(rules, setup, before, (code(run),), _look(setup, index))
    for rate_event, first, ask in product((BRANCHES, INSTRUCTIONS), (-1, -2, -3, -7, -8, -9), (0, INT)):
        before = (OPEN, *counting(setup, rate_event | ask, first))
        yield Case(
            ("A4.5", "D5.13", "A4.6"), setup, before, (code(1), read(GLOBAL_STATUS), code(1)), _look(setup)
        )
    for first, run in product((-1, -2, -3), (1, 2, 3)):
        before = (OPEN, *counting(setup, CYCLES | INT, first))
        yield Case(("D5.13", "A4.6"), setup, before, (code(run),), _look(setup))
    two = (OPEN, *counting(setup, CYCLES | INT, -60), *counting(setup, BRANCHES | INT, -240, 1))
    if setup.nr_gp > 1:
        yield Case(("A4.6", "A4.8"), setup, two, (code(60),), (*_look(setup), rdpmc(1)))
        yield Case(
            ("A4.6", "A4.14"), setup, two, (code(59), code(1), OPEN, code(300)), (*_look(setup), rdpmc(1))
        )
    again = (OPEN, *counting(setup, CYCLES, -10), code(20))
    clear = (write(GLOBAL_OVF_CTRL, 1), read(GLOBAL_STATUS), write(PMC, 0xFFFFFFF6), code(20))
    yield Case(("F3.2", "A1.13", "D3.11", "D5.6", "D5.7", "E1.2"), setup, again, clear, _look(setup))


def _lone_bits(setup: Setup) -> Iterator[Case]:
    """No bit of PERFEVTSELx does another one's work, and none but the mask bit masks LVTPC."""
    free = [
        bit for bit in range(16, 34 if setup.design == "native" else 32) if 1 << bit not in (EN, INT, USR, OS)
    ]
    if setup.design != "native":
        free.remove(21)
    for bit in free:
        unable = (OPEN, *counting(setup, 0x003C | USR | INT | 1 << bit, -50))
        yield Case(("A2.8",), setup, unable, (code(80),), _look(setup))
        nowhere = (OPEN, *counting(setup, 0x003C | EN | INT | 1 << bit, -50))
        yield Case(("A2.2", "A2.3"), setup, nowhere, (code(80), kernel_code(80)), _look(setup))
        silent = (OPEN, *counting(setup, 0x003C | EN | USR | 1 << bit, -50))
        rules = ("A4.8", "A2.6", "A2.7" if bit == 21 else "A2.10")
        yield Case(rules, setup, silent, (code(80),), _look(setup))
    for bit in [*range(16), *range(17, 32)]:
        if setup.design == "native" and bit in (11, *range(13, 16), *range(17, 32)):
            continue
        before = (write(LVTPC, NMI | 1 << bit), *counting(setup, CYCLES | INT, -50))
        yield Case(("A4.11", "A4.15"), setup, before, (code(80),), _look(setup))


def _interrupts(setup: Setup) -> Iterator[Case]:
    """LVTPC open, masked, masked by the PMI, opened again; who asks for a PMI and who does not."""
    for lvtpc, ask in product((NMI, 0xFE, NMI | 1 << 16, 1 << 16), (0, INT)):
        before = (write(LVTPC, lvtpc), *counting(setup, CYCLES | ask, -50))
        yield Case(("A4.11", "A4.8", "A4.13", "D5.4", "E1.6"), setup, before, (code(80),), _look(setup))
    unopened = (*counting(setup, CYCLES | INT, -50), code(80))
    yield Case(("A4.10", "A4.11"), setup, counting(setup, CYCLES | INT, -50), (code(80),), _look(setup))
    yield Case(("A4.12",), setup, unopened, (OPEN, code(10)), _look(setup))
    twice = (OPEN, *counting(setup, CYCLES | INT, -50), code(80))
    stop = (write(GLOBAL_CTRL, 0), write(EVENTSEL, 0), write(PMC, 0xFFFFFFCE))
    again = (*stop, *counting(setup, CYCLES | INT, -50), code(80))
    yield Case(("A4.13", "D5.4", "E1.6"), setup, twice, again, _look(setup))
    yield Case(("A4.14", "A4.13"), setup, twice, (read(LVTPC), OPEN, *again), _look(setup))
    yield Case(("A4.14",), setup, twice, (OPEN, read(LVTPC), OPEN, *again, OPEN, *again), _look(setup))


def _running(setup: Setup) -> Iterator[Case]:
    """A counter is written while it runs: nearer to its top, farther from it, and from 0."""
    rules = ("D3.11", "D5.6", "D5.7", "D5.5", "E1.2", "A4.7")
    for ask, first, second, run in product((0, INT), (0, -100, 1000), (-20, -300, 5), (50, 120, 400)):
        before = (OPEN, *counting(setup, CYCLES | ask, first), code(10))
        accesses = (write(PMC, second & 0xFFFFFFFF), code(run))
        yield Case(rules, setup, before, accesses, (*_look(setup), code(500), *_look(setup)))
    for old, new in product((0x00C4, 0x00C5, 0x00C0, 0x4F2E, 0x412E, 0x003C), repeat=2):
        running = (*counting(setup, old | EN | USR), code(9))
        yield Case(("A2.1",), setup, running, (write(EVENTSEL, new | EN | USR), code(5)), (rdpmc(0),))
    fast = tuple(rdpmc(each | 1 << 31) for each in (0, 1, FIXED))
    running = (*counting(setup, CYCLES, -90), code(9))
    yield Case(("A5.5", "D3.23", "F1.4", "D3.16"), setup, running, (*fast, rdpmc(0)), fast)
    before = (OPEN, *counting(setup, CYCLES | INT, -100), code(10))
    same = (write(EVENTSEL, CYCLES | INT), *on(setup), code(50))
    yield Case(("D3.12", "D3.4"), setup, before, same, _look(setup))
    nearer = (write(PMC, 0xFFFFFFEC), write(EVENTSEL, CYCLES | INT), code(30))
    yield Case(("D3.12", "D5.6", "E1.2"), setup, before, nearer, _look(setup))
    change = (write(EVENTSEL, BRANCHES | INT), code(10), rdpmc(0), code(20))
    yield Case(("A2.1", "D3.16"), setup, before, change, _look(setup))


def _host_work(setup: Setup) -> Iterator[Case]:
    """What legacy asks host perf for: an event created where a counter begins, released where it changes."""
    work = (Step(WORK),)
    two = (*counting(setup, CYCLES), *counting(setup, BRANCHES, 0, 1))
    for rule, access in (
        ("D3.12", write(EVENTSEL, CYCLES)),
        ("D3.12", write(EVENTSEL, CYCLES | INT)),
        ("D3.12", write(EVENTSEL, CYCLES & ~EN)),
        ("D3.4", write(GLOBAL_CTRL, 0)),
        ("D3.4", write(GLOBAL_CTRL, 1)),
        ("D3.4", on(setup)[0]),
        ("D3.16", read(PMC)),
        ("D3.11", write(PMC, 7)),
        ("A1.13", write(GLOBAL_OVF_CTRL, 1)),
    ):
        yield Case((rule,), setup, two, (access,), work)
    three = (write(FIXED_CTR_CTRL, 0xA22), *on(setup))
    for word in (0xA22, 0x222, 0xA20, 0xA2A, 0x000, 0xB22, 0x822):
        yield Case(("D3.1",), setup, three, (write(FIXED_CTR_CTRL, word),), work)
    for bit in (0, 1, 2):
        yield Case(("D3.4",), setup, three, (write(GLOBAL_CTRL, 0x700000000 ^ 1 << 32 + bit),), work)
    overflow = (OPEN, *counting(setup, CYCLES | INT, -10))
    yield Case(("A4.6",), setup, overflow, (code(20),), work)


def _fixed(setup: Setup) -> Iterator[Case]:
    """Fixed counters: levels, GLOBAL_CTRL, PMI bit, overflow, AnyThread."""
    before: tuple[Step, ...]
    look: tuple[Step, ...]
    for index, field, bit in product((0, 1), range(16), (0, 1)):
        if field & 4 and setup.design != "native":
            continue
        before = (write(FIXED_CTR_CTRL, field << 4 * index), write(GLOBAL_CTRL, bit << 32 + index))
        run = (code(100), rdpmc(FIXED + index), *((kernel_code(50),) if index else ()))
        look = (rdpmc(FIXED + index), rdpmc(FIXED + (1 - index)))
        yield Case(("A2.15", "A2.14"), setup, before, run, look)
        yield Case(("A2.15", "A2.14"), setup, before[::-1], run, look)
    for index, pmi, cycles in product((0, 1), (0, 8), (99, 100, 101, 300)):
        first = -100 * (2 - index) & 0xFFFFFFFFFFFF
        before = (
            OPEN,
            write(FIXED_CTR + index, first),
            write(FIXED_CTR_CTRL, (2 | pmi) << 4 * index),
            *on(setup),
        )
        look = (rdpmc(FIXED + index), read(GLOBAL_STATUS), read(LVTPC))
        yield Case(("A4.9", "A4.6", "A4.5"), setup, before, (code(cycles),), look)
    for first, second in product((-100, 1000), (-20, -300, 5)):
        before = (OPEN, write(FIXED_CTR + 1, first & 0xFFFFFFFFFFFF), write(FIXED_CTR_CTRL, 0xA0), *on(setup))
        access = (code(10), write(FIXED_CTR + 1, second & 0xFFFFFFFFFFFF), code(50))
        look = (rdpmc(FIXED + 1), read(GLOBAL_STATUS), code(500), rdpmc(FIXED + 1), read(GLOBAL_STATUS))
        yield Case(("D3.11", "D5.6", "E1.2"), setup, before, access, look)
    ref = (write(FIXED_CTR_CTRL, 0x200), *on(setup))
    yield Case(("A2.14", "D5.11"), setup, ref, (code(20_000),), (rdpmc(FIXED + 2), rdpmc(FIXED + 1)))
    for first, second in product(range(16), range(16)):
        if (first | second) & 4:
            continue
        counted = (*on(setup), OPEN, write(FIXED_CTR + 1, 0xFFFFFFFFFFF1), write(FIXED_CTR_CTRL, first << 4))
        run = (code(7), write(FIXED_CTR_CTRL, second << 4), code(11), kernel_code(5))
        look = (rdpmc(FIXED + 1), read(FIXED_CTR_CTRL), read(GLOBAL_STATUS))
        yield Case(("A2.15", "A4.9", "D3.1"), setup, counted, run, look)
    kept = (write(FIXED_CTR_CTRL, 0x22), *on(setup), code(10), write(FIXED_CTR_CTRL, 0x20))
    yield Case(("F1.2", "D3.1", "A2.15"), setup, kept, (code(10),), (rdpmc(FIXED), rdpmc(FIXED + 1)))
    one_changes = (
        OPEN,
        write(FIXED_CTR + 1, 0xFFFFFFFFFF9C),
        write(FIXED_CTR_CTRL, 0xA2),
        *on(setup),
        code(10),
    )
    change = (write(FIXED_CTR + 1, 0xFFFFFFFFFFF6), write(FIXED_CTR_CTRL, 0xA0), code(20))
    yield Case(("D3.1", "D5.6", "E1.2"), setup, one_changes, change, (rdpmc(FIXED + 1), read(GLOBAL_STATUS)))
    change = (write(FIXED_CTR + 1, 0xFFFFFFFFFFF6), write(GLOBAL_CTRL, 0x200000001), code(20))
    yield Case(("D3.4", "D5.6", "E1.2"), setup, one_changes, change, (rdpmc(FIXED + 1), read(GLOBAL_STATUS)))
    change = (write(FIXED_CTR + 1, 0xFFFFFFFFFFF6), write(FIXED_CTR_CTRL, 0xA2), code(20))
    yield Case(("D3.1", "D5.6", "E1.2"), setup, one_changes, change, (rdpmc(FIXED + 1), read(GLOBAL_STATUS)))


def _freeze(setup: Setup) -> Iterator[Case]:
    """DEBUGCTL bit 12: an overflow stops everything if it raises a PMI."""
    for word, ask, lvtpc in product((0, FREEZE), (0, INT), (NMI, 1 << 16)):
        before = (write(LVTPC, lvtpc), write(DEBUGCTL, word), *counting(setup, CYCLES | ask, -50))
        look = (read(GLOBAL_CTRL), *_look(setup))
        yield Case(("A4.16", "A4.17", "D5.12"), setup, before, (code(80),), look)
    for bit in (0, 1, *range(6, 16)):
        before = (OPEN, write(DEBUGCTL, 1 << bit), *counting(setup, CYCLES | INT, -50))
        look = (read(GLOBAL_CTRL), rdpmc(0), read(DEBUGCTL))
        yield Case(("A4.16", "A1.11"), setup, before, (code(80),), look)
    other = (
        OPEN,
        write(DEBUGCTL, FREEZE),
        *counting(setup, BRANCHES, 0, 1),
        *counting(setup, CYCLES | INT, -50),
    )
    yield Case(("A4.16",), setup, other, (code(80), *on(setup), code(5)), (rdpmc(0), rdpmc(1)))


def _switches(setup: Setup) -> Iterator[Case]:
    """A vCPU is switched out and in: counters that run, that stand, that overflow, that were given up."""
    rules = ("B10.1",)
    for event, index in product((CYCLES, BRANCHES, CYCLES & ~EN), range(setup.nr_gp)):
        before = counting(setup, event, 5, index)
        switches = (code(7), switched(11), rdpmc(index), switched(0), switched(3))
        yield Case(rules, setup, before, switches, _look(setup, index))
    for ask, lvtpc in product((0, INT), (OPEN, write(LVTPC, 1 << 16))):
        before = (lvtpc, *counting(setup, CYCLES | ask, -20))
        look = (*_look(setup), read(GLOBAL_CTRL), read(EVENTSEL), read(FIXED_CTR_CTRL))
        yield Case(rules, setup, before, (switched(10), switched(15), switched(1)), look)
        yield Case(rules, setup, before, (code(25), switched(5)), look)
    fixed = (write(FIXED_CTR_CTRL, 0x2A), *counting(setup, BRANCHES, 9, 1), code(5))
    look = (rdpmc(FIXED), rdpmc(FIXED + 1), rdpmc(1), read(FIXED_CTR_CTRL), read(GLOBAL_STATUS))
    yield Case(rules, setup, fixed, (switched(10), switched(20)), look)
    for times in (1, 2, 3, 5):
        unused = (write(EVENTSEL, CYCLES & ~EN), *[switched(4)] * times)
        again = (rdpmc(0), write(EVENTSEL, CYCLES), code(6), switched(6))
        before = (*counting(setup, CYCLES, 3), code(9))
        yield Case(("B10.1", "F1.2"), setup, before, (*unused, *again), _look(setup))
        other = (write(EVENTSEL, BRANCHES), code(6), write(PMC, 0xFFFFFFF0), switched(6))
        yield Case(rules, setup, before, (*unused, *other), _look(setup))


def _emulated(setup: Setup) -> Iterator[Case]:
    """Instructions that KVM emulates; on the hardware there is no such thing."""
    if setup.design == "native":
        return
    rules = ("E1.5", "E3.9", "E3.10", "E3.11", "D5.3")
    some: tuple[Step, ...]
    for event, level, enable in product(
        (0x00C0, 0x00C4, 0x003C, 0x01C0, 0x00C5), (USR, OS, USR | OS, 0), (0, EN)
    ):
        for user in (False, True):
            some = (emulated(user=user), emulated(branch=True, user=user), emulated(user=user))
            yield Case(rules, setup, counting(setup, event | level | enable), some, _look(setup))
    one, branch = emulated(), emulated(branch=True)
    off = (*counting(setup, INSTRUCTIONS | OS), write(GLOBAL_CTRL, 0))
    yield Case(rules, setup, off, (one, branch), _look(setup))
    for flags, level, user in product((INV, 3 << 24, 3 << 24 | INV, EDGE, PIN), (USR, OS), (False, True)):
        before = counting(setup, 0x00C0 | EN | level | flags)
        yield Case(("E3.9", "E3.11"), setup, before, (emulated(user=user),), _look(setup))
    for field, user in product((0, 1, 2, 3), (False, True)):
        fixed = (write(FIXED_CTR_CTRL, field | field << 4), *on(setup))
        some = (emulated(user=user), emulated(branch=True, user=user))
        yield Case(rules, setup, fixed, some, (rdpmc(FIXED), rdpmc(FIXED + 1)))
    for ask, first, user in product((0, INT), (-1, -2, -5), (False, True)):
        wraps = (OPEN, *counting(setup, INSTRUCTIONS | (0 if user else OS) | ask, first))
        some = (emulated(user=user), emulated(branch=True, user=user))
        yield Case(("E3.13", "E1.5"), setup, wraps, some, (*_look(setup), code(3), *_look(setup)))
    for index in range(1, setup.nr_gp):
        wraps = (OPEN, *counting(setup, INSTRUCTIONS | OS | INT, -2, index))
        yield Case(("E3.13", "E1.5"), setup, wraps, (emulated(user=True), emulated()), _look(setup, index))
    kernel = (0x00C0 | EN | OS, 0x00C4 | EN | OS)
    for event in kernel:
        accesses = (read(PMC), rdpmc(0), read(0x391), write(DEBUGCTL, 0), write(0x391, 0), rdpmc(99))
        yield Case(
            ("E3.16", "A4.19"), setup, counting(setup, event), accesses, (rdpmc(0), write(PMC, 5), rdpmc(0))
        )
    stops = (write(GLOBAL_CTRL, 0), rdpmc(0), write(GLOBAL_CTRL, 1), write(EVENTSEL, kernel[0] & ~EN))
    yield Case(("E3.16",), setup, counting(setup, kernel[0]), stops, (rdpmc(0),))
    if setup.nr_gp > 1:
        both = (*counting(setup, kernel[0], 3), *counting(setup, kernel[0], 5, 1), write(FIXED_CTR_CTRL, 1))
        look = (rdpmc(0), rdpmc(1), rdpmc(FIXED))
        yield Case(("E3.9", "E3.16", "F3.3"), setup, both, (one, branch), look)
    last = (OPEN, *counting(setup, kernel[0] | INT, -4))
    yield Case(("E3.16", "E3.13"), setup, last, (read(PMC), read(PMC), read(PMC), read(PMC)), _look(setup))


def _contention(setup: Setup) -> Iterator[Case]:
    """Host tools hold counters: those of all events but two, or only the fixed one of cycles."""
    fixed = (write(FIXED_CTR_CTRL, 0x22), *on(setup))
    look = (rdpmc(FIXED), rdpmc(FIXED + 1))
    yield Case(("D5.1", "D5.2"), setup, fixed, (code(100),), look)
    for event in (CYCLES, BRANCHES, INSTRUCTIONS):
        yield Case(
            ("D5.1",),
            setup,
            counting(setup, event | INT, 5),
            (code(100), write(PMC, 9), code(3)),
            _look(setup),
        )
    late = (OPEN, *counting(setup, CYCLES | INT, -50))
    yield Case(("D5.1",), setup, late, (code(80),), _look(setup))


def _around(setup: Setup) -> Iterator[Case]:
    """Once round a counter, from 0, by 63 loads a cycle; 63 divides 2**48 - 1, which is no overflow yet."""
    before = (OPEN, *counting(setup, LOADS | INT))
    for more in (0, 1):
        loads = (code((1 << 48) // 63 + more),)
        yield Case(("E1.3", "D5.5", "D5.7"), setup, before, loads, _look(setup), long=True)
