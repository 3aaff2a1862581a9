"""The hub: one task per process that owns the sockets and hands frames to whoever they are for.

It numbers what it sends, verifies what it receives, counts both, and calls handlers. A stranger's
message is refused, named and changes nothing; a rank of the run that breaks the rules fails the
attempt by name.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

import trio

from vpmu.actors.messages import Address
from vpmu.cluster import proto
from vpmu.cluster.errors import LocalProtocolError, RemoteProtocolError
from vpmu.cluster.keys import RankKeys
from vpmu.cluster.link import BACKLOG_BYTES, HIGH_WATER_FRAMES, Link
from vpmu.cluster.proto import Frame, Header, Kind, U64Array

Handler = Callable[[Frame], Awaitable[object] | None]

BATCH_FRAMES: Final = 64
"""Frames that are dispatched, or sent, before other tasks of the process get their turn."""
MAX_REFUSED: Final = 100
"""Refusals that are kept by name; more are only counted."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A message that was not taken: from whom (routing id) and why."""

    identity: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class HubStatistics:
    """What went through a hub: frames and records by kind, and messages refused."""

    frames_sent: Mapping[Kind, int]
    records_sent: Mapping[Kind, int]
    frames_received: Mapping[Kind, int]
    records_received: Mapping[Kind, int]
    refused: int


@dataclass(slots=True)
class _Tally:
    frames: dict[int, int] = field(default_factory=lambda: dict.fromkeys(proto.KINDS, 0))
    records: dict[int, int] = field(default_factory=lambda: dict.fromkeys(proto.KINDS, 0))

    def add(self, kind: int, count: int) -> None:
        self.frames[kind] += 1
        self.records[kind] += count


def _by_kind(counts: Mapping[int, int]) -> dict[Kind, int]:
    return {proto.KINDS[kind]: count for kind, count in counts.items() if count}


