"""What a block consists of: read once, when the processor first comes to it."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import capstone
from capstone import x86_const as x86

from vpmu.machine import layout as at
from vpmu.machine import model

_BRANCH_GROUPS = (
    x86.X86_GRP_JUMP,
    x86.X86_GRP_CALL,
    x86.X86_GRP_RET,
    x86.X86_GRP_IRET,
    x86.X86_GRP_BRANCH_RELATIVE,
)
_FAR_BRANCHES = frozenset(
    ["iretq", "iretd", "iret", "retfq", "retf", "ljmp", "lcall", "syscall", "sysret", "sysretq", "sysenter",
     "sysexit", "sysexitq", "int", "int3", "int1", "into"]
)  # fmt: skip
_UNPREDICTED = frozenset(["jmp", "call"])

INTERCEPTED = frozenset(
    ["wrmsr", "rdmsr", "rdpmc", "rdtsc", "rdtscp", "cpuid", "hlt", "in", "out", "insb", "insw", "insd",
     "outsb", "outsw", "outsd", "syscall", "sysenter", "monitor", "mwait", "xgetbv", "xsetbv", "vmcall",
     "vmmcall", "rdrand", "rdseed"]
)  # fmt: skip
"""Instructions that the machine carries out itself: Unicorn stops before them."""

_ENABLING = frozenset(["popf", "popfq", "popfd", "iretq", "iretd", "iret", "sysret", "sysretq", "sysexit"])
_IRETS = frozenset(["iretq", "iretd", "iret"])
_STACK_READS = frozenset(["pop", "popf", "popfq", "ret", "retf", "retfq", "leave", "iretq", "iretd"])
_STACK_WRITES = frozenset(["push", "pushf", "pushfq", "pushfd", "call"])


@cache
def disassembler(bits: int) -> Any:
    """Return Capstone for 64-bit code or, in compatibility mode, 32-bit code; made once."""
    mode = capstone.CS_MODE_64 if bits == 64 else capstone.CS_MODE_32
    engine = capstone.Cs(capstone.CS_ARCH_X86, mode)
    engine.detail = True
    return engine


def is_branch(instruction: Any) -> bool:
    """Say whether an instruction counts as a branch: near or far, taken or not, INT included."""
    if instruction.mnemonic.split()[-1] in _FAR_BRANCHES:
        return True
    return any(instruction.group(group) for group in _BRANCH_GROUPS)


def is_string(instruction: Any) -> bool:
    """Say whether an instruction is repeated by a REP prefix."""
    words = instruction.mnemonic.split()
    return len(words) > 1 and words[0] in ("rep", "repe", "repne", "repz", "repnz")


def name_of(instruction: Any) -> str:
    """Return an instruction's name without its prefixes."""
    return str(instruction.mnemonic.split()[-1])


def is_intercepted(instruction: Any) -> bool:
    """Say whether the machine carries an instruction out itself."""
    name = name_of(instruction)
    if name in INTERCEPTED:
        return True
    return name == "mov" and any(
        operand.type == x86.X86_OP_REG and operand.reg == x86.X86_REG_CR8 for operand in instruction.operands
    )


@dataclass(slots=True, frozen=True)
class Part:
    """What one instruction of a block adds to the counts."""

    offset: int
    branch: bool
    loads: int
    stores: int


@dataclass(slots=True)
class Block:
    """A block up to its end, or to the first instruction that the machine carries out itself.

    Parameters
    ----------
    address, code
        Where it begins, and its bytes.
    parts
        Its instructions.
    cost
        Units of 1/16 cycle.
    flags
        ``FLAG_`` constants of `vpmu.machine.layout`.
    rep
        Address of the string instruction that ends it, or 0; it counts when it is through.
    intercepted
        Address of the instruction before which Unicorn has to stop, or None.
    last_is_software_interrupt
        Its last instruction is INT: the exception's number is the instruction's.
    """

    address: int
    code: bytes
    parts: list[Part]
    cost: int
    flags: int
    rep: int
    intercepted: int | None
    end: int
    last_is_software_interrupt: bool

    @property
    def size(self) -> int:
        """Bytes, as Unicorn counts them."""
        return len(self.code)

    def counts(self, first: int = 0) -> tuple[int, int, int, int]:
        """Return instructions, branches, loads and stores from part `first` on, as the table counts them."""
        parts = self.parts[first:]
        instructions = len(parts) - (1 if self.rep and parts else 0)
        return (
            instructions,
            sum(part.branch for part in parts),
            sum(part.loads for part in parts),
            sum(part.stores for part in parts),
        )

    def index(self, address: int) -> int | None:
        """Return which part begins at an address."""
        offset = address - self.address
        for i, part in enumerate(self.parts):
            if part.offset == offset:
                return i
        return None


