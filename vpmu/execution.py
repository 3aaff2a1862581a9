"""Running a scenario: one machine per design, advanced to its end, in this process or over several."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import trio

from vpmu.errors import Interrupted, UserError
from vpmu.options import Drive, Progress, RunOptions
from vpmu.records import KIND_KEPT_BY, RecordWriter
from vpmu.results import CutOffRow, DesignResult, MachineRow, RunResult, remove_perf_files
from vpmu.resume import design_directory, finish_design, finished_design

if TYPE_CHECKING:
    from vpmu.actors.machine import Machine
    from vpmu.cluster.checkpoint import Keeper
    from vpmu.cluster.watch import Waits, Watch
    from vpmu.kernels.jit import Arena
    from vpmu.perfdata.output import PerfOutput
    from vpmu.program import Program
    from vpmu.scenario import Scenario

_ENTRY_MODULES = tuple(f"vpmu.kernels.{name}" for name in ("advance", "boot", "fleet", "outside", "remote"))
"""Modules with kernels that runs call."""
_KIND, _INTERVAL, _EXIT = 0xFF, 7, 8
_BATCH_RECORDS = 4096
"""Records that are put in order at once."""
_TELL_S = 0.05
"""Least time between two tellings of the progress."""
_LOG = logging.getLogger(__name__)
_SAMPLES = 4
"""Record kind of samples, which the profiles are made of: they are always logged."""


class _Sink:
    """Where a run's records go: the samples are counted, and what is kept is written."""

    def __init__(self, options: RunOptions, design: str, perf: PerfOutput | None) -> None:
        from vpmu.collect import SampleCounter

        self.samples = SampleCounter()
        self.perf = perf
        self._writer = None if options.out is None else RecordWriter(options.out, design, options.keep)

    @property
    def writes(self) -> bool:
        """Whether files depend on the order of the records."""
        return (self._writer is not None and bool(self._writer.keep)) or self.perf is not None

    def take(self, records: Arena) -> None:
        """Take records, ``uint64[n, 8]``; the array may be overwritten afterwards."""
        self.samples.add(records)
        if self._writer is not None:
            # The lines of perf stat -I are in the tables, exits in the threads' times.
            kinds = records[:, 0] & _KIND
            self._writer.append(records[(kinds != _INTERVAL) & (kinds != _EXIT)])
        if self.perf is not None:
            self.perf.take(records)

    def close(self, complete: bool) -> None:
        """Complete the files; those of a run that was cut short are removed."""
        if self._writer is None:
            return
        if complete:
            self._writer.close()
        else:
            self._writer.discard()

    def complete(self, result: DesignResult) -> None:
        """Complete perf's files, which need the run's result."""
        if self.perf is not None:
            self.perf.complete(result)

    def discard(self) -> None:
        """Remove perf's files, if they are not complete."""
        if self.perf is not None:
            self.perf.discard()


def kept_kinds(options: RunOptions) -> int:
    """Return the bit set of record kinds that kernels have to log."""
    kinds = 1 << _SAMPLES
    if options.out is not None:
        for kind, choice in KIND_KEPT_BY.items():
            if choice in options.keep:
                kinds |= 1 << kind
    if options.perf_data:
        from vpmu.perfdata.output import KINDS

        kinds |= sum(1 << kind for kind in KINDS if not kinds >> kind & 1)
    return kinds


def register_designs(designs: tuple[str, ...]) -> tuple[str, ...]:
    """Make designs given as files known to the engine, which must not be loaded yet; return all names.

    Raises
    ------
    UserError
        If a design cannot be registered.
    """
    from vpmu.kernels.designs import registry

    names = []
    for design in designs:
        if not design.endswith(".py"):
            names.append(design)
            continue
        try:
            names.append(registry.add_design(Path(design)))
        except ValueError as error:
            raise UserError(str(error), file="--design") from None
    return tuple(names)


async def execute(scenario: Scenario, options: RunOptions, progress: Progress | None = None) -> RunResult:
    """Run a scenario under each design asked for, one after the other.

    Parameters
    ----------
    scenario : Scenario
        As `vpmu.scenario.load_scenario` returns it.
    options : RunOptions
        How to run it.
    progress : callable, optional
        Called with the design and its virtual time.

    Raises
    ------
    Interrupted
        After Ctrl-C, with the designs that were complete by then.
    """
    names = register_designs(options.designs)
    from vpmu.build import load_programs

    programs = load_programs(scenario)
    done: list[DesignResult] = []
    try:
        for name in names:
            result = await _finished_or_run(scenario, programs, name, options, progress)
            done.append(result)
    except KeyboardInterrupt:
        missing = ", ".join(names[len(done) :])
        reason = f"Ctrl-C; missing: {missing}"
        partial = (
            RunResult.of(scenario.title, scenario.seed, done, complete=False, reason=reason) if done else None
        )
        raise Interrupted(partial, reason) from None
    return RunResult.of(scenario.title, scenario.seed, done)


