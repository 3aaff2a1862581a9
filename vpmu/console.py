"""Where tables and progress are printed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Final

from rich import box
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from vpmu.cluster.watch import Waits
from vpmu.units import NS_PER_S

PLAIN_WIDTH: Final = 160
MOST_WAITS_SHOWN: Final = 8


def output_console() -> Console:
    """Return a console for standard output, wide enough for tables in files and pipes."""
    # Note: rich takes 80 columns where it sees no terminal, which would fold the tables.
    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)


def print_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of texts."""
    table = Table(*header, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*map(Text, row))
    output_console().print(table)


class ProgressBars:
    """A bar per design; called with a design and its virtual time, ns, it moves that design's."""

    def __init__(self, bar: Bar, until_ns: int) -> None:
        self._bar = bar
        self._until_ns = until_ns
        self._tasks: dict[str, tuple[TaskID, float]] = {}

    def _task(self, design: str) -> tuple[TaskID, float]:
        if design not in self._tasks:
            task = self._bar.add_task(design, total=self._until_ns, at="", waits="")
            self._tasks[design] = task, monotonic()
        return self._tasks[design]

    def __call__(self, design: str, at_ns: int) -> None:
        """Show how far a design's virtual time has come, ns, and how fast it passes."""
        task, started = self._task(design)
        self._bar.update(task, completed=at_ns, at=_speed(at_ns, monotonic() - started))

    def show_waits(self, design: str, waits: Sequence[Waits]) -> None:
        """Show vCPUs and stops, and how much of its time each worker waited for the others."""
        self._bar.update(self._task(design)[0], waits=f"{work_text(waits)} {waits_text(waits)}".rstrip())


@contextmanager
def progress_bars(until_ns: int) -> Iterator[ProgressBars]:
    """Show a bar per design on standard error, in virtual time up to `until_ns`; yield what moves them."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[at]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[waits]}"),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        yield ProgressBars(bar, until_ns)


def work_text(waits: Sequence[Waits]) -> str:
    """Say how many vCPUs all workers have, and how often a second their kernels stop."""
    vcpus, stops = sum(each.vcpus for each in waits), sum(each.stops_per_s for each in waits)
    return f"{vcpus:,} vCPUs, {stops:,.0f} stops/s"


def waits_text(waits: Sequence[Waits]) -> str:
    """Say how much of its time each worker waited for its peers; of many, the least and the most."""
    shares = [round(100 * each.peers_share) for each in waits] if len(waits) > 1 else []
    if len(shares) <= MOST_WAITS_SHOWN:
        return "waits " + " ".join(f"{share} %" for share in shares) if shares else ""
    return f"{len(shares)} workers wait {min(shares)} to {max(shares)} %"


def _speed(at_ns: int, wall_s: float) -> str:
    """Say how far virtual time has come, and how much of it passes in a second of the wall clock."""
    at_s = at_ns / NS_PER_S
    return f"{at_s:.2f} s" + (f", {at_s / wall_s:.2f} s/s" if wall_s > 0 else "")
