"""Fleets: VMs that come, go and migrate, hosts that drain and reboot; the same on any number of workers."""

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from vpmu.actors.local import run_machine
from vpmu.build import build
from vpmu.errors import UserError
from vpmu.execution import execute
from vpmu.kernels.columns import G_ID, P_DESIGN, R_KEEP
from vpmu.kernels.designs.registry import design_names
from vpmu.kernels.jit import Arena
from vpmu.kernels.log import RECORD_SAMPLE
from vpmu.options import RunOptions
from vpmu.results import DesignResult
from vpmu.scenario import Scenario, load_scenario, moves
from vpmu.scenario.load import parse_scenario

FLEET = Path(__file__).with_name("fleet.toml")
STORM = """
kind = "storm"
at = "300 ms"
vm = "web"
duration = "50 ms"
[[session]]
tool = "record"
cpu = true
frequency = 2000
"""
TRAVELLER = "traveller"


def run(workers: int = 1, place: str = "packed") -> DesignResult:
    options = RunOptions(designs=("optimized",), workers=workers, place=place)
    return trio.run(execute, load_scenario(FLEET, []), options, None).designs["optimized"]


@pytest.fixture(scope="module")
def whole() -> DesignResult:
    return run()


# -- what a scenario says --


def test_ten_lines_make_ten_thousand_vms():
    scenario = parse_scenario(
        tomllib.loads(
            """
            version = 1
            until = "10 s"
            host = [{ name = "node", count = 100, cpus = 8 }]
            [[template]]
            name = "small"
            thread = [{ name = "work", kind = "spin" }]
            [[fleet]]
            name = "web"
            templates = ["small"]
            count = 10_000
            """
        )
    )
    assert len(scenario.hosts) == 100
    assert len(scenario.vms) == 10_000
    assert [vm.host for vm in scenario.vms[98:102]] == ["node.98", "node.99", "node.0", "node.1"]


def test_members_are_drawn_by_weight_and_come_and_go_at_random_times():
    scenario = load_scenario(FLEET, ["fleet.web.count=2000", "until=100 s"])
    members = [vm for vm in scenario.vms if vm.name.startswith("web.")]
    small = sum(vm.vcpus == 1 for vm in members)
    assert 1420 < small < 1580
    starts = [vm.start_ns for vm in members]
    assert starts == sorted(starts)
    # 2000 arrivals at 40/s take 50 s, give or take a second and a bit.
    assert 46_000_000_000 < starts[-1] < 54_000_000_000
    lives = [vm.stop_ns - vm.start_ns for vm in members if vm.stop_ns is not None]
    assert len(lives) == 2000
    assert 370_000_000 < sum(lives) / 2000 < 430_000_000
    assert load_scenario(FLEET, ["fleet.web.count=2000", "until=100 s"]) == scenario
    assert load_scenario(FLEET, ["fleet.web.count=2000", "until=100 s", "seed=6"]) != scenario


def test_a_drained_hosts_vms_go_to_the_others_in_turn():
    scenario = load_scenario(FLEET, [])
    drained = [move for move in moves(scenario) if move.at_ns >= 500_000_000 and move.to]
    assert {move.to for move in drained} <= {"new.0", "new.1"}
    assert [move.at_ns for move in drained] == [500_000_000 + 5_000_000 * i for i in range(len(drained))]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fleet.web.templates=[]", "fleet[0].templates"),
        ("fleet.web.weights=[1]", "fleet[0].weights: one for each of the 2 templates"),
        ('fleet.web.templates=["smal", "large"]', 'did you mean "small"'),
        ("fleet.web.count=0", "fleet[0].count: must be at least 1"),
        ("vm.traveller.stop=0 s", "vm[0].stop: must be later than start"),
        ("host.old.core_khz=2000000", "a run has one profile"),
    ],
)
def test_a_mistake_is_named_by_key(override: str, message: str):
    with pytest.raises(UserError) as caught:
        load_scenario(FLEET, [override])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ('kind = "migrate"\nat = "1 s"\nvm = "nobody"\nto = ["new.0"]', "event[0].vm: unknown vm"),
        ('kind = "migrate"\nat = "1 s"\nvm = "traveller"', "event[0].to: at least one host"),
        ('kind = "drain"\nat = "1 s"\nhost = "older"', "event[0].host: unknown host"),
        ('kind = "reboot"\nat = "1 s"\nhost = "old.0"\nto = ["new"]', "event[0].to: does not go with"),
        (STORM.replace("50 ms", "0 s"), "event[0].duration: must be at least 1"),
        (STORM.partition("[[")[0], "event[0].session: at least one"),
        (STORM.replace("web", "wib"), 'event[0].vm: unknown vm "wib"; did you mean "web"'),
        (STORM + 'stop = "1 s"', "event[0].session[0].stop: a storm's at and duration say when"),
        (STORM + 'name = "record"', 'event[0].session[0].name: a session of "large" is called so'),
        (STORM.replace("cpu = true", 'thread = "job"'), 'event[0].session[0].thread: unknown thread "job"'),
        (STORM + "events = " + str(["branches"] * 25), "event[0].session[0].events: vCPU 0 would have 27"),
    ],
)
def test_a_wrong_event_is_named_by_key(event: str, message: str):
    raw = tomllib.loads(FLEET.read_text())
    raw["event"] = [tomllib.loads(event)]
    with pytest.raises(UserError) as caught:
        parse_scenario(raw)
    assert message in str(caught.value)


