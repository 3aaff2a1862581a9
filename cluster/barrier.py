"""Where a run's windows end for a fleet's or a checkpoint's sake: all ranks tell each other who has left.

A rank that has come to the end of the window sends every rank one ROWS frame for no actor, and applies what
is due once it has one of each; of several ranks the first says when the next window ends and whether a
checkpoint is written before. From then on it may be asked things that belong to the next window by ranks
that are further: these wait until it has come there itself.

A rank without a physical CPU only answers others. It has nothing to say and is always at the window's end; it
does its part of what is due once it has heard all who have one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from vpmu.actors.fleet import Due, Fleet
from vpmu.actors.machine import Machine, MoveEntry, Pending, RebootEntry
from vpmu.actors.rows import RowMap, Slices
from vpmu.cluster import proto
from vpmu.cluster.errors import RemoteProtocolError
from vpmu.cluster.pace import Pace
from vpmu.cluster.proto import U64Array
from vpmu.kernels.columns import V_MOVE, V_PCPU
from vpmu.kernels.host.move import MOVE_NONE

FLEET_ROWS = 4
"""Header field `request` of such a ROWS frame."""

_HEAD = 3
"""Words before the counts: whether to write a checkpoint, the next window's end, and how many follow."""


@dataclass(slots=True)
class _Told:
    """What the ranks have said at the end of a window: plans, how much of each due thing they have, rows."""

    plans: dict[int, tuple[bool, int]] = field(default_factory=dict)
    counts: list[list[int]] = field(default_factory=list)
    rows: list[U64Array] = field(default_factory=list)

    @property
    def ranks(self) -> set[int]:
        """Who has spoken."""
        return set(self.plans)


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
    rank_of_state : callable
        Takes the numbers of a vCPU and of the physical CPU that it comes to, returns where KVM's state is.
    moving : callable
        Takes a vCPU's offset, returns what goes with it to its next host's physical CPU.
    pace : Pace, optional
        For a run that writes checkpoints.
    pending : list of Pending, optional
        What is still to happen to the fleet, for a run that goes on.
    """

    def __init__(
        self,
        machine: Machine,
        rows: RowMap,
        rank: int,
        rank_of_cpu: Callable[[int], int],
        rank_of_state: Callable[[int, int], int],
        moving: Callable[[int], Slices],
        pace: Pace | None = None,
        pending: list[Pending] | None = None,
    ) -> None:
        self._machine = machine
        self._rows = rows
        self._rank = rank
        self._rank_of_cpu = rank_of_cpu
        self._rank_of_state = rank_of_state
        self._moving = moving
        self._fleet = Fleet(machine, pending)
        self._pace = pace
        self._pause_ns = machine.until_ns if pace is None else pace.first_ns()
        self._here = {p.offset for p in machine.pcpus if rank_of_cpu(p.index) == rank}
        self._due: Due = []
        self.at_ns = 0
        """End of the window that this rank has come to last, ns."""
        self._told = _Told()
        if pending is not None:
            self._forget_gone()
        self.waits = False
        """Whether this rank is at the end of the window and has said so."""
        self.changed = True
        """Whether whole hosts may have got or lost vCPUs; reset by who reads it."""

    @property
    def next_ns(self) -> int:
        """End of the window, ns."""
        return min(self._fleet.next_ns, self._pause_ns)

    @property
    def pending(self) -> list[Pending]:
        """What is still to happen to the fleet."""
        return self._fleet.pending()

    @property
    def told_by(self) -> set[int]:
        """Ranks that are at the end of the window."""
        return self._told.ranks

    def _lives_here(self, v: int) -> bool:
        """Return whether a vCPU is in a run queue of this process."""
        p = int(self._machine.arena[v + int(V_PCPU)])
        return p in self._here and v in self._rows.queued(p)

    def _forget_gone(self) -> None:
        """In a run that goes on every rank has the rows of those who are away: only one is to count them."""
        host_of = {each.offset: each.host for each in self._machine.vcpus}
        first = {pcpu.host: pcpu.index for pcpu in reversed(self._machine.pcpus)}
        for v in self.gone():
            if self._rank_of_cpu(first[host_of[v]]) != self._rank:
                self._unmark(v)

    def _unmark(self, v: int) -> None:
        """Note that what is left of a vCPU here is only a copy."""
        self._machine.arena[v + int(V_MOVE)] = MOVE_NONE

    def gone(self) -> list[int]:
        """Return the offsets of the vCPUs that left a host of this process and have come to no other."""
        return [each.offset for each in self._machine.vcpus if self._fleet.is_gone(each.offset)]

    def reach(self, nr_ranks: int) -> list[U64Array]:
        """Come to the end of the window; return the records of the ROWS frame for each rank."""
        self.waits = True
        self.at_ns = self.next_ns
        self._due = self._fleet.due(self.at_ns)
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
                    if self._fleet.is_gone(v):
                        mine.append(v)
                        rows[self._rank_of_cpu(cpu)] += self._moving(v)
            counts.append(len(mine))
        until = self._machine.until_ns
        write, next_ns = (False, until) if self._pace is None else self._pace.plan(self.at_ns)
        head = np.array([write, next_ns, len(counts), *counts], dtype=np.uint64).reshape(-1, 1)
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
        if rank in self._told.plans or flat.size < _HEAD or int(flat[2]) > flat.size - _HEAD:
            raise RemoteProtocolError("says at the end of a window what nobody can")
        write, next_ns, nr = (int(word) for word in flat[:_HEAD])
        if write > 1 or (self.waits and next_ns <= self.at_ns):
            raise RemoteProtocolError(f"plans a window that ends at {next_ns} ns")
        rows = flat[_HEAD + nr :].reshape(-1, 1)
        for _ in proto.iter_rows(rows, self._machine.arena.size):
            pass
        self._told.plans[rank] = bool(write), next_ns
        self._told.counts.append(flat[_HEAD : _HEAD + nr].tolist())
        self._told.rows.append(rows)

    def pass_on(self) -> bool:
        """Do all that is due, everybody being here; return whether a checkpoint is to be written now.

        Raises
        ------
        RemoteProtocolError
            If the ranks speak of different things.
        """
        told, self._told = self._told, _Told()
        self.waits = False
        if any(len(counts) != len(self._due) for counts in told.counts):
            raise RemoteProtocolError("the ranks disagree about what is due at the end of a window")
        write, self._pause_ns = told.plans[min(told.plans)]
        if self._pause_ns <= self.at_ns:
            raise RemoteProtocolError(f"plans a window that ends at {self._pause_ns} ns", min(told.plans))
        self.changed |= bool(self._due)
        totals = [sum(of_ranks) for of_ranks in zip(*told.counts, strict=True)]
        coming = self._fleet.settle(self._due, totals, self.at_ns, self._lives_here)
        self._install(told.rows, coming)
        for move in coming:
            for number, cpu in zip(move.vcpus, move.pcpus, strict=True):
                if self._rank_of_state(number, cpu) == self._rank:
                    self._fleet.renew(move, number)
                if self._rank_of_cpu(cpu) == self._rank:
                    self._fleet.come(move, number, cpu, self.at_ns)
                else:
                    self._unmark(self._machine.vcpus[number].offset)
        return write

    def _install(self, rows: list[U64Array], coming: list[MoveEntry]) -> None:
        """Install the rows of vCPUs that come to a physical CPU of this process; nobody else's."""
        s = self._machine.arena
        wanted = {
            each
            for move in coming
            for number, cpu in zip(move.vcpus, move.pcpus, strict=True)
            if self._rank_of_cpu(cpu) == self._rank
            for each in self._moving(self._machine.vcpus[number].offset)
        }
        for records in rows:
            for offset, words in proto.iter_rows(records, s.size):
                if (offset, words.size) in wanted:
                    s[offset : offset + words.size] = words
