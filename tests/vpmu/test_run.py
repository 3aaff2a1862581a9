"""Whole runs through the public face: the example scenarios, results on disk, Ctrl-C."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import trio

import vpmu
from tests.cluster.test_launcher import processes_of_group
from tests.processes import untraced
from vpmu.cli import main
from vpmu.cluster import node
from vpmu.errors import Interrupted
from vpmu.execution import execute
from vpmu.options import RunOptions
from vpmu.results import DesignResult, RunResult, read_results
from vpmu.scenario import load_scenario
from vpmu.tables import lost_ns

EXAMPLES = Path(__file__).parents[2] / "examples"
STAT = EXAMPLES / "ftest" / "stat.toml"
RECORD = EXAMPLES / "ftest" / "record.toml"
DESIGNS = ("legacy", "optimized", "native")


@pytest.fixture(scope="module")
def stat_run() -> RunResult:
    """The demo's run, its program cut to a quarter of a run."""
    scenario = load_scenario(STAT, ["vm.guest.thread.ftest.work=0.25"])
    return trio.run(execute, scenario, RunOptions(designs=DESIGNS), None)


@pytest.fixture(scope="module")
def record_run() -> RunResult:
    scenario = load_scenario(RECORD, ["until=3 s", "vm.guest.thread.ftest.work=1"])
    return trio.run(execute, scenario, RunOptions(designs=DESIGNS), None)


def action(result: DesignResult, name: str) -> int:
    return next(row.calls for row in result.actions if row.action == name)


def test_optimized_loses_at_most_a_tenth_of_what_legacy_loses(stat_run: RunResult):
    native = stat_run.designs["native"]
    legacy = lost_ns(stat_run.designs["legacy"], native)
    optimized = lost_ns(stat_run.designs["optimized"], native)
    assert legacy is not None
    assert optimized is not None
    assert 0 < optimized * 10 <= legacy


def test_every_count_read_equals_the_truth(stat_run: RunResult):
    for result in stat_run.designs.values():
        assert result.host["counters read"] > 0
        assert result.host["counters read that differ from the truth"] == 0
        assert all(row.count == row.truth for row in result.counters)


def test_counts_are_those_of_the_program_and_the_kernel_paths(stat_run: RunResult):
    # The profile's summary has 219,768,878 conditional and 8,000,301 indirect branches; a round makes 11
    # calls (main: foo, bar, qux and random() four times; random() calls random_r()); there are 2,000,000
    # rounds. The program's cycles are what `vpmu program show` prints. perf stat counts kernel code, too.
    branches, cycles = 219_768_878 + 8_000_301 + 22_000_000, 1_186_678_441
    for result in stat_run.designs.values():
        counts = {row.event: row.count for row in result.counters}
        assert branches / 4 <= counts["branches"] < branches / 4 * 1.05
        assert cycles // 4 <= counts["cpu-cycles"] < cycles / 4 * 1.05


def test_a_switch_of_a_measured_thread_makes_the_accesses_of_the_driver(stat_run: RunResult):
    # Switched out and in together 2 enables, 2 disables, 4 fixed_ctrl, 4 eventsel, 3 rdpmc, 3 counters.
    for result in stat_run.designs.values():
        pairs = action(result, "sched_in")
        assert action(result, "sched_out") == pairs
        assert action(result, "rdpmc") == 3 * pairs
        assert action(result, "rd/wr counter") == 3 * pairs
        assert action(result, "rd/wr eventsel") == 4 * pairs
        assert action(result, "rd/wr fixed_ctrl") == 4 * pairs
        assert action(result, "enable global_ctrl") == 2 * pairs


def test_the_accounting_adds_up_to_the_clock(stat_run: RunResult, record_run: RunResult):
    for run in (stat_run, record_run):
        for result in run.designs.values():
            assert sum(result.accounting.values()) >= result.until_ns
            assert sum(result.accounting.values()) < result.until_ns + 100_000_000


def test_optimized_takes_as_many_samples_as_native(record_run: RunResult):
    samples = {name: result.profiles[0].samples for name, result in record_run.designs.items()}
    assert samples["native"] > 1000
    assert abs(samples["optimized"] - samples["native"]) < 0.1 * samples["native"]
    assert samples["legacy"] < samples["native"] / 2