def test_a_host_that_has_vms_cannot_reboot():
    raw = tomllib.loads(FLEET.read_text())
    raw["event"] = [tomllib.loads('kind = "reboot"\nat = "300 ms"\nhost = "new.0"')]
    with pytest.raises(UserError, match="drain it before"):
        build(parse_scenario(raw), "optimized")


# -- what happens --


def test_a_travelling_guest_measures_all_that_it_does(whole: DesignResult):
    """From the optimized design to the legacy one and back: perf stat goes on and misses nothing."""
    assert whole.host["live migrations of vCPUs"] >= 3
    assert whole.host["counters read"] > 100
    assert whole.host["counters read that differ from the truth"] == 0
    rows = [row for row in whole.counters if row.vm == TRAVELLER]
    assert len(rows) == 3
    for row in rows:
        assert row.count == row.truth > 0
        assert row.enabled_ns == row.running_ns
    cycles = next(row.count for row in rows if row.event == "cpu-cycles")
    assert cycles > 2_000_000_000
    (profile,) = [row for row in whole.profiles if row.vm == TRAVELLER]
    assert profile.samples > 100
    (event,) = profile.events
    assert event.due == 2_000_000_000


def test_it_stands_still_while_it_travels(whole: DesignResult):
    (thread,) = [row for row in whole.threads if row.vm == TRAVELLER]
    # Two journeys of 20 ms each, beside the work's 714 ms.
    assert thread.run_ns > thread.unmeasured_ns + 40_000_000


def test_a_vm_that_has_left_runs_no_more():
    scenario = load_scenario(FLEET, [])
    result = run()
    stops = {vm.name: vm.stop_ns for vm in scenario.vms if vm.stop_ns is not None and vm.stop_ns < 10**9}
    starts = {vm.name: vm.start_ns for vm in scenario.vms}
    assert len(stops) >= 3
    for row in result.counters:
        if row.vm in stops:
            life_ns = stops[row.vm] - starts[row.vm]
            # The reservation's mutex may hold it back for some ten milliseconds.
            assert row.enabled_ns <= life_ns + 150_000_000
            assert row.count == row.truth


@pytest.mark.parametrize(("until", "design"), [("799 ms", "legacy"), ("900 ms", "optimized")])
def test_a_rebooted_host_has_the_other_design(until: str, design: str):
    machine = build(load_scenario(FLEET, [f"until={until}"]), "optimized")
    (reboot,) = machine.reboots
    assert machine.hosts[reboot.host].name == "old.0"
    run_machine(machine)
    for pcpu in machine.pcpus:
        if pcpu.host == reboot.host:
            assert design_names()[int(machine.arena[pcpu.offset + int(P_DESIGN)])] == design


def in_a_storm(*overrides: str) -> Scenario:
    """Return the fleet with a storm, and VMs beside it that are known by other names."""
    raw = tomllib.loads(FLEET.read_text())
    raw["event"].append(tomllib.loads(STORM))
    thread = {"name": "work", "kind": "spin"}
    raw["host"].append({"name": "alone", "cpus": 2})
    raw["vm"].append({"name": "pinned", "host": "alone", "count": 3, "cpus": [1, 0], "thread": [thread]})
    return parse_scenario(raw, overrides=list(overrides))


