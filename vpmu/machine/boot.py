"""The machine as an image finds it: long mode, memory mapped one to one, flat GDT, multiboot information."""

import struct

import numpy as np

from vpmu.errors import UserError
from vpmu.machine import layout as at
from vpmu.machine.features import EFER
from vpmu.machine.image import Image
from vpmu.machine.interrupts import enter, prepare_trampoline
from vpmu.machine.processor import Processor, Table

_GDT, _PML4, _PDPT, _PD = 0x1000, 0x2000, 0x3000, 0x4000
_INFO, _MEMORY_MAP, _COMMAND_LINE, _STACK_TOP = 0x8000, 0x8100, 0x8200, 0x10000
_COMMAND_LINE_MAX = 0x9000 - _COMMAND_LINE - 1
_CODE64, _DATA, _CODE32 = 0x08, 0x10, 0x18
_MAGIC = 0x2BADB002
_HAS_MEMORY, _HAS_COMMAND_LINE, _HAS_MEMORY_MAP = 1, 4, 64
_CR0 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31
_CR4 = 1 << 5 | 1 << 9 | 1 << 10
_EFER = 1 << 8 | 1 << 10
_LOW_MEMORY_KIB = 639


def boot(processor: Processor, image: Image, arguments: list[str]) -> None:
    """Load an image and stand at its entry, with interrupts off.

    With a multiboot header the entry is 32-bit code. It runs in compatibility mode, in which its way to long
    mode is as on hardware, only that paging is on already. EAX and EBX are as multiboot says; without the
    header, RDI and RBX hold the address of the multiboot information.
    """
    for segment in image.segments:
        data = np.frombuffer(segment.data, np.uint8)
        processor.ram[segment.address : segment.address + data.size] = data
    _write_tables(processor)
    _write_information(processor, image, arguments)
    prepare_trampoline(processor)
    processor.set_table("gdtr", Table(_GDT, 0x1F))
    processor.set_table("idtr", Table(0, 0))
    processor.write("cr3", _PML4)
    processor.write("cr4", _CR4)
    processor.write("cr0", _CR0)
    processor.words[at.EFER] = _EFER
    processor.set_msr(EFER, _EFER)
    if image.multiboot:
        _enter_flat(processor, _CODE32, image.entry)
        processor.write("rax", _MAGIC)
    else:
        _enter_flat(processor, _CODE64, image.entry)
        processor.write("rdi", _INFO)
    processor.write("rbx", _INFO)


def _enter_flat(processor: Processor, cs: int, entry: int) -> None:
    enter(processor, cs, entry, 2, _STACK_TOP, _DATA)
    for segment in ("ds", "es", "fs", "gs"):
        processor.write(segment, _DATA)


def _put(processor: Processor, address: int, data: bytes) -> None:
    processor.ram[address : address + len(data)] = np.frombuffer(data, np.uint8)


def _write_tables(processor: Processor) -> None:
    _put(processor, _GDT, struct.pack("<QQQQ", 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CF9B000000FFFF))
    _put(processor, _PML4, struct.pack("<Q", _PDPT | 3))
    _put(processor, _PDPT, struct.pack("<4Q", *(_PD + i * 0x1000 | 3 for i in range(4))))
    entries = (np.arange(4 * 512, dtype=np.uint64) << np.uint64(21)) | np.uint64(0x83)
    _put(processor, _PD, entries.tobytes())


def _write_information(processor: Processor, image: Image, arguments: list[str]) -> None:
    """Write the multiboot information: memory, its map, and the command line with the image's name."""
    line = " ".join([image.path, *arguments]).encode()
    if len(line) > _COMMAND_LINE_MAX:
        raise UserError(f"the guest's command line has {len(line)} bytes, at most {_COMMAND_LINE_MAX} fit")
    upper = processor.ram.size - (1 << 20)
    areas = ((0, _LOW_MEMORY_KIB << 10), (1 << 20, upper))
    memory_map = b"".join(struct.pack("<IQQI", 20, base, length, 1) for base, length in areas)
    flags = _HAS_MEMORY | _HAS_COMMAND_LINE | _HAS_MEMORY_MAP
    information = bytearray(0x58)
    struct.pack_into("<III", information, 0, flags, _LOW_MEMORY_KIB, upper >> 10)
    struct.pack_into("<I", information, 16, _COMMAND_LINE)
    struct.pack_into("<II", information, 44, len(memory_map), _MEMORY_MAP)
    _put(processor, _INFO, bytes(information))
    _put(processor, _MEMORY_MAP, memory_map)
    _put(processor, _COMMAND_LINE, line + b"\0")
