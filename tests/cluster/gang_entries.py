"""What ranks run in the tests of the launcher; the worker processes import it."""

import os
import signal

import numpy as np
import trio
import zmq

from vpmu.cluster import proto
from vpmu.cluster.hub import Hub
from vpmu.cluster.proto import COORDINATOR, Frame, Header, Kind


async def ring(hub: Hub, rank: int, payload: bytes) -> bytes:
    """Pass a number round the ring until it has made its hops; return the hops seen here."""
    nr_ranks, nr_hops = payload
    done = trio.Event()
    seen: list[int] = []

    def pass_on(frame: Frame) -> None:
        (hop,) = frame.record()
        seen.append(hop)
        if hop < nr_hops:
            hub.send_record_nowait(Kind.BENCH, (rank + 1) % nr_ranks, (hop + 1,))
        if hop + nr_ranks > nr_hops:
            done.set()

    hub.on_kind(Kind.BENCH, pass_on)
    await hub.wait_go()
    if rank == 0:
        hub.send_record_nowait(Kind.BENCH, 1 % nr_ranks, (1,))
    await done.wait()
    return bytes(seen)


async def echo(hub: Hub, rank: int, payload: bytes) -> bytes:
    """Return the payload often enough for many chunks; leave the barrier to the gang."""
    return payload * 9


async def forever(hub: Hub, rank: int, payload: bytes) -> bytes:
    """Wait until somebody stops the gang; rank 0 says so once all go."""
    await hub.wait_go()
    if rank == 0:
        print("going", flush=True)
    await trio.sleep_forever()
    raise AssertionError


async def rank_1_raises(hub: Hub, rank: int, payload: bytes) -> bytes:
    """Rank 1 breaks; the others would wait for ever."""
    await hub.wait_go()
    if rank == 1:
        raise ArithmeticError("the second rank broke")
    await trio.sleep_forever()
    raise AssertionError


async def rank_1_dies(hub: Hub, rank: int, payload: bytes) -> bytes:
    """Rank 1's process is killed; the others hold the processor and never come back to trio."""
    await hub.wait_go()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        pass


async def rank_1_never_comes(hub: Hub, rank: int, payload: bytes) -> bytes:
    """Rank 1 stays in its preparations."""
    if rank == 1:
        await trio.sleep_forever()
    await hub.wait_go()
    return b""


async def wait_go_twice(hub: Hub, rank: int, payload: bytes) -> bytes:
    """Break the rule of the barrier."""
    await hub.wait_go()
    await hub.wait_go()
    return b""


async def rank_1_breaks_the_protocol(hub: Hub, rank: int, payload: bytes) -> bytes:
    """Rank 1 sends rank 0 a frame out of order, past the rules of its hub."""
    hub.on_kind(Kind.ACCESS, lambda frame: None)
    await hub.wait_go()
    if rank == 1:
        hub._next_sent[0] = 7
        hub.send_record_nowait(Kind.ACCESS, 0, (0,) * 8)
    await trio.sleep_forever()
    raise AssertionError


async def rank_1_commands(hub: Hub, rank: int, payload: bytes) -> bytes:
    """Rank 1 plays the coordinator."""
    await hub.wait_go()
    if rank == 1:
        hub.send_nowait(Kind.FAIL, 0, proto.pack_bytes(b"because I say so"))
    await trio.sleep_forever()
    raise AssertionError


async def rank_1_gets_it_wrong(hub: Hub, rank: int, payload: bytes) -> bytes:
    """Rank 1 sends the coordinator a frame of the base out of turn: the kind is the payload."""
    await hub.wait_go()
    if rank == 1:
        hub.send_nowait(Kind(payload[0]), COORDINATOR, proto.pack_bytes(b"again"))
        hub.send_nowait(Kind(payload[0]), COORDINATOR, proto.pack_bytes(b"again"))
    await trio.sleep_forever()
    raise AssertionError


async def rank_1_meets_a_stranger(hub: Hub, rank: int, payload: bytes) -> bytes:
    """A stranger sends rank 1 what would be right from rank 0; return what was refused."""
    heard = trio.Event()
    hub.on_kind(Kind.ACCESS, lambda frame: heard.set())
    await hub.wait_go()
    if rank == 0:
        await hub.send(Kind.ACCESS, 1, np.zeros((1, 8), np.uint64))
        return b""
    await heard.wait()
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        stranger.setsockopt(zmq.ROUTING_ID, proto.routing_id(hub.run_number, hub.attempt + 1, 0))
        stranger.connect(hub.endpoint)
        header = Header(Kind.ACCESS, hub.run_number, 1, 0, hub.attempt, 0, 0, 0, 1, 1, 8, 0)
        stranger.send(proto.encode(header, np.zeros((1, 8), np.uint64)))
        while not hub.refused:
            await trio.lowlevel.checkpoint()
    return hub.refused[0].reason.encode()