async def _finished_or_run(
    scenario: Scenario,
    programs: dict[str, Program],
    name: str,
    options: RunOptions,
    progress: Progress | None,
) -> DesignResult:
    """Return the result of a design, which may be there already in a run that goes on."""
    if options.every_s is None or options.out is None:
        return await _run_design(scenario, programs, name, options, progress)
    result = finished_design(options.out, name)
    if result is None:
        result = await _run_design(scenario, programs, name, options, progress)
        finish_design(options.out, result)
    return result


async def _run_design(
    scenario: Scenario,
    programs: dict[str, Program],
    name: str,
    options: RunOptions,
    progress: Progress | None,
) -> DesignResult:
    from vpmu.build import build
    from vpmu.collect import collect
    from vpmu.kernels.columns import R_KEEP

    _check_guests(scenario, options)
    machine = build(scenario, name, programs)
    machine.arena[R_KEEP] = kept_kinds(options)
    sink = _Sink(options, name, _open_perf(scenario, programs, machine, options))
    frames: dict[str, int] = {}
    cut_off: list[CutOffRow] = []
    machines: list[MachineRow] = []
    tell = options.on_waits
    on_waits = None if tell is None else lambda waits: tell(name, waits)
    complete = False
    try:
        if options.workers > 1 or options.messages or options.where.scheduler or options.every_s is not None:
            from vpmu.cluster.dask_workers import opener
            from vpmu.cluster.node import run_machine_on_workers

            outcome = await run_machine_on_workers(
                machine,
                workers=options.workers,
                place=options.place,
                messages=options.messages,
                on_records=sink.take,
                in_order=sink.writes,
                on_progress=None if progress is None else lambda at_ns: progress(name, at_ns),
                on_waits=on_waits,
                open_workers=opener(options.where),
                where=options.where,
                keeper=_keeper(machine, options),
            )
            machine.arena[:] = outcome.arena
            frames = outcome.frames
            if on_waits is not None:
                on_waits(outcome.waits)
            for line in outcome.refused:
                _LOG.warning(line)
        elif options.drive is not None:
            cut_off = await _drive(options.drive, scenario, machine, sink, name, progress)
        elif any(vm.image for vm in scenario.vms):
            machines = await _drive_machines(scenario, machine, sink, name, progress, options)
        else:
            with _watched(machine, options) as watch:
                await _advance(machine, sink, name, progress, watch, on_waits)
        result = collect(machine, sink.samples)
        result.frames, result.cut_off, result.machines = frames, cut_off, machines
        if options.out is not None:
            from vpmu.retired import write_truth

            write_truth(machine, options.out / name)
        sink.complete(result)
        await trio.lowlevel.checkpoint()  # a Ctrl-C that is due comes before the design is complete
        complete = True
    finally:
        sink.close(complete)
        sink.discard()
    return result


def _keeper(machine: Machine, options: RunOptions) -> Keeper | None:
    """Return what keeps the checkpoints of a run that has any."""
    if options.every_s is None or options.out is None:
        return None
    from vpmu.cluster.checkpoint import Keeper

    return Keeper(design_directory(options.out, machine.design), machine, options.every_s)


def _open_perf(
    scenario: Scenario, programs: dict[str, Program], machine: Machine, options: RunOptions
) -> PerfOutput | None:
    """Return what takes the records for perf's files, if they are asked for.

    Raises
    ------
    UserError
        If there is no directory for them.
    """
    if options.out is None:
        if options.perf_data:
            raise UserError("needs a directory to write to", file="--perf-data")
        return None
    if not options.perf_data:
        remove_perf_files(options.out / machine.design)
        return None
    from vpmu.perfdata.output import PerfOutput

    return PerfOutput(options.out, machine, scenario, programs)


@contextmanager
def _watched(machine: Machine, options: RunOptions) -> Iterator[Watch]:
    """Tell the figures of a run of one process, if that is asked for; yield them."""
    from vpmu.actors.local import clock_ns
    from vpmu.cluster.watch import Watch, serving

    watch = Watch(lambda: clock_ns(machine), len(machine.vcpus), labels={"rank": "0"})
    watch.begin()
    with serving(watch, options.where.metrics, options.where.metrics_port):
        yield watch


