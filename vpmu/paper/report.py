"""The paper's tables for people, and as JSON for programs."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table
from rich.text import Text

from vpmu.paper.experiment import SCENARIOS, Experiments
from vpmu.paper.figures import action, basic_costs, program_thread
from vpmu.paper.rows import CALIBRATION, PREDICTION, Row, declared, experiment_of, mean_abs_log2
from vpmu.paper.source import Source, SourceTable
from vpmu.paper.variations import Outcome, moved
from vpmu.profile import load_profile
from vpmu.tables import plain_table
from vpmu.units import format_count, format_ns

if TYPE_CHECKING:
    from rich.console import Console

_CAUSES: Final = 5
"""Causes that a line about legacy's time names; the rest is added up."""


def report(source: Source, rows: list[Row], experiments: Experiments) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    return {
        "version": 1,
        "seeds": list(experiments.seeds),
        "rows": [
            {
                "table": row.table,
                "row": row.row,
                "design": row.design,
                "source": row.source,
                "emulated": row.emulated,
                "spread": list(row.spread),
                "ratio": row.ratio,
                "kind": row.kind,
                "calibration": row.calibration[0] if row.calibration else None,
                "bound": None if row.bound is None else list(row.bound),
                "within": row.within,
            }
            for row in rows
        ],
        "calibrations": {name: dict(declared(experiments, name)) for name in SCENARIOS},
        "accounts": {
            table.number: account(experiments, experiment_of(table), "legacy") for table in source.tables
        },
        "mean_abs_log2": mean_abs_log2(rows, bounded=False)[0],
        "mean_abs_log2_bounded": mean_abs_log2(rows, bounded=True)[0],
    }


def print_report(source: Source, rows: list[Row], experiments: Experiments, console: Console) -> None:
    """Print every table with its reasons, the calibrations, and the two means at the end."""
    texts = _texts(experiments)
    for table in source.tables:
        console.print(_table(table, [row for row in rows if row.table == table.number]))
        for line in (table.note, *(row.note for row in table.rows)):
            if line:
                console.print(Text(line.format(**texts)), soft_wrap=True)
        console.print(Text(why(experiments, experiment_of(table))), soft_wrap=True)
        console.print()
    for line in calibration_lines(experiments):
        console.print(Text(line), soft_wrap=True)
    console.print()
    for bounded, what in ((False, "all predicted rows"), (True, "those with a bound")):
        mean, count = mean_abs_log2(rows, bounded=bounded)
        console.print(Text(f"mean |log2 ratio| over {what} ({count}): {mean:.3f}"))
    outside = [f"{row.table} {row.row} {row.design}" for row in rows if row.within is False]
    console.print(Text(f"out of bounds: {', '.join(outside) or 'none'}"))


def _table(table: SourceTable, rows: list[Row]) -> Table:
    name = "Precision" if table.number == "precision" else f"Table {table.number}"
    figures = ("source", "emulated", "least", "greatest", "ratio", "bound")
    drawn = plain_table(f"{name}: {table.title}", ("row", "design"), figures)
    drawn.add_column("")
    for row in rows:
        show = _format(table.unit, row)
        drawn.add_row(
            row.row,
            "" if row.design == "ratio" else row.design,
            *(show(value) for value in (row.source, row.emulated, *row.spread)),
            "-" if row.ratio is None else f"{row.ratio:.2f}",
            "" if row.bound is None else f"{row.bound[0]:.2f}-{row.bound[1]:.2f}",
            _remark(row),
        )
    return drawn


def _remark(row: Row) -> str:
    if row.kind == CALIBRATION:
        return f"calibration: {row.calibration[0]}"
    outside = " OUT OF BOUND" if row.within is False else ""
    return ("" if row.kind == PREDICTION else row.kind) + outside


def _format(unit: str, row: Row) -> Any:
    if unit == "ns":
        return format_ns
    if row.design == "ratio":
        return lambda value: f"{value:.1f}"
    if unit == "calls" or row.row == "samples":
        return lambda value: format_count(round(value))
    return lambda value: f"{value:.2%}"


def account(experiments: Experiments, name: str, design: str) -> dict[str, int]:
    """Return where the time of an experiment went, ns over all seeds; the parts add up to ``total``.

    The guest's time is split into the measured program's own and the rest: its kernel, PMI handlers and the
    other threads.
    """
    parts: dict[str, int] = {}
    total = 0
    for result in experiments.of(name, design):
        own = program_thread(result).unmeasured_ns
        for cause, ns in result.accounting.items():
            if cause == "idle":
                continue
            total += ns
            if cause == "guest":
                parts["ftest itself"] = parts.get("ftest itself", 0) + own
                parts["guest kernel and other threads"] = (
                    parts.get("guest kernel and other threads", 0) + ns - own
                )
            else:
                parts[cause] = parts.get(cause, 0) + ns
    if sum(parts.values()) != total:
        raise AssertionError("the account does not add up")
    return {"total": total, **dict(sorted(parts.items(), key=lambda item: (-item[1], item[0])))}


