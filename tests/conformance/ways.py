"""The two ways in: a guest's steps carried out inside the kernels, and message by message between actors.

Both take the same steps and say what the guest saw. A way is built once for a setup and reset between cases.
"""

from __future__ import annotations

from collections import deque
from copy import copy
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tests.conformance.setup import (
    AWAY,
    CPUID,
    EMULATE,
    HOST_READ,
    HOST_WRITE,
    INSIDE,
    KERNEL,
    LOOKS,
    RDMSR,
    SWITCH,
    USER,
    WORK,
    WRMSR,
    Seen,
    Setup,
    Step,
)
from vpmu.actors.cpuid import leaf_0a
from vpmu.actors.host_perf import HostPerf, Waiting
from vpmu.actors.local import drain_log
from vpmu.actors.machine import Machine
from vpmu.actors.messages import Address, Message, physical_cpu
from vpmu.actors.physical_cpu import Guests, PhysicalCpus
from vpmu.actors.rows import RowMap
from vpmu.actors.vcpu import VCpu
from vpmu.build import build
from vpmu.kernels import columns as col
from vpmu.kernels.advance import advance
from vpmu.kernels.engine import STATE_PICK, STOP_WAIT, leave_guest
from vpmu.kernels.guest.threads import THREAD_REPLAY
from vpmu.kernels.hardware import hw_read
from vpmu.kernels.host.perf import CALL_CREATE, CALL_RELEASE
from vpmu.kernels.integers import NEVER
from vpmu.kernels.jit import U64
from vpmu.kernels.log import RECORD_ACCESS
from vpmu.scenario.load import parse_scenario

if TYPE_CHECKING:
    from tests.conformance.table import Case
    from vpmu.kernels.jit import Arena

_STEPS: Final = U64(1_000_000)
_ONE: Final = U64(1)
_WAIT: Final = int(STOP_WAIT)
_REGISTER_SHIFT: Final = 8
_TURNS: Final = 20_000
"""More turns than any step takes: a kernel that never comes to an end fails."""


def quiet() -> np.errstate:
    """Return what keeps NumPy from warning of wrapping words in kernels that run uncompiled."""
    return np.errstate(over="ignore")


class StuckError(AssertionError):
    """A step has no end."""


def build_machine(setup: Setup) -> Machine:
    """Return the machine of a setup, its guest one that takes its accesses from outside."""
    machine = build(parse_scenario(setup.table(), file=str(setup)), setup.design)
    machine.log = np.zeros(1 << 13, np.uint64)
    machine.arena[int(col.R_LOG_CAPACITY)] = 1 << 10
    machine.arena[int(col.R_KEEP)] = 1 << int(RECORD_ACCESS)
    vcpu = machine.vcpus[0]
    _take_counters_away(machine, setup)
    for column in (col.G_TICK_AT, col.G_TIMER_AT):
        machine.arena[vcpu.guest + int(column)] = NEVER
    machine.arena[vcpu.guest + int(col.G_STREAM_OPEN)] = 1
    thread = vcpu.threads[0].offset
    machine.arena[thread + int(col.TH_TYPE)] = THREAD_REPLAY
    machine.arena[thread + int(col.TH_END)] = 0
    return machine


def _take_counters_away(machine: Machine, setup: Setup) -> None:
    """Give a guest fewer counters than its host has: what KVM makes of such a CPUID leaf."""
    s, v = machine.arena, machine.vcpus[0].offset
    if (setup.nr_gp, setup.nr_fixed) in ((4, 3), (8, 3)):
        return
    counters = ((1 << setup.nr_gp) - 1) | (((1 << setup.nr_fixed) - 1) << 32)
    s[v + int(col.V_NR_GP)], s[v + int(col.V_NR_FIXED)] = setup.nr_gp, setup.nr_fixed
    s[v + int(col.V_GLOBAL_VALID)] = counters
    s[v + int(col.V_GLOBAL_CTRL)] &= U64(counters)
    if setup.kvm == "7.0":
        s[v + int(col.V_FIXED_RESERVED)] |= ~U64((1 << 4 * setup.nr_fixed) - 1)


