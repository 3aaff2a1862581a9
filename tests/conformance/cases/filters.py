"""Cases of the event filter: lists, masked lists, the bitmap of fixed counters, a blocked counter."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Final

from tests.conformance.cases.counting import BRANCHES, CYCLES, EN, INSTRUCTIONS, INT, OPEN, USR, counting
from tests.conformance.cases.registers import DESIGNS, RULE_SETS, on
from tests.conformance.setup import Filter, Setup, code, emulated, rdpmc, read, write
from tests.conformance.table import Case
from tests.conformance.twin import EVENTSEL, FIXED, FIXED_CTR_CTRL, GLOBAL_STATUS, PMC

_EXCLUDE: Final = 1 << 55


def entry(event: int, match: int, mask: int, *, exclude: bool = False) -> int:
    """Return an entry of a masked list."""
    return event | match << 8 | mask << 56 | (_EXCLUDE if exclude else 0)


LISTS: Final = (
    (),
    (0x00C4,),
    (0x00C4, 0x00C0),
    (0x00C0, 0x003C, 0x4F2E, 0x412E),
    (0x01C4,),
    (0x04C4 | 1 << 24,),
    (0x1000000C4,),
)
MASKED_LISTS: Final = (
    (entry(0xC4, 0, 0xFF),),
    (entry(0x2E, 0x41, 0xF1),),
    (entry(0x2E, 0x40, 0xF0),),
    (entry(0x2E, 0, 0),),
    (entry(0x2E, 0, 0), entry(0x2E, 0x4F, 0xFF, exclude=True)),
    (entry(0x2E, 0x41, 0xFF), entry(0x2E, 0, 0, exclude=True)),
    (entry(0x2E, 0x4F, 0xFF, exclude=True),),
)
EVENTS: Final = (0x00C4, 0x00C5, 0x00C0, 0x003C, 0x4F2E, 0x412E)


def cases() -> Iterator[Case]:
    """Return the cases of all filters."""
    for design, kvm, action in product(DESIGNS, RULE_SETS, ("allow", "deny")):
        for events in LISTS:
            yield from _general(Setup(design, kvm, filter=Filter(action, events)))
        for events in MASKED_LISTS:
            yield from _general(Setup(design, kvm, filter=Filter(action, events, masked=True)))
        for bitmap in range(8):
            yield from _fixed(Setup(design, kvm, filter=Filter(action, (), bitmap)))
        yield from _fixed(Setup(design, kvm, filter=Filter(action, (0x00C0, 0x003C), 0)))
        yield from _fixed(Setup(design, kvm, filter=Filter(action, (0x00C0, 0x003C), 7)))
        yield from _blocked(Setup(design, kvm, filter=Filter(action, (0x00C4,), 2)))
        yield from _general(Setup(design, kvm, 1, filter=Filter(action, (0x00C4,))))


def _rules(setup: Setup) -> tuple[str, ...]:
    assert setup.filter is not None
    rules = ("E4.1" if setup.filter.action == "allow" else "E4.2", "E1.1")
    return ("E4.4", "E4.5", *rules) if setup.filter.masked else (*rules, "E4.3")


def _general(setup: Setup) -> Iterator[Case]:
    for event in EVENTS:
        before = counting(setup, event | EN | USR, 7)
        yield Case(_rules(setup), setup, before, (code(100),), (rdpmc(0), read(GLOBAL_STATUS)))
    both = (*counting(setup, BRANCHES), *counting(setup, INSTRUCTIONS, 0, 1))
    yield Case(_rules(setup), setup, both, (code(21),), (rdpmc(0), rdpmc(1)))
    for flags in (2 << 24, 5 << 24 | 1 << 23, 1 << 18):
        yield Case(("E4.9",), setup, counting(setup, BRANCHES | flags), (code(100),), (rdpmc(0),))


def _fixed(setup: Setup) -> Iterator[Case]:
    everything = (write(FIXED_CTR_CTRL, 0x222), *on(setup))
    look = (rdpmc(FIXED), rdpmc(FIXED + 1), rdpmc(FIXED + 2))
    yield Case(("E4.6", "E4.7", "E1.1"), setup, everything, (code(2000),), look)
    for index in (0, 1):
        one = (write(FIXED_CTR_CTRL, 0x2 << 4 * index), *on(setup))
        yield Case(("E4.6", "E4.7"), setup, one, (code(100), emulated(user=True)), look[:2])


def _blocked(setup: Setup) -> Iterator[Case]:
    """A counter of an event that does not pass, among others; then it is given another event."""
    for event in (BRANCHES, CYCLES):
        before = (OPEN, *counting(setup, event | INT, -50))
        look = (read(EVENTSEL), read(PMC), rdpmc(0), read(GLOBAL_STATUS))
        yield Case(("E4.8",), setup, before, (code(80),), look)
        yield Case(("E4.8",), setup, before, (code(80), write(PMC, 3), code(80)), look)
        second = (*counting(setup, event, 4, 1), code(5), write(EVENTSEL + 1, CYCLES), code(7))
        yield Case(
            ("E4.8",), setup, second, (write(EVENTSEL + 1, BRANCHES), code(3)), (rdpmc(1), read(PMC + 1))
        )
        for other in (BRANCHES, CYCLES):
            yield Case(
                ("E4.8", "E4.1", "E4.2"), setup, before, (code(10), write(EVENTSEL, other), code(8)), look
            )
    for event in (INSTRUCTIONS, BRANCHES):
        before = counting(setup, event, 0)
        some = (emulated(user=True), emulated(branch=True, user=True))
        yield Case(("E3.12", "E1.5"), setup, before, some, (rdpmc(0),))
