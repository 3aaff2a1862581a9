"""Bad frames for a live hub: `python -m tests.cluster.fuzz 1000000` (`make fuzz`).

The hub is that of a rank with a machine, so every handler is a real one. A rank of the run sends it good
frames all the time, and they have to arrive, complete and in order. Meanwhile come, by turns:

- strangers' messages over sockets, under every kind of routing id that is not of this run, and raw bytes;
- frames under the rank's own routing id that are not the due one: they have to be named, and change nothing;
- the due frame with any payload for the actors of the machine: taken or named, never anything else;
- calls to host perf and its answers, of which some words are wrong, whatever came before.

Memory is measured after a tenth of the frames and at the end.
"""

import hashlib
import random
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import trio
import zmq

from tests.cluster.machines import machine_of, scenario_text
from vpmu.actors.call_words import CALL_END, CALL_FIRST
from vpmu.actors.machine import Machine
from vpmu.actors.messages import host_perf, physical_cpu
from vpmu.cluster import proto
from vpmu.cluster.errors import RemoteProtocolError
from vpmu.cluster.hub import Hub
from vpmu.cluster.link import local_endpoint
from vpmu.cluster.proto import Frame, Header, Kind
from vpmu.kernels.columns import P_CALL, P_NOW, SLOTS

RUN, ATTEMPT = 0xFEED_0123_4567_89AB, 2
GOOD = proto.routing_id(RUN, ATTEMPT, 1)
STRANGERS = (
    b"nobody in particular",
    b"",
    b"\0" * 20,
    b"x" * 255,
    proto.routing_id(RUN + 1, ATTEMPT, 1),
    proto.routing_id(RUN, ATTEMPT - 1, 1),
    proto.routing_id(RUN, ATTEMPT, 9),
    GOOD[:-1],
)
BURST = 200
"""Messages a stranger sends between two turns of the hub: fewer than ZeroMQ holds."""
SEED = 20190000
_CALL = int(P_CALL) - CALL_FIRST


class Frames:
    """Draws frames: well-formed ones of any kind, and what becomes of them when bytes are changed."""

    def __init__(self, seed: int, actors: list[int]) -> None:
        self._random = random.Random(seed)
        self._actors = [0, 1, *actors]

    def word(self) -> int:
        draw = self._random
        return draw.choice(
            (0, 1, 2, 3, draw.getrandbits(8), draw.getrandbits(32), 2**63, 2**64 - 1, draw.getrandbits(64))
        )

    def well_formed(self, sequence: int, counts: tuple[int, ...] = (0, 1, 1, 1, 2, 5)) -> bytes:
        draw = self._random
        kind = draw.choice(list(Kind))
        words = proto.FIXED_WORDS.get(kind) or draw.choice((1, 2, 3, 8, 9, 13, 21))
        words = max(words, proto.LEAST_WORDS.get(kind, 0))
        count = draw.choice(counts)
        header = Header(
            kind,
            RUN,
            sequence,
            self.word(),
            ATTEMPT,
            draw.choice(self._actors),
            draw.choice(self._actors),
            1,
            0,
            count,
            words,
            self.word() if draw.random() < 0.3 else draw.randrange(4),
        )
        payload = [self.word() for _ in range(count * words)]
        return proto.encode(header, np.array(payload, np.uint64).reshape(count, words))

    def wrong_call(self, machine: Machine, sequence: int) -> bytes:
        """Return a physical CPU's call to host perf, as its row has it but for some words."""
        draw = self._random
        pcpu = draw.choice(machine.pcpus)
        row = machine.arena[pcpu.offset + CALL_FIRST : pcpu.offset + CALL_END].copy()
        row[_CALL] = draw.randrange(1, 12)
        row[_CALL + 1] = draw.choice([0, *(vcpu.offset for vcpu in machine.vcpus_of(pcpu.host))])
        row[_CALL + 2] = draw.randrange(SLOTS)
        for _ in range(draw.choice((0, 1, 1, 2, 5))):
            row[draw.randrange(row.size)] = draw.choice((self.word(), 1 << draw.randrange(64)))
        ends = physical_cpu(pcpu.index).number, host_perf(pcpu.host).number
        at_ns = int(machine.arena[pcpu.offset + int(P_NOW)])
        header = Header(Kind.PERF_REQUEST, RUN, sequence, at_ns, ATTEMPT, *ends, 0, 1, 1, row.size, 0)
        return proto.encode(header, row.reshape(1, -1))

    def bad(self, sequence: int) -> bytes:
        """Return a frame that is not the one due under `sequence`."""
        draw = self._random
        way = draw.randrange(5)
        if way == 0:
            return draw.randbytes(draw.randrange(200))
        if way == 1:  # a replay, or one from the future
            return self.well_formed(
                draw.choice((max(sequence - 1, 0), 0, sequence + 1, 2**64 - 1)) if sequence else 5
            )
        # With no record at all, their size would say nothing.
        body = bytearray(self.well_formed(sequence, (1, 2, 5)))
        if way == 2:
            return bytes(body[: draw.randrange(len(body))])
        if way == 3:
            return bytes(body) + draw.randbytes(draw.randrange(1, 9))
        at = draw.choice(
            (0, 3, 4, 5, 8, 15, 16, 20, 32, 44, 46, 48, 51, 52, 55)
        )  # a fenced field of the header
        body[at] ^= draw.randrange(1, 256)
        return bytes(body)