class Way:
    """A guest that takes steps; subclasses say how it takes part.

    Parameters
    ----------
    setup : Setup
        What it runs on.
    """

    name = ""
    runs_long = False
    """Whether it can run code for a thousand seconds of virtual time."""
    looks = False
    """Whether it can stop the physical CPU in mid-exit and mid-switch, and look at its registers there."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        built = build_machine(setup)
        self.v, self.p = built.vcpus[0].offset, built.pcpus[0].offset
        self.g, self.thread = built.vcpus[0].guest, built.vcpus[0].threads[0].offset
        self._open(built)
        self._wait()
        self._start = [machine.arena.copy() for machine in self._machines()]

    def _open(self, built: Machine) -> None:
        raise NotImplementedError

    def _machines(self) -> list[Machine]:
        """Return the machines of all processes that there would be."""
        raise NotImplementedError

    def _wait(self) -> None:
        """Let everybody go on until the guest waits for its next step."""
        raise NotImplementedError

    @property
    def host(self) -> Arena:
        """The arena in which the physical CPU lives, and with it KVM's rows."""
        return self._machines()[0].arena

    @property
    def guest(self) -> Arena:
        """The arena in which the guest lives."""
        return self._machines()[-1].arena

    def can_do(self, case: Case) -> bool:
        """Return whether a case can be carried out this way."""
        return (self.runs_long or not case.long) and (
            self.looks or not any(step.kind in LOOKS for step in case.steps)
        )

    def reset(self) -> None:
        """Go back to where the guest took its first step."""
        for machine, start in zip(self._machines(), self._start, strict=True):
            machine.arena[:] = start

    def steps(self, steps: tuple[Step, ...]) -> list[Seen]:
        """Return what the guest sees of each step, from the start on."""
        self.reset()
        return [self.step(each) for each in steps]

    def step(self, step: Step) -> Seen:
        """Return what the guest sees of one step."""
        if step.kind == CPUID:
            return Seen(0, self._leaf_0a()[step.register])
        if step.kind == WORK:
            return Seen(0, self._calls(CALL_CREATE) << 16 | self._calls(CALL_RELEASE))
        if step.kind in LOOKS:
            return Seen(0, self._look(step))
        before = int(self.guest[self.g + int(col.G_PMIS)])
        found = self._code(step) if step.kind in (USER, KERNEL, SWITCH) else self._access(step)
        return found._replace(pmis=int(self.guest[self.g + int(col.G_PMIS)]) - before)

    def _leaf_0a(self) -> tuple[int, int, int, int]:
        s, v, hardware = self.host, self.v, self.setup.design == "native"
        return leaf_0a(
            3 if hardware else int(s[v + int(col.V_VERSION)]),
            int(s[v + int(col.V_NR_GP)]),
            int(s[v + int(col.V_NR_FIXED)]),
            hidden=self.setup.hidden,
            anythread_deprecated=self.setup.kvm == "7.0" and not hardware,
        )

    def _look(self, step: Step) -> int:
        """Return a register of the physical CPU: in the guest, in the host or between vCPUs."""
        raise NotImplementedError

    def _calls(self, call: np.uint64) -> int:
        """Return how many calls of a kind host perf has served."""
        return int(self.host[self.p + int(col.P_CALLS + call)])

    def _code(self, step: Step) -> Seen:
        if step.kind == SWITCH:
            # The tick's wish for another vCPU, and an event for which the guest has to be left at once.
            s, p = self.host, self.p
            s[p + int(col.P_RESCHED)] = 1
            s[p + int(col.P_WAKE_AT)] = s[p + int(col.P_NOW)]
        if step.kind != KERNEL:
            self.guest[self.thread + int(col.TH_END)] += U64(step.value)
        else:
            self.guest[self.g + int(col.G_IN_KERNEL)] = step.value
        self._go_on()
        return Seen(0, step.value)

    def _access(self, step: Step) -> Seen:
        s, g = self.guest, self.g
        word, operation = step.value, step.kind
        if step.kind in (HOST_READ, HOST_WRITE):
            operation = RDMSR if step.kind == HOST_READ else WRMSR
            self._as_host(1)
        if step.kind == EMULATE:
            word = 0
            self.host[g + int(col.G_LEVEL)] = step.value
        record = g + int(col.G_STREAM_RECORD)
        s[record : record + 3] = operation | step.register << _REGISTER_SHIFT, word, 0
        s[g + int(col.G_STREAM)] = record
        s[g + int(col.G_STREAM_LEFT)] = 1
        self._go_on()
        self.host[g + int(col.G_LEVEL)] = 1
        self._as_host(0)
        (found,) = [
            Seen(head >> 8 & 0xFF, value)
            for head, _, _, _, _, value, _, _ in drain_log(self._machines()[-1]).tolist()
        ]
        return found

    def _as_host(self, flag: int) -> None:
        """Let accesses be the host's, or the guest's again: both sides of an access have to know."""
        for arena in (self.host, self.guest):
            arena[self.v + int(col.V_HOST)] = flag

    def _go_on(self) -> None:
        """Let the guest go on; its handler of PMIs returns at once."""
        s, g = self.guest, self.g
        self.host[self.p + int(col.P_STOP)] = 0
        self._wait()
        while s[g + int(col.G_IN_PMI)]:
            if s[g + int(col.G_NMI_PENDING)]:
                s[g + int(col.G_NMI_PENDING)] = 0
                continue
            s[g + int(col.G_IN_PMI)] = 0
            s[g + int(col.G_IN_KERNEL)] = s[g + int(col.G_SAVED_KERNEL)]
            self.host[self.p + int(col.P_STOP)] = 0
            self._wait()

    def _waits(self) -> bool:
        return int(self.host[self.p + int(col.P_STOP)]) == _WAIT


