"""How to run a scenario, apart from what is in it: the choices of the command line that change no result."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vpmu.cluster.watch import Waits
from vpmu.cluster.where import HERE, Where
from vpmu.records import DEFAULT_KEEP

if TYPE_CHECKING:
    from vpmu.actors.machine import Machine
    from vpmu.kernels.jit import Arena
    from vpmu.results import CutOffRow, RunResult
    from vpmu.scenario import Scenario

DEFAULT_DESIGNS: Final = ("legacy", "optimized")

Progress = Callable[[str, int], None]
"""Called with a design's name and how far its virtual time has come, ns."""
Drive = Callable[["Scenario", "Machine", Callable[["Arena"], None]], Awaitable["list[CutOffRow]"]]
"""Advances a machine some of whose guests are outside the kernels, and hands its records on."""
OnWaits = Callable[[str, list[Waits]], None]
"""Called with a design's name and where the time of each of its processes went so far."""


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out.

    Attributes
    ----------
    designs : tuple of str
        Designs to run one after the other, by name or as the path of a file; each serves the hosts that name
        no design of their own.
    workers : int
        Processes.
    place : str
        What goes where: one of `vpmu.cluster.placement.POLICIES`.
    messages : bool
        Message mode: every access, request and PMI is a message.
    out : Path, optional
        Where records are written as the run goes on; None keeps none.
    keep : set of str
        Kinds of records to write, of `vpmu.records.KEEP_CHOICES`.
    perf_data : bool
        Write the guests' perf sessions as perf's own files, too; needs `out`.
    where : Where
        Where the processes are, and who may hear them.
    every_s : float, optional
        Write checkpoints into `out`, at most so much wall time apart, and go on from those that are there.
    on_waits : callable, optional
        Told where the time of each process goes, while the run goes on and at its end.
    drive : callable, optional
        Advances the machine instead of the kernels alone, in this process; returns who was cut off.
    """

    designs: tuple[str, ...] = DEFAULT_DESIGNS
    workers: int = 1
    place: str = "packed"
    messages: bool = False
    out: Path | None = None
    keep: frozenset[str] = DEFAULT_KEEP
    perf_data: bool = False
    where: Where = HERE
    every_s: float | None = None
    on_waits: OnWaits | None = None
    drive: Drive | None = None


Executor = Callable[["Scenario", RunOptions, Progress | None], Awaitable["RunResult"]]
"""What runs a scenario: `vpmu.execution.execute`. It raises `vpmu.errors.Interrupted` after Ctrl-C."""
