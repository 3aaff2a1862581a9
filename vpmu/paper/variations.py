"""Ablations and experiments: the paper's rows with one thing changed at a time."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from vpmu.paper.experiment import EXAMPLES, SCENARIOS, Experiments, run_experiments
from vpmu.paper.rows import INPUT, Row, make_rows
from vpmu.paper.source import Source

VARIATIONS_FILE: Final = Path(__file__).with_name("variations.toml")
FACTOR: Final = 3
"""An ablation has to move a row by more than this many times the row's spread over seeds."""


class Variation(Struct, frozen=True, forbid_unknown_fields=True):
    """One change: key=value texts for both scenarios (`both`, in the file ``set``), or for one."""

    name: str
    what: str
    both: tuple[str, ...] = field(name="set", default=())
    stat: tuple[str, ...] = ()
    record: tuple[str, ...] = ()

    def overrides(self) -> dict[str, tuple[str, ...]]:
        """Return what is changed, by experiment."""
        return {name: self.both + getattr(self, name) for name in SCENARIOS}


class Variations(Struct, frozen=True, forbid_unknown_fields=True):
    """All of them."""

    ablations: tuple[Variation, ...] = field(name="ablation")
    experiments: tuple[Variation, ...] = field(name="experiment")


class Outcome(Struct, kw_only=True):
    """A variation's rows beside the unchanged ones."""

    variation: Variation
    rows: list[Row]
    unfinished: int
    """Runs whose program had not finished by the scenario's ``until``."""


def load_variations() -> Variations:
    """Read the list of variations."""
    return msgspec.convert(tomllib.loads(VARIATIONS_FILE.read_text(encoding="utf-8")), Variations)


async def vary(
    source: Source,
    variations: Sequence[Variation],
    seeds: Sequence[int],
    *,
    folder: Path = EXAMPLES,
    step: Callable[[str], None] | None = None,
) -> list[Outcome]:
    """Run every variation over the seeds.

    Parameters
    ----------
    source : Source
    variations : sequence of Variation
    seeds : sequence of int
    folder : Path
        Where the scenarios are.
    step : callable, optional
        Told each variation's name before it runs.
    """
    outcomes = []
    for variation in variations:
        if step is not None:
            step(variation.name)
        found = await run_experiments(seeds, variation.overrides(), folder=folder)
        outcomes.append(
            Outcome(variation=variation, rows=make_rows(source, found), unfinished=_unfinished(found))
        )
    return outcomes


def _unfinished(experiments: Experiments) -> int:
    runs = (
        result for designs in experiments.results.values() for group in designs.values() for result in group
    )
    return sum(bool(result.unfinished) for result in runs)


def moved(base: Sequence[Row], outcome: Outcome) -> Iterator[tuple[Row, Row, float]]:
    """Yield rows that moved by more than `FACTOR` times their spread: before, after, shift over spread.

    Inputs are left out. The spread is the larger of the two; where neither has one, any change is infinitely
    many of them.
    """
    after = {(row.table, row.row, row.design): row for row in outcome.rows}
    for row in base:
        if row.kind == INPUT:
            continue
        other = after[row.table, row.row, row.design]
        spread = max(row.spread[1] - row.spread[0], other.spread[1] - other.spread[0])
        shift = abs(other.emulated - row.emulated)
        if shift > FACTOR * spread and shift > 0:
            yield row, other, shift / spread if spread else float("inf")


def outcome_report(base: Sequence[Row], outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return outcomes for programs: per variation what it sets and which rows moved."""
    return [
        {
            "name": outcome.variation.name,
            "what": outcome.variation.what,
            "set": {name: list(texts) for name, texts in outcome.variation.overrides().items()},
            "unfinished": outcome.unfinished,
            "moved": [
                {
                    "table": row.table,
                    "row": row.row,
                    "design": row.design,
                    "base": row.emulated,
                    "emulated": other.emulated,
                    "spreads": None if spreads == float("inf") else spreads,
                }
                for row, other, spreads in moved(base, outcome)
            ],
            "rows": [
                {"table": row.table, "row": row.row, "design": row.design, "emulated": row.emulated}
                for row in outcome.rows
            ],
        }
        for outcome in outcomes
    ]
