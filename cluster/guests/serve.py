"""The task that runs a host with remote guests: the kernels, then whoever has been asked, in strict turns.

Virtual time goes on once every vCPU that was asked has answered. So the wall clock decides nothing but when a
guest that says nothing is cut off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from vpmu.cluster.guests.desk import Desk
from vpmu.cluster.guests.ports import Port
from vpmu.kernels.jit import Arena

STALL_S: Final = 10.0
BATCH_FRAMES: Final = 64
"""Frames that are taken before other tasks of the process get their turn."""


class Advances(Protocol):
    """What runs the kernels: `vpmu.actors.outside.Outside`."""

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""

    def advance(self) -> Arena:
        """Run until a vCPU outside the kernels has been asked, or the run's end; return the records of it."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the host waits, on the wall clock.

    Attributes
    ----------
    stall_s : float
        For a guest that has the turn.
    wait_s : float
        For somebody to come for each vCPU.
    """

    stall_s: float = STALL_S
    wait_s: float = float("inf")


PATIENT: Final = Patience()
"""As long as it is usual."""


async def serve(
    outside: Advances,
    desk: Desk,
    port: Port,
    patience: Patience = PATIENT,
    on_records: Callable[[Arena], None] | None = None,
) -> None:
    """Run a host to its end.

    Parameters
    ----------
    outside : Advances
        The kernels, with the vCPUs that `desk` has seats for.
    desk : Desk
        Who is which vCPU.
    port : Port
        How frames come and go.
    patience : Patience
        When who says nothing is cut off.
    on_records : callable, optional
        Takes the records of each stretch of the kernels, `uint64[n, RECORD_WORDS]`.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(port.run)
        await _turns(outside, desk, port, patience, on_records)
        nursery.cancel_scope.cancel()


async def _turns(
    outside: Advances, desk: Desk, port: Port, patience: Patience, on_records: Callable[[Arena], None] | None
) -> None:
    give_up_at = trio.current_time() + patience.wait_s
    nr_left = BATCH_FRAMES
    while True:
        records = outside.advance()
        if on_records is not None:
            on_records(records)
        if outside.finished:
            break
        desk.ask(trio.current_time())
        nr_left -= 1
        if nr_left == 0 or not desk.is_waiting:
            nr_left = BATCH_FRAMES
            await trio.lowlevel.checkpoint()
        await _hear(desk, port, patience, give_up_at)
    desk.end()
    _send(desk, port)
    await trio.lowlevel.checkpoint()


async def _hear(desk: Desk, port: Port, patience: Patience, give_up_at: float) -> None:
    """Take what guests say until all that were asked have answered, and judge those who do not."""
    nr_left = BATCH_FRAMES
    while desk.is_waiting:
        _send(desk, port)
        received = port.receive()
        if received is not None:
            desk.take(*received, trio.current_time())
            nr_left -= 1
        if received is None or nr_left == 0:
            nr_left = BATCH_FRAMES
            _judge(desk, port, patience, give_up_at)
            _send(desk, port)
            if received is None:
                await _rest(desk, port, min(desk.deadline_s(patience.stall_s), give_up_at))
            else:
                await trio.lowlevel.checkpoint()


async def _rest(desk: Desk, port: Port, until_s: float) -> None:
    """Wait for news, if there is anybody to wait for."""
    if desk.is_waiting:
        with trio.move_on_at(until_s):
            await port.wait()


def _judge(desk: Desk, port: Port, patience: Patience, give_up_at: float) -> None:
    """Cut off who is gone, who has had the turn for too long, and for whom nobody has come."""
    for peer in port.lost():
        desk.lose(peer)
    now_s = trio.current_time()
    desk.stalled(now_s, patience.stall_s)
    if now_s >= give_up_at:
        desk.give_up(f"nobody came within {patience.wait_s:g} s")


def _send(desk: Desk, port: Port) -> None:
    for peer, frame in desk.outgoing:
        port.send(peer, frame)
    desk.outgoing.clear()
