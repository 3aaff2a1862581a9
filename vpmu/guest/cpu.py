"""A vCPU as the program that is its guest sees it: instructions to execute, interrupts to take."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from enum import IntEnum
from typing import Protocol

from vpmu.cluster.errors import LocalProtocolError, RemoteProtocolError
from vpmu.cluster.guests import messages as say
from vpmu.cluster.guests import wire
from vpmu.cluster.guests.messages import NEVER, Given, Grant, Level, Operation, Reason, Welcome
from vpmu.guest.split import Clock, Code


class Event(IntEnum):
    """What a guest can retire, by the model's kinds; reference and bus cycles are the host's to count."""

    CYCLES = 0
    INSTRUCTIONS = 1
    BRANCHES = 2
    BRANCH_MISSES = 3
    CACHE_REFERENCES = 4
    CACHE_MISSES = 5
    L1D_LOADS = 6
    L1D_STORES = 7
    L1D_MISSES = 8
    L1I_MISSES = 9
    DTLB_LOAD_MISSES = 10
    DTLB_STORE_MISSES = 11
    ITLB_MISSES = 12
    L1D_PENDING = 13
    STALLS_L1D = 14
    MEM_LOADS_L3_MISS = 15


class GeneralProtection(Exception):
    """The vPMU answered an access with #GP."""


