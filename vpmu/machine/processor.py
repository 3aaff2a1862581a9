"""Unicorn with its callbacks: registers, memory, blocks, exact counts. No interrupt and no device."""

import contextlib
import ctypes
import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np
import unicorn as unicorn_package
from unicorn import unicorn_const as uc_const
from unicorn import x86_const as uc_x86
from unicorn.unicorn_py3 import unicorn as binding

from vpmu.errors import UserError
from vpmu.machine import layout as at
from vpmu.machine.decode import Block, block_words, decode_block, disassembler, slot_of
from vpmu.machine.hooks import CALLBACKS
from vpmu.machine.paging import FAULT, FETCH, READ, WRITE, walk

U64 = np.uint64
unicorn: Any = unicorn_package  # untyped
_library: Any = binding.uclib

GENERAL = {
    name: getattr(uc_x86, f"UC_X86_REG_{name.upper()}")
    for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "rip",
                 "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
                 "rflags", "cr0", "cr2", "cr3", "cr4",
                 "cs", "ss", "ds", "es", "fs", "gs", "fs_base", "gs_base")
}  # fmt: skip

PAGE = 4096
_MAX_INSTRUCTION = 15


class GuestFault(Exception):
    """An exception that the guest has caused: data, to be delivered to it.

    Parameters
    ----------
    vector
        The exception's number.
    error
        Its error code, None if it has none.
    address
        With a page fault, the address that goes to CR2.
    """

    def __init__(self, vector: int, error: int | None = None, address: int | None = None) -> None:
        super().__init__(f"vector {vector}")
        self.vector = vector
        self.error = error
        self.address = address


class MachineError(Exception):
    """The guest does what the machine cannot do; said in one line."""


@dataclass(slots=True, frozen=True)
class Table:
    """A descriptor-table register, or the task register."""

    base: int
    limit: int
    selector: int = 0
    flags: int = 0


