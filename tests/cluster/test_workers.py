"""Runs over several processes without message mode: the same bytes under every placement."""

from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import trio

from tests.cluster import rogues
from tests.cluster.machines import differences, machine_of, run_here, run_in_threads, scenario_text
from tests.cluster.test_launcher import ThreadWorkers
from vpmu.actors.local import run_machine
from vpmu.actors.machine import Machine, empty_log
from vpmu.actors.messages import host_perf, physical_cpu, vcpu
from vpmu.actors.observer import Observer
from vpmu.actors.physical_cpu import Guests
from vpmu.cluster import node
from vpmu.cluster.errors import GangError
from vpmu.cluster.merge import add_actions, sort_records
from vpmu.cluster.node import run_machine_on_workers
from vpmu.cluster.roles import assign
from vpmu.kernels import columns as col
from vpmu.kernels.jit import Arena
from vpmu.kernels.log import RECORD_ACCESS, RECORD_PMI
from vpmu.kernels.stats import A_MAX, ACTION_COLUMNS

DESIGNS = ("legacy", "optimized", "native")
MACHINES = {
    "one host": ([(3, 3, 5)], False, True),
    "watchdog": ([(2, 2, 2), (4, 0, 6)], True, False),
    "three hosts": ([(2, 0, 3), (1, 1, 1), (2, 3, 2)], False, True),
    "two vCPUs a guest": ([(4, 1, 4)], False, True),
}


def small(name: str, design: str, until: str = "40 ms") -> Machine:
    hosts, watchdog, tool = MACHINES[name]
    vcpus = 2 if name == "two vCPUs a guest" else 1
    return machine_of(scenario_text(3, until, hosts, watchdog=watchdog, tool=tool, vcpus=vcpus), design)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("name", MACHINES)
async def test_any_number_of_workers_and_placement_gives_the_same_bytes(name: str, design: str):
    expected = small(name, design)
    records = run_here(expected)
    for place in ("packed", "spread"):
        for workers in (1, 2, 3, 4):
            outcome, theirs = await run_in_threads(small(name, design), workers=workers, place=place)
            assert differences(expected, outcome) == [], (place, workers)
            assert np.array_equal(records, theirs), (place, workers)


@pytest.mark.parametrize("choices", [{"messages": True}, {"place": "spread"}, {"place": "packed"}])
async def test_a_log_that_is_often_full_loses_nothing(choices: dict[str, Any]):
    expected = small("three hosts", "optimized")
    records = run_here(expected)
    machine = small("three hosts", "optimized")
    machine.log = empty_log(300)
    machine.arena[col.R_LOG_CAPACITY] = 300
    assert len(records) > 2500
    outcome, theirs = await run_in_threads(machine, workers=2, **choices)
    outcome.arena[col.R_LOG_CAPACITY] = expected.arena[col.R_LOG_CAPACITY]
    assert differences(expected, outcome) == []
    assert np.array_equal(records, theirs)


async def test_vcpus_really_move_and_rows_really_travel():
    expected = small("one host", "optimized")
    run_here(expected)
    assert expected.arena[expected.hosts[0].offset + int(col.H_MIGRATIONS)] > 0
    packed, _ = await run_in_threads(small("one host", "optimized"), workers=3)
    spread, _ = await run_in_threads(small("one host", "optimized"), workers=3, place="spread")
    switches = sum(int(expected.arena[p.offset + int(col.P_SWITCHES)]) for p in expected.pcpus)
    # Every switch brings a vCPU's rows and, but for those that run at the end, takes them away again.
    moved = 2 * switches - sum(1 for p in expected.pcpus if expected.arena[p.offset + int(col.P_CURRENT)])
    assert spread.frames["ROWS"] >= moved
    assert 0 < packed.frames["ROWS"] < moved


async def test_two_processes():
    expected = small("watchdog", "legacy")
    run_here(expected)
    clocks: list[int] = []
    outcome = await run_machine_on_workers(small("watchdog", "legacy"), workers=2, on_progress=clocks.append)
    assert differences(expected, outcome) == []
    assert outcome.arena[col.R_ACCESSES] == expected.arena[col.R_ACCESSES] > 0


async def test_an_observer_gets_a_moving_vcpu_in_order_and_complete():
    expected = small("one host", "optimized")
    records = run_here(expected)
    moved = next(v for v in expected.vcpus if expected.arena[v.offset + int(col.V_MIGRATIONS)])
    actor = expected.arena[moved.guest + int(col.G_ID)]
    kind = records[:, 0] & 0xFF
    mine = records[(records[:, 2] == actor) & ((kind == RECORD_ACCESS) | (kind == RECORD_PMI))]
    machine = small("one host", "optimized")
    watcher = Observer(machine, machine.vcpus[moved.index])
    await run_in_threads(machine, workers=3, observers=[watcher])
    seen = np.concatenate([batch async for batch in watcher.batches])
    assert np.array_equal(seen, mine[np.argsort(mine[:, 3])])
    alone = small("one host", "optimized")
    with Observer(alone, alone.vcpus[moved.index]) as here:
        run_machine(alone, here.take)
        here.close()
        assert np.array_equal(np.concatenate([batch async for batch in here.batches]), seen)


