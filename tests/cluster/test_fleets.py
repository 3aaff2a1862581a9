"""Fleets over several processes: VMs that move while they measure, the same bytes wherever roles live."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cluster.machines import ALL_KINDS, differences, run_here, run_in_threads
from tests.cluster.test_messages import check_frames
from vpmu.actors.fleet import Fleet
from vpmu.actors.local import drain_log
from vpmu.actors.machine import Machine
from vpmu.build import build
from vpmu.collect import SampleCounter, collect
from vpmu.kernels import columns as col
from vpmu.kernels.advance import advance
from vpmu.kernels.designs.registry import design_names
from vpmu.kernels.engine import STATE_OUT, STOP_WINDOW
from vpmu.kernels.fleet import send_away
from vpmu.kernels.host.move import MOVE_COMES, MOVE_GONE
from vpmu.kernels.host.scheduler import VCPU_DONE, VCPU_HALTED, VCPU_READY, VCPU_RUNNING
from vpmu.kernels.jit import U64, Arena
from vpmu.results import DesignResult
from vpmu.scenario import load_scenario

FLEET = Path(__file__).with_name("fleet.toml")
ROLES_APART = (
    *({"place": "spread", "workers": workers} for workers in (2, 3, 4)),
    *({"messages": True, "workers": workers} for workers in (1, 3, 4)),
)
"""Of four workers two have physical CPUs: VMs move from one to the other."""


def fleet() -> Machine:
    machine = build(load_scenario(FLEET, []), "optimized")
    machine.arena[col.R_KEEP] = ALL_KINDS
    return machine


def result_of(machine: Machine, records: Arena) -> DesignResult:
    samples = SampleCounter()
    samples.add(records)
    return collect(machine, samples)


def word(machine: Machine, offset: int, column: np.uint64) -> int:
    return int(machine.arena[offset + int(column)])


@pytest.fixture(scope="module")
def whole() -> tuple[Machine, Arena]:
    machine = fleet()
    return machine, run_here(machine)


def test_all_happens_in_this_fleet(whole: tuple[Machine, Arena]):
    machine, records = whole
    arrivals = {each.vm: word(machine, each.offset, col.V_MIGRATED) for each in machine.vcpus}
    # There and back; there, with who was drained on, and back; drained, one of them when it was done.
    assert arrivals == {
        "pinned": 2, "many.0": 3, "many.1": 2, "many.2": 3, "drained": 1, "done": 1, "late": 0, "early": 0,
    }  # fmt: skip
    vcpus = {each.vm: each for each in machine.vcpus}
    assert word(machine, vcpus["done"].offset, col.V_STATE) == VCPU_DONE
    assert word(machine, vcpus["early"].offset, col.V_MOVE) == MOVE_GONE
    old = machine.pcpus[0]
    assert design_names()[word(machine, old.offset, col.P_DESIGN)] == "optimized"
    result = result_of(machine, records)
    assert result.host["PMIs lost in live migrations"] == 3
    # Somebody waits for the reservation's mutex, and vCPUs move between the physical CPUs of a host.
    assert sum(word(machine, host.offset, col.H_WAITS) for host in machine.hosts) == 1
    assert sum(word(machine, host.offset, col.H_MIGRATIONS) for host in machine.hosts) > 3
    travelled = [row for row in result.counters if row.vm == "pinned"]
    assert len(travelled) == 3
    for row in travelled:
        assert row.count == row.truth > 0


@pytest.mark.parametrize("choices", [*ROLES_APART, {"workers": 2}], ids=str)
async def test_a_fleet_gives_the_same_bytes_wherever_its_roles_live(
    whole: tuple[Machine, Arena], choices: dict[str, Any]
):
    expected, records = whole
    machine = fleet()
    outcome, theirs = await run_in_threads(machine, **choices)
    assert differences(expected, outcome) == []
    assert np.array_equal(records, theirs)
    machine.arena[:] = outcome.arena
    here, there = result_of(expected, records), result_of(machine, theirs)
    assert there.digest == here.digest
    assert there.host == here.host
    assert there.profiles == here.profiles
    if "messages" in choices:
        check_frames(expected, outcome)


# -- one vCPU that is asked to leave --


def step_by_step(machine: Machine) -> Iterator[None]:
    """Advance a machine, with nothing that befalls its fleet."""
    machine.arena[col.R_KEEP] = 0
    until = U64(machine.until_ns)
    while advance(machine.arena, machine.log, until, U64(1)) != STOP_WINDOW:
        yield


@pytest.mark.parametrize("state", [VCPU_HALTED, VCPU_DONE])
def test_who_is_being_switched_out_when_asked_comes_in_again_to_leave(state: np.uint64):
    machine = fleet()
    steps = step_by_step(machine)

    def on_the_way_out() -> int:
        for pcpu in machine.pcpus:
            p = pcpu.offset
            if word(machine, p, col.P_STATE) == STATE_OUT and word(machine, p, col.P_OUT_STATE) == state:
                return word(machine, p, col.P_CURRENT)
        return 0

    v = next(found for _ in steps if (found := on_the_way_out()))
    send_away(machine.arena, U64(v))
    assert any(word(machine, v, col.V_STATE) != VCPU_RUNNING for _ in steps)
    assert word(machine, v, col.V_STATE) == VCPU_READY
    assert any(Fleet(machine).is_gone(v) for _ in steps)


def test_nobody_is_gone_before_its_events_are_scheduled_out():
    machine = fleet()
    steps = step_by_step(machine)
    move = machine.moves[0]
    v = machine.vcpus[move.vcpus[0]].offset
    assert any(word(machine, v, col.V_STATE) == VCPU_RUNNING for _ in steps)
    send_away(machine.arena, U64(v))
    assert any(word(machine, v, col.V_MOVE) == MOVE_GONE for _ in steps)
    assert word(machine, v, col.V_STATE) == VCPU_RUNNING
    assert Fleet(machine).total(move) == 0
    assert any(word(machine, v, col.V_STATE) != VCPU_RUNNING for _ in steps)
    assert Fleet(machine).total(move) == 1
    # Nor is it asked again: it is in no run queue.
    send_away(machine.arena, U64(v))
    assert Fleet(machine).total(move) == 1


def advance_until(machine: Machine, at_ns: int, window_ns: int, holds: Callable[[], bool]) -> int:
    """Advance all hosts of a machine side by side until something holds; return when it does."""
    while not holds():
        assert at_ns < machine.until_ns
        at_ns += window_ns
        while advance(machine.arena, machine.log, U64(at_ns), U64(1_000_000)) != STOP_WINDOW:
            drain_log(machine)
        drain_log(machine)
    return at_ns


@pytest.mark.parametrize("restoring", [False, True])
def test_who_has_just_come_leaves_again_with_all_that_it_came_with(restoring: bool):
    machine = fleet()
    move = machine.moves[0]
    number, cpu = move.vcpus[0], move.pcpus[0]
    v = machine.vcpus[number].offset
    carried = slice(v + int(col.V_MSRS), v + int(col.V_MSRS) + col.SLOTS + 11)

    def counts() -> bool:
        return word(machine, v, col.V_HAS_EVENT) != 0 and word(machine, v, col.V_GLOBAL_CTRL) != 0

    def is_gone() -> bool:
        return Fleet(machine).is_gone(v)

    def is_restored_in_part() -> bool:
        return word(machine, v, col.V_MOVE) > int(MOVE_COMES)

    at_ns = advance_until(machine, 0, 20_000, counts)
    send_away(machine.arena, U64(v))
    at_ns = advance_until(machine, at_ns, 20_000, is_gone)
    before = machine.arena[carried].copy()
    assert before.any()
    Fleet(machine).renew(move, number)
    Fleet(machine).come(move, number, cpu, at_ns)
    if restoring:
        at_ns = advance_until(machine, at_ns, 200, is_restored_in_part)
    send_away(machine.arena, U64(v))
    assert is_gone() is not restoring
    advance_until(machine, at_ns, 20_000, is_gone)
    assert np.array_equal(machine.arena[carried], before)
