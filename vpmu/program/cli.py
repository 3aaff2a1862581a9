"""What ``vpmu program`` prints: a profile's import, and a program's functions."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from vpmu.errors import UserError
from vpmu.program.importer import import_callgrind
from vpmu.program.model import Program
from vpmu.program.storage import load_program, save_program
from vpmu.units import format_count

_SHOWN = (
    "instructions",
    "branches",
    "branch_misses",
    "l1_dcache_load_misses",
    "cache_misses",
    "dtlb_load_misses",
)


def import_command(path: Path, output: Path | None = None) -> str:
    """Import a Callgrind profile, write the program, and say in one line what is in it.

    Parameters
    ----------
    path
        The profile.
    output
        The program file; ``NAME.program.json`` in the working directory by default.

    Raises
    ------
    UserError
        The profile cannot be used, or the file cannot be written; nothing is written then.
    """
    program = import_callgrind(path)
    output = output or Path(f"{program.name}.program.json")
    try:
        save_program(program, output)
    except OSError as error:
        raise UserError(f"cannot write: {error.strerror or error}", file=str(output)) from None
    return f"{output}: {summary(program)}"


def summary(program: Program) -> str:
    """Say in one line what a program is."""
    totals = program.totals()
    shape = ", ".join(f"{phase.name} {phase.iterations} x {len(phase.segments)}" for phase in program.phases)
    return (
        f"{len(program.functions)} functions, {format_count(totals['cycles'])} cycles, "
        f"{format_count(totals['instructions'])} instructions (iterations x segments: {shape})"
    )


def show_table(path: Path, most: int = 20) -> Table:
    """Return a table of a program's functions: share of cycles, IPC, and events per thousand instructions.

    Parameters
    ----------
    path
        A program file or a Callgrind profile.
    most
        Functions to show, those with the most cycles first.
    """
    program = load_program(path)
    table = Table(title=f"{program.name}: {summary(program)}", caption=program.source)
    table.add_column("function")
    for heading in ("cycles", "IPC", *_SHOWN[1:]):
        table.add_column(heading if heading in ("cycles", "IPC") else f"{heading}/1000", justify="right")
    totals = program.function_totals()
    order = sorted(range(len(totals)), key=lambda function: -totals[function]["cycles"])
    for function in order[:most]:
        table.add_row(*_row(program.functions[function].name, totals[function], program.cycles))
    if len(order) > most:
        rest = [totals[function] for function in order[most:]]
        together = {name: sum(own[name] for own in rest) for name in rest[0]}
        table.add_row(*_row(f"{len(rest)} more", together, program.cycles))
    return table


def show_command(path: Path) -> str:
    """Return `show_table` as text for a terminal of any width."""
    from rich.console import Console

    console = Console(width=160, color_system=None)
    with console.capture() as capture:
        console.print(show_table(path))
    return capture.get()


def _row(name: str, own: dict[str, int], cycles: int) -> list[str]:
    instructions = max(1, own["instructions"])
    share = f"{100 * own['cycles'] / cycles:.2f} %"
    ipc = f"{own['instructions'] / max(1, own['cycles']):.2f}"
    return [name, share, ipc, *(f"{1000 * own[event] / instructions:.2f}" for event in _SHOWN[1:])]
