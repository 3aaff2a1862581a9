"""The desk of remote guests: who is which vCPU, whose turn it is, and who is sent away.

It takes frames and gives frames, and knows no socket: `serve` moves them, over ZeroMQ or inside the process.
What a guest sent ahead waits for its turn, so that no answer depends on when a frame came.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from vpmu.actors.outside import Grant, OutsideError, OutsideVcpu, Report
from vpmu.cluster.errors import RemoteProtocolError
from vpmu.cluster.guests import messages as say
from vpmu.cluster.guests import wire
from vpmu.cluster.guests.messages import EndReason, Reason
from vpmu.cluster.guests.stretch import Stretches

MAX_AHEAD: Final = 8
"""Frames that a guest may send ahead of its turn."""
MAX_REFUSED: Final = 100
"""Refusals that are kept with their reason; more are only counted."""

Sent = tuple[bytes, bytes]
"""A peer, and a frame for it."""
_DONE: Final = int(Reason.DONE)
_LOG = logging.getLogger(__name__)


CpuidLeaf = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class CutOff:
    """A guest that was sent away: which vCPU, the virtual time at which it halted for ever, why."""

    vm: str
    vcpu: int
    at_ns: int
    reason: str


@dataclass(eq=False, slots=True)
class Seat:
    """A remote vCPU: whose it is, and how far its exchange has come.

    Attributes
    ----------
    welcome : Welcome
        What its guest is told; `vm` and `number` are its name.
    cpuid : callable
        Returns a leaf and subleaf of CPUID.
    peer : bytes or None
        Who sits here.
    due : int
        Sequence number of the guest's next frame.
    ahead : deque of bytes
        Frames that wait for the guest's turn.
    open : int or None
        Sequence number of the START or REPORT that the next grant answers; None while it is the guest's turn.
    grant : Grant or None
        What the vCPU was granted and has not answered.
    is_lost : bool
        Its connection is gone; what it sent before counts.
    over : str
        Why the guest is to be cut off when it is asked next.
    is_closed : bool
        Nobody sits here again.
    since_s : float
        When the guest's turn began, by the caller's clock; asking for CPUID does not prolong it.
    """

    vm: str
    vcpu: OutsideVcpu
    welcome: say.Welcome
    cpuid: Callable[[int, int], CpuidLeaf]
    stretches: Stretches
    peer: bytes | None = None
    due: int = 0
    ahead: deque[bytes] = field(default_factory=deque)
    open: int | None = None
    has_started: bool = False
    grant: Grant | None = None
    is_lost: bool = False
    over: str = ""
    is_closed: bool = False
    since_s: float = 0.0

    @property
    def number(self) -> int:
        """Its number in its VM."""
        return self.welcome.vcpu

    @property
    def name(self) -> str:
        """The vCPU as messages name it."""
        return f"{self.vm}, vCPU {self.number}"

    @property
    def may_speak(self) -> bool:
        """Whether it is the guest's turn."""
        return self.peer is not None and self.open is None and not self.is_closed


