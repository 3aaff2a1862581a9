"""Interrupt and exception delivery in 64-bit mode (SDM vol. 3, 6.14), by hand: Unicorn has none.

Unicorn's interface cannot raise the privilege level either. A page of the machine's own holds a call gate for
that, and an IRETQ that loads CS, SS, RIP, RSP and RFLAGS at once.
"""

import struct

import numpy as np

from vpmu.machine import layout as at
from vpmu.machine.processor import GuestFault, MachineError, Processor, Table

_CODE_RING3 = at.TRAMPOLINE_VIRTUAL
_CODE_RING0 = at.TRAMPOLINE_VIRTUAL + 0x10
_POINTER, _GDT, _TSS, _FRAME, _STACK = 0x100, 0x200, 0x300, 0xF80, 0xF00
_GATE_SELECTOR, _CODE_SELECTOR = 0x10, 0x08
_TSS_TYPE = 0x8B00
_TSS_LIMIT = 0x67

_GATE_INTERRUPT, _GATE_TRAP = 0xE, 0xF
_IF, _CLEARED = 1 << 9, 1 << 8 | 1 << 14 | 1 << 16 | 1 << 17
_NP, _GP, _PF, _DF = 11, 13, 14, 8
_WITH_ERROR = frozenset([8, 10, 11, 12, 13, 14, 17])
_CONTRIBUTORY = frozenset([0, 10, 11, 12, 13])
NMI = 2


class TripleFault(Exception):
    """The guest cannot be told of a double fault: on hardware it would reset.

    Parameters
    ----------
    vector
        The first exception's vector.
    rip
        Where it came from.
    """

    def __init__(self, vector: int, rip: int) -> None:
        super().__init__(f"triple fault: no way to deliver vector {vector} at RIP {rip:#x}")
        self.vector = vector
        self.rip = rip


def prepare_trampoline(processor: Processor) -> None:
    """Fill the machine's own page and switch it on."""
    page = bytearray(4096)
    page[0:6] = b"\xff\x1d" + struct.pack("<i", _POINTER - 6)  # call far [rip + _POINTER - 6]
    page[0x10:0x12] = b"\x48\xcf"  # iretq
    page[_POINTER : _POINTER + 6] = struct.pack("<IH", 0, _GATE_SELECTOR | 3)
    code = 0x00AF9B000000FFFF
    low = _CODE_RING0 & 0xFFFF | _CODE_SELECTOR << 16 | 0xEC00 << 32 | (_CODE_RING0 >> 16 & 0xFFFF) << 48
    page[_GDT : _GDT + 0x20] = struct.pack("<QQQQ", 0, code, low, _CODE_RING0 >> 32)
    page[_TSS + 4 : _TSS + 12] = struct.pack("<Q", at.TRAMPOLINE_VIRTUAL + _STACK)
    processor.trampoline[:] = np.frombuffer(bytes(page), np.uint8)
    processor.words[at.TRAMPOLINE] = 1


def enter(processor: Processor, cs: int, rip: int, rflags: int, rsp: int, ss: int) -> None:
    """Load CS, RIP, RFLAGS, RSP and SS, whatever the privilege level is now."""
    if processor.cpl != 0:
        _raise_privilege(processor)
    frame = struct.pack("<QQQQQ", rip, cs, rflags | 2, rsp, ss)
    processor.trampoline[_FRAME : _FRAME + len(frame)] = np.frombuffer(frame, np.uint8)
    processor.write("rsp", at.TRAMPOLINE_VIRTUAL + _FRAME)
    processor.write("rip", _CODE_RING0)
    _run_trampoline(processor, rip)
    processor.sync_level()


def _raise_privilege(processor: Processor) -> None:
    gdtr, tr = processor.table("gdtr"), processor.table("tr")
    processor.set_table("gdtr", Table(at.TRAMPOLINE_VIRTUAL + _GDT, 0x1F))
    processor.set_table("tr", Table(at.TRAMPOLINE_VIRTUAL + _TSS, _TSS_LIMIT, 0x18, _TSS_TYPE))
    processor.write("rip", _CODE_RING3)
    _run_trampoline(processor, _CODE_RING0)
    processor.set_table("gdtr", gdtr)
    processor.set_table("tr", tr)


def _run_trampoline(processor: Processor, goal: int) -> None:
    stop = processor.step()
    if processor.read("rip") != goal and stop != at.STOP_FAULT:
        raise MachineError(f"cannot change the privilege level towards {goal:#x} (stop {stop})")


