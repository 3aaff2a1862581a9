"""Runs a machine over several processes: what a rank is told, what it plays, how their results become one.

Every rank gets the same machine and plays its role in it; at the end each hands in the rows that it owns.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import trio

from vpmu.actors.machine import (
    HostEntry,
    Machine,
    MoveEntry,
    PcpuEntry,
    RebootEntry,
    Region,
    VcpuEntry,
    empty_log,
)
from vpmu.actors.observer import Observer
from vpmu.cluster import proto
from vpmu.cluster.checkpoint import FileNote, Keeper, Start, Writing, ranges_of
from vpmu.cluster.errors import GangError, RemoteProtocolError
from vpmu.cluster.hub import Hub, Refusal
from vpmu.cluster.launcher import LocalWorkers, Workers, run_gang
from vpmu.cluster.merge import Merge, sort_records
from vpmu.cluster.proto import Frame, Kind, U64Array
from vpmu.cluster.shared import SharedArena, open_shared
from vpmu.cluster.watch import Waits, Watch, serving
from vpmu.cluster.where import HERE, Where
from vpmu.kernels.designs import registry
from vpmu.kernels.jit import Arena
from vpmu.kernels.log import RECORD_ACCESS, RECORD_INTERVAL, RECORD_WORDS

if TYPE_CHECKING:
    from vpmu.cluster.seat import Seat

ENTRY = "vpmu.cluster.node:play"
_KIND = np.uint64(0xFF)
_CLOCK_WORDS = 1 + len(Waits().words())
MOST_STARTS = 20
"""How often a run is started before it is given up."""
_LOG = logging.getLogger(__name__)
BATCH = 1 << 15
"""Records that are handed to the caller at once."""

OnRecords = Callable[[Arena], None]
OnProgress = Callable[[int], None]
OnWaits = Callable[[list[Waits]], None]
"""Takes where the time of each rank went so far, in rank order."""


class Part(msgspec.Struct, frozen=True):
    """What every rank is told: the machine and how it is divided; sent as MessagePack.

    All of it is compressed. The arena comes with it or stands in memory that ranks on the same machine share.
    """

    design: str
    design_file: str
    until_ns: int
    hosts: list[HostEntry]
    pcpus: list[PcpuEntry]
    vcpus: list[VcpuEntry]
    regions: list[Region]
    arena: bytes
    shared: str
    log_records: int
    workers: int
    place: str
    messages: bool
    moves: list[MoveEntry]
    reboots: list[RebootEntry]
    writing: Writing | None = None


class Share(msgspec.Struct, frozen=True):
    """What a rank hands in: its rows as a ROWS payload, its action histograms, its frames, and refusals.

    Where the arena is shared, the rows are there, and only their ranges are said.
    """

    rows: bytes
    ranges: bytes
    stats: bytes
    accesses: int
    frames: dict[str, int]
    refused: list[str]
    waits: Waits = Waits()
    journal: FileNote | None = None


@dataclass(slots=True)
class WorkersOutcome:
    """The end of a run over several processes.

    Attributes
    ----------
    arena : uint64[n]
        Every row from its owner.
    frames : dict of str to int
        Frames that were sent, by kind.
    refused : list of str
        Frames of strangers: who refused them, and why.
    waits : list of Waits
        Where the time of each rank went.
    """

    arena: Arena
    frames: dict[str, int] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    waits: list[Waits] = field(default_factory=list)


def pack_part(
    machine: Machine,
    workers: int,
    place: str,
    messages: bool,
    start: Start | None = None,
    shared: SharedArena | None = None,
) -> bytes:
    """Return a machine and how it is divided, for `play`; with `start` it begins there."""
    arena = machine.arena if start is None else start.arena
    file = registry.design_path(machine.design)
    part = Part(
        machine.design,
        "" if file is None else str(file),
        int(machine.until_ns),
        machine.hosts,
        machine.pcpus,
        machine.vcpus,
        list(machine.regions.values()),
        b"" if shared else zlib.compress(arena.data, 1),
        shared.path if shared else "",
        machine.log.size // RECORD_WORDS,
        workers,
        place,
        messages,
        machine.moves,
        machine.reboots,
        None if start is None else start.writing,
    )
    return zlib.compress(msgspec.msgpack.encode(part), 1)


def unpack_machine(part: Part) -> Machine:
    """Return the machine of a part, its arena writable."""
    return Machine(
        part.design,
        part.until_ns,
        open_shared(part.shared).copy()
        if part.shared
        else np.frombuffer(zlib.decompress(part.arena), proto.U64_DTYPE).copy(),
        empty_log(part.log_records),
        part.hosts,
        part.pcpus,
        part.vcpus,
        {region.name: region for region in part.regions},
        moves=part.moves,
        reboots=part.reboots,
    )


async def play(hub: Hub, rank: int, payload: bytes) -> bytes:
    """Play one rank of a run; the entry of the gang."""
    part = msgspec.msgpack.decode(zlib.decompress(payload), type=Part)
    if part.design_file:
        registry.add_design(Path(part.design_file))
    # Note that designs must be named before the engine is imported.
    from vpmu.cluster.roles import assign
    from vpmu.cluster.seat import Seat

    machine = unpack_machine(part)
    if rank:
        _forget_counts(machine)
    roles = assign(machine, part.workers, part.place, part.messages)
    seat = Seat(hub, rank, machine, roles, part.writing)
    with serving(seat.watch, *hub.metrics):
        await seat.run()
    return msgspec.msgpack.encode(_share(hub, machine, seat, part.shared))


def _forget_counts(machine: Machine) -> None:
    """Leave what was counted for the whole run before it went on to another rank."""
    from vpmu.kernels.columns import R_ACCESSES

    machine.table("action")[:] = 0
    machine.arena[R_ACCESSES] = 0


def _share(hub: Hub, machine: Machine, seat: Seat, shared: str) -> Share:
    from vpmu.cluster import letters
    from vpmu.kernels.columns import R_ACCESSES

    frames = {
        kind.name: count for kind, count in hub.statistics().frames_sent.items() if kind in letters.KINDS
    }
    ranges = ranges_of(seat.owned())
    rows = b""
    if shared:
        there = open_shared(shared)
        for offset, length in ranges.tolist():
            there[offset : offset + length] = machine.arena[offset : offset + length]
    else:
        rows = proto.pack_rows(machine.arena, ranges.tolist()).tobytes()
    return Share(
        rows,
        ranges.tobytes() if shared else b"",
        machine.table("action").tobytes(),
        int(machine.arena[R_ACCESSES]),
        frames,
        [refusal.reason for refusal in hub.refused],
        seat.watch.waits(),
        seat.close_journal(),
    )


class _Home:
    """The end of a run that started it: collects records and progress, and merges what ranks hand in."""

    def __init__(
        self,
        machine: Machine,
        on_progress: OnProgress | None,
        observers: Sequence[Observer],
        on_waits: OnWaits | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        self._on_waits = on_waits
        self._waits: list[Waits] = []
        self.watch = Watch(self.clock_ns, len(machine.vcpus), labels={"rank": "coordinator"})
        self._machine = machine
        self._observers = observers
        self._on_progress = on_progress
        self._keeper = keeper
        self._clocks: dict[int, int] = {}
        self._records: list[U64Array] = []
        self._journals: list[FileNote] = []
        self.refused: list[Refusal] = []
        """What strangers sent to this process."""
        self.shared: SharedArena | None = None
        """Where ranks of this machine find the arena, and leave their rows."""

    def begin(self, nr_ranks: int, *, shares: bool) -> Start | None:
        """Begin an attempt with so many ranks; return where, if the run has checkpoints."""
        self._waits = [Waits()] * nr_ranks
        self._clocks = dict.fromkeys(range(nr_ranks), 0)
        self._records.clear()
        self._journals.clear()
        start = None if self._keeper is None else self._keeper.begin()
        if shares:
            self.shared = SharedArena(self._machine.arena if start is None else start.arena)
        return start

    @property
    def can_begin_again(self) -> bool:
        """Whether nobody has followed what an attempt did."""
        return not self._observers

    def register(self, hub: Hub) -> None:
        """Take records, clocks, and notes of checkpoints."""
        self.refused = hub.refused
        self.watch.hub = hub
        self.watch.begin()
        hub.on_kind(Kind.RECORDS, self._on_records)
        hub.on_kind(Kind.WINDOW, self._on_clock)
        if self._keeper is not None:
            hub.on_kind(Kind.CHECKPOINT, self._on_checkpoint)

    def _on_checkpoint(self, frame: Frame) -> None:
        assert self._keeper is not None
        self._keeper.take(frame.header.source_rank, proto.unpack_bytes(frame.records))

    def _on_records(self, frame: Frame) -> None:
        kinds = frame.records[:, 0] & _KIND
        if ((kinds < RECORD_ACCESS) | (kinds > RECORD_INTERVAL)).any():
            raise RemoteProtocolError("records of an unknown kind")
        self._records.append(frame.records)
        for each in self._observers:
            each.take(frame.records)

    def _on_clock(self, frame: Frame) -> None:
        if (frame.header.nr_records, frame.header.words) != (1, _CLOCK_WORDS):
            raise RemoteProtocolError(f"a clock of more or less than {_CLOCK_WORDS} words")
        rank = frame.header.source_rank
        self._clocks[rank], *waits = frame.record()
        self._waits[rank] = Waits.of_words(*waits)
        if self._on_progress is not None:
            self._on_progress(self.clock_ns())
        if self._on_waits is not None:
            self._on_waits(self._waits)

    def clock_ns(self) -> int:
        """Return how far the slowest rank has come, of those that have said so."""
        return min((clock for clock in self._clocks.values() if clock), default=0)

    def hand_over(self, on_records: OnRecords, *, in_order: bool) -> None:
        """Hand all records over, in the order of time, actor and sequence: a function of the run alone."""
        found = iter(self._records) if self._keeper is None else self._keeper.records(self._journals)
        if not in_order:
            for each in found:
                on_records(each)
            return
        records = sort_records(np.concatenate([np.empty((0, RECORD_WORDS), np.uint64), *found]))
        self._records.clear()
        for first in range(0, len(records), BATCH):
            on_records(records[first : first + BATCH])

    def merge(self, results: list[bytes]) -> WorkersOutcome:
        """Put every owner's rows into one arena, and add up what counts the whole run.

        Raises
        ------
        GangError
            If what a rank handed in is no result, or has rows of another.
        """
        merge = Merge(self._machine, None if self.shared is None else self.shared.words)
        outcome = WorkersOutcome(self._machine.arena)
        for rank, result in enumerate(results):
            try:
                share = msgspec.msgpack.decode(result, type=Share)
                _add_rows(merge, self._machine.arena.size, share)
                merge.add(np.frombuffer(share.stats, proto.U64_DTYPE), share.accesses)
            except (msgspec.MsgspecError, RemoteProtocolError, ValueError) as error:
                raise GangError(f"what it handed in is no result: {error}", rank) from None
            if share.journal is not None:
                self._journals.append(share.journal)
            outcome.waits.append(share.waits)
            for kind, count in share.frames.items():
                outcome.frames[kind] = outcome.frames.get(kind, 0) + count
            outcome.refused += [f"rank {rank} refused a frame: {reason}" for reason in share.refused]
        outcome.arena = merge.finish()
        return outcome


def _add_rows(merge: Merge, size: int, share: Share) -> None:
    for offset, length in np.frombuffer(share.ranges, proto.U64_DTYPE).reshape(-1, 2).tolist():
        merge.claim(offset, length)
    records = np.frombuffer(share.rows, proto.U64_DTYPE).reshape(-1, 1)
    for offset, words in proto.iter_rows(records, size):
        merge.claim(offset, words.size)[:] = words


def _compile_kernels(*, moves: bool) -> None:
    """Compile what ranks call, once and here: they find it in the cache."""
    import vpmu.kernels.remote

    if moves:
        import vpmu.kernels.fleet
    from vpmu.kernels.jit import compile_entries

    assert vpmu.kernels.remote is not None
    compile_entries()


async def _seats(workers: int, where: Where) -> int:
    """Return how many processes to go on with after one was lost; a cluster may get no new one."""
    if not where.scheduler:
        return workers
    from vpmu.cluster.dask_workers import wait_workers

    return await trio.to_thread.run_sync(wait_workers, where, workers, abandon_on_cancel=True)


async def _start_until_done(
    home: _Home,
    part: Callable[..., bytes],
    workers: int,
    where: Where,
    open_workers: Callable[[int, Path], Workers],
) -> list[bytes]:
    """Start a gang, again if a process of it is lost; return what its ranks hand in."""
    for attempt in range(MOST_STARTS):
        nr_ranks = workers if attempt == 0 else await _seats(workers, where)
        start = home.begin(nr_ranks, shares=not where.scheduler)
        try:
            return await run_gang(
                nr_ranks,
                ENTRY,
                part(workers=nr_ranks, start=start, shared=home.shared),
                attempt=attempt,
                transport="ipc",
                where=where,
                open_workers=open_workers,
                register=home.register,
            )
        except GangError as error:
            if not error.lost or not home.can_begin_again:
                raise
            since = "its start" if start is None else "its last checkpoint"
            _LOG.warning("%s; the run goes on from %s", error.line, since)
        finally:
            if home.shared is not None:
                home.shared.close()
    raise GangError(f"processes were lost {MOST_STARTS} times")


async def run_machine_on_workers(
    machine: Machine,
    *,
    workers: int,
    place: str = "packed",
    messages: bool = False,
    on_records: OnRecords | None = None,
    in_order: bool = True,
    on_progress: OnProgress | None = None,
    on_waits: OnWaits | None = None,
    observers: Sequence[Observer] = (),
    open_workers: Callable[[int, Path], Workers] = LocalWorkers,
    where: Where = HERE,
    keeper: Keeper | None = None,
) -> WorkersOutcome:
    """Run a machine to its end over several processes; its result is that of one process, to the byte.

    Parameters
    ----------
    machine : Machine
        As built; it is not changed.
    workers : int
        Processes, at least 1.
    place : str
        See `placement.place`; message mode is always spread.
    messages : bool
        Message mode: every access, host perf request and PMI is a message.
    on_records : callable, optional
        Takes all records, ``uint64[n, 8]``, once the run is complete.
    in_order : bool
        Whether records are sorted by time, actor and sequence; if not, they are in no order.
    on_progress : callable, optional
        Takes the virtual time, ns, that the slowest rank has come to.
    on_waits : callable, optional
        Takes where the time of each rank went, as they say it.
    observers : sequence of Observer
        Who follows a vCPU while the run goes on; made for this machine.
    open_workers, where : callable and Where
        See `launcher.run_gang`.
    keeper : Keeper, optional
        Of the run's checkpoints, for this machine; begins where they end. Neither with messages nor `spread`.

    A run whose process is lost begins again by itself, from its last checkpoint, at most `MOST_STARTS` times.

    Raises
    ------
    GangError
        If a rank fails, or processes are lost again and again.
    """
    # Ctrl-C need not wait until all is compiled.
    compiles = partial(_compile_kernels, moves=bool(machine.moves or machine.reboots))
    await trio.to_thread.run_sync(compiles, abandon_on_cancel=True)
    home = _Home(machine, on_progress, observers, on_waits, keeper)
    part = partial(pack_part, machine, place=place, messages=messages)
    with serving(home.watch, where.metrics, where.metrics_port):
        results = await _start_until_done(home, part, workers, where, open_workers)
    outcome = home.merge(results)
    for each in observers:
        each.close()
    if on_records is not None:
        home.hand_over(on_records, in_order=in_order)
    # Note that strangers of an attempt that was lost are forgotten with it.
    outcome.refused += [f"refused a frame: {refusal.reason}" for refusal in home.refused]
    return outcome
