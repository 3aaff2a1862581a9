"""The source's two experiments, run under each design over several seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vpmu.errors import UserError
from vpmu.results import DesignResult
from vpmu.scenario import Scenario, load_scenario

EXAMPLES: Final = Path(__file__).parents[1] / "examples" / "ftest"
SCENARIOS: Final = {"stat": "stat.toml", "record": "record.toml"}
DESIGNS: Final = ("legacy", "optimized", "native")

Overrides = Sequence[str] | Mapping[str, Sequence[str]]
Step = Callable[[int, int], None]
"""Called with the number of runs done, and of all."""


@dataclass
class Experiments:
    """What came out: by experiment and design one result per seed, in the order of the seeds."""

    seeds: tuple[int, ...]
    scenarios: dict[str, Scenario]
    results: dict[str, dict[str, list[DesignResult]]] = field(default_factory=dict)

    def of(self, experiment: str, design: str) -> list[DesignResult]:
        """Return the results of one experiment under one design."""
        return self.results[experiment][design]


async def run_experiments(
    seeds: Sequence[int],
    overrides: Overrides = (),
    *,
    folder: Path = EXAMPLES,
    designs: Sequence[str] = DESIGNS,
    step: Step | None = None,
) -> Experiments:
    """Run both experiments.

    Parameters
    ----------
    seeds : sequence of int
    overrides : sequence of str, or mapping of such
        ``key=value`` texts that change both scenarios, as ``--set`` does; or by experiment, each its own.
    folder : Path
        Where ``stat.toml`` and ``record.toml`` are.
    designs : sequence of str
    step : callable, optional
        Told after every run.

    Raises
    ------
    UserError
        If a scenario is missing or wrong.
    """
    from vpmu.execution import run

    changes = overrides if isinstance(overrides, Mapping) else dict.fromkeys(SCENARIOS, overrides)
    scenarios = {name: _load(folder / file, changes[name]) for name, file in SCENARIOS.items()}
    found = Experiments(tuple(seeds), scenarios)
    total, done = len(scenarios) * len(seeds) * len(designs), 0
    for name, file in SCENARIOS.items():
        by_design: dict[str, list[DesignResult]] = {design: [] for design in designs}
        found.results[name] = by_design
        for seed in seeds:
            scenario = load_scenario(folder / file, [*changes[name], f"seed={seed}"])
            for design in designs:
                result = await run(scenario, designs=(design,))
                by_design[design].append(result.designs[design])
                done += 1
                if step is not None:
                    step(done, total)
    return found


def _load(path: Path, overrides: Sequence[str]) -> Scenario:
    if not path.is_file():
        raise UserError("no such file", file="--examples", found=str(path))
    scenario = load_scenario(path, list(overrides))
    if len(scenario.vms) != 1 or len(scenario.vms[0].sessions) != 1:
        raise UserError("an experiment of the source is one VM with one session", file=str(path), key="vm")
    return scenario
