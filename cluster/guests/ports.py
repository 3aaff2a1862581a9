"""How frames of remote guests come and go: over a ZeroMQ ROUTER, or inside this process.

Clients of this process import it, too; it knows frames as bytes only.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol, cast

import trio
import zmq
from zmq.utils.monitor import parse_monitor_message

from vpmu.cluster.guests.wire import MAX_FRAME_BYTES

HIGH_WATER_FRAMES: Final = 64
"""Frames that ZeroMQ holds per guest and direction; in lock-step there is one."""
POLL_MS: Final = 1
"""How long the desk's task blocks for the next frame before trio does: so long others of the process wait."""
_SOURCE: Final = "__fd"
"""libzmq's name for the file descriptor that a message came by."""
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)
_NOBLOCK: Final = int(zmq.NOBLOCK)
_NOBLOCK_MORE: Final = _NOBLOCK | int(zmq.SNDMORE)

Received = tuple[bytes, bytes | None]
"""A peer and its frame; None if the message was not of one part."""


class Port(Protocol):
    """What the desk's task needs of a way in."""

    def receive(self) -> Received | None:
        """Return the next message, None if there is none; it may block for a moment."""

    def lost(self) -> list[bytes]:
        """Return the peers whose connections ended since the last call."""

    def send(self, peer: bytes, frame: bytes) -> None:
        """Send a frame; a peer that is gone, or takes nothing, loses it."""

    async def wait(self) -> None:
        """Wait until there may be news."""

    async def run(self) -> None:
        """Do what has to be done beside, until cancelled."""


class RouterPort:
    """Owns the ROUTER that guests of other processes connect to.

    Takes frames for peers; emits received messages with their routing id, and says who is gone. It stops when
    it is closed.

    Parameters
    ----------
    endpoint : str
        Where to bind: `tcp://HOST:PORT` or `ipc://PATH`.
    secure : callable, optional
        Called with the ROUTER before it is bound; makes it CURVE's and returns what lets peers in.
    """

    def __init__(self, endpoint: str, secure: Callable[[zmq.Socket[bytes]], Gate] | None = None) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.linger = 0
        self._router.set_hwm(HIGH_WATER_FRAMES)
        self._router.rcvtimeo = POLL_MS
        self._router.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        events = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        self._monitor = self._router.get_monitor_socket(int(events))
        self._monitor.linger = 0
        self._gate = None if secure is None else secure(self._router)
        self._sources: dict[int, bytes] = {}
        self._known: set[bytes] = set()
        self._lost: list[bytes] = []
        try:
            self._router.setsockopt(zmq.IPV6, int("[" in endpoint))
            self._router.bind(endpoint)
        except zmq.ZMQError:
            self.close()
            raise
        self.endpoint = self._router.getsockopt_string(zmq.LAST_ENDPOINT)

    def receive(self) -> Received | None:
        """Return the next message, None if there is none within a moment.

        Sleeping in libzmq here spares the way through trio's scheduler, which would cost more than all else
        that is done for a frame.
        """
        router = self._router
        try:
            peer = router.recv()
        except zmq.Again:
            return None
        part = router.recv(_NOBLOCK, copy=False)
        if peer not in self._known:
            self._meet(peer, int(cast(str, part[_SOURCE])))
        nr_parts = 1
        while part.more:
            part = router.recv(_NOBLOCK, copy=False)
            nr_parts += 1
        return peer, part.bytes if nr_parts == 1 else None

    def _meet(self, peer: bytes, source: int) -> None:
        """Note which connection is a new peer's."""
        # The number may have been an earlier connection's: the monitor told its end before this message came.
        self._watch()
        self._sources[source] = peer
        self._known.add(peer)

    def lost(self) -> list[bytes]:
        """Return the peers whose connections ended since the last call."""
        self._watch()
        lost, self._lost = self._lost, []
        return lost

    def _watch(self) -> None:
        """Read the monitor's news."""
        while _events(self._monitor) & _POLLIN:
            event = self._monitor.recv_multipart(_NOBLOCK)
            told = parse_monitor_message(event)
            if told["event"] != zmq.EVENT_DISCONNECTED:
                if self._gate is not None:
                    self._gate.note_failure(event)
                continue
            peer = self._sources.pop(int(told["value"]), None)
            if peer is not None:
                self._known.discard(peer)
                self._lost.append(peer)

    def send(self, peer: bytes, frame: bytes) -> None:
        """Send a frame; a peer that is gone, or takes nothing, loses it."""
        self._router.send(peer, _NOBLOCK_MORE)
        self._router.send(frame, _NOBLOCK)

    async def wait(self) -> None:
        """Wait until there may be news."""
        if _events(self._router) & _POLLIN or _events(self._monitor) & _POLLIN:
            await trio.lowlevel.checkpoint()
            return
        async with trio.open_nursery() as nursery:
            for socket in (self._router, self._monitor):
                nursery.start_soon(_wait_readable, socket.fileno(), nursery.cancel_scope)

    async def run(self) -> None:
        """Let peers in, if keys are asked for, until cancelled."""
        if self._gate is None:
            await trio.sleep_forever()
        else:
            await self._gate.run()

    def close(self) -> None:
        """Close every socket at once and drop what they hold; closing twice is fine."""
        self._router.disable_monitor()
        self._context.destroy(linger=0)


