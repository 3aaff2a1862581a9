"""Small machines for tests of runs over several processes, and the comparison of two of them."""

import os
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import trio

from tests.cluster.test_launcher import ThreadWorkers
from tests.processes import untraced
from vpmu.actors.local import run_machine
from vpmu.actors.machine import Machine
from vpmu.build import build, load_programs
from vpmu.cluster.launcher import LocalWorkers, OnDone, Workers
from vpmu.cluster.merge import sort_records
from vpmu.cluster.node import WorkersOutcome, run_machine_on_workers
from vpmu.kernels import columns as col
from vpmu.scenario import Scenario, load_scenario

EXAMPLES = Path(__file__).parents[2] / "examples"
ALL_KINDS = 0x7E

HEAD = """
version = 1
title = "a small machine"
seed = {seed}
until = "{until}"

[[program]]
name = "work"
cycles = 40000000
functions = [
    {{ name = "main", share = "0.25", ipc = "1.2", branches = "0.2", branch_misses = "0.01" }},
    {{ name = "leaf", share = "0.75", ipc = "0.7", branches = "0.1", dtlb_load_misses = "0.003" }},
]
"""
HOST = """
[[host]]
name = "{name}"
profile = "e5-2699v4-linux-5.0"
cpus = {cpus}
watchdog = {watchdog}
balance = "3 ms"
"""
GUEST = """
[[vm]]
name = "{name}"
host = "{host}"
vcpus = {vcpus}
{pinned}

[[vm.thread]]
name = "work"
program = "work"

[[vm.thread]]
name = "sleeper"
kind = "sleeper"
wakeups = "700/s"
burst = "200 us"

[[vm.session]]
name = "{tool}"
tool = "{tool}"
thread = "work"
{events}
"""
STAT = 'events = ["branches", "cpu-cycles", "dTLB-load-misses"]'
RECORD = 'events = ["cpu-cycles"]\nfrequency = 2000'
TOOL = """
[[tool]]
name = "host-stat"
host = "{host}"
kind = "stat"
cpus = "all"
events = ["cpu-cycles", "instructions"]
start = "3 ms"
stop = "21 ms"
"""


def scenario_text(
    seed: int,
    until: str,
    hosts: list[tuple[int, int, int]],
    *,
    watchdog: bool = False,
    tool: bool = False,
    vcpus: int = 1,
) -> str:
    """Return a scenario; a host is (CPUs, VMs pinned to the first, floating VMs), every other VM records."""
    parts = [HEAD.format(seed=seed, until=until)]
    for number, (cpus, pinned, floating) in enumerate(hosts):
        host = f"host{number}"
        parts.append(HOST.format(name=host, cpus=cpus, watchdog=str(watchdog).lower()))
        if tool:
            parts.append(TOOL.replace("host-stat", f"host-stat{number}").format(host=host))
        for guest in range(pinned + floating):
            kind, events = ("record", RECORD) if guest % 2 else ("stat", STAT)
            pin = "cpus = [0]" if guest < pinned else ""
            name = f"vm{number}-{guest}"
            parts.append(
                GUEST.format(name=name, host=host, vcpus=vcpus, pinned=pin, tool=kind, events=events)
            )
    return "".join(parts)


def load_text(text: str) -> Scenario:
    with TemporaryDirectory() as directory:
        file = Path(directory) / "small.toml"
        file.write_text(text)
        return load_scenario(file, [])


@cache
def programs_of(text: str):
    """Programs are read once for all machines of a scenario."""
    return load_programs(load_text(text))


def machine_of(text: str, design: str) -> Machine:
    machine = build(load_text(text), design, programs_of(text))
    machine.arena[col.R_KEEP] = ALL_KINDS
    return machine


def example_machine(name: str, design: str, *settings: str) -> Machine:
    machine = build(load_scenario(EXAMPLES / name, list(settings)), design)
    machine.arena[col.R_KEEP] = ALL_KINDS
    return machine


def run_here(machine: Machine):
    """Run a machine in one process; return its records, sorted."""
    records = [np.empty((0, 8), np.uint64)]
    run_machine(machine, lambda batch: records.append(batch.copy()))
    return sort_records(np.concatenate(records))


async def run_on_workers(machine: Machine, within_s: float = 120, **choices: Any):
    """Run a machine over several ranks; return the outcome and the records."""
    records = [np.empty((0, 8), np.uint64)]
    with trio.fail_after(within_s):
        outcome = await run_machine_on_workers(
            machine, on_records=lambda batch: records.append(batch.copy()), **choices
        )
    return outcome, np.concatenate(records)


async def run_in_threads(machine: Machine, **choices: Any):
    """Run a machine over ranks that are threads; return the outcome and the records."""
    return await run_on_workers(machine, open_workers=ThreadWorkers, **choices)


class KeptWorkers(Workers):
    """Worker processes that many runs use, one after the other; no coverage is measured in them.

    An instance stands for the workers of each run: `open` in place of `LocalWorkers`.
    """

    def __init__(self, nr_ranks: int, directory: Path) -> None:
        self._workers = LocalWorkers(nr_ranks, directory)
        with pytest.MonkeyPatch.context() as patch:
            for name in set(os.environ) - set(untraced()):
                patch.delenv(name)
            self._workers.start()

    def open(self, nr_ranks: int, directory: Path) -> Workers:
        return self

    def start(self) -> None:
        """They have long been up."""

    def submit(self, rank: int, spec: bytes, on_done: OnDone) -> None:
        self._workers.submit(rank, spec, on_done)

    def close(self) -> None:
        """The next run needs them."""

    def end(self) -> None:
        self._workers.close()


def _column_name(region: str, column: int) -> str:
    prefixes = {"pcpu": ("P_", "HW_"), "vcpu": ("V_",), "guest": ("G_", "T_"), "host": ("H_",)}.get(region)
    if prefixes is None:
        return str(column)
    words = [(int(v), k) for k, v in vars(col).items() if k.startswith(prefixes) and isinstance(v, np.uint64)]
    first, name = max(word for word in words if word[0] <= column)
    return f"{name}+{column - first}"


def differences(expected: Machine, outcome: WorkersOutcome) -> list[str]:
    """Return every word that differs between two ends of a run, but those that say nothing any more.

    These are when a physical CPU last stopped, what a guest was told to watch before it ran (in message mode
    it is told as it is entered, and may not run), and the result of an access that the guest has had already.
    """
    had = {int(col.V_OUTCOME), int(col.V_VALUE)}
    watch = range(int(col.G_STILL), int(col.G_WATCH) + col.WATCH_COLUMNS * col.SLOTS)
    found = []
    for name, region in expected.regions.items():
        end = region.base + region.rows * region.columns
        expected_rows = expected.table(name)
        rows = outcome.arena[region.base : end].reshape(region.rows, region.columns)
        for row, column in np.argwhere(expected_rows != rows):
            if (name == "pcpu" and column == int(col.P_STOP_AT)) or (name == "guest" and column in watch):
                continue
            if name == "vcpu" and column in had and not rows[row, int(col.V_COMPLETE)]:
                continue
            label = _column_name(name, int(column))
            found.append(f"{name} {row} {label}: {expected_rows[row, column]} became {rows[row, column]}")
    return found


def total(machine: Machine, column: np.uint64) -> int:
    """Return the sum of a column over all guests."""
    return sum(int(machine.arena[vcpu.guest + int(column)]) for vcpu in machine.vcpus)
