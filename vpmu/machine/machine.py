"""A machine guest: an outside guest whose decisions are those of x86-64 code.

`Machine` owns the processor, its local APIC, its ports and its clock. It is granted a stretch of virtual time
and reports once: what it retired, and why it stopped. Its PMU is the host's: an access to a PMU register ends
the stretch, and the next grant brings the outcome.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from vpmu.actors.outside import Grant, Report, Result
from vpmu.kernels.guest.step import GUEST_ACCESS, GUEST_DONE, GUEST_HALT, GUEST_LIMIT, GUEST_OVERFLOW
from vpmu.machine import instructions, model
from vpmu.machine import layout as at
from vpmu.machine.apic import Apic
from vpmu.machine.boot import boot
from vpmu.machine.clock import Clock, Rates
from vpmu.machine.devices import Ports
from vpmu.machine.features import Leaf, Msrs
from vpmu.machine.image import Image
from vpmu.machine.interrupts import NMI, TripleFault, deliver
from vpmu.machine.operands import address_in_page
from vpmu.machine.processor import PAGE, GuestFault, MachineError, Processor

Life = Generator[Report, Grant, None]
Ask = Generator[Report, Grant, Result]

_INTERRUPTS_ON = 1 << 9
_APIC_ENABLED = 1 << 11
_AT_INSTRUCTION = (at.STOP_CODE, at.STOP_FAULT, at.STOP_DEVICE, at.STOP_VECTOR)
"""Stops at an instruction that has not been executed."""
_KERNEL, _USER = 1, 2
"""Levels as a report names them."""


@dataclass(slots=True, frozen=True)
class MachineConfig:
    """What a machine is made of.

    Parameters
    ----------
    rates
        What its clocks count.
    pmu
        CPUID leaf 0xA.
    intercepts
        The hypervisor carries PMU accesses out; False on bare hardware.
    perf_capabilities
        There is IA32_PERF_CAPABILITIES.
    forced_emulation
        UD2 followed by the bytes of "kvm" marks an instruction that the hypervisor is to emulate.
    memory
        Bytes of RAM.
    seed
        Seed of the model of caches, TLBs and branch prediction.
    arguments
        The guest's command line.
    """

    rates: Rates
    pmu: Leaf
    intercepts: bool = True
    perf_capabilities: bool = False
    forced_emulation: bool = True
    memory: int = 512 << 20
    seed: int = 0
    arguments: tuple[str, ...] = ()


@dataclass(slots=True)
class Lateness:
    """How many events after an overflow the stretch ended: at most one block's."""

    overflows: int = 0
    events: int = 0
    most: int = 0

    def add(self, events: int) -> None:
        """Book one overflow."""
        self.overflows += 1
        self.events += events
        self.most = max(self.most, events)


@dataclass(slots=True)
class Statistics:
    """What a machine has done so far."""

    retired: dict[tuple[int, int], int] = field(default_factory=dict)
    accesses: int = 0
    emulated: int = 0
    pmis: int = 0
    interrupts: int = 0
    exceptions: int = 0
    lateness: Lateness = field(default_factory=Lateness)

    def total(self, kind: int) -> int:
        """Return the events of a kind at all levels."""
        return sum(events for (each, _), events in self.retired.items() if each == kind)


