"""``vpmu run`` and ``vpmu scenario check``: from the arguments to the tables and the files."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from vpmu import sigint
from vpmu.cluster.errors import GangError
from vpmu.cluster.placement import POLICIES, policy_fault
from vpmu.cluster.watch import Waits
from vpmu.cluster.where import HERE, Where
from vpmu.designs import find_design
from vpmu.errors import Interrupted, Stopped, UserError
from vpmu.options import DEFAULT_DESIGNS, Executor, RunOptions
from vpmu.records import parse_keep
from vpmu.results import RunResult, check_out_directory, summary_bytes, write_results
from vpmu.resume import RunNote, finish, read_note, write_note
from vpmu.scenario import Program, Scenario, load_scenario
from vpmu.units import NS_PER_S, format_duration

EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Output:
    """What a run prints."""

    quiet: bool = False
    as_json: bool = False
    progress: bool | None = None

    @property
    def shows_progress(self) -> bool:
        """Whether to draw the progress bar: as asked for, else on a terminal."""
        if self.progress is not None:
            return self.progress
        return not self.quiet and sys.stderr.isatty()


def run_command(
    file: str,
    *,
    overrides: list[str],
    designs: str | None,
    workers: int,
    place: str,
    messages: bool,
    out: Path | None,
    keep: str,
    perf_data: bool = False,
    checkpoint: float | None = None,
    where: Where = HERE,
    output: Output,
    execute: Executor | None = None,
) -> int:
    """Check everything, run, write and print; return the exit status.

    `execute` is `vpmu.execution.execute` unless given; the other arguments are the command line's.
    """
    if perf_data and out is None:
        raise UserError("needs --out DIR, where its files go", file="--perf-data")
    scenario = load_scenario(file, overrides)
    options = RunOptions(
        designs=choose_designs(scenario, designs, file),
        workers=workers,
        place=choose_place(scenario, place),
        messages=messages,
        out=None if out is None else check_out_directory(out),
        keep=parse_keep(keep),
        perf_data=perf_data,
        where=where,
        every_s=checkpoint,
    )
    if checkpoint is not None:
        write_note(_checkpoint_directory(options), _note(file, overrides, options, checkpoint))
    return carry_out(scenario, options, output, execute)


def resume_command(
    out: Path, *, workers: int | None, where: Where = HERE, output: Output, execute: Executor | None = None
) -> int:
    """Go on with a run that was stopped; return the exit status."""
    note = read_note(out)
    scenario = load_scenario(note.scenario, note.overrides)
    options = RunOptions(
        designs=tuple(note.designs),
        workers=workers or note.workers,
        place=choose_place(scenario, note.place),
        out=out,
        keep=frozenset(note.keep),
        perf_data=note.perf_data,
        where=where,
        every_s=note.every_s,
    )
    return carry_out(scenario, options, output, execute)


def _checkpoint_directory(options: RunOptions) -> Path:
    """Return where checkpoints go, if a run can have any."""
    if options.out is None:
        raise UserError("needs --out DIR, where they go", file="--checkpoint")
    if options.messages or options.place == "spread":
        problem = "a checkpoint needs whole hosts, or shares with their vCPUs"
        raise UserError(problem, file="--messages" if options.messages else "--place")
    return options.out


def _note(file: str, overrides: list[str], options: RunOptions, every_s: float) -> RunNote:
    designs = [str(Path(name).resolve()) if name.endswith(".py") else name for name in options.designs]
    return RunNote(
        scenario=str(Path(file).resolve()),
        overrides=overrides,
        designs=designs,
        keep=sorted(options.keep),
        perf_data=options.perf_data,
        workers=options.workers,
        place=options.place,
        every_s=every_s,
    )


def carry_out(
    scenario: Scenario, options: RunOptions, output: Output, execute: Executor | None = None
) -> int:
    """Run, write and print; say how to go on with what was stopped."""
    again = "" if options.every_s is None else f'; go on with "vpmu resume {options.out}"'
    waits: dict[str, list[Waits]] = {}
    options = replace(options, on_waits=lambda design, found: waits.update({design: list(found)}))
    status, started = 0, time.perf_counter()
    try:
        try:
            result = _execute(scenario, options, output, execute)
        except Interrupted as stopped:
            print(f"interrupted: {stopped.reason}{again}", file=sys.stderr)
            if stopped.result is None:
                return EXIT_INTERRUPTED
            result, status = stopped.result, EXIT_INTERRUPTED
        wall_s = time.perf_counter() - started
        if options.out is not None:
            write_results(options.out, result, timing=_timing(result, options, wall_s) | _waits_of(waits))
            if options.every_s is not None and result.complete:
                finish(options.out)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise Stopped(f"stopped: {where}{error.strerror or error}{again}") from error
    except GangError as error:
        raise Stopped(f"{error}{again}") from error
    if not output.quiet:
        _print(result, output, wall_s, waits)
    return status


def check_command(file: str, overrides: list[str]) -> str:
    """Check a scenario with all that it names, and say in one line what is in it."""
    scenario = load_scenario(file, overrides)
    for index, host in enumerate(scenario.hosts):
        if host.design:
            find_design(host.design, file=file, key=f"host[{index}].design")
    for index, program in enumerate(scenario.programs):
        _check_program(program, file, f"program[{index}]")
    vcpus = sum(vm.count * vm.vcpus for vm in scenario.vms)
    counts = {
        "hosts": len(scenario.hosts),
        "VMs": sum(vm.count for vm in scenario.vms),
        "vCPUs": vcpus,
        "sessions": sum(vm.count * len(vm.sessions) for vm in scenario.vms),
        "tools": len(scenario.tools),
    }
    listed = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"{file}: valid: {listed}, until {format_duration(scenario.until_ns)}"


def _check_program(program: Program, file: str, key: str) -> None:
    """Read a program's file, or lay its functions out, for the mistakes that this would show."""
    from vpmu import program as programs

    if program.file:
        programs.load_program(Path(program.file))
        return
    try:
        programs.Program.from_functions(program.name, program.functions, program.cycles)
    except UserError as error:
        raise error.at(file=file, key=key) from None


