"""Guests that decide outside the kernels: a machine of real code in this process, or another process.

They share engine, host perf, scheduler and designs with every other guest, in strict lock-step: such a guest
is granted a stretch of virtual time and answers once, with what it retired and what it wants. Nothing here
knows how the answer comes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from vpmu.actors.fleet import Fleet
from vpmu.actors.local import STEPS, drain_log
from vpmu.actors.machine import Machine, VcpuEntry
from vpmu.kernels import columns as col
from vpmu.kernels.advance import advance
from vpmu.kernels.engine import ASK_GO, STOP_GUEST, STOP_WINDOW
from vpmu.kernels.events import KIND_BUS_CYCLES, KIND_REF_CYCLES
from vpmu.kernels.guest.step import (
    GUEST_ACCESS,
    GUEST_DONE,
    GUEST_HALT,
    GUEST_LIMIT,
    GUEST_OVERFLOW,
)
from vpmu.kernels.integers import NEVER
from vpmu.kernels.jit import U64, Arena
from vpmu.kernels.log import RECORD_WORDS
from vpmu.kernels.outside import outside_answered
from vpmu.kernels.perf.interrupt import ACCESS_EMULATE, ACCESS_RDPMC, ACCESS_READ, ACCESS_WRITE

_ARCHITECTURAL: Final = frozenset(map(int, (ACCESS_READ, ACCESS_WRITE, ACCESS_RDPMC, ACCESS_EMULATE)))
_EMULATE: Final = int(ACCESS_EMULATE)
_ACCESS, _HALT, _DONE = int(GUEST_ACCESS), int(GUEST_HALT), int(GUEST_DONE)
_OVERFLOW = int(GUEST_OVERFLOW)
_REASONS: Final = frozenset((_ACCESS, _HALT, _DONE, _OVERFLOW, int(GUEST_LIMIT)))
_KINDS: Final = col.TOTALS
_TIME_KINDS: Final = frozenset(map(int, (KIND_REF_CYCLES, KIND_BUS_CYCLES)))
"""Several of them may come in a nanosecond, and a stretch ends at a whole one."""
_WORD: Final = (1 << 64) - 1
_STEPS: Final = U64(STEPS)
_NEVER: Final = int(NEVER)
_GO, _STOP_GUEST, _STOP_WINDOW = int(ASK_GO), int(STOP_GUEST), int(STOP_WINDOW)
_P_NOW, _P_LIMIT, _P_CURRENT, _P_STOP, _P_ASK = map(
    int, (col.P_NOW, col.P_LIMIT, col.P_CURRENT, col.P_STOP, col.P_ASK)
)
_V_PCPU = int(col.V_PCPU)
_R_LOG_COUNT = int(col.R_LOG_COUNT)
_G_NWATCH, _G_WATCH = int(col.G_NWATCH), int(col.G_WATCH)
_W_KIND, _W_CPL, _W_LEFT = map(int, (col.W_KIND, col.W_CPL, col.W_LEFT))
_O_COMPLETE, _O_FAULT, _O_RESULT, _O_COST_NS = map(
    int, (col.O_COMPLETE, col.O_FAULT, col.O_RESULT, col.O_COST_NS)
)
_O_PMI, _O_LVTPC = int(col.O_PMI), int(col.O_LVTPC)


class OutsideError(Exception):
    """A guest's report breaks the rules; whoever asked for it cuts the guest off."""


class Watched(NamedTuple):
    """A counter that counts while the guest runs.

    Attributes
    ----------
    kind : int
        What it counts: a KIND_ constant of `vpmu.kernels.events`.
    levels : int
        Bit 0: in kernel mode (CPL 0); bit 1: in user mode.
    left : int
        Events until its overflow raises a PMI; 0 if that is out of reach, or raises none.
    """

    kind: int
    levels: int
    left: int


class Result(NamedTuple):
    """What became of the access that the guest's last report asked for."""

    fault: bool
    value: int
    cost_ns: int


class Grant(NamedTuple):
    """The guest may go on.

    Attributes
    ----------
    now_ns, limit_ns : int
        From when, and up to when.
    result : Result or None
        Of the access that it asked for last.
    pmi : int or None
        The LVTPC's word with which a performance interrupt is delivered now: vector in bits 7:0, delivery
        mode in bits 10:8.
    watched : tuple of Watched
    """

    now_ns: int
    limit_ns: int
    result: Result | None
    pmi: int | None
    watched: tuple[Watched, ...]