def deliver(processor: Processor, vector: int, error: int | None = None, *, software: bool = False) -> None:
    """Deliver an interrupt or exception; what goes wrong with it is delivered instead.

    Parameters
    ----------
    processor
        Stands at the instruction to return to.
    vector
        Its number.
    error
        Error code of an exception that has one.
    software
        It comes from an INT instruction: the gate's privilege is checked.

    Raises
    ------
    TripleFault
        A double fault cannot be delivered.
    """
    first, rip = vector, processor.read("rip")
    external = 0 if software else 1
    while True:
        try:
            _deliver_once(processor, vector, error, external, software=software)
        except GuestFault as fault:
            if vector == _DF:
                raise TripleFault(first, rip) from fault
            vector, error = _after(vector, fault)
            if fault.address is not None:
                processor.write("cr2", fault.address)
            software, external = False, 1
        else:
            return


def _after(vector: int, fault: GuestFault) -> tuple[int, int | None]:
    """Return which exception follows if `fault` happens while `vector` is delivered (SDM table 6-5)."""
    second = fault.vector
    if vector in _CONTRIBUTORY and second in _CONTRIBUTORY:
        return _DF, 0
    if vector == _PF and (second == _PF or second in _CONTRIBUTORY):
        return _DF, 0
    return second, fault.error


def _deliver_once(
    processor: Processor, vector: int, error: int | None, external: int, *, software: bool
) -> None:
    selector, offset, kind, stack = _read_gate(processor, vector, external, software=software)
    cpl = processor.cpl
    dpl = _code_privilege(processor, selector, external)
    if dpl > cpl:
        raise GuestFault(_GP, selector & ~3 | external)
    rsp = _stack_for(processor, dpl, cpl, stack)
    rflags = processor.read("rflags")
    words = [processor.read("rip"), processor.read("cs"), rflags, processor.read("rsp"), processor.read("ss")]
    if error is not None:
        words.insert(0, error)
    rsp -= 8 * len(words)
    processor.write_memory(rsp, struct.pack(f"<{len(words)}Q", *words), cpl=0)
    rflags &= ~_CLEARED
    if kind == _GATE_INTERRUPT:
        rflags &= ~_IF
    if cpl == 0 and processor.read("cs") == selector and processor.bits == 64:
        processor.write("rip", offset)
        processor.write("rsp", rsp)
        processor.write("rflags", rflags)
    else:
        enter(processor, selector & ~3 | dpl, offset, rflags, rsp, 0 if dpl != cpl else processor.read("ss"))


def _read_gate(
    processor: Processor, vector: int, external: int, *, software: bool
) -> tuple[int, int, int, int]:
    idtr = processor.table("idtr")
    code = vector * 8 + 2 | (0 if software else external)
    if vector * 16 + 15 > idtr.limit:
        raise GuestFault(_GP, code)
    low, high = struct.unpack("<QQ", processor.read_memory(idtr.base + vector * 16, 16, cpl=0))
    kind = low >> 40 & 0x1F
    if kind not in (_GATE_INTERRUPT, _GATE_TRAP) or (software and low >> 45 & 3 < processor.cpl):
        raise GuestFault(_GP, code)
    if not low >> 47 & 1:
        raise GuestFault(_NP, code)
    offset = low & 0xFFFF | low >> 32 & 0xFFFF0000 | (high & 0xFFFFFFFF) << 32
    return low >> 16 & 0xFFFF, offset, kind, low >> 32 & 7


def _code_privilege(processor: Processor, selector: int, external: int) -> int:
    gdtr = processor.table("gdtr")
    if selector & ~3 == 0 or selector & 4 or (selector | 7) > gdtr.limit:
        raise GuestFault(_GP, selector & ~3 | external)
    descriptor = int.from_bytes(processor.read_memory(gdtr.base + (selector & ~7), 8, cpl=0), "little")
    if not descriptor >> 47 & 1:
        raise GuestFault(_NP, selector & ~3 | external)
    if descriptor >> 43 & 3 != 3 or not descriptor >> 53 & 1:
        raise GuestFault(_GP, selector & ~3 | external)
    conforming = descriptor >> 42 & 1
    return processor.cpl if conforming else descriptor >> 45 & 3


def _stack_for(processor: Processor, dpl: int, cpl: int, stack: int) -> int:
    """Return the handler's RSP before its frame: of the IST, of the inner level, or as it is."""
    if stack:
        offset = 0x24 + 8 * (stack - 1)
    elif dpl < cpl:
        offset = 4 + 8 * dpl
    else:
        return processor.read("rsp") & ~15
    tr = processor.table("tr")
    if offset + 7 > tr.limit:
        raise GuestFault(10, tr.selector & ~3)
    return int.from_bytes(processor.read_memory(tr.base + offset, 8, cpl=0), "little") & ~15


def has_error_code(vector: int) -> bool:
    """Say whether an exception pushes an error code."""
    return vector in _WITH_ERROR
