"""Counter assignment against a sorted-list twin, against matching theory, and against the worked table."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import types

from vpmu.kernels.events import constraint_mask
from vpmu.kernels.jit import U64
from vpmu.kernels.solver import perf_assign_events

CYCLES, INSTRUCTIONS, REF_CYCLES, PEND_MISS, MEM_UOPS = 0x003C, 0x00C0, 0x0300, 0x0148, 0x81D0
BRANCHES, DTLB, ANY = 0x00C4, 0x0108, 0x00C5
UNTOUCHED = 99
F0, F1, F2 = 32, 33, 34


def assign(masks: list[int], gpmax: int) -> tuple[int, list[int]]:
    """Solve in an arena with the two regions apart and a fence behind them."""
    n = len(masks)
    arena = np.full(2 * n + 8, UNTOUCHED, dtype=np.uint64)
    arena[3 : 3 + n] = masks
    assigned = perf_assign_events(arena, U64(3), U64(n), U64(gpmax), U64(5 + n))
    outside = [*arena[:3], *arena[3 + n : 5 + n], *arena[5 + 2 * n :]]
    assert outside == [UNTOUCHED] * 8
    assert arena[3 : 3 + n].tolist() == masks
    return int(assigned), arena[5 + n : 5 + 2 * n].tolist()


def masks_of(configs: list[int], nr_gp: int) -> list[int]:
    return [int(constraint_mask(U64(config), U64(nr_gp), U64(3))) for config in configs]


def twin_assign(masks: list[int], gpmax: int) -> dict[int, int]:
    """perf_assign_events(), with a list of the counters in the order in which they are tried."""
    order = sorted(range(len(masks)), key=lambda i: (masks[i].bit_count(), i))
    counters: dict[int, int] = {}
    for i in order:
        tried = [c for c in [*range(32, 64), *range(32)] if masks[i] >> c & 1 and c not in counters.values()]
        gp_taken = sum(c < 32 for c in counters.values())
        if not tried or (tried[0] < 32 and gp_taken == gpmax):
            break
        counters[i] = tried[0]
    return counters


def matching_exists(masks: list[int]) -> bool:
    """Whether each event can have a counter of its own: augmenting paths."""
    owner: dict[int, int] = {}

    def place(i: int, tried: set[int]) -> bool:
        for counter in (c for c in range(64) if masks[i] >> c & 1 and c not in tried):
            tried.add(counter)
            if counter not in owner or place(owner[counter], tried):
                owner[counter] = i
                return True
        return False

    return all(place(i, set()) for i in range(len(masks)))


def test_the_kernel_returns_a_word():
    word, kernel = types.uint64, perf_assign_events
    dispatcher: Any = kernel
    dispatcher.compile((word[::1], word, word, word, word))
    assert {found.return_type for found in dispatcher.nopython_signatures} == {word}


@pytest.mark.parametrize(
    ("configs", "with_4", "with_8"),
    [
        ([BRANCHES, CYCLES, DTLB], [0, F1, 1], [0, F1, 1]),
        ([CYCLES, CYCLES], [F1, 0], [F1, 0]),
        ([CYCLES, CYCLES, INSTRUCTIONS, INSTRUCTIONS, ANY, ANY], [F1, 2, F0, 3, 0, 1], [F1, 2, F0, 3, 0, 1]),
        ([PEND_MISS, *[ANY] * 4], None, [2, 0, 1, 3, 4]),
        ([*[ANY] * 4, MEM_UOPS], None, [1, 2, 3, 4, 0]),
        ([REF_CYCLES, REF_CYCLES], None, None),
        ([REF_CYCLES, CYCLES, INSTRUCTIONS], [F2, F1, F0], [F2, F1, F0]),
    ],
)
def test_the_worked_table(configs: list[int], with_4: list[int] | None, with_8: list[int] | None):
    for nr_gp, expected in ((4, with_4), (8, with_8)):
        assigned, counters = assign(masks_of(configs, nr_gp), nr_gp)
        if expected is None:
            assert assigned == len(configs) - 1
        else:
            assert (assigned, counters) == (len(configs), expected)


@pytest.mark.parametrize("nr_gp", [4, 8])
def test_cycles_among_as_many_others_as_there_are_gp_counters(nr_gp: int):
    gp = list(range(nr_gp))
    assert assign(masks_of([CYCLES, *[ANY] * nr_gp], nr_gp), nr_gp) == (nr_gp + 1, [F1, *gp])
    # A second one (the host's watchdog and a guest's counter) is left over: the heaviest, last in the list.
    two_cycles = masks_of([CYCLES, CYCLES, *[ANY] * nr_gp], nr_gp)
    assert assign(two_cycles, nr_gp) == (nr_gp + 1, [F1, UNTOUCHED, *gp])


def test_the_event_left_over_is_the_last_unconstrained_one():
    assert assign(masks_of([PEND_MISS, *[ANY] * 4], 4), 4) == (4, [2, 0, 1, 3, UNTOUCHED])


def test_an_empty_constraint_comes_first_and_fails_the_list():
    assert assign([0xF, 0, 0xF], 4) == (0, [UNTOUCHED] * 3)


def test_gp_counters_are_capped_and_fixed_ones_are_not():
    masks = masks_of([ANY, ANY, CYCLES, INSTRUCTIONS, REF_CYCLES], 4)
    # Only F2 is lighter than the any events: they end the list before cycles and instructions get a turn.
    assert assign(masks, 1) == (2, [0, UNTOUCHED, UNTOUCHED, UNTOUCHED, F2])
    assert assign(masks[2:], 0) == (3, [F1, F0, F2])


def test_nothing_to_assign():
    assert assign([], 4) == (0, [])


any_masks = st.lists(
    st.sets(st.integers(0, 7) | st.integers(32, 35)).map(lambda bits: sum(1 << bit for bit in bits))
    | st.integers(0, 2**64 - 1),
    max_size=12,
)


@given(any_masks, st.integers(0, 10))
def test_any_masks_are_assigned_as_the_twin_does(masks: list[int], gpmax: int):
    assigned, counters = assign(masks, gpmax)
    expected = twin_assign(masks, gpmax)
    assert assigned == len(expected)
    assert counters == [expected.get(i, UNTOUCHED) for i in range(len(masks))]


broadwell = st.sampled_from(
    [CYCLES, INSTRUCTIONS, REF_CYCLES, PEND_MISS, 0x08A3, MEM_UOPS, 0x20D1, ANY, ANY, BRANCHES | 1 << 33]
)


@given(st.lists(broadwell, max_size=11), st.sampled_from([4, 8]))
def test_on_broadwell_greed_fails_only_where_no_assignment_exists(configs: list[int], nr_gp: int):
    masks = masks_of(configs, nr_gp)
    assigned, _ = assign(masks, nr_gp)
    assert (assigned == len(masks)) == matching_exists(masks)
