"""Cases of vCPU switches that look behind the guest: at the hardware, and at host perf's events.

What is right stands in the looks themselves, worked out here from the design: the RFC creates an event once,
drives its counter, and gives it up when it was not used for `life` time slices.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Final

from tests.conformance.cases.counting import BRANCHES, CYCLES, EDGE, EN, INSTRUCTIONS, INT, INV, OPEN, OS, USR
from tests.conformance.cases.counting import counting as begin
from tests.conformance.cases.registers import DESIGNS, HARDWARE, RULE_SETS, on
from tests.conformance.setup import (
    Setup,
    Step,
    away,
    code,
    inside,
    outside,
    rdpmc,
    read,
    switched,
    work,
    write,
)
from tests.conformance.table import Case
from tests.conformance.twin import (
    EVENTSEL,
    FIXED,
    FIXED_CTR,
    FIXED_CTR_CTRL,
    GLOBAL_CTRL,
    GLOBAL_STATUS,
    LVTPC,
    MASKED,
    PMC,
)

OFF, LIFE = ("B10.2",), ("B10.3",)
DEFAULT_LIFE: Final = 2
PLAIN: Final = [Setup("optimized", kvm) for kvm in RULE_SETS]
TOOL_FIELD: Final = 0xB0
"""FIXED_CTR_CTRL of a host tool that counts cycles on fixed counter 1: PMI, both levels."""


def cases() -> Iterator[Case]:
    """Return the cases of all setups."""
    for setup in HARDWARE:
        yield from _hardware(setup)
    for setup in PLAIN:
        yield from _guest_hardware(setup)
        yield from _status(setup)
        yield from _reuse(setup)
        yield from _lives(setup)
        yield from _not_used(setup)
    for kvm in RULE_SETS:
        yield from _beside_a_tool(Setup("optimized", kvm, taken="cycles"))
        yield from _apart_from_a_tool(Setup("optimized", kvm, taken="host cycles"))
        yield from _without_counters(Setup("optimized", kvm, taken="all"))
        for life in (0, 1, 3):
            yield from _lives(Setup("optimized", kvm, life=life))
        yield from _switched_off(Setup("optimized", kvm, life=0), 1)
        yield from _switched_off(Setup("optimized", kvm), 0)
    for design, kvm in product(DESIGNS, RULE_SETS):
        yield _beside_samples(Setup(design, kvm, taken="host samples"))


# -- the hardware --


def _hardware(setup: Setup) -> Iterator[Case]:
    """A system leaves nothing behind, and finds it again."""
    fixed = (write(FIXED_CTR_CTRL, 0xA2A), *begin(setup, CYCLES, 5), code(7))
    for register in (PMC, FIXED_CTR, FIXED_CTR + 1, EVENTSEL, FIXED_CTR_CTRL, GLOBAL_CTRL):
        yield Case(
            OFF, setup, fixed, (away(register, 0), code(3)), (rdpmc(0), rdpmc(FIXED), rdpmc(FIXED + 1))
        )
    # -3 + 7 wraps, with no PMI asked for: the overflow is the system's, and LVTPC is masked in between.
    wrapped = (OPEN, *begin(setup, CYCLES, -3), code(7))
    for register, word in ((GLOBAL_STATUS, 0), (LVTPC, MASKED)):
        yield Case(OFF, setup, wrapped, (away(register, word),), (read(GLOBAL_STATUS), read(LVTPC), rdpmc(0)))


def _guest_hardware(setup: Setup) -> Iterator[Case]:
    """A guest's counters: on in the guest and no others, off in the host, cleared when it is switched out."""
    every = on(setup)[0].value
    for index in range(setup.nr_gp):
        # The only event of branches gets general-purpose counter 0, whichever vPMC it is of.
        event, bit = BRANCHES | INT, 1 << index
        before = (*begin(setup, event, 5, index), code(7))
        # Host perf lets every counter be on in guests and, as it is the guest's, not this one in the host.
        found = (inside(GLOBAL_CTRL, every), outside(GLOBAL_CTRL, every & ~1), away(GLOBAL_CTRL, every))
        yield Case(OFF, setup, before, found, (rdpmc(index),))
        # The guest's own word decides about its counter in the guest: bit 0 stands for the vPMC's.
        found = (write(GLOBAL_CTRL, every & ~bit), inside(GLOBAL_CTRL, every & ~1), write(GLOBAL_CTRL, bit))
        yield Case(OFF, setup, before, (*found, inside(GLOBAL_CTRL, every)), (rdpmc(index),))
        found = (inside(PMC, 33), away(PMC, 0), inside(PMC, 33))
        yield Case(OFF, setup, before, found, (rdpmc(index),))
        # The guest's selector is on the hardware as it is; while it is out, host perf has none there.
        found = (inside(EVENTSEL, event), away(EVENTSEL, 0), inside(EVENTSEL, event))
        yield Case(OFF, setup, before, found, (code(3), rdpmc(index)))
    for i, field in ((0, 0x2), (1, 0x3), (2, 0xB), (0, 0xA)):
        before = (write(FIXED_CTR_CTRL, field << 4 * i), *on(setup), code(7))
        word, bit = field << 4 * i, 1 << 32 + i
        found = (inside(FIXED_CTR_CTRL, word), away(FIXED_CTR_CTRL, 0), inside(FIXED_CTR_CTRL, word))
        yield Case(OFF, setup, before, found, (code(3), read(FIXED_CTR_CTRL)))
        found = (inside(GLOBAL_CTRL, every), outside(GLOBAL_CTRL, every & ~bit), away(FIXED_CTR + i, 0))
        yield Case(OFF, setup, before, found, (code(3),))


