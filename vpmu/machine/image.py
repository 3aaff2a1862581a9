"""What `vpmu guest` boots: a 64-bit ELF image, with or without a multiboot header."""

import struct
from dataclasses import dataclass
from pathlib import Path

from vpmu.errors import UserError

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_MULTIBOOT = struct.Struct("<III")
_MULTIBOOT_MAGIC = 0x1BADB002
_MULTIBOOT_SEARCH = 8192
_ELF64, _LITTLE = 2, 1
_EM_386, _EM_X86_64 = 3, 62
_ET_EXEC = 2
_PT_LOAD = 1
LOWEST = 0x10000
"""Below, the machine keeps its boot tables."""


@dataclass(slots=True, frozen=True)
class Segment:
    """A part of the image: where it goes, its bytes, and its size in memory, the rest of which is zero."""

    address: int
    data: bytes
    size: int


@dataclass(slots=True, frozen=True)
class Image:
    """A loadable image.

    Parameters
    ----------
    path
        Its file, for messages.
    segments
        What goes where in physical memory.
    entry
        Physical address of the first instruction.
    multiboot
        It has a multiboot header: its first instructions are 32-bit code, as that specification has it.
    """

    path: str
    segments: tuple[Segment, ...]
    entry: int
    multiboot: bool


def load_image(path: Path, memory: int) -> Image:
    """Read an image that has to fit into `memory` bytes.

    Raises
    ------
    UserError
        The file cannot be read, is no ELF image for x86-64, has no entry or does not fit.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the image: {error.strerror}", file=str(path)) from error
    return parse_image(data, str(path), memory)


def parse_image(data: bytes, path: str, memory: int) -> Image:
    """Take an image apart; see `load_image`."""
    _check_ident(data, path)
    (_, kind, _, _, entry, segments_at, _, _, _, size, count, _, _, _) = _HEADER.unpack_from(data)
    if kind != _ET_EXEC:
        raise UserError("the image is not linked to an address (no ET_EXEC file)", file=path)
    if size != _SEGMENT.size or segments_at + count * size > len(data):
        raise UserError("the image is cut off: its program headers are not in the file", file=path)
    found = [_SEGMENT.unpack_from(data, segments_at + i * size) for i in range(count)]
    segments = tuple(_segment(data, header, path, memory) for header in found if header[0] == _PT_LOAD)
    offset = next((h[3] - h[4] for h in found if h[0] == _PT_LOAD and h[3] <= entry < h[3] + h[6]), None)
    if not segments:
        raise UserError("the image has nothing to load", file=path)
    if entry == 0 or offset is None:
        raise UserError(f"the image has no entry: {entry:#x} is in none of its segments", file=path)
    return Image(path, segments, entry - offset, _has_multiboot_header(data))


def _check_ident(data: bytes, path: str) -> None:
    if data[:4] != b"\x7fELF":
        raise UserError("the image is no ELF file", file=path)
    if len(data) < _HEADER.size:
        raise UserError("the image is cut off: no whole ELF header", file=path)
    if data[4] != _ELF64:
        raise UserError(
            "the image is a 32-bit ELF file: the machine runs 64-bit code only"
            " (kvm-unit-tests: take x86/NAME.elf, not x86/NAME.flat)",
            file=path,
        )
    machine = struct.unpack_from("<H", data, 18)[0]
    if data[5] != _LITTLE or machine != _EM_X86_64:
        raise UserError(
            f"the image is for another processor (ELF machine {machine}, not {_EM_X86_64})", file=path
        )


def _segment(data: bytes, header: tuple[int, ...], path: str, memory: int) -> Segment:
    _, _, offset, _, address, in_file, in_memory, _ = header
    if offset + in_file > len(data) or in_file > in_memory:
        raise UserError(f"the image is cut off: the segment at {address:#x} is not in the file", file=path)
    if address < LOWEST:
        raise UserError(
            f"the image loads to {address:#x}: the first {LOWEST:#x} bytes are the machine's", file=path
        )
    if address + in_memory > memory:
        raise UserError(
            f"the image is too large: it needs {-(-(address + in_memory) // 2**20)} MiB,"
            f" the machine has {memory // 2**20} MiB (--memory)",
            file=path,
        )
    return Segment(address, data[offset : offset + in_file], in_memory)


def _has_multiboot_header(data: bytes) -> bool:
    for offset in range(0, min(len(data), _MULTIBOOT_SEARCH) - _MULTIBOOT.size + 1, 4):
        magic, flags, checksum = _MULTIBOOT.unpack_from(data, offset)
        if magic == _MULTIBOOT_MAGIC and (magic + flags + checksum) & 0xFFFFFFFF == 0:
            return True
    return False