class InKernels(Way):
    """Everybody is in one arena, and one kernel call carries a step out."""

    name = "kernels"
    runs_long = True
    looks = True

    def _open(self, built: Machine) -> None:
        self._machine = built

    def _machines(self) -> list[Machine]:
        return [self._machine]

    def _wait(self) -> None:
        for _ in range(_TURNS):
            if self._waits():
                return
            self._advance(_STEPS)
        raise StuckError("the guest never waits for its next step")

    def _advance(self, steps: np.uint64) -> None:
        advance(self._machine.arena, self._machine.log, U64(self._machine.until_ns), steps)

    def _look(self, step: Step) -> int:
        if step.kind != INSIDE:
            self.host[self.p + int(col.P_STOP)] = 0
            leave_guest(self.host, U64(self.p), U64(self.v))
        if step.kind == AWAY:
            self._switch_out()
        _, word = hw_read(self.host, U64(self.p), U64(step.register))
        if step.kind != INSIDE:
            self._go_on()
        return int(word)

    def _switch_out(self) -> None:
        """Let another vCPU be wanted, and the physical CPU go on until it has none."""
        self.host[self.p + int(col.P_RESCHED)] = 1
        for _ in range(_TURNS):
            if self.host[self.p + int(col.P_STATE)] == STATE_PICK:
                return
            self._advance(_ONE)
        raise StuckError("the vCPU is never switched out")


class ByMessages(Way):
    """Physical CPU, host perf and vCPU have an arena each, as in three processes, and only messages."""

    name = "messages"

    def _open(self, built: Machine) -> None:
        built.arena[built.hosts[0].offset + int(col.H_REMOTE)] = 1
        self._places = [built, self._elsewhere(built), self._elsewhere(built)]
        self._introduce()

    @staticmethod
    def _elsewhere(built: Machine) -> Machine:
        """Return the machine as another process has it."""
        other = copy(built)
        other.arena, other.log = built.arena.copy(), built.log.copy()
        return other

    def _introduce(self) -> None:
        """Make the actors, each with the machine of its own process."""
        here, perf, guest = self._places
        cpu = here.pcpus[0]
        shares = {physical_cpu(cpu.index): here.pcpus}
        self._cpus = PhysicalCpus(here, shares, RowMap(here), Guests.ANSWER)
        self._perf = HostPerf(perf, perf.hosts[0], shares, set(), RowMap(perf))
        self._vcpu = VCpu(guest, guest.vcpus[0], RowMap(guest))
        self._actors: dict[Address, Any] = {
            self._perf.address: self._perf,
            self._vcpu.address: self._vcpu,
            physical_cpu(cpu.index): self._cpus,
        }

    def _machines(self) -> list[Machine]:
        return self._places

    def reset(self) -> None:
        """Go back to the first step; what host perf was promised before is void."""
        super().reset()
        self._introduce()

    def _wait(self) -> None:
        for _ in range(_TURNS):
            effects, more = self._cpus.turn()
            if self._waits():
                # Its process says that it waits for the window's end. It is for us that it waits.
                self._cpus.go_on(self._places[0].until_ns)
                return
            assert more or effects, "nobody has anything to do"
            self._deliver(effects)
        raise StuckError("the guest never waits for its next step")

    def _deliver(self, effects: list[tuple[Address, Message]]) -> None:
        mail = deque(effects)
        while mail:
            to, message = mail.popleft()
            assert not isinstance(message, Waiting) or message.request is not None, "the run is over"
            mail.extend(self._actors[to].handle(to, message))


WAYS: Final = (InKernels, ByMessages)
