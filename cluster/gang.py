"""The gang start, seen from both ends: all ranks begin together, and end together or not at all.

    rank                                    coordinator
    HELLO  its endpoint            ->
                                   <-       PEERS  everybody's endpoints, once all said HELLO
    READY  handlers registered     ->
                                   <-       GO     once all are ready
    RESULT chunks of its result    ->
                                   <-       FINISH once all results are complete
                                   <-       FAIL   at any time: stop, there will be no result

A rank's own failure travels as the value of its task, since the wire may be what failed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import msgspec
import numpy as np
import trio

from vpmu.cluster import proto
from vpmu.cluster.errors import GangError, LocalProtocolError, RemoteProtocolError
from vpmu.cluster.hub import Hub
from vpmu.cluster.proto import COORDINATOR, Frame, Kind, U64Array

RESULT_CHUNK_BYTES: Final = 4 << 20
NOTHING: Final[U64Array] = np.empty((0, 1), np.uint64)
"""The records of a frame that says all by its kind."""


class PeerList(msgspec.Struct, frozen=True):
    """What PEERS carries: where each rank of the gang receives, by rank."""

    endpoints: list[str]


def _decode_peers(frame: Frame) -> PeerList:
    try:
        return msgspec.msgpack.decode(proto.unpack_bytes(frame.records), type=PeerList)
    except msgspec.MsgspecError as error:
        raise RemoteProtocolError(f"bad peer list: {error}") from None


class GangStopped(Exception):
    """The coordinator called the attempt off: another rank failed, or the user did."""


class Member:
    """A rank's end of the gang start.

    Owns the coordinator's kinds of a hub; takes PEERS, GO, FINISH and FAIL; emits HELLO, READY and
    RESULT. It ends with `leave`, or raises `GangStopped` out of the hub's task on FAIL.

    Parameters
    ----------
    hub : Hub
        Not running yet.
    coordinator : str
        Where the coordinator receives.
    """

    def __init__(self, hub: Hub, coordinator: str) -> None:
        self._hub = hub
        self._peers_known = trio.Event()
        self._go = trio.Event()
        self._finished = trio.Event()
        self._ready = False
        hub.connect(COORDINATOR, coordinator)
        hub.on_kind(Kind.PEERS, self._on_peers)
        hub.on_kind(Kind.GO, _from_coordinator(lambda _: self._go.set()))
        hub.on_kind(Kind.FINISH, _from_coordinator(lambda _: self._finished.set()))
        hub.on_kind(Kind.FAIL, _from_coordinator(self._on_fail))
        hub.use_barrier(self._wait_go)

    def _on_peers(self, frame: Frame) -> None:
        _demand_coordinator(frame)
        for rank, endpoint in enumerate(_decode_peers(frame).endpoints):
            _connect(self._hub, rank, endpoint)
        self._peers_known.set()

    def _on_fail(self, frame: Frame) -> None:
        raise GangStopped(proto.unpack_bytes(frame.records).decode(errors="replace"))

    async def join(self) -> None:
        """Say HELLO and wait until the way to every rank is open."""
        endpoint = proto.pack_bytes(self._hub.endpoint.encode())
        self._hub.send_nowait(Kind.HELLO, COORDINATOR, endpoint)
        await self._peers_known.wait()

    async def _wait_go(self) -> None:
        if self._ready:
            raise LocalProtocolError("wait_go was called twice")
        self._ready = True
        self._hub.send_nowait(Kind.READY, COORDINATOR, NOTHING)
        await self._go.wait()

    async def leave(self, result: bytes) -> None:
        """Hand in the result and wait until every rank has; the sockets are in use until then."""
        if not self._ready:
            await self._wait_go()
        nr_chunks = max(1, math.ceil(len(result) / RESULT_CHUNK_BYTES))
        for chunk in range(nr_chunks):
            part = result[chunk * RESULT_CHUNK_BYTES : (chunk + 1) * RESULT_CHUNK_BYTES]
            left = nr_chunks - chunk - 1
            await self._hub.send(Kind.RESULT, COORDINATOR, proto.pack_bytes(part), request=left)
        await self._finished.wait()


def _connect(hub: Hub, rank: int, endpoint: str) -> None:
    """Open the way that a peer has told; what cannot be one is the peer's mistake."""
    try:
        hub.connect(rank, endpoint)
    except LocalProtocolError as error:
        raise RemoteProtocolError(str(error)) from None


