"""Hosts with remote guests for the tests, and guests that say what a test wants byte by byte."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from vpmu.cluster.guests import messages as say
from vpmu.cluster.guests import wire
from vpmu.cluster.guests.messages import Grant, Reason, Retired, Welcome
from vpmu.cluster.guests.ports import InsideTransport
from vpmu.cluster.guests.serve import PATIENT, Patience
from vpmu.kernels import columns as col
from vpmu.kernels.jit import U64
from vpmu.scenario import Scenario, parse_scenario
from vpmu.serving import Hosted, hosting

GLOBAL_STATUS, GLOBAL_CTRL, GLOBAL_OVF_CTRL, LVTPC = 0x38E, 0x38F, 0x390, 0x834
FIXED_CTR0, FIXED_CTR2, FIXED_CTR_CTRL, PMC0, EVENTSEL0 = 0x309, 0x30B, 0x38D, 0xC1, 0x186
RDPMC_FIXED = 1 << 30
NMI = 0x400
INSTRUCTIONS_USR, BRANCHES_USR, PMI = 0x4100C0, 0x4100C4, 1 << 20
DESIGNS = ("legacy", "optimized", "native")

_WORK = {"name": "work", "cycles": 40_000_000, "functions": [{"name": "loop", "share": 1, "branches": 0.2}]}
_SESSION = {"tool": "stat", "thread": "work", "events": ["branches", "cpu-cycles"]}
_THREAD = {"name": "work", "program": "work"}


def remote(name: str, cpu: int, **keys: Any) -> dict[str, Any]:
    """Return a remote VM on a physical CPU."""
    return {"name": name, "remote": True, "cpus": [cpu], **keys}


def program(name: str, cpu: int) -> dict[str, Any]:
    """Return a VM of ours on a physical CPU, whose perf stat counts while it works."""
    return {"name": name, "cpus": [cpu], "thread": [_THREAD], "session": [_SESSION]}


def scenario(*vms: dict[str, Any], **host: Any) -> Scenario:
    """Return a scenario of one host; its watchdog holds the PMU, so that nobody waits for the reservation."""
    hosts = [{"name": "host", "cpus": 3, "watchdog": True, **host}]
    table = {"version": 1, "seed": 5, "until": "40 ms", "program": [_WORK], "host": hosts}
    return parse_scenario({**table, "vm": list(vms)})


def alone(**host: Any) -> Scenario:
    """Return a scenario of one remote VM, g0."""
    return scenario(remote("g0", 0), **host)


def hashes(host: Hosted) -> dict[str, tuple[int, ...]]:
    """Return the row hash of each vCPU's guest, with its accesses and PMIs, by VM."""
    columns = (col.G_HASH, col.G_ACCESSES, col.G_PMIS, col.G_USER_NS)
    arena = host.machine.arena
    return {
        each.vm: tuple(int(arena[U64(each.guest) + column]) for column in columns)
        for each in host.machine.vcpus
    }


class Raw:
    """A guest that says what it is told to, past every rule of the client.

    Attributes
    ----------
    grant : Grant
        The last one.
    answers : list
        What the host said.
    """

    def __init__(self, transport: InsideTransport) -> None:
        self.transport = transport
        self.sequence = 0
        self.grant = Grant(0, 1)
        self.answers: list[say.Answer] = []

    async def send(self, request: say.Request) -> say.Answer:
        """Say something in turn; return the answer."""
        frame = wire.encode(self.sequence, request)
        self.sequence += 1
        return await self.send_bytes(frame)

    async def send_bytes(self, frame: bytes) -> say.Answer:
        """Say something, whatever it is; return the answer."""
        _, answer = wire.decode_answer(await self.transport.exchange(frame))
        self.answers.append(answer)
        if isinstance(answer, Grant):
            self.grant = answer
        return answer

    async def begin(self, vm: str = "g0") -> Welcome:
        """Become a vCPU and have the first grant."""
        welcome = await self.send(say.Hello(vm))
        assert isinstance(welcome, Welcome)
        assert isinstance(await self.send(say.Start()), Grant)
        return welcome

    async def wrmsr(self, msr: int, value: int) -> say.Answer:
        """Ask for a WRMSR where the grant begins."""
        return await self.send(write(self.grant.now_ns, msr, value))

    async def count_user_instructions(self, left: int) -> None:
        """Let counter 0 count instructions in user mode, so many to an interrupt."""
        await self.wrmsr(LVTPC, NMI)
        await self.wrmsr(PMC0, (1 << 48) - left)
        await self.wrmsr(EVENTSEL0, INSTRUCTIONS_USR | PMI)
        await self.wrmsr(GLOBAL_CTRL, 1)


def write(at_ns: int, msr: int, value: int) -> say.Report:
    """Return the report that asks for a WRMSR."""
    return say.Report(at_ns, Reason.ACCESS, (), say.Operation.WRMSR, msr, value, say.Level.KERNEL)


def limit(grant: Grant, retired: Iterable[Retired] = ()) -> say.Report:
    """Return the report that a grant is used up."""
    return say.Report(grant.limit_ns, Reason.LIMIT, tuple(retired))


def halt(grant: Grant) -> say.Report:
    """Return the report that the guest halts for ever where the grant began."""
    return say.Report(grant.now_ns, Reason.HALT)


@asynccontextmanager
async def raw_guest(
    of: Scenario, design: str, patience: Patience = PATIENT
) -> AsyncIterator[tuple[Hosted, Raw]]:
    """Run a host; yield it and a guest that has not said HELLO."""
    async with hosting(of, design, patience) as host:
        yield host, Raw(host.port.connect())
