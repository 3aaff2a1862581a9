"""``vpmu truth DIR``: what a run's guests measured, against what really happened."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from vpmu.precision import Precision, precision_of
from vpmu.results import DesignResult, SampledEventRow, ThreadRow, read_results
from vpmu.retired import read_truth
from vpmu.units import format_count, format_ns

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_CAUSES: Final = ("stalled", "throttled", "merged", "masked", "waiting")
_MOST: Final = 20
"""Profiles that are shown function by function: those furthest from the truth."""


def slowdown(row: ThreadRow) -> float:
    """Return how much longer a thread took than its work takes when nobody measures; 0 if as long."""
    return row.run_ns / row.unmeasured_ns - 1 if row.unmeasured_ns else 0.0


def truth_of(result: DesignResult, retired: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what ``--json`` prints of a design: threads, counters and profiles against the truth.

    `retired` is what every thread and function retired (`vpmu.retired.read_truth`).
    """
    return {
        "threads": [
            {
                "vm": row.vm,
                "thread": row.thread,
                "finished": row.finished,
                "run_ns": row.run_ns,
                "unmeasured_ns": row.unmeasured_ns,
                "slowdown": slowdown(row),
            }
            for row in result.threads
            if row.kind == "program"
        ],
        "counters": [
            {
                "vm": row.vm,
                "session": row.session,
                "event": row.event,
                "count": row.count,
                "truth": row.truth,
                "difference": row.count - row.truth,
            }
            for row in result.counters
        ],
        "profiles": [
            {
                **msgspec.to_builtins(precision_of(row)),
                "lost": row.lost,
                "throttled": row.throttled,
                "events": [_event(each) for each in row.events],
            }
            for row in result.profiles
        ],
        "retired": retired,
    }


def _event(row: SampledEventRow) -> dict[str, Any]:
    """Return an event's account, with the samples lost by cause and the mean skid."""
    return {
        **msgspec.to_builtins(row),
        "skid_mean": row.skid / row.samples if row.samples else 0.0,
        "lost_samples": row.lost_samples(),
    }


def truth_command(directory: Path, *, as_json: bool) -> None:
    """Print the truth of every design in a directory of results.

    Raises
    ------
    UserError
        If the directory holds no results.
    """
    run = read_results(directory)
    if as_json:
        found = {name: truth_of(result, read_truth(directory / name)) for name, result in run.designs.items()}
        sys.stdout.write(json.dumps({"version": 1, "designs": found}, indent=1) + "\n")
        return
    from vpmu.console import output_console

    console = output_console()
    for result in run.designs.values():
        _print(result, read_truth(directory / result.design), console)


def _print(result: DesignResult, retired: list[dict[str, Any]], console: Console) -> None:
    from vpmu.tables import counter_table, precision_table

    tables = (_threads(result), counter_table(result), precision_table(result), _lost(result), _skid(result))
    for table in (*tables, _retired(result.design, retired)):
        if table.row_count:
            console.print(table)
            console.print()
    worst = sorted(map(precision_of, result.profiles), key=lambda row: (-row.distance, row.vm, row.session))
    for row in worst[:_MOST]:
        console.print(_functions(result.design, row))
        console.print()


def _threads(result: DesignResult) -> Table:
    from vpmu.tables import plain_table

    figures = ("run time", "unmeasured", "slowdown", "switches")
    table = plain_table(f"{result.design}: what measuring cost", ("thread",), figures)
    for row in sorted(result.threads, key=slowdown, reverse=True)[:_MOST]:
        if row.kind == "program":
            times = format_ns(row.run_ns), format_ns(row.unmeasured_ns)
            table.add_row(
                f"{row.vm}/{row.thread}", *times, f"{slowdown(row):.2%}", format_count(row.switches)
            )
    return table


def _lost(result: DesignResult) -> Table:
    """Return what became of the events that each sampled event had to see, those with most lost first."""
    from vpmu.tables import plain_table

    figures = ("samples", "due", "sampled", *_CAUSES, "rest")
    table = plain_table(f"{result.design}: samples, and events lost by cause", ("event",), figures)
    rows = [(profile, row) for profile in result.profiles for row in profile.events]
    rows.sort(key=lambda each: each[1].sampled - each[1].due)
    for profile, row in rows[:_MOST]:
        counts = (getattr(row, name) for name in figures)
        table.add_row(f"{profile.vm}/{profile.session} {row.event}", *map(format_count, counts))
    return table


def _skid(result: DesignResult) -> Table:
    """Return how many samples each cause has cost, and how late samples were taken."""
    from vpmu.tables import plain_table

    figures = (*_CAUSES, "mean skid", "most")
    table = plain_table(f"{result.design}: samples lost by cause, and skid in events", ("event",), figures)
    rows = [(profile, row) for profile in result.profiles for row in profile.events if row.samples]
    rows.sort(key=lambda each: -sum(each[1].lost_samples().values()))
    for profile, row in rows[:_MOST]:
        lost = (f"{row.lost_samples()[cause]:,.1f}" for cause in _CAUSES)
        skid = f"{row.skid / row.samples:,.1f}", format_count(row.skid_max)
        table.add_row(f"{profile.vm}/{profile.session} {row.event}", *lost, *skid)
    return table


def _retired(design: str, rows: list[dict[str, Any]]) -> Table:
    """Return what threads and their functions retired, the longest first, with the commonest events."""
    from rich.markup import escape

    from vpmu.tables import plain_table

    figures = ("time", "cycles", "instructions", "branches", "cache_misses", "dtlb_load_misses")
    table = plain_table(f"{design}: what really retired", ("thread", "function"), figures)
    for row in sorted(rows, key=lambda row: -int(row["time_ns"]))[:_MOST]:
        counts = (format_count(row[name]) for name in figures[1:])
        name = escape(f"{row['vm']}/{row['thread']}"), escape(row["function"])
        table.add_row(*name, format_ns(row["time_ns"]), *counts)
    return table


def _functions(design: str, row: Precision) -> Table:
    from vpmu.tables import plain_table

    table = plain_table(
        f"{design}: {row.vm}/{row.session}, distance {row.distance:.2%}, by chance {row.chance:.2%}",
        ("function",),
        ("samples", "share", "truth", "bias", "+- (1 sigma)", "sigmas"),
    )
    for each in row.functions[:_MOST]:
        table.add_row(
            each.name,
            format_count(each.samples),
            f"{each.share:.2%}",
            f"{each.truth:.2%}",
            f"{each.bias:+.2%}",
            f"{each.error:.2%}",
            f"{each.bias / each.error:+.1f}" if each.error else "-",
        )
    return table
