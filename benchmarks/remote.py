"""Accesses of a remote guest, one at a time over ipc, against a bare ping-pong of pyzmq in the same run.

The guest is `examples/remote/guest.c` where it can be built, else the same frames by pyzmq. It and the bare
ping-pong take turns in blocks, so that a busy machine slows both alike; figures are medians of blocks and of
the blocks' ratios. The second figure is against the 10,000 accesses a second that a guest has to have. Host
and guest share a processor, as `taskset` has it: one waits while the other works; the third is without that.
"""

from __future__ import annotations

import gc
import json
import multiprocessing as mp
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import trio
import zmq

from vpmu.actors.outside import Outside
from vpmu.build import build
from vpmu.cluster.guests import messages as say
from vpmu.cluster.guests import wire
from vpmu.cluster.guests.ports import RouterPort, ipc_endpoint
from vpmu.cluster.guests.serve import serve
from vpmu.scenario import parse_scenario
from vpmu.serving import desk_of

EXAMPLE: Final = Path(__file__).parents[1] / "examples" / "remote"
BLOCKS: Final = 7
ACCESSES: Final = 10_000
WANTED: Final = 10_000
SCENARIO: Final[dict[str, Any]] = {
    "version": 1,
    "until": "1000 s",
    "host": [{"name": "host", "watchdog": True}],
    "vm": [{"name": "g0", "remote": True}],
}
Side = Callable[[str, Connection], None]


def _echo(endpoint: str, ready: Connection) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.bind(endpoint)
        ready.send(None)
        while True:
            peer = router.recv()
            frame = router.recv()
            if not frame:
                return
            router.send(peer, zmq.SNDMORE)
            router.send(frame)


def _host(endpoint: str, ready: Connection) -> None:
    scenario = parse_scenario(SCENARIO)
    machine = build(scenario, "optimized")
    outside = Outside(machine)
    port = RouterPort(endpoint)
    outside.advance()
    gc.freeze()
    ready.send(None)
    trio.run(serve, outside, desk_of(scenario, machine, outside), port)


def _rate(other: Side, endpoint: str, ask: Callable[[str], None]) -> float:
    """Return how often a second `ask`, which does it ACCESSES times, is answered by another process."""
    ready, tell = mp.Pipe(duplex=False)
    process = mp.get_context("spawn").Process(target=other, args=(endpoint, tell))
    process.start()
    ready.recv()
    begin = time.perf_counter()
    ask(endpoint)
    took = time.perf_counter() - begin
    process.terminate()
    process.join()
    return ACCESSES / took


def _ping(endpoint: str) -> None:
    frame = bytes(64)
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.connect(endpoint)
        for _ in range(ACCESSES):
            dealer.send(frame)
            dealer.recv()


def _read_counters(endpoint: str) -> None:
    """Be the guest in Python, by bare frames."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.connect(endpoint)
        dealer.send(wire.encode(0, say.Hello("g0")))
        dealer.recv()
        dealer.send(wire.encode(1, say.Start()))
        for sequence in range(2, ACCESSES + 2):
            _, grant = wire.decode_answer(dealer.recv())
            assert isinstance(grant, say.Grant)
            dealer.send(wire.encode(sequence, say.Report(grant.now_ns, 1, (), say.Operation.RDPMC, 0, 0, 1)))
        dealer.recv()


def _guest(folder: Path) -> Callable[[str], None]:
    """Return what is the guest: the one in C if it can be built here."""
    command = ["make", "-s", "-C", str(EXAMPLE), f"OUT={folder}"]
    if shutil.which("make") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        print("no C compiler or no zmq.h: the guest is Python's", file=sys.stderr)
        return _read_counters
    guest = str(folder / "guest")
    return lambda endpoint: subprocess.run([guest, endpoint, "g0", str(ACCESSES)], check=True) and None


def measure() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        guest = _guest(Path(name))
        apart = _compare("remote_accesses_apart", Path(name), guest)
        with _on_one_processor():
            together = _compare("remote_accesses", Path(name), guest)
    wanted = {"baseline": WANTED, "ratio": round(together["value"] / WANTED, 3)}
    return [together, {**together, "name": "remote_accesses_wanted", **wanted}, apart]


def _compare(name: str, folder: Path, guest: Callable[[str], None]) -> dict[str, Any]:
    blocks = []
    for block in range(BLOCKS):
        raw = _rate(_echo, ipc_endpoint(folder / f"{name} raw {block}"), _ping)
        blocks.append((_rate(_host, ipc_endpoint(folder / f"{name} {block}"), guest), raw))
    value = round(statistics.median(accesses for accesses, _ in blocks))
    raw = round(statistics.median(raw for _, raw in blocks))
    ratio = round(statistics.median(accesses / raw for accesses, raw in blocks), 3)
    return {"name": name, "value": value, "unit": "accesses/s", "baseline": raw, "ratio": ratio}


@contextmanager
def _on_one_processor() -> Iterator[None]:
    """Keep this process, and those that it starts, on one processor: only one of them has something to do."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
