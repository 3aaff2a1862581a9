"""``vpmu guest``: boot an image as the guest of an emulated host, and say what came of it."""

from __future__ import annotations

import hashlib
import json
import sys
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vpmu.errors import UserError
from vpmu.machine import require_extra
from vpmu.scenario import Scenario, parse_scenario
from vpmu.units import format_count, format_duration

NAME = "guest"
EXIT_LIMIT = 124
EXIT_FAILED = 125


@dataclass(frozen=True, slots=True)
class GuestCommand:
    """What the command line asks for.

    Parameters
    ----------
    image
        The image's file.
    design, profile, kvm
        Of the host that it runs on; None: the scenario's, or the defaults.
    pmu_version, hide_events
        What the guest is told of its PMU.
    scenario
        File of a scenario whose host and load the guest shares; empty: a host of its own.
    limit
        Virtual time at which the guest is stopped.
    seed
        Of the run; None: the scenario's, or 0.
    memory
        MiB of RAM.
    forced_emulation
        Whether the forced-emulation prefix is there.
    arguments
        The guest's command line.
    as_json
        Print JSON to standard output at the end instead of a summary to standard error.
    """

    image: str
    design: str
    profile: str | None
    kvm: str | None
    pmu_version: int
    hide_events: tuple[str, ...]
    scenario: str | None
    limit: str
    seed: int | None
    memory: int
    forced_emulation: bool
    arguments: tuple[str, ...]
    as_json: bool


@dataclass(frozen=True, slots=True)
class GuestSummary:
    """What came of a guest.

    Note: `late_most` and `late_mean` are events of the counter that overflowed, until the stretch ended.
    """

    image: str
    design: str
    exit_value: int | None
    end: str
    virtual_ns: int
    instructions: int
    branches: int
    cycles: int
    accesses: int
    emulated: int
    pmis: int
    overflows: int
    late_most: int
    late_mean: float
    console_sha256: str
    digest: str


def guest_command(command: GuestCommand) -> int:
    """Run the guest; its console goes to standard output. Return the exit status.

    That is the value that the guest wrote to the debug-exit port, modulo 256; `EXIT_LIMIT` if it was stopped
    at its limit or halted for good, `EXIT_FAILED` after a triple fault or what the machine cannot do.
    """
    require_extra()
    from vpmu.build import build, load_programs
    from vpmu.collect import collect
    from vpmu.execution import register_designs
    from vpmu.machine.processor import check_memory
    from vpmu.machine.session import GuestOptions, MachineGuests

    memory = check_memory(command.memory)
    scenario = guest_scenario(command)
    (design,) = register_designs((command.design,))
    rows = build(scenario, design, load_programs(scenario))
    guests = MachineGuests(
        scenario,
        rows,
        GuestOptions(memory, command.arguments, command.forced_emulation),
        lambda number, data: _write(data, to_stderr=command.as_json),
    )
    guests.run()
    guest = guests.guests[-1]
    result = collect(rows, guests.samples)
    end, status = _ending(guest, command)
    summary = _summary(command, guest, end, result.digest)
    _print(summary, command)
    return status


def guest_scenario(command: GuestCommand) -> Scenario:
    """Return the scenario to run: the file's with the guest added, or one host with nothing but the guest."""
    raw: dict[str, Any] = {
        "version": 1,
        "title": f"guest {Path(command.image).name}",
        "host": [{"name": "host"}],
    }
    directory, file = Path(), "vpmu guest"
    if command.scenario is not None:
        directory, file = Path(command.scenario).parent, command.scenario
        raw = _read(Path(command.scenario))
    hosts = raw.get("host")
    host = hosts[0] if isinstance(hosts, list) and hosts and isinstance(hosts[0], dict) else {}
    for key, value in (("profile", command.profile), ("kvm", command.kvm)):
        if value is not None:
            host[key] = value
    vm: dict[str, Any] = {"name": NAME, "image": str(Path(command.image).absolute()), "cpus": [0]}
    if command.scenario is not None:
        vm["host"] = host.get("name", "")
    vm["pmu_version"], vm["hide_events"] = command.pmu_version, list(command.hide_events)
    raw.setdefault("vm", []).append(vm)
    raw["until"] = command.limit
    if command.seed is not None:
        raw["seed"] = command.seed
    if not Path(command.image).is_file():
        raise UserError("cannot read the image: no such file", file=command.image)
    return parse_scenario(raw, file=file, directory=directory)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read the scenario: {error.strerror}", file=str(path)) from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"not a TOML file: {error}", file=str(path)) from error


def _write(data: bytes, *, to_stderr: bool) -> None:
    stream = sys.stderr if to_stderr else sys.stdout
    stream.buffer.write(data.replace(b"\r", b""))
    if b"\n" in data:
        stream.flush()


def _ending(guest: Any, command: GuestCommand) -> tuple[str, int]:
    machine = guest.machine
    if machine.exit_value is not None:
        return f"exit {machine.exit_value}", machine.exit_value & 0xFF
    if machine.failure is not None:
        return machine.failure, EXIT_FAILED
    if guest.halted:
        return "halted for good: nothing is left to wake it", EXIT_LIMIT
    rip = machine.processor.read("rip")
    return (
        f"still running at RIP {rip:#x} when its limit of {command.limit} was reached (--limit)",
        EXIT_LIMIT,
    )


def _summary(command: GuestCommand, guest: Any, end: str, digest: str) -> GuestSummary:
    machine = guest.machine
    statistics, console = machine.statistics, bytes(guest.console)
    total = {kind: statistics.total(kind) for kind in (0, 1, 2)}
    late = statistics.lateness
    return GuestSummary(
        image=command.image,
        design=command.design,
        exit_value=machine.exit_value,
        end=end,
        virtual_ns=machine.clock.now_ns,
        instructions=total[1],
        branches=total[2],
        cycles=total[0],
        accesses=statistics.accesses - statistics.emulated,
        emulated=statistics.emulated,
        pmis=statistics.pmis,
        overflows=late.overflows,
        late_most=late.most,
        late_mean=round(late.events / late.overflows, 3) if late.overflows else 0.0,
        console_sha256=hashlib.sha256(console).hexdigest(),
        digest=hashlib.sha256(digest.encode() + console).hexdigest(),
    )


def _print(summary: GuestSummary, command: GuestCommand) -> None:
    sys.stdout.flush()
    if command.as_json:
        print(json.dumps(asdict(summary), indent=2))
        return
    late = f"noticed late by {summary.late_most} events at most, {summary.late_mean} on average"
    lines = (
        f"{NAME}: {summary.end}",
        f"  design        {summary.design}",
        f"  virtual time  {format_duration(summary.virtual_ns)}",
        f"  instructions  {format_count(summary.instructions)}",
        f"  branches      {format_count(summary.branches)}",
        f"  cycles        {format_count(summary.cycles)}",
        f"  PMU accesses  {summary.accesses}, other emulated instructions {summary.emulated}",
        f"  PMIs          {summary.pmis}; {summary.overflows} overflows {late}",
        f"  digest        {summary.digest}",
    )
    print("\n".join(lines), file=sys.stderr)
