"""A machine to run: the arena with every actor's row, and the directory that says whose row is where.

It is built from a scenario (`vpmu.build`), the same in every process of a run: offsets mean the same
everywhere.
"""

from dataclasses import dataclass, field

import numpy as np

from vpmu.kernels.columns import RUN_COLUMNS
from vpmu.kernels.jit import Arena
from vpmu.kernels.log import RECORD_WORDS

LOG_RECORDS = 1 << 15


@dataclass(frozen=True, slots=True)
class PcpuEntry:
    """A physical CPU: its number in the run, its host's index, its number in the host, its row."""

    index: int
    host: int
    cpu: int
    offset: int


@dataclass(frozen=True, slots=True)
class ThreadEntry:
    """A guest thread: its name, kind, program and row."""

    name: str
    kind: str
    program: str
    offset: int


@dataclass(frozen=True, slots=True)
class SessionEntry:
    """A perf session of a guest: name, tool, event names, thread (empty if the CPU's), row, first event."""

    name: str
    tool: str
    events: tuple[str, ...]
    thread: str
    offset: int
    first_event: int


@dataclass(frozen=True, slots=True)
class VcpuEntry:
    """A virtual CPU: number in the run, its VM's name, number in the VM, its host's index, its rows."""

    index: int
    vm: str
    vcpu: int
    host: int
    offset: int
    guest: int
    threads: tuple[ThreadEntry, ...] = ()
    sessions: tuple[SessionEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class HostEntry:
    """A host: its name and row."""

    index: int
    name: str
    offset: int


@dataclass(frozen=True, slots=True)
class MoveEntry:
    """A VM leaves its host: when, its vCPUs, and where they go.

    Attributes
    ----------
    at_ns, downtime_ns : int
        When it is asked to stop, and how much later it goes on at the earliest.
    vcpus : tuple of int
        Their numbers in the run.
    host : int
        Index of the host that it goes to, -1 if it leaves for good.
    pcpus : tuple of int
        Numbers of the physical CPUs whose run queues its vCPUs are put on.
    pinned, masked : int
        1 if they stay there; what a PMI sets in their LVTPC.
    parameters : tuple of int
        Of the new host's design.
    """

    at_ns: int
    downtime_ns: int
    vcpus: tuple[int, ...]
    host: int = -1
    pcpus: tuple[int, ...] = ()
    pinned: int = 0
    masked: int = 0
    parameters: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RebootEntry:
    """A host, by its index, is empty at a time and comes up after a duration with a design, by its number."""

    at_ns: int
    duration_ns: int
    host: int
    design: int


Pending = tuple[int, int, str, bool, int]
"""A move or reboot to come, as a checkpoint keeps it: time, order, stage, whether a reboot, and its index."""


@dataclass(slots=True)
class Region:
    """A table in the arena: ``rows`` rows of ``columns`` words from ``base`` on."""

    name: str
    base: int
    rows: int
    columns: int

    def row(self, index: int) -> int:
        """Return the offset of a row."""
        return self.base + index * self.columns


@dataclass(slots=True)
class Machine:
    """All state of a run of one design.

    Attributes
    ----------
    design : str
        Name of the vPMU design.
    until_ns : int
        End of the run in virtual time.
    arena, log : uint64[n]
        State, and the log that kernels write records to.
    hosts, pcpus, vcpus : list
        The directory, in the order of rows.
    regions : dict
        The tables by name.
    functions : dict
        Function names of each program, by program name.
    moves, reboots : list
        What happens to the fleet, in the order of time.
    """

    design: str
    until_ns: int
    arena: Arena
    log: Arena
    hosts: list[HostEntry] = field(default_factory=list)
    pcpus: list[PcpuEntry] = field(default_factory=list)
    vcpus: list[VcpuEntry] = field(default_factory=list)
    regions: dict[str, Region] = field(default_factory=dict)
    functions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    moves: list[MoveEntry] = field(default_factory=list)
    reboots: list[RebootEntry] = field(default_factory=list)

    def vcpus_of(self, host: int) -> list[VcpuEntry]:
        """Return the vCPUs that are on a host at some time of the run."""
        coming = {number for move in self.moves if move.host == host for number in move.vcpus}
        return [each for each in self.vcpus if each.host == host or each.index in coming]

    def table(self, name: str) -> Arena:
        """Return a table as uint64[rows, columns], a view of the arena."""
        region = self.regions[name]
        size = region.rows * region.columns
        return self.arena[region.base : region.base + size].reshape(region.rows, region.columns)


class Layout:
    """Hands out regions of an arena that is allocated once all sizes are known."""

    def __init__(self) -> None:
        self.regions: dict[str, Region] = {}
        self._end = RUN_COLUMNS

    def add(self, name: str, rows: int, columns: int) -> Region:
        """Add a table behind the last one."""
        region = Region(name, self._end, rows, columns)
        self.regions[name] = region
        self._end += rows * columns
        return region

    @property
    def size(self) -> int:
        """Words of all tables so far."""
        return self._end

    def allocate(self) -> Arena:
        """Return the arena, all zero."""
        return np.zeros(self._end, dtype=np.uint64)


def empty_log(records: int = LOG_RECORDS) -> Arena:
    """Return a log for ``records`` records."""
    return np.zeros(records * RECORD_WORDS, dtype=np.uint64)
