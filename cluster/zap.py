"""Who may connect to a ROUTER with CURVE: the answers to libzmq's questions, under trio.

libzmq asks, in the words of ZAP 1.0 (RFC 27), over a socket inside the process before it lets a peer in. The
answer names the rank whose key the peer has; every message of that connection then carries the name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import trio
import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from vpmu.cluster.keys import RankKeys

DOMAIN: Final = b"vpmu"
ENDPOINT: Final = "inproc://zeromq.zap.01"
_VERSION: Final = b"1.0"
_NR_PARTS: Final = 7
"""Version, request, domain, address, identity, mechanism and the client's public key."""
_FAULTS: Final = {
    int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH): "it speaks without CURVE",
    int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC): "it is for another key, or a replay",
}
"""What libzmq's errors say of the peer."""

OnRefused = Callable[[str], None]
"""Told why a peer was not let in."""


class Authenticator:
    """Owns ZAP's end of a context and the news of failed handshakes of its ROUTER.

    Takes libzmq's questions; emits its answers, and a reason for each peer that is not let in. It ends when
    the task of `run` is cancelled; until that runs, no peer is let in.

    Parameters
    ----------
    router : zmq.Socket
        Not bound yet; CURVE is switched on.
    keys : RankKeys
        Who it is, and whose keys are let in.
    on_refused : callable
        Told of each peer that is not.
    watches : bool
        Read the ROUTER's news; else its owner does, and tells `note_failure`.
    """

    def __init__(
        self, router: zmq.Socket[bytes], keys: RankKeys, on_refused: OnRefused, *, watches: bool = True
    ) -> None:
        self._rank_of = {z85.decode(public): rank for rank, public in keys.allowed.items()}
        self._on_refused = on_refused
        self._zap = router.context.socket(zmq.REP)
        self._zap.linger = 0
        self._zap.bind(ENDPOINT)
        router.curve_server = True
        router.curve_secretkey = keys.secret
        router.zap_domain = DOMAIN
        self._monitor: zmq.Socket[Any] | None = None
        if watches:
            self._monitor = router.get_monitor_socket(int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL))
            self._monitor.linger = 0

    async def run(self) -> None:
        """Answer until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_take_all, self._zap, self._answer)
            if self._monitor is not None:
                nursery.start_soon(_take_all, self._monitor, self.note_failure)

    def _answer(self, question: list[bytes]) -> None:
        self._zap.send_multipart(self.answer(question), zmq.NOBLOCK)

    def answer(self, question: list[bytes]) -> list[bytes]:
        """Return ZAP's answer: 200 and the rank as user id, or 400."""
        request = question[1] if len(question) > 1 else b""
        rank = self._rank(question)
        if rank is None:
            address = question[3].decode(errors="replace") if len(question) > 3 else "nowhere"
            self._on_refused(f"no key of this run, from {address}")
            return [_VERSION, request, b"400", b"no key of this run", b"", b""]
        return [_VERSION, request, b"200", b"", str(rank).encode(), b""]

    def _rank(self, question: list[bytes]) -> int | None:
        if len(question) != _NR_PARTS:
            return None
        version, _, domain, _, _, mechanism, key = question
        if (version, domain, mechanism) != (_VERSION, DOMAIN, b"CURVE"):
            return None
        return self._rank_of.get(key)

    def note_failure(self, event: list[bytes]) -> None:
        """Take the news of a handshake that failed."""
        why = int(parse_monitor_message(event)["value"])
        told = _FAULTS.get(why, f"another key, a replay, or no ZMTP at all ({why:#x})")
        self._on_refused(f"its handshake failed: {told}")


async def _take_all(socket: zmq.Socket[Any], take: Callable[[list[bytes]], None]) -> None:
    """Hand each message of a socket to `take`; EVENTS is read before every wait."""
    while True:
        while int(socket.get(zmq.EVENTS)) & zmq.POLLIN:
            take(socket.recv_multipart(zmq.NOBLOCK))
            await trio.lowlevel.checkpoint()
        await trio.lowlevel.wait_readable(socket.fileno())