class Machine:
    """One machine with one processor.

    Parameters
    ----------
    image
        What it boots.
    config
        What it is made of.
    console
        Takes what the guest writes to its serial port.
    """

    def __init__(self, image: Image, config: MachineConfig, console: Callable[[bytes], None]) -> None:
        self.config = config
        self.processor = Processor(config.memory, config.seed)
        self.apic = Apic()
        self.apic_mode = _APIC_ENABLED
        """Bits 11 and 10 of IA32_APIC_BASE: enabled, and in x2APIC mode."""
        self.ports = Ports(console, config.memory)
        self.msrs = Msrs.of(self.processor)
        self.statistics = Statistics()
        self.failure: str | None = None
        """Why the machine stopped without an exit status."""
        self.clock = Clock(self.processor.words, config.rates)
        self._grant: Grant
        self._over = False
        self._handlers = {
            at.STOP_MISS: self._go_on,
            at.STOP_WINDOW: self._go_on,
            at.STOP_LIMIT: self._limit,
            at.STOP_DUE: self._due,
            at.STOP_CODE: self._code,
            at.STOP_FAULT: self._page_fault,
            at.STOP_DEVICE: self._device,
            at.STOP_VECTOR: self._exception,
        }
        boot(self.processor, image, list(config.arguments))
        self._life = self._run()
        next(self._life)

    @property
    def is_over(self) -> bool:
        """Whether the machine has stopped for good: by the debug-exit port or by a failure."""
        return self._over

    @property
    def exit_value(self) -> int | None:
        """What the guest wrote to the debug-exit port; None if it has not."""
        return self.ports.exit_value

    def go(self, grant: Grant) -> Report:
        """Run for the granted time, or until the host is needed; once it is over, report GUEST_DONE."""
        return self._life.send(grant)

    # -- its life --

    def _run(self) -> Life:
        self._take((yield Report(0, int(GUEST_LIMIT), {})))
        while not self._over:
            try:
                if not self._deliver_pending():
                    yield from self.handle(self.processor.run())
                self._over = self.ports.exit_value is not None
            except GuestFault as fault:
                self._raise(fault)
            except MachineError as error:
                self._fail(str(error))
            except TripleFault as fault:
                self._fail(str(fault))
        while True:
            self._take((yield self._report(GUEST_DONE)))

    def handle(self, stop: int) -> Life:
        """Do what a stop of the processor asks for.

        If a counter has overflowed in the block before, the host is told first; the processor then comes
        to the same instruction again.
        """
        if stop in _AT_INSTRUCTION and self.clock.overdue() is not None and not self._after_interrupt():
            self._take((yield self._report(GUEST_OVERFLOW)))
            return
        yield from self._handlers[stop]()

    def _after_interrupt(self) -> bool:
        """Say whether RIP stands behind an INT instruction, which cannot be executed again."""
        words = self.processor.words
        block = self.processor.blocks.get((int(words[at.LAST]), int(words[at.LAST_SIZE])))
        return (
            block is not None and block.last_is_software_interrupt and self.processor.read("rip") == block.end
        )

    def _fail(self, why: str) -> None:
        self.failure = why
        self._over = True

    def _take(self, grant: Grant) -> None:
        self._grant = grant
        self.clock.begin(grant)
        if grant.pmi is not None:
            self.statistics.pmis += 1
            self.apic.accept_local(grant.pmi)
        self.set_alarm()

    def set_alarm(self) -> None:
        """Make the processor stop when the APIC's timer runs down."""
        self.apic.advance(self.clock.now_ns)
        self.clock.alarm_at(self.apic.timer_at_ns)

    def _report(self, reason: Any, **access: int) -> Report:
        """End the stretch."""
        late = self.clock.overdue()
        if late is not None:
            self.statistics.lateness.add(late)
        end_ns, retired = self.clock.end()
        for key, events in retired.items():
            self.statistics.retired[key] = self.statistics.retired.get(key, 0) + events
        return Report(end_ns, int(reason), retired, **access)

    # -- what the host carries out --

    def access(self, operation: int, register: int, value: int = 0) -> Ask:
        """Have the host carry out an access to the PMU.

        On bare hardware the instruction itself retires afterwards.
        """
        self.statistics.accesses += 1
        level = _USER if self.processor.words[at.LEVEL] else _KERNEL
        self._take(
            (
                yield self._report(
                    GUEST_ACCESS, operation=operation, register=register, value=value, level=level
                )
            )
        )
        result = self._grant.result
        if result is None:
            raise MachineError("the host granted time without the result of an access")
        if not self.config.intercepts and not result.fault:
            self.processor.count(1)
        return result

    def emulated(self, *, branch: bool = False, cycles: int = model.EMULATED) -> Life:
        """Count an instruction that the machine has carried out: through the hypervisor, if there is one."""
        if self.config.intercepts:
            self.statistics.emulated += 1
            yield from self.access(instructions.ACCESS_EMULATE, 3 if branch else 1)
            return
        self.processor.count(1)
        if branch:
            self.processor.count(2)
        yield from self.spend(cycles)

    def spend(self, cycles: int) -> Life:
        """Let core cycles pass, over as many grants as it takes."""
        left = self.clock.spend(cycles * at.UNITS)
        while left:
            self._take((yield self._report(GUEST_LIMIT)))
            left = self.clock.spend(left)

    def halt(self) -> Life:
        """Wait for an interrupt."""
        while not self.ports.exit_value and not self._wakes():
            self._take((yield self._report(GUEST_HALT, timer_at_ns=self.apic.timer_at_ns)))

    # -- interrupts --

    def _wakes(self) -> bool:
        if self.apic.nmi_pending and not self.processor.words[at.NMI_BLOCKED]:
            return True
        return self.apic.vector is not None and bool(self.processor.read("rflags") & _INTERRUPTS_ON)

    def _deliver_pending(self) -> bool:
        """Deliver what waits, if the processor takes it now; say whether it did."""
        words, apic = self.processor.words, self.apic
        waits = apic.nmi_pending or apic.vector is not None
        words[at.PENDING] = int(waits)
        if not waits or words[at.WINDOW] == 2:
            return False
        words[at.WINDOW] = 0
        if apic.nmi_pending and not words[at.NMI_BLOCKED]:
            apic.nmi_pending = False
            words[at.NMI_BLOCKED] = 1
            self._interrupt(NMI)
            return True
        vector = apic.vector
        if vector is None or not self.processor.read("rflags") & _INTERRUPTS_ON:
            return False
        apic.acknowledge(vector)
        self._interrupt(vector)
        return True

    def _interrupt(self, vector: int) -> None:
        self.statistics.interrupts += 1
        self.processor.interrupt_string()
        deliver(self.processor, vector)
        self.clock.spend(model.INTERRUPT * at.UNITS)

    def _raise(self, fault: GuestFault) -> None:
        """Deliver an exception."""
        self.statistics.exceptions += 1
        if fault.address is not None:
            self.processor.write("cr2", fault.address)
        try:
            deliver(self.processor, fault.vector, fault.error)
        except (MachineError, TripleFault) as error:
            self._fail(str(error))
        self.clock.spend(model.INTERRUPT * at.UNITS)

    # -- why the processor stopped --

    def _go_on(self) -> Life:
        yield from ()

    def _limit(self) -> Life:
        self.clock.use_up()
        self._take((yield self._report(GUEST_LIMIT)))

    def _due(self) -> Life:
        if self.clock.overdue() is None:
            self.clock.rearm()
            self.set_alarm()
            return
        self._take((yield self._report(GUEST_OVERFLOW)))

    def _code(self) -> Life:
        instruction = self._instruction()
        handler = instructions.handler_of(instruction)
        if handler is None:
            self.processor.take_back()
            self.processor.words[at.SKIP] = self.processor.words[at.STOP_ADDRESS]
            return
        self.processor.words[at.WINDOW] = 0
        yield from handler(self, instruction)

    def _instruction(self) -> Any:
        address = self.processor.read("rip")
        instruction = self.processor.instruction_at(address)
        if instruction is None:
            raise MachineError(f"no instruction at {address:#x}")
        return instruction

    def _page_fault(self) -> Life:
        words = self.processor.words
        page, error = int(words[at.STOP_ADDRESS]), int(words[at.STOP_DETAIL])
        rip = self.processor.read("rip")
        if self.processor.fetches:
            address = max(rip, page) if rip < page + PAGE else page
        else:
            address = address_in_page(self.processor, self.processor.instruction_at(rip), page)
        raise GuestFault(14, error, address)

    def _device(self) -> Life:
        if self.processor.fetches:
            raise MachineError(f"jump to {self.processor.read('rip'):#x}, where no memory is")
        yield from instructions.access_device(
            self, self._instruction(), int(self.processor.words[at.STOP_ADDRESS])
        )

    def _exception(self) -> Life:
        yield from instructions.exception(self, int(self.processor.words[at.STOP_DETAIL]))
