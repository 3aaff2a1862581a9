"""Which words of the arena make up an actor, so that they can be handed over: pairs of offset and length.

A vCPU has three parts. Its *thread* is what the host's scheduler keeps and stays in the run queue; its
*state* is KVM's; its *task* is what host perf keeps for it. A guest is its operating system with threads,
sessions and their events.
"""

from collections.abc import Iterator

import numpy as np

from vpmu.actors.machine import Machine
from vpmu.kernels import columns as col
from vpmu.kernels.jit import Arena

Slices = list[tuple[int, int]]
"""Offset and length, in words."""
Words = list[tuple[int, Arena]]
"""Offset and the words themselves, a copy."""

_CPU_HW = int(col.P_CPU_HW)
_STATE = int(col.V_GUEST_NS)
_MIGRATIONS = int(col.V_MIGRATIONS)
_CONTEXT = int(col.CONTEXT_COLUMNS)
_EVENT = int(col.EVENT_COLUMNS)
_NR_FIXED = col.SLOTS - int(col.FIXED_SLOT)


def copy_words(arena: Arena, slices: Slices) -> Words:
    """Return the words of slices, copied."""
    return [(offset, arena[offset : offset + length].copy()) for offset, length in slices]


def shape(words: Words) -> Slices:
    """Return which slices words are of."""
    return [(offset, len(values)) for offset, values in words]


def install(arena: Arena, words: Words) -> None:
    """Put words where they belong."""
    for offset, values in words:
        arena[offset : offset + len(values)] = values


class RowMap:
    """Finds the rows of every actor of a machine.

    Parameters
    ----------
    machine : Machine
        Offsets in its rows are followed; they never change.
    """

    def __init__(self, machine: Machine) -> None:
        self._s = machine.arena
        self._guests: dict[int, Slices] = {}

    def _word(self, offset: int, column: np.uint64) -> int:
        return int(self._s[offset + int(column)])

    def _find_guest(self, g: int) -> Iterator[tuple[int, int]]:
        yield g, col.GUEST_COLUMNS
        if outside := self._word(g, col.G_OUTSIDE):
            yield outside, col.OUTSIDE_COLUMNS
        yield self._word(g, col.G_CPU_HW + col.U_CPU_CONTEXT), _CONTEXT
        for number in range(self._word(g, col.G_NR_THREADS)):
            thread = self._word(g, col.G_THREADS) + number * col.THREAD_COLUMNS
            yield thread, col.THREAD_COLUMNS
            if context := self._word(thread, col.TH_CONTEXT):
                yield context, _CONTEXT
        for number in range(self._word(g, col.G_NR_SESSIONS)):
            session = self._word(g, col.G_SESSIONS) + number * col.SESSION_COLUMNS
            yield session, col.SESSION_COLUMNS
            yield self._word(session, col.S_FIRST), self._word(session, col.S_NR_EVENTS) * _EVENT

    def guest(self, v: int) -> Slices:
        """Return the guest of a vCPU: operating system, threads, sessions, their contexts and events."""
        found = self._guests.get(v)
        if found is None:
            found = self._guests[v] = list(self._find_guest(self._word(v, col.V_GUEST)))
        return found

    def task(self, v: int) -> Slices:
        """Return what host perf keeps for a vCPU: its context and the events behind its vPMCs."""
        events = (self._word(v, col.V_NR_GP) + _NR_FIXED) * _EVENT
        return [(self._word(v, col.V_CONTEXT), _CONTEXT), (self._word(v, col.V_EVENTS), events)]

    @staticmethod
    def thread(v: int) -> Slices:
        """Return what the host's scheduler keeps of a vCPU."""
        return [(v, _STATE), (v + _MIGRATIONS, 1)]

    @staticmethod
    def state(v: int) -> Slices:
        """Return what KVM keeps of a vCPU."""
        return [(v + _STATE, _MIGRATIONS - _STATE)]

    def wish(self, v: int) -> Slices:
        """Return what the guest of a vCPU asks for: its access and its next timer."""
        g = self._word(v, col.V_GUEST)
        return [(g + int(col.G_TIMER_AT), 1), (g + int(col.G_OPERATION), 3)]

    def pcpu(self, p: int) -> Slices:
        """Return a physical CPU: clock, run queue, hardware counters, and its tools."""
        tools = self._word(p, col.P_NR_TOOLS) * int(col.TOOL_COLUMNS)
        return [(p, _CPU_HW), (self._word(p, col.P_TOOLS), tools)]

    def pcpu_perf(self, p: int) -> Slices:
        """Return what host perf keeps for a physical CPU: cpu_hw_events, context, its tools' events."""
        rows = [(p + _CPU_HW, col.PCPU_COLUMNS - _CPU_HW)]
        rows.append((self._word(p, col.P_CPU_HW + col.U_CPU_CONTEXT), _CONTEXT))
        for number in range(self._word(p, col.P_NR_TOOLS)):
            tool = self._word(p, col.P_TOOLS) + number * int(col.TOOL_COLUMNS)
            rows.append((self._word(tool, col.TO_FIRST), self._word(tool, col.TO_NR_EVENTS) * _EVENT))
        return rows

    def queued(self, p: int) -> list[int]:
        """Return the vCPUs of a physical CPU's run queue, runnable or not."""
        found = []
        v = self._word(p, col.P_QUEUE_HEAD)
        while v:
            found.append(v)
            v = self._word(v, col.V_NEXT)
        return found


assert int(col.V_STEAL_NS) + 1 == _STATE
assert _MIGRATIONS + 1 == col.VCPU_COLUMNS
assert int(col.G_VALUE) == int(col.G_REGISTER) + 1 == int(col.G_OPERATION) + 2
assert int(col.P_QUEUE) + col.QUEUE_COLUMNS == col.PCPU_COLUMNS