class _Records:
    """Takes the records of a machine in this process, stretch by stretch; tells how far it is."""

    def __init__(self, machine: Machine, sink: _Sink, name: str, progress: Progress | None) -> None:
        from vpmu.cluster.merge import InOrder

        self._machine, self._sink, self._name, self._progress = machine, sink, name, progress
        self._held = InOrder()
        self._nr_held = 0
        self._told_s = 0.0

    def take(self, records: Arena) -> None:
        """Take a stretch's; the array may be overwritten afterwards."""
        from vpmu.actors.local import clock_ns, settled_ns

        if not self._sink.writes:
            self._sink.take(records)
        elif len(records):
            self._held.add(records)
            self._nr_held += len(records)
        # A guest outside the kernels makes stretches of a few records each.
        if self._nr_held >= _BATCH_RECORDS:
            self._sink.take(self._held.before(settled_ns(self._machine)))
            self._nr_held = 0
        if self._progress is not None and monotonic() >= self._told_s + _TELL_S:
            self._progress(self._name, clock_ns(self._machine))
            self._told_s = monotonic()

    def close(self) -> None:
        """Hand on what was held back: nothing can come any more."""
        self._sink.take(self._held.before())


async def _advance(
    machine: Machine,
    sink: _Sink,
    name: str,
    progress: Progress | None,
    watch: Watch,
    on_waits: Callable[[list[Waits]], None] | None,
) -> None:
    """Advance a machine in this process; trio gets its turn after every kernel call."""
    from vpmu.actors.local import steps

    records = _Records(machine, sink, name, progress)
    for each in steps(machine):
        watch.stops += 1
        records.take(each)
        if on_waits is not None:
            on_waits([watch.waits()])
        await trio.lowlevel.checkpoint()
    records.close()


async def _drive(
    drive: Drive,
    scenario: Scenario,
    machine: Machine,
    sink: _Sink,
    name: str,
    progress: Progress | None,
) -> list[CutOffRow]:
    """Let a machine with guests outside the kernels be advanced; return who was cut off."""
    records = _Records(machine, sink, name, progress)
    cut_off = await drive(scenario, machine, records.take)
    records.close()
    return cut_off


async def _drive_machines(
    scenario: Scenario,
    machine: Machine,
    sink: _Sink,
    name: str,
    progress: Progress | None,
    options: RunOptions,
) -> list[MachineRow]:
    """Advance a machine some of whose guests execute images; return what became of these."""
    from vpmu.machine import require_extra

    require_extra()
    from vpmu.machine.drive import drive_machines

    records = _Records(machine, sink, name, progress)
    consoles = None if options.out is None else options.out / name
    machines = await drive_machines(scenario, machine, records.take, consoles)
    records.close()
    return machines


def _check_guests(scenario: Scenario, options: RunOptions) -> None:
    """Raise UserError if a scenario has guests that this way of running it cannot have."""
    images = [vm.name for vm in scenario.vms if vm.image]
    spread = options.workers > 1 or options.messages or bool(options.where.scheduler)
    if images and (spread or options.every_s is not None or options.drive is not None):
        problem = f'VM "{images[0]}" executes an image: all of its run is in one process, without checkpoints'
        raise UserError(problem, file="scenario", key=f"vm.{images[0]}.image")
    remote = [vm.name for vm in scenario.vms if vm.remote]
    if remote and options.drive is None:
        problem = f'VM "{remote[0]}" is remote: `vpmu serve` runs such a scenario'
        raise UserError(problem, file="scenario", key=f"vm.{remote[0]}.remote")


async def run(scenario: Scenario | str | Path, **choices: Any) -> RunResult:
    """Run a scenario and return its results: the library's one call.

    Parameters
    ----------
    scenario : Scenario or path
        A loaded scenario, or the file of one.
    **choices
        Fields of `RunOptions`: ``designs``, ``workers``, ``place``, ``messages``, ``out``, ``keep``,
        ``perf_data``.

    Raises
    ------
    UserError
        For a mistake in the scenario or the choices.
    """
    from vpmu.scenario import load_scenario

    loaded = load_scenario(scenario, []) if isinstance(scenario, str | Path) else scenario
    return await execute(loaded, RunOptions(**choices))


def compile_all() -> int:
    """Compile every kernel that runs call, or find it in the cache; return how many there are."""
    from vpmu.kernels.jit import compile_entries

    for module in _ENTRY_MODULES:
        importlib.import_module(module)
    return compile_entries()