def why(experiments: Experiments, name: str) -> str:
    """Say in a line where legacy's time went, out of the runs' own account."""
    parts = account(experiments, name, "legacy")
    total = parts.pop("total")
    runs = len(experiments.seeds)
    named = [f"{cause} {ns / total:.2%}" for cause, ns in list(parts.items())[:_CAUSES]]
    rest = sum(list(parts.values())[_CAUSES:])
    legacy, native = (experiments.of(name, design) for design in ("legacy", "native"))
    switches, usual = (
        statistics.median(program_thread(result).switches for result in results)
        for results in (legacy, native)
    )
    waits = sum(result.host.get("mutex wait ns", 0) for result in legacy)
    return (
        f"Why: a legacy run takes {format_ns(total // runs)} of CPU time: {', '.join(named)}, the rest "
        f"{rest / total:.2%}; mutex wait {format_ns(waits // runs)}. Slices cut short: ftest comes on "
        f"{format_count(round(switches))} times, natively {format_count(round(usual))}."
    )


def calibration_lines(experiments: Experiments) -> Iterator[str]:
    """Yield the declared list: per experiment which values were chosen to meet which row."""
    for name in SCENARIOS:
        listed = "; ".join(f"{key} on {row}" for key, row in declared(experiments, name).items())
        yield f"Calibrated for {name} ({len(declared(experiments, name))}): {listed}."


def _texts(experiments: Experiments) -> dict[str, str]:
    """Return the emulated figures that notes mention."""
    legacy, optimized = (experiments.of("stat", design) for design in ("legacy", "optimized"))

    def mean(name: str) -> float:
        return statistics.fmean(basic_costs(result)[name] for result in legacy)

    def median_calls(name: str) -> int:
        return round(statistics.median(action(result, name).calls for result in legacy))

    costs = load_profile(experiments.scenarios["stat"].hosts[0].profile).costs
    access = sum(costs[part].centre_ns for part in ("exit", "msr_intercept", "entry"))
    calls = statistics.median(action(result, "rd/wr fixed_ctrl").calls for result in optimized)
    return {
        "access": format_ns(access),
        "calls": format_count(round(calls)),
        "first create": format_ns(round(mean("first create"))),
        "last release": format_ns(round(mean("last release"))),
        "handler": format_ns(round(mean("first create") + mean("last release"))),
        "enables": format_count(median_calls("enable global_ctrl")),
        "fixed": format_count(median_calls("rd/wr fixed_ctrl")),
    }


_SHOWN: Final = (
    ("2", "enable global_ctrl", "legacy"),
    ("2", "x86_pmu.handle_irq", "legacy"),
    ("2", "x86_pmu.handle_irq", "optimized"),
    ("4", "enable global_ctrl", "legacy"),
    ("4", "enable global_ctrl", "optimized"),
    ("4", "rd/wr fixed_ctrl", "legacy"),
    ("4", "rd/wr eventsel", "legacy"),
    ("4", "x86_pmu.handle_irq", "legacy"),
    ("5", "sched_in", "legacy"),
    ("5", "sched_out", "legacy"),
    ("precision", "samples", "legacy"),
    ("precision", "samples", "optimized"),
)
"""Rows that tables of variations show: the others are in ``--json``."""


def print_variations(
    source: Source, base: list[Row], outcomes: list[Outcome], console: Console, *, ablations: bool
) -> None:
    """Print what every experiment does to the telling rows, or which rows every ablation moves."""
    units = {table.number: table.unit for table in source.tables}
    for outcome in outcomes:
        after = {(row.table, row.row, row.design): row for row in outcome.rows}
        changes = "; ".join(
            f"{name}: {', '.join(texts)}" for name, texts in outcome.variation.overrides().items() if texts
        )
        table = plain_table(
            f"{outcome.variation.name}: {outcome.variation.what}",
            ("table", "row", "design"),
            ("source", "unchanged", "changed", "shift"),
        )
        chosen = moved(base, outcome) if ablations else _telling(base, outcome)
        for row, other, spreads in chosen:
            show = _format(units[row.table], row)
            shift = "all" if spreads == float("inf") else f"{spreads:.1f} spreads"
            figures = (
                show(row.source),
                show(row.emulated),
                show(after[row.table, row.row, row.design].emulated),
            )
            table.add_row(row.table, other.row, row.design, *figures, shift)
        console.print(table)
        late = f" Runs not finished by until: {outcome.unfinished}." if outcome.unfinished else ""
        console.print(Text(f"Set: {changes}.{late}"), soft_wrap=True)
        console.print()


def _telling(base: list[Row], outcome: Outcome) -> Iterator[tuple[Row, Row, float]]:
    after = {(row.table, row.row, row.design): row for row in outcome.rows}
    for row in base:
        if (row.table, row.row, row.design) in _SHOWN:
            other = after[row.table, row.row, row.design]
            spread = max(row.spread[1] - row.spread[0], other.spread[1] - other.spread[0])
            shift = abs(other.emulated - row.emulated)
            yield row, other, shift / spread if spread else (float("inf") if shift else 0.0)
