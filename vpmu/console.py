"""Where tables and progress are printed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Final

from rich import box
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from vpmu.units import NS_PER_S

PLAIN_WIDTH: Final = 160


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


@contextmanager
def progress_bars(until_ns: int) -> Iterator[Callable[[str, int], None]]:
    """Show a bar per design on standard error, in virtual time up to `until_ns`; yield what moves them."""
    tasks: dict[str, tuple[TaskID, float]] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[at]}"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:

        def advance(design: str, at_ns: int) -> None:
            if design not in tasks:
                tasks[design] = bar.add_task(design, total=until_ns, at=""), monotonic()
            task, started = tasks[design]
            bar.update(task, completed=at_ns, at=_speed(at_ns, monotonic() - started))

        yield advance


def _speed(at_ns: int, wall_s: float) -> str:
    """Say how far virtual time has come, and how much of it passes in a second of the wall clock."""
    at_s = at_ns / NS_PER_S
    return f"{at_s:.2f} s" + (f", {at_s / wall_s:.2f} s/s" if wall_s > 0 else "")
