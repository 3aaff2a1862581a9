"""Samples by session and function: counted as if one by one."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpmu import collect
from vpmu.collect import SampleCounter
from vpmu.kernels.log import RECORD_PMI, RECORD_SAMPLE

GUEST = 1 << 42
"""What is added to a guest's number in the arena."""
SAMPLES = st.tuples(
    st.integers(0, 3) | st.just(2**24 - 1),
    st.integers(0, 2) | st.just(255),
    st.integers(0, 4) | st.just(2**32 - 1),
)


@given(st.lists(st.lists(SAMPLES, max_size=30), max_size=6), st.integers(0, 40))
def test_samples_are_counted_by_guest_session_and_function(
    batches: list[list[tuple[int, int, int]]], most_new: int
):
    counter, expected = SampleCounter(), Counter[tuple[int, int, int]]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect, "_MOST_NEW", most_new)
        for batch in batches:
            records = np.zeros((2 * len(batch), 8), np.uint64)
            records[: len(batch), 0] = RECORD_SAMPLE
            records[len(batch) :, 0] = RECORD_PMI
            for row, (guest, session, function) in zip(records, batch, strict=False):
                # Above its 32 bits a function has its caller's, above a session's 8 the level.
                row[[2, 6, 7]] = GUEST | guest, 7 << 32 | function, 3 << 48 | session << 24 | 1
            counter.add(records)
            expected.update(batch)
        for guest, session in {(guest, session) for guest, session, _ in expected} | {(9, 9)}:
            due = {f: n for (g, s, f), n in expected.items() if (g, s) == (guest, session)}
            assert counter.of(GUEST | guest, session) == due
