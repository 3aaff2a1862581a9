"""A virtual CPU as an actor: its physical CPU resumes it or lets it go, and it says what comes next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vpmu.actors.actor import Effects, UnexpectedMessage
from vpmu.actors.machine import Machine, VcpuEntry
from vpmu.actors.messages import Address, Message, vcpu
from vpmu.actors.rows import RowMap, Words, copy_words, install
from vpmu.kernels.columns import (
    G_OPERATION,
    G_REGISTER,
    G_STILL,
    G_TIMER_AT,
    G_VALUE,
    G_WATCH,
    SLOTS,
    WATCH_COLUMNS,
)
from vpmu.kernels.guest.step import GUEST_ACCESS
from vpmu.kernels.jit import U64, Arena
from vpmu.kernels.remote import let_guest_go, resume_guest

WATCH_FIRST = int(G_STILL)
WATCH_END = int(G_WATCH) + WATCH_COLUMNS * SLOTS
"""Words of the guest row that say what is counted while it runs, and come back with what was retired."""

_ACCESS = int(GUEST_ACCESS)


@dataclass(frozen=True, slots=True)
class Resume(Message):
    """Enter the guest.

    Parameters
    ----------
    complete : int
        1 if the result of its access comes with it.
    operation, register, outcome, value : int
        That access and its result.
    nmi : int
        1 if a PMI comes, too.
    """

    complete: int
    operation: int
    register: int
    outcome: int
    value: int
    nmi: int


@dataclass(frozen=True, slots=True)
class Go(Message):
    """Run up to ``limit_ns``; ``watch`` says what is counted meanwhile."""

    limit_ns: int
    watch: Arena


@dataclass(frozen=True, slots=True)
class Access(Message):
    """The guest executes an intercepted instruction."""

    operation: int
    register: int
    value: int


@dataclass(frozen=True, slots=True)
class Retired(Message):
    """What the guest wants now, and what it has retired if it was let go.

    Parameters
    ----------
    reason : int
        One of the GUEST_ constants.
    timer_at_ns : int
        Its next timer.
    watch : uint64[n], optional
        The watch list with what was retired; None after a resume.
    access : Access, optional
        If the reason is GUEST_ACCESS.
    """

    reason: int
    timer_at_ns: int
    watch: Arena | None
    access: Access | None


@dataclass(frozen=True, slots=True)
class WantRows(Message):
    """Send the rows of this vCPU: it is being switched in."""


@dataclass(frozen=True, slots=True)
class VcpuRows(Message):
    """The rows of a vCPU, on their way to its physical CPU or back home."""

    words: Words


class VCpu:
    """A vCPU: owns the rows of its guest while they are at home.

    In message mode it takes `Resume` and `Go` and emits `Retired`; otherwise it takes `WantRows`, emits
    `VcpuRows` and takes them back. It has no task of its own.

    Parameters
    ----------
    machine : Machine
        Of this process.
    entry : VcpuEntry
        Which vCPU.
    rows : RowMap
        Of the machine.
    """

    def __init__(self, machine: Machine, entry: VcpuEntry, rows: RowMap) -> None:
        self.address = vcpu(entry.index)
        self._s = machine.arena
        self._log = machine.log
        self._g = U64(entry.guest)
        self._at = entry.guest
        self._slices = rows.state(entry.offset) + rows.guest(entry.offset)
        self.at_home = True
        self._wanted: WantRows | None = None

    def handle(self, to: Address, message: Message) -> Effects:
        """Take a message; return what to send."""
        if isinstance(message, Resume):
            return [(message.source, self._resume(message))]
        if isinstance(message, Go):
            return [(message.source, self._go(message))]
        if isinstance(message, WantRows):
            return self._give(message)
        if isinstance(message, VcpuRows):
            return self._take(message)
        raise UnexpectedMessage(f"{to} cannot take a {type(message).__name__}")

    def _resume(self, message: Resume) -> Retired:
        reason = resume_guest(
            self._s,
            self._log,
            self._g,
            U64(message.at_ns),
            U64(message.complete),
            U64(message.outcome),
            U64(message.value),
            U64(message.nmi),
        )
        return self._answer(int(reason), message.at_ns, None)

    def _go(self, message: Go) -> Retired:
        first, last = self._at + WATCH_FIRST, self._at + WATCH_END
        self._s[first:last] = message.watch
        end, reason = let_guest_go(self._s, self._log, self._g, U64(message.at_ns), U64(message.limit_ns))
        return self._answer(int(reason), int(end), self._s[first:last].copy())

    def _answer(self, reason: int, at_ns: int, watch: Arena | None) -> Retired:
        access = None
        if reason == _ACCESS:
            words = (int(self._s[self._at + int(column)]) for column in (G_OPERATION, G_REGISTER, G_VALUE))
            access = Access(self.address, at_ns, *words)
        timer_at_ns = int(self._s[self._at + int(G_TIMER_AT)])
        return Retired(self.address, at_ns, reason, timer_at_ns, watch, access)

    def _give(self, message: WantRows) -> Effects:
        if not self.at_home:
            # Its last physical CPU lives elsewhere and has let go of it; the rows are on their way.
            self._wanted = message
            return []
        self.at_home = False
        return [(message.source, VcpuRows(self.address, message.at_ns, copy_words(self._s, self._slices)))]

    def _take(self, message: VcpuRows) -> Effects:
        if self.at_home:
            raise UnexpectedMessage(f"{self.address} is at home already")
        install(self._s, message.words)
        self.at_home = True
        wanted, self._wanted = self._wanted, None
        return [] if wanted is None else self._give(wanted)


def watch_of(arena: Arena, guest: int) -> Arena:
    """Return a copy of a guest's watch list."""
    return np.array(arena[guest + WATCH_FIRST : guest + WATCH_END])