class Gate(Protocol):
    """What lets peers in: `vpmu.cluster.zap.Authenticator`."""

    def note_failure(self, event: list[bytes]) -> None:
        """Take the news of a handshake that failed."""

    async def run(self) -> None:
        """Answer libzmq's questions until cancelled."""


class InsidePort:
    """The way in for guests that are tasks of this process: the same frames, and no socket."""

    def __init__(self) -> None:
        self._inbox: deque[Received] = deque()
        self._answers: dict[bytes, deque[bytes]] = {}
        self._lost: list[bytes] = []
        self._host = trio.lowlevel.ParkingLot()
        self._guests: dict[bytes, trio.lowlevel.ParkingLot] = {}

    def connect(self) -> InsideTransport:
        """Return a new guest's end."""
        peer = f"inside {len(self._guests)}".encode()
        self._guests[peer] = trio.lowlevel.ParkingLot()
        self._answers[peer] = deque()
        return InsideTransport(self, peer)

    async def answer_for(self, peer: bytes) -> bytes:
        """Wait for the next answer to a guest."""
        while not self._answers[peer]:
            await self._guests[peer].park()
        return self._answers[peer].popleft()

    def put(self, peer: bytes, frame: bytes) -> None:
        """Hand a guest's frame in."""
        self._inbox.append((peer, frame))
        self._host.unpark_all()

    def leave(self, peer: bytes) -> None:
        """Note that a guest is gone."""
        self._lost.append(peer)
        self._host.unpark_all()

    def receive(self) -> Received | None:
        """Return the next frame, None if there is none."""
        return self._inbox.popleft() if self._inbox else None

    def lost(self) -> list[bytes]:
        """Return the guests that went since the last call."""
        lost, self._lost = self._lost, []
        return lost

    def send(self, peer: bytes, frame: bytes) -> None:
        """Answer a guest."""
        self._answers[peer].append(frame)
        self._guests[peer].unpark_all()

    async def wait(self) -> None:
        """Wait until there is news."""
        if not self._inbox and not self._lost:
            await self._host.park()

    async def run(self) -> None:
        """Wait until cancelled."""
        await trio.sleep_forever()


class InsideTransport:
    """A guest's end of an `InsidePort`."""

    def __init__(self, port: InsidePort, peer: bytes) -> None:
        self._port = port
        self.peer = peer

    async def exchange(self, frame: bytes) -> bytes:
        """Send a frame, wait for the answer and return it."""
        self.send(frame)
        return await self.receive()

    def send(self, frame: bytes) -> None:
        """Send a frame."""
        self._port.put(self.peer, frame)

    async def receive(self) -> bytes:
        """Wait for an answer and return it."""
        return await self._port.answer_for(self.peer)

    def close(self) -> None:
        """Be gone."""
        self._port.leave(self.peer)


class DealerTransport:
    """A guest's DEALER: one frame out, one frame in.

    Parameters
    ----------
    endpoint : str
        Where the host's ROUTER is bound.
    secure : callable, optional
        Called with the DEALER before it connects; makes it CURVE's.
    """

    def __init__(self, endpoint: str, secure: Callable[[zmq.Socket[bytes]], None] | None = None) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._dealer = self._context.socket(zmq.DEALER)
        self._dealer.linger = 0
        if secure is not None:
            secure(self._dealer)
        try:
            self._dealer.setsockopt(zmq.IPV6, int("[" in endpoint))
            self._dealer.connect(endpoint)
        except zmq.ZMQError:
            self.close()
            raise

    async def exchange(self, frame: bytes) -> bytes:
        """Send a frame, wait for the answer and return it."""
        self._dealer.send(frame, _NOBLOCK)
        while not _events(self._dealer) & _POLLIN:
            await trio.lowlevel.wait_readable(self._dealer.fileno())
        return self._dealer.recv(_NOBLOCK)

    def close(self) -> None:
        """Close the socket at once."""
        self._context.destroy(linger=0)


async def _wait_readable(descriptor: int, done: trio.CancelScope) -> None:
    await trio.lowlevel.wait_readable(descriptor)
    done.cancel()


def _events(socket: zmq.Socket[Any]) -> int:
    return cast(int, socket.get(_EVENTS))


def ipc_endpoint(path: Path) -> str:
    """Return the endpoint of a socket file, whose folder only its owner may enter; a missing folder is made.

    Raises
    ------
    ValueError
        If others may enter the folder, or the path is too long for a socket.
    """
    folder = path.absolute().parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if stat.S_IMODE(os.stat(folder).st_mode) & 0o077:
        raise ValueError(f"others may enter {folder}; its mode has to be 0700")
    endpoint = f"ipc://{path.absolute()}"
    if len(endpoint.encode()) - len("ipc://") > int(zmq.IPC_PATH_MAX_LEN):
        raise ValueError(f"{path} is longer than a socket's name may be, {int(zmq.IPC_PATH_MAX_LEN)} bytes")
    return endpoint
