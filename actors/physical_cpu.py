"""The physical CPUs of a process as actors: one kernel call advances them all, those that stop ask.

A physical CPU that has asked stands still until the answer is there; the others go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from vpmu.actors.actor import Effects, UnexpectedMessage
from vpmu.actors.call_words import CALL_END, CALL_FIRST, CallWords
from vpmu.actors.host_perf import (
    GiveRows,
    Passed,
    PerfReply,
    PerfRequest,
    Request,
    Reserved,
    ShareRows,
    Waiting,
    balance_slices,
)
from vpmu.actors.machine import Machine, PcpuEntry
from vpmu.actors.messages import Address, Message, host_perf, physical_cpu, vcpu
from vpmu.actors.rows import RowMap, Slices, Words, copy_words, install, shape
from vpmu.actors.vcpu import Go, Resume, Retired, VcpuRows, WantRows, WatchList, watch_bytes
from vpmu.kernels.advance import advance
from vpmu.kernels.columns import (
    G_NWATCH,
    G_OPERATION,
    G_REGISTER,
    G_TIMER_AT,
    G_VALUE,
    H_BALANCE_AT,
    H_FLOATING,
    P_ASK,
    P_CPU_HW,
    P_CURRENT,
    P_LIMIT,
    P_NOW,
    P_REMOTE_GUEST,
    P_REMOTE_PERF,
    P_STOP,
    P_STOP_AT,
    U_MUX_AT,
    V_COMPLETE,
    V_GUEST,
    V_ID,
    V_INJECT,
    V_OUTCOME,
    V_VALUE,
)
from vpmu.kernels.engine import (
    ASK_AWAY,
    ASK_GO,
    ASK_ROWS,
    GUEST_ANSWERS,
    GUEST_TRAVELS,
    ROWS_HERE,
    STOP_GUEST,
    STOP_NONE,
    STOP_PERF,
    STOP_RESERVE,
    STOP_UNRESERVE,
    STOP_WINDOW,
)
from vpmu.kernels.jit import U64
from vpmu.kernels.remote import call_served, guest_answered, reservation_served, runnable_vcpus

STEPS = U64(1_000_000)
_MUX_AT = int(P_CPU_HW + U_MUX_AT)
_GUEST, _PERF = int(STOP_GUEST), int(STOP_PERF)
_RESERVE, _UNRESERVE = int(STOP_RESERVE), int(STOP_UNRESERVE)
_GO, _ROWS, _AWAY = int(ASK_GO), int(ASK_ROWS), int(ASK_AWAY)
_WINDOW = int(STOP_WINDOW)
# Indices into the words of a row.
_ASK, _CURRENT, _LIMIT, _NOW = int(P_ASK), int(P_CURRENT), int(P_LIMIT), int(P_NOW)
_STOP, _STOP_AT, _GUEST_ROW, _ID = int(P_STOP), int(P_STOP_AT), int(V_GUEST), int(V_ID)
_COMPLETE, _OUTCOME, _VALUE, _INJECT = int(V_COMPLETE), int(V_OUTCOME), int(V_VALUE), int(V_INJECT)
_WANTS, _WANTS_OF, _WANTS_VALUE = int(G_OPERATION), int(G_REGISTER), int(G_VALUE)
_TIMER_AT, _NWATCH = int(G_TIMER_AT), int(G_NWATCH)
_FLAG = (U64(0), U64(1))


class Guests(IntEnum):
    """How guests take part in a physical CPU's process."""

    HERE = 0
    """Their rows are where their physical CPU is."""
    ANSWER = int(GUEST_ANSWERS)
    """Message mode: they answer by message."""
    TRAVEL = int(GUEST_TRAVELS)
    """Their rows come when they are switched in."""


class VcpuComes(Message, frozen=True):
    """A vCPU moves here from a physical CPU of another process: the rows that came with it."""

    words: Words