class Processor:
    """A virtual CPU: Unicorn in 64-bit mode over one piece of memory (`vpmu.machine.layout`).

    Parameters
    ----------
    memory
        Bytes of RAM, a multiple of 2 MiB.
    seed
        Seed of the model's misses.
    """

    def __init__(self, memory: int, seed: int) -> None:
        self._map = mmap.mmap(-1, at.RAM * 8 + memory)
        self.words = np.frombuffer(self._map, np.uint64)
        self.ram = np.frombuffer(self._map, np.uint8, memory, at.RAM * 8)
        self._trampoline = mmap.mmap(-1, PAGE)
        self.trampoline = np.frombuffer(self._trampoline, np.uint8)
        self.words[at.RAM_BYTES] = memory
        self.words[at.SEED] = seed & (1 << 64) - 1
        self.words[at.HARD] = self.words[at.SOFT] = at.NEVER
        self.unicorn: Any = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self._handle = self.unicorn._uch
        self._word = ctypes.c_uint64()
        self._word_at = ctypes.byref(self._word)
        self.blocks: dict[tuple[int, int], Block] = {}
        self._hooked: set[int] = set()
        self._instructions: dict[int, Any] = {}
        self.unicorn.mem_map_ptr(0, memory, uc_const.UC_PROT_ALL, self.ram.ctypes.data)
        self.unicorn.mem_map_ptr(
            at.TRAMPOLINE_PHYSICAL, PAGE, uc_const.UC_PROT_ALL, self.trampoline.ctypes.data
        )
        self.unicorn.ctl_set_tlb_mode(uc_const.UC_TLB_VIRTUAL)
        self._hook(uc_const.UC_HOOK_BLOCK, CALLBACKS.block)
        self._hook(uc_const.UC_HOOK_INTR, CALLBACKS.vector)
        self._hook(uc_const.UC_HOOK_TLB_FILL, CALLBACKS.tlb)

    def _hook(self, kind: int, callback: int, begin: int = 1, end: int = 0) -> None:
        handle = ctypes.c_size_t()
        status = _library.uc_hook_add(
            self._handle,
            ctypes.byref(handle),
            ctypes.c_int(kind),
            ctypes.c_void_p(callback),
            ctypes.c_void_p(self.words.ctypes.data),
            ctypes.c_uint64(begin),
            ctypes.c_uint64(end),
        )
        if status != uc_const.UC_ERR_OK:
            raise MachineError(f"Unicorn takes no hook: {unicorn.UcError(status)}")

    # -- registers --

    def read(self, name: str) -> int:
        """Return a register."""
        self._word.value = 0
        _library.uc_reg_read(self._handle, GENERAL[name], self._word_at)
        return self._word.value

    def write(self, name: str, value: int) -> None:
        """Set a register."""
        self._word.value = value & (1 << 64) - 1
        _library.uc_reg_write(self._handle, GENERAL[name], self._word_at)

    def table(self, name: str) -> Table:
        """Return GDTR, IDTR, LDTR or TR."""
        selector, base, limit, flags = self.unicorn.reg_read(getattr(uc_x86, f"UC_X86_REG_{name.upper()}"))
        return Table(base, limit, selector, flags)

    def set_table(self, name: str, table: Table) -> None:
        """Set GDTR, IDTR, LDTR or TR."""
        value = (table.selector, table.base, table.limit, table.flags)
        self.unicorn.reg_write(getattr(uc_x86, f"UC_X86_REG_{name.upper()}"), value)

    def msr(self, number: int) -> int:
        """Return a model-specific register that Unicorn keeps."""
        return int(self.unicorn.msr_read(number))

    def set_msr(self, number: int, value: int) -> None:
        """Set a model-specific register that Unicorn keeps."""
        self.unicorn.msr_write(number, value)

    @property
    def cpl(self) -> int:
        """Current privilege level."""
        return self.read("cs") & 3

    @property
    def bits(self) -> int:
        """64 in 64-bit code, 32 in compatibility mode."""
        cs = self.read("cs")
        gdt = self.table("gdtr")
        try:
            descriptor = int.from_bytes(self.read_memory(gdt.base + (cs & ~7), 8, cpl=0), "little")
        except GuestFault:
            return 64
        return 64 if descriptor >> 53 & 1 else 32

    def sync_level(self) -> None:
        """Take over the privilege level after Python has changed it."""
        self.words[at.LEVEL] = int(self.cpl != 0)

    # -- memory --

    def translate(self, address: int, access: U64 = READ, cpl: int | None = None) -> int:
        """Return the physical address of a linear one.

        Raises
        ------
        GuestFault
            A page fault.
        """
        user = (self.cpl if cpl is None else cpl) == 3
        found = int(
            walk(
                self.words,
                U64(self.read("cr0")),
                U64(self.read("cr3")),
                self.words[at.EFER],
                U64(user),
                U64(address),
                access,
            )
        )
        if found & int(FAULT):
            raise GuestFault(14, found >> 1, address)
        return (found & ~(PAGE - 1)) | (address & PAGE - 1)

    def read_memory(self, address: int, size: int, cpl: int | None = None) -> bytes:
        """Return bytes at a linear address; raises `GuestFault`."""
        data = b""
        while len(data) < size:
            piece = min(size - len(data), PAGE - address % PAGE)
            place = self.translate(address, READ, cpl)
            if place + piece > self.ram.size:
                raise GuestFault(13, 0)
            data += self.ram[place : place + piece].tobytes()
            address += piece
        return data

    def write_memory(self, address: int, data: bytes, cpl: int | None = None) -> None:
        """Write bytes to a linear address; raises `GuestFault` before the first byte of a page is written."""
        while data:
            piece = min(len(data), PAGE - address % PAGE)
            place = self.translate(address, WRITE, cpl)
            if place + piece > self.ram.size:
                raise GuestFault(13, 0)
            self.ram[place : place + piece] = np.frombuffer(data[:piece], np.uint8)
            data = data[piece:]
            address += piece

    def instruction_at(self, address: int) -> Any:
        """Decode the instruction at a linear address; None if there is none."""
        known = self._instructions.get(address)
        if known is not None and self.read_code(address, known.size) == bytes(known.bytes):
            return known
        here = min(PAGE - address % PAGE, _MAX_INSTRUCTION)
        code = self.read_code(address, here)
        if here < _MAX_INSTRUCTION:
            with contextlib.suppress(GuestFault):
                code += self.read_code(address + here, _MAX_INSTRUCTION - here)
        found = next(disassembler(self.bits).disasm(code, address, 1), None)
        self._instructions[address] = found
        return found

    # -- running --

    def run(self) -> int:
        """Execute from RIP on until something stops the processor; return the ``STOP_`` constant.

        An instruction that Unicorn finds invalid is a `STOP_VECTOR` of 6.
        """
        words = self.words
        words[at.STOP] = at.STOP_NONE
        error = _library.uc_emu_start(
            self._handle,
            ctypes.c_uint64(self.read("rip")),
            ctypes.c_uint64(0),
            ctypes.c_uint64(0),
            ctypes.c_size_t(0),
        )
        stop = int(words[at.STOP])
        if stop == at.STOP_NONE:
            if error != uc_const.UC_ERR_INSN_INVALID:
                raise MachineError(f"Unicorn stopped at {self.read('rip'):#x}: {unicorn.UcError(error)}")
            words[at.STOP_DETAIL] = 6
            stop = at.STOP_VECTOR
        if stop == at.STOP_MISS:
            self._learn(int(words[at.STOP_ADDRESS]), int(words[at.STOP_DETAIL]))
        elif stop == at.STOP_VECTOR or (stop in (at.STOP_FAULT, at.STOP_DEVICE) and not self.fetches):
            self.take_back()
        return stop

    def step(self) -> int:
        """Execute one block without counting it: the caller sees to it that it is one instruction."""
        self.words[at.STEP] = 1
        stop = self.run()
        self.words[at.STEP] = 0
        return stop

    def stop_before(self, address: int) -> None:
        """Make the processor stop before the instruction at an address, from now on."""
        if address not in self._hooked:
            self._hooked.add(address)
            self._hook(uc_const.UC_HOOK_CODE, CALLBACKS.code, address, address)

    def forget_code(self, address: int, size: int) -> None:
        """Have Unicorn translate code anew."""
        self.unicorn.ctl_remove_cache(address, address + size)

    def _learn(self, address: int, size: int) -> None:
        """Decode a block that is not in the table, or has changed, and put it there."""
        page = at.PAGES + (address >> 12) % at.PAGE_SLOTS * at.PAGE_WORDS
        place = self.translate(address, FETCH)
        self.words[page] = address | PAGE - 1
        self.words[page + 1] = place & ~(PAGE - 1)
        last = self.translate(address + size - 1, FETCH)
        block = self._block(address, self.read_code(address, size))
        head, tail = (int(self.words[at.RAM + (byte >> 3)]) for byte in (place, last))
        entry = at.TABLE + slot_of(address, size) * at.BLOCK_WORDS
        self.words[entry : entry + at.BLOCK_WORDS] = block_words(block, place, last, head, tail)

    def _block(self, address: int, code: bytes) -> Block:
        """Decode a block, unless it has been, and stop Unicorn before what the machine carries out itself."""
        known = self.blocks.get((address, len(code)))
        if known is not None and known.code == code:
            return known
        block = decode_block(code, address, self.bits)
        self.blocks[address, len(code)] = block
        if block.intercepted is not None and block.intercepted not in self._hooked:
            self.stop_before(block.intercepted)
            self.forget_code(address, len(code))
        return block

    def read_code(self, address: int, size: int) -> bytes:
        """Return code bytes at a linear address; raises `GuestFault`."""
        code = b""
        while len(code) < size:
            place = self.translate(address + len(code), FETCH)
            piece = min(size - len(code), PAGE - place % PAGE)
            code += self.ram[place : place + piece].tobytes()
        return code

    def interrupt_string(self) -> None:
        """Break a string instruction off for an interrupt: it counts when it is through, after the return."""
        self.words[at.REP_ADDRESS] = 0

    @property
    def fetches(self) -> bool:
        """Whether what stopped the processor was an instruction fetch: then its block has not begun."""
        return bool(self.words[at.STOP_ACCESS] == FETCH)

    def take_back(self) -> None:
        """Uncount the instruction at RIP, which has not retired, and what follows it in its block."""
        words = self.words
        block = self.blocks.get((int(words[at.LAST]), int(words[at.LAST_SIZE])))
        index = None if block is None else block.index(self.read("rip"))
        if block is None or index is None:
            return
        count = at.COUNT + int(words[at.LEVEL]) * at.KINDS
        for kind, events in zip((1, 2, 6, 7), block.counts(index), strict=True):
            words[count + kind] -= U64(events)
        if int(words[at.REP_ADDRESS]) == block.rep:
            words[at.REP_ADDRESS] = 0
        words[at.LAST_FLAGS] = 0
        words[at.WINDOW] = 0

    # -- counts --

    def count(self, kind: int, events: int = 1) -> None:
        """Count events at the current level."""
        self.words[at.COUNT + int(self.words[at.LEVEL]) * at.KINDS + kind] += U64(events)

    def spend(self, units: int) -> None:
        """Let time pass, at the current level."""
        self.words[at.CLOCK] += U64(units)
        self.count(0, units)


def check_memory(mebibytes: int) -> int:
    """Return a machine's memory in bytes.

    Raises
    ------
    UserError
        It is not a size that the machine can have.
    """
    if not 4 <= mebibytes <= 3072 or mebibytes % 2:
        raise UserError(f"--memory is an even number of MiB from 4 to 3072, not {mebibytes}")
    return mebibytes << 20