class GuestOver(Exception):
    """The guest cannot go on; `at_ns` is the virtual time."""

    def __init__(self, reason: str, at_ns: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.at_ns = at_ns


class RunOver(GuestOver):
    """The run has come to its virtual end, or the guest to its own."""


class CutOff(GuestOver):
    """The host does not go on with this guest, and says why."""


class Transport(Protocol):
    """Carries one frame to the host and brings its answer."""

    async def exchange(self, frame: bytes) -> bytes:
        """Send a frame, wait for the answer and return it."""

    def close(self) -> None:
        """Drop the connection."""


PmiHandler = Callable[["Cpu", int], Awaitable[object]]
"""A guest's interrupt handler; it is told the LVTPC word (vector 7:0, delivery mode 10:8)."""


class Cpu:
    """A vCPU of a host in another process, or in this one; made by `vpmu.guest.connect`.

    What retires is told with the next access, halt, overflow or end of a grant; between these the host hears
    nothing and no frame is sent. While a handler runs, further interrupts wait: one at most, as for an NMI.

    Parameters
    ----------
    transport : Transport
        The way to the host.
    on_pmi : callable, optional
        Takes performance interrupts.
    keep_answers : bool
        Keep the host's frames.

    Attributes
    ----------
    answers : list of bytes
        Every frame that came from the host, if they are kept.
    welcome : Welcome
        What the vCPU is.
    pmis : int
        Interrupts delivered so far.
    last_cost_ns : int
        Latency of the last access, ns.
    """

    welcome: Welcome

    def __init__(
        self, transport: Transport, on_pmi: PmiHandler | None = None, *, keep_answers: bool = False
    ) -> None:
        self.answers: list[bytes] = []
        self._keeps_answers = keep_answers
        self.on_pmi = on_pmi
        self.pmis = 0
        self.last_cost_ns = 0
        self.is_over = False
        self._transport = transport
        self._sequence = 0
        self._grant = Grant(0, 1)
        self._at_ns = 0
        self._retired: dict[tuple[int, int], int] = {}
        self._pmi: int | None = None
        self._in_handler = False

    @property
    def now_ns(self) -> int:
        """Virtual time, ns."""
        return self._at_ns

    @property
    def limit_ns(self) -> int:
        """How far the grant reaches, ns."""
        return self._grant.limit_ns

    @property
    def watched(self) -> tuple[say.Watched, ...]:
        """What counts while this guest runs, with the events left at the grant's begin."""
        return self._grant.watched

    async def start(self, vm: str, vcpu: int) -> None:
        """Become a vCPU and wait for the first grant."""
        answer = await self._ask(say.Hello(vm, vcpu))
        if not isinstance(answer, Welcome):
            raise RemoteProtocolError(f"{type(answer).__name__} after HELLO, expected WELCOME")
        self.welcome = answer
        self._clock = Clock(answer.core_khz)
        await self._granted(say.Start())
        await self._deliver()

    async def rdmsr(self, msr: int, *, level: Level = Level.KERNEL) -> int:
        """Execute RDMSR; return the value.

        Raises
        ------
        GeneralProtection
            If the vPMU answers so; the same holds for `wrmsr` and `rdpmc`.
        """
        return await self._access(Operation.RDMSR, msr, 0, level)

    async def wrmsr(self, msr: int, value: int, *, level: Level = Level.KERNEL) -> None:
        """Execute WRMSR."""
        await self._access(Operation.WRMSR, msr, value, level)

    async def rdpmc(self, index: int, *, level: Level = Level.KERNEL) -> int:
        """Execute RDPMC; return the value."""
        return await self._access(Operation.RDPMC, index, 0, level)

    async def emulated(self, *, branch: bool = False, level: Level = Level.KERNEL) -> None:
        """Execute an instruction that the hypervisor emulates; perhaps a branch."""
        await self._access(Operation.EMULATED, 3 if branch else 1, 0, level)

    def cpuid(self, leaf: int) -> tuple[int, int, int, int]:
        """Return EAX, EBX, ECX and EDX of leaf 0xA, which every guest is told; see `query_cpuid`."""
        if leaf != 0xA:
            raise LocalProtocolError(f"leaf {leaf:#x} was not told; use query_cpuid()")
        return self.welcome.leaf_0a

    async def query_cpuid(self, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
        """Ask for a leaf of CPUID; no virtual time passes."""
        answer = await self._ask(say.Cpuid(leaf, subleaf))
        if not isinstance(answer, say.CpuidIs):
            raise RemoteProtocolError(f"{type(answer).__name__} after CPUID, expected CPUID_IS")
        return answer.eax, answer.ebx, answer.ecx, answer.edx

    async def retire(
        self,
        *,
        instructions: int = 0,
        branches: int = 0,
        cycles: int | None = None,
        level: Level = Level.USER,
        events: Mapping[int, int] | None = None,
    ) -> None:
        """Execute code; interrupts come at the exact event, then the code goes on.

        Parameters
        ----------
        instructions, branches : int
            What it retires, spread evenly.
        cycles : int, optional
            Core cycles that it takes; as many as instructions if not given.
        level : Level
            Where it runs.
        events : mapping of int to int, optional
            Further events by kind, see `Event`; derived kinds, too, which a grant's `watched` names.
        """
        totals = dict(events or {})
        totals |= {Event.INSTRUCTIONS: instructions, Event.BRANCHES: branches}
        totals[Event.CYCLES] = instructions if cycles is None else cycles
        if min(totals.values()) < 0:
            raise LocalProtocolError(f"cannot retire {totals}")
        await self._execute(Code(totals), level)
        await self._deliver()

    async def halt(self, until_ns: int = NEVER) -> None:
        """Execute HLT: return when the time has come, or an interrupt was taken."""
        taken = self.pmis
        while self._at_ns < until_ns and self.pmis == taken:
            await self._go_on()
            if self.pmis == taken and self._at_ns < until_ns:
                await self._report(Reason.HALT, timer_at_ns=until_ns)
                await self._deliver()

    async def leave(self) -> None:
        """End as a guest that has finished: it halts for ever, and what it retired counts."""
        if self.is_over:
            return
        await self._go_on()
        try:
            await self._report(Reason.DONE)
        except RunOver:
            return
        raise RemoteProtocolError("a grant after the guest was done")

    def close(self) -> None:
        """Drop the connection; a guest that has not left is cut off."""
        self.is_over = True
        self._transport.close()

    async def _access(self, operation: Operation, register: int, value: int, level: Level) -> int:
        await self._go_on()
        grant = await self._report(
            Reason.ACCESS, operation=operation, register=register, value=value, level=level
        )
        if not grant.given & Given.RESULT:
            raise RemoteProtocolError("a grant without the result of an access")
        self.last_cost_ns = grant.cost_ns
        fault = bool(grant.given & Given.FAULT)
        if not fault and not self.welcome.intercepts:
            # On bare hardware the instruction itself retires, once it is carried out.
            await self._execute(Code({Event.INSTRUCTIONS: 1}), level)
        await self._deliver()
        if fault:
            raise GeneralProtection(f"#GP at {operation.name} {register:#x} of {value:#x}")
        return grant.value

    async def _execute(self, code: Code, level: Level) -> None:
        while code.done < code.steps:
            await self._go_on()
            await self._stretch(code, level)

    async def _stretch(self, code: Code, level: Level) -> None:
        """Execute to the first of the code's end, an overflow and the limit; report the latter two."""
        time_ns = self._grant.limit_ns - self._at_ns
        last = code.last_step_within(Event.CYCLES, self._clock.cycles_within(time_ns))
        overflow = min((code.step_of(*left) for left in self._left(level)), default=code.steps + 1)
        step = min(overflow, last)
        retired = code.advance(step)
        cycles = retired.get(Event.CYCLES, 0)
        if step == overflow or step == code.steps:
            time_ns = self._clock.ns_for(cycles)
        self._clock.spend(cycles, time_ns)
        self._at_ns += time_ns
        for kind, count in retired.items():
            key = int(kind), int(level)
            self._retired[key] = self._retired.get(key, 0) + count
        if step == overflow:
            await self._report(Reason.OVERFLOW)
            await self._deliver()

    def _left(self, level: Level) -> list[tuple[int, int]]:
        """Return (kind, events left) of each counter that raises an interrupt and counts at a level."""
        return [
            (kind, left - sum(self._retired.get((kind, at), 0) for at in (1, 2) if levels & at))
            for kind, levels, left in self._grant.watched
            if left and levels & level
        ]

    async def _go_on(self) -> None:
        """Have time to go on: at the limit of a grant, ask for another."""
        while self._at_ns >= self._grant.limit_ns:
            await self._report(Reason.LIMIT)
            await self._deliver()

    async def _report(
        self,
        reason: Reason,
        *,
        operation: int = 0,
        register: int = 0,
        value: int = 0,
        level: int = 0,
        timer_at_ns: int = NEVER,
    ) -> Grant:
        retired = tuple(
            say.Retired(kind, at, count) for (kind, at), count in sorted(self._retired.items()) if count
        )
        self._retired.clear()
        report = say.Report(
            self._at_ns, int(reason), retired, int(operation), register, value, int(level), timer_at_ns
        )
        return await self._granted(report)

    async def _granted(self, request: say.Start | say.Report) -> Grant:
        answer = await self._ask(request)
        if not isinstance(answer, Grant):
            raise RemoteProtocolError(f"{type(answer).__name__}, expected GRANT")
        self._grant = answer
        self._at_ns = answer.now_ns
        if answer.given & Given.PMI:
            self._pmi = answer.lvtpc
        return answer

    async def _deliver(self) -> None:
        """Take the interrupt that is pending, unless its handler runs already."""
        while self._pmi is not None and not self._in_handler:
            lvtpc, self._pmi = self._pmi, None
            self.pmis += 1
            self._in_handler = True
            try:
                if self.on_pmi is not None:
                    await self.on_pmi(self, lvtpc)
            finally:
                self._in_handler = False

    async def _ask(self, request: say.Request) -> say.Answer:
        if self.is_over:
            raise LocalProtocolError("this guest is over")
        frame = await self._transport.exchange(wire.encode(self._sequence, request))
        if self._keeps_answers:
            self.answers.append(frame)
        sequence, answer = wire.decode_answer(frame)
        if isinstance(answer, say.Refused):
            self.is_over = True
            raise CutOff(answer.reason, self._at_ns)
        if sequence != self._sequence:
            raise RemoteProtocolError(f"answer number {sequence}, expected {self._sequence}")
        self._sequence += 1
        if isinstance(answer, say.End):
            self.is_over = True
            why = "the run is over" if answer.why == say.EndReason.RUN_OVER else "the guest has left"
            raise RunOver(why, answer.at_ns)
        return answer
