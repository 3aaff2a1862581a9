"""How near a profile comes to the truth: distances, what chance alone gives, and the bias of each function.

A profile's shares are those of its samples, the truth is each function's share of the cycles that its threads
really took. The distance is the total variation: half the sum of the shares' absolute differences, which is
the share of samples that would have to move.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from msgspec import Struct

from vpmu import sigint
from vpmu.errors import UserError
from vpmu.results import ProfileRow

if TYPE_CHECKING:
    from vpmu.actors.machine import Machine
    from vpmu.kernels.jit import Arena
    from vpmu.scenario import Scenario

REFERENCE: Final = "native"
_SAMPLE: Final = 4
_FUNCTION_MASK: Final = np.uint64(0xFFFFFFFF)
_KIND_MASK: Final = np.uint64(0xFF)


def distance(samples: Sequence[int], truth: Sequence[int]) -> float:
    """Return the total variation distance between samples and cycles by function, from 0 to 1.

    Both are in the same order of functions; without a sample or a cycle there is none: 0.
    """
    taken, cycles = sum(samples), sum(truth)
    if not taken or not cycles:
        return 0.0
    return sum(abs(n / taken - c / cycles) for n, c in zip(samples, truth, strict=True)) / 2


def expected_distance(truth: Sequence[int], count: int) -> float:
    """Return the distance that `count` independent samples of the truth have on average.

    Exact: a function's samples are binomial, and De Moivre's formula gives their mean absolute deviation,
    2 v C(n, v) q^v (1 - q)^(n - v + 1) with v the least integer above n q.
    """
    cycles = sum(truth)
    if not count or not cycles:
        return 0.0
    return sum(_mean_deviation(count, part / cycles) for part in truth if part) / (2 * count)


def _mean_deviation(n: int, q: float) -> float:
    if q >= 1:
        return 0.0
    v = math.floor(n * q) + 1
    choose = math.lgamma(n + 1) - math.lgamma(v + 1) - math.lgamma(n - v + 1) if v <= n else -math.inf
    return 2 * v * math.exp(choose + v * math.log(q) + (n - v + 1) * math.log1p(-q))


class FunctionBias(Struct, kw_only=True):
    """One function of a profile: shares, their difference, and the error that chance gives it (one sigma)."""

    name: str
    samples: int
    share: float
    truth: float
    bias: float
    error: float


class Precision(Struct, kw_only=True):
    """How near one profile comes to the truth.

    `chance` is the distance that as many independent samples have on average, `excess` what is above it.
    """

    vm: str
    vcpu: int
    session: str
    samples: int
    distance: float
    chance: float
    excess: float
    functions: list[FunctionBias]


def precision_of(profile: ProfileRow) -> Precision:
    """Return a profile's precision; a profile without samples has none, and distance 1."""
    samples = [row.samples for row in profile.functions]
    truth = [row.truth_cycles for row in profile.functions]
    taken, cycles = sum(samples), sum(truth)
    apart = distance(samples, truth) if taken else 1.0
    chance = expected_distance(truth, taken)
    functions = []
    for row in profile.functions:
        share = row.samples / taken if taken else 0.0
        real = row.truth_cycles / cycles if cycles else 0.0
        error = math.sqrt(real * (1 - real) / taken) if taken else 0.0
        functions.append(
            FunctionBias(
                name=row.name, samples=row.samples, share=share, truth=real, bias=share - real, error=error
            )
        )
    return Precision(
        vm=profile.vm,
        vcpu=profile.vcpu,
        session=profile.session,
        samples=taken,
        distance=apart,
        chance=chance,
        excess=apart - chance,
        functions=functions,
    )


class Sampled(Struct, kw_only=True):
    """One run's first profile: the function of each sample, in order, and the cycles of each function."""

    functions: list[int]
    truth: list[int]

    def distance(self, count: int | None = None) -> float:
        """Return the distance from the truth: of `count` samples, evenly out of the profile, or of all."""
        chosen = self.functions if count is None else _thin(self.functions, count)
        counts = np.bincount(np.array(chosen, dtype=np.int64), minlength=len(self.truth))
        return distance(counts.tolist(), self.truth)