def test_a_storm_hits_those_who_are_there():
    """At 300 ms with 2 ms from one to the next: those who have come and not left at their turn."""
    scenario = in_a_storm("event.4.every=2 ms")
    at_ns = 300_000_000
    for vm in scenario.vms:
        if not vm.name.startswith("web."):
            assert len(vm.sessions) == (2 if vm.name == TRAVELLER else 0)
            continue
        there = vm.start_ns <= at_ns and (vm.stop_ns is None or vm.stop_ns > at_ns)
        assert len(vm.sessions) == 1 + there
        if there:
            session = vm.sessions[-1]
            assert (vm.start_ns + session.start_ns, session.stop_ns) == (at_ns, session.start_ns + 50_000_000)
            at_ns += 2_000_000
    assert at_ns > 300_000_000 + 3 * 2_000_000


def test_a_storm_changes_nobodys_place():
    calm, stormy = load_scenario(FLEET, []), in_a_storm("event.4.vm=pinned.1")
    assert [vm.name for vm in stormy.vms if vm.name.startswith("pinned")] == [
        "pinned.0",
        "pinned.1",
        "pinned.2",
    ]
    assert [vm.cpus for vm in stormy.vms if vm.name.startswith("pinned")] == [(1,), (0,), (1,)]
    assert [vm.name for vm in stormy.vms if vm.sessions and vm.name.startswith("pinned")] == ["pinned.1"]
    others = [vm for vm in stormy.vms if not vm.name.startswith("pinned")]
    assert others == list(calm.vms)


def test_samples_of_a_storm_come_while_it_lasts():
    scenario = in_a_storm("event.4.session.0.name=gale")
    machine = build(scenario, "optimized")
    machine.arena[R_KEEP] = 1 << int(RECORD_SAMPLE)
    found: list[Arena] = []
    run_machine(machine, lambda records: found.append(records.copy()))
    of_storm = {
        (int(machine.arena[entry.guest + int(G_ID)]), number)
        for entry in machine.vcpus
        for number, session in enumerate(entry.sessions)
        if session.name == "gale"
    }
    # Word 7 of a sample has the session's number from bit 24 on.
    samples = np.concatenate(found).tolist()
    times = [at for _, at, actor, *_, last in samples if (actor, last >> 24 & 0xFF) in of_storm]
    assert len(of_storm) > 3
    # A vCPU that has a CPU for itself takes 2,000 samples a second: 100 in 50 ms; four share one here.
    assert len(times) > 25 * len(of_storm) // 4
    # perf stops when its vCPU is next scheduled in.
    assert 300_000_000 <= min(times) <= max(times) < 375_000_000


@pytest.mark.parametrize(
    ("workers", "place"),
    [(2, "packed"), (3, "packed"), (5, "packed"), (2, "split:old.1"), (3, "random:1")],
)
def test_any_number_of_workers_in_any_place_gives_the_same_bytes(
    whole: DesignResult, workers: int, place: str
):
    """Four hosts: with five workers one host lives in two processes."""
    result = run(workers, place)
    assert result.digest == whole.digest
    assert result.host == whole.host
    assert result.counters == whole.counters


@pytest.mark.parametrize("choices", [{"place": "spread"}, {"messages": True}], ids=str)
def test_roles_in_processes_of_their_own_give_the_same_bytes(choices: dict[str, Any]):
    """Up to the end of the traveller's first journey; the rest is in tests/cluster/test_fleets.py."""
    scenario = load_scenario(FLEET, ["until=130 ms"])
    whole, apart = (
        trio.run(execute, scenario, RunOptions(designs=("optimized",), **each), None).designs["optimized"]
        for each in ({}, {"workers": 3, **choices})
    )
    assert whole.host["live migrations of vCPUs"] == 1
    assert apart.digest == whole.digest
    assert apart.host == whole.host
    assert apart.counters == whole.counters


def test_a_vm_that_is_under_way_cannot_leave():
    scenario = load_scenario(FLEET, ["event.1.at=119 ms"])
    line = 'event: vm "traveller" would have to leave at 119,000,000 ns, while it is under way until 120,000,'
    with pytest.raises(UserError, match=line):
        build(scenario, "optimized")


def test_bare_hardware_does_not_migrate():
    scenario = load_scenario(FLEET, ["host.old.design=native"])
    with pytest.raises(UserError, match="bare hardware"):
        trio.run(execute, scenario, RunOptions(designs=("optimized",)), None)