def decode_block(code: bytes, address: int, bits: int) -> Block:
    """Decode what Unicorn translated as one block.

    Parameters
    ----------
    code
        The block's bytes.
    address
        Linear address of the first.
    bits
        64, or 32 in compatibility mode.
    """
    block = Block(address, code, [], 0, 0, 0, None, address, False)
    last: Any = None
    for instruction in disassembler(bits).disasm(code, address):
        if is_intercepted(instruction):
            block.intercepted = instruction.address
            break
        block.parts.append(_part(instruction, address))
        block.cost += _cost(instruction)
        block.end = instruction.address + instruction.size
        last = instruction
    if last is not None and block.intercepted is None:
        _set_flags(block, last)
    return block


def block_words(block: Block, place: int, last: int, head: int, tail: int) -> list[int]:
    """Return a block's entry of the table; its first and last byte are at `place` and `last` in RAM."""
    instructions, branches, loads, stores = block.counts()
    packed = instructions | branches << 16 | loads << 32 | stores << 48
    flags = block.flags | last << 16
    return [
        block.address + 1,
        place << 16 | block.size,
        head,
        tail,
        packed,
        max(block.cost, 1),
        flags,
        block.rep,
    ]


def slot_of(address: int, size: int) -> int:
    """Return a block's slot in the table, as `vpmu.machine.hooks` finds it."""
    return ((address << 8 | size) * at.GOLDEN & (1 << 64) - 1) >> 64 - at.SLOT_BITS


def _part(instruction: Any, start: int) -> Part:
    loads = stores = 0
    for operand in instruction.operands:
        if operand.type == x86.X86_OP_MEM and name_of(instruction) not in ("lea", "nop"):
            loads += bool(operand.access & capstone.CS_AC_READ)
            stores += bool(operand.access & capstone.CS_AC_WRITE)
    name = name_of(instruction)
    loads += name in _STACK_READS
    stores += name in _STACK_WRITES
    return Part(instruction.address - start, is_branch(instruction), loads, stores)


def _cost(instruction: Any) -> int:
    name = name_of(instruction)
    cost = model.COSTS[name] * at.UNITS if name in model.COSTS else model.PLAIN
    if instruction.prefix[0] == x86.X86_PREFIX_LOCK:
        cost += model.LOCKED * at.UNITS
    return cost


def _set_flags(block: Block, last: Any) -> None:
    name = name_of(last)
    if is_string(last):
        block.rep = last.address
    if (
        is_branch(last)
        and not (name in _UNPREDICTED and last.group(x86.X86_GRP_BRANCH_RELATIVE))
        and name not in _FAR_BRANCHES
    ):
        block.flags |= at.FLAG_PREDICTED
    if name in _FAR_BRANCHES:
        block.flags |= at.FLAG_FAR
    if name == "sti":
        block.flags |= at.FLAG_STI
    if name in _ENABLING:
        block.flags |= at.FLAG_ENABLES
    if name in _IRETS:
        block.flags |= at.FLAG_IRET
    if name in ("int", "int3", "int1", "into"):
        block.last_is_software_interrupt = True
    _set_loop(block, last, name)


def _set_loop(block: Block, last: Any, name: str) -> None:
    """Mark a block that is one instruction which jumps to itself."""
    if len(block.parts) != 1 or not last.group(x86.X86_GRP_BRANCH_RELATIVE):
        return
    if last.operands[0].imm != block.address:
        return
    if name == "loop":
        block.flags |= at.FLAG_LOOP
    elif name == "jmp":
        block.flags |= at.FLAG_SPIN
