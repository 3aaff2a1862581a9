"""The cost table and its log-normal, against floating-point mathematics."""

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numba import types

from vpmu.kernels import costs
from vpmu.kernels.costs import (
    C_BASE,
    C_MEDIAN,
    C_SPREAD,
    COST_COLUMNS,
    COST_HOST_IRQ,
    COST_NAMES,
    COST_ROWS,
    draw_cost,
    encode_costs,
    lognormal,
)
from vpmu.kernels.jit import U64, Arena, kernel
from vpmu.kernels.random import STREAM_COST, draw

words = st.integers(0, 2**64 - 1)
SAMPLES = 1 << 18
NOTHING = (0, 0, 0)


@kernel
def fill_costs(out: Arena, s: Arena, cost_row: U64, actor: U64) -> None:
    for i in range(U64(out.size)):
        out[i] = draw_cost(s, cost_row, U64(1), actor, U64(i))


def test_kernels_return_words():
    word = types.uint64
    for compiled, signature in ((lognormal, (word,) * 3), (draw_cost, (word[::1], *(word,) * 4))):
        dispatcher: Any = compiled
        dispatcher.compile(signature)
        assert {found.return_type for found in dispatcher.nopython_signatures} == {word}


def test_every_constant_is_the_row_of_its_name():
    constants = {name: int(getattr(costs, f"COST_{name.upper()}")) for name in COST_NAMES}
    assert constants == {name: row for row, name in enumerate(COST_NAMES)}
    assert len(COST_NAMES) == COST_ROWS
    assert sorted([C_BASE, C_MEDIAN, C_SPREAD]) == list(range(int(COST_COLUMNS)))


@given(words, st.integers(0, 2**32 - 1), st.integers(0, 3 << 15))
def test_lognormal_is_the_median_times_exp_of_sigma_z(bits: int, median_ns: int, sigma_q16: int):
    # z is off by 2.7e-4 (see test_random) and the power by 1e-6: with a sigma of 1.5, 0.04 % together. Tails
    # are cut at 2**-40.
    p = max((bits % 2**63) / 2**64, 2.0**-40)
    z = -NormalDist().inv_cdf(p) * (-1 if bits >> 63 else 1)
    expected = median_ns * math.exp(z * sigma_q16 / 65536)
    assert int(lognormal(U64(bits), U64(median_ns), U64(sigma_q16))) == pytest.approx(
        expected, rel=5e-4, abs=0.501
    )


def test_lognormal_does_not_wrap_at_its_limits():
    # z = 7.05 and sigma = 2: e**14.1 = 1.33 million medians up, and less than one nanosecond down.
    largest, sigma = 2**32 - 1, 2 << 16
    cut = -NormalDist().inv_cdf(2.0**-40)
    assert int(lognormal(U64(0), U64(largest), U64(sigma))) == pytest.approx(
        largest * math.exp(2 * cut), rel=1e-4
    )
    assert int(lognormal(U64(2**63), U64(largest), U64(sigma))) == pytest.approx(
        largest * math.exp(-2 * cut), rel=1e-3
    )
    assert lognormal(U64(2**63), U64(1000), U64(sigma)) == 0
    assert lognormal(U64(12345), U64(1100), U64(0)) == 1100


@pytest.mark.parametrize("sigma", [0.05, 0.26, 1.0, 1.5])
def test_drawn_costs_have_the_moments_and_quantiles_of_a_log_normal(sigma: float):
    median = 1_000_000
    table = encode_costs({"host_irq": (0, median, round(sigma * 65536))}, default=NOTHING)
    out = np.empty(SAMPLES, dtype=np.uint64)
    fill_costs(out, table.reshape(-1), COST_HOST_IRQ * COST_COLUMNS, U64(9))
    logarithms = np.log(out / median)
    # Standard errors of a normal's mean and standard deviation over n draws: sigma/sqrt(n), sigma/sqrt(2n).
    assert logarithms.mean() == pytest.approx(0, abs=5 * sigma / 512)
    assert logarithms.std() == pytest.approx(sigma, rel=5 / 512 / math.sqrt(2))
    for k in (-3, -2, -1, 1, 2, 3):
        share = NormalDist().cdf(k)
        error = math.sqrt(share * (1 - share) / SAMPLES)
        assert (logarithms < k * sigma).mean() == pytest.approx(share, abs=5 * error)


@given(st.integers(0, 2**39), st.integers(0, 2**31), st.integers(0, 2 << 16), words, words)
@example(0, 2**31, 1, 3, 4)  # the least spread is one
def test_draw_cost_is_the_constant_part_plus_the_draw(
    base: int, median: int, sigma: int, actor: int, index: int
):
    index %= 2**56
    table = encode_costs({"inject": (base, median, sigma)}, default=NOTHING).reshape(-1)
    row = U64(COST_NAMES.index("inject") * int(COST_COLUMNS))
    bits = U64(draw(U64(5), U64(actor), STREAM_COST, U64(index)))  # a kernel's word reaches Python as an int
    expected = base + int(lognormal(bits, U64(median), U64(sigma)))
    assert int(draw_cost(table, row, U64(5), U64(actor), U64(index))) == expected


def test_the_table_holds_the_profile_s_figures():
    table = encode_costs({"exit": (700, 0, 0), "halt_wake": (1, 2, 3)}, default=(4, 5, 6))
    assert table.shape == (27, 3)
    assert table.dtype == np.uint64
    assert table[0].tolist() == [700, 0, 0]
    assert table[25].tolist() == [1, 2, 3]
    assert table[1:25].tolist() == [[4, 5, 6]] * 24


@pytest.mark.parametrize(
    ("given_costs", "message"),
    [
        ({"exti": NOTHING}, "unknown cost 'exti': did you mean 'exit'"),
        ({"xyzzy": NOTHING}, "unknown cost 'xyzzy'$"),
        ({"exit": NOTHING}, "the cost 'entry' is missing"),
        (dict.fromkeys(COST_NAMES, (-1, 0, 0)), "constant part of cost 'exit' is -1"),
        (dict.fromkeys(COST_NAMES, (0, 2**32, 0)), "median of cost 'exit' is 4294967296"),
        (dict.fromkeys(COST_NAMES, (0, 1, 131073)), "sigma of cost 'exit' is 131073.* to 131072"),
    ],
)
def test_a_bad_profile_is_named(given_costs: dict[str, tuple[int, int, int]], message: str):
    with pytest.raises(ValueError, match=message):
        encode_costs(given_costs)
