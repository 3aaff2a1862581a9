"""A host whose guests a test drives: each vCPU issues the accesses that the test awaits, one by one.

The engine, host perf and the vPMU are those of every run; only the guest's decisions come from the test,
through an open stream of records (``G_STREAM_OPEN``).  Virtual time stands still for a vCPU that the test
leaves alone, unless another one needs its physical CPU, or the hardware's reservation: then it was idle.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import trio

from vpmu.actors.local import STEPS, drain_log
from vpmu.actors.machine import Machine, PcpuEntry, VcpuEntry
from vpmu.build import build
from vpmu.kernels import columns as col
from vpmu.kernels.advance import advance
from vpmu.kernels.designs.registry import design_names
from vpmu.kernels.engine import STOP_RESERVE, STOP_UNRESERVE, STOP_WAIT, STOP_WINDOW
from vpmu.kernels.guest.step import GUEST_HALT
from vpmu.kernels.guest.threads import THREAD_REPLAY
from vpmu.kernels.host.clock import CAUSE_IDLE
from vpmu.kernels.host.scheduler import VCPU_DONE, VCPU_HALTED
from vpmu.kernels.integers import NEVER
from vpmu.kernels.jit import U64
from vpmu.kernels.log import RECORD_ACCESS
from vpmu.kernels.perf.interrupt import (
    ACCESS_EMULATE,
    ACCESS_RDPMC,
    ACCESS_READ,
    ACCESS_WRITE,
    RETIRES_BRANCH,
    RETIRES_INSTRUCTION,
)
from vpmu.kernels.program_layout import CUR_POS
from vpmu.scenario.load import parse_scenario
from vpmu.units import parse_exact

if TYPE_CHECKING:
    from vpmu.kernels.jit import Arena

WINDOW_NS: Final = 1_000_000
"""How far the machine is advanced in one call, beyond the vCPU that a test waits for."""

_ALL_KINDS: Final = 0xFF
_UNTIL: Final = "1000000 s"
_PROGRAM_CYCLES: Final = 1 << 40
_REGISTER_SHIFT: Final = 8
_OPERATIONS: Final = {
    int(ACCESS_READ): "rdmsr",
    int(ACCESS_WRITE): "wrmsr",
    int(ACCESS_RDPMC): "rdpmc",
    int(ACCESS_EMULATE): "emulate",
}


Number = int | float | str
"""A number as a scenario gives it; a decimal is exact."""


class GeneralProtection(Exception):
    """The vPMU answered an access with #GP.

    Attributes
    ----------
    access : Access
        Which one.
    """

    def __init__(self, access: Access) -> None:
        super().__init__(f"#GP at {access.operation} 0x{access.register:x} of 0x{access.value:x}")
        self.access = access


class DriveError(RuntimeError):
    """A test used a host or a vCPU in a way that cannot work."""


@dataclass(frozen=True, slots=True)
class Access:
    """A completed ``rdmsr``, ``wrmsr`` or ``rdpmc``: what was read or written, its latency, whether #GP."""

    at_ns: int
    operation: str
    register: int
    value: int
    cost_ns: int
    fault: bool


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A vCPU as it was asked for."""

    cpu: int
    ipc: Number
    rates: dict[str, Number]
    on_pmi: PmiHandler | None
    pmu: dict[str, object]


class Vcpu:
    """A vCPU whose guest is the test; made by `Host.vcpu`.

    Attributes
    ----------
    history : list of Access
        Every access so far.
    """

    def __init__(self, host: Host, number: int, wanted: _Wanted) -> None:
        self.host = host
        self.number = number
        self.cpu = wanted.cpu
        self.history: list[Access] = []
        self._on_pmi = wanted.on_pmi
        self._in_handler = False
        self._busy = False

    @property
    def pmis(self) -> int:
        """PMIs delivered so far."""
        return self._guest_word(col.G_PMIS)

    @property
    def now_ns(self) -> int:
        """Virtual time of this vCPU's physical CPU, ns."""
        return self.host.word(self._pcpu.offset, col.P_NOW)

    @property
    def last_cost_ns(self) -> int:
        """Latency of the last access as the guest saw it, ns."""
        if not self.history:
            raise DriveError("no access yet")
        return self.history[-1].cost_ns

    @property
    def wrong_reads(self) -> int:
        """Counter reads so far that differed from the truth, stood-still counters' reads apart."""
        return self._guest_word(col.T_WRONG)

    @property
    def reads(self) -> int:
        """Counter reads so far that were held against the truth."""
        return self._guest_word(col.T_READS)

    @property
    def stood_still_ns(self) -> int:
        """How long enabled counters had no hardware counter, in sum, up to now."""
        total = 0
        for slot in range(col.SLOTS):
            total += self.host.word(self._entry.offset, col.V_STILL_NS + U64(slot))
            since = self.host.word(self._entry.offset, col.V_STILL_AT + U64(slot))
            total += max(self.now_ns - since, 0) if since != int(NEVER) else 0
        return total

    async def rdmsr(self, msr: int) -> int:
        """Execute RDMSR; return the value.

        Raises
        ------
        GeneralProtection
            If the vPMU answers so; the same holds for `wrmsr` and `rdpmc`.
        """
        return (await self._access(int(ACCESS_READ), msr, 0)).value

    async def wrmsr(self, msr: int, value: int) -> None:
        """Execute WRMSR."""
        await self._access(int(ACCESS_WRITE), msr, value)

    async def rdpmc(self, index: int) -> int:
        """Execute RDPMC; return the value."""
        return (await self._access(int(ACCESS_RDPMC), index, 0)).value

    async def kvm_get_msr(self, msr: int) -> int:
        """Read a register as the host does for a migration (KVM_GET_MSRS); GeneralProtection if it cannot."""
        with self._as_host():
            return await self.rdmsr(msr)

    async def kvm_set_msr(self, msr: int, value: int) -> None:
        """Write a register as the host does (KVM_SET_MSRS): GLOBAL_STATUS, too, and counters in full."""
        with self._as_host():
            await self.wrmsr(msr, value)

    @contextmanager
    def _as_host(self) -> Iterator[None]:
        at = self._entry.offset + int(col.V_HOST)
        self.host.arena[at] = 1
        try:
            yield
        finally:
            self.host.arena[at] = 0

    async def emulate(self, *, branch: bool = False) -> None:
        """Execute an instruction that the hypervisor emulates, as after the forced-emulation prefix."""
        retires = RETIRES_INSTRUCTION | (RETIRES_BRANCH if branch else U64(0))
        await self._access(int(ACCESS_EMULATE), int(retires), 0)

    async def run(self, *, cycles: int | None = None, instructions: int | None = None) -> None:
        """Execute user-mode code: so many core cycles, or so many instructions (at the vCPU's ``ipc``).

        PMIs that come meanwhile go to the vCPU's handler, if it has one; then the code goes on.
        """
        if (cycles is None) == (instructions is None):
            raise DriveError("run() takes either cycles or instructions")
        if instructions is not None:
            cycles = -(-instructions // parse_exact(self.host.wanted[self.number].ipc))
        assert cycles is not None
        if cycles < 0:
            raise DriveError("cannot run backwards")
        with self._claimed():
            if self._in_handler:
                raise DriveError("a PMI handler cannot run user-mode code")
            thread = self._entry.threads[0].offset
            self.host.arena[thread + int(col.TH_END)] += U64(cycles)
            await self._resume()

    async def _access(self, operation: int, register: int, value: int) -> Access:
        with self._claimed():
            s, g = self.host.arena, self._entry.guest
            record = g + int(col.G_STREAM_RECORD)
            s[record : record + 3] = operation | register << _REGISTER_SHIFT, value, 0
            s[g + int(col.G_STREAM)] = record
            s[g + int(col.G_STREAM_LEFT)] = 1
            before = len(self.history)
            await self._resume()
        access = self.history[before]
        if access.fault:
            raise GeneralProtection(access)
        return access

    async def _resume(self) -> None:
        """Let the guest go on until it waits for the test again; PMIs that come before are handled."""
        await self.host.go(self.number)
        s, g = self.host.arena, self._entry.guest
        while not self._in_handler and self._guest_word(col.G_IN_PMI):
            await self._handle_pmi()
            if self._guest_word(col.G_NMI_PENDING):
                s[g + int(col.G_NMI_PENDING)] = 0
                continue
            s[g + int(col.G_IN_PMI)] = 0
            s[g + int(col.G_IN_KERNEL)] = s[g + int(col.G_SAVED_KERNEL)]
            await self.host.go(self.number)

    async def _handle_pmi(self) -> None:
        if self._on_pmi is None:
            return
        self._in_handler = True
        try:
            await self._on_pmi(self)
        finally:
            self._in_handler = False

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        """Refuse a second operation while one is under way, unless a PMI handler issues it."""
        if self._in_handler:
            yield
            return
        if self._busy:
            raise DriveError(f"vCPU {self.number} is busy: one task drives a vCPU")
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def _guest_word(self, column: np.uint64) -> int:
        return self.host.word(self._entry.guest, column)

    @property
    def _entry(self) -> VcpuEntry:
        return self.host.machine.vcpus[self.number]

    @property
    def _pcpu(self) -> PcpuEntry:
        return self.host.machine.pcpus[self.cpu]


PmiHandler = Callable[[Vcpu], Awaitable[None]]
"""A guest's PMI handler: awaits the accesses that it makes."""


class Host:
    """A host with vCPUs that a test drives; `vpmu.testing` has a fixture that makes and closes it.

    Parameters
    ----------
    design : str
        Name of the vPMU design.
    cpus : int
        Physical CPUs.
    watchdog, noise, hyperthreading : bool
        As in a scenario's ``[[host]]``: the NMI watchdog takes a counter, host interrupts come, 4 counters
        or 8.
    seed : int
        Of the costs' spread and the noise.
    parameters : mapping, optional
        The design's parameters.
    tools : sequence of dict
        Host tools, each as a scenario's ``[[tool]]`` without its ``host``.
    kvm : str
        Whose rules of registers and emulation hold: those of Linux "5.0" or "7.0".
    """

    def __init__(
        self,
        design: str = "optimized",
        *,
        cpus: int = 1,
        watchdog: bool = False,
        noise: bool = False,
        hyperthreading: bool = True,
        seed: int = 0,
        parameters: Mapping[str, int] | None = None,
        tools: Sequence[Mapping[str, object]] = (),
        kvm: str = "5.0",
    ) -> None:
        if design not in design_names():
            raise DriveError(f"unknown design {design!r}; known: {', '.join(design_names())}")
        self.design = design
        self._seed = seed
        self._host: dict[str, object] = {
            "name": "host",
            "cpus": cpus,
            "watchdog": watchdog,
            "noise": noise,
            "hyperthreading": hyperthreading,
            "parameters": dict(parameters or {}),
            "kvm": kvm,
        }
        self._tools = [{"host": "host", **tool} for tool in tools]
        self._machine: Machine | None = None
        self.wanted: list[_Wanted] = []
        self.vcpus: list[Vcpu] = []
        self._halted: set[int] = set()

    def vcpu(
        self,
        cpu: int = 0,
        *,
        ipc: Number = 1,
        rates: Mapping[str, Number] | None = None,
        on_pmi: PmiHandler | None = None,
        pmu_version: int = 2,
        event_filter: Mapping[str, object] | None = None,
    ) -> Vcpu:
        """Add a vCPU, in a VM of its own; all have to be there before the first one runs.

        Parameters
        ----------
        cpu : int
            Physical CPU that it is pinned to.
        ipc : number
            Instructions per core cycle of its user-mode code.
        rates : mapping, optional
            Events per instruction of that code, by a scenario's names: ``{"branches": 0.2}``.
        on_pmi : callable, optional
            Awaited with the vCPU at each PMI; the accesses it makes are the guest's handler's.
        pmu_version : int
            Of architectural performance monitoring, as the guest is told: 1 or 2.
        event_filter : mapping, optional
            The VM's event filter, as a scenario's ``event_filter``.
        """
        if self._machine is not None:
            raise DriveError("the host runs already: add all vCPUs first")
        cpus = int(str(self._host["cpus"]))
        if not 0 <= cpu < cpus:
            raise DriveError(f"the host has no CPU {cpu}, only {cpus}")
        pmu: dict[str, object] = {"pmu_version": pmu_version}
        if event_filter is not None:
            pmu["event_filter"] = dict(event_filter)
        wanted = _Wanted(cpu, ipc, dict(rates or {}), on_pmi, pmu)
        vcpu = Vcpu(self, len(self.vcpus), wanted)
        self.wanted.append(wanted)
        self.vcpus.append(vcpu)
        return vcpu

    @property
    def machine(self) -> Machine:
        """The machine, built when it is first used."""
        if self._machine is None:
            self._machine = build(parse_scenario(self._table(), file="host"), self.design)
            self._machine.arena[int(col.R_KEEP)] = _ALL_KINDS
            for entry in self._machine.vcpus:
                self._open(entry)
        return self._machine

    @property
    def arena(self) -> Arena:
        """The machine's state."""
        return self.machine.arena

    def word(self, offset: int, column: np.uint64) -> int:
        """Return one word of a row."""
        return int(self.arena[offset + int(column)])

    async def go(self, number: int) -> None:
        """Advance the machine until a vCPU waits for its test."""
        self._release(number)
        while True:
            await trio.lowlevel.checkpoint()
            self._advance(number)
            if self._waits(number) or number in self._halted:
                return
            self._unblock(number)

    def close(self) -> None:
        """End all guests and check that they left nothing behind.

        Raises
        ------
        AssertionError
            If a hardware counter is still enabled, or somebody still holds the PMU hardware.
        """
        if self._machine is None:
            return
        for number, entry in enumerate(self.machine.vcpus):
            self._set(entry.guest, col.G_IN_PMI, 0)
            self._set(entry.guest, col.G_RUNNING, 0)
            self._release(number)
            while self.word(entry.offset, col.V_STATE) != int(VCPU_DONE):
                self._advance(number)
                self._unblock(number)
        if self._host["watchdog"] or self._tools:
            return
        armed = [hex(self.word(p.offset, col.HW_ARMED)) for p in self.machine.pcpus]
        assert not any(int(word, 16) for word in armed), f"counters enabled after all guests ended: {armed}"
        holders = self.word(self.machine.hosts[0].offset, col.H_HOLDERS)
        assert holders == 0, f"{holders} still hold the PMU hardware after all guests ended"

    def _table(self) -> dict[str, Any]:
        """Return the scenario of this host."""
        if not self.wanted:
            raise DriveError("the host has no vCPU")
        programs, vms = [], []
        for number, wanted in enumerate(self.wanted):
            name = f"guest{number}"
            code = {"name": "code", "share": 1, "ipc": wanted.ipc, **wanted.rates}
            programs.append({"name": name, "cycles": _PROGRAM_CYCLES, "functions": [code]})
            thread = {"name": "test", "program": name}
            vms.append({"name": name, "host": "host", "cpus": [wanted.cpu], "thread": [thread], **wanted.pmu})
        table = {"version": 1, "seed": self._seed, "until": _UNTIL, "host": [self._host]}
        return {**table, "program": programs, "vm": vms, "tool": self._tools}

    def _open(self, entry: VcpuEntry) -> None:
        """Make a guest one whose accesses come from the test: no tick, no work of its own."""
        thread = entry.threads[0].offset
        self._set(thread, col.TH_TYPE, int(THREAD_REPLAY))
        self._set(thread, col.TH_END, self.word(thread, col.TH_CURSOR + CUR_POS))
        for timer in (col.G_TICK_AT, col.G_TIMER_AT):
            self._set(entry.guest, timer, int(NEVER))
        self._set(entry.guest, col.G_STREAM_OPEN, 1)

    def _set(self, offset: int, column: np.uint64, value: int) -> None:
        self.arena[offset + int(column)] = value

    def _pcpu(self, number: int) -> int:
        return self.machine.pcpus[self.wanted[number].cpu].offset

    def _waits(self, number: int) -> bool:
        """Tell whether a vCPU has its physical CPU and waits for the test."""
        p = self._pcpu(number)
        mine = self.word(p, col.P_CURRENT) == self.machine.vcpus[number].offset
        return mine and self.word(p, col.P_STOP) == int(STOP_WAIT)

    def _release(self, number: int) -> None:
        """Let a waiting vCPU go on, or wake one that was left in HLT."""
        p, v = self._pcpu(number), self.machine.vcpus[number].offset
        self._halted.discard(number)
        if self._waits(number):
            self._set(p, col.P_STOP, 0)
        elif self.word(v, col.V_STATE) == int(VCPU_HALTED):
            now = self.word(p, col.P_NOW)
            self._set(v, col.V_WAKE_AT, now)
            self._set(p, col.P_WAKE_AT, min(self.word(p, col.P_WAKE_AT), now))
        elif self.word(v, col.V_REASON) == int(GUEST_HALT):
            # It was preempted on its way to HLT: it has something to do after all.
            self._set(v, col.V_REASON, 0)

    def _advance(self, number: int) -> None:
        """Advance the machine one window past the vCPU's physical CPU, and note the accesses."""
        until = self.word(self._pcpu(number), col.P_NOW) + WINDOW_NS
        stop = None
        while stop != int(STOP_WINDOW):
            stop = int(advance(self.arena, self.machine.log, U64(until), U64(STEPS)))
            self._take(drain_log(self.machine))

    def _take(self, records: Arena) -> None:
        actors = {
            self.word(v.guest, col.G_ID): vcpu.history
            for v, vcpu in zip(self.machine.vcpus, self.vcpus, strict=True)
        }
        for head, at_ns, actor, _, register, value, cost_ns, _ in records.tolist():
            if head & 0xFF == int(RECORD_ACCESS) and actor in actors:
                operation = _OPERATIONS[head >> 16]
                fault = bool(head >> 8 & 0xFF)
                actors[actor].append(Access(at_ns, operation, register, value, cost_ns, fault))

    def _unblock(self, number: int) -> None:
        """Take out of the way who waits for the test: off this vCPU's CPU, or before it in time."""
        p = self._pcpu(number)
        stop = self.word(p, col.P_STOP)
        if stop == int(STOP_WAIT):
            other = self.word(p, col.P_CURRENT)
            self._set(other, col.V_REASON, int(GUEST_HALT))
            self._halted.add(self.word(other, col.V_ID))
            self._set(p, col.P_STOP, 0)
        elif stop in (int(STOP_RESERVE), int(STOP_UNRESERVE)):
            for entry in self.machine.pcpus:
                self._idle_until(entry.offset, self.word(p, col.P_STOP_AT) + 1)

    def _idle_until(self, p: int, to_ns: int) -> None:
        """Let time pass on a physical CPU whose guest waits for the test."""
        lag = to_ns - self.word(p, col.P_NOW)
        if self.word(p, col.P_STOP) == int(STOP_WAIT) and lag > 0:
            self._set(p, col.P_CAUSES + CAUSE_IDLE, self.word(p, col.P_CAUSES + CAUSE_IDLE) + lag)
            self._set(p, col.P_NOW, to_ns)
            self._set(p, col.P_STOP_AT, to_ns)
