"""Instructions that the machine carries out itself: those of the PMU, the clock, ports, the APIC, privilege.

A handler is a generator of `Machine`'s life: where it has to ask the host it yields a report. It raises
`GuestFault` before it has changed anything, or leaves RIP behind the instruction.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from capstone import x86_const as x86

from vpmu.actors.outside import Grant, Report
from vpmu.kernels.perf.interrupt import ACCESS_EMULATE as _EMULATE
from vpmu.kernels.perf.interrupt import ACCESS_RDPMC as _RDPMC
from vpmu.kernels.perf.interrupt import ACCESS_READ as _READ
from vpmu.kernels.perf.interrupt import ACCESS_WRITE as _WRITE
from vpmu.machine import apic, features, model
from vpmu.machine import layout as at
from vpmu.machine.decode import is_branch, is_intercepted, is_string, name_of
from vpmu.machine.interrupts import deliver, enter, has_error_code
from vpmu.machine.operands import address_of, read_register, write_register
from vpmu.machine.processor import PAGE, GuestFault, MachineError

if TYPE_CHECKING:
    from vpmu.machine.machine import Machine

Life = Generator[Report, Grant, None]
Handler = Callable[["Machine", Any], Life]

ACCESS_EMULATE, ACCESS_RDPMC, ACCESS_READ, ACCESS_WRITE = (int(n) for n in (_EMULATE, _RDPMC, _READ, _WRITE))
_UD, _GP = 6, 13
_LOW = 0xFFFFFFFF
_PCE, _TSD = 1 << 8, 1 << 2
_EFER_SCE = 1
_PREFIX = b"kvm"
_PREFIX_SIZE = 5
_APIC_PAGE = 0xFEE00000
_APIC_ENABLED, _APIC_X2 = 1 << 11, 1 << 10
_CHANGES = frozenset(["rdmsr", "wrmsr", "hlt"])


def _privileged(machine: Machine) -> None:
    if machine.processor.cpl != 0:
        raise GuestFault(_GP, 0)


def _past(machine: Machine, instruction: Any) -> None:
    machine.processor.write("rip", instruction.address + instruction.size)


def _set_edx_eax(machine: Machine, value: int) -> None:
    machine.processor.write("rax", value & _LOW)
    machine.processor.write("rdx", value >> 32)


def _edx_eax(machine: Machine) -> int:
    return machine.processor.read("rax") & _LOW | (machine.processor.read("rdx") & _LOW) << 32


# -- model-specific registers --


def _rdmsr(machine: Machine, instruction: Any) -> Life:
    _privileged(machine)
    number = machine.processor.read("rcx") & _LOW
    if number in features.PMU and (number != features.LVTPC or machine.apic.x2apic):
        result = yield from machine.access(ACCESS_READ, number)
        if result.fault:
            raise GuestFault(_GP, 0)
        value = result.value
    else:
        value = _read_msr(machine, number)
        yield from machine.emulated()
    _set_edx_eax(machine, value)
    _past(machine, instruction)


def _wrmsr(machine: Machine, instruction: Any) -> Life:
    _privileged(machine)
    number, value = machine.processor.read("rcx") & _LOW, _edx_eax(machine)
    if number in features.PMU and (number != features.LVTPC or machine.apic.x2apic):
        result = yield from machine.access(ACCESS_WRITE, number, value)
        if result.fault:
            raise GuestFault(_GP, 0)
    else:
        _write_msr(machine, number, value)
        if number in features.DIRECT:
            machine.processor.count(1)
            yield from machine.spend(model.EMULATED)
        else:
            yield from machine.emulated()
    _past(machine, instruction)


def _read_msr(machine: Machine, number: int) -> int:
    if number == features.TSC:
        return machine.clock.tsc
    if number == features.APIC_BASE:
        return _APIC_PAGE | 1 << 8 | machine.apic_mode
    if features.X2APIC_FIRST <= number <= features.X2APIC_LAST:
        return machine.apic.read(_x2apic_register(machine, number), machine.clock.now_ns)
    return machine.msrs.read(number)


def _write_msr(machine: Machine, number: int, value: int) -> None:
    if number == features.APIC_BASE:
        _set_apic_mode(machine, value)
    elif features.X2APIC_FIRST <= number <= features.X2APIC_LAST:
        machine.apic.write(_x2apic_register(machine, number), value, machine.clock.now_ns)
        machine.set_alarm()
    elif number != features.TSC:
        machine.msrs.write(number, value)


def _x2apic_register(machine: Machine, number: int) -> int:
    if not machine.apic.x2apic:
        raise GuestFault(_GP, 0)
    return (number - features.X2APIC_FIRST) << 4


def _set_apic_mode(machine: Machine, value: int) -> None:
    mode = value & (_APIC_ENABLED | _APIC_X2)
    if mode == _APIC_X2 or value & -PAGE & _LOW != _APIC_PAGE:
        raise GuestFault(_GP, 0)
    machine.apic_mode = mode
    machine.apic.x2apic = bool(mode & _APIC_X2)


# -- counters, clock, identity --


def _rdpmc(machine: Machine, instruction: Any) -> Life:
    processor = machine.processor
    if processor.cpl != 0 and not processor.read("cr4") & _PCE:
        raise GuestFault(_GP, 0)
    result = yield from machine.access(ACCESS_RDPMC, processor.read("rcx") & _LOW)
    if result.fault:
        raise GuestFault(_GP, 0)
    _set_edx_eax(machine, result.value)
    _past(machine, instruction)


def _rdtsc(machine: Machine, instruction: Any) -> Life:
    processor = machine.processor
    if processor.cpl != 0 and processor.read("cr4") & _TSD:
        raise GuestFault(_GP, 0)
    machine.processor.count(1)
    yield from machine.spend(model.TSC_READ)
    _set_edx_eax(machine, machine.clock.tsc)
    if name_of(instruction) == "rdtscp":
        processor.write("rcx", machine.msrs.read(features.TSC_AUX) & _LOW)
    _past(machine, instruction)


def _cpuid(machine: Machine, instruction: Any) -> Life:
    processor, config = machine.processor, machine.config
    leaf = features.cpuid(
        processor.read("rax") & _LOW,
        processor.read("rcx") & _LOW,
        config.pmu,
        has_perf_capabilities=config.perf_capabilities,
        apic_id=machine.apic.identity,
    )
    yield from machine.emulated()
    for name, value in zip(("rax", "rbx", "rcx", "rdx"), leaf, strict=True):
        processor.write(name, value)
    _past(machine, instruction)


def _hlt(machine: Machine, instruction: Any) -> Life:
    _privileged(machine)
    yield from machine.emulated()
    _past(machine, instruction)
    yield from machine.halt()


def _undefined(machine: Machine, instruction: Any) -> Life:
    raise GuestFault(_UD)


# -- ports --


def _in(machine: Machine, instruction: Any) -> Life:
    port, size = _port(machine, instruction, instruction.operands[1]), instruction.operands[0].size
    value = machine.ports.read(port, size)
    yield from machine.emulated()
    write_register(machine.processor, instruction.reg_name(instruction.operands[0].reg), value)
    _past(machine, instruction)


def _out(machine: Machine, instruction: Any) -> Life:
    port, size = _port(machine, instruction, instruction.operands[0]), instruction.operands[1].size
    value = read_register(machine.processor, instruction.reg_name(instruction.operands[1].reg))
    yield from machine.emulated()
    machine.ports.write(port, size, value)
    _past(machine, instruction)


def _outs(machine: Machine, instruction: Any) -> Life:
    """Write a string to a port, as one instruction."""
    processor = machine.processor
    size = {"b": 1, "w": 2, "d": 4}[name_of(instruction)[-1]]
    port = _port(machine, instruction, None)
    times = processor.read("rcx") if is_string(instruction) else 1
    step = -size if processor.read("rflags") & 1 << 10 else size
    for _ in range(times):
        data = processor.read_memory(processor.read("rsi"), size)
        machine.ports.write(port, size, int.from_bytes(data, "little"))
        processor.write("rsi", processor.read("rsi") + step)
        if is_string(instruction):
            processor.write("rcx", processor.read("rcx") - 1)
    yield from machine.emulated()
    _past(machine, instruction)


def _ins(machine: Machine, instruction: Any) -> Life:
    raise MachineError(
        f"`{instruction.mnemonic}` at {instruction.address:#x}: no device of the machine is read so"
    )


def _port(machine: Machine, instruction: Any, operand: Any) -> int:
    """Return the port; there is no I/O permission map, so only IOPL matters."""
    processor = machine.processor
    if processor.cpl > processor.read("rflags") >> 12 & 3:
        raise GuestFault(_GP, 0)
    if operand is not None and operand.type == x86.X86_OP_IMM:
        return int(operand.imm) & 0xFF
    return processor.read("rdx") & 0xFFFF


# -- privilege --


def _syscall(machine: Machine, instruction: Any) -> Life:
    """SYSCALL (SDM vol. 2B): Unicorn has none."""
    processor = machine.processor
    if not int(processor.words[at.EFER]) & _EFER_SCE:
        raise GuestFault(_UD)
    processor.count(1)
    processor.count(2)
    star, lstar, mask = (processor.msr(number) for number in (0xC0000081, 0xC0000082, 0xC0000084))
    rflags, rsp = processor.read("rflags"), processor.read("rsp")
    processor.write("rcx", instruction.address + instruction.size)
    processor.write("r11", rflags)
    selector = star >> 32 & 0xFFFC
    enter(processor, selector, lstar, rflags & ~mask, rsp, selector + 8)
    yield from machine.spend(model.INTERRUPT)


def _mov_cr8(machine: Machine, instruction: Any) -> Life:
    _privileged(machine)
    target, source = instruction.operands
    if target.reg == x86.X86_REG_CR8:
        priority = read_register(machine.processor, instruction.reg_name(source.reg))
        if priority > 15:
            raise GuestFault(_GP, 0)
        machine.apic.write(apic.TPR, priority << 4, machine.clock.now_ns)
    else:
        priority = machine.apic.read(apic.TPR, machine.clock.now_ns) >> 4
        write_register(machine.processor, instruction.reg_name(target.reg), priority)
    yield from machine.emulated()
    _past(machine, instruction)


HANDLERS: dict[str, Handler] = {
    "rdmsr": _rdmsr,
    "wrmsr": _wrmsr,
    "rdpmc": _rdpmc,
    "rdtsc": _rdtsc,
    "rdtscp": _rdtsc,
    "cpuid": _cpuid,
    "hlt": _hlt,
    "in": _in,
    "out": _out,
    "outsb": _outs,
    "outsw": _outs,
    "outsd": _outs,
    "insb": _ins,
    "insw": _ins,
    "insd": _ins,
    "syscall": _syscall,
    "sysenter": _undefined,
    "mov": _mov_cr8,
    **dict.fromkeys(
        ("monitor", "mwait", "xgetbv", "xsetbv", "vmcall", "vmmcall", "rdrand", "rdseed"), _undefined
    ),
}


def handler_of(instruction: Any) -> Handler | None:
    """Return what carries an instruction out; None if that is Unicorn's."""
    return HANDLERS[name_of(instruction)] if is_intercepted(instruction) else None