class Desk:
    """Owns the seats of all remote vCPUs of a run.

    Takes frames of peers, what vCPUs are granted, and news that a peer is gone; emits frames through
    `outgoing` and reports to the vCPUs. A peer's mistake is answered with REFUSED; it costs nobody else
    anything.

    Parameters
    ----------
    seats : sequence of Seat
        One for each remote vCPU.

    Attributes
    ----------
    outgoing : list of (bytes, bytes)
        Frames to send; the caller empties it.
    cut_off : list of CutOff
        Guests that were sent away, by virtual time as they come.
    refused : list of str
        Why peers were refused that are no guests; `nr_refused` counts all.
    """

    def __init__(self, seats: Sequence[Seat]) -> None:
        self.seats = list(seats)
        self.outgoing: list[Sent] = []
        self.cut_off: list[CutOff] = []
        self.refused: list[str] = []
        self.nr_refused = 0
        self._nr_waiting = 0
        self._by_peer: dict[bytes, Seat] = {}
        self._by_name = {(seat.vm, seat.number): seat for seat in seats}

    @property
    def is_waiting(self) -> bool:
        """Whether a vCPU was granted something that its guest has not answered."""
        return self._nr_waiting > 0

    def ask(self, now_s: float) -> None:
        """Hand every vCPU's grant, if it has been asked, to its guest."""
        for seat in self.seats:
            if seat.grant is None:
                # Note that a vCPU that was cut off, too, has to be asked: then it halts on.
                seat.grant = seat.vcpu.ask()
                if seat.grant is not None:
                    self._nr_waiting += 1
                    self._hand_out(seat, now_s)

    def take(self, peer: bytes, frame: bytes | None, now_s: float) -> None:
        """Take a frame from a peer; None stands for a message that is not of one part."""
        seat = self._by_peer.get(peer)
        if seat is None:
            self._come(peer, frame, now_s)
            return
        if len(seat.ahead) >= MAX_AHEAD:
            self._end(seat, f"sent {MAX_AHEAD} frames ahead of its turn")
            return
        seat.ahead.append(b"" if frame is None else frame)
        if seat.open is None:
            self._listen(seat, now_s)

    def lose(self, peer: bytes) -> None:
        """Note that a peer's connection is gone."""
        seat = self._by_peer.get(peer)
        if seat is not None:
            seat.is_lost = True
            self._listen(seat, seat.since_s)

    def stalled(self, now_s: float, stall_s: float) -> None:
        """Cut off every guest that has had the turn for too long."""
        for seat in self.seats:
            if seat.may_speak and now_s - seat.since_s >= stall_s:
                self._end(seat, f"said nothing for {stall_s:g} s")

    def deadline_s(self, stall_s: float) -> float:
        """Return when the first guest will have had the turn for too long."""
        return min((seat.since_s for seat in self.seats if seat.may_speak), default=float("inf")) + stall_s

    def give_up(self, reason: str) -> None:
        """Cut off every vCPU for which nobody has come."""
        for seat in self.seats:
            if seat.peer is None and not seat.is_closed:
                self._end(seat, reason)

    def end(self) -> None:
        """Tell every guest that the run is over."""
        for seat in self.seats:
            if seat.peer is not None and not seat.is_closed:
                sequence = seat.due if seat.open is None else seat.open
                self._send(seat.peer, sequence, say.End(seat.welcome.until_ns, EndReason.RUN_OVER))
                self._close(seat)

    # -- who comes --

    def _come(self, peer: bytes, frame: bytes | None, now_s: float) -> None:
        """Let a peer be a vCPU, or refuse it."""
        try:
            sequence, seat = self._seat_of(frame)
        except RemoteProtocolError as error:
            self._refuse(peer, error.reason)
            return
        seat.peer, seat.due, seat.since_s = peer, sequence + 1, now_s
        self._by_peer[peer] = seat
        self._send(peer, sequence, seat.welcome)
        _LOG.info("%s has a guest", seat.name)

    def _seat_of(self, frame: bytes | None) -> tuple[int, Seat]:
        if frame is None:
            raise RemoteProtocolError("message is not of one part")
        sequence, hello = wire.decode_request(frame)
        if not isinstance(hello, say.Hello) or sequence != 0:
            raise RemoteProtocolError(f"{type(hello).__name__} number {sequence}, expected HELLO number 0")
        seat = self._by_name.get((hello.vm, hello.vcpu))
        if seat is None:
            raise RemoteProtocolError(f"no remote vCPU {hello.vcpu} in a VM {hello.vm!r}")
        if seat.is_closed:
            raise RemoteProtocolError(f"{seat.name} has halted for ever")
        if seat.peer is not None:
            raise RemoteProtocolError(f"{seat.name} has a guest already")
        return sequence, seat

    def note_refused(self, reason: str) -> None:
        """Note that a peer was refused, here or by its handshake."""
        self.nr_refused += 1
        if len(self.refused) < MAX_REFUSED:
            self.refused.append(reason)
            _LOG.warning("refused a peer: %s", reason)

    def _refuse(self, peer: bytes, reason: str) -> None:
        self.note_refused(reason)
        self._send(peer, 0, say.Refused(reason))

    # -- whose turn it is --

    def _hand_out(self, seat: Seat, now_s: float) -> None:
        """Answer the guest's last frame with the grant, if it waits for one."""
        grant = seat.grant
        if grant is None:
            return
        if seat.over:
            self._cut_off(seat, grant, seat.over)
        elif seat.open is not None and seat.peer is not None:
            self._send(seat.peer, seat.open, seat.stretches.told(grant))
            seat.open, seat.since_s = None, now_s
            self._listen(seat, now_s)

    def _listen(self, seat: Seat, now_s: float) -> None:
        """Take what the guest has to say while it has the turn."""
        while seat.ahead and seat.may_speak and not seat.over:
            try:
                self._hear(seat, seat.ahead.popleft(), now_s)
            except (RemoteProtocolError, OutsideError) as error:
                self._end(seat, str(error))
        if seat.is_lost and seat.may_speak:
            self._end(seat, "its connection is gone")

    def _hear(self, seat: Seat, frame: bytes, now_s: float) -> None:
        sequence, request = wire.decode_request(frame)
        if sequence != seat.due:
            raise RemoteProtocolError(f"frame number {sequence}, expected {seat.due}")
        seat.due += 1
        if isinstance(request, say.Report):
            self._report(seat, sequence, request)
        elif isinstance(request, say.Cpuid):
            answer = say.CpuidIs(*seat.cpuid(request.leaf, request.subleaf))
            self._send(seat.peer, sequence, answer)
        elif isinstance(request, say.Start) and not seat.has_started:
            seat.has_started, seat.open = True, sequence
            self._hand_out(seat, now_s)
        elif isinstance(request, say.Bye) and seat.grant is not None:
            self._leave(seat, sequence, Report(seat.grant.now_ns, _DONE))
        else:
            raise RemoteProtocolError(f"{type(request).__name__}, which is not due")

    def _report(self, seat: Seat, sequence: int, report: say.Report) -> None:
        grant = seat.grant
        if grant is None or not seat.has_started:
            raise RemoteProtocolError("Report, which is not due")
        seen = seat.stretches.believed(grant, report)
        if report.reason == _DONE:
            self._leave(seat, sequence, seen)
            return
        seat.vcpu.answer(seen)
        self._settle(seat)
        seat.open = sequence

    def _leave(self, seat: Seat, sequence: int, report: Report) -> None:
        seat.vcpu.answer(report)
        self._send(seat.peer, sequence, say.End(report.end_ns, EndReason.LEFT))
        self._settle(seat)
        self._close(seat)

    # -- who is sent away --

    def _end(self, seat: Seat, reason: str) -> None:
        """Cut a guest off, now if its vCPU has been asked, else when it is asked next."""
        if seat.over:
            return
        seat.over = reason
        if seat.grant is not None:
            self._cut_off(seat, seat.grant, reason)

    def _cut_off(self, seat: Seat, grant: Grant, reason: str) -> None:
        seat.vcpu.cut_off(reason)
        self.cut_off.append(CutOff(seat.vm, seat.number, grant.now_ns, reason))
        _LOG.warning("%s was cut off at %d ns: %s", seat.name, grant.now_ns, reason)
        if seat.peer is not None:
            self._send(seat.peer, seat.due, say.Refused(reason))
        self._settle(seat)
        self._close(seat)

    def _settle(self, seat: Seat) -> None:
        """Note that a vCPU has its answer."""
        seat.grant = None
        self._nr_waiting -= 1

    def _close(self, seat: Seat) -> None:
        seat.is_closed = True
        seat.ahead.clear()
        if seat.peer is not None:
            self._by_peer.pop(seat.peer, None)

    def _send(self, peer: bytes | None, sequence: int, answer: say.Answer) -> None:
        assert peer is not None
        self.outgoing.append((peer, wire.encode(sequence, answer)))