@dataclass(slots=True)
class Report:
    """What a guest did since it was granted a stretch, and what it wants.

    Attributes
    ----------
    end_ns : int
        When it stopped.
    reason : int
        GUEST_ACCESS, GUEST_LIMIT, GUEST_OVERFLOW, GUEST_HALT or GUEST_DONE of `vpmu.kernels.guest.step`.
    retired : dict
        Events by (kind, level), with level 1 in kernel mode and 2 in user mode.
    operation, register, value, level : int
        With GUEST_ACCESS: an ACCESS_ constant of `vpmu.kernels.perf.interrupt`, MSR number or RDPMC index,
        the word to write, and the level. The instruction itself is not among the retired.
    timer_at_ns : int
        With GUEST_HALT: when it wakes by itself.
    """

    end_ns: int
    reason: int
    retired: dict[tuple[int, int], int] = field(default_factory=dict)
    operation: int = 0
    register: int = 0
    value: int = 0
    level: int = 1
    timer_at_ns: int = _NEVER


def time_events(start_ns: int, end_ns: int, tsc_rate: int, bus_rate: int) -> dict[int, int]:
    """Return the reference and bus cycles of a span, by kind; rates are in 1/2**28 per ns."""
    return {
        int(KIND_REF_CYCLES): (end_ns * tsc_rate >> 28) - (start_ns * tsc_rate >> 28),
        int(KIND_BUS_CYCLES): (end_ns * bus_rate >> 28) - (start_ns * bus_rate >> 28),
    }


class OutsideVcpu:
    """A vCPU whose guest decides outside the kernels.

    Parameters
    ----------
    machine : Machine
    entry : VcpuEntry
        Which vCPU; its guest has a row in the table ``outside``.
    overshoot : bool
        Whether it may notice an overflow late, as code that is executed block by block does.
    """

    def __init__(self, machine: Machine, entry: VcpuEntry, *, overshoot: bool = False) -> None:
        self.index = entry.index
        self.name = entry.vm if entry.vcpu == 0 else f"{entry.vm}/{entry.vcpu}"
        self.vm, self.vcpu = entry.vm, entry.vcpu
        self._s = machine.arena
        self._words = machine.arena.data
        self._v, self._g = entry.offset, entry.guest
        self._o = self._words[self._g + int(col.G_OUTSIDE)]
        self._overshoot = overshoot
        self._retired = np.zeros(2 * _KINDS, dtype=np.uint64)
        self._told = np.zeros(8, dtype=np.uint64)
        self._granted: Grant | None = None
        self.lost = ""

    @property
    def intercepts(self) -> bool:
        """Whether its accesses leave the guest; if not, each one's instruction is the guest's to report."""
        return bool(self._words[self._p + int(col.P_INTERCEPTS)])

    @property
    def core_rate(self) -> int:
        """Core cycles per ns, in 1/2**28."""
        return self._words[self._g + int(col.G_CORE_RATE)]

    @property
    def tsc_rate(self) -> int:
        """Ticks of the TSC per ns, in 1/2**28."""
        return self._words[self._g + int(col.G_TSC_RATE)]

    @property
    def bus_rate(self) -> int:
        """Bus cycles per ns, in 1/2**28."""
        return self._words[self._g + int(col.G_BUS_RATE)]

    @property
    def pmu(self) -> tuple[int, int, int, int]:
        """Version, general-purpose and fixed counters, and IA32_PERF_CAPABILITIES."""
        columns = (col.V_VERSION, col.V_NR_GP, col.V_NR_FIXED, col.V_CAPABILITIES)
        version, nr_gp, nr_fixed, capabilities = (self._words[self._v + int(each)] for each in columns)
        return version, nr_gp, nr_fixed, capabilities

    @property
    def _p(self) -> int:
        return self._words[self._v + _V_PCPU]

    def ask(self) -> Grant | None:
        """Return what it is granted, if its physical CPU waits for its report; the same until it has come."""
        words, p = self._words, self._p
        if words[p + _P_STOP] != _STOP_GUEST or words[p + _P_CURRENT] != self._v:
            return None
        if self._granted is None:
            assert words[p + _P_ASK] == _GO
            self._granted = Grant(
                words[p + _P_NOW], words[p + _P_LIMIT], self._result(), self._pmi(), self._watched()
            )
        if self.lost:
            self.answer(Report(self._granted.now_ns, _HALT))
            return None
        return self._granted

    def _result(self) -> Result | None:
        words, o = self._words, self._o
        if not words[o + _O_COMPLETE]:
            return None
        return Result(words[o + _O_FAULT] != 0, words[o + _O_RESULT], words[o + _O_COST_NS])

    def _pmi(self) -> int | None:
        return self._words[self._o + _O_LVTPC] if self._words[self._o + _O_PMI] else None

    def _watched(self) -> tuple[Watched, ...]:
        words, first = self._words, self._g + _G_WATCH
        end = first + words[self._g + _G_NWATCH] * col.WATCH_COLUMNS
        return tuple(
            [
                Watched(words[w + _W_KIND], words[w + _W_CPL], words[w + _W_LEFT])
                for w in range(first, end, col.WATCH_COLUMNS)
            ]
        )

    def answer(self, report: Report) -> None:
        """Go on with a report.

        Raises
        ------
        OutsideError
            If it breaks the rules; nothing has changed then.
        """
        grant = self._granted
        if grant is None:
            raise OutsideError("a report that nobody has asked for")
        self._check(grant, report)
        retired = self._retired
        retired.fill(0)
        words = retired.data
        for (kind, level), events in report.retired.items():
            words[kind + (level - 1) * _KINDS] = events
        self._granted = None
        told = self._told.data
        told[0], told[1], told[2] = self._p, report.end_ns, report.reason
        told[3], told[4], told[5] = report.operation, report.register, report.value
        told[6], told[7] = report.level, min(report.timer_at_ns, _NEVER)
        # Note that an array hands its words out as uint64 faster than they are made from Python's integers.
        p, *rest = self._told
        outside_answered(self._s, p, retired, *rest)

    def _check(self, grant: Grant, report: Report) -> None:
        """Hold a report against the grant that it answers."""
        if report.end_ns < grant.now_ns:
            raise OutsideError(f"ran backwards: from {grant.now_ns} ns to {report.end_ns} ns")
        if report.end_ns > grant.limit_ns:
            raise OutsideError(f"ran to {report.end_ns} ns, it may up to {grant.limit_ns} ns")
        if report.reason not in _REASONS:
            raise OutsideError(f"unknown reason {report.reason}")
        if report.reason == _ACCESS:
            self._check_access(report)
        if not 0 <= report.timer_at_ns <= _WORD:
            raise OutsideError(f"{report.timer_at_ns} is no time")
        for (kind, level), events in report.retired.items():
            if not 0 <= kind < _KINDS or level not in (1, 2) or not 0 <= events < 1 << 48:
                raise OutsideError(f"retired {events} events of kind {kind} at level {level}")
        if not self._overshoot:
            self._check_left(grant, report)

    @staticmethod
    def _check_access(report: Report) -> None:
        if report.operation not in _ARCHITECTURAL:
            raise OutsideError(f"unknown access {report.operation}")
        if report.level not in (1, 2):
            raise OutsideError(f"an access at level {report.level}")
        if not (0 <= report.register < 1 << 32 and 0 <= report.value <= _WORD):
            raise OutsideError(f"access to {report.register:#x} with {report.value:#x}")
        if report.operation == _EMULATE and report.register > 3:
            raise OutsideError(f"an emulated instruction that retires {report.register:#x}")

    @staticmethod
    def _check_left(grant: Grant, report: Report) -> None:
        """Refuse more events than were left to an overflow, or an overflow that goes unsaid."""
        for each in grant.watched:
            if not each.left:
                continue
            levels = [level for level in (1, 2) if each.levels & level]
            events = sum(report.retired.get((each.kind, level), 0) for level in levels)
            if events > each.left and each.kind not in _TIME_KINDS:
                raise OutsideError(f"retired {events} events of kind {each.kind}, {each.left} were granted")
            if events >= each.left and report.reason != _OVERFLOW:
                raise OutsideError(f"the overflow of kind {each.kind} ends a stretch")

    def cut_off(self, reason: str) -> None:
        """Let it halt for ever where it was last granted to go on.

        Parameters
        ----------
        reason : str
            Shown in the result.
        """
        self.lost = self.lost or reason
        self.ask()


