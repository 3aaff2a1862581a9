"""Random programs of a guest: after every step the kernels, by both ways in, and the twin are of one mind."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conformance.cases.registers import GUESTS, HARDWARE, INDEXES
from tests.conformance.counting import Twin
from tests.conformance.setup import (
    EMULATE,
    KERNEL,
    RATES,
    RDMSR,
    RDPMC,
    USER,
    WRMSR,
    Filter,
    Setup,
    Step,
)
from tests.conformance.table import Expected
from tests.conformance.twin import EVENTSEL, FIXED_CTR, FULL_PMC, GLOBAL_CTRL, GLOBAL_OVF_CTRL, LVTPC, PMC
from tests.conformance.ways import WAYS, Way, quiet

MASK = (1 << 64) - 1
FILTERED = [
    Setup(design, kvm, filter=filter_)
    for design in ("legacy", "optimized")
    for kvm in ("5.0", "7.0")
    for filter_ in (Filter("deny", (0x00C4, 0x00C0), 5), Filter("allow", (0x00C4, 0x003C), 3))
]
SETUPS = [*GUESTS, *HARDWARE, *FILTERED]

_MSRS = st.sampled_from(
    [
        *range(PMC, PMC + 5),
        *range(FULL_PMC, FULL_PMC + 5),
        *range(EVENTSEL, EVENTSEL + 5),
        *range(FIXED_CTR, FIXED_CTR + 4),
        *range(0x38C, 0x393),
        0x1D9,
        0x345,
        LVTPC,
    ]
)
_NEAR_TOP = st.integers(1, 3_000).map(lambda below: MASK + 1 - below)
_WORDS = st.one_of(st.integers(0, MASK), st.integers(0, 63).map(lambda bit: 1 << bit), st.integers(0, 0xFFF))
# Events that the model knows to the count, now and then with a counter mask; EN and the rest at random.
_SELECTORS = st.tuples(
    st.sampled_from([*list(RATES), 0x003C, 0x00C0, 0x0042]),
    st.integers(0, 0xFF).map(lambda high: high << 16 | 1 << 22),
    st.sampled_from([0, 0, 0, 0, 2 << 24, 5 << 24]),
).map(lambda parts: (parts[0] | parts[1] | parts[2]) & ~(1 << 18 | 1 << 21))
_SMALL = st.integers(0, 1 << 30)


def _write(msr: int) -> st.SearchStrategy[Step]:
    if PMC <= msr < PMC + 8 or FULL_PMC <= msr < FULL_PMC + 8 or msr in (FIXED_CTR, FIXED_CTR + 1):
        words = _NEAR_TOP | _NEAR_TOP.map(lambda word: word & (1 << 48) - 1) | _WORDS
    elif msr == FIXED_CTR + 2:
        words = _SMALL  # it follows the clock: the twin does not know when exactly it overflows
    elif EVENTSEL <= msr < EVENTSEL + 8:
        words = _SELECTORS | _SELECTORS | _WORDS.filter(lambda word: word & 0xFFFF not in (0x0300, 0x013C))
    elif msr == GLOBAL_CTRL:
        words = st.integers(0, 0xF).map(lambda bits: bits | 0x300000000) | st.just(0x70000000F) | _WORDS
    elif msr == LVTPC:
        words = st.sampled_from([0x400, 0x10400, 0xFE]) | _WORDS
    elif msr == GLOBAL_OVF_CTRL:
        words = st.integers(0, 0xF) | st.integers(0, 3).map(lambda bits: bits << 32) | _WORDS
    else:
        words = st.integers(0, 0xFFF) | _WORDS
    return words.map(lambda word: Step(WRMSR, msr, word))


_STEPS = st.one_of(
    _MSRS.flatmap(_write),
    _MSRS.flatmap(_write),
    _MSRS.map(lambda msr: Step(RDMSR, msr)),
    st.sampled_from(INDEXES).map(lambda index: Step(RDPMC, index)),
    st.integers(0, 4_000).map(lambda cycles: Step(USER, 0, cycles)),
    st.integers(1, 400).map(lambda cycles: Step(KERNEL, 0, cycles)),
    st.tuples(st.sampled_from([1, 3]), st.sampled_from([1, 2])).map(lambda parts: Step(EMULATE, *parts)),
)
_START = (Step(WRMSR, LVTPC, 0x400), Step(WRMSR, GLOBAL_CTRL, 0x70000000F))


@cache
def _way(kind: type[Way], setup: Setup) -> Way:
    with quiet():
        return kind(setup)


def _makes_sense(step: Step, twin: Twin) -> bool:
    """Return whether the twin can tell what a step does."""
    if step.kind == EMULATE:
        return not twin.hardware
    return step.kind != KERNEL or twin.knows(user=False)


@pytest.mark.parametrize("setup", SETUPS, ids=str)
@settings(max_examples=settings().max_examples // 2)
@given(steps=st.lists(_STEPS, max_size=30))
def test_random_programs(setup: Setup, steps: list[Step]):
    twin, ways = Twin(setup), [_way(kind, setup) for kind in WAYS]
    for way in ways:
        way.reset()
    with quiet():
        for step in (*_START, *steps):
            if not _makes_sense(step, twin):
                continue
            wanted = Expected(twin.step(step), twin.slack(step))
            for way in ways:
                found = way.step(step)
                assert wanted.fits(found), f"{way.name}, {step}: wanted {wanted}, found {found}"
