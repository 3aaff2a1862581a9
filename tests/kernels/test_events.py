"""Event kinds, counter constraints, derived rates and perf's event syntax."""

from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import types

from vpmu.kernels import events
from vpmu.kernels.events import (
    EVENTS,
    FIXED_KIND,
    KIND_CONFIG,
    KIND_DERIVED_FIRST,
    KIND_NONE,
    KINDS_WORDS,
    Derivation,
    EventSpec,
    constraint_mask,
    derivation,
    derive_rate,
    derived_configs,
    encode_kinds,
    event_kind,
    parse_event,
)
from vpmu.kernels.jit import U64

EDGE, INV = 1 << 18, 1 << 23
USR_OS_INT_EN = 0x530000
codes = st.sampled_from([config & 0xFFFF for config in KIND_CONFIG]) | st.integers(0, 0xFFFF)
cmasks = st.sampled_from([0, 1, 2, 12]) | st.integers(0, 255)
eventsels = st.builds(
    lambda code, cmask, flags, high: code | cmask << 24 | flags & ~0xFF00FFFF & (2**32 - 1) | high << 32,
    codes,
    cmasks,
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1, 2, 3]),
)
derivable = st.builds(
    lambda config, cmask, flags: config & 0xFFFF | cmask << 24 | flags,
    st.sampled_from(KIND_CONFIG[:14]),
    st.integers(0, 255),
    st.sampled_from([0, EDGE, INV, EDGE | INV]),
)


def test_kernels_return_words():
    word = types.uint64
    for compiled, signature in (
        (derive_rate, (word,) * 4),
        (constraint_mask, (word,) * 3),
        (event_kind, (word[::1], word, word)),
    ):
        dispatcher: Any = compiled
        dispatcher.compile(signature)
        assert {found.return_type for found in dispatcher.nopython_signatures} == {word}


# -- kinds --


def twin_kind(eventsel: int, derived: list[int]) -> int:
    """Look the event up field by field: event, umask, edge, cmask, and inv where there is a cmask."""

    def fields(config: int) -> tuple[int, ...]:
        cmask = config >> 24 & 0xFF
        return config & 0xFF, config >> 8 & 0xFF, config >> 18 & 1, cmask, (config >> 23 & 1) if cmask else 0

    known = [fields(config) for config in [*KIND_CONFIG, *derived]]
    return known.index(fields(eventsel)) if fields(eventsel) in known else int(KIND_NONE)


@given(eventsels, st.lists(derivable, max_size=14), st.integers(0, 100))
def test_event_kind_is_its_twin(eventsel: int, configs: list[int], offset: int):
    derived = derived_configs(configs)
    arena = np.zeros(offset + int(KINDS_WORDS), dtype=np.uint64)
    arena[offset:] = encode_kinds(derived)
    for config in [eventsel, *derived, *KIND_CONFIG]:
        for flags in (0, USR_OS_INT_EN):
            kind = int(event_kind(arena, U64(offset), U64(config | flags)))
            assert kind == twin_kind(config | flags, derived), hex(config)


def test_a_kind_s_number_is_the_place_of_its_config():
    # The constants and the configs of Intel's event list, side by side.
    expected = {
        "CYCLES": 0x003C,
        "INSTRUCTIONS": 0x00C0,
        "BRANCHES": 0x00C4,
        "BRANCH_MISSES": 0x00C5,
        "CACHE_REFERENCES": 0x4F2E,
        "CACHE_MISSES": 0x412E,
        "L1D_LOADS": 0x81D0,
        "L1D_STORES": 0x82D0,
        "L1D_MISSES": 0x0151,
        "L1I_MISSES": 0x0280,
        "DTLB_LOAD_MISSES": 0x0108,
        "DTLB_STORE_MISSES": 0x0149,
        "ITLB_MISSES": 0x0185,
        "L1D_PENDING": 0x0148,
        "STALL_L1D": 0x0C000CA3,
        "MEM_LOADS_RETIRED_L3_MISS": 0x20D1,
        "REF_CYCLES": 0x0300,
        "BUS_CYCLES": 0x013C,
    }
    assert {name: KIND_CONFIG[int(getattr(events, f"KIND_{name}"))] for name in expected} == expected
    assert len(KIND_CONFIG) == KIND_DERIVED_FIRST
    assert [KIND_CONFIG[int(kind)] for kind in FIXED_KIND] == [0x00C0, 0x003C, 0x0300]