async def test_a_rank_that_fails_is_named():
    machine = small("one host", "optimized")
    machine.regions.pop("action")
    with pytest.raises(GangError, match=r"rank [01] failed: KeyError: 'action'"):
        await run_in_threads(machine, workers=2)


@pytest.fixture
def no_result(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Awaitable[None]]:
    """Let ranks play by an entry of `rogues`: the attempt fails, and not a record comes from it."""

    async def fail(entry: str, reason: str) -> None:
        monkeypatch.setattr(node, "ENTRY", f"tests.cluster.rogues:{entry}")
        taken: list[Arena] = []
        with trio.fail_after(60), pytest.raises(GangError, match=reason):
            await run_machine_on_workers(
                small("one host", "optimized"),
                workers=3,
                messages=True,
                open_workers=ThreadWorkers,
                on_records=taken.append,
            )
        assert taken == []

    return fail


@pytest.mark.parametrize("act", rogues.ACTS)
async def test_a_rank_that_breaks_the_rules_fails_the_attempt_by_name(
    act: str, no_result: Callable[[str, str], Awaitable[None]]
):
    await no_result(act, rogues.ACTS[act][2])


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("hands_in_nonsense", "rank 1 failed: what it handed in is no result"),
        ("hands_in_the_rows_of_another", "rank 2 failed: .* the rows at 0 are another's"),
    ],
)
async def test_a_result_that_is_none_is_refused(
    entry: str, reason: str, no_result: Callable[[str, str], Awaitable[None]]
):
    await no_result(entry, reason)


@pytest.mark.parametrize("choices", [{"messages": True}, {"place": "spread"}, {"place": "packed"}])
async def test_strangers_are_refused_and_named_and_change_no_byte(
    choices: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    expected = small("one host", "optimized")
    records = run_here(expected)
    monkeypatch.setattr(node, "ENTRY", "tests.cluster.rogues:meets_strangers")
    outcome, theirs = await run_in_threads(small("one host", "optimized"), workers=3, **choices)
    assert differences(expected, outcome) == []
    assert np.array_equal(records, theirs)
    for rank in range(3):
        refused = [line for line in outcome.refused if line.startswith(f"rank {rank} refused a frame: ")]
        assert [line.partition(": ")[2] for line in sorted(refused)] == [
            "rank 0 of another run, " + refused_run(refused),
            "rank 2 of attempt 1, this is attempt 0",
            "rank 5 is not in this gang",
            "unknown routing id",
        ]


def refused_run(lines: list[str]) -> str:
    """Return the number of the other run, which is random."""
    (found,) = (line.rpartition(", ")[2] for line in lines if "another run" in line)
    assert int(found, 16) > 0
    return found


def test_roles_of_one_host_in_three_processes():
    machine = small("one host", "optimized")
    packed = assign(machine, 3, "packed", False)
    assert packed.guests is Guests.HERE
    assert packed.whole == {}
    assert [packed.rank_of[physical_cpu(cpu)] for cpu in range(3)] == [0, 1, 2]
    spread = assign(machine, 3, "spread", False)
    assert spread.guests is Guests.TRAVEL
    assert {spread.rank_of[physical_cpu(cpu)] for cpu in range(3)} == {0}
    assert spread.rank_of[host_perf(0)] == 1
    assert {spread.rank_of[vcpu(index)] for index in range(8)} == {2}
    assert assign(machine, 1, "packed", True).guests is Guests.ANSWER


def test_whole_hosts_need_no_messages():
    roles = assign(small("three hosts", "native"), 2, "packed", False)
    assert roles.shares == {}
    assert (roles.whole_hosts(0), roles.whole_hosts(1)) == ([0, 1], [2])


def test_records_are_sorted_by_time_actor_and_sequence():
    # Columns 1, 2 and 3 of a record are time, actor and sequence.
    rows = np.zeros((4, 8), np.uint64)
    rows[:, 1:4] = [(5, 1, 2), (5, 1, 1), (4, 9, 7), (5, 0, 3)]
    assert sort_records(rows)[:, 1:4].tolist() == [[4, 9, 7], [5, 0, 3], [5, 1, 1], [5, 1, 2]]


def test_action_histograms_add_up_but_for_the_maximum():
    ours, theirs = np.ones((2, 1, ACTION_COLUMNS), np.uint64)
    theirs[0, int(A_MAX)] = 7
    add_actions(ours, theirs)
    assert ours[0, int(A_MAX)] == 7
    assert (np.delete(ours, int(A_MAX)) == 2).all()
