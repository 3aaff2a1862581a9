"""Rows of the source beside the emulator's: median over seeds, spread, ratio, and what kind of row it is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from typing import Final

from msgspec import Struct

from vpmu.errors import UserError
from vpmu.paper.experiment import SCENARIOS, Experiments
from vpmu.paper.figures import figure
from vpmu.paper.source import COLUMNS, Source, SourceRow, SourceTable
from vpmu.profile import load_profile

PREDICTION: Final = "prediction"
CALIBRATION: Final = "calibration"
INPUT: Final = "input"
CHECKED: Final = "checked"
DERIVED: Final = "derived"
ZERO: Final = "no ratio"


class Row(Struct, kw_only=True):
    """One figure of the source and the emulator's.

    `emulated` is the median over the seeds, `spread` the least and the greatest. `bound` is the least and the
    greatest ratio asked for. `kind` is ``prediction``; or, for what is none,

    - ``calibration``: `calibration` names the values chosen to meet this row,
    - ``input``: the cost profile starts from it,
    - ``checked``: the program's loop counts were chosen for it,
    - ``derived``: it follows from other rows,
    - ``no ratio``: the source has 0.
    """

    table: str
    row: str
    design: str
    source: float
    emulated: float
    spread: tuple[float, float]
    ratio: float | None
    kind: str
    calibration: list[str]
    bound: tuple[float, float] | None

    @property
    def within(self) -> bool | None:
        """Whether the ratio is within its bound; None without a bound."""
        if self.bound is None or self.ratio is None:
            return None
        return self.bound[0] <= self.ratio <= self.bound[1]

    @property
    def log2(self) -> float | None:
        """Distance from the source as ``|log2 ratio|``; None without a ratio."""
        return abs(math.log2(self.ratio)) if self.ratio else None


def experiment_of(table: SourceTable) -> str:
    """Return which experiment a table is about."""
    return "record" if table.number == "precision" else "stat"


def make_rows(source: Source, experiments: Experiments) -> list[Row]:
    """Return all rows, in the source's order.

    Raises
    ------
    UserError
        If a calibrated value names no row of the source, or two name the same.
    """
    calibrated = calibrations(source, experiments)
    rows = []
    for table in source.tables:
        named = frozenset(row.origin.partition(":")[2] for row in table.rows)
        for row in table.rows:
            for column in COLUMNS:
                value = getattr(row, column)
                if value is not None:
                    values = _values(row, column, experiments, experiment_of(table), named)
                    keys = calibrated.get((table.number, row.row, column), [])
                    rows.append(_row(table.number, row, column, value, values, keys))
    return rows


def _values(
    row: SourceRow, column: str, experiments: Experiments, name: str, named: frozenset[str]
) -> list[float]:
    """Return a row's figure of every seed."""
    if row.origin == "cost:rdpmc":
        costs = load_profile(experiments.scenarios[name].hosts[0].profile).costs
        parts = ("rdpmc_intercept", "perf_event_read", "hw_rdpmc")
        return [float(sum(costs[part].centre_ns for part in parts))]
    runs = experiments.results[name]
    found = []
    for index in range(len(experiments.seeds)):
        by_design = {design: results[index] for design, results in runs.items()}
        found.append(float(figure(row.origin, column, by_design, named)))
    return found


def _row(table: str, row: SourceRow, column: str, source: float, values: list[float], keys: list[str]) -> Row:
    emulated = statistics.median(values)
    return Row(
        table=table,
        row=row.row,
        design=column,
        source=source,
        emulated=emulated,
        spread=(min(values), max(values)),
        ratio=emulated / source if source else None,
        kind=_kind(row, column, source, keys),
        calibration=keys,
        bound=_bound(row, column, source),
    )


def _bound(row: SourceRow, column: str, source: float) -> tuple[float, float] | None:
    if column in row.checked and row.within:
        return (source - row.within) / source, (source + row.within) / source
    bound: tuple[float, float] | None = getattr(row.bound, column)
    return bound


def _kind(row: SourceRow, column: str, source: float, keys: list[str]) -> str:
    if not source:
        return ZERO
    if row.input:
        return INPUT
    if row.derived:
        return DERIVED
    if keys:
        return CALIBRATION
    return CHECKED if column in row.checked else PREDICTION


def calibrations(source: Source, experiments: Experiments) -> dict[tuple[str, str, str], list[str]]:
    """Return which values were chosen to meet which row: (table, row, column) to key paths.

    A value of both experiments' profile counts once.
    """
    known = {
        (table.number, row.row, column)
        for table in source.tables
        for row in table.rows
        for column in COLUMNS
        if getattr(row, column) is not None
    }
    found: dict[tuple[str, str, str], list[str]] = {}
    for key, text in _declared(experiments):
        place = _parse(text)
        if place not in known:
            raise UserError("names no row of the source", key=f'calibration of "{key}"', found=text)
        if key not in found.setdefault(place, []):
            found[place].append(key)
    for place, keys in found.items():
        if len(keys) > 1:
            problem = f"two values are calibrated on {', '.join(place)}: {', '.join(keys)}"
            raise UserError(problem, file="calibration")
    return found


def declared(experiments: Experiments, name: str) -> Mapping[str, str]:
    """Return the values that one experiment's scenario and profile declare as calibrated, with their rows."""
    scenario = experiments.scenarios[name]
    profile = load_profile(scenario.hosts[0].profile)
    return {**profile.calibrated, **{f"{name}: {key}": row for key, row in scenario.calibration.items()}}


def _declared(experiments: Experiments) -> Iterator[tuple[str, str]]:
    for name in SCENARIOS:
        yield from declared(experiments, name).items()


def _parse(text: str) -> tuple[str, str, str]:
    """Split ``table 2, rdpmcl, optimized`` into table, row and column."""
    table, _, rest = text.partition(", ")
    row, _, column = rest.rpartition(", ")
    return table.removeprefix("table "), row, column


def mean_abs_log2(rows: list[Row], *, bounded: bool) -> tuple[float, int]:
    """Return the mean of |log2 ratio| over the predicted rows (those with a bound only), and their number."""
    distances = [
        row.log2
        for row in rows
        if row.kind == PREDICTION and row.log2 is not None and (row.bound is not None or not bounded)
    ]
    return (statistics.fmean(distances) if distances else 0.0), len(distances)
