"""Be a guest: a program, in this process or another one, that is a vCPU of a host that `vpmu serve` runs.

    import trio
    from vpmu.guest import connect

    async def guest() -> None:
        async with connect("tcp://127.0.0.1:5555", vm="g0") as cpu:
            await cpu.wrmsr(0x38D, 0xB)
            await cpu.wrmsr(0x38F, 1 << 32)
            await cpu.retire(instructions=1_000, branches=100)
            print(await cpu.rdpmc(1 << 30))

    trio.run(guest)

Virtual time stands still for the whole host while a guest that has the turn computes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from vpmu.cluster.guests.keys import read_guest_key
from vpmu.cluster.guests.messages import NEVER, Level
from vpmu.cluster.guests.ports import DealerTransport, InsidePort
from vpmu.guest.cpu import (
    Cpu,
    CutOff,
    Event,
    GeneralProtection,
    GuestOver,
    PmiHandler,
    RunOver,
    Transport,
)

__all__ = [
    "NEVER",
    "Cpu",
    "CutOff",
    "Event",
    "GeneralProtection",
    "GuestOver",
    "InsidePort",
    "Level",
    "PmiHandler",
    "RunOver",
    "connect",
]


@asynccontextmanager
async def connect(
    where: str | InsidePort,
    *,
    vm: str,
    vcpu: int = 0,
    on_pmi: PmiHandler | None = None,
    key: Path | None = None,
    keep_answers: bool = False,
) -> AsyncIterator[Cpu]:
    """Be a vCPU of a host for a while; at the end the guest has finished and halts for ever.

    If the block ends by an exception, the connection is dropped, and the host cuts the guest off.

    Parameters
    ----------
    where : str or InsidePort
        The host's endpoint, `tcp://HOST:PORT` or `ipc://PATH`, or its way in within this process.
    vm, vcpu : str and int
        Name of the VM, and the vCPU's number in it.
    on_pmi : callable, optional
        Takes performance interrupts, see `Cpu`.
    key : Path, optional
        The guest's key, `guest.key` of `vpmu cluster keys`; needed for a host that other machines can reach.
    keep_answers : bool
        Keep the host's frames in `Cpu.answers`.

    Raises
    ------
    CutOff
        If the host refuses the guest, or cuts it off.
    """
    cpu = Cpu(_transport(where, key), on_pmi, keep_answers=keep_answers)
    try:
        await cpu.start(vm, vcpu)
        yield cpu
        await cpu.leave()
    finally:
        cpu.close()
        await trio.lowlevel.cancel_shielded_checkpoint()


def _transport(where: str | InsidePort, key: Path | None) -> Transport:
    if isinstance(where, InsidePort):
        return where.connect()
    return DealerTransport(where, None if key is None else read_guest_key(key).secure)