def choose_designs(scenario: Scenario, text: str | None, file: str) -> tuple[str, ...]:
    """Return the designs to run: those asked for, else the hosts' own if they agree, else the two of 2019.

    Raises
    ------
    UserError
        For an unknown or repeated design, here or in the scenario.
    """
    own = []
    for index, host in enumerate(scenario.hosts):
        if host.design:
            own.append(find_design(host.design, file=file, key=f"host[{index}].design").name)
    if text is None:
        agreed = len(own) == len(scenario.hosts) and len(set(own)) == 1
        return (scenario.hosts[0].design,) if agreed else DEFAULT_DESIGNS
    asked = tuple(name.strip() for name in text.split(","))
    names = [find_design(name).name for name in asked]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise UserError("named twice", file="--design", found=name)
    return asked


def choose_place(scenario: Scenario, place: str) -> str:
    """Return a placement that the hosts of a scenario allow; `UserError` if it is none."""
    fault = policy_fault(place, [host.name for host in scenario.hosts])
    if fault:
        raise UserError(fault, file="--place", found=place, allowed=POLICIES)
    return place


def _execute(scenario: Scenario, options: RunOptions, output: Output, execute: Executor | None) -> RunResult:
    execute = execute or _executor()
    if not output.shows_progress:
        return sigint.run(execute, scenario, options, None)
    from vpmu.console import progress_bars

    with progress_bars(scenario.until_ns) as progress:
        kept = options.on_waits

        def show_and_keep(design: str, waits: list[Waits]) -> None:
            progress.show_waits(design, waits)
            if kept is not None:
                kept(design, waits)

        options = replace(options, on_waits=show_and_keep)
        return sigint.run(execute, scenario, options, progress)


def _executor() -> Executor:
    from vpmu.execution import execute

    return execute


def _timing(result: RunResult, options: RunOptions, wall_s: float) -> dict[str, float | int | str]:
    virtual_s = sum(design.end_ns for design in result.designs.values()) / NS_PER_S
    frames = {
        f"{name}.frames.{kind}": count
        for name, design in result.designs.items()
        for kind, count in design.frames.items()
    }
    return frames | {
        "wall_s": round(wall_s, 3),
        "virtual_s": virtual_s,
        "virtual_s_per_wall_s": round(virtual_s / wall_s, 3) if wall_s > 0 else 0,
        "workers": options.workers,
        "place": options.place,
        "mode": "messages" if options.messages else "kernels",
    }


def _waits_of(waits: dict[str, list[Waits]]) -> dict[str, float | int | str]:
    """Return where the time of each worker went, for timing.json."""
    return {
        f"{design}.worker_{rank}.{name}": round(value, 3)
        for design, found in waits.items()
        for rank, each in enumerate(found)
        for name, value in (
            ("busy_s", each.busy_s),
            ("queue_s", each.queue_s),
            ("peers_s", each.peers_s),
            ("checkpoints_s", each.saving_s),
            ("checkpoints", each.saves),
        )
    }


def _print(result: RunResult, output: Output, wall_s: float, waits: dict[str, list[Waits]]) -> None:
    if output.as_json:
        sys.stdout.write(summary_bytes(result).decode())
        return
    from vpmu.console import output_console
    from vpmu.tables import print_run

    console = output_console()
    print_run(result, console)
    virtual_s = sum(design.end_ns for design in result.designs.values()) / NS_PER_S
    console.print(f"{virtual_s:.2f} s of virtual time in {wall_s:.2f} s")
    for design, found in waits.items():
        for rank, each in enumerate(found if len(found) > 1 else ()):
            console.print(
                f"{design}, worker {rank}: worked {each.busy_s:.2f} s, waited {each.queue_s:.2f} s for a "
                f"processor and {each.peers_s:.2f} s ({each.peers_share:.0%}) for its peers" + _saves(each)
            )


def _saves(waits: Waits) -> str:
    """Say what checkpoints took from a worker's time."""
    return f"; {waits.saves} checkpoints took {waits.saving_s:.2f} s" if waits.saves else ""
