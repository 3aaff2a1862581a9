"""Draws and distributions: exact against twins, and statistics with derived tolerances."""

import math
from collections import Counter
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import types

from vpmu.kernels import random
from vpmu.kernels.jit import U64, Arena, kernel
from vpmu.kernels.random import STREAM_COST, STREAM_WAKE, draw, exp2_q30, exponential, normal_q24

words = st.integers(0, 2**64 - 1)
indices = st.integers(0, 2**56 - 1)
streams = st.integers(0, 255)
SAMPLES = 1 << 18


@kernel
def fill_draws(out: Arena, seed: U64, actor: U64, stream: U64) -> None:
    for i in range(U64(out.size)):
        out[i] = draw(seed, actor, stream, U64(i))


@kernel
def fill_exponential(out: Arena, mean_ns: U64) -> None:
    for i in range(U64(out.size)):
        out[i] = exponential(out[i], mean_ns)


def draws(seed: int = 7, actor: int = 3, stream: U64 = STREAM_COST) -> Arena:
    out = np.empty(SAMPLES, dtype=np.uint64)
    fill_draws(out, U64(seed), U64(actor), stream)
    return out


@pytest.mark.parametrize(
    ("name", "arguments"), [("draw", 4), ("exponential", 2), ("normal_q24", 1), ("exp2_q30", 1)]
)
def test_kernels_return_words(name: str, arguments: int):
    compiled: Any = getattr(random, name)
    compiled.compile((types.uint64,) * arguments)
    assert {signature.return_type for signature in compiled.nopython_signatures} == {types.uint64}


def twin_draw(seed: int, actor: int, stream: int, index: int) -> int:
    """Two scrambled words, then the finalizer of splitmix64 (Steele, Lea and Flood, 2014)."""
    golden, mix1, mix2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
    key = ((seed ^ mix2) + actor * golden) % 2**64
    key = (key ^ key >> 32) * mix1 % 2**64
    word = ((stream * 2**56 + index) % 2**64 + golden) * mix2 % 2**64
    x = ((key ^ key >> 29) + (word ^ word >> 32)) % 2**64
    x = (x ^ x >> 30) * mix1 % 2**64
    x = (x ^ x >> 27) * mix2 % 2**64
    return x ^ x >> 31


@given(words, words, streams, indices)
def test_draw_is_its_twin(seed: int, actor: int, stream: int, index: int):
    assert int(draw(U64(seed), U64(actor), U64(stream), U64(index))) == twin_draw(seed, actor, stream, index)


@pytest.mark.parametrize("position", range(4))
def test_every_input_bit_flips_half_of_the_output(position: int):
    # 512 draws a bit and 64 output bits: 2**15 coin flips, so the share has a standard deviation of 0.0028.
    inputs = np.array([[1, 2, 3, 4]] * 512, dtype=np.uint64)
    inputs[:, 3] = np.arange(512)
    for bit in range({2: 8, 3: 56}.get(position, 64)):
        changed = inputs.copy()
        changed[:, position] ^= U64(1 << bit)
        flips = sum((int(draw(*a)) ^ int(draw(*b))).bit_count() for a, b in zip(inputs, changed, strict=True))
        assert flips / (512 * 64) == pytest.approx(0.5, abs=6 * 0.0028), f"bit {bit}"


def test_draws_are_even_in_every_byte():
    # Chi-squared with 255 degrees of freedom: mean 255, standard deviation 22.6.
    for byte in range(8):
        counts = np.bincount((draws() >> U64(8 * byte) & U64(255)).astype(np.int64), minlength=256)
        chi2 = float(((counts - SAMPLES / 256) ** 2).sum() / (SAMPLES / 256))
        assert 255 - 6 * 22.6 < chi2 < 255 + 6 * 22.6, f"byte {byte}"


def test_sequences_of_actors_streams_and_seeds_share_nothing():
    sequences = [draws(), draws(actor=4), draws(seed=8), draws(stream=STREAM_WAKE)]
    everything = np.concatenate(sequences)
    # 2**20 words of 64 bits: a shared one has a probability of 2**-25 unless sequences overlap.
    assert np.unique(everything).size == everything.size
    for other in sequences[1:]:
        agreeing = np.bitwise_count(~(sequences[0] ^ other)).mean()
        # The standard deviation of a mean over 2**18 words of 64 fair bits is 4 / 512.
        assert agreeing == pytest.approx(32, abs=6 * 4 / 512)


