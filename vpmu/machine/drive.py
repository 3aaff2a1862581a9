"""Machine guests in `vpmu run`: each VM of a scenario that has an image, beside the others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from vpmu.kernels import columns as col
from vpmu.machine.session import Driven, GuestOptions, MachineGuests
from vpmu.results import MachineRow

if TYPE_CHECKING:
    from pathlib import Path

    from vpmu.actors.machine import Machine
    from vpmu.kernels.jit import Arena
    from vpmu.scenario import Scenario

_INSTRUCTIONS, _BRANCHES = 1, 2


async def drive_machines(
    scenario: Scenario, machine: Machine, on_records: Callable[[Arena], None], consoles: Path | None
) -> list[MachineRow]:
    """Advance a machine some of whose guests execute images to its end.

    Parameters
    ----------
    scenario : Scenario
    machine : Machine
        What `vpmu.build.build` made of it.
    on_records : callable
        Takes the records of each stretch, ``uint64[n, 8]``.
    consoles : Path, optional
        Directory that each guest's console is written to, as ``NAME.console.txt``.
    """
    guests = MachineGuests(scenario, machine, GuestOptions())
    while not guests.outside.finished:
        on_records(guests.step())
        await trio.lowlevel.checkpoint()
    if consoles is not None:
        _write_consoles(consoles, guests.guests)
    return [_row(machine, guest) for guest in guests.guests]


def _write_consoles(directory: Path, guests: list[Driven]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for guest in guests:
        (directory / f"{guest.vcpu.vm}.console.txt").write_bytes(bytes(guest.console))


def _row(machine: Machine, guest: Driven) -> MachineRow:
    statistics = guest.machine.statistics
    entry = machine.vcpus[guest.vcpu.index]
    return MachineRow(
        vm=guest.vcpu.vm,
        end=_end(guest),
        instructions=statistics.total(_INSTRUCTIONS),
        branches=statistics.total(_BRANCHES),
        pmis=int(machine.arena[entry.guest + int(col.G_PMIS)]),
        overflows=statistics.lateness.overflows,
        late_most=statistics.lateness.most,
        console_sha256=hashlib.sha256(bytes(guest.console)).hexdigest(),
    )


def _end(guest: Driven) -> str:
    if guest.machine.exit_value is not None:
        return f"exit {guest.machine.exit_value}"
    if guest.machine.failure is not None:
        return guest.machine.failure
    return "halts" if guest.halted else "still runs"
