"""Ranks of a run of which the third, the vCPUs', breaks the rules once all go."""

from collections.abc import Callable

from vpmu.actors.messages import host_perf, physical_cpu, vcpu
from vpmu.cluster.hub import Hub
from vpmu.cluster.node import play
from vpmu.cluster.proto import COORDINATOR, Kind


async def _play(hub: Hub, rank: int, payload: bytes, act: Callable[[Hub], None]) -> bytes:
    wait_go = hub.wait_go

    async def go_and_act() -> None:
        await wait_go()
        if rank == 2:
            act(hub)

    hub.wait_go = go_and_act  # type: ignore[method-assign]
    return await play(hub, rank, payload)


async def answers_unasked(hub: Hub, rank: int, payload: bytes) -> bytes:
    """A vCPU answers a physical CPU that does not exist, and so has not asked."""

    def act(hub: Hub) -> None:
        hub.send_record_nowait(Kind.RETIRED, 0, (3, 0), to=physical_cpu(99).number, source=vcpu(0).number)

    return await _play(hub, rank, payload, act)


async def speaks_for_another(hub: Hub, rank: int, payload: bytes) -> bytes:
    """The vCPUs' rank answers as if it were host perf."""

    def act(hub: Hub) -> None:
        hub.send_record_nowait(
            Kind.RESERVED, 0, (0, 0, 0), to=physical_cpu(0).number, source=host_perf(0).number
        )

    return await _play(hub, rank, payload, act)


async def is_done_twice(hub: Hub, rank: int, payload: bytes) -> bytes:
    """A rank without physical CPUs says that they are at the end."""
    return await _play(hub, rank, payload, lambda hub: hub.send_record_nowait(Kind.WINDOW, 0, (0,)))


async def asks_a_stranger(hub: Hub, rank: int, payload: bytes) -> bytes:
    """It speaks to a vCPU that does not exist."""

    def act(hub: Hub) -> None:
        hub.send_record_nowait(Kind.GRANT, 1, (3,), to=vcpu(4095).number, source=vcpu(0).number)

    return await _play(hub, rank, payload, act)


async def tells_two_clocks(hub: Hub, rank: int, payload: bytes) -> bytes:
    """It tells the coordinator two clocks at once."""
    return await _play(
        hub, rank, payload, lambda hub: hub.send_record_nowait(Kind.WINDOW, COORDINATOR, (1, 2))
    )