def test_an_event_that_is_not_in_the_table_counts_nothing():
    table = encode_kinds([])
    for eventsel in (0, 0xFFFFFFFF, 0x5301C4, 0x5300C4 | 1 << 24, 0x5300C4 | EDGE):
        assert event_kind(table, U64(0), U64(eventsel)) == KIND_NONE
    assert event_kind(table, U64(0), U64(0x5300C4 | INV)) == events.KIND_BRANCHES


def test_derived_configs_are_normalized_unique_and_in_order():
    branches_cmask = 0x00C4 | 1 << 24
    configs = [
        USR_OS_INT_EN | branches_cmask | INV,
        branches_cmask,
        0x00C4 | INV,
        0x003C | EDGE,
        branches_cmask,
    ]
    assert derived_configs(configs) == [0x003C | EDGE, branches_cmask, branches_cmask | INV]
    for wrong in ([branches_cmask, 0x003C | EDGE], [0x00C4], [branches_cmask] * 2):
        with pytest.raises(ValueError, match="not what derived_configs"):
            encode_kinds(wrong)


def test_a_run_has_room_for_fourteen_derived_events():
    configs = [0x00C4 | cmask << 24 for cmask in range(1, 16)]
    assert len(encode_kinds(configs[:14])) == KINDS_WORDS
    with pytest.raises(ValueError, match="15 events with edge, inv or cmask: a run can have 14"):
        derived_configs(configs)


def test_derivation_finds_the_event_under_the_flags():
    stalls = 0x0C000CA3
    assert derivation(0x5300C4) == Derivation(2, 0, 0, 0)
    assert derivation(0x00C4 | 3 << 24 | INV | EDGE) == Derivation(2, 3, 1, 1)
    assert derivation(stalls) == Derivation(14, 0, 0, 0)
    # Its cmask of 12 is part of the event, which is one per stalled cycle.
    assert derivation(stalls | EDGE) == Derivation(14, 1, 0, 1)
    for config in (0x0CA3, 0x0CA3 | 4 << 24, 0x01C4, 0x0300 | EDGE, 0x013C | 1 << 24):
        with pytest.raises(ValueError, match="the model has no rate"):
            derivation(config)


# -- derived rates --


