"""``vpmu truth DIR``: what a run's guests measured, against what really happened."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from vpmu.precision import Precision, precision_of
from vpmu.results import DesignResult, ThreadRow, read_results
from vpmu.units import format_count, format_ns

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_MOST: Final = 20
"""Profiles that are shown function by function: those furthest from the truth."""


def slowdown(row: ThreadRow) -> float:
    """Return how much longer a thread took than its work takes when nobody measures; 0 if as long."""
    return row.run_ns / row.unmeasured_ns - 1 if row.unmeasured_ns else 0.0


def truth_of(result: DesignResult) -> dict[str, Any]:
    """Return what ``--json`` prints of a design: threads, counters and profiles against the truth."""
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
            }
            for row in result.profiles
        ],
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
        found = {name: truth_of(result) for name, result in run.designs.items()}
        sys.stdout.write(json.dumps({"version": 1, "designs": found}, indent=1) + "\n")
        return
    from vpmu.console import output_console

    console = output_console()
    for result in run.designs.values():
        _print(result, console)


def _print(result: DesignResult, console: Console) -> None:
    from vpmu.tables import counter_table, precision_table

    for table in (_threads(result), counter_table(result), precision_table(result)):
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