# -- devices in memory --


def access_device(machine: Machine, instruction: Any, page: int) -> Life:
    """Carry out a MOV from or to a device's page, as a hypervisor would."""
    processor = machine.processor
    operands = instruction.operands
    if (
        name_of(instruction) not in ("mov", "movabs")
        or len(operands) != 2
        or x86.X86_OP_MEM not in (operands[0].type, operands[1].type)
    ):
        raise MachineError(
            f"`{instruction.mnemonic} {instruction.op_str}` at {instruction.address:#x}"
            " accesses a device: only MOV can"
        )
    target, source = operands
    if target.type == x86.X86_OP_MEM:
        if source.type == x86.X86_OP_IMM:
            value = int(source.imm) & (1 << 8 * target.size) - 1
        else:
            value = read_register(processor, instruction.reg_name(source.reg))
        physical = _device_address(machine, address_of(processor, instruction, target), page)
        yield from _write_device(machine, physical, value)
    else:
        physical = _device_address(machine, address_of(processor, instruction, source), page)
        read = yield from _read_device(machine, physical, source.size)
        write_register(processor, instruction.reg_name(target.reg), read)
    _past(machine, instruction)


def _device_address(machine: Machine, address: int, page: int) -> int:
    if address & -PAGE != page:
        raise MachineError(f"the access at {machine.processor.read('rip'):#x} crosses into a device's page")
    return machine.processor.translate(address)


