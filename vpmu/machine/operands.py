"""Where memory operands lie: for page faults and device accesses, of which Unicorn tells the page only."""

from collections.abc import Iterator
from typing import Any

from capstone import x86_const as x86

from vpmu.machine.decode import is_branch, name_of
from vpmu.machine.processor import PAGE, Processor

_MASK = (1 << 64) - 1
_HIGH = {"ah": "rax", "bh": "rbx", "ch": "rcx", "dh": "rdx"}
_LEGACY = ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp")


def register_width(name: str) -> tuple[str, int, int]:
    """Return the 64-bit register that `name` is a part of, and the part's width and position in bits."""
    if name in _HIGH:
        return _HIGH[name], 8, 8
    if name.startswith("r") and name[1:2].isdigit():
        whole = name.rstrip("dwb")
        return whole, {"": 64, "d": 32, "w": 16, "b": 8}[name[len(whole) :]], 0
    if name.startswith("r"):
        return name, 64, 0
    if name.startswith("e"):
        return "r" + name[1:], 32, 0
    if name in _LEGACY:
        return "r" + name, 16, 0
    return f"r{name[0]}x" if name[1:] == "l" and len(name) == 2 else "r" + name[:-1], 8, 0


def read_register(processor: Processor, name: str) -> int:
    """Return a general register by the name an instruction gives it."""
    whole, width, shift = register_width(name)
    return processor.read(whole) >> shift & (1 << width) - 1


def write_register(processor: Processor, name: str, value: int) -> None:
    """Set a general register by the name an instruction gives it; 32 bits clear the upper half."""
    whole, width, shift = register_width(name)
    if width >= 32:
        processor.write(whole, value & (1 << width) - 1)
        return
    mask = (1 << width) - 1 << shift
    processor.write(whole, processor.read(whole) & ~mask | value << shift & mask)


def address_of(processor: Processor, instruction: Any, operand: Any) -> int:
    """Return the linear address of a memory operand."""
    memory = operand.mem
    total = int(memory.disp)
    if memory.base in (x86.X86_REG_RIP, x86.X86_REG_EIP):
        total += instruction.address + instruction.size
    elif memory.base:
        total += read_register(processor, instruction.reg_name(memory.base))
    if memory.index:
        total += read_register(processor, instruction.reg_name(memory.index)) * memory.scale
    if instruction.addr_size == 4:
        total &= 0xFFFFFFFF
    if memory.segment in (x86.X86_REG_FS, x86.X86_REG_GS):
        total += processor.read("fs_base" if memory.segment == x86.X86_REG_FS else "gs_base")
    return total & _MASK


def _spans(processor: Processor, instruction: Any) -> Iterator[tuple[int, int]]:
    """Yield address and size of what an instruction may access, its own memory operands first."""
    for operand in instruction.operands:
        if operand.type == x86.X86_OP_MEM:
            yield address_of(processor, instruction, operand), operand.size
    rsp = processor.read("rsp")
    if name_of(instruction).startswith("push") or is_branch(instruction):
        yield rsp - 8 & _MASK, 8
    yield rsp, 40
    yield processor.read("rbp"), 8


def address_in_page(processor: Processor, instruction: Any, page: int) -> int:
    """Return the first address in a page that an instruction accesses; unknown: the page's first."""
    if instruction is not None:
        for address, size in _spans(processor, instruction):
            if address < page + PAGE and address + max(size, 1) > page:
                return max(address, page)
    return page
