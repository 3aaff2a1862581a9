"""``vpmu paper``: run, set beside the source, print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vpmu import sigint
from vpmu.errors import UserError
from vpmu.paper.experiment import EXAMPLES, Experiments, run_experiments

if TYPE_CHECKING:
    from vpmu.paper.rows import Row
    from vpmu.paper.source import Source


def paper_command(
    *,
    seeds: int,
    overrides: list[str],
    as_json: bool,
    folder: Path | None,
    progress: bool,
    ablations: bool = False,
    experiments: bool = False,
) -> None:
    """Run both experiments over seeds 1 to `seeds` and print the tables, or JSON.

    With `ablations` or `experiments` print instead what each variation does to the rows.

    Raises
    ------
    UserError
        For a mistake in the choices or the scenarios.
    """
    if seeds < 1:
        raise UserError(f"must be at least 1, found {seeds}", file="--seeds")
    if ablations and experiments:
        raise UserError("either --ablations or --experiments, not both", file="--ablations")
    if overrides and (ablations or experiments):
        raise UserError(
            "goes with neither --ablations nor --experiments: they are changes themselves", file="--set"
        )
    from vpmu.paper.rows import make_rows
    from vpmu.paper.source import load_source

    source = load_source()
    base = sigint.run(_run, seeds, overrides, folder or EXAMPLES, progress)
    rows = make_rows(source, base)
    if ablations or experiments:
        _vary(
            source, rows, seeds, folder or EXAMPLES, ablations=ablations, as_json=as_json, progress=progress
        )
    else:
        _print(source, rows, base, as_json=as_json)


def _print(source: Source, rows: list[Row], experiments: Experiments, *, as_json: bool) -> None:
    from vpmu.paper.report import print_report, report

    if as_json:
        sys.stdout.write(json.dumps(report(source, rows, experiments), indent=1) + "\n")
        return
    from vpmu.console import output_console

    print_report(source, rows, experiments, output_console())


def _vary(
    source: Source,
    rows: list[Row],
    seeds: int,
    folder: Path,
    *,
    ablations: bool,
    as_json: bool,
    progress: bool,
) -> None:
    from vpmu.paper.report import print_variations
    from vpmu.paper.variations import load_variations, outcome_report, vary

    def step(name: str) -> None:
        if progress:
            print(name, file=sys.stderr)

    listed = load_variations()
    chosen = listed.ablations if ablations else listed.experiments
    outcomes = sigint.run(lambda: vary(source, chosen, range(1, seeds + 1), folder=folder, step=step))
    if as_json:
        sys.stdout.write(json.dumps(outcome_report(rows, outcomes), indent=1) + "\n")
        return
    from vpmu.console import output_console

    print_variations(source, rows, outcomes, output_console(), ablations=ablations)


async def _run(seeds: int, overrides: list[str], folder: Path, progress: bool) -> Experiments:
    def step(done: int, total: int) -> None:
        if progress:
            print(f"\rrun {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return await run_experiments(range(1, seeds + 1), overrides, folder=folder, step=step)
