"""Message mode in memory: actors and mailboxes give the fast path's bytes, whatever trio's task order."""

from typing import Any

import numpy as np
import pytest
import trio
import trio._core._run as scheduler

from tests.cluster.machines import differences, machine_of, run_here, run_in_threads, scenario_text, total
from tests.cluster.test_messages import DESIGNS
from vpmu.actors.company import run_by_messages
from vpmu.actors.local import run_machine
from vpmu.actors.machine import Machine, empty_log
from vpmu.kernels import columns as col
from vpmu.kernels.log import RECORD_WORDS


def hashes(machine: Machine):
    """The rolling hashes of all actors, and what their guests counted."""
    s = machine.arena
    return (
        [int(s[v.guest + int(col.G_HASH)]) for v in machine.vcpus],
        [int(s[p.offset + int(col.P_HASH)]) for p in machine.pcpus],
        [int(s[h.offset + int(col.H_HASH)]) for h in machine.hosts],
        machine.table("event").tolist(),
        machine.table("action").tolist(),
    )


@pytest.mark.parametrize("design", DESIGNS)
async def test_actors_and_mailboxes_alone(design: str):
    text = scenario_text(6, "15 ms", [(3, 2, 4), (1, 0, 2)], tool=True)
    expected = machine_of(text, design)
    run_machine(expected)
    assert total(expected, col.G_ACCESSES) > 100
    machine = machine_of(text, design)
    machine.log = empty_log(1 << 17)
    machine.arena[col.R_LOG_CAPACITY] = machine.log.size // RECORD_WORDS
    with trio.fail_after(60):
        await run_by_messages(machine)
    assert hashes(machine) == hashes(expected)
    assert machine.arena[col.R_ACCESSES] == expected.arena[col.R_ACCESSES]


@pytest.fixture
def shuffled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trio shuffle the tasks that can run; by itself it only reverses them now and then."""
    monkeypatch.setattr(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    scheduler._r.seed(request.param)


@pytest.mark.parametrize("shuffled", range(5), indirect=True)
@pytest.mark.parametrize("design", DESIGNS)
async def test_the_order_of_tasks_changes_nothing(design: str, shuffled: None):
    text = scenario_text(8, "12 ms", [(3, 1, 3)], tool=True, vcpus=2)
    expected = machine_of(text, design)
    run_machine(expected)
    machine = machine_of(text, design)
    machine.log = empty_log(1 << 17)
    machine.arena[col.R_LOG_CAPACITY] = machine.log.size // RECORD_WORDS
    with trio.fail_after(60):
        await run_by_messages(machine)
    assert hashes(machine) == hashes(expected)


@pytest.mark.parametrize("shuffled", range(3), indirect=True)
@pytest.mark.parametrize("choices", [{"messages": True}, {"place": "spread"}, {"place": "packed"}])
async def test_the_order_of_tasks_in_every_rank_changes_nothing(choices: dict[str, Any], shuffled: None):
    text = scenario_text(8, "12 ms", [(3, 1, 3)], tool=True, vcpus=2)
    expected = machine_of(text, "optimized")
    records = run_here(expected)
    outcome, theirs = await run_in_threads(machine_of(text, "optimized"), workers=3, **choices)
    assert differences(expected, outcome) == []
    assert np.array_equal(records, theirs)
