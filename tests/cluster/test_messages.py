"""Message mode against the fast path: the same bytes, with every access, call and PMI on the wire."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.machines import (
    differences,
    example_machine,
    load_text,
    machine_of,
    programs_of,
    run_here,
    run_in_threads,
    scenario_text,
    total,
)
from vpmu.actors.local import steps
from vpmu.actors.machine import Machine
from vpmu.cluster.node import WorkersOutcome, run_machine_on_workers
from vpmu.kernels import columns as col
from vpmu.kernels.guest.step import GUEST_ACCESS
from vpmu.kernels.jit import Arena
from vpmu.kernels.log import RECORD_ACCESS

DESIGNS = ("legacy", "optimized", "native")
ACCESSES = 3_400


def cut(machine: Machine, accesses: int) -> int:
    """Return the time at which a machine has had so many accesses, or its end."""
    seen = 0
    for records in steps(machine):
        times = records[(records[:, 0] & 0xFF) == RECORD_ACCESS, 1]
        if seen + len(times) > accesses:
            return int(times[accesses - seen])
        seen += len(times)
    return machine.until_ns


def in_flight(machine: Machine) -> int:
    """Return how many accesses have been begun and not answered when the run ended."""
    words = [
        (machine.arena[v.offset + int(col.V_REASON)], machine.arena[v.offset + int(col.V_COMPLETE)])
        for v in machine.vcpus
    ]
    return sum(1 for reason, complete in words if reason == GUEST_ACCESS or complete)


def check_frames(machine: Machine, outcome: WorkersOutcome):
    """Every access, PMI and call of the result is a frame."""
    frames = outcome.frames
    assert frames["ACCESS_DONE"] == total(machine, col.G_ACCESSES)
    assert frames["ACCESS"] == frames["ACCESS_DONE"] + in_flight(machine)
    assert frames.get("PMI", 0) == total(machine, col.G_PMIS)
    calls = sum(int(machine.arena[p.offset + int(col.P_REQUESTS)]) for p in machine.pcpus)
    assert frames["PERF_REQUEST"] == frames["PERF_REPLY"] == calls
    assert frames.get("RESERVE", 0) == frames.get("RESERVED", 0)


async def check_same(make: Callable[[], Machine], **choices: Any):
    """A run over several processes ends as one in this process does."""
    expected = make()
    records = run_here(expected)
    outcome, their_records = await run_in_threads(make(), messages=True, **choices)
    assert differences(expected, outcome) == []
    assert (records == their_records).all()
    check_frames(expected, outcome)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("example", ["stat", "record"])
async def test_the_examples_cut_short(example: str, design: str):
    def make() -> Machine:
        machine = example_machine(example, design)
        machine.until_ns = until
        return machine

    until = cut(example_machine(example, design), ACCESSES)
    await check_same(make, workers=3)


@pytest.mark.soak
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("example", ["stat", "record"])
async def test_the_whole_examples(example: str, design: str):
    machine = example_machine(example, design)
    records = run_here(machine)
    theirs: list[Arena] = []
    outcome = await run_machine_on_workers(
        example_machine(example, design), workers=3, messages=True, on_records=theirs.append
    )
    assert differences(machine, outcome) == []
    assert sum(len(batch) for batch in theirs) == len(records)
    check_frames(machine, outcome)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize(
    ("workers", "hosts", "watchdog", "tool"),
    [
        (1, [(2, 1, 2)], True, False),
        (2, [(3, 2, 3)], False, True),
        (3, [(1, 2, 0), (2, 0, 3)], False, False),
        (4, [(3, 3, 4)], False, True),
        (4, [(2, 2, 3)], True, True),
    ],
)
async def test_small_machines(
    design: str, workers: int, hosts: list[tuple[int, int, int]], watchdog: bool, tool: bool
):
    text = scenario_text(workers, "18 ms", hosts, watchdog=watchdog, tool=tool)
    await check_same(lambda: machine_of(text, design), workers=workers)


async def test_three_processes():
    text = scenario_text(9, "10 ms", [(2, 1, 2)])
    expected = machine_of(text, "optimized")
    run_here(expected)
    clocks: list[int] = []
    outcome = await run_machine_on_workers(
        machine_of(text, "optimized"), workers=3, messages=True, on_progress=clocks.append
    )
    assert differences(expected, outcome) == []
    check_frames(expected, outcome)
    assert len(load_text(text).vms) == 3
    assert programs_of(text)
