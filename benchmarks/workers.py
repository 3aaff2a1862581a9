"""One worker against two, and what checkpoints cost: whole runs of examples/fleet/scale.toml, `make workers`.

Each run is a process of its own with the workers that it starts. The variants take turns, since the machine's
speed changes within minutes, and the ratios are those of a round: the median of all rounds is printed, and
the best time. `a second` is what a second of virtual time takes the slower worker, without start and
collecting, of which `peers` is the part that it waited for the other one. `stands still` is how long a
checkpoint stops the worker for which it takes longest, `in all` by how much it makes the run of its round
longer than the one without, and `of 60 s` what one a minute costs by that.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.scale import SCENARIO

_VCPUS_PER_HOST: Final = 100
_DESIGN: Final = "optimized"
_NAMES: Final = ("busy_s", "queue_s", "peers_s", "checkpoints_s", "checkpoints")
VARIANTS: Final = {
    "one worker": ["--workers", "1", "--checkpoint", "100000"],
    "two workers": ["--workers", "2", "--checkpoint", "100000"],
    "two, with checkpoints": ["--workers", "2", "--checkpoint"],
}
"""All write their records to journals, so that they differ in nothing else; the last one's pause is given."""


@dataclass(frozen=True)
class Cost:
    """What a virtual second takes, of it the wait for peers, and what one checkpoint does; wall seconds."""

    second_s: float
    peers_s: float
    checkpoint_s: float
    checkpoints: int


def run(vcpus: int, until_s: int, choices: list[str]) -> Cost:
    """Run a fleet of so many vCPUs for so much virtual time."""
    hosts = max(vcpus // _VCPUS_PER_HOST, 1)
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "out"
        command = [sys.executable, "-m", "vpmu.cli", "run", str(SCENARIO), "--design", _DESIGN, "--quiet"]
        command += ["--set", f"host.node.count={hosts}", "--set", f"fleet.vm.count={vcpus}"]
        command += ["--until", f"{until_s} s", "--keep", "none", "--out", str(out), *choices]
        subprocess.run(command, check=True)
        timing = json.loads((out / "timing.json").read_text())
    workers = [
        {name: timing[f"{_DESIGN}.worker_{rank}.{name}"] for name in _NAMES}
        for rank in range(timing["workers"])
    ]
    checkpoints = max(each["checkpoints"] for each in workers)
    return Cost(
        max(each["busy_s"] + each["queue_s"] + each["peers_s"] for each in workers) / until_s,
        max(each["peers_s"] for each in workers) / until_s,
        max(each["checkpoints_s"] for each in workers) / max(checkpoints, 1),
        checkpoints,
    )


def main() -> None:
    """Print a line for each run, then one for each variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vcpus", type=int, default=100_000)
    parser.add_argument("--seconds", type=int, default=6, help="virtual time of a run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pause", type=int, default=5, help="wall seconds between checkpoints")
    chosen = parser.parse_args()
    print(f"{chosen.vcpus:,} vCPUs, {chosen.seconds} s of virtual time, {chosen.rounds} rounds")
    heads = f"{'a second':>10} {'of one':>8} {'peers':>8} {'stands still':>13} {'in all':>9} {'of 60 s':>8}"
    print(f"{'':24} {heads}")
    rounds: list[list[Cost]] = []
    for _ in range(chosen.rounds):
        costs = []
        for name, choices in VARIANTS.items():
            pause = [str(chosen.pause)] if choices[-1] == "--checkpoint" else []
            costs.append(run(chosen.vcpus, chosen.seconds, [*choices, *pause]))
            _print(name, [costs], chosen.seconds)
        rounds.append(costs)
    print(f"the best second and the medians of all else, of {chosen.rounds}:")
    for number, name in enumerate(VARIANTS):
        _print(name, [costs[: number + 1] for costs in rounds], chosen.seconds)


def _print(name: str, rounds: list[list[Cost]], seconds: int) -> None:
    """Print what the last run of each round says, beside those before it in the same round."""
    last = [costs[-1] for costs in rounds]
    ratio = median(costs[0].second_s / costs[-1].second_s for costs in rounds)
    peers_s = median(each.peers_s for each in last)
    line = f"{name:24} {min(each.second_s for each in last):8.2f} s {ratio:7.2f}x {peers_s:6.2f} s"
    if all(each.checkpoints for each in last):
        in_all_s = median(
            (costs[-1].second_s - costs[-2].second_s) * seconds / costs[-1].checkpoints for costs in rounds
        )
        still_s = median(each.checkpoint_s for each in last)
        line += f" {still_s:11.2f} s {in_all_s:7.2f} s {in_all_s / 60:7.1%}"
    print(line, flush=True)


if __name__ == "__main__":
    main()
