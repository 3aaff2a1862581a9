"""Two hundred guests under `perf record -F 4000` on 44 physical CPUs: emulated CPU time a second on one core.

What is emulated is the time that physical CPUs were busy, summed over them; idle time does not count.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vpmu.actors.local import run_machine
from vpmu.build import build, load_programs
from vpmu.kernels import columns as col
from vpmu.scenario import load_scenario

if TYPE_CHECKING:
    from vpmu.actors.machine import Machine
    from vpmu.kernels.jit import Arena

SCENARIO: Final = Path(__file__).parents[1] / "examples" / "scale" / "record-200.toml"
WANTED: Final = {"optimized": 100, "legacy": 10}
"""Emulated CPU-seconds per second that each design has to reach."""
WARM_UP_NS: Final = 200_000_000
BLOCK_NS: Final = 100_000_000
BLOCKS: Final = 15


def busy_ns(machine: Machine) -> int:
    """Return how long the physical CPUs of a machine have been busy, in all."""
    s = machine.arena
    return sum(
        int(s[p.offset + int(col.P_NOW)]) - int(s[p.offset + int(col.P_CAUSES)]) for p in machine.pcpus
    )


def blocks(machine: Machine) -> list[float]:
    """Run a machine block by block, samples kept; return each block's busy time over its wall time."""

    def take(records: Arena) -> None:
        """Leave the records where they are: what a result makes of them is no part of this figure."""

    machine.until_ns = WARM_UP_NS + BLOCKS * BLOCK_NS
    run_machine(machine, take, WARM_UP_NS)
    rates = []
    for block in range(1, BLOCKS + 1):
        before, begin = busy_ns(machine), time.perf_counter()
        run_machine(machine, take, WARM_UP_NS + block * BLOCK_NS)
        rates.append((busy_ns(machine) - before) / 1e9 / (time.perf_counter() - begin))
    return rates


def measure() -> list[dict[str, Any]]:
    """Return the figures: name, value (the best block's), unit, baseline (what is wanted) and ratio."""
    scenario = load_scenario(SCENARIO, [])
    programs = load_programs(scenario)
    figures = []
    for design, wanted in WANTED.items():
        rate = max(blocks(build(scenario, design, programs)))
        figures.append(
            {
                "name": f"record_200_{design}",
                "value": round(rate, 1),
                "unit": "CPU-s/s",
                "baseline": wanted,
                "ratio": round(rate / wanted, 3),
            }
        )
    return figures