def _demand_coordinator(frame: Frame) -> None:
    if frame.header.source_rank != COORDINATOR:
        raise RemoteProtocolError(f"{Kind(frame.header.kind).name} frame, which only a coordinator sends")


def _from_coordinator(handler: Callable[[Frame], None]) -> Callable[[Frame], None]:
    def handle(frame: Frame) -> None:
        _demand_coordinator(frame)
        handler(frame)

    return handle


class Coordinator:
    """The end of the gang start that says when.

    Owns the gang's kinds of a hub whose rank is `COORDINATOR`; takes HELLO, READY and RESULT;
    emits PEERS, GO, FINISH and FAIL. It is done when `results` returns.

    Parameters
    ----------
    hub : Hub
        Not running yet.
    nr_ranks : int
        Ranks of the gang.
    """

    def __init__(self, hub: Hub, nr_ranks: int) -> None:
        self._hub = hub
        self._nr_ranks = nr_ranks
        self._endpoints: dict[int, str] = {}
        self._ready: set[int] = set()
        self._chunks: dict[int, list[bytes]] = {}
        self._complete: dict[int, bytes] = {}
        self._all_complete = trio.Event()
        self.started = trio.Event()
        for rank in range(nr_ranks):
            hub.admit(rank)
        hub.on_kind(Kind.HELLO, self._on_hello)
        hub.on_kind(Kind.READY, self._on_ready)
        hub.on_kind(Kind.RESULT, self._on_result)

    def _on_hello(self, frame: Frame) -> None:
        rank = frame.header.source_rank
        if rank in self._endpoints:
            raise RemoteProtocolError("a second HELLO")
        self._endpoints[rank] = proto.unpack_bytes(frame.records).decode(errors="replace")
        _connect(self._hub, rank, self._endpoints[rank])
        if len(self._endpoints) == self._nr_ranks:
            peers = PeerList([self._endpoints[each] for each in range(self._nr_ranks)])
            self._tell_all(Kind.PEERS, proto.pack_bytes(msgspec.msgpack.encode(peers)))

    def _on_ready(self, frame: Frame) -> None:
        rank = frame.header.source_rank
        if rank in self._ready or len(self._endpoints) < self._nr_ranks:
            raise RemoteProtocolError("READY out of turn")
        self._ready.add(rank)
        if len(self._ready) == self._nr_ranks:
            self._tell_all(Kind.GO, NOTHING)
            self.started.set()

    def _on_result(self, frame: Frame) -> None:
        rank = frame.header.source_rank
        if not self.started.is_set() or rank in self._complete:
            raise RemoteProtocolError("RESULT out of turn")
        chunks = self._chunks.setdefault(rank, [])
        chunks.append(proto.unpack_bytes(frame.records))
        if frame.header.request == 0:
            self._complete[rank] = b"".join(chunks)
        if len(self._complete) == self._nr_ranks:
            self._tell_all(Kind.FINISH, NOTHING)
            self._all_complete.set()

    def _tell_all(self, kind: Kind, records: U64Array) -> None:
        for rank in self._endpoints:
            self._hub.send_nowait(kind, rank, records)

    def missing(self) -> list[int]:
        """Return the ranks that have not said HELLO, or, if all have, those that are not ready."""
        said = self._endpoints if len(self._endpoints) < self._nr_ranks else self._ready
        return [rank for rank in range(self._nr_ranks) if rank not in said]

    async def wait_started(self, within_s: float) -> None:
        """Wait until all ranks go; GangError naming those that are missing after `within_s`."""
        with trio.move_on_after(within_s):
            await self.started.wait()
        if not self.started.is_set():
            raise GangError(f"ranks {self.missing()} did not come within {within_s} s", lost=True)

    async def results(self) -> list[bytes]:
        """Wait for all ranks and return their results in rank order."""
        await self._all_complete.wait()
        return [self._complete[rank] for rank in range(self._nr_ranks)]

    def stop(self, reason: str) -> None:
        """Tell every rank that the attempt is over; one that cannot be told is left to the launcher."""
        for rank in self._endpoints:
            try:
                self._hub.send_nowait(Kind.FAIL, rank, proto.pack_bytes(reason.encode()))
            except trio.WouldBlock:
                continue