def test_profiles_name_functions_and_count_every_sample(record_run: RunResult):
    profile = record_run.designs["optimized"].profiles[0]
    assert sum(row.samples for row in profile.functions) == profile.samples
    assert max(profile.functions, key=lambda row: row.truth_cycles).name == "qux"


def test_a_starved_program_is_named(record_run: RunResult):
    assert record_run.designs["legacy"].unfinished == ["guest/ftest"]
    assert record_run.designs["native"].unfinished == []


def test_a_repeated_run_has_the_same_digest(stat_run: RunResult):
    scenario = load_scenario(STAT, ["vm.guest.thread.ftest.work=0.25"])
    again = trio.run(execute, scenario, RunOptions(designs=("optimized", "legacy", "native")), None)
    assert again.digest == stat_run.digest


def test_another_seed_has_another_digest(stat_run: RunResult):
    scenario = load_scenario(STAT, ["vm.guest.thread.ftest.work=0.25", "seed=2"])
    other = trio.run(execute, scenario, RunOptions(designs=("optimized",)), None)
    assert other.digest != stat_run.designs["optimized"].digest


def test_one_nanosecond_of_one_cost_changes_the_digest(tmp_path: Path, stat_run: RunResult):
    profile = EXAMPLES.parent / "vpmu" / "profiles" / "e5-2699v4-linux-5.0.toml"
    changed = tmp_path / "changed.toml"
    changed.write_text(profile.read_text().replace("[cost.exit]\nns = 400", "[cost.exit]\nns = 401"))
    scenario = load_scenario(STAT, ["vm.guest.thread.ftest.work=0.25", f"host.host.profile={changed}"])
    other = trio.run(execute, scenario, RunOptions(designs=("optimized",)), None)
    assert other.digest != stat_run.designs["optimized"].digest


