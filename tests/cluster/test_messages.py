"""Message mode against the fast path: the same bytes, with every access, call and PMI on the wire."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import Any

import numpy as np
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cluster.machines import (
    ALL_KINDS,
    EXAMPLES,
    KeptWorkers,
    differences,
    example_machine,
    load_text,
    machine_of,
    programs_of,
    run_here,
    run_on_workers,
    scenario_text,
    total,
)
from tests.cluster.test_launcher import ThreadWorkers
from tests.truth.machines import machine as truth_machine
from tests.truth.scenarios import random_scenario
from vpmu.actors.local import run_machine
from vpmu.actors.machine import Machine
from vpmu.cluster.node import WorkersOutcome, run_machine_on_workers
from vpmu.kernels import columns as col
from vpmu.kernels.guest.step import GUEST_ACCESS
from vpmu.kernels.jit import Arena
from vpmu.kernels.log import RECORD_ACCESS

DESIGNS = ("legacy", "optimized", "native")
SCENARIOS = sorted(
    str(path.relative_to(EXAMPLES))
    for path in EXAMPLES.glob("**/*.toml")
    if path.parent.name not in ("fleet", "remote")
)
"""The fleets have thousands of VMs (test_fleets.py has a small one), and remote guests are of one process."""
ACCESSES = 20_000


def cut(machine: Machine, accesses: int) -> int:
    """Return the time at which a machine has had so many accesses, or its end."""
    times: list[Arena] = []
    until = 1 << 16

    def take(records: Arena) -> None:
        times.append(records[(records[:, 0] & 0xFF) == RECORD_ACCESS, 1].copy())

    while sum(map(len, times)) <= accesses and until < machine.until_ns:
        until = min(2 * until, machine.until_ns)
        run_machine(machine, take, until)
    found = np.sort(np.concatenate(times))
    return int(found[accesses]) if len(found) > accesses else machine.until_ns


def in_flight(machine: Machine) -> int:
    """Return how many accesses have been begun and not answered when the run ended."""
    words = [
        (machine.arena[v.offset + int(col.V_REASON)], machine.arena[v.offset + int(col.V_COMPLETE)])
        for v in machine.vcpus
    ]
    return sum(1 for reason, complete in words if reason == GUEST_ACCESS or complete)


def check_frames(machine: Machine, outcome: WorkersOutcome):
    """Every access, PMI and call of the result is a frame."""
    frames = Counter(outcome.frames)
    assert frames["ACCESS_DONE"] == total(machine, col.G_ACCESSES)
    assert frames["ACCESS"] == frames["ACCESS_DONE"] + in_flight(machine)
    assert frames["PMI"] == total(machine, col.G_PMIS)
    calls = sum(int(machine.arena[p.offset + int(col.P_REQUESTS)]) for p in machine.pcpus)
    assert frames["PERF_REQUEST"] == frames["PERF_REPLY"] == calls
    assert frames["RESERVE"] == frames["RESERVED"]


async def check_same(make: Callable[[], Machine], **choices: Any):
    """A run over several ranks, threads unless chosen otherwise, ends as one in this process does."""
    expected = make()
    records = run_here(expected)
    choices.setdefault("open_workers", ThreadWorkers)
    outcome, their_records = await run_on_workers(make(), messages=True, **choices)
    assert differences(expected, outcome) == []
    assert np.array_equal(records, their_records)
    check_frames(expected, outcome)
    return expected


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeptWorkers]:
    """Three processes: the physical CPUs', host perf's and the vCPUs'."""
    workers = KeptWorkers(3, tmp_path_factory.mktemp("workers"))
    yield workers
    workers.end()


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("example", SCENARIOS)
async def test_the_examples_cut_short(example: str, design: str, processes: KeptWorkers):
    def make() -> Machine:
        machine = example_machine(example, design)
        machine.until_ns = until
        return machine

    until = cut(example_machine(example, design), ACCESSES)
    clocks: list[int] = []
    expected = await check_same(make, workers=3, open_workers=processes.open, on_progress=clocks.append)
    assert clocks == sorted(clocks)
    if example.startswith("ftest"):  # seconds; the others may be over before they say how far they are
        assert len(set(clocks)) > 2
    # The cut is where the access of that number begins, or the run has fewer.
    accesses = total(expected, col.G_ACCESSES) + in_flight(expected)
    assert ACCESSES <= accesses <= ACCESSES + len(expected.vcpus) or until == expected.until_ns


@pytest.mark.soak
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("example", SCENARIOS)
async def test_the_whole_examples(example: str, design: str, processes: KeptWorkers):
    """Minutes each. No records are kept: rows hold their hashes."""
    expected = example_machine(example, design)
    machine = example_machine(example, design)
    for each in (expected, machine):
        each.arena[col.R_KEEP] = 0
    run_machine(expected)
    outcome, _ = await run_on_workers(
        machine, within_s=4 * 3600, workers=3, messages=True, open_workers=processes.open
    )
    assert differences(expected, outcome) == []
    check_frames(expected, outcome)


@pytest.mark.parametrize("design", DESIGNS)
@settings(max_examples=2_000 if "VPMU_SOAK" in os.environ else 6)
@given(random=st.randoms(use_true_random=False))
def test_random_scenarios(random: Random, design: str):
    table = random_scenario(random)
    until = cut(truth_machine(table, design, ALL_KINDS), 1_000)

    def make() -> Machine:
        machine = truth_machine(table, design, ALL_KINDS)
        machine.until_ns = until
        return machine

    trio.run(partial(check_same, make, workers=3))


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
