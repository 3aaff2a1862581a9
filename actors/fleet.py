"""A fleet's changes over time: who leaves which host when, who comes to which, and which host reboots.

A run is cut into windows at these times. They are data of the scenario, so that every process knows them
all; what only a run can tell is whether a vCPU has stopped in time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from vpmu.actors.machine import Machine, MoveEntry, PcpuEntry, Pending, RebootEntry
from vpmu.actors.rows import RowMap
from vpmu.kernels.columns import P_DESIGN, P_INTERCEPTS, V_MOVE, V_PARAMETER, V_STATE
from vpmu.kernels.fleet import renew, send_away, take_in
from vpmu.kernels.host.move import MOVE_GONE
from vpmu.kernels.host.scheduler import VCPU_RUNNING
from vpmu.kernels.jit import U64

_GONE, _RUNNING = int(MOVE_GONE), int(VCPU_RUNNING)
Due = list[tuple[str, MoveEntry | RebootEntry]]
"""What happens at a time, in order: "leaves", "comes" or "reboots", and what it is about."""
RETRY_NS = 10_000_000
"""How long a reboot waits for a host that is not empty yet, before it looks again."""


@dataclass(order=True, slots=True)
class _Due:
    at_ns: int
    order: int
    stage: str = field(compare=False)
    what: MoveEntry | RebootEntry = field(compare=False)


class Fleet:
    """What is still to happen to a machine's hosts and VMs.

    Parameters
    ----------
    machine : Machine
        Of this process.
    pending : list of Pending, optional
        As `pending` has returned it, for a run that goes on; else all is still to happen.
    """

    def __init__(self, machine: Machine, pending: list[Pending] | None = None) -> None:
        self._machine = machine
        self._s = machine.arena
        self._rows = RowMap(machine)
        self._order = 0
        self._due: list[_Due] = []
        if pending is not None:
            self._restore(pending)
            return
        for move in machine.moves:
            self._add(move.at_ns, "leaves", move)
            if move.host >= 0:
                self._add(move.at_ns + move.downtime_ns, "comes", move)
        for reboot in machine.reboots:
            self._add(reboot.at_ns + reboot.duration_ns, "reboots", reboot)

    def pending(self) -> list[Pending]:
        """Return what is still to happen."""
        index = {id(each): number for number, each in enumerate(self._machine.moves)}
        index |= {id(each): number for number, each in enumerate(self._machine.reboots)}
        return [
            (each.at_ns, each.order, each.stage, isinstance(each.what, RebootEntry), index[id(each.what)])
            for each in sorted(self._due)
        ]

    def _restore(self, pending: list[Pending]) -> None:
        for at_ns, order, stage, reboots, index in pending:
            what = self._machine.reboots[index] if reboots else self._machine.moves[index]
            heapq.heappush(self._due, _Due(at_ns, order, stage, what))
            self._order = max(self._order, order + 1)

    def _add(self, at_ns: int, stage: str, what: MoveEntry | RebootEntry) -> None:
        heapq.heappush(self._due, _Due(at_ns, self._order, stage, what))
        self._order += 1

    @property
    def next_ns(self) -> int:
        """When something is next to happen, ns; the run's end if nothing is."""
        return min(self._due[0].at_ns, self._machine.until_ns) if self._due else self._machine.until_ns

    def total(self, what: MoveEntry | RebootEntry) -> int:
        """Return how many vCPUs of a VM have left their host, or are on a host, by this process's rows."""
        if isinstance(what, RebootEntry):
            return sum(len(self._rows.queued(pcpu.offset)) for pcpu in self._cpus(what.host))
        return sum(self.is_gone(self._machine.vcpus[number].offset) for number in what.vcpus)

    def is_gone(self, v: int) -> bool:
        """Return whether a vCPU, by its offset, has left a host of this process and come to no other."""
        # Note that it is marked as gone before host perf has scheduled its events out.
        return int(self._s[v + int(V_MOVE)]) == _GONE and int(self._s[v + int(V_STATE)]) != _RUNNING

    def due(self, at_ns: int) -> Due:
        """Take out what happens at a time: (stage, what), in the order in which it does."""
        found = []
        while self._due and self._due[0].at_ns <= at_ns:
            each = heapq.heappop(self._due)
            found.append((each.stage, each.what))
        return found

    def leave(self, move: MoveEntry, here: Callable[[int], bool]) -> None:
        """Ask the vCPUs of a VM to stop; ``here`` as for `settle`."""
        for number in move.vcpus:
            v = self._machine.vcpus[number].offset
            if here(v):
                send_away(self._s, U64(v))

    def renew(self, move: MoveEntry, number: int) -> None:
        """Make KVM's state of a vCPU, by its number in the run, ready for the host that it comes to."""
        v = self._machine.vcpus[number].offset
        for index in range(8):
            value = move.parameters[index] if index < len(move.parameters) else 0
            self._s[v + int(V_PARAMETER) + index] = value
        renew(self._s, U64(v), U64(move.masked))

    def come(self, move: MoveEntry, number: int, cpu: int, at_ns: int) -> None:
        """Let a vCPU come to its new host's physical CPU, both by their numbers in the run."""
        p, v = self._machine.pcpus[cpu].offset, self._machine.vcpus[number].offset
        take_in(self._s, U64(p), U64(v), U64(at_ns), U64(move.pinned))

    def again(self, stage: str, what: MoveEntry | RebootEntry, at_ns: int) -> None:
        """Put something off that could not happen yet."""
        later = what.downtime_ns if isinstance(what, MoveEntry) else RETRY_NS
        self._add(at_ns + later, stage, what)

    def reboot(self, reboot: RebootEntry) -> None:
        """Bring a host up with its new design."""
        for pcpu in self._cpus(reboot.host):
            self._s[pcpu.offset + int(P_DESIGN)] = reboot.design
            self._s[pcpu.offset + int(P_INTERCEPTS)] = 1

    def _cpus(self, host: int) -> list[PcpuEntry]:
        return [pcpu for pcpu in self._machine.pcpus if pcpu.host == host]

    def settle(self, due: Due, totals: list[int], at_ns: int, here: Callable[[int], bool]) -> list[MoveEntry]:
        """Do what is due, but for letting VMs come; return those that can.

        Parameters
        ----------
        due : list of (stage, what)
            As `due` gave it.
        totals : list of int
            For each: how many of its vCPUs have left, or how many are still on the host that is to reboot.
        at_ns : int
        here : callable
            Says whether a vCPU, by its offset, is in a run queue here.
        """
        coming = []
        for (stage, what), total in zip(due, totals, strict=True):
            if isinstance(what, RebootEntry):
                if total:
                    self.again(stage, what, at_ns)
                else:
                    self.reboot(what)
            elif stage == "leaves":
                self.leave(what, here)
            elif total == len(what.vcpus):
                coming.append(what)
            else:
                self.again(stage, what, at_ns)
        return coming

    def turn(self, at_ns: int) -> None:
        """Do all that is due at a time, in a process that has every row."""
        due = self.due(at_ns)
        totals = [self.total(what) for _, what in due]
        for move in self.settle(due, totals, at_ns, _everywhere):
            for number, cpu in zip(move.vcpus, move.pcpus, strict=True):
                self.renew(move, number)
                self.come(move, number, cpu, at_ns)


def _everywhere(offset: int) -> bool:
    return True
