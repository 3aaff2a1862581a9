"""Ranks of a run in message mode of which one breaks the rules once all go, and ranks that meet strangers.

Rank 0 has the physical CPUs, rank 1 host perf, rank 2 the vCPUs. An entry's name is that of its act.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import trio
import zmq

from vpmu.actors.messages import host_perf, physical_cpu, vcpu
from vpmu.cluster import proto
from vpmu.cluster.hub import Hub
from vpmu.cluster.launcher import Entry
from vpmu.cluster.node import Share, play
from vpmu.cluster.proto import COORDINATOR, Header, Kind

Act = Callable[[Hub], None]

ACTS: dict[str, tuple[int, Act, str]] = {
    "is_no_frame": (2, lambda hub: hub._link.send_nowait(0, b"\xff" * 100), "rank 2: bad magic"),
    "is_cut_short": (
        1,
        lambda hub: hub._link.send_nowait(2, access(hub, 1, 2)[:-8]),
        "rank 1: frame of 120 bytes, but 1 records of 8 words make 128",
    ),
    "is_of_another_attempt": (
        2,
        lambda hub: hub._link.send_nowait(0, access(hub, 2, 0, attempt=9)),
        "rank 2: frame of run .* attempt 9, expected run .* attempt 0",
    ),
    "skips_a_number": (2, lambda hub: skip(hub, 0), "rank 2: frame number 7000 on this link, expected"),
    "is_for_nobody": (
        1,
        lambda hub: hub.send_record_nowait(Kind.BENCH, 0, (1,)),
        "rank 1: BENCH frame, which nobody takes here",
    ),
    "answers_for_a_cpu_that_is_not": (
        2,
        lambda hub: hub.send_record_nowait(Kind.RETIRED, 0, (3, 0), to=physical_cpu(99), source=vcpu(0)),
        "rank 2: a Retired for physical_cpu 99, which is not here",
    ),
    "speaks_for_another": (
        2,
        lambda hub: hub.send_record_nowait(
            Kind.RESERVED, 0, (0, 0, 0), to=physical_cpu(0), source=host_perf(0)
        ),
        "rank 2: speaks for host_perf 0, which does not live there",
    ),
    "is_done_without_cpus": (
        2,
        lambda hub: hub.send_record_nowait(Kind.WINDOW, 0, (0,)),
        "rank 2: says out of turn that it is done",
    ),
    "speaks_of_a_fleet": (
        2,
        lambda hub: hub.send_nowait(Kind.ROWS, 1, np.zeros((3, 1), np.uint64), request=4),
        "rank 2: speaks of a fleet, but has no physical CPU",
    ),
    "asks_a_vcpu_that_is_not": (
        2,
        lambda hub: hub.send_record_nowait(Kind.GRANT, 1, (3, 0), to=vcpu(4095), source=vcpu(0)),
        "rank 2: a WantRows for vcpu 4095, which is not here",
    ),
    "answers_a_guest_that_makes_no_access": (
        0,
        lambda hub: hub.send_record_nowait(
            Kind.ACCESS_DONE, 2, (1, 0, 0, 0, 0xC1, 0, 0, 0), to=vcpu(7), source=physical_cpu(0)
        ),
        "rank 0: vcpu 7 got the result of an access that it does not make",
    ),
    "balances_unasked": (
        0,
        lambda hub: hub.send_nowait(
            Kind.ROWS, 1, np.empty((0, 1), np.uint64), to=host_perf(0), source=physical_cpu(0), request=2
        ),
        "rank 0: rows from physical_cpu 0, which host_perf 0 did not ask for",
    ),
    "calls_what_is_not": (
        0,
        lambda hub: hub.send_record_nowait(
            Kind.PERF_REQUEST, 1, (0xFFFF,) * 3, call_words(), to=host_perf(0), source=physical_cpu(0)
        ),
        "rank 0: physical_cpu 0 says that word 6 of a call is 0xe+",
    ),
    "tells_two_clocks": (
        2,
        lambda hub: hub.send_record_nowait(Kind.WINDOW, COORDINATOR, (1, 2)),
        "rank 2 failed: a clock of more or less than 8 words",
    ),
    "records_what_is_not": (
        2,
        lambda hub: hub.send_record_nowait(Kind.RECORDS, COORDINATOR, (99,) * 8),
        "rank 2 failed: records of an unknown kind",
    ),
}


def access(hub: Hub, source_rank: int, destination_rank: int, *, attempt: int = 0) -> bytes:
    """Return a frame that would be right but for what the caller does to it."""
    ranks = (source_rank, destination_rank)
    header = Header(Kind.ACCESS, hub.run_number, 0, 0, attempt, vcpu(0), physical_cpu(0), *ranks, 1, 8, 0)
    return proto.encode(header, np.zeros((1, 8), np.uint64))


def call_words() -> bytes:
    """Return what follows three words of a call to host perf."""
    from vpmu.actors.call_words import CALL_END, CALL_FIRST

    return b"\xee" * 8 * (CALL_END - CALL_FIRST - 3)


def skip(hub: Hub, rank: int) -> None:
    """Leave numbers out on the way to a rank."""
    hub._next_sent[rank] = 7000
    hub.send_record_nowait(Kind.WINDOW, rank, (0,))


def _entry_of(name: str) -> Entry:
    culprit, act, _ = ACTS[name]

    async def entry(hub: Hub, rank: int, payload: bytes) -> bytes:
        wait_go = hub.wait_go

        async def go_and_act() -> None:
            await wait_go()
            if rank == culprit:
                act(hub)

        hub.wait_go = go_and_act  # type: ignore[method-assign]
        return await play(hub, rank, payload)

    return entry


def __getattr__(name: str) -> Entry:
    if name not in ACTS:
        raise AttributeError(name)
    return _entry_of(name)


async def hands_in_nonsense(hub: Hub, rank: int, payload: bytes) -> bytes:
    """Rank 1 ends as it should, but for its result."""
    result = await play(hub, rank, payload)
    return b"\xc1" if rank == 1 else result


async def hands_in_the_rows_of_another(hub: Hub, rank: int, payload: bytes) -> bytes:
    """Rank 1 hands in the first row of the arena, too, and rank 2 likewise."""
    share = msgspec.msgpack.decode(await play(hub, rank, payload), type=Share)
    if rank > 0:
        row = proto.pack_rows(np.zeros(1000, np.uint64), [(0, 8)]).tobytes()
        share = msgspec.structs.replace(share, rows=share.rows + row)
    return msgspec.msgpack.encode(share)


async def meets_strangers(hub: Hub, rank: int, payload: bytes) -> bytes:
    """Strangers send every rank what would be right from a rank of the run, and what is no frame."""
    wait_go = hub.wait_go
    identities = [
        b"nobody in particular",
        proto.routing_id(hub.run_number + 1, 0, 0),
        proto.routing_id(hub.run_number, 1, 2),
        proto.routing_id(hub.run_number, 0, 5),
    ]

    async def go_and_refuse() -> None:
        await wait_go()
        with zmq.Context() as context:
            strangers = [context.socket(zmq.DEALER) for _ in identities]
            for stranger, identity in zip(strangers, identities, strict=True):
                stranger.linger = 0
                stranger.setsockopt(zmq.ROUTING_ID, identity)
                stranger.connect(hub.endpoint)
                stranger.send(access(hub, 2, rank))
            while hub.statistics().refused < len(identities):
                await trio.lowlevel.checkpoint()
            context.destroy(linger=0)

    hub.wait_go = go_and_refuse  # type: ignore[method-assign]
    return await play(hub, rank, payload)