def _beside_a_tool(setup: Setup) -> Iterator[Case]:
    """A host tool counts on fixed counter 1, in guests, too: its field stays while a vCPU comes and goes."""
    for i, field in ((0, 0x2), (0, 0xB), (2, 0x2)):
        before = (write(FIXED_CTR_CTRL, field << 4 * i), *on(setup), code(7))
        word = TOOL_FIELD | field << 4 * i
        found = (inside(FIXED_CTR_CTRL, word), away(FIXED_CTR_CTRL, TOOL_FIELD), inside(FIXED_CTR_CTRL, word))
        yield Case(OFF, setup, before, found, (read(FIXED_CTR_CTRL),))
    # The tool's counter is on in both.
    before, every = (*begin(setup, BRANCHES, 5), code(7)), on(setup)[0].value
    found = (inside(GLOBAL_CTRL, every), outside(GLOBAL_CTRL, every & ~1), away(GLOBAL_CTRL, every))
    yield Case(OFF, setup, before, found, (rdpmc(0),))


def _apart_from_a_tool(setup: Setup) -> Iterator[Case]:
    """A host tool counts the host's cycles alone: a guest's GLOBAL_CTRL does not turn its counter on."""
    before, every = (*begin(setup, BRANCHES, 5), code(7)), on(setup)[0].value
    found = (inside(GLOBAL_CTRL, every & ~(1 << 33)), outside(GLOBAL_CTRL, every & ~1))
    yield Case(OFF, setup, before, found, (rdpmc(0),))


def _beside_samples(setup: Setup) -> Case:
    """A host tool samples the host's cycles: a PMI that comes in an access is taken before the guest goes on.

    An access costs the host more than 1,000 cycles: 60 of them overflow the tool's counter, whose period is
    50,000. Whoever takes the PMI clears its bit of GLOBAL_STATUS, at the latest in the next access.
    """
    return Case(("B10.4",), setup, (), (*[read(EVENTSEL)] * 60, inside(GLOBAL_STATUS, 0)))


def _status(setup: Setup) -> Iterator[Case]:
    """One of two counters overflows without a PMI: that one alone is in GLOBAL_STATUS."""
    for first, second in ((-3, 5), (5, -3), (-3, -4)):
        before = (*begin(setup, CYCLES, first), *begin(setup, BRANCHES, second, 1))
        yield Case(("A4.7", "B10.1"), setup, before, (code(7), read(GLOBAL_STATUS)), (rdpmc(0), rdpmc(1)))
        after = (read(GLOBAL_STATUS), rdpmc(0), rdpmc(1))
        yield Case(("B10.1", "A4.7"), setup, before, (code(7), switched(1)), after)


# -- host perf's events --


def _uses(index: int) -> tuple[Step, Step, Step]:
    """Return what lets a vPMC count, what stops it, and a write of its count; 32 and on are fixed ones."""
    if index < 32:
        return (
            write(EVENTSEL + index, BRANCHES),
            write(EVENTSEL + index, BRANCHES & ~EN),
            write(PMC + index, 1),
        )
    shift = 4 * (index - 32)
    return write(FIXED_CTR_CTRL, 2 << shift), write(FIXED_CTR_CTRL, 0), write(FIXED_CTR + index - 32, 1)


def _lives(setup: Setup) -> Iterator[Case]:
    """An event is used, then not: so many slices later it is released; a use in between begins anew."""
    life = DEFAULT_LIFE if setup.life is None else setup.life
    # A slice in which nothing uses it ends `life` by one; with 0, as with 1, the next switch finds it old.
    slices = max(life, 1)
    for index in (*range(setup.nr_gp), 32, 33, 34):
        start, stop, count = _uses(index)
        began = (*on(setup), start, code(5), switched(3), stop)
        # The switch that ends the slice of the last use does not count; `slices` unused ones follow.
        unused = [switched(1)] * slices
        gone = (switched(1), work(1, 1))
        yield Case(LIFE, setup, began, (*unused, work(1, 0), *gone), (start, work(2, 1), code(3)))
        for use in (count, start):
            again = (use, stop) if use == start else (use,)
            middle = (*unused, work(1, 0), *again, *unused, work(1, 0), *gone)
            yield Case(LIFE, setup, began, middle, (start, work(2, 1), code(3)))
    # One that is enabled lives on, used or not.
    for index in (0, 3, 32, 34):
        start, *_ = _uses(index)
        yield Case(LIFE, setup, (*on(setup), start), (*[switched(1)] * 5, work(1, 0)))