@dataclass(slots=True)
class _Share:
    """The physical CPUs of one host in this process."""

    address: Address
    host: int
    offset: int
    pcpus: list[PcpuEntry]
    waits: bool = False
    request: Request | None = None
    finished: bool = False
    came: int = 0
    passed: Passed | None = None
    asked: set[int] = field(default_factory=set)
    balanced: set[tuple[int, int]] = field(default_factory=set)
    """Slices that load balancing may change."""


class PhysicalCpus:
    """The physical CPUs of a process: own their rows, and those of the vCPUs in their run queues.

    Takes `Retired` and `VcpuRows` from vCPUs, `PerfReply`, `Reserved`, `GiveRows`, `ShareRows` and `Passed`
    from host perf, `VcpuComes` from other physical CPUs; emits what they answer. It has nothing more to do
    when `finished` says so.

    Parameters
    ----------
    machine : Machine
        Of this process.
    shares : mapping of Address to list of PcpuEntry
        The physical CPUs that live here and belong to a host of several processes, by share.
    rows : RowMap
        Of the machine.
    guests : Guests
        How guests take part.
    """

    def __init__(
        self, machine: Machine, shares: Mapping[Address, Sequence[PcpuEntry]], rows: RowMap, guests: Guests
    ) -> None:
        self._machine = machine
        self._s = machine.arena
        self._words = machine.arena.data
        self._bytes = machine.arena.data.cast("B")
        self._watch = WatchList(machine)
        self._calls = CallWords(machine.arena)
        self._rows = rows
        self._guests = guests
        self._until = machine.until_ns
        hosts = machine.hosts
        self._shares = {
            address: _Share(address, pcpus[0].host, hosts[pcpus[0].host].offset, list(pcpus))
            for address, pcpus in shares.items()
        }
        for share in self._shares.values():
            vcpus = [each.offset for each in machine.vcpus_of(share.host)]
            share.balanced |= {each for v in vcpus for each in rows.thread(v)}
            share.balanced |= {(pcpu.offset, int(P_CPU_HW)) for pcpu in share.pcpus}
        self._movings = {self.moving_slices(each.offset)[0][0]: each.offset for each in machine.vcpus}
        """vCPUs by where the rows that move with them begin."""
        self._share_at = {pcpu.offset: share for share in self._shares.values() for pcpu in share.pcpus}
        self._pcpus = [pcpu for share in self._shares.values() for pcpu in share.pcpus]
        self._at = {physical_cpu(pcpu.index): pcpu for pcpu in self._pcpus}
        self._addresses = {pcpu.offset: address for address, pcpu in self._at.items()}
        self._vcpus = [vcpu(entry.index) for entry in machine.vcpus]
        self._stops = np.array([pcpu.offset + int(P_STOP) for pcpu in self._pcpus], dtype=np.intp)
        self.visitors: set[int] = set()
        """Offsets of vCPUs whose rows have travelled here."""
        self._idle_kernel = False
        for pcpu in self._pcpus:
            self._s[pcpu.offset + int(P_REMOTE_GUEST)] = U64(guests)
            self._s[pcpu.offset + int(P_REMOTE_PERF)] = U64(guests is Guests.ANSWER)

    @property
    def finished(self) -> bool:
        """Whether every physical CPU is at the run's end."""
        return self._idle_kernel and all(share.finished for share in self._shares.values())

    def go_on(self, until_ns: int) -> None:
        """Begin the next window, which ends at ``until_ns``."""
        self._until = until_ns
        self._idle_kernel = False
        for share in self._shares.values():
            share.waits = False
            share.request = None
            share.finished = False

    def addresses(self) -> list[Address]:
        """Return the addresses of the physical CPUs that live here."""
        return list(self._at)

    def turn(self) -> tuple[Effects, bool]:
        """Advance all that can go on; return what to send, and whether there is more to do at once."""
        stop = advance(self._s, self._machine.log, U64(self._until), STEPS)
        more = int(stop) != _WINDOW
        effects: Effects = []
        for index in self._s[self._stops].nonzero()[0].tolist():
            pcpu = self._pcpus[index]
            asked = self._share_at[pcpu.offset].asked
            if pcpu.offset not in asked:
                more |= self._ask(pcpu, self._words[pcpu.offset + _STOP], asked, effects)
        self._idle_kernel = not more
        if not more:
            for share in self._shares.values():
                if not (share.asked or share.waits or share.finished):
                    self._report(share, effects)
        return effects, more

    def _ask(self, pcpu: PcpuEntry, stop: int, asked: set[int], effects: Effects) -> bool:
        """Ask what a physical CPU needs to go on; return whether it can at once."""
        if stop == _PERF:
            effects.append((host_perf(pcpu.host), self._perf_request(pcpu)))
        elif stop != _GUEST:
            return False
        else:
            ask = self._words[pcpu.offset + _ASK]
            if ask == _AWAY:
                self._send_home(pcpu, effects)
                return True
            effects.append(self._guest_message(pcpu, ask))
        asked.add(pcpu.offset)
        return False

    def _word(self, offset: int, column: np.uint64) -> int:
        return self._words[offset + int(column)]

    def _perf_request(self, pcpu: PcpuEntry) -> PerfRequest:
        p = pcpu.offset
        words = self._bytes[8 * (p + CALL_FIRST) : 8 * (p + CALL_END)].tobytes()
        return PerfRequest(self._addresses[p], self._words[p + _NOW], words)

    def _guest_message(self, pcpu: PcpuEntry, ask: int) -> tuple[Address, Message]:
        words, p = self._words, pcpu.offset
        v, source, now = words[p + _CURRENT], self._addresses[p], words[p + _NOW]
        to = self._vcpus[words[v + _ID]]
        if ask == _ROWS:
            return to, WantRows(source, now)
        limit, g = words[p + _LIMIT], words[v + _GUEST_ROW]
        watch = self._watch.read(g) if limit else b""
        if ask == _GO:
            return to, Go(source, now, limit, watch)
        return to, Resume(
            source,
            now,
            words[v + _COMPLETE],
            words[g + _WANTS],
            words[g + _WANTS_OF],
            words[v + _OUTCOME],
            words[v + _VALUE],
            words[v + _INJECT],
            limit,
            watch,
        )

    def _send_home(self, pcpu: PcpuEntry, effects: Effects) -> None:
        p = pcpu.offset
        v = self._word(p, P_LIMIT)
        slices = self._rows.state(v) + self._rows.guest(v)
        message = VcpuRows(physical_cpu(pcpu.index), self._word(p, P_NOW), copy_words(self._s, slices))
        effects.append((vcpu(self._word(v, V_ID)), message))
        self.visitors.discard(v)
        self._s[p + int(P_ASK)] = U64(0)
        self._s[p + int(P_STOP)] = STOP_NONE

    def _window(self, share: _Share) -> int:
        if not self._word(share.offset, H_FLOATING):
            return self._until
        return min(self._until, self._word(share.offset, H_BALANCE_AT))

    def _report(self, share: _Share, effects: Effects) -> None:
        window = self._window(share)
        request = self._first_request(share, window)
        share.waits = True
        share.request = request
        share.finished = request is None and window == self._until
        loads = () if request else tuple(int(runnable_vcpus(self._s, U64(p.offset))) for p in share.pcpus)
        at = window if request is None else request.at_ns
        effects.append((host_perf(share.host), Waiting(share.address, at, request, loads)))

    def _first_request(self, share: _Share, window: int) -> Request | None:
        """Return the earliest request for the reservation before a window's end, as first_request() does."""
        found = [
            Request(self._word(pcpu.offset, P_STOP_AT), pcpu.index, int(stop == _UNRESERVE))
            for pcpu in share.pcpus
            if (stop := self._word(pcpu.offset, P_STOP)) in (_RESERVE, _UNRESERVE)
            and self._word(pcpu.offset, P_STOP_AT) < window
        ]
        return min(found, key=lambda each: (each.at_ns, each.pcpu), default=None)

    def handle(self, to: Address, message: Message) -> Effects:
        """Take a message; return what to send at once. `turn` then says how it goes on."""
        if isinstance(message, Retired):
            self._retired(self._answered(to, _GUEST), message)
        elif isinstance(message, PerfReply):
            pcpu = self._answered(to, _PERF)
            self._demand_host_perf(pcpu.host, message)
            self._served(pcpu, message)
        elif isinstance(message, VcpuRows):
            self._rows_here(self._answered(to, _GUEST), message)
        elif to not in self._shares:
            raise UnexpectedMessage(f"{to} cannot take a {type(message).__name__}")
        else:
            return self._handle_share(self._shares[to], message)
        return []

    def _answered(self, to: Address, stop: int) -> PcpuEntry:
        pcpu = self._at.get(to)
        asked = set() if pcpu is None else self._share_at[pcpu.offset].asked
        if pcpu is None or pcpu.offset not in asked or self._word(pcpu.offset, P_STOP) != stop:
            raise UnexpectedMessage(f"{to} got an answer that it did not ask for")
        asked.remove(pcpu.offset)
        return pcpu

    @staticmethod
    def _demand_host_perf(host: int, message: Message) -> None:
        if message.source != host_perf(host):
            raise UnexpectedMessage(f"{message.source} speaks for host_perf {host}")

    def _retired(self, pcpu: PcpuEntry, message: Retired) -> None:
        words, p = self._words, pcpu.offset
        v = words[p + _CURRENT]
        if message.source != self._vcpus[words[v + _ID]]:
            raise UnexpectedMessage(f"{message.source} answers for vcpu {words[v + _ID]}")
        g = words[v + _GUEST_ROW]
        self._check_run(pcpu, g, message)
        words[g + _TIMER_AT] = message.timer_at_ns
        access = message.access
        if access is not None:
            words[g + _WANTS] = access.operation
            words[g + _WANTS_OF] = access.register
            words[g + _WANTS_VALUE] = access.value
        has_run = 1 if message.watch else 0
        if has_run:
            self._watch.write(g, message.watch)
        guest_answered(self._s, U64(p), U64(message.at_ns), U64(message.reason), _FLAG[has_run])

    def _check_run(self, pcpu: PcpuEntry, g: int, message: Retired) -> None:
        """Refuse an answer to another question than the one that was asked."""
        words, p = self._words, pcpu.offset
        length, now, limit = len(message.watch), words[p + _NOW], words[p + _LIMIT]
        if length == 0:
            fits = words[p + _ASK] != _GO and message.at_ns == now
        else:
            fits = length == watch_bytes(words[g + _NWATCH]) and now <= message.at_ns <= limit
        if not fits:
            raise UnexpectedMessage(f"{self._addresses[p]} got the answer to another question")

    def _served(self, pcpu: PcpuEntry, message: PerfReply) -> None:
        p = pcpu.offset
        self._calls.check_reply(message.source, p, message.words)
        self._bytes[8 * (p + CALL_FIRST) : 8 * (p + CALL_END)] = message.words
        self._words[p + _MUX_AT] = message.mux_at_ns
        call_served(self._s, U64(p))

    def _rows_here(self, pcpu: PcpuEntry, message: VcpuRows) -> None:
        p = pcpu.offset
        v = self._words[p + _CURRENT]
        due = self._rows.state(v) + self._rows.guest(v)
        if message.source != self._vcpus[self._words[v + _ID]] or shape(message.words) != due:
            raise UnexpectedMessage(f"{message.source} sent rows of another")
        install(self._s, message.words)
        self.visitors.add(v)
        self._s[p + int(P_ASK)] = ROWS_HERE
        self._s[p + int(P_STOP)] = STOP_NONE

    def _handle_share(self, share: _Share, message: Message) -> Effects:
        if isinstance(message, VcpuComes):
            v = self._movings.get(message.words[0][0]) if message.words else None
            if v is None or shape(message.words) != self.moving_slices(v):
                raise UnexpectedMessage(f"{message.source} sent rows that make no vCPU")
            install(self._s, message.words)
            share.came += 1
            return self._pass(share)
        if not share.waits or share.passed is not None:
            raise UnexpectedMessage(f"{share.address} got a {type(message).__name__} but does not wait")
        self._demand_host_perf(share.host, message)
        if isinstance(message, Reserved):
            self._reserved(share, message)
            return []
        if share.request is not None:
            raise UnexpectedMessage(f"{share.address} got a {type(message).__name__} but waits to reserve")
        if isinstance(message, GiveRows):
            slices = [each for pcpu in share.pcpus for each in balance_slices(self._rows, pcpu.offset)]
            return [(message.source, ShareRows(share.address, message.at_ns, copy_words(self._s, slices)))]
        if isinstance(message, ShareRows):
            if not share.balanced.issuperset(shape(message.words)):
                raise UnexpectedMessage(f"{share.address} got rows of others")
            install(self._s, message.words)
            return []
        if isinstance(message, Passed):
            share.passed = message
            effects: Effects = [self._sent_away(share, *going) for going in message.goings]
            return effects + self._pass(share)
        raise UnexpectedMessage(f"{share.address} cannot take a {type(message).__name__}")

    def _reserved(self, share: _Share, message: Reserved) -> None:
        if share.request is None or message.pcpu != share.request.pcpu:
            raise UnexpectedMessage(f"{share.address} got a Reserved for physical_cpu {message.pcpu}")
        share.waits = False
        p = self._at[physical_cpu(message.pcpu)].offset
        reservation_served(self._s, U64(p), U64(message.start_ns), U64(message.work_ns))

    def moving_slices(self, v: int) -> Slices:
        """Return what of a vCPU goes with it to a physical CPU of another process, apart from its thread.

        A guest that answers by message told its last physical CPU what it asks for, and nobody else.
        """
        if self._guests is Guests.ANSWER:
            return self.kept_slices(v) + self._rows.wish(v)
        return self.kept_slices(v)

    def kept_slices(self, v: int) -> Slices:
        """Return what of a vCPU lives with its physical CPU, apart from its thread."""
        if self._guests is Guests.TRAVEL:
            return self._rows.task(v)
        if self._guests is Guests.ANSWER:
            return self._rows.state(v)
        return self._rows.state(v) + self._rows.task(v) + self._rows.guest(v)

    def _sent_away(self, share: _Share, index: int, to: Address) -> tuple[Address, Message]:
        if index >= len(self._vcpus):
            raise UnexpectedMessage(f"{share.address} is to send vcpu {index} away, which it has not")
        v = self._machine.vcpus[index].offset
        at = self._window(share)
        return to, VcpuComes(share.address, at, copy_words(self._s, self.moving_slices(v)))

    def _pass(self, share: _Share) -> Effects:
        """Go on behind a balance point, once everybody who comes is there."""
        passed = share.passed
        if passed is not None and share.came == passed.comings:
            self._s[share.offset + int(H_BALANCE_AT)] = U64(passed.balance_at_ns)
            share.passed = None
            share.came = 0
            share.waits = False
        return []

    def clock_ns(self) -> int:
        """Return how far the slowest physical CPU here has come."""
        return min((self._word(pcpu.offset, P_NOW) for pcpu in self._pcpus), default=self._until)

    def residents(self) -> list[int]:
        """Return the offsets of the vCPUs in the run queues here."""
        return [v for pcpu in self._pcpus for v in self._rows.queued(pcpu.offset)]

    def finish(self) -> None:
        """Take the marks of several processes out of the rows, at the end of a run."""
        for pcpu in self._pcpus:
            for column in (P_REMOTE_GUEST, P_REMOTE_PERF, P_ASK, P_LIMIT):
                self._s[pcpu.offset + int(column)] = U64(0)
