"""Host perf as an actor: it answers calls of physical CPUs, keeps the reservation, balances their load.

The physical CPUs of a host may live in several processes; those of one process are a *share*, which speaks
through its first. A share says when it can go no further. Once all have, nobody can ask earlier than the
earliest request, which is then served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vpmu.actors.actor import Effects, UnexpectedMessage
from vpmu.actors.call_words import CALL_END, CALL_FIRST, CallWords
from vpmu.actors.machine import HostEntry, Machine, PcpuEntry
from vpmu.actors.messages import Address, Message, host_perf, physical_cpu
from vpmu.actors.rows import RowMap, Words, copy_words, install, shape
from vpmu.kernels.columns import (
    H_BALANCE_AT,
    H_BALANCE_NS,
    H_FLOATING,
    H_REMOTE,
    P_CPU_HW,
    P_ID,
    P_NR_TOOLS,
    P_STOP,
    P_TOOLS,
    TOOL_COLUMNS,
    U_MUX_AT,
    V_ID,
)
from vpmu.kernels.engine import STOP_AWAY
from vpmu.kernels.jit import U64
from vpmu.kernels.remote import balance_host, give_reservation, serve_call, take_reservation

_MUX_AT = int(P_CPU_HW + U_MUX_AT)
_CPU_HW, _TOOL = int(P_CPU_HW), int(TOOL_COLUMNS)


class PerfRequest(Message, frozen=True):
    """A call to host perf: the words of the physical CPU's row that travel."""

    words: bytes


class PerfReply(Message, frozen=True):
    """The same words after the call, and when the multiplexing timer fires next."""

    words: bytes
    mux_at_ns: int


@dataclass(frozen=True, slots=True)
class Request:
    """What a share waits for: which physical CPU reserves the hardware or gives it up, and since when."""

    at_ns: int
    pcpu: int
    gives_up: int


class Waiting(Message, frozen=True):
    """A share goes no further: it waits for a request's answer, or is at a window's end with these loads."""

    request: Request | None
    loads: tuple[int, ...]


class Reserved(Message, frozen=True):
    """The hardware reservation's answer: when the mutex is had, and how long the work under it takes."""

    pcpu: int
    start_ns: int
    work_ns: int


class GiveRows(Message, frozen=True):
    """Send the rows that load balancing needs."""


class ShareRows(Message, frozen=True):
    """Rows of physical CPUs and their run queues, for load balancing and back."""

    words: Words


class Passed(Message, frozen=True):
    """The balance point is passed; go on to the next.

    Parameters
    ----------
    balance_at_ns : int
        The next.
    comings : int
        vCPUs that come from other processes; go on when they are there.
    goings : tuple of (int, Address)
        vCPUs to send away, and to which share.
    """

    balance_at_ns: int
    comings: int
    goings: tuple[tuple[int, Address], ...]


