"""The hub between two processes over tcp, against raw blocking pyzmq in the same run.

Raw and hub take turns in blocks, so that a busy machine slows both alike; figures are medians of
blocks and of the blocks' ratios. Run as `python benchmarks/hub.py`, or call `measure`.
"""

from __future__ import annotations

import json
import multiprocessing as mp
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from typing import Any, Final

import numpy as np
import trio
import zmq

from vpmu.cluster.hub import Handler, Hub
from vpmu.cluster.link import local_endpoint
from vpmu.cluster.proto import HEADER, Frame, Kind

FRAME_BYTES: Final = 32 << 10
RECORDS: Final = np.ones(((FRAME_BYTES - HEADER.size) // 64, 8), np.uint64)
BLOCKS: Final = 9
STREAM_FRAMES: Final = 4000
ROUND_TRIPS: Final = 2000
ACCESS: Final = (1, 2, 3, 4, 5, 6, 7, 8)

Side = Callable[[Connection], float]


def _raw_sockets(conn: Connection, context: zmq.Context[Any]) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    inward, outward = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    port = inward.bind_to_random_port("tcp://127.0.0.1")
    conn.send(port)
    outward.connect(f"tcp://127.0.0.1:{conn.recv()}")
    return inward, outward


def raw_stream_send(conn: Connection) -> float:
    with zmq.Context() as context:
        inward, outward = _raw_sockets(conn, context)
        with inward, outward:
            frame = bytes(FRAME_BYTES)
            for _ in range(STREAM_FRAMES):
                outward.send(frame)
            inward.recv()
    return 0.0


def raw_stream_receive(conn: Connection) -> float:
    with zmq.Context() as context:
        inward, outward = _raw_sockets(conn, context)
        with inward, outward:
            inward.recv()
            begin = time.perf_counter()
            for _ in range(STREAM_FRAMES - 1):
                inward.recv()
            took = time.perf_counter() - begin
            outward.send(b"")
    return (STREAM_FRAMES - 1) / took


def raw_ask(conn: Connection) -> float:
    frame = bytes(HEADER.size + 64)
    with zmq.Context() as context:
        inward, outward = _raw_sockets(conn, context)
        with inward, outward:
            begin = time.perf_counter()
            for _ in range(ROUND_TRIPS):
                outward.send(frame)
                inward.recv()
            took = time.perf_counter() - begin
            conn.send(None)
    return took / ROUND_TRIPS * 1e6


def raw_answer(conn: Connection) -> float:
    with zmq.Context() as context:
        inward, outward = _raw_sockets(conn, context)
        with inward, outward:
            for _ in range(ROUND_TRIPS):
                outward.send(inward.recv())
            conn.recv()
    return 0.0


@asynccontextmanager
async def _running_hub(conn: Connection, rank: int, kind: Kind, handler: Handler) -> AsyncIterator[Hub]:
    with Hub(local_endpoint("tcp"), run=1, attempt=0, rank=rank) as hub:
        conn.send(hub.endpoint)
        hub.connect(1 - rank, conn.recv())
        hub.on_kind(kind, handler)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hub.run)
            yield hub
            nursery.cancel_scope.cancel()


async def hub_stream_send(conn: Connection) -> float:
    done = trio.Event()
    async with _running_hub(conn, 0, Kind.FINISH, lambda _: done.set()) as hub:
        for _ in range(STREAM_FRAMES):
            await hub.send(Kind.BENCH, 1, RECORDS)
        await done.wait()
        conn.send(None)
    return 0.0


async def hub_stream_receive(conn: Connection) -> float:
    done = trio.Event()
    nr_left, begin, end = STREAM_FRAMES, 0.0, 0.0

    def take(frame: Frame) -> None:
        nonlocal nr_left, begin, end
        assert frame.records.size == RECORDS.size
        nr_left -= 1
        if nr_left == STREAM_FRAMES - 1:
            begin = time.perf_counter()
        elif nr_left == 0:
            end = time.perf_counter()
            done.set()

    async with _running_hub(conn, 1, Kind.BENCH, take) as hub:
        await done.wait()
        hub.send_nowait(Kind.FINISH, 0, np.empty((0, 1), np.uint64))
        conn.recv()
    return (STREAM_FRAMES - 1) / (end - begin)


async def hub_ask(conn: Connection) -> float:
    done = trio.Event()
    nr_left = ROUND_TRIPS

    def next_one(frame: Frame) -> None:
        nonlocal nr_left
        nr_left -= 1
        if nr_left:
            hub.send_record_nowait(Kind.ACCESS, 1, frame.record())
        else:
            done.set()

    async with _running_hub(conn, 0, Kind.ACCESS_DONE, next_one) as hub:
        begin = time.perf_counter()
        hub.send_record_nowait(Kind.ACCESS, 1, ACCESS)
        await done.wait()
        took = time.perf_counter() - begin
        conn.send(None)
    return took / ROUND_TRIPS * 1e6


async def hub_answer(conn: Connection) -> float:
    done = trio.Event()
    nr_left = ROUND_TRIPS

    def answer(frame: Frame) -> None:
        nonlocal nr_left
        hub.send_record_nowait(Kind.ACCESS_DONE, 0, frame.record())
        nr_left -= 1
        if not nr_left:
            done.set()

    async with _running_hub(conn, 1, Kind.ACCESS, answer) as hub:
        await done.wait()
        conn.recv()
    return 0.0


def _in_trio(side: Callable[[Connection], Awaitable[float]]) -> Side:
    return lambda conn: trio.run(side, conn)


PAIRS: Final[list[tuple[Side, Side]]] = [
    (raw_stream_send, raw_stream_receive),
    (_in_trio(hub_stream_send), _in_trio(hub_stream_receive)),
    (raw_ask, raw_answer),
    (_in_trio(hub_ask), _in_trio(hub_answer)),
]


def _child(conn: Connection) -> None:
    for _ in range(BLOCKS):
        for _, second in PAIRS:
            conn.send(second(conn))


def measure() -> list[dict[str, Any]]:
    """Return the figures: name, value, unit, baseline (raw pyzmq) and ratio, as `make bench` wants them."""
    ours, theirs = mp.Pipe()
    child = mp.get_context("spawn").Process(target=_child, args=(theirs,))
    child.start()
    blocks = [[max(first(ours), ours.recv()) for first, _ in PAIRS] for _ in range(BLOCKS)]
    child.join()
    raw_rate, hub_rate, raw_us, hub_us = zip(*blocks, strict=True)
    return [
        _figure("hub_32k_frames", "frames/s", hub_rate, raw_rate),
        _figure("hub_round_trip", "us", hub_us, raw_us),
    ]


def _figure(name: str, unit: str, ours: tuple[float, ...], raw: tuple[float, ...]) -> dict[str, Any]:
    ratios = [our / its for our, its in zip(ours, raw, strict=True)]
    return {
        "name": name,
        "value": round(statistics.median(ours), 1),
        "unit": unit,
        "baseline": round(statistics.median(raw), 1),
        "ratio": round(statistics.median(ratios), 3),
        "best": round(min(ours) if unit == "us" else max(ours), 1),
        "best_baseline": round(min(raw) if unit == "us" else max(raw), 1),
    }


if __name__ == "__main__":
    json.dump(measure(), sys.stdout, indent=2)
    print()
