"""`vpmu paper`: the source's tables come out of the mechanisms, within their bounds."""

import json
import math
from pathlib import Path

import pytest
import trio

from vpmu.cli import main
from vpmu.errors import UserError
from vpmu.paper.experiment import EXAMPLES, Experiments, run_experiments
from vpmu.paper.report import account, report
from vpmu.paper.rows import Row, calibrations, declared, make_rows, mean_abs_log2
from vpmu.paper.source import SOURCE_FILE, Source, load_source
from vpmu.paper.variations import Variation, load_variations, moved, vary
from vpmu.scenario import load_scenario

ROOT = Path(__file__).parents[2]
SEEDS = range(1, 11)


@pytest.fixture(scope="module")
def source() -> Source:
    return load_source()


@pytest.fixture(scope="module")
def experiments() -> Experiments:
    return trio.run(run_experiments, SEEDS)


@pytest.fixture(scope="module")
def rows(source: Source, experiments: Experiments) -> list[Row]:
    return make_rows(source, experiments)


def test_every_bound_holds_over_ten_seeds(rows: list[Row]):
    bounded = [row for row in rows if row.bound is not None]
    assert len(bounded) >= 20
    assert [(row.table, row.row, row.design, row.ratio) for row in bounded if not row.within] == []


def test_the_bounds_are_those_asked_for(rows: list[Row]):
    bounds = {(row.table, row.row, row.design): row.bound for row in rows}
    assert bounds["2", "enable global_ctrl", "legacy"] == (0.7, 1.3)
    assert bounds["2", "disable global_ctrl", "legacy"] == (0.6, 1.4)
    assert bounds["2", "x86_pmu.handle_irq", "optimized"] == (0.85, 1.15)
    assert bounds["4", "x86_pmu.handle_irq", "optimized"] == (0.7, 1.3)
    low, high = bounds["4", "enable global_ctrl", "legacy"] or (0, 0)
    assert low * high == pytest.approx(1)
    assert high == 1.6
    for name in ("rd/wr eventsel", "rdpmcl"):
        for design in ("legacy", "optimized"):
            assert bounds["2", name, design] == (0.5, 2)
    for design in ("optimized", "native"):
        assert bounds["precision", "samples", design] == (0.96, 1.04)


def test_legacy_takes_fewer_than_half_of_natives_samples_and_calls_grow_12_to_40_fold(rows: list[Row]):
    found = {(row.row, row.design): row.emulated for row in rows if row.table in ("4", "precision")}
    assert found["samples", "legacy"] < found["samples", "native"] / 2
    assert 12 <= found["enable global_ctrl, legacy / optimized", "ratio"] <= 40


def test_natives_shares_are_within_a_point_of_the_hosts(rows: list[Row]):
    shares = [row for row in rows if row.table == "precision" and row.design == "native" and row.source < 1]
    assert len(shares) == 8
    for row in shares:
        assert abs(row.emulated - row.source) <= 0.01, row


def test_the_mean_distance_over_bounded_rows_is_at_most_a_half(rows: list[Row]):
    mean, count = mean_abs_log2(rows, bounded=True)
    assert count >= 8
    assert mean <= 0.5
    # By hand, over the same rows.
    ratios = [row.ratio for row in rows if row.kind == "prediction" and row.bound and row.ratio]
    assert mean == pytest.approx(sum(abs(math.log(ratio, 2)) for ratio in ratios) / len(ratios))


def test_each_calibrated_value_names_one_row_of_its_own_and_at_most_six_a_run(
    source: Source, experiments: Experiments
):
    found = calibrations(source, experiments)
    assert all(len(keys) == 1 for keys in found.values())
    for name in ("stat", "record"):
        assert len(declared(experiments, name)) <= 6


def test_a_calibrated_row_is_no_prediction(rows: list[Row]):
    calibrated = [row for row in rows if row.calibration]
    assert calibrated
    assert all(row.kind == "calibration" for row in calibrated)
    assert sum(row.kind == "prediction" for row in rows) + len(calibrated) < len(rows)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("table 9, rdpmcl, legacy", 'names no row of the source "table 9, rdpmcl, legacy"'),
        ("table 2, rdpmc, legacy", "names no row of the source"),
        ("table 2, rdpmcl, optimized", "two values are calibrated on 2, rdpmcl, optimized"),
    ],
)
def test_a_calibration_on_no_row_or_on_anothers_is_refused(source: Source, text: str, problem: str):
    # The profile's host_irq is calibrated on rdpmcl under optimized.
    overrides = [f'calibration={{"seed" = "{text}"}}']
    experiments = trio.run(lambda: run_experiments([], overrides))
    with pytest.raises(UserError) as caught:
        make_rows(source, experiments)
    assert problem in str(caught.value)


