"""Where a run's windows end for a fleet's sake: all ranks tell each other who has left, and hand rows over.

A rank that has come to the end of the window sends every rank one ROWS frame for no actor, and applies what
is due once it has one of each. From then on it may be asked things that belong to the next window by ranks
that are further: these wait until it has come there itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from vpmu.actors.fleet import Due, Fleet
from vpmu.actors.machine import Machine, MoveEntry, RebootEntry
from vpmu.actors.rows import RowMap, Slices
from vpmu.cluster import proto
from vpmu.cluster.errors import RemoteProtocolError
from vpmu.cluster.proto import U64Array
from vpmu.kernels.columns import V_MOVE, V_PCPU
from vpmu.kernels.host.move import MOVE_GONE, MOVE_NONE

FLEET_ROWS = 4
"""Header field `request` of such a ROWS frame."""

_GONE = int(MOVE_GONE)


@dataclass(slots=True)
class _Told:
    """What the ranks have said at the end of a window: how much of each due thing they have, and rows."""

    counts: list[list[int]] = field(default_factory=list)
    rows: list[U64Array] = field(default_factory=list)
    ranks: set[int] = field(default_factory=set)


class Barrier:
    """A rank's part in the changes of a fleet.

    Parameters
    ----------
    machine : Machine
        Of this process.
    rows : RowMap
        Of the machine.
    rank : int
        This process.
    rank_of_cpu : callable
        Takes a physical CPU's number in the run, returns where it lives.
    """

    def __init__(self, machine: Machine, rows: RowMap, rank: int, rank_of_cpu: Callable[[int], int]) -> None:
        self._machine = machine
        self._rows = rows
        self._rank = rank
        self._rank_of_cpu = rank_of_cpu
        self._fleet = Fleet(machine)
        self._here = {p.offset for p in machine.pcpus if rank_of_cpu(p.index) == rank}
        self._due: Due = []
        self._at_ns = 0
        self._told = _Told()
        self.waits = False
        """Whether this rank is at the end of the window and has said so."""

    @property
    def next_ns(self) -> int:
        """End of the window, ns."""
        return self._fleet.next_ns

    @property
    def told_by(self) -> set[int]:
        """Ranks that are at the end of the window."""
        return self._told.ranks

    def _lives_here(self, v: int) -> bool:
        """Return whether a vCPU is in a run queue of this process."""
        p = int(self._machine.arena[v + int(V_PCPU)])
        return p in self._here and v in self._rows.queued(p)

    def _whole(self, v: int) -> Slices:
        rows = self._rows
        return rows.thread(v) + rows.state(v) + rows.task(v) + rows.guest(v)

    def gone(self) -> list[int]:
        """Return the offsets of the vCPUs that left a host of this process and have come to no other."""
        s = self._machine.arena
        return [each.offset for each in self._machine.vcpus if int(s[each.offset + int(V_MOVE)]) == _GONE]

    def reach(self, nr_ranks: int) -> list[U64Array]:
        """Come to the end of the window; return the records of the ROWS frame for each rank."""
        self.waits = True
        self._at_ns = self._fleet.next_ns
        self._due = self._fleet.due(self._at_ns)
        s = self._machine.arena
        counts = []
        rows: list[Slices] = [[] for _ in range(nr_ranks)]
        for stage, what in self._due:
            if isinstance(what, RebootEntry):
                counts.append(sum(len(self._rows.queued(p)) for p in self._cpus(what.host)))
                continue
            mine = []
            if stage == "comes":
                for number, cpu in zip(what.vcpus, what.pcpus, strict=True):
                    v = self._machine.vcpus[number].offset
                    if int(s[v + int(V_MOVE)]) == _GONE:
                        mine.append(v)
                        rows[self._rank_of_cpu(cpu)] += self._whole(v)
            counts.append(len(mine))
        head = np.array([len(counts), *counts], dtype=np.uint64).reshape(-1, 1)
        none: Slices = []
        return [
            np.concatenate([head, proto.pack_rows(s, none if rank == self._rank else each)])
            for rank, each in enumerate(rows)
        ]

    def _cpus(self, host: int) -> list[int]:
        return [p.offset for p in self._machine.pcpus if p.host == host and p.offset in self._here]

    def take(self, rank: int, records: U64Array) -> None:
        """Take what another rank (or this one) says at the end of the window.

        Raises
        ------
        RemoteProtocolError
            If it has spoken already, or what it says has no such form.
        """
        flat = records.reshape(-1)
        if rank in self._told.ranks or not flat.size or int(flat[0]) >= flat.size:
            raise RemoteProtocolError("says at the end of a window what nobody can")
        nr = int(flat[0])
        rows = flat[1 + nr :].reshape(-1, 1)
        for _ in proto.iter_rows(rows, self._machine.arena.size):
            pass
        self._told.ranks.add(rank)
        self._told.counts.append(flat[1 : 1 + nr].tolist())
        self._told.rows.append(rows)

    def pass_on(self) -> int:
        """Do all that is due, everybody being here; return the end of the next window, ns.

        Raises
        ------
        RemoteProtocolError
            If the ranks speak of different things.
        """
        told, self._told = self._told, _Told()
        self.waits = False
        if any(len(counts) != len(self._due) for counts in told.counts):
            raise RemoteProtocolError("the ranks disagree about what is due at the end of a window")
        totals = [sum(of_ranks) for of_ranks in zip(*told.counts, strict=True)]
        coming = self._fleet.settle(self._due, totals, self._at_ns, self._lives_here)
        self._install(told.rows, coming)
        for move in coming:
            self._fleet.come(move, self._at_ns, self._here.__contains__)
            for number, cpu in zip(move.vcpus, move.pcpus, strict=True):
                if self._rank_of_cpu(cpu) != self._rank:
                    # What is left of it here is only a copy.
                    self._machine.arena[self._machine.vcpus[number].offset + int(V_MOVE)] = MOVE_NONE
        return self._fleet.next_ns

    def _install(self, rows: list[U64Array], coming: list[MoveEntry]) -> None:
        """Install the rows of vCPUs that come to a physical CPU of this process; nobody else's."""
        s = self._machine.arena
        wanted = {
            each
            for move in coming
            for number, cpu in zip(move.vcpus, move.pcpus, strict=True)
            if self._rank_of_cpu(cpu) == self._rank
            for each in self._whole(self._machine.vcpus[number].offset)
        }
        for records in rows:
            for offset, words in proto.iter_rows(records, s.size):
                if (offset, words.size) in wanted:
                    s[offset : offset + words.size] = words
