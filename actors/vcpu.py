"""A virtual CPU as an actor: its physical CPU resumes it or lets it go, and it says what comes next."""

from __future__ import annotations

from vpmu.actors.actor import Effects, UnexpectedMessage
from vpmu.actors.machine import Machine, VcpuEntry
from vpmu.actors.messages import Address, Message, vcpu
from vpmu.actors.rows import RowMap, Words, copy_words, install, shape
from vpmu.kernels.columns import (
    G_NWATCH,
    G_OPERATION,
    G_REGISTER,
    G_STILL,
    G_TIMER_AT,
    G_VALUE,
    G_WATCH,
    SLOTS,
    WATCH_COLUMNS,
)
from vpmu.kernels.guest.step import GUEST_ACCESS, GUEST_RUN
from vpmu.kernels.jit import U64
from vpmu.kernels.remote import let_guest_go, resume_guest

_STILL, _NWATCH = int(G_STILL), int(G_NWATCH)
_OPERATION, _REGISTER, _VALUE = int(G_OPERATION), int(G_REGISTER), int(G_VALUE)
_TIMER_AT, _ACCESS, _RUN = int(G_TIMER_AT), int(GUEST_ACCESS), int(GUEST_RUN)
_FLAG = (U64(0), U64(1))

assert _STILL + 1 == _NWATCH
assert int(G_WATCH) == _STILL + 2


def watch_bytes(nr_watched: int) -> int:
    """Return the length of a watch list in bytes; ValueError if nobody can watch so many counters."""
    if not 0 <= nr_watched <= SLOTS:
        raise ValueError(f"{nr_watched} counters are watched, there are {SLOTS}")
    return 8 * (2 + WATCH_COLUMNS * nr_watched)


class WatchList:
    """The words of a guest's row that say what is counted while it runs, and come back with what was retired.

    Parameters
    ----------
    machine : Machine
        Of this process.
    """

    def __init__(self, machine: Machine) -> None:
        self._words = machine.arena.data
        self._bytes = machine.arena.data.cast("B")

    def read(self, guest: int) -> bytes:
        """Return a guest's watch list: G_STILL, G_NWATCH and as many entries of G_WATCH."""
        first = 8 * (guest + _STILL)
        return self._bytes[first : first + watch_bytes(self._words[guest + _NWATCH])].tobytes()

    def write(self, guest: int, watch: bytes) -> None:
        """Put a watch list into a guest's row."""
        first = 8 * (guest + _STILL)
        self._bytes[first : first + len(watch)] = watch


class Go(Message, frozen=True):
    """Run up to ``limit_ns``; ``watch`` says what is counted meanwhile (`WatchList`)."""

    limit_ns: int
    watch: bytes


class Resume(Message, frozen=True):
    """Enter the guest.

    Parameters
    ----------
    complete : int
        1 if the result of its access comes with it.
    operation, register, outcome, value : int
        That access and its result.
    nmi : int
        1 if a PMI comes, too.
    limit_ns : int
        If it then has code to run: up to when it may; 0 if it has to ask.
    watch : bytes
        What is counted meanwhile, as in `Go`; empty if it has to ask.
    """

    complete: int
    operation: int
    register: int
    outcome: int
    value: int
    nmi: int
    limit_ns: int = 0
    watch: bytes = b""


class Access(Message, frozen=True):
    """The guest executes an intercepted instruction."""

    operation: int
    register: int
    value: int


class Retired(Message, frozen=True):
    """What the guest wants now, and what it has retired if it has run.

    Parameters
    ----------
    reason : int
        One of the GUEST_ constants.
    timer_at_ns : int
        Its next timer.
    watch : bytes
        The watch list with what was retired; empty if it has not run.
    access : Access, optional
        If the reason is GUEST_ACCESS.
    """

    reason: int
    timer_at_ns: int
    watch: bytes
    access: Access | None


class WantRows(Message, frozen=True):
    """Send the rows of this vCPU: it is being switched in."""


class VcpuRows(Message, frozen=True):
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
        self._words = machine.arena.data
        self._log = machine.log
        self._g = U64(entry.guest)
        self._at = entry.guest
        self._watch = WatchList(machine)
        self._slices = rows.state(entry.offset) + rows.guest(entry.offset)
        self.at_home = True
        self._wanted: WantRows | None = None
        self._accesses = False

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
        words, at = self._words, self._at
        access = (words[at + _OPERATION], words[at + _REGISTER])
        if message.complete != self._accesses or (
            self._accesses and (message.operation, message.register) != access
        ):
            raise UnexpectedMessage(f"{self.address} got the result of an access that it does not make")
        reason = resume_guest(
            self._s,
            self._log,
            self._g,
            U64(message.at_ns),
            _FLAG[message.complete],
            U64(message.outcome),
            U64(message.value),
            _FLAG[message.nmi],
        )
        if reason == _RUN and message.watch:
            return self._go(message)
        return self._answer(int(reason), message.at_ns, b"")

    def _go(self, message: Go | Resume) -> Retired:
        if isinstance(message, Go) and self._accesses:
            raise UnexpectedMessage(f"{self.address} is to run, but waits for the result of its access")
        self._watch.write(self._at, message.watch)
        now, limit = U64(message.at_ns), U64(message.limit_ns)
        end, reason = let_guest_go(self._s, self._log, self._g, now, limit)
        return self._answer(int(reason), int(end), self._watch.read(self._at))

    def _answer(self, reason: int, at_ns: int, watch: bytes) -> Retired:
        words, at = self._words, self._at
        access = None
        self._accesses = reason == _ACCESS
        if self._accesses:
            operation, register = words[at + _OPERATION], words[at + _REGISTER]
            access = Access(self.address, at_ns, operation, register, words[at + _VALUE])
        return Retired(self.address, at_ns, reason, words[at + _TIMER_AT], watch, access)

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
        if shape(message.words) != self._slices:
            raise UnexpectedMessage(f"{message.source} sent home other rows than those of {self.address}")
        install(self._s, message.words)
        self.at_home = True
        wanted, self._wanted = self._wanted, None
        return [] if wanted is None else self._give(wanted)