def test_the_account_adds_up_to_the_clocks(experiments: Experiments):
    for name, designs in experiments.results.items():
        for design, results in designs.items():
            parts = account(experiments, name, design)
            assert parts.pop("total") == sum(parts.values())
            for result in results:
                # One physical CPU, whose clock is at or past the end of the run.
                assert sum(result.accounting.values()) >= result.end_ns


def test_the_source_stands_in_one_file():
    """Telling figures of tables 2 to 5 and of precision are in no other file of the program."""
    telling = (
        "57_000_000",
        "57000000",
        "3_500_000",
        "74_000",
        "350_000_000",
        "5_198",
        "5198",
        "20_652",
        "20652",
    )
    for room in ("kernels", "actors", "cluster", "vpmu", "examples"):
        for path in (ROOT / room).rglob("*"):
            if path.suffix in (".py", ".toml") and path.resolve() != SOURCE_FILE.resolve():
                text = path.read_text()
                assert [figure for figure in telling if figure in text] == [], path


def test_the_command_prints_the_same_bytes_for_the_same_seeds(capsys: pytest.CaptureFixture[str]):
    assert main(["paper", "--seeds", "2", "--json"]) == 0
    first = capsys.readouterr().out
    assert main(["paper", "--seeds", "2", "--json"]) == 0
    assert capsys.readouterr().out == first
    found = json.loads(first)
    assert {"rows", "mean_abs_log2", "mean_abs_log2_bounded"} <= set(found)
    keys = {"table", "row", "design", "source", "emulated", "spread", "ratio", "calibration", "bound"}
    assert all(keys <= set(row) for row in found["rows"])


def test_the_tables_show_every_row_and_why(capsys: pytest.CaptureFixture[str]):
    assert main(["paper", "--seeds", "1"]) == 0
    shown = capsys.readouterr().out
    for text in ("Table 1", "Table 2", "Table 4", "Table 5", "Precision", "x86_pmu.handle_irq", "sched_out"):
        assert text in shown
    assert shown.count("Why: a legacy run takes") == 5
    assert "mean |log2 ratio| over all predicted rows" in shown
    assert "{" not in shown


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--seeds", "0"], "--seeds: must be at least 1, found 0"),
        (["--examples", "nowhere"], '--examples: no such file "nowhere/stat.toml"'),
        (["--set", "vm.guest.cpu=3"], "unknown key"),
    ],
)
def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], line: str):
    assert main(["paper", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert line in error


def test_json_is_what_the_tables_are_made_of(source: Source, rows: list[Row], experiments: Experiments):
    found = report(source, rows, experiments)
    assert len(found["rows"]) == len(rows)
    assert found["seeds"] == list(SEEDS)
    assert EXAMPLES.resolve() == (ROOT / "examples" / "ftest").resolve()


def test_every_ablation_moves_a_row_by_more_than_three_times_its_spread(source: Source, rows: list[Row]):
    ablations = load_variations().ablations
    assert {ablation.name for ablation in ablations} == {
        "reservation",
        "life count",
        "lost slices",
        "frequency adjustment",
        "LVTPC mask",
    }
    for outcome in trio.run(lambda: vary(source, ablations, SEEDS)):
        shifts = list(moved(rows, outcome))
        assert shifts, outcome.variation.name
        for before, after, _ in shifts:
            spread = max(row.spread[1] - row.spread[0] for row in (before, after))
            assert abs(after.emulated - before.emulated) > 3 * spread


def test_an_unchanged_run_moves_no_row(source: Source, rows: list[Row]):
    same = Variation(name="nothing", what="nothing is changed", both=("title=the same",))
    (outcome,) = trio.run(lambda: vary(source, [same], SEEDS))
    assert list(moved(rows, outcome)) == []


def test_experiments_are_valid_scenarios(capsys: pytest.CaptureFixture[str]):
    for experiment in load_variations().experiments:
        for name, changes in experiment.overrides().items():
            assert load_scenario(EXAMPLES / f"{name}.toml", list(changes)).vms
    assert main(["paper", "--experiments", "--ablations"]) == 2
    assert "not both" in capsys.readouterr().err
    assert main(["paper", "--experiments", "--set", "seed=1"]) == 2
    assert "goes with neither" in capsys.readouterr().err


def test_without_life_the_optimized_design_pays_what_legacy_pays(source: Source, rows: list[Row]):
    (life,) = [each for each in load_variations().ablations if each.name == "life count"]
    (outcome,) = trio.run(lambda: vary(source, [life], range(1, 3)))
    after = {(row.row, row.design): row.emulated for row in outcome.rows if row.table == "4"}
    assert after["enable global_ctrl", "optimized"] > after["enable global_ctrl", "legacy"] / 2