class Outside:
    """All guests of a machine that decide outside the kernels, and the way from one grant to the next.

    Parameters
    ----------
    machine : Machine
        All of its hosts are in this process.
    overshoot : collection of str
        Names of VMs whose guests may notice an overflow late.
    """

    def __init__(self, machine: Machine, overshoot: frozenset[str] = frozenset()) -> None:
        self._machine = machine
        self._fleet = Fleet(machine)
        self._words = machine.arena.data
        self._nothing = machine.log[:0].reshape(0, RECORD_WORDS)
        self.vcpus = [
            OutsideVcpu(machine, entry, overshoot=entry.vm in overshoot)
            for entry in machine.vcpus
            if machine.arena[entry.guest + int(col.G_OUTSIDE)]
        ]
        self.finished = False

    def advance(self) -> Arena:
        """Advance the machine until a guest is asked, or to its end; return the records of it.

        Call it again when all that were asked have answered: what it does for one does not depend on when
        the others answer. Returns after about 0.1 s of work in any case, `uint64[n, RECORD_WORDS]`.
        """
        machine = self._machine
        window = min(machine.until_ns, self._fleet.next_ns)
        stop = int(advance(machine.arena, machine.log, U64(window), _STEPS))
        if stop == _STOP_WINDOW:
            if window == machine.until_ns:
                self.finished = True
            else:
                self._fleet.turn(window)
        return drain_log(machine) if self._words[_R_LOG_COUNT] else self._nothing
