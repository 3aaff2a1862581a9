"""A million samples to ``perf.data``: samples a second, and the memory of a process that writes them.

What is timed is all that a run does for these files once it has the records: sorting out whose they are,
encoding, writing, completing. Each way of writing has a process of its own, whose largest resident size is
taken at the end.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from vpmu.actors.machine import Machine
    from vpmu.kernels.jit import Arena

SAMPLES: Final = 1_000_000
WANTED_PER_S: Final = 3_000_000
WANTED_MB: Final = 200
ROUNDS: Final = 5
WAYS: Final = {"perfdata": 1, "perfdata_two_cpus": 2}
"""Figures, and how many vCPUs the session is on; those of two are put in order through files."""
EXAMPLE: Final = Path(__file__).parents[1] / "examples" / "ftest" / "callgrind.out.ftest"
SCENARIO: Final = """
version = 1
seed = 1
until = "1 s"
[[program]]
name = "ftest"
file = "{file}"
[[host]]
name = "host"
cpus = {cpus}
[[vm]]
name = "guest"
vcpus = {cpus}
cpus = [{list}]
[[vm.thread]]
name = "ftest"
count = {cpus}
[[vm.session]]
name = "record"
tool = "record"
cpu = true
"""


def batches(machine: Machine, samples: int) -> list[Arena]:
    """Return samples as a run logs them, a log's worth of each vCPU in turn, in the program's functions."""
    from vpmu.actors.machine import LOG_RECORDS
    from vpmu.kernels import columns as col
    from vpmu.program import load_program

    segments = [segment for phase in load_program(EXAMPLE).phases for segment in phase.segments]
    rows = np.array([(s.ip, s.function | s.chain << 32) for s in segments], dtype=np.uint64)
    actors = [int(machine.arena[vcpu.guest + int(col.G_ID)]) for vcpu in machine.vcpus]
    found = []
    for first in range(0, samples, LOG_RECORDS):
        numbers = np.arange(first, min(first + LOG_RECORDS, samples), dtype=np.uint64)
        records = np.zeros((len(numbers), 8), dtype=np.uint64)
        records[:, 0] = 4
        records[:, 1] = numbers * np.uint64(250_000)
        records[:, 2] = actors[len(found) % len(actors)]
        records[:, 3] = numbers
        records[:, [4, 6]] = rows[numbers % np.uint64(len(rows))]
        records[:, 5] = 700_000
        records[:, 7] = 1 | 3 << 48
        found.append(records)
    return found


def write(cpus: int) -> dict[str, float]:
    """Write the samples of a session on so many vCPUs; return the best rate and the memory it took."""
    from vpmu.build import build, load_programs
    from vpmu.collect import SampleCounter, collect
    from vpmu.perfdata.output import PerfOutput
    from vpmu.scenario import parse_scenario

    text = SCENARIO.format(file=EXAMPLE, cpus=cpus, list=", ".join(map(str, range(cpus))))
    scenario = parse_scenario(tomllib.loads(text))
    programs = load_programs(scenario)
    machine = build(scenario, "optimized", programs)
    result = collect(machine, SampleCounter())
    log = batches(machine, SAMPLES // 16)
    best = float("inf")
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as directory:
            started = time.perf_counter()
            output = PerfOutput(Path(directory), machine, scenario, programs)
            for turn in range(16):
                for records in log:
                    records[:, 1] += np.uint64(turn and SAMPLES // 16 * 250_000)
                    output.take(records)
            output.complete(result)
            best = min(best, time.perf_counter() - started)
            assert output.files[0].samples == SAMPLES
        for records in log:
            records[:, 1] -= np.uint64(15 * (SAMPLES // 16) * 250_000)
    return {"rate": SAMPLES / best, "mb": peak_memory_mb()}


def peak_memory_mb() -> float:
    """Return the most memory that this process had resident.

    Note: ru_maxrss will not do, as it begins at what the parent had when it started this process.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure() -> list[dict[str, Any]]:
    """Return the figures: samples a second against what is wanted, and the memory of the process, MB."""
    figures = []
    for name, cpus in WAYS.items():
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.perfdata", str(cpus)],
            capture_output=True,
            check=True,
            text=True,
        )
        found = json.loads(done.stdout)
        for figure, value, unit, wanted in (
            (name, found["rate"], "samples/s", WANTED_PER_S),
            (f"{name}_memory", found["mb"], "MB", WANTED_MB),
        ):
            ratio = round(value / wanted, 3)
            figures.append(
                {"name": figure, "value": round(value), "unit": unit, "baseline": wanted, "ratio": ratio}
            )
    return figures


if __name__ == "__main__":
    print(json.dumps(write(int(sys.argv[1]))))