@dataclass
class Report:
    """What a run of the fuzzer came to."""

    sent: Counter[str] = field(default_factory=Counter)
    named: Counter[str] = field(default_factory=Counter)
    good: int = 0
    refused: int = 0
    kib: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def lines(self) -> Iterator[str]:
        yield f"{sum(self.sent.values())} bad frames in {self.seconds:.0f} s: " + ", ".join(
            f"{count} {name}" for name, count in sorted(self.sent.items())
        )
        yield f"strangers' messages refused and counted: {self.refused}"
        yield "frames under a rank's name: " + ", ".join(
            f"{n} {what}" for what, n in sorted(self.named.items())
        )
        yield f"good frames meanwhile, all in order: {self.good}"
        yield f"resident memory after a tenth: {self.kib[0]} KiB, at the end: {self.kib[-1]} KiB"


def resident_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


class Target:
    """The live hub of a rank, whose handlers are a seat's, and its peer, which is good.

    Rank 0 has the physical CPUs and the guests, rank 1 host perf.
    """

    def __init__(self, rank: int = 0) -> None:
        from vpmu.cluster.roles import assign
        from vpmu.cluster.seat import Seat

        self.machine = machine_of(scenario_text(3, "5 ms", [(2, 2, 2)]), "optimized")
        self.hub = Hub(local_endpoint("tcp"), run=RUN, attempt=ATTEMPT, rank=rank)
        self.peer = Hub(local_endpoint("tcp"), run=RUN, attempt=ATTEMPT, rank=1 - rank)
        roles = assign(self.machine, 2, "packed", True)
        self.seat = Seat(self.hub, rank, self.machine, roles)
        self.hub.on_kind(Kind.BENCH, self._on_good)
        self.heard = 0
        self.hub.connect(rank, self.hub.endpoint)
        self.hub.connect(1 - rank, self.peer.endpoint)
        self.peer.connect(rank, self.hub.endpoint)
        self.actors = [address.number for address in roles.rank_of]

    def _on_good(self, frame: Frame) -> None:
        if frame.header.nr_records != 1 or frame.record() != (self.heard,):
            raise RemoteProtocolError("not the good frame that is due")
        self.heard += 1

    def state(self) -> str:
        """Return what a bad frame must not change: arena, links and what was taken."""
        tally = self.hub.statistics()
        parts = (self.hub._ranks, self.hub._next_received, tally.frames_received, tally.records_received)
        arena = hashlib.sha256(self.machine.arena.tobytes()).hexdigest()
        return f"{arena} {parts} {len(self.seat._log)} {self.seat._done}"

    async def good_frame(self) -> None:
        """Let rank 1 say something, and wait until it is heard."""
        due = self.heard + 1
        self.peer.send_record_nowait(Kind.BENCH, 0, (self.heard,))
        while self.heard < due:
            await trio.lowlevel.checkpoint()

    def close(self) -> None:
        self.hub.close()
        self.peer.close()