@given(
    st.integers(0, 40).flatmap(lambda q: st.tuples(st.integers(0, 4 * q), st.just(max(q, 1)))),
    st.integers(0, 5),
    st.booleans(),
    st.booleans(),
)
def test_derived_rates_are_what_a_counter_sees_cycle_by_cycle(
    rate: tuple[int, int], cmask: int, inv: bool, edge: bool
):
    events_per_cycle = Fraction(*rate)
    cycles = 4 * events_per_cycle.denominator
    totals = [cycle * events_per_cycle // 1 for cycle in range(cycles + 1)]
    per_cycle = [after - before for before, after in pairwise(totals)]
    if cmask == 0 and not edge:
        expected = sum(per_cycle)
    else:
        condition = [(count >= max(cmask, 1)) != (inv and cmask > 0) for count in per_cycle]
        # Evenly spread cycles repeat, so the one before the first is the last.
        expected = sum(now and not (edge and condition[i - 1]) for i, now in enumerate(condition))
    # The rate is rounded down to 2**-28, and INV turns that round.
    q28 = int(events_per_cycle * 2**28)
    derived = int(derive_rate(U64(q28), U64(cmask), U64(inv), U64(edge)))
    assert abs(derived - Fraction(expected * 2**28, cycles)) <= 1


# -- constraints --


def twin_constraint(config: int, nr_gp: int, nr_fixed: int) -> set[int]:
    """First hit in intel_bdw_event_constraints."""
    gp, fixed = set(range(nr_gp)), set(range(32, 32 + nr_fixed))
    event, umask = config & 0xFF, config >> 8 & 0xFF
    plain = not (config >> 18 & 1 or config >> 23 & 1 or config >> 24 & 0xFF or config >> 32 & 3)
    table = [
        (plain and (event, umask) == (0xC0, 0), {32} | gp),
        (plain and (event, umask) == (0x3C, 0), {33} | gp),
        (plain and (event, umask) == (0x00, 3), {34}),
        ((event, umask) == (0x48, 1), {2}),
        (event == 0xA3 and umask & 8, {2}),
        (event in {0xD0, 0xD1, 0xD2, 0xCD}, {0, 1, 2, 3}),
        (True, gp),
    ]
    allowed = next(counters for hit, counters in table if hit) & (gp | fixed)
    return allowed & {2} if config >> 33 & 1 else allowed


constrained = codes | st.sampled_from(
    [0x0148, 0x08A3, 0x04A3, 0x0CA3, 0x11D0, 0x20D1, 0x01D2, 0x01D3, 0x02CD]
)


@given(
    constrained,
    st.sampled_from([0, 0, USR_OS_INT_EN, EDGE, INV, 1 << 24, 1 << 21, 1 << 32, 1 << 33, 3 << 32]),
    st.sampled_from([4, 8]) | st.integers(0, 8),
    st.integers(0, 3),
)
def test_constraints_are_the_broadwell_table(code: int, flags: int, nr_gp: int, nr_fixed: int):
    mask = int(constraint_mask(U64(code | flags), U64(nr_gp), U64(nr_fixed)))
    assert {i for i in range(64) if mask >> i & 1} == twin_constraint(code | flags, nr_gp, nr_fixed)


@pytest.mark.parametrize(
    ("config", "weights"),
    [
        (0x00C0, (5, 9)),
        (0x003C, (5, 9)),
        (0x0300, (1, 1)),
        (0x0148, (1, 1)),
        (0x08A3, (1, 1)),
        (0x01D1, (4, 4)),
        (0x0108, (4, 8)),
        (0x00C4 | 1 << 33, (1, 1)),
        (0x0300 | 1 << 33, (1, 1)),
    ],
)
def test_weights_are_those_of_the_table(config: int, weights: tuple[int, int]):
    masks = [int(constraint_mask(U64(config), U64(nr_gp), U64(3))) for nr_gp in (4, 8)]
    assert tuple(mask.bit_count() for mask in masks) == weights


# -- syntax --


@pytest.mark.parametrize(
    ("text", "config", "exclude_user", "exclude_kernel"),
    [
        ("branches", 0x00C4, False, False),
        ("cycles:u", 0x003C, False, True),
        ("cpu-cycles:k", 0x003C, True, False),
        ("dTLB-load-misses:ku", 0x0108, False, False),
        ("ref-cycles", 0x0300, False, False),
        ("cycle_activity.stalls_l1d_miss", 0x0C000CA3, False, False),
        ("r4f2e", 0x4F2E, False, False),
        ("r10400c4:u", 0x00C4 | EDGE | 1 << 24, False, True),
        ("cpu/event=0xc4,cmask=2,inv,edge/", 0x00C4 | 2 << 24 | INV | EDGE, False, False),
        ("cpu/event=0xc4,inv/", 0x00C4, False, False),
        ("cpu/umask=0x81,event=208,edge=0/k", 0x81D0, True, False),
    ],
)
def test_events_in_perf_s_syntax(text: str, config: int, exclude_user: bool, exclude_kernel: bool):
    assert parse_event(text) == EventSpec(text, config, exclude_user, exclude_kernel)


@pytest.mark.parametrize("name", EVENTS)
def test_a_name_is_its_config_and_its_kind(name: str):
    config, kind = EVENTS[name]
    assert parse_event(name).config == config
    assert event_kind(encode_kinds([]), U64(0), U64(config | USR_OS_INT_EN)) == kind


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("brnches", "unknown event 'brnches', did you mean 'branches'"),
        ("dtlb-load-miss:u", "did you mean 'dTLB-load-misses'"),
        ("", "unknown event '', allowed are cpu-cycles, "),
        ("iTLB-loads", "the model has no rate for it"),
        ("r01c4", "no rate for event 0xc4 with umask 0x01"),
        ("r13c01000000000", "not of event, umask, edge, inv and cmask"),
        ("r5300c4", "0x530000 is not of event"),
        ("cycles:p", "unknown modifier 'p'"),
        ("cycles:uu", "unknown modifier 'uu'"),
        ("cpu/evnt=0xc4/", "unknown term 'evnt', did you mean 'event'"),
        ("cpu/event=0x1c4/", "event is 0x1c4, it must be below 0x100"),
        ("cpu/event=-1/", "it must be below"),
        ("cpu/event=c4/", "'c4' is no number"),
        ("cpu/event=1,event=2/", "'event' appears twice"),
        ("cpu/umask=1/", "the term 'event' is missing"),
        ("cpu/event=0x3c,umask=1,edge/", "no rate for event 0x013c with edge"),
    ],
)
def test_a_bad_event_is_named(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse_event(text)
