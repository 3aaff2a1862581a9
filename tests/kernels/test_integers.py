"""Fixed-point rates and bit operations against Python's integers."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import types

from vpmu.kernels import integers
from vpmu.kernels.integers import (
    MASK48,
    NEVER,
    RATE_ONE,
    bit_length,
    lowest_bit,
    popcount,
    rate_at,
    sign_extend32,
    ticks_until,
    u64max,
    u64min,
)
from vpmu.kernels.jit import U64

words = st.integers(0, 2**64 - 1)
# Powers of two and their neighbours: where carries and shifts go wrong.
edges = st.builds(lambda bit, d: (2**bit + d) % 2**64, st.integers(0, 64), st.integers(-2, 2))
any_word = words | edges
times = st.integers(0, 2**58 - 1)
rates = st.integers(0, 2**34 - 1)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("rate_at", 2),
        ("ticks_until", 3),
        ("sign_extend32", 2),
        ("popcount", 1),
        ("lowest_bit", 1),
        ("bit_length", 1),
        ("u64min", 2),
        ("u64max", 2),
    ],
)
def test_kernels_return_words(name: str, arguments: int):
    kernel: Any = getattr(integers, name)
    kernel.compile((types.uint64,) * arguments)
    assert {signature.return_type for signature in kernel.nopython_signatures} == {types.uint64}


@given(times, rates)
def test_rate_at_is_exact(t: int, rate: int):
    assert int(rate_at(U64(t), U64(rate))) == t * rate >> 28


@given(times, times, rates)
def test_a_span_cut_in_two_counts_what_the_whole_counts(a: int, b: int, rate: int):
    first, last = sorted((a, b))
    whole = int(rate_at(U64(last), U64(rate))) - int(rate_at(U64(first), U64(rate)))
    assert whole == (last * rate >> 28) - (first * rate >> 28)


@given(times, rates.filter(bool), st.integers(1, 2**34 - 1))
def test_ticks_until_is_the_first_moment_with_enough_ticks(t: int, rate: int, n: int):
    d = int(ticks_until(U64(t), U64(rate), U64(n)))
    gained = (t + d) * rate // 2**28 - t * rate // 2**28
    just_before = (t + d - 1) * rate // 2**28 - t * rate // 2**28
    assert gained >= n > just_before


def test_ticks_until_at_the_ends_of_its_domain():
    assert ticks_until(U64(5), U64(0), U64(1)) == NEVER
    assert ticks_until(U64(5), U64(0), U64(0)) == 0
    assert ticks_until(U64(5), RATE_ONE, U64(0)) == 0
    # One tick in 2**28 ns: 2**34 - 1 of them take (2**34 - 1) * 2**28 ns, which is not NEVER.
    assert ticks_until(U64(0), U64(1), U64(2**34 - 1)) == (2**34 - 1) * 2**28 < NEVER


@given(any_word)
def test_sign_extension_is_two_s_complement(value: int):
    low = (value % 2**32).to_bytes(4, "little")
    expected = int.from_bytes(low, "little", signed=True) % 2**48
    assert int(sign_extend32(U64(value), MASK48)) == expected


def test_sign_extension_of_what_perf_writes():
    # perf arms a counter with -(2**31 - 1); a guest without full-width writes has 0x80000001 in EAX.
    assert sign_extend32(U64(0x80000001), MASK48) == 0xFFFF80000001
    assert sign_extend32(U64(0x1234_7FFFFFFF), MASK48) == 0x7FFFFFFF


@given(any_word)
def test_bit_operations(x: int):
    text = f"{x:064b}"
    assert int(popcount(U64(x))) == text.count("1")
    assert int(bit_length(U64(x))) == (64 - text.index("1") if x else 0)
    assert int(lowest_bit(U64(x))) == (63 - text.rindex("1") if x else 64)


@given(any_word, any_word)
def test_minimum_and_maximum_stay_whole_above_2_to_the_53(a: int, b: int):
    assert [int(u64min(U64(a), U64(b))), int(u64max(U64(a), U64(b)))] == sorted((a, b))