def _not_used(setup: Setup) -> Iterator[Case]:
    """What is done with other vPMCs is no use of this one."""
    last: tuple[Step, ...]
    unused = [switched(1)] * DEFAULT_LIFE
    for other in (1, 2, 3):
        began = (*on(setup), write(EVENTSEL, CYCLES), write(EVENTSEL + other, BRANCHES), switched(1))
        stop, use = write(EVENTSEL, CYCLES & ~EN), write(PMC + other, 5)
        slices = [step for each in unused for step in (use, each)]
        last = (work(2, 0), use, switched(1), work(2, 1))
        yield Case(LIFE, setup, (*began, stop), (*slices, *last))
    # Enabling vPMC 0 in GLOBAL_CTRL uses it alone, whatever its selector has in bits 31:23.
    for odd in (INV, 5 << 24 | INV, 2 << 24):
        both = (*on(setup), write(EVENTSEL, BRANCHES | odd))
        for other in (1, 3, 32, 33):
            start, stop, _ = _uses(other)
            toggled = (write(GLOBAL_CTRL, 0), *on(setup))
            slices = [step for each in unused for step in (*toggled, each)]
            last = (work(2, 0), *toggled, switched(1), work(2, 1))
            yield Case(LIFE, setup, (*both, start, switched(1), stop), (*slices, *last))
    # Nor does fixed counter 0 or 1 use the next one, whichever of its levels is on.
    for i, field in product((0, 1), (1, 2, 3)):
        shift = 4 * i
        start = write(FIXED_CTR_CTRL, field << shift | 2 << shift + 4)
        began = (*on(setup), start, switched(1), write(FIXED_CTR_CTRL, field << shift))
        toggled = (write(GLOBAL_CTRL, 0), *on(setup))
        slices = [step for each in unused for step in (*toggled, each)]
        last = (work(2, 0), *toggled, switched(1), work(2, 1))
        yield Case(LIFE, setup, began, (*slices, *last))


def _switched_off(setup: Setup, released: int) -> Iterator[Case]:
    """GLOBAL_CTRL switches a vPMC off, which releases its event or leaves it; on again it needs one."""
    for index in (0, 2, 32, 34):
        start, *_ = _uses(index)
        every = on(setup)[0].value
        off, again = write(GLOBAL_CTRL, every & ~(1 << index)), on(setup)
        before = (*on(setup), start, code(5), work(1, 0))
        yield Case(
            LIFE, setup, before, (off, work(1, released), *again, work(1 + released, released), code(2))
        )
        # Another one's bit does nothing to it.
        other = (write(GLOBAL_CTRL, every & ~(1 << 1)), work(1, 0), *again, work(1, 0))
        yield Case(LIFE, setup, before, other)


def _reuse(setup: Setup) -> Iterator[Case]:
    """One event serves what its counter can count: other events, levels, on and off."""
    changes = (BRANCHES, BRANCHES | 1, BRANCHES | OS, BRANCHES | INT, (BRANCHES & ~USR) | OS, BRANCHES | EDGE)
    before = (*begin(setup, BRANCHES, 5), code(3))
    for word in changes:
        found = (write(EVENTSEL, word), work(1, 0), inside(EVENTSEL, word))
        yield Case((*LIFE, *OFF), setup, before, found, (code(3), rdpmc(0)))


def _without_counters(setup: Setup) -> Iterator[Case]:
    """Host tools hold all counters but fixed 0 and 2: an event in ERROR is replaced, in vain."""
    off = write(GLOBAL_CTRL, 0)
    failed = (*begin(setup, CYCLES, 5), code(3), work(1, 0))
    yield Case(LIFE, setup, failed, (off, work(1, 0), *on(setup), work(2, 1)), (code(3), rdpmc(0)))
    yield Case(LIFE, setup, failed, (write(EVENTSEL, BRANCHES), work(2, 1)), (code(3), rdpmc(0)))
    # Instructions are served by fixed counter 0, across; an event that differs in one bit cannot be.
    crossed = (*begin(setup, INSTRUCTIONS, 5), code(3), rdpmc(0), work(1, 0))
    yield Case(LIFE, setup, crossed, (off, *on(setup), work(1, 0)), (code(3), rdpmc(0)))
    for odd in (0x1, 0x2, 0x100, EDGE, INV, 1 << 24):
        other = (write(EVENTSEL, INSTRUCTIONS ^ odd), work(2, 1), code(3))
        yield Case(LIFE, setup, crossed, other, (rdpmc(0), write(EVENTSEL, INSTRUCTIONS), work(3, 2)))