def test_run_writes_results_that_read_back_and_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = [
        "run",
        str(STAT),
        "--set",
        "vm.guest.thread.ftest.work=1",
        "--design",
        "optimized",
        "--quiet",
    ]
    for name in ("a", "b"):
        assert main([*arguments, "--out", str(tmp_path / name), "--keep", "all"]) == 0
    first, second = (tmp_path / name / "summary.json" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    result = read_results(tmp_path / "a").designs["optimized"]
    accesses = pq.read_table(tmp_path / "a" / "optimized" / "accesses.parquet")
    assert accesses.num_rows == result.host["accesses"]
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    capsys.readouterr()


async def test_the_library_runs_a_file():
    result = await vpmu.run(STAT, designs=("native",))
    assert result.designs["native"].unfinished == []


@pytest.mark.parametrize(
    "choices",
    [[], ["--workers", "2"], ["--workers", "2", "--place", "spread"], ["--workers", "3", "--messages"]],
    ids=lambda choices: " ".join(choices) or "one process",
)
def test_ctrl_c_ends_the_run_keeps_what_is_complete_and_says_what_is_missing(
    choices: list[str], tmp_path: Path
):
    # The first design is done at once, the second, whose guest is starved, has hundreds of CPU seconds to go.
    scenario = tmp_path / "long.toml"
    text = RECORD.read_text()
    sleeper = 'kind = "sleeper"\nwakeups = "5/s"\nburst = "50 us"'
    changes = {
        'until = "3600 s"': 'until = "10000000 s"',
        "work = 11.849": "work = 1",
        sleeper: 'kind = "spin"',
    }
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    scenario.write_text(text.replace("callgrind.out.ftest", str(EXAMPLES / "ftest" / "callgrind.out.ftest")))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vpmu.cli", "run", str(scenario), "--design", "native,legacy"]
    process = subprocess.Popen(
        [*command, "--out", str(out), *choices],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=untraced(),
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not (out / "native" / "samples.parquet").exists() and time.monotonic() < deadline:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.2)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, errors = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert errors == "interrupted: Ctrl-C; missing: legacy\n"
    assert processes_of_group(process.pid) == []
    summary = json.loads((out / "summary.json").read_text())
    assert summary["complete"] is False
    assert summary["reason"] == "Ctrl-C; missing: legacy"
    assert list(summary["designs"]) == ["native"]
    samples = pq.read_table(out / "native" / "samples.parquet").num_rows
    assert samples == sum(profile["samples"] for profile in summary["designs"]["native"]["profiles"]) > 0
    assert [path.name for path in out.glob("legacy/*")] == []


def test_ctrl_c_before_anything_is_complete_leaves_earlier_results_alone(tmp_path: Path):
    scenario = load_scenario(RECORD, ["until=10000000 s", "vm.guest.thread.ftest.work=1"])
    asked = []

    def interrupt(design: str, at_ns: int) -> None:
        asked.append(at_ns)
        raise KeyboardInterrupt

    (tmp_path / "legacy").mkdir()
    earlier = tmp_path / "legacy" / "samples.parquet"
    earlier.write_text("of an earlier run")
    with pytest.raises(Interrupted, match="missing: legacy") as caught:
        trio.run(execute, scenario, RunOptions(designs=("legacy",), out=tmp_path), interrupt)
    assert caught.value.result is None
    assert len(asked) == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [earlier]
    assert earlier.read_text() == "of an earlier run"


async def test_message_mode_has_the_digest_of_the_fast_path(stat_run: RunResult):
    scenario = load_scenario(STAT, ["vm.guest.thread.ftest.work=0.25"])
    options = RunOptions(designs=("optimized", "native"), workers=3, messages=True)
    result = await execute(scenario, options)
    for name, design in result.designs.items():
        assert design.digest == stat_run.designs[name].digest
        assert design.frames["ACCESS_DONE"] == design.host["accesses"] > 0


def test_a_run_that_fails_is_named_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(node, "ENTRY", "tests.cluster.rogues:hands_in_nonsense")
    scenario = EXAMPLES / "designs" / "pauses.toml"
    arguments = ["run", str(scenario), "--design", "optimized", "--workers", "2", "--out", str(tmp_path)]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert "rank 1 failed: what it handed in is no result" in printed.err
    assert printed.out == ""
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


async def test_strangers_are_named_to_the_user(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    pauses = EXAMPLES / "designs" / "pauses.toml"
    alone = await vpmu.run(pauses, designs=("optimized",))
    monkeypatch.setattr(node, "ENTRY", "tests.cluster.rogues:meets_strangers")
    caplog.set_level(logging.WARNING, logger="vpmu")
    result = await vpmu.run(pauses, designs=("optimized",), workers=2)
    assert result.digest == alone.digest
    named = {record.getMessage() for record in caplog.records if record.name.startswith("vpmu")}
    assert "rank 1 refused a frame: rank 5 is not in this gang" in named


def test_intervals_add_up_to_the_session(tmp_path: Path):
    scenario = load_scenario(
        STAT, ["vm.guest.thread.ftest.work=0.25", "vm.guest.session.stat.interval=10 ms", "until=1 s"]
    )
    run = trio.run(execute, scenario, RunOptions(designs=("optimized",), out=tmp_path / "out"), None)
    for row in run.designs["optimized"].counters:
        # 0.11 s of work: ten full intervals, and a last part that no interval reads.
        assert len(row.intervals) >= 10
        assert 0 < sum(line.count for line in row.intervals) <= row.count
        assert [line.at_ns for line in row.intervals] == sorted(line.at_ns for line in row.intervals)


def test_a_system_wide_session_is_enabled_all_the_time():
    scenario = load_scenario(
        STAT,
        [
            "vm.guest.thread.ftest.work=0.25",
            "vm.guest.session.stat.cpu=true",
            "vm.guest.session.stat.thread=",
        ],
    )
    result = trio.run(execute, scenario, RunOptions(designs=("optimized",)), None).designs["optimized"]
    for row in result.counters:
        # From the timer's interrupt that opened it, a few microseconds after the boot.
        assert result.end_ns - 1_000_000 < row.enabled_ns == row.running_ns
        assert row.count == row.truth
