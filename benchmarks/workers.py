"""One worker against two, and what checkpoints cost: whole runs of examples/fleet/scale.toml, `make workers`.

Each line is a process of its own with the workers that it starts. `run` is the wall time of all; `a second`
is what another second of virtual time takes, from the difference between a long run and a short one, so that
starting and collecting are not in it. `busy` is the same for the worker that computes most, in its processor
time, as the kernel counts it: where others use the machine, too, this is what two free cores would take, but
for the waits for peers, of which `peers` is the part of a second.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.scale import SCENARIO

_VCPUS_PER_HOST: Final = 100
_DESIGN: Final = "optimized"
SHORT_S: Final = 1
VARIANTS: Final = {
    "one worker": ["--workers", "1", "--checkpoint", "100000"],
    "two workers": ["--workers", "2", "--checkpoint", "100000"],
    "two, a checkpoint every 60 s": ["--workers", "2", "--checkpoint", "60"],
}
"""All write their records to journals, so that they differ in nothing else."""


@dataclass
class Cost:
    """What a run takes, seconds: wall time, and of its workers the most processor time, the longest wait."""

    wall_s: float
    busy_s: float
    peers_s: float

    def each_second(self, shorter: Cost, seconds: int) -> Cost:
        """Return what a second takes of those by which this run is longer than another."""
        pairs = (
            (self.wall_s, shorter.wall_s),
            (self.busy_s, shorter.busy_s),
            (self.peers_s, shorter.peers_s),
        )
        return Cost(*((long - short) / seconds for long, short in pairs))


def run(vcpus: int, until_s: int, choices: list[str]) -> Cost:
    """Run a fleet of so many vCPUs for so much virtual time."""
    hosts = max(vcpus // _VCPUS_PER_HOST, 1)
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "out"
        command = [sys.executable, "-m", "vpmu.cli", "run", str(SCENARIO), "--design", _DESIGN, "--quiet"]
        command += ["--set", f"host.node.count={hosts}", "--set", f"fleet.vm.count={vcpus}"]
        command += ["--until", f"{until_s} s", "--keep", "none", "--out", str(out), *choices]
        began = time.perf_counter()
        subprocess.run(command, check=True)
        wall_s = time.perf_counter() - began
        timing = json.loads((out / "timing.json").read_text())
    busy, peers = (
        max(value for name, value in timing.items() if name.startswith(_DESIGN) and name.endswith(what))
        for what in ("busy_s", "peers_s")
    )
    return Cost(wall_s, busy, peers)


def main() -> None:
    """Print a line for each variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vcpus", type=int, default=100_000)
    parser.add_argument("--seconds", type=int, default=30, help="virtual time of the long run")
    chosen = parser.parse_args()
    print(f"{chosen.vcpus:,} vCPUs, {chosen.seconds} s of virtual time")
    faster = f"{'times as fast':>14}"
    print(f"{'':30} {'run':>9} {'a second':>10} {faster} {'busy':>8} {faster} {'peers':>8}")
    first: Cost | None = None
    for name, choices in VARIANTS.items():
        short, long = (run(chosen.vcpus, until_s, choices) for until_s in (SHORT_S, chosen.seconds))
        cost = long.each_second(short, chosen.seconds - SHORT_S)
        first = first or cost
        print(
            f"{name:30} {long.wall_s:7.1f} s {cost.wall_s:8.2f} s {first.wall_s / cost.wall_s:13.2f}x "
            f"{cost.busy_s:6.2f} s {first.busy_s / cost.busy_s:13.2f}x {cost.peers_s:6.2f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
