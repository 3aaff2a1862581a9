"""The curve from a hundred vCPUs to a hundred thousand: `make scale` (examples/fleet/scale.toml).

Each point is a process of its own, so that its peak of memory is its own. The run is timed apart from the
start: reading the scenario and filling the arena in. A second of virtual time is told in wall time and in
processor time of the one thread that runs it; the latter is what counts where others use the machine, too.
Each point is run some rounds, and the one with the least processor time is printed: what others do on the
same core, or on its other hyperthread, makes it up to twice as long.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vpmu.scenario import Scenario

SCENARIO: Final = Path(__file__).parents[1] / "examples" / "fleet" / "scale.toml"
SIZES: Final = (100, 1_000, 10_000, 100_000)
DESIGNS: Final = ("optimized", "legacy")
LESS_ACTIVE: Final = (0.1, 0.05, 0.02)
"""Shares of active VMs that leave CPUs idle: there are ten vCPUs to each."""
LEVERS: Final = (
    ("host.node.hz=250",),
    ("template.measured.session.0.frequency=250",),
    ("host.node.hz=250", "template.measured.session.0.frequency=250"),
)
"""What makes the fleet cheaper with its CPUs as busy as before."""
_VCPUS_PER_HOST: Final = 100


def scenario_of(vcpus: int, active: float, changes: Sequence[str] = ()) -> Scenario:
    """Return the fleet of so many vCPUs; of them a part sleeps but for a moment a second."""
    from vpmu.scenario import parse_scenario

    raw = tomllib.loads(SCENARIO.read_text())
    raw["host"][0]["count"] = max(vcpus // _VCPUS_PER_HOST, 1)
    fleet = raw["fleet"][0]
    fleet["count"] = vcpus
    if active < 1:
        sleeper = {"name": "housekeeping", "kind": "sleeper", "wakeups": "1/s", "burst": "50 us"}
        raw["template"].append({"name": "asleep", "thread": [sleeper]})
        fleet["templates"].append("asleep")
        asleep = round(sum(fleet["weights"]) * (1 / active - 1))
        fleet["weights"].append(asleep)
    return parse_scenario(raw, file=str(SCENARIO), directory=SCENARIO.parent, overrides=list(changes))


def point(vcpus: int, design: str, active: float = 1.0, changes: Sequence[str] = ()) -> str:
    """Run one point in this process; return its line of the table."""
    from vpmu.actors.local import steps
    from vpmu.build import build
    from vpmu.collect import SampleCounter, collect
    from vpmu.execution import kept_kinds
    from vpmu.kernels.columns import R_KEEP
    from vpmu.options import RunOptions

    began = time.perf_counter()
    scenario = scenario_of(vcpus, active, changes)
    machine = build(scenario, design)
    machine.arena[R_KEEP] = kept_kinds(RunOptions())
    samples = SampleCounter()
    started, cpu_began_s = time.perf_counter(), time.process_time()
    for records in steps(machine):
        samples.add(records)
    ended, cpu_s = time.perf_counter(), time.process_time() - cpu_began_s
    result = collect(machine, samples)
    busy = result.accounting["guest"] / sum(result.accounting.values())
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    virtual_s = scenario.until_ns / 1e9
    rates = (result.host[name] / virtual_s for name in ("PMIs", "vCPU switches", "accesses", "VM exits"))
    return (
        f"{design:10} {vcpus:8,} {active:7.1%} {len(machine.pcpus):7,} {started - began:8.1f} s"
        f" {(ended - started) / virtual_s:8.2f} s {cpu_s / virtual_s:8.2f} s {peak_mb:6,} MB {busy:7.1%} "
        + " ".join(f"{rate:12,.0f}" for rate in rates)
        + ("  " + ", ".join(changes) if changes else "")
    )


def main() -> None:
    """Print the table, a line for each design and size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--point", nargs=2, metavar=("VCPUS", "DESIGN"), help="only this one, in this process"
    )
    parser.add_argument(
        "--active", type=float, default=1.0, help="with --point: share of VMs that do not sleep"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="with --point")
    parser.add_argument("--most", type=int, default=SIZES[-1], help="largest number of vCPUs")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each point; the best is printed")
    chosen = parser.parse_args()
    if chosen.point:
        print(point(int(chosen.point[0]), chosen.point[1], chosen.active, chosen.set))
        return
    print(
        f"{'design':10} {'vCPUs':>8} {'active':>7} {'CPUs':>7} {'start':>10} {'a second':>10} "
        f"{'of a core':>10} {'memory':>9} "
        f"{'guests':>7} {'PMIs/s':>12} {'switches/s':>12} {'accesses/s':>12} {'exits/s':>12}"
    )
    none: tuple[str, ...] = ()
    points = [(design, vcpus, 1.0, none) for design in DESIGNS for vcpus in SIZES]
    points += [(DESIGNS[0], SIZES[-1], active, none) for active in LESS_ACTIVE]
    points += [(DESIGNS[0], SIZES[-1], 1.0, changes) for changes in LEVERS]
    for design, vcpus, active, changes in points:
        if vcpus <= chosen.most:
            command = [sys.executable, "-m", "benchmarks.scale", "--point", str(vcpus), design]
            command += ["--active", str(active), *(word for each in changes for word in ("--set", each))]
            lines = [
                subprocess.run(command, check=True, capture_output=True, text=True).stdout
                for _ in range(chosen.rounds)
            ]
            print(min(lines, key=_of_a_core), end="", flush=True)


def _of_a_core(line: str) -> float:
    """Return the processor time in a line of the table, seconds."""
    return float(line.split()[8])


if __name__ == "__main__":
    main()
