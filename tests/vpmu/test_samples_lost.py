"""Where the samples went: what an event had to see is divided among its causes, to the event."""

import tomllib
from pathlib import Path

import pytest
import trio

import vpmu
from vpmu.options import RunOptions
from vpmu.results import DesignResult, SampledEventRow
from vpmu.retired import read_truth
from vpmu.scenario import Scenario
from vpmu.scenario.load import parse_scenario

PARTS = ("throttled", "waiting", "masked", "stalled", "sampled", "merged", "rest")

HOST = """
version = 1
seed = 3
until = "60 s"

[[host]]
name = "host"
"""
GUEST = """
[[program]]
name = "two"
cycles = 2_000_000
functions = [
    { name = "hot", share = 0.75, ipc = 1.5, branches = 0.2, cache_misses = 0.001 },
    { name = "cold", share = 0.25, ipc = 0.5, branches = 0.1, dtlb_load_misses = 0.002 },
]

[[vm]]
name = "guest"
host = "host"
cpus = [0]

[[vm.thread]]
name = "worker"
program = "two"
work = 200

[[vm.thread]]
name = "other"
kind = "sleeper"
wakeups = "5/s"
burst = "50 us"
"""


def session(text: str) -> str:
    return f'\n[[vm.session]]\nname = "record"\ntool = "record"\nthread = "worker"\n{text}\n'


def scenario_of(text: str, more: str = "") -> Scenario:
    return parse_scenario(tomllib.loads(HOST + GUEST + session(text) + more))


def run(scenario: Scenario, design: str, out: Path | None = None) -> DesignResult:
    from vpmu.execution import execute

    return trio.run(execute, scenario, RunOptions(designs=(design,), out=out), None).designs[design]


def only(result: DesignResult) -> SampledEventRow:
    (profile,) = result.profiles
    (row,) = profile.events
    return row


def assert_adds_up(row: SampledEventRow) -> None:
    assert row.due == sum(getattr(row, part) for part in PARTS)
    for part in PARTS[:-1]:
        assert getattr(row, part) >= 0, part


@pytest.mark.parametrize(
    ("design", "period"), [("native", 100_000), ("optimized", 100_000), ("legacy", 4_000_000)]
)
def test_all_cycles_of_a_thread_are_due_and_the_rest_is_less_than_a_period(design: str, period: int):
    text = f'events = ["cpu-cycles"]\nperiod = {period}\nuser_only = true'
    result = run(scenario_of(text), design)
    row = only(result)
    (profile,) = result.profiles
    assert_adds_up(row)
    # The session begins with the run, and the thread ends before it does.
    assert row.due == sum(function.truth_cycles for function in profile.functions) == 400_000_000
    assert row.sampled == row.samples * period
    assert row.samples == 400_000_000 // period
    assert 0 <= row.rest < row.period == period
    assert 0 <= row.skid <= row.samples * row.skid_max


def test_a_period_of_a_few_hundred_events_is_throttled_and_its_periods_merge():
    row = only(run(scenario_of('events = ["instructions"]\nperiod = 300\nuser_only = true'), "optimized"))
    assert_adds_up(row)
    assert row.throttled > row.due // 2
    assert row.lost_samples()["throttled"] == row.throttled / 300
    assert 0 <= row.rest < row.period


def test_events_that_share_counters_wait_for_each_other():
    names = ["branches", "branch-misses", "cache-misses", "cache-references", "dTLB-load-misses"]
    names += ["L1-dcache-loads", "L1-dcache-stores"]
    text = f"events = {names}\nperiod = 1_000_000\nuser_only = true".replace("'", '"')
    result = run(scenario_of(text), "optimized")
    (profile,) = result.profiles
    assert len(profile.events) == len(names)
    for row in profile.events:
        assert_adds_up(row)
        assert row.due == 0 or row.waiting > 0
        assert row.throttled == row.stalled == 0


@pytest.mark.parametrize("design", ["native", "optimized"])
def test_kernel_code_is_due_to_an_event_that_counts_it_and_the_handler_skids(design: str):
    text = 'events = ["cpu-cycles"]\nperiod = 100_000'
    both = only(run(scenario_of(text), design))
    user = only(run(scenario_of(text + "\nuser_only = true"), design))
    assert_adds_up(both)
    assert both.due > user.due
    # The NMI's entry runs before the handler stops the counters.
    assert both.skid // both.samples > 1000 > user.skid // user.samples


def test_a_legacy_counter_without_hardware_is_stalled():
    tool = (
        '\n[[tool]]\nname = "greedy"\nhost = "host"\nkind = "stat"\ncpus = [0]\npinned = true\n'
        'exclude_guest = false\nevents = ["cpu-cycles", "branches", "cache-misses", "cache-references", '
        '"branch-misses"]\n'
    )
    row = only(run(scenario_of('events = ["cache-misses"]\nperiod = 1000\nuser_only = true', tool), "legacy"))
    assert_adds_up(row)
    assert row.stalled > 0
    assert row.samples == 0


def test_what_retired_by_thread_and_function(tmp_path: Path):
    scenario = scenario_of('events = ["branches"]\nperiod = 100_000')
    run(scenario, "optimized", tmp_path)
    rows = read_truth(tmp_path / "optimized")
    worker = {row["function"]: row for row in rows if row["thread"] == "worker"}
    assert set(worker) == {"", "hot", "cold"}
    total = worker[""]
    assert total["cycles"] == 400_000_000 == worker["hot"]["cycles"] + worker["cold"]["cycles"]
    assert worker["hot"]["cycles"] == 300_000_000
    assert worker["hot"]["instructions"] == pytest.approx(450_000_000, abs=200)
    assert worker["cold"]["dtlb_load_misses"] == total["dtlb_load_misses"] == pytest.approx(100_000, abs=200)
    for name in ("instructions", "branches", "cache_misses"):
        parts = worker["hot"][name] + worker["cold"][name]
        # A function's count is rounded down, at most once a repetition.
        assert 0 <= total[name] - parts <= 2 * 200
    kernel = next(row for row in rows if row["thread"] == "[kernel]")
    assert kernel["cycles"] > 0


def test_times_of_a_counter_that_never_waits_are_equal():
    text = '[[vm.session]]\nname = "stat"\ntool = "stat"\nthread = "worker"\nevents = ["branches"]\n'
    scenario = parse_scenario(tomllib.loads(HOST + GUEST + text))
    result = trio.run(lambda: vpmu.run(scenario, designs=("legacy",))).designs["legacy"]
    (row,) = result.counters
    assert row.enabled_ns == row.running_ns > 100_000_000
