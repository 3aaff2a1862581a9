"""Messages of actors as frames, and back: what each kind of frame carries (`docs/protocol.md`).

A result and a PMI that come together are two frames, ACCESS_DONE and PMI, and one message; so are RETIRED and
ACCESS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from vpmu.actors.host_perf import (
    CALL_END,
    CALL_FIRST,
    GiveRows,
    Passed,
    PerfReply,
    PerfRequest,
    Request,
    Reserved,
    ShareRows,
    Waiting,
)
from vpmu.actors.messages import ActorKind, Address, Message
from vpmu.actors.physical_cpu import VcpuComes
from vpmu.actors.rows import Words
from vpmu.actors.vcpu import WATCH_END, WATCH_FIRST, Access, Go, Resume, Retired, VcpuRows, WantRows
from vpmu.cluster import proto
from vpmu.cluster.errors import RemoteProtocolError
from vpmu.cluster.hub import Hub
from vpmu.cluster.proto import Frame, Kind, U64Array
from vpmu.kernels.guest.step import GUEST_ACCESS, GUEST_DONE
from vpmu.kernels.log import RECORD_ACCESS, RECORD_PMI

KINDS: Final = (
    Kind.ACCESS,
    Kind.ACCESS_DONE,
    Kind.PMI,
    Kind.GRANT,
    Kind.RETIRED,
    Kind.PERF_REQUEST,
    Kind.PERF_REPLY,
    Kind.RESERVE,
    Kind.RESERVED,
    Kind.ROWS,
)
"""The kinds that carry messages between actors; WINDOW does, too, if it is for one."""

_CALL_WORDS: Final = CALL_END - CALL_FIRST
_WATCH_WORDS: Final = WATCH_END - WATCH_FIRST
_GRANT_RESUME, _GRANT_GO, _GRANT_ROWS = 1, 2, 3
_WINDOW_END, _WINDOW_PASSED, _WINDOW_GIVE = 1, 2, 3
_ROWS_OF_VCPU, _ROWS_OF_SHARE, _ROWS_MOVE = 1, 2, 3
_ACCESS, _DONE = int(GUEST_ACCESS), int(GUEST_DONE)
_RECORD_ACCESS, _RECORD_PMI = int(RECORD_ACCESS), int(RECORD_PMI)
_PMI_FOLLOWS: Final = 1


def _pack_words(words: Words) -> U64Array:
    """Return rows as the records of a ROWS frame, uint64[n, 1]."""
    parts: list[U64Array] = []
    for offset, values in words:
        parts += [np.array([offset, values.size], np.uint64), values]
    return np.concatenate(parts).reshape(-1, 1) if parts else np.empty((0, 1), np.uint64)


def _array(words: list[int]) -> U64Array:
    return np.array(words, dtype=np.uint64).reshape(1, -1)


def _send_resume(hub: Hub, rank: int, to: int, message: Resume) -> None:
    source, now = message.source.number, message.at_ns
    if message.complete:
        head = _RECORD_ACCESS | message.outcome << 8 | message.operation << 16
        flags = _PMI_FOLLOWS if message.nmi else 0
        words = (head, now, to, 0, message.register, message.value, 0, flags)
        hub.send_record_nowait(Kind.ACCESS_DONE, rank, words, to=to, source=source, at_ns=now)
    if message.nmi:
        hub.send_record_nowait(
            Kind.PMI, rank, (_RECORD_PMI, now, to, 0, 0, 0, 0, 0), to=to, source=source, at_ns=now
        )
    elif not message.complete:
        hub.send_record_nowait(Kind.GRANT, rank, (_GRANT_RESUME,), to=to, source=source, at_ns=now)


def _send_go(hub: Hub, rank: int, to: int, message: Go) -> None:
    words = (_GRANT_GO, message.limit_ns, *message.watch.tolist())
    hub.send_record_nowait(Kind.GRANT, rank, words, to=to, source=message.source.number, at_ns=message.at_ns)


def _send_want_rows(hub: Hub, rank: int, to: int, message: WantRows) -> None:
    hub.send_record_nowait(
        Kind.GRANT, rank, (_GRANT_ROWS,), to=to, source=message.source.number, at_ns=message.at_ns
    )


def _send_retired(hub: Hub, rank: int, to: int, message: Retired) -> None:
    source, now = message.source.number, message.at_ns
    if message.watch is not None or message.access is None:
        watch = () if message.watch is None else tuple(message.watch.tolist())
        words = (message.reason, message.timer_at_ns, *watch)
        hub.send_record_nowait(Kind.RETIRED, rank, words, to=to, source=source, at_ns=now)
    access = message.access
    if access is not None:
        head = _RECORD_ACCESS | access.operation << 16
        record = (head, now, source, 0, access.register, access.value, 0, message.timer_at_ns)
        hub.send_record_nowait(Kind.ACCESS, rank, record, to=to, source=source, at_ns=now)


def _send_perf_request(hub: Hub, rank: int, to: int, message: PerfRequest) -> None:
    records = message.words.reshape(1, -1)
    hub.send_nowait(
        Kind.PERF_REQUEST, rank, records, to=to, source=message.source.number, at_ns=message.at_ns
    )


def _send_perf_reply(hub: Hub, rank: int, to: int, message: PerfReply) -> None:
    records = np.append(message.words, np.uint64(message.mux_at_ns)).reshape(1, -1)
    hub.send_nowait(Kind.PERF_REPLY, rank, records, to=to, source=message.source.number, at_ns=message.at_ns)


def _send_waiting(hub: Hub, rank: int, to: int, message: Waiting) -> None:
    request = message.request
    kind = Kind.WINDOW
    words = [_WINDOW_END, *message.loads]
    if request is not None:
        kind = Kind.RESERVE
        words = [request.pcpu, request.gives_up]
    hub.send_nowait(kind, rank, _array(words), to=to, source=message.source.number, at_ns=message.at_ns)


def _send_reserved(hub: Hub, rank: int, to: int, message: Reserved) -> None:
    words = (message.pcpu, message.start_ns, message.work_ns)
    hub.send_record_nowait(
        Kind.RESERVED, rank, words, to=to, source=message.source.number, at_ns=message.at_ns
    )


def _send_give_rows(hub: Hub, rank: int, to: int, message: GiveRows) -> None:
    hub.send_record_nowait(
        Kind.WINDOW, rank, (_WINDOW_GIVE,), to=to, source=message.source.number, at_ns=message.at_ns
    )


def _send_passed(hub: Hub, rank: int, to: int, message: Passed) -> None:
    words = [_WINDOW_PASSED, message.balance_at_ns, message.comings]
    for index, share in message.goings:
        words += [index, share.number]
    hub.send_nowait(
        Kind.WINDOW, rank, _array(words), to=to, source=message.source.number, at_ns=message.at_ns
    )


def _send_rows(hub: Hub, rank: int, to: int, message: VcpuRows | ShareRows | VcpuComes) -> None:
    purpose = _ROWS_OF_VCPU
    if isinstance(message, ShareRows):
        purpose = _ROWS_OF_SHARE
    elif isinstance(message, VcpuComes):
        purpose = _ROWS_MOVE
    hub.send_nowait(
        Kind.ROWS,
        rank,
        _pack_words(message.words),
        to=to,
        source=message.source.number,
        at_ns=message.at_ns,
        request=purpose,
    )


_SENDERS: Final[dict[type, Callable[..., None]]] = {
    Resume: _send_resume,
    Go: _send_go,
    WantRows: _send_want_rows,
    Retired: _send_retired,
    PerfRequest: _send_perf_request,
    PerfReply: _send_perf_reply,
    Waiting: _send_waiting,
    Reserved: _send_reserved,
    GiveRows: _send_give_rows,
    Passed: _send_passed,
    VcpuRows: _send_rows,
    ShareRows: _send_rows,
    VcpuComes: _send_rows,
}


def send(hub: Hub, rank: int, to: Address, message: Message) -> None:
    """Send a message to an actor that lives in ``rank``, as one frame or two.

    Raises
    ------
    trio.WouldBlock
        If too much waits for that rank already.
    """
    _SENDERS[type(message)](hub, rank, to.number, message)


def _address(number: int) -> Address:
    try:
        return Address.from_number(number)
    except ValueError as error:
        raise RemoteProtocolError(f"bad actor number {number:#x}: {error}") from None


def _demand_words(frame: Frame, *widths: int) -> tuple[int, ...]:
    """Return the words of a frame of one record, which must have one of these widths."""
    header = frame.header
    if header.nr_records != 1 or header.words not in widths:
        kind = proto.KINDS[header.kind].name
        raise RemoteProtocolError(f"{kind} of {header.nr_records} records of {header.words} words")
    return frame.record()


@dataclass(slots=True)
class Reader:
    """Makes messages of frames; keeps the first of two frames until the second comes.

    Parameters
    ----------
    arena_words : int
        Rows must lie inside.
    """

    arena_words: int
    _halves: dict[tuple[int, int], Resume | Retired] = field(default_factory=dict)
    _addresses: dict[int, Address] = field(default_factory=dict)

    def address(self, number: int) -> Address:
        """Return the address of an actor's number."""
        found = self._addresses.get(number)
        if found is None:
            found = self._addresses[number] = _address(number)
        return found

    def read(self, frame: Frame) -> Message | None:
        """Return the message that a frame completes, None if another frame belongs to it.

        Raises
        ------
        RemoteProtocolError
            If the frame makes no message.
        """
        return _READERS[frame.header.kind](self, frame, self.address(frame.header.source_actor))

    def _half(self, frame: Frame) -> tuple[int, int]:
        return frame.header.source_actor, frame.header.destination_actor

    def access_done(self, frame: Frame, source: Address) -> Message | None:
        """Read ACCESS_DONE, which a PMI may follow."""
        head, now, _, _, register, value, _, flags = _demand_words(frame, 8)
        nmi = flags & _PMI_FOLLOWS
        message = Resume(source, now, 1, head >> 16 & 0xFF, register, head >> 8 & 0xFF, value, nmi)
        if not nmi:
            return message
        self._halves[self._half(frame)] = message
        return None

    def pmi(self, frame: Frame, source: Address) -> Message | None:
        """Read PMI, alone or behind ACCESS_DONE."""
        _, now, *_ = _demand_words(frame, 8)
        first = self._halves.pop(self._half(frame), None)
        return Resume(source, now, 0, 0, 0, 0, 0, 1) if first is None else first

    def grant(self, frame: Frame, source: Address) -> Message | None:
        """Read GRANT: resume, go, or give your rows."""
        what, *words = _demand_words(frame, 1, 2 + _WATCH_WORDS)
        now = frame.header.at_ns
        if what == _GRANT_RESUME:
            return Resume(source, now, 0, 0, 0, 0, 0, 0)
        if what == _GRANT_ROWS:
            return WantRows(source, now)
        if what != _GRANT_GO or len(words) != 1 + _WATCH_WORDS:
            raise RemoteProtocolError(f"GRANT of unknown sense {what}")
        return Go(source, now, words[0], np.array(words[1:], dtype=np.uint64))

    def retired(self, frame: Frame, source: Address) -> Message | None:
        """Read RETIRED, which ACCESS follows if the guest executes an access."""
        reason, timer_at, *watch = _demand_words(frame, 2, 2 + _WATCH_WORDS)
        if not _ACCESS <= reason <= _DONE:
            raise RemoteProtocolError(f"RETIRED for unknown reason {reason}")
        words = np.array(watch, dtype=np.uint64) if watch else None
        message = Retired(source, frame.header.at_ns, reason, timer_at, words, None)
        if reason != _ACCESS:
            return message
        self._halves[self._half(frame)] = message
        return None

    def access(self, frame: Frame, source: Address) -> Message | None:
        """Read ACCESS, alone or behind RETIRED."""
        head, now, _, _, register, value, _, timer_at = _demand_words(frame, 8)
        access = Access(source, now, head >> 16 & 0xFF, register, value)
        first = self._halves.pop(self._half(frame), None)
        watch = first.watch if isinstance(first, Retired) else None
        return Retired(source, now, _ACCESS, timer_at, watch, access)

    def perf_request(self, frame: Frame, source: Address) -> Message | None:
        """Read PERF_REQUEST."""
        self._demand_width(frame, _CALL_WORDS)
        return PerfRequest(source, frame.header.at_ns, frame.records[0])

    def perf_reply(self, frame: Frame, source: Address) -> Message | None:
        """Read PERF_REPLY."""
        self._demand_width(frame, _CALL_WORDS + 1)
        words = frame.records[0]
        return PerfReply(source, frame.header.at_ns, words[:-1], int(words[-1]))

    @staticmethod
    def _demand_width(frame: Frame, width: int) -> None:
        if (frame.header.nr_records, frame.header.words) != (1, width):
            kind = proto.KINDS[frame.header.kind].name
            raise RemoteProtocolError(f"{kind} of {frame.header.words} words, expected one record of {width}")

    def reserve(self, frame: Frame, source: Address) -> Message | None:
        """Read RESERVE."""
        pcpu, gives_up = _demand_words(frame, 2)
        return Waiting(source, frame.header.at_ns, Request(frame.header.at_ns, pcpu, gives_up), ())

    def reserved(self, frame: Frame, source: Address) -> Message | None:
        """Read RESERVED."""
        pcpu, start, work = _demand_words(frame, 3)
        return Reserved(source, frame.header.at_ns, pcpu, start, work)

    def window(self, frame: Frame, source: Address) -> Message | None:
        """Read WINDOW between a share and host perf."""
        words = frame.record()
        now = frame.header.at_ns
        what = words[0] if words else 0
        if what == _WINDOW_END and source.kind == ActorKind.PHYSICAL_CPU:
            return Waiting(source, now, None, words[1:])
        if source.kind == ActorKind.HOST_PERF and what == _WINDOW_GIVE:
            return GiveRows(source, now)
        if source.kind == ActorKind.HOST_PERF and what == _WINDOW_PASSED and len(words) % 2 == 1:
            pairs = zip(words[3::2], words[4::2], strict=True)
            goings = tuple((index, self.address(number)) for index, number in pairs)
            return Passed(source, now, words[1], words[2], goings)
        raise RemoteProtocolError(f"WINDOW of unknown sense {what} from {source}")

    def rows(self, frame: Frame, source: Address) -> Message | None:
        """Read ROWS."""
        now = frame.header.at_ns
        words: Words = list(proto.iter_rows(frame.records, self.arena_words))
        if frame.header.request == _ROWS_OF_VCPU:
            return VcpuRows(source, now, words)
        if frame.header.request == _ROWS_OF_SHARE:
            return ShareRows(source, now, words)
        if frame.header.request == _ROWS_MOVE:
            return VcpuComes(source, now, words)
        raise RemoteProtocolError(f"ROWS of unknown purpose {frame.header.request}")


_READERS: Final[dict[int, Callable[[Reader, Frame, Address], Message | None]]] = {
    Kind.ACCESS: Reader.access,
    Kind.ACCESS_DONE: Reader.access_done,
    Kind.PMI: Reader.pmi,
    Kind.GRANT: Reader.grant,
    Kind.RETIRED: Reader.retired,
    Kind.PERF_REQUEST: Reader.perf_request,
    Kind.PERF_REPLY: Reader.perf_reply,
    Kind.RESERVE: Reader.reserve,
    Kind.RESERVED: Reader.reserved,
    Kind.WINDOW: Reader.window,
    Kind.ROWS: Reader.rows,
}