class HostPerf:
    """A host's perf subsystem: owns the reservation's row, in message mode also all contexts and events.

    Takes `PerfRequest`, `Waiting` and `ShareRows`; emits `PerfReply`, `Reserved`, `GiveRows`, `ShareRows` and
    `Passed`. It has no task of its own.

    Parameters
    ----------
    machine : Machine
        Of this process.
    entry : HostEntry
        Which host.
    shares : mapping of Address to list of PcpuEntry
        Its physical CPUs by share.
    here : set of int
        Offsets of the physical CPUs that live in this process.
    rows : RowMap
        Of the machine.
    """

    def __init__(
        self,
        machine: Machine,
        entry: HostEntry,
        shares: Mapping[Address, Sequence[PcpuEntry]],
        here: set[int],
        rows: RowMap,
    ) -> None:
        self.address = host_perf(entry.index)
        self._machine = machine
        self._s = machine.arena
        self._words = machine.arena.data
        self._bytes = machine.arena.data.cast("B")
        self._h = entry.offset
        self._shares = shares
        self._share_of = {pcpu.offset: share for share, pcpus in shares.items() for pcpu in pcpus}
        self._pcpus = {pcpu.index: pcpu for pcpus in shares.values() for pcpu in pcpus}
        self._callers = {physical_cpu(pcpu.index): pcpu for pcpu in self._pcpus.values()}
        self._calls = CallWords(machine.arena)
        self._here = here
        self._rows = rows
        self._waiting: dict[Address, Waiting] = {}
        self._promised = dict.fromkeys(shares, 0)
        self._gathering = False
        self._gathered: set[Address] = set()
        self._vcpus = {each.offset for each in machine.vcpus_of(entry.index)}
        self._tools = {p.offset: self._tools_of(p.offset) for p in self._pcpus.values()}
        threads = {each for v in self._vcpus for each in rows.thread(v)}
        self._balanced = {
            share: threads | {(p.offset, _CPU_HW) for p in pcpus} for share, pcpus in shares.items()
        }
        floats = bool(self._s[self._h + int(H_FLOATING)])
        self._balance_at = int(self._s[self._h + int(H_BALANCE_AT)]) if floats else machine.until_ns
        self._until = machine.until_ns

    def go_on(self, until_ns: int) -> None:
        """Begin the next window: nobody waits before ``until_ns`` but to balance."""
        self._until = until_ns
        self._waiting.clear()

    def handle(self, to: Address, message: Message) -> Effects:
        """Take a message; return what to send."""
        if isinstance(message, PerfRequest):
            return [(message.source, self._serve(message))]
        if isinstance(message, Waiting):
            return self._note_waiting(message)
        if isinstance(message, ShareRows):
            return self._note_rows(message)
        raise UnexpectedMessage(f"{to} cannot take a {type(message).__name__}")

    def _tools_of(self, p: int) -> set[int]:
        first = self._words[p + int(P_TOOLS)]
        return {first + number * _TOOL for number in range(self._words[p + int(P_NR_TOOLS)])}

    def _serve(self, message: PerfRequest) -> PerfReply:
        pcpu = self._callers.get(message.source)
        if pcpu is None:
            raise UnexpectedMessage(f"{message.source} is not a physical CPU of {self.address}")
        tools = self._tools[pcpu.offset]
        source, at_ns = message.source, message.at_ns
        self._calls.check_request(source, pcpu.offset, message.words, at_ns, self._until, self._vcpus, tools)
        first, last = 8 * (pcpu.offset + CALL_FIRST), 8 * (pcpu.offset + CALL_END)
        self._bytes[first:last] = message.words
        serve_call(self._s, U64(pcpu.offset))
        mux_at_ns = self._words[pcpu.offset + _MUX_AT]
        return PerfReply(self.address, message.at_ns, self._bytes[first:last].tobytes(), mux_at_ns)

    def _note_waiting(self, message: Waiting) -> Effects:
        if message.source not in self._shares or message.source in self._waiting:
            raise UnexpectedMessage(f"{message.source} waits for {self.address} out of turn")
        self._check_promise(message)
        self._waiting[message.source] = message
        if len(self._waiting) < len(self._shares):
            return []
        requests = [each.request for each in self._waiting.values() if each.request is not None]
        if requests:
            return self._serve_request(min(requests, key=lambda each: (each.at_ns, each.pcpu)))
        return self._end_window()

    def _check_promise(self, message: Waiting) -> None:
        """Refuse a promise that goes behind the last one, or is about what others have."""
        share, request = message.source, message.request
        if message.at_ns < self._promised[share]:
            raise UnexpectedMessage(f"{share} waits at {message.at_ns} ns, behind {self._promised[share]} ns")
        self._promised[share] = message.at_ns
        pcpus, window = self._shares[share], min(self._balance_at, self._until)
        if request is None:
            if message.at_ns != window or len(message.loads) != len(pcpus):
                raise UnexpectedMessage(f"{share} waits at the end of another window, {message.at_ns} ns")
        elif request.pcpu not in [pcpu.index for pcpu in pcpus] or message.at_ns >= window:
            raise UnexpectedMessage(f"{share} asks for physical_cpu {request.pcpu}, {message.at_ns} ns")

    def _serve_request(self, request: Request) -> Effects:
        pcpu = self._pcpus[request.pcpu]
        share = self._share_of[pcpu.offset]
        del self._waiting[share]
        serve = give_reservation if request.gives_up else take_reservation
        actor = self._s[pcpu.offset + int(P_ID)]
        start, work = serve(self._s, U64(self._h), actor, U64(request.at_ns))
        return [(share, Reserved(self.address, request.at_ns, request.pcpu, int(start), int(work)))]

    def _end_window(self) -> Effects:
        at = self._balance_at
        if at >= self._until:
            return []
        loads = [load for waiting in self._waiting.values() for load in waiting.loads]
        self._waiting.clear()
        if max(loads) < min(loads) + 2:
            self._balance_at += self._balance_ns()
            return [(share, Passed(self.address, at, self._balance_at, 0, ())) for share in self._shares]
        self._gathering = True
        return [(share, GiveRows(self.address, at)) for share in self._shares]

    def _balance_ns(self) -> int:
        return int(self._s[self._h + int(H_BALANCE_NS)])

    def _note_rows(self, message: ShareRows) -> Effects:
        share = message.source
        if not self._gathering or share not in self._shares or share in self._gathered:
            raise UnexpectedMessage(f"rows from {share}, which {self.address} did not ask for")
        if not self._balanced[share].issuperset(shape(message.words)):
            raise UnexpectedMessage(f"rows from {share} that are not its own")
        install(self._s, message.words)
        self._gathered.add(message.source)
        if len(self._gathered) < len(self._shares):
            return []
        self._gathered.clear()
        self._gathering = False
        return self._balance()

    def _balance(self) -> Effects:
        before = self._share_of_vcpus()
        balance_host(self._s, U64(self._h))
        after = self._share_of_vcpus()
        at, self._balance_at = self._balance_at, self._balance_at + self._balance_ns()
        effects: Effects = []
        for share, pcpus in self._shares.items():
            slices = [each for pcpu in pcpus for each in balance_slices(self._rows, pcpu.offset)]
            goings = tuple(
                (int(self._s[v + int(V_ID)]), its)
                for v, its in after.items()
                if before[v] == share and its != share
            )
            comings = sum(1 for v, its in after.items() if its == share and before[v] != share)
            effects.append((share, ShareRows(self.address, at, copy_words(self._s, slices))))
            effects.append((share, Passed(self.address, at, self._balance_at, comings, goings)))
        for offset in self._share_of:
            if offset not in self._here:
                self._s[offset + int(P_STOP)] = STOP_AWAY
        return effects

    def _share_of_vcpus(self) -> dict[int, Address]:
        return {v: share for p, share in self._share_of.items() for v in self._rows.queued(p)}

    def finish(self) -> None:
        """Leave the row as one process would, at the end of a run."""
        self._s[self._h + int(H_REMOTE)] = U64(0)
        self.settle()

    def settle(self) -> None:
        """Write what this actor knows for itself into its row."""
        if self._s[self._h + int(H_FLOATING)]:
            self._s[self._h + int(H_BALANCE_AT)] = U64(self._balance_at)


def balance_slices(rows: RowMap, p: int) -> list[tuple[int, int]]:
    """Return what load balancing needs of a physical CPU: its row, and its run queue's threads."""
    threads = [each for v in rows.queued(p) for each in rows.thread(v)]
    return [(p, int(P_CPU_HW)), *threads]