@given(words)
def test_exponential_follows_the_logarithm(bits: int):
    # Linear interpolation over 1/256 leaves (1/256)**2 / 8 = 1.91e-6; ln 2, rounded to 2**-28, taken up to 64
    # times adds 64 * 2**-29 = 0.12e-6.
    expected = -math.log((bits | 1) / 2**64) * 10**9
    assert int(exponential(U64(bits), U64(10**9))) == pytest.approx(expected, abs=2.05e-6 * 10**9)


def test_exponential_of_small_and_large_means():
    half = U64(2**63)  # -ln(1/2) = 0.693
    assert [int(exponential(half, U64(mean))) for mean in (0, 1, 10, 2**56)] == [
        0,
        1,
        7,
        pytest.approx(math.log(2) * 2**56, rel=1e-8),
    ]
    # The rarest draw is 64 ln 2 means, and must not wrap.
    assert int(exponential(U64(0), U64(2**57 - 1))) == pytest.approx(64 * math.log(2) * 2**57, rel=1e-8)


def test_exponential_has_the_mean_and_the_memory_of_one():
    mean = 1_000_000
    times = draws()
    fill_exponential(times, U64(mean))
    # Mean and standard deviation are equal: of 2**18 draws, 1/512 is the mean's standard error.
    assert times.mean() == pytest.approx(mean, rel=4 / 512)
    for k in (0.1, 1, 4):
        share = math.exp(-k)
        error = math.sqrt(share * (1 - share) / SAMPLES)
        assert (times > k * mean).mean() == pytest.approx(share, abs=5 * error)


tails = st.builds(lambda word, shift: word >> shift, st.integers(2**62, 2**63 - 1), st.integers(0, 38))


@given(tails, st.booleans())
def test_normal_is_the_quantile_of_its_bits(p: int, negative: bool):
    # The interpolation's step is a sixteenth of p at most: (1/16)**2 / 8 over z, which is above 1.8 there.
    z = int(normal_q24(U64(p | negative << 63))) / 2**24
    assert z == pytest.approx(-NormalDist().inv_cdf(p / 2**64), abs=2.7e-4)


@pytest.mark.parametrize(
    "seam", [16 << 54, 17 << 54, 1 << 57, 1 << 40, 1 << 25, 1 << 24, 511 << 54, (1 << 63) - 1]
)
def test_normal_falls_without_a_jump_where_tables_meet(seam: int):
    below, at = (int(normal_q24(U64(p))) for p in (seam - 1, seam))
    assert 0 <= below - at <= 2


def test_normal_at_its_ends():
    # p = 1/2 is the median; below 2**-40 the tail is cut at -inv_cdf(2**-40) = 7.05.
    assert int(normal_q24(U64(2**63 - 1))) <= 1
    cut = -NormalDist().inv_cdf(2.0**-40)
    assert int(normal_q24(U64(0))) / 2**24 == pytest.approx(cut, abs=1e-6)
    assert normal_q24(U64(0)) == normal_q24(U64(2**24)) == normal_q24(U64(2**63))


def test_tables_hold_known_quantiles():
    # Quantiles of the standard normal from published tables: the point of 1/1024 is 3.0973.
    table = {"a quarter": (2**62, 0.674490), "a sixteenth": (2**60, 1.534121), "1/1024": (2**54, 3.097269)}
    for what, (p, z) in table.items():
        assert int(normal_q24(U64(p))) / 2**24 == pytest.approx(z, abs=1e-6), what


@given(st.integers(0, 2**32 - 1))
def test_exp2_is_a_power_of_two(fraction: int):
    # (ln 2 / 256)**2 / 8 = 9.2e-7 of interpolation, and one unit in 2**30.
    assert int(exp2_q30(U64(fraction))) / 2**30 == pytest.approx(2 ** (fraction / 2**32), rel=1e-6)


def test_signs_are_even_and_free_of_the_magnitude():
    bits = draws()
    signs = Counter((int(b) >> 63, int(normal_q24(b)) > 0.67449 * 2**24) for b in bits[: 1 << 14])
    # Four cells of 2**14 / 4; a cell's standard deviation is sqrt(2**14 * 3 / 16) = 55.
    assert len(signs) == 4
    assert all(abs(count - 2**12) < 5 * 55 for count in signs.values())
