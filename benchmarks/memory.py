"""Memory of an idle vCPU: its rows in the arena, and its entries in the machine's directory."""

from __future__ import annotations

import gc
import tomllib
from pathlib import Path
from typing import Any, Final

from vpmu.build import build, load_programs
from vpmu.scenario import parse_scenario

VCPUS: Final = 10_000
WANTED: Final = 8192
SCENARIO: Final = """
version = 1
seed = 1
until = "1 s"
[[host]]
name = "host"
cpus = 44
[[vm]]
name = "idle"
count = {count}
host = "host"
"""


def resident_bytes() -> int:
    """Return how much memory this process has resident (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmRSS")


def bytes_per_vcpu() -> float:
    """Return by how much the process grows with each vCPU of a machine whose guests have nothing to do."""
    scenarios = [parse_scenario(tomllib.loads(SCENARIO.format(count=count))) for count in (1, VCPUS + 1)]
    programs = load_programs(scenarios[0])
    small = build(scenarios[0], "optimized", programs)
    gc.collect()
    before = resident_bytes()
    large = build(scenarios[1], "optimized", programs)
    gc.collect()
    grown = resident_bytes() - before
    assert len(large.vcpus) - len(small.vcpus) == VCPUS
    return grown / VCPUS


def measure() -> list[dict[str, Any]]:
    """Return the figure: name, value, unit, baseline (what is allowed) and ratio."""
    value = bytes_per_vcpu()
    return [
        {
            "name": "idle_vcpu",
            "value": round(value),
            "unit": "bytes",
            "baseline": WANTED,
            "ratio": round(value / WANTED, 3),
        }
    ]
