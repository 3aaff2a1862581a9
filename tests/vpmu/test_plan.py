"""`vpmu cluster plan`: what it says is what a run does."""

import json
from pathlib import Path

import pytest
import trio

from vpmu.build import build
from vpmu.cli import main
from vpmu.cluster.roles import assign
from vpmu.execution import execute
from vpmu.options import RunOptions
from vpmu.plan import cores_here, exits_of_hosts, make_plan, named
from vpmu.scenario import Scenario, load_scenario

EXAMPLES = Path(__file__).parents[2] / "examples" / "fleet"
FLEET = Path(__file__).with_name("fleet.toml")


def scale(*more: str) -> Scenario:
    """Return three hosts of the scale example, ten vCPUs to a CPU."""
    return load_scenario(EXAMPLES / "scale.toml", ["host.node.count=3", "fleet.vm.count=300", *more])


@pytest.mark.parametrize("place", ["packed", "split:old.1", "random:4"])
@pytest.mark.parametrize("workers", [1, 3, 7])
def test_its_placement_is_the_runs(place: str, workers: int):
    scenario = load_scenario(FLEET, [])
    machine = build(scenario, "optimized")
    roles = assign(machine, workers, place, False)
    plan = make_plan(scenario, "optimized", workers, place)
    whole = [[machine.hosts[host].name for host in roles.whole_hosts(rank)] for rank in range(workers)]
    assert [worker.hosts for worker in plan.workers] == whole
    shared = [sum(map(len, roles.local_shares(rank).values())) for rank in range(workers)]
    assert [sum(worker.parts.values()) for worker in plan.workers] == shared
    assert sum(worker.vcpus for worker in plan.workers) == len(machine.vcpus)


def test_its_arena_is_the_runs():
    scenario = load_scenario(FLEET, [])
    assert (
        make_plan(scenario, "optimized", 2, "packed").arena_bytes == build(scenario, "optimized").arena.nbytes
    )


@pytest.mark.parametrize(
    "scenario",
    [
        scale(),
        scale("template.measured.session.0.frequency=4000", "host.node.hz=250", "until=3 s"),
        load_scenario(EXAMPLES / "fleet.toml", ["until=300 ms", "fleet.steady.count=800"]),
    ],
    ids=["scale", "more samples, fewer ticks", "fleet"],
)
def test_it_estimates_exits_within_a_third(scenario: Scenario):
    result = trio.run(execute, scenario, RunOptions(designs=("optimized",)), None).designs["optimized"]
    measured = result.host["VM exits"] / (scenario.until_ns / 1e9)
    estimated = sum(exits_of_hosts(scenario).values())
    assert 2 / 3 < estimated / measured < 4 / 3


def test_two_workers_are_estimated_twice_as_fast_where_there_are_cores():
    one, two = (make_plan(scale("host.node.count=2"), "optimized", n, "packed") for n in (1, 2))
    assert two.speed() == pytest.approx(2 * one.speed())
    assert two.speed(1) == pytest.approx(one.speed(1))


def test_what_it_prints(capsys: pytest.CaptureFixture[str]):
    command = [
        "cluster",
        "plan",
        str(FLEET),
        "--design",
        "optimized",
        "--workers",
        "3",
        "--place",
        "split:old.0",
    ]
    assert main(command) == 0
    *workers, last = capsys.readouterr().out.splitlines()
    assert workers[0].startswith("optimized, worker 0: old.1, 1 CPUs of old.0; 3 CPUs, ")
    assert workers[1].startswith("optimized, worker 1: new.0")
    assert "virtual seconds a second with a core for each worker" in last
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["optimized"]
    assert [worker["cpus"] for worker in told["workers"]] == [3, 3, 2]
    assert told["cores_here"] == cores_here()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--place", "split:older"], '--place: unknown host behind split:, found "split:older"'),
        (["--design", "optimised"], 'did you mean "optimized"'),
        (["--workers", "0"], "should be greater than or equal to 1"),
        (["--set", "fleet.web.count=0"], "fleet[0].count: must be at least 1"),
    ],
)
def test_a_mistake_is_one_line(more: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["cluster", "plan", str(FLEET), *more]) == 2
    assert message in capsys.readouterr().err


def test_hosts_in_a_row_are_named_together():
    assert named(["a.0", "a.1", "a.2", "a.4", "b", "c.7"]) == "a.0 to 2, a.4, b, c.7"