async def fuzz(nr_frames: int, seed: int = SEED) -> Report:
    """Put bad frames on a live hub; AssertionError, or whatever broke, if it does not stand them."""
    target, report = Target(), Report()
    frames = Frames(seed, target.actors)
    started = time.monotonic()
    with ExitStack() as stack:
        stack.callback(target.close)
        context = stack.enter_context(zmq.Context())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(target.hub.run)
            nursery.start_soon(target.peer.run)
            while (done := sum(report.sent.values())) < nr_frames:
                if done * 10 >= nr_frames and not report.kib:
                    report.kib.append(resident_kib())
                await _strangers(target, context, frames, report)
                await target.good_frame()
                _under_a_name(target, frames, report)
                _raw_bytes(target, frames, report)
            report.kib.append(resident_kib())
            nursery.cancel_scope.cancel()
        context.destroy(linger=0)
    _any_payload(frames, report, max(nr_frames // 20, 500), seed)
    _wrong_calls(frames, report, max(nr_frames // 40, 500))
    report.good, report.refused = target.heard, target.hub.statistics().refused
    report.seconds = time.monotonic() - started
    assert report.refused >= report.sent["strangers'"]
    return report


async def _strangers(
    target: Target, context: zmq.Context[zmq.Socket[bytes]], frames: Frames, report: Report
) -> None:
    before, refused = target.state(), target.hub.statistics().refused
    nr_sent = 0
    for identity in STRANGERS:
        with context.socket(zmq.DEALER) as dealer:
            dealer.linger = -1
            if identity:
                dealer.routing_id = identity
            dealer.connect(target.hub.endpoint)
            for number in range(BURST):
                body = frames.bad(target.heard) if number % 2 else frames.well_formed(target.heard)
                dealer.send_multipart([body] if number % 7 else [body, b"more"], zmq.NOBLOCK)
            nr_sent += BURST
            while target.hub.statistics().refused < refused + nr_sent:
                await trio.lowlevel.checkpoint()
    report.sent["strangers'"] += nr_sent
    assert target.state() == before


def _under_a_name(target: Target, frames: Frames, report: Report) -> None:
    before = target.state()
    for _ in range(BURST * 3):
        body = frames.bad(target.heard)
        with pytest.raises(RemoteProtocolError, match="rank 1: "):
            target.hub._verify(GOOD, body)
        report.named["named at the link"] += 1
    report.sent["under a rank's name"] += BURST * 3
    assert target.state() == before


def _raw_bytes(target: Target, frames: Frames, report: Report) -> None:
    """Say something that is not even ZeroMQ's, or stops being it."""
    host, port = target.hub.endpoint.removeprefix("tcp://").split(":")
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    body = frames.bad(0)
    ready = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
    for text in (body, greeting + body, greeting + ready + b"\x02" + struct.pack(">Q", 2**62) + body):
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(text)
        report.sent["raw"] += 1


def _any_payload(frames: Frames, report: Report, nr_frames: int, seed: int) -> None:
    """Hand the due frame with any content to the handlers: taken, or named."""
    target = Target()
    try:
        for number in range(nr_frames):
            if number % 2000 == 0:  # what was taken has changed the machine: begin anew
                target.close()
                target = Target()
                frames = Frames(seed + number, target.actors)
            frame = proto.decode(frames.well_formed(number))
            try:
                target.hub._dispatch(frame)
                report.named["taken by an actor"] += 1
            except RemoteProtocolError:
                report.named["named by an actor"] += 1
        report.sent["with any payload"] += nr_frames
    finally:
        target.close()


def _wrong_calls(frames: Frames, report: Report, nr_frames: int) -> None:
    """Hand host perf calls, right but for some words: it takes or names them, and does not hang."""
    target = Target(rank=1)
    try:
        for number in range(nr_frames):
            if number % 1000 == 0:
                target.close()
                target = Target(rank=1)
            try:
                target.hub._dispatch(proto.decode(frames.wrong_call(target.machine, number)))
                report.named["calls taken"] += 1
            except RemoteProtocolError:
                report.named["calls named"] += 1
        report.sent["wrong calls"] += nr_frames
    finally:
        target.close()


def main(arguments: list[str]) -> int:
    """Run the fuzzer and print what it came to; 1 if memory grew."""
    report = trio.run(fuzz, int(arguments[0]) if arguments else 10_000)
    for line in report.lines():
        print(line)
    grown = report.kib[-1] - report.kib[0]
    print(f"memory {'is flat' if grown < 4096 else 'GREW'}: {grown:+} KiB; no crash, no state changed")
    return int(grown >= 4096)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