class Hub:
    """Owns the sockets of one process of a run.

    Takes frames to send from any task of the process; emits received frames to handlers, in the
    order of each link, called in the hub's own task: a plain function is done when it returns and
    may call `send_nowait`; what an async one returns is awaited before the next frame is read,
    which is how a full inbox holds senders back. It stops when the task of `run` is cancelled, and
    raises there what a handler raises.

    Parameters
    ----------
    endpoint : str
        Where to bind, see `link.local_endpoint`.
    run : int
        64-bit number of the run; drawn at random by whoever starts it, so that no stranger has it.
    attempt : int
        Which start of that run this is.
    rank : int
        This process's rank, or `proto.COORDINATOR`.
    high_water_frames, backlog_bytes : int
        Bounds on what waits per peer, see `link.Link`.
    keys, insecure : RankKeys and bool, optional
        Whether connections are CURVE's, see `link.Link`.

    Raises
    ------
    zmq.ZMQError
        If the endpoint cannot be bound.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        run: int,
        attempt: int,
        rank: int,
        high_water_frames: int = HIGH_WATER_FRAMES,
        backlog_bytes: int = BACKLOG_BYTES,
        keys: RankKeys | None = None,
        insecure: bool = False,
    ) -> None:
        self.run_number = run
        self.attempt = attempt
        self.rank = rank
        self.refused: list[Refusal] = []
        self._nr_refused = 0
        self._link = Link(
            proto.routing_id(run, attempt, rank),
            endpoint,
            high_water_frames=high_water_frames,
            backlog_bytes=backlog_bytes,
            keys=keys,
            insecure=insecure,
            on_refused=lambda reason: self._refuse(b"", reason),
        )
        self._has_keys = keys is not None
        self._ranks: dict[bytes, int] = {}
        self._next_sent: dict[int, int] = {}
        self._next_received: dict[int, int] = {}
        self._by_actor: dict[int, Handler] = {}
        self._by_kind: dict[int, Handler] = {}
        self._sent = _Tally()
        self._received = _Tally()
        self._since_checkpoint = 0
        self._barrier: Callable[[], Awaitable[None]] | None = None
        self.metrics: tuple[str, int | None] = ("", None)
        """Where this process tells its figures, see `watch.serving`; None tells none."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def endpoint(self) -> str:
        """Where this hub receives, for its peers to connect to."""
        return self._link.endpoint

    def statistics(self) -> HubStatistics:
        """Return what went through so far."""
        return HubStatistics(
            frames_sent=_by_kind(self._sent.frames),
            records_sent=_by_kind(self._sent.records),
            frames_received=_by_kind(self._received.frames),
            records_received=_by_kind(self._received.records),
            refused=self._nr_refused,
        )

    def admit(self, rank: int) -> None:
        """Take frames of `rank` from now on; until then it is a stranger."""
        self._ranks[proto.routing_id(self.run_number, self.attempt, rank)] = rank
        self._next_received.setdefault(rank, 0)

    def connect(self, rank: int, endpoint: str) -> None:
        """Admit `rank` and open the way to it; its own rank, too, leads through its socket."""
        self._link.connect(rank, endpoint)
        self._next_sent[rank] = 0
        self.admit(rank)

    def on_actor(self, address: Address, handler: Handler) -> None:
        """Hand every frame for `address` to `handler`, instead of by kind."""
        self._by_actor[address.number] = handler

    def on_kind(self, kind: Kind, handler: Handler) -> None:
        """Hand the frames of `kind` that are for no actor with a handler to `handler`."""
        self._by_kind[kind] = handler

    def forget_actor(self, address: Address) -> None:
        """Undo `on_actor`: the actor moved away or ended."""
        self._by_actor.pop(address.number, None)

    def use_barrier(self, barrier: Callable[[], Awaitable[None]]) -> None:
        """Let `wait_go` wait for `barrier`: the gang's, see `gang.Member`."""
        self._barrier = barrier

    async def wait_go(self) -> None:
        """Wait until every rank of the gang has come this far; a hub without a gang goes at once.

        Call it once, after the handlers are registered and before the first frame is sent: then no
        frame can arrive where nobody takes it.
        """
        if self._barrier is None:
            await trio.lowlevel.checkpoint()
        else:
            await self._barrier()

    def send_nowait(
        self,
        kind: Kind,
        rank: int,
        records: U64Array,
        *,
        to: int = 0,
        source: int = 0,
        at_ns: int = 0,
        request: int = 0,
    ) -> None:
        """Send one frame without waiting.

        Parameters
        ----------
        kind : Kind
            What it is.
        rank : int
            The rank to send to; it must be connected.
        records : uint64[count, words]
            The payload; free to be changed once the call returns.
        to, source : int
            Actor numbers (`Address.number`); 0 for none.
        at_ns : int
            Virtual time, nanoseconds.
        request : int
            Pairs a question with its answer.

        Raises
        ------
        trio.WouldBlock
            If too much waits for that rank already; nothing was sent and no number used up.
        LocalProtocolError
            If the rank is not connected or the records do not fit the kind.
        """
        count, words = records.shape
        header = self._header(kind, rank, count, words, (at_ns, source, to, request))
        self._post(header, proto.encode(header, records))

    def send_record_nowait(
        self,
        kind: Kind,
        rank: int,
        record: tuple[int, ...],
        tail: bytes = b"",
        *,
        to: int = 0,
        source: int = 0,
        at_ns: int = 0,
        request: int = 0,
    ) -> None:
        """Send a frame of one record: words as Python integers, then `tail`, words as they lie in memory.

        It is the fast way; else as `send_nowait`.
        """
        words = len(record) + len(tail) // proto.WORD_BYTES
        header = self._header(kind, rank, 1, words, (at_ns, source, to, request))
        self._post(header, proto.encode_record(header, record, tail))

    async def send(
        self,
        kind: Kind,
        rank: int,
        records: U64Array,
        *,
        to: int = 0,
        source: int = 0,
        at_ns: int = 0,
        request: int = 0,
    ) -> None:
        """Send one frame, waiting while too much waits for that rank; else as `send_nowait`.

        Note that it is a checkpoint once in `BATCH_FRAMES` calls and when it waits, not in each call.
        """
        self._since_checkpoint += 1
        if self._since_checkpoint >= BATCH_FRAMES:
            self._since_checkpoint = 0
            await trio.lowlevel.checkpoint()
        while not self._link.has_room(rank):
            await self._link.wait_room(rank)
        self.send_nowait(kind, rank, records, to=to, source=source, at_ns=at_ns, request=request)

    def _header(
        self, kind: int, rank: int, count: int, words: int, rest: tuple[int, int, int, int]
    ) -> Header:
        at_ns, source, to, request = rest
        sequence = self._next_sent.get(rank)
        if sequence is None:
            raise LocalProtocolError(f"rank {rank} is not connected")
        return Header(
            kind,
            self.run_number,
            sequence,
            at_ns,
            self.attempt,
            source,
            to,
            self.rank,
            rank,
            count,
            words,
            request,
        )

    def _post(self, header: Header, frame: bytes) -> None:
        rank = header.destination_rank
        self._link.send_nowait(rank, frame)
        self._next_sent[rank] = header.sequence + 1
        self._sent.add(header.kind, header.nr_records)

    async def run(self) -> None:
        """Receive and dispatch until cancelled.

        Raises
        ------
        RemoteProtocolError
            If a rank of the run sent what the protocol forbids; it names the rank.
        """
        async with trio.open_nursery() as nursery:
            with self._link.flushing_in(nursery):
                await self._receive()

    async def _receive(self) -> None:
        nr_left = BATCH_FRAMES
        while True:
            received = self._link.receive_nowait()
            if received is None:
                await self._link.wait_received()
                continue
            nr_left -= 1
            if nr_left == 0:
                nr_left = BATCH_FRAMES
                await trio.lowlevel.checkpoint()
            frame = self._verify(*received)
            pending = None if frame is None else self._dispatch(frame)
            if pending is not None:
                await pending

    def _verify(self, identity: bytes, body: bytes | None) -> Frame | None:
        rank = self._ranks.get(identity)
        if rank is None:
            self._refuse(identity, self._reason_to_refuse(identity))
            return None
        if self._has_keys and self._link.speaker != rank:
            self._refuse(identity, f"rank {rank}, under the key of rank {self._link.speaker}")
            return None
        try:
            if body is None:
                raise RemoteProtocolError("message is not of one part")
            frame = proto.decode(body)
            self._verify_link(frame.header, rank)
        except RemoteProtocolError as error:
            raise error.from_rank(rank) from None
        self._next_received[rank] += 1
        self._received.add(frame.header.kind, frame.header.nr_records)
        return frame

    def _verify_link(self, header: Header, rank: int) -> None:
        if header.run != self.run_number or header.attempt != self.attempt:
            raise RemoteProtocolError(
                f"frame of run {header.run:#x} attempt {header.attempt}, "
                f"expected run {self.run_number:#x} attempt {self.attempt}"
            )
        if header.source_rank != rank or header.destination_rank != self.rank:
            raise RemoteProtocolError(
                f"frame from rank {header.source_rank} to rank {header.destination_rank}, "
                f"expected from {rank} to {self.rank}"
            )
        due = self._next_received[rank]
        if header.sequence != due:
            raise RemoteProtocolError(f"frame number {header.sequence} on this link, expected {due}")

    def _refuse(self, identity: bytes, reason: str) -> None:
        self._nr_refused += 1
        if len(self.refused) < MAX_REFUSED:
            self.refused.append(Refusal(identity, reason))

    def _reason_to_refuse(self, identity: bytes) -> str:
        claim = proto.parse_routing_id(identity)
        if claim is None:
            return "unknown routing id"
        run, attempt, rank = claim
        if run != self.run_number:
            return f"rank {rank} of another run, {run:#x}"
        if attempt != self.attempt:
            return f"rank {rank} of attempt {attempt}, this is attempt {self.attempt}"
        return f"rank {rank} is not in this gang"

    def _dispatch(self, frame: Frame) -> Awaitable[object] | None:
        header = frame.header
        handler = self._by_actor.get(header.destination_actor) or self._by_kind.get(header.kind)
        try:
            if handler is None:
                raise RemoteProtocolError(_no_handler(header))
            return handler(frame)
        except RemoteProtocolError as error:
            if error.rank is not None:
                raise
            raise error.from_rank(header.source_rank) from error

    def close(self) -> None:
        """Close the sockets at once; what was not sent yet is dropped."""
        self._link.close()


def _no_handler(header: Header) -> str:
    kind = proto.KINDS[header.kind].name
    if header.destination_actor == 0:
        return f"{kind} frame, which nobody takes here"
    try:
        actor = str(Address.from_number(header.destination_actor))
    except ValueError:
        actor = f"actor {header.destination_actor:#x}"
    return f"{kind} frame for {actor}, which is not here"


def new_run_number() -> int:
    """Return a random number for a run, which fences it from strangers; no result depends on it."""
    return secrets.randbits(64)
