"""ZeroMQ under trio: the sockets of one process, and bytes in and out of them.

Each rank binds one ROUTER, which only receives, and connects one DEALER per peer, which only
sends; so frames between two ranks keep their order and no socket is used in both directions.

ZeroMQ's file descriptor says "the state changed", not "readable", and any call on a socket may
swallow that news. The rules that follow from it, kept here and nowhere else:

- the ROUTER is touched by one task, the hub's; it drains until `Again` and reads EVENTS again
  before it waits;
- a DEALER without a backlog is touched only by whoever sends, between two checkpoints; one with a
  backlog only by its flusher, which reads EVENTS before every wait. Frames that come meanwhile
  queue behind the backlog.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import select
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

import trio
import zmq

from vpmu.cluster import proto
from vpmu.cluster.errors import LocalProtocolError
from vpmu.cluster.keys import RankKeys, needs_keys
from vpmu.cluster.zap import Authenticator, OnRefused

HIGH_WATER_FRAMES: Final = 256
"""Frames that ZeroMQ holds per peer and direction."""
BACKLOG_BYTES: Final = 8 << 20
"""Bytes that wait in front of a full socket; a sender waits once they are reached."""

POLL_S: Final = 0.001
"""How long an idle process blocks for the next frame before trio does; timers may be late by it."""

Received = tuple[bytes, bytes | None]
"""The routing id of the sender and its frame; None if the message was not of one part."""

# Note that pyzmq's constants are enums, whose `&` alone costs as much as the call that it is applied to.
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)
_POLLOUT: Final = int(zmq.POLLOUT)
_RCVMORE: Final = int(zmq.RCVMORE)
_NOBLOCK: Final = int(zmq.NOBLOCK)


@dataclass(slots=True)
class Peer:
    """The way to one peer: its socket, and the frames that the socket had no room for."""

    dealer: zmq.Socket[bytes]
    backlog: deque[bytes] = field(default_factory=deque)
    backlog_bytes: int = 0
    room: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)


class Link:
    """Owns the sockets of one process.

    Takes frames as bytes for a peer's rank; emits received messages with their sender's routing
    id, unverified. It stops when it is closed, which drops what is not sent yet.

    Parameters
    ----------
    identity : bytes
        The routing id under which this process speaks.
    endpoint : str
        Where to bind: `tcp://127.0.0.1:*` or `ipc://PATH`.
    high_water_frames : int
        Frames that ZeroMQ may hold per peer and direction.
    backlog_bytes : int
        Bytes that may wait here per peer before senders have to.
    keys : RankKeys, optional
        With them every connection is CURVE's; without, no connection may leave this machine.
    insecure : bool
        Let connections leave this machine without keys.
    on_refused : callable, optional
        Told why a peer was not let in; needed with `keys`.

    Attributes
    ----------
    speaker : int or None
        The rank whose key the last received message came under; None without keys.

    Raises
    ------
    LocalProtocolError
        If the endpoint would be heard on other machines without keys.
    """

    def __init__(
        self,
        identity: bytes,
        endpoint: str,
        *,
        keys: RankKeys | None = None,
        insecure: bool = False,
        on_refused: OnRefused | None = None,
        high_water_frames: int = HIGH_WATER_FRAMES,
        backlog_bytes: int = BACKLOG_BYTES,
    ) -> None:
        self._identity = identity
        self._keys = keys
        self._insecure = insecure
        self.speaker: int | None = None
        self._demand_keys(endpoint)
        self._high_water_frames = high_water_frames
        self._backlog_limit = backlog_bytes
        self._peers: dict[int, Peer] = {}
        self._nursery: trio.Nursery | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._socket(zmq.ROUTER)
        self._router_fd = self._router.fileno()
        self._nr_in_a_row = 0
        self._poller = select.poll()
        self._poller.register(self._router_fd, select.POLLIN)
        self._authenticator: Authenticator | None = None
        if keys is not None:
            self._authenticator = Authenticator(self._router, keys, on_refused or _ignore)
        try:
            self._router.setsockopt(zmq.IPV6, int("[" in endpoint))
            self._router.bind(endpoint)
        except zmq.ZMQError:
            self.close()
            raise
        self.endpoint = self._router.getsockopt_string(zmq.LAST_ENDPOINT)

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.linger = 0
        socket.set_hwm(self._high_water_frames)
        socket.setsockopt(zmq.MAXMSGSIZE, proto.MAX_FRAME_BYTES)
        return socket

    def _demand_keys(self, endpoint: str) -> None:
        if self._keys is None and not self._insecure and needs_keys(endpoint):
            raise LocalProtocolError(f"{endpoint} is heard on other machines, and this run has no keys")

    def connect(self, rank: int, endpoint: str) -> None:
        """Open the way to `rank`.

        Raises
        ------
        LocalProtocolError
            If there is one already, the endpoint is none, or it is on another machine and there is no key.
        """
        if rank in self._peers:
            raise LocalProtocolError(f"rank {rank} is connected already")
        self._demand_keys(endpoint)
        dealer = self._socket(zmq.DEALER)
        dealer.setsockopt(zmq.ROUTING_ID, self._identity)
        try:
            if self._keys is not None:
                dealer.curve_publickey = self._keys.public
                dealer.curve_secretkey = self._keys.secret
                dealer.curve_serverkey = self._keys.allowed[rank]
            dealer.setsockopt(zmq.IPV6, int("[" in endpoint))
            dealer.connect(endpoint)
        except (zmq.ZMQError, KeyError):
            dealer.close()
            raise LocalProtocolError(f"{endpoint!r} is no way to rank {rank}") from None
        self._peers[rank] = Peer(dealer)

    @contextmanager
    def flushing_in(self, nursery: trio.Nursery) -> Iterator[None]:
        """Let flushers run in `nursery`, one per backlog, and with keys what lets peers in."""
        self._nursery = nursery
        if self._authenticator is not None:
            nursery.start_soon(self._authenticator.run)
        for peer in self._peers.values():
            if peer.backlog:
                nursery.start_soon(self._flush, peer)
        try:
            yield
        finally:
            self._nursery = None

    def has_room(self, rank: int) -> bool:
        """Return whether a frame for `rank` can be taken now."""
        return self._peer(rank).backlog_bytes < self._backlog_limit

    async def wait_room(self, rank: int) -> None:
        """Wait until a sender before us has gone and there is room; then look again, and send at once."""
        await self._peer(rank).room.park()

    def send_nowait(self, rank: int, frame: bytes) -> None:
        """Send `frame` to `rank`, or queue it behind what waits for that peer.

        Raises
        ------
        trio.WouldBlock
            If the queue is full; nothing was sent.
        """
        peer = self._peer(rank)
        if peer.backlog:
            self._queue(peer, frame)
        else:
            self._send_or_queue(peer, frame)
        # Each sender that goes lets the next one try, so none is left waiting while there is room.
        if peer.room and peer.backlog_bytes < self._backlog_limit:
            peer.room.unpark()

    def _send_or_queue(self, peer: Peer, frame: bytes) -> None:
        try:
            peer.dealer.send(frame, _NOBLOCK)
        except zmq.Again:
            self._queue(peer, frame)
            if self._nursery is not None:
                self._nursery.start_soon(self._flush, peer)

    def _peer(self, rank: int) -> Peer:
        try:
            return self._peers[rank]
        except KeyError:
            raise LocalProtocolError(f"rank {rank} is not connected") from None

    def _queue(self, peer: Peer, frame: bytes) -> None:
        if peer.backlog_bytes >= self._backlog_limit:
            raise trio.WouldBlock
        peer.backlog.append(frame)
        peer.backlog_bytes += len(frame)

    async def _flush(self, peer: Peer) -> None:
        while peer.backlog:
            try:
                peer.dealer.send(peer.backlog[0], _NOBLOCK)
            except zmq.Again:
                while not _events(peer.dealer) & _POLLOUT:
                    await trio.lowlevel.wait_readable(peer.dealer.fileno())
                continue
            peer.backlog_bytes -= len(peer.backlog.popleft())
            if peer.backlog_bytes < self._backlog_limit:
                peer.room.unpark()

    def receive_nowait(self) -> Received | None:
        """Return the next message, or None if there is none; senders take turns."""
        router = self._router
        # In a stream of messages, EVENTS is read only when it ends.
        if self._nr_in_a_row < 2 and not _events(router) & _POLLIN:
            self._nr_in_a_row = 0
            return None
        try:
            identity = router.recv(_NOBLOCK) if self._keys is None else self._receive_named()
        except zmq.Again:
            self._nr_in_a_row = 0
            return self.receive_nowait()
        self._nr_in_a_row += 1
        # A ROUTER puts the sender's id in front of a message, which itself has a part at least.
        frame = router.recv(_NOBLOCK)
        if not router.get(_RCVMORE):
            return identity, frame
        while router.get(_RCVMORE):
            router.recv(_NOBLOCK)
        return identity, None

    def _receive_named(self) -> bytes:
        """Return the next routing id, and note under whose key it came."""
        part = self._router.recv(_NOBLOCK, copy=False)
        self.speaker = int(part["User-Id"])
        return part.bytes

    async def wait_received(self) -> None:
        """Wait until `receive_nowait` may have something.

        Note that it may only be called when the last thing done to the ROUTER was a
        `receive_nowait` that returned None: that read EVENTS.
        """
        if not self._poll_while_idle():
            await trio.lowlevel.wait_readable(self._router_fd)

    def _poll_while_idle(self) -> bool:
        """Block for a moment, if nobody else in this process wants to run; return whether there is news.

        Sleeping in the kernel here spares the way through trio's scheduler, which would cost more
        than all else that is done for a frame.
        """
        idle = trio.lowlevel.current_statistics()
        if idle.tasks_runnable or idle.run_sync_soon_queue_size or idle.seconds_to_next_deadline < POLL_S:
            return False
        return bool(self._poller.poll(POLL_S * 1000))

    def close(self) -> None:
        """Close every socket at once and drop what they hold; closing twice is fine."""
        self._context.destroy(linger=0)


def _ignore(_: str) -> None:
    """Hear that a peer was refused, where nobody counts."""


def _events(socket: zmq.Socket[bytes]) -> int:
    return cast(int, socket.get(_EVENTS))


def local_endpoint(transport: str, directory: Path | None = None) -> str:
    """Return an endpoint on this machine to bind.

    Parameters
    ----------
    transport : str
        `tcp` (a free port on loopback) or `ipc` (a socket in `directory`, whose mode is 0700).
    directory : Path, optional
        Needed for `ipc`.

    Raises
    ------
    ValueError
        If the transport is unknown, or others may enter the directory.
    """
    if transport == "tcp":
        return "tcp://127.0.0.1:*"
    if transport != "ipc":
        raise ValueError(f"transport {transport!r} is neither tcp nor ipc")
    if directory is None or os.stat(directory).st_mode & 0o077:
        raise ValueError(f"ipc needs a directory that is closed to others, not {directory}")
    return f"ipc://{directory / secrets.token_hex(8)}"


def address_endpoint(address: str) -> str:
    """Return an endpoint to bind: a free port of an address of this machine.

    Raises
    ------
    ValueError
        If it is not one address that others could be told: a name, or all addresses at once.
    """
    host = ipaddress.ip_address(address)
    if host.is_unspecified or host.is_multicast:
        raise ValueError(f"{address} is not an address by which others reach this machine")
    return f"tcp://[{host}]:*" if host.version == 6 else f"tcp://{host}:*"
