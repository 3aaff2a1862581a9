"""One worker against two, and what checkpoints cost: whole runs of examples/fleet/scale.toml, `make workers`.

Each line is a process of its own with the workers that it starts. `run` is the wall time of all; `a second`
is what another second of virtual time takes, from the difference between a long run and a short one, so that
starting and collecting are not in it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks.scale import SCENARIO

_VCPUS_PER_HOST: Final = 100
SHORT_S: Final = 1
VARIANTS: Final = {
    "one worker": ["--workers", "1", "--checkpoint", "100000"],
    "two workers": ["--workers", "2", "--checkpoint", "100000"],
    "two, a checkpoint every 60 s": ["--workers", "2", "--checkpoint", "60"],
}
"""All write their records to journals, so that they differ in nothing else."""


def run(vcpus: int, until_s: int, choices: list[str]) -> float:
    """Run a fleet of so many vCPUs for so much virtual time; return the wall time of it all, seconds."""
    hosts = max(vcpus // _VCPUS_PER_HOST, 1)
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "vpmu.cli", "run", str(SCENARIO), "--design", "optimized", "--quiet"]
        command += ["--set", f"host.node.count={hosts}", "--set", f"fleet.vm.count={vcpus}"]
        command += ["--until", f"{until_s} s", "--keep", "none", "--out", str(Path(out) / "out"), *choices]
        began = time.perf_counter()
        subprocess.run(command, check=True)
        return time.perf_counter() - began


def main() -> None:
    """Print a line for each variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vcpus", type=int, default=100_000)
    parser.add_argument("--seconds", type=int, default=30, help="virtual time of the long run")
    chosen = parser.parse_args()
    print(f"{chosen.vcpus:,} vCPUs, {chosen.seconds} s of virtual time")
    print(f"{'':30} {'run':>9} {'a second':>10} {'times as fast':>14}")
    first = 0.0
    for name, choices in VARIANTS.items():
        short_s = run(chosen.vcpus, SHORT_S, choices)
        long_s = run(chosen.vcpus, chosen.seconds, choices)
        second_s = (long_s - short_s) / (chosen.seconds - SHORT_S)
        first = first or second_s
        print(f"{name:30} {long_s:7.1f} s {second_s:8.2f} s {first / second_s:13.2f}x", flush=True)


if __name__ == "__main__":
    main()
