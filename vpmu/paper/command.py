"""``vpmu paper``: run, set beside the source, print."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import trio

from vpmu.errors import UserError
from vpmu.paper.experiment import EXAMPLES, Experiments, run_experiments


def paper_command(
    *, seeds: int, overrides: list[str], as_json: bool, folder: Path | None, progress: bool
) -> None:
    """Run both experiments over seeds 1 to `seeds` and print the tables, or JSON.

    Raises
    ------
    UserError
        For a mistake in the choices or the scenarios.
    """
    if seeds < 1:
        raise UserError(f"must be at least 1, found {seeds}", file="--seeds")
    from vpmu.paper.report import print_report, report
    from vpmu.paper.rows import make_rows
    from vpmu.paper.source import load_source

    experiments = _run(seeds, overrides, folder or EXAMPLES, progress)
    source = load_source()
    rows = make_rows(source, experiments)
    if as_json:
        sys.stdout.write(json.dumps(report(source, rows, experiments), indent=1) + "\n")
        return
    from vpmu.console import output_console

    print_report(source, rows, experiments, output_console())


def _run(seeds: int, overrides: list[str], folder: Path, progress: bool) -> Experiments:
    def step(done: int, total: int) -> None:
        if progress:
            print(f"\rrun {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    async def main() -> Experiments:
        return await run_experiments(range(1, seeds + 1), overrides, folder=folder, step=step)

    return trio.run(main)