def _thin(items: list[int], count: int) -> list[int]:
    return [items[index * len(items) // count] for index in range(count)]


def sample(scenario: Scenario, design: str) -> Sampled:
    """Run a scenario under one design and return its first guest's first profile.

    Raises
    ------
    UserError
        If the first guest has no ``record`` session.
    """
    from vpmu.actors.local import steps
    from vpmu.build import build
    from vpmu.kernels.columns import G_ID, R_KEEP

    machine = build(scenario, design)
    machine.arena[R_KEEP] = 1 << _SAMPLE
    vcpu = machine.vcpus[0]
    index = next((i for i, s in enumerate(vcpu.sessions) if s.tool == "record"), None)
    if index is None:
        raise UserError('the first guest has no session with tool = "record"', key="vm[0].session")
    found: list[int] = []
    actor = int(machine.arena[vcpu.guest + int(G_ID)])

    def take(records: Arena) -> None:
        mine = (records[:, 0] & _KIND_MASK == _SAMPLE) & (records[:, 2] == actor)
        mine &= (records[:, 7] >> np.uint64(24)) & _KIND_MASK == index
        found.extend((records[mine, 6] & _FUNCTION_MASK).tolist())

    for records in steps(machine):
        take(records)
        sigint.check()
    truth = _truth(machine)
    return Sampled(functions=[min(f, len(truth) - 1) for f in found], truth=truth)


def _truth(machine: Machine) -> list[int]:
    """Return the cycles of each function, the kernel's place last: none are due there."""
    from vpmu.kernels.boot import function_cycles
    from vpmu.kernels.columns import TH_CURSOR, TH_PROGRAM
    from vpmu.kernels.jit import U64

    vcpu = machine.vcpus[0]
    session = next(s for s in vcpu.sessions if s.tool == "record")
    measured = [t for t in vcpu.threads if session.thread in ("", t.name)]
    thread = measured[0]
    program = U64(int(machine.arena[thread.offset + int(TH_PROGRAM)]))
    cursor = U64(thread.offset) + TH_CURSOR
    names = machine.functions[thread.program]
    return [int(function_cycles(machine.arena, program, cursor, U64(i))) for i in range(len(names))] + [0]


class DesignPrecision(Struct, kw_only=True):
    """A design's profiles over seeds: means, and standard errors of the means.

    `distance` is of whole profiles, `chance` what as many independent samples would have, `bias` the rest;
    `equal` is the distance of profiles cut to equal sample counts.
    """

    design: str
    samples: float
    distance: float
    distance_error: float
    chance: float
    bias: float
    equal: float
    equal_error: float


class Study(Struct, kw_only=True):
    """Several designs' precision over the same seeds; `count` is how many samples profiles are cut to."""

    seeds: list[int]
    count: int
    designs: dict[str, DesignPrecision]

    def difference(self, left: str, right: str) -> tuple[float, float]:
        """Return how much further from the truth `left` is at equal counts, and the standard error."""
        a, b = self.designs[left], self.designs[right]
        return a.equal - b.equal, math.hypot(a.equal_error, b.equal_error)

    def excess(self, design: str) -> tuple[float, float]:
        """Return a design's distance beyond native's: by fewer samples, and by bias."""
        own, reference = self.designs[design], self.designs[REFERENCE]
        return own.chance - reference.chance, own.bias - reference.bias


def study(
    load: Callable[[int], Scenario], designs: Sequence[str], seeds: Sequence[int], equal: Sequence[str]
) -> Study:
    """Run a scenario under several designs over seeds and compare their profiles with the truth.

    Parameters
    ----------
    load : callable
        Returns the scenario with a seed.
    designs, seeds : sequence
    equal : sequence of str
        The designs whose smallest profile says how many samples profiles are cut to.
    """
    found = {design: [sample(load(seed), design) for seed in seeds] for design in designs}
    count = min(len(each.functions) for design in equal for each in found[design])
    return Study(
        seeds=list(seeds),
        count=count,
        designs={design: _summary(design, runs, count) for design, runs in found.items()},
    )


def _summary(design: str, runs: Sequence[Sampled], count: int) -> DesignPrecision:
    distances = [run.distance() for run in runs]
    chances = [expected_distance(run.truth, len(run.functions)) for run in runs]
    cut = [run.distance(min(count, len(run.functions))) for run in runs]
    return DesignPrecision(
        design=design,
        samples=statistics.fmean(len(run.functions) for run in runs),
        distance=statistics.fmean(distances),
        distance_error=_error(distances),
        chance=statistics.fmean(chances),
        bias=statistics.fmean(distances) - statistics.fmean(chances),
        equal=statistics.fmean(cut),
        equal_error=_error(cut),
    )


def _error(values: Sequence[float]) -> float:
    """Return the standard error of a mean."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def precision_command(file: str, *, seeds: int, designs: str, overrides: list[str], as_json: bool) -> None:
    """Print a scenario's precision under several designs, over seeds 1 to `seeds`."""
    import json
    import sys

    from vpmu.designs import find_design
    from vpmu.scenario import load_scenario

    if seeds < 2:
        raise UserError(f"must be at least 2, found {seeds}", file="--seeds")
    names = [find_design(name.strip()).name for name in designs.split(",")]
    if not Path(file).is_file():
        load_scenario(file, overrides)
    equal = [name for name in names if name != "legacy"] or names
    found = study(
        lambda seed: load_scenario(file, [*overrides, f"seed={seed}"]), names, range(1, seeds + 1), equal
    )
    if as_json:
        sys.stdout.write(json.dumps(_report(found), indent=1) + "\n")
        return
    _print(found)


def _report(found: Study) -> dict[str, Any]:
    import msgspec

    report: dict[str, Any] = msgspec.to_builtins(found)
    if REFERENCE in found.designs:
        report["against_native"] = {
            name: {
                "difference_at_equal_counts": found.difference(name, REFERENCE)[0],
                "standard_error": found.difference(name, REFERENCE)[1],
                "excess_by_fewer_samples": found.excess(name)[0],
                "excess_by_bias": found.excess(name)[1],
            }
            for name in found.designs
            if name != REFERENCE
        }
    return report


def _print(found: Study) -> None:
    from vpmu.console import output_console
    from vpmu.tables import plain_table

    figures = ("samples", "distance", "+-", "by chance", "by bias", f"cut to {found.count:,}", "+-")
    table = plain_table("distance of the sampled shares from the truth", ("design",), figures)
    for row in found.designs.values():
        shares = (row.distance, row.distance_error, row.chance, row.bias, row.equal, row.equal_error)
        table.add_row(row.design, f"{row.samples:,.0f}", *(f"{value:.3%}" for value in shares))
    console = output_console()
    console.print(table)
    for name in found.designs:
        if name == REFERENCE or REFERENCE not in found.designs:
            continue
        shift, error = found.difference(name, REFERENCE)
        fewer, bias = found.excess(name)
        console.print(
            f"{name} against {REFERENCE}: at equal counts {shift:+.3%}, "
            f"{abs(shift) / error if error else 0:.1f} standard errors; "
            f"whole profiles: fewer samples {fewer:+.3%}, bias {bias:+.3%}"
        )