def _is_apic(machine: Machine, physical: int) -> bool:
    return physical & -PAGE == _APIC_PAGE and machine.apic_mode == _APIC_ENABLED


def _read_device(machine: Machine, physical: int, size: int) -> Generator[Report, Grant, int]:
    """Read a register of the APIC; where no device is, all bits are ones."""
    register = physical & PAGE - 1
    if not _is_apic(machine, physical):
        yield from machine.emulated()
        return (1 << 8 * size) - 1
    if register == apic.LVTPC:
        result = yield from machine.access(ACCESS_READ, features.LVTPC)
        return result.value & _LOW
    value = machine.apic.read(register, machine.clock.now_ns)
    yield from machine.emulated()
    return value


def _write_device(machine: Machine, physical: int, value: int) -> Life:
    register = physical & PAGE - 1
    if _is_apic(machine, physical) and register == apic.LVTPC:
        yield from machine.access(ACCESS_WRITE, features.LVTPC, value)
        return
    if _is_apic(machine, physical):
        machine.apic.write(register, value, machine.clock.now_ns)
        machine.set_alarm()
    yield from machine.emulated()


# -- exceptions --


def exception(machine: Machine, vector: int) -> Life:
    """Deliver an exception that Unicorn has raised, or emulate what a forced-emulation prefix marks."""
    processor = machine.processor
    rip = processor.read("rip")
    if vector == _UD and machine.config.forced_emulation and machine.config.intercepts:
        code = _peek(machine, rip, _PREFIX_SIZE)
        if code == b"\x0f\x0b" + _PREFIX:
            yield from _forced(machine, rip)
            return
    block = processor.blocks.get((int(processor.words[at.LAST]), int(processor.words[at.LAST_SIZE])))
    if block is not None and block.last_is_software_interrupt and rip == block.end:
        machine.statistics.exceptions += 1
        deliver(processor, vector, software=True)
        yield from machine.spend(model.INTERRUPT)
        return
    raise GuestFault(vector, 0 if has_error_code(vector) else None)


def _peek(machine: Machine, address: int, size: int) -> bytes:
    try:
        return machine.processor.read_code(address, size)
    except GuestFault:
        return b""


def _forced(machine: Machine, rip: int) -> Life:
    """Emulate the instruction behind a forced-emulation prefix."""
    processor = machine.processor
    processor.write("rip", rip + _PREFIX_SIZE)
    instruction = processor.instruction_at(rip + _PREFIX_SIZE)
    if instruction is None:
        raise GuestFault(_UD)
    handler = handler_of(instruction)
    if handler is not None:
        yield from handler(machine, instruction)
        return
    if not is_branch(instruction):
        processor.stop_before(instruction.address + instruction.size)
        processor.forget_code(instruction.address, instruction.size)
    while True:
        processor.words[at.LAST] = processor.words[at.LAST_SIZE] = 0
        stop = processor.step()
        if stop not in (at.STOP_STEPPED, at.STOP_CODE):
            yield from machine.handle(stop)
            return
        if processor.read("rip") != instruction.address:
            break
    processor.sync_level()
    yield from machine.emulated(branch=is_branch(instruction))
