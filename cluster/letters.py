"""Messages of actors as frames, and back: what each kind of frame carries (`docs/protocol.md`).

A result and a PMI that come together are two frames, ACCESS_DONE and PMI, and one message. What a
guest may run next comes with the frame that enters it; what it has run, with the access that it stopped at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np

from vpmu.actors.call_words import CALL_END, CALL_FIRST
from vpmu.actors.host_perf import (
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
from vpmu.actors.vcpu import Access, Go, Resume, Retired, VcpuRows, WantRows, watch_bytes
from vpmu.cluster import proto
from vpmu.cluster.errors import RemoteProtocolError
from vpmu.cluster.hub import Hub
from vpmu.cluster.proto import Frame, Kind, U64Array
from vpmu.kernels.columns import SLOTS
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

_CALL_BYTES: Final = proto.WORD_BYTES * (CALL_END - CALL_FIRST)
_RECORD: Final = 8
"""Words of an access or a PMI; what follows belongs to a run of the guest."""
_GRANT_RESUME, _GRANT_GO, _GRANT_ROWS = 1, 2, 3
_WINDOW_END, _WINDOW_PASSED, _WINDOW_GIVE = 1, 2, 3
_ROWS_OF_VCPU, _ROWS_OF_SHARE, _ROWS_MOVE = 1, 2, 3
_ACCESS, _DONE = int(GUEST_ACCESS), int(GUEST_DONE)
_RECORD_ACCESS, _RECORD_PMI = int(RECORD_ACCESS), int(RECORD_PMI)
_PMI_FOLLOWS: Final = 1
_PASSED_WORDS: Final = range(3, 1 << 20, 2)
"""What, when, how many come, and two words for each vCPU that goes."""


def _pack_words(words: Words) -> U64Array:
    """Return rows as the records of a ROWS frame, uint64[n, 1]."""
    parts: list[U64Array] = []
    for offset, values in words:
        parts += [np.array([offset, values.size], np.uint64), values]
    return np.concatenate(parts).reshape(-1, 1) if parts else np.empty((0, 1), np.uint64)


def _send_resume(hub: Hub, rank: int, to: int, message: Resume) -> None:
    source, now, limit = message.source, message.at_ns, message.limit_ns
    if message.complete:
        head = _RECORD_ACCESS | message.outcome << 8 | message.operation << 16
        flags = _PMI_FOLLOWS if message.nmi else 0
        words = (head, now, to, 0, message.register, message.value, 0 if flags else limit, flags)
        watch = b"" if flags else message.watch
        hub.send_record_nowait(Kind.ACCESS_DONE, rank, words, watch, to=to, source=source, at_ns=now)
    if message.nmi:
        words = (_RECORD_PMI, now, to, 0, 0, 0, limit, 0)
        hub.send_record_nowait(Kind.PMI, rank, words, message.watch, to=to, source=source, at_ns=now)
    elif not message.complete:
        grant = (_GRANT_RESUME, limit)
        hub.send_record_nowait(Kind.GRANT, rank, grant, message.watch, to=to, source=source, at_ns=now)


def _send_go(hub: Hub, rank: int, to: int, message: Go) -> None:
    words = (_GRANT_GO, message.limit_ns)
    hub.send_record_nowait(
        Kind.GRANT, rank, words, message.watch, to=to, source=message.source, at_ns=message.at_ns
    )


def _send_want_rows(hub: Hub, rank: int, to: int, message: WantRows) -> None:
    hub.send_record_nowait(
        Kind.GRANT, rank, (_GRANT_ROWS, 0), to=to, source=message.source, at_ns=message.at_ns
    )


def _send_retired(hub: Hub, rank: int, to: int, message: Retired) -> None:
    source, now, access = message.source, message.at_ns, message.access
    if access is None:
        kind = Kind.RETIRED
        words: tuple[int, ...] = (message.reason, message.timer_at_ns)
    else:
        kind = Kind.ACCESS
        head = _RECORD_ACCESS | access.operation << 16
        words = (head, now, source, 0, access.register, access.value, 0, message.timer_at_ns)
    hub.send_record_nowait(kind, rank, words, message.watch, to=to, source=source, at_ns=now)


def _send_perf_request(hub: Hub, rank: int, to: int, message: PerfRequest) -> None:
    hub.send_record_nowait(
        Kind.PERF_REQUEST, rank, (), message.words, to=to, source=message.source, at_ns=message.at_ns
    )


def _send_perf_reply(hub: Hub, rank: int, to: int, message: PerfReply) -> None:
    words = (message.mux_at_ns,)
    hub.send_record_nowait(
        Kind.PERF_REPLY, rank, words, message.words, to=to, source=message.source, at_ns=message.at_ns
    )


def _send_waiting(hub: Hub, rank: int, to: int, message: Waiting) -> None:
    request = message.request
    kind = Kind.WINDOW
    words: tuple[int, ...] = (_WINDOW_END, *message.loads)
    if request is not None:
        kind = Kind.RESERVE
        words = (request.pcpu, request.gives_up)
    hub.send_record_nowait(kind, rank, words, to=to, source=message.source, at_ns=message.at_ns)


def _send_reserved(hub: Hub, rank: int, to: int, message: Reserved) -> None:
    words = (message.pcpu, message.start_ns, message.work_ns)
    hub.send_record_nowait(Kind.RESERVED, rank, words, to=to, source=message.source, at_ns=message.at_ns)


def _send_give_rows(hub: Hub, rank: int, to: int, message: GiveRows) -> None:
    hub.send_record_nowait(
        Kind.WINDOW, rank, (_WINDOW_GIVE,), to=to, source=message.source, at_ns=message.at_ns
    )


def _send_passed(hub: Hub, rank: int, to: int, message: Passed) -> None:
    goings = (word for going in message.goings for word in going)
    words = (_WINDOW_PASSED, message.balance_at_ns, message.comings, *goings)
    hub.send_record_nowait(Kind.WINDOW, rank, words, to=to, source=message.source, at_ns=message.at_ns)


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
        source=message.source,
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
    _SENDERS[type(message)](hub, rank, to, message)


def _address(number: int) -> Address:
    try:
        return Address.from_number(number)
    except ValueError as error:
        raise RemoteProtocolError(f"bad actor number {number:#x}: {error}") from None


def _demand_words(frame: Frame, nr_words: int) -> tuple[int, ...]:
    """Return the words of a frame of one record, which must have as many."""
    header = frame.header
    if header.nr_records != 1 or header.words != nr_words:
        raise _misshapen(frame)
    return frame.head(nr_words)


def _demand_watch(frame: Frame, nr_words: int) -> tuple[tuple[int, ...], bytes]:
    """Return the words that a frame of one record begins with, and the watch list that may follow."""
    header = frame.header
    if header.nr_records != 1 or header.words < nr_words:
        raise _misshapen(frame)
    watch = frame.tail(nr_words)
    if watch:
        nr_watched = int.from_bytes(watch[8:16], "little")
        if nr_watched > SLOTS or len(watch) != watch_bytes(nr_watched):
            raise _misshapen(frame)
    return frame.head(nr_words), watch


def _demand_grant(frame: Frame, limit: int, watch: bytes) -> None:
    """Refuse a stretch without a watch list, and a watch list without a stretch."""
    if (limit == 0) != (watch == b""):
        kind = proto.KINDS[frame.header.kind].name
        raise RemoteProtocolError(f"{kind} of a run to {limit} ns with a watch list of {len(watch)} bytes")


def _misshapen(frame: Frame) -> RemoteProtocolError:
    header = frame.header
    kind = proto.KINDS[header.kind].name
    return RemoteProtocolError(f"{kind} of {header.nr_records} records of {header.words} words")


@dataclass(slots=True)
class Reader:
    """Makes messages of frames; keeps the first of two frames until the second comes.

    Parameters
    ----------
    arena_words : int
        Rows must lie inside.
    """

    arena_words: int
    _halves: dict[tuple[int, int], Resume] = field(default_factory=dict)
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
        (head, now, _, _, register, value, limit, flags), watch = _demand_watch(frame, _RECORD)
        _demand_grant(frame, limit, watch)
        operation, outcome = head >> 16 & 0xFF, head >> 8 & 0xFF
        message = Resume(source, now, 1, operation, register, outcome, value, flags, limit, watch)
        if not flags:
            return message
        if flags != _PMI_FOLLOWS or self._half(frame) in self._halves:
            raise RemoteProtocolError(f"ACCESS_DONE with flags {flags:#x}, or before the PMI of the last one")
        self._halves[self._half(frame)] = message
        return None

    def pmi(self, frame: Frame, source: Address) -> Message | None:
        """Read PMI, alone or behind ACCESS_DONE."""
        (_, now, _, _, _, _, limit, _), watch = _demand_watch(frame, _RECORD)
        _demand_grant(frame, limit, watch)
        first = self._halves.pop(self._half(frame), None)
        if first is None:
            return Resume(source, now, 0, 0, 0, 0, 0, 1, limit, watch)
        return msgspec.structs.replace(first, limit_ns=limit, watch=watch)

    def grant(self, frame: Frame, source: Address) -> Message | None:
        """Read GRANT: resume, go, or give your rows."""
        (what, limit), watch = _demand_watch(frame, 2)
        _demand_grant(frame, limit, watch)
        now = frame.header.at_ns
        if what == _GRANT_RESUME:
            return Resume(source, now, 0, 0, 0, 0, 0, 0, limit, watch)
        if what == _GRANT_ROWS and not watch:
            return WantRows(source, now)
        if what != _GRANT_GO or not watch:
            raise RemoteProtocolError(f"GRANT of unknown sense {what}")
        return Go(source, now, limit, watch)

    def retired(self, frame: Frame, source: Address) -> Message | None:
        """Read RETIRED: what the guest wants, if that is no access."""
        (reason, timer_at), watch = _demand_watch(frame, 2)
        if not _ACCESS < reason <= _DONE:
            raise RemoteProtocolError(f"RETIRED for unknown reason {reason}")
        return Retired(source, frame.header.at_ns, reason, timer_at, watch, None)

    def access(self, frame: Frame, source: Address) -> Message | None:
        """Read ACCESS, which ends what the guest has retired."""
        (head, now, _, _, register, value, _, timer_at), watch = _demand_watch(frame, _RECORD)
        access = Access(source, now, head >> 16 & 0xFF, register, value)
        return Retired(source, now, _ACCESS, timer_at, watch, access)

    def perf_request(self, frame: Frame, source: Address) -> Message | None:
        """Read PERF_REQUEST."""
        words = frame.tail(0)
        if frame.header.nr_records != 1 or len(words) != _CALL_BYTES:
            raise _misshapen(frame)
        return PerfRequest(source, frame.header.at_ns, words)

    def perf_reply(self, frame: Frame, source: Address) -> Message | None:
        """Read PERF_REPLY."""
        words = frame.tail(1)
        if frame.header.nr_records != 1 or len(words) != _CALL_BYTES:
            raise _misshapen(frame)
        return PerfReply(source, frame.header.at_ns, words, *frame.head(1))

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
        if source.kind == ActorKind.HOST_PERF and what == _WINDOW_PASSED and len(words) in _PASSED_WORDS:
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
