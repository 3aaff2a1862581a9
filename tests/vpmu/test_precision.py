"""How near profiles come to the truth: the formulas, `vpmu precision`, `vpmu truth` and a run's table."""

import json
import math
from fractions import Fraction
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpmu.cli import main
from vpmu.paper.experiment import EXAMPLES
from vpmu.precision import Study, distance, expected_distance, precision_of, study
from vpmu.results import FunctionRow, ProfileRow
from vpmu.scenario import load_scenario

RECORD = EXAMPLES / "record.toml"


@pytest.fixture(scope="module")
def twenty() -> Study:
    designs = ("legacy", "optimized", "native")
    return study(
        lambda seed: load_scenario(RECORD, [f"seed={seed}"]), designs, range(1, 21), ("optimized", "native")
    )


# -- formulas --


def test_the_distance_is_the_share_of_samples_that_would_have_to_move():
    # 6, 4 and 0 of 10 against a truth of 1/2, 1/4, 1/4: 2.5 of 10 are in the wrong place.
    assert distance([6, 4, 0], [200, 100, 100]) == pytest.approx(0.25)
    assert distance([5, 5], [7, 7]) == 0
    assert distance([3, 0], [0, 9]) == 1
    assert distance([], []) == distance([0], [1]) == 0


def exact_expected_distance(truth: list[int], n: int) -> Fraction:
    """Every outcome of n draws, one by one: a twin that shares nothing with the formula."""
    total, expected = sum(truth), Fraction(0)
    for drawn in product(range(len(truth)), repeat=n):
        chance = Fraction(math.prod(truth[i] for i in drawn), total**n)
        off = (abs(Fraction(drawn.count(i), n) - Fraction(t, total)) for i, t in enumerate(truth))
        apart = sum(off, Fraction(0)) / 2
        expected += chance * apart
    return expected


@given(st.lists(st.integers(0, 20), min_size=1, max_size=3).filter(any), st.integers(1, 6))
def test_what_chance_gives_is_the_mean_over_all_outcomes(truth: list[int], n: int):
    assert expected_distance(truth, n) == pytest.approx(float(exact_expected_distance(truth, n)), abs=1e-12)


def test_without_samples_chance_gives_nothing_and_the_profile_is_as_far_as_can_be():
    assert expected_distance([1, 2], 0) == expected_distance([0], 5) == 0
    row = precision_of(ProfileRow(vm="g", vcpu=0, session="r", samples=0, functions=[]))
    assert (row.distance, row.chance) == (1, 0)


def test_the_bias_of_a_function_has_a_binomials_error():
    rows = [
        FunctionRow(name="a", samples=60, truth_cycles=1),
        FunctionRow(name="b", samples=40, truth_cycles=1),
    ]
    row = precision_of(ProfileRow(vm="g", vcpu=0, session="r", samples=100, functions=rows))
    a, b = row.functions
    assert (a.share, a.truth) == (0.6, 0.5)
    assert a.bias == pytest.approx(0.1)
    # sqrt(1/2 * 1/2 / 100)
    assert a.error == b.error == pytest.approx(0.05)
    assert row.distance == pytest.approx(0.1)
    assert row.excess == row.distance - row.chance


# -- over seeds --


def test_optimized_loses_no_precision(twenty: Study):
    shift, error = twenty.difference("optimized", "native")
    assert twenty.count > 20_000
    assert error > 0
    assert abs(shift) < 2 * error


def test_legacys_profiles_are_further_from_the_truth_and_the_excess_is_split(twenty: Study):
    legacy, native = twenty.designs["legacy"], twenty.designs["native"]
    assert legacy.distance > native.distance
    fewer, bias = twenty.excess("legacy")
    assert fewer > 0
    assert fewer + bias == pytest.approx(legacy.distance - native.distance)


def test_the_command_prints_the_study(capsys: pytest.CaptureFixture[str]):
    arguments = ["precision", str(RECORD), "--seeds", "2", "--design", "optimized,native"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seeds"] == [1, 2]
    assert set(found["against_native"]) == {"optimized"}
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "optimized against native: at equal counts" in shown


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([str(RECORD), "--seeds", "1"], "--seeds: must be at least 2, found 1"),
        (["nowhere.toml"], "nowhere.toml: cannot read"),
        ([str(EXAMPLES / "stat.toml"), "--seeds", "2"], 'no session with tool = "record"'),
        ([str(RECORD), "--design", "optimised"], 'did you mean "optimized"'),
    ],
)
def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], line: str):
    assert main(["precision", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert line in error


# -- of one run --


def test_truth_of_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    few = ["--set", "vm.guest.thread.ftest.work=0.5", "--set", "vm.guest.count=3"]
    arguments = ["run", str(RECORD), *few, "--set", "until=5 s", "--design", "optimized", "--out", str(out)]
    assert main(arguments) == 0
    run = capsys.readouterr().out
    assert "median of 3" in run
    assert main(["truth", str(out)]) == 0
    shown = capsys.readouterr().out
    for text in ("what measuring cost", "median of 3", "guest.0/record", "by chance", "qux"):
        assert text in shown
    assert main(["truth", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["designs"]["optimized"]
    summary = json.loads((out / "summary.json").read_text())["designs"]["optimized"]
    assert [p["samples"] for p in found["profiles"]] == [p["samples"] for p in summary["profiles"]]
    for thread in found["threads"]:
        assert thread["slowdown"] == pytest.approx(thread["run_ns"] / thread["unmeasured_ns"] - 1)


def test_truth_of_no_results_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["truth", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
