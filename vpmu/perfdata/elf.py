"""ELF images made by hand: just enough for perf to name functions (.text, .symtab, .strtab, a build-id).

The code is filling: nobody executes it. Functions that lie far apart get a section each.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

PAGE: Final = 4096
_GAP: Final = 1 << 20
"""Functions further apart than this are in different sections."""
_ET_EXEC, _ET_DYN, _EM_X86_64 = 2, 3, 62
_SHT_PROGBITS, _SHT_SYMTAB, _SHT_STRTAB, _SHT_NOTE = 1, 2, 3, 7
_ALLOC_EXEC: Final = 2 | 4
_STB_GLOBAL_STT_FUNC: Final = 1 << 4 | 2
_NT_GNU_BUILD_ID: Final = 3
_NOP: Final = 0x90


@dataclass(frozen=True, slots=True)
class Symbol:
    """A function: its name, guest virtual address and size in bytes."""

    name: str
    address: int
    size: int


@dataclass(frozen=True, slots=True)
class Mapping:
    """A section as the guest maps it: first address and bytes, whole pages, and its place in the file."""

    address: int
    size: int
    file_offset: int


@dataclass(frozen=True, slots=True)
class Image:
    """An ELF file: its bytes, its build-id (20 bytes) and how it is mapped."""

    content: bytes
    build_id: bytes
    mappings: tuple[Mapping, ...]


def make_image(symbols: Iterable[Symbol], *, is_library: bool = False) -> Image:
    """Return an ELF file with these functions.

    Parameters
    ----------
    symbols : iterable of Symbol
        At least one.
    is_library : bool
        Whether it is a shared object; else a program, or a kernel.
    """
    ordered = sorted(symbols, key=lambda symbol: (symbol.address, symbol.name))
    groups = _groups(ordered)
    mappings = _mappings(groups)
    table, names = _symbol_table(groups)
    sections = [("", 0, 0, 0, b"", 0, 0)]
    for number, mapping in enumerate(mappings):
        name = f".text.{number}" if number else ".text"
        code = bytes([_NOP]) * mapping.size
        sections.append((name, _SHT_PROGBITS, _ALLOC_EXEC, mapping.address, code, 0, 0))
    strings = len(sections) + 2
    build_id = hashlib.sha1(table + names + repr(mappings).encode(), usedforsecurity=False).digest()
    sections += [
        (".note.gnu.build-id", _SHT_NOTE, 2, 0, _note(build_id), 0, 0),
        (".symtab", _SHT_SYMTAB, 0, 0, table, strings, 24),
        (".strtab", _SHT_STRTAB, 0, 0, names, 0, 0),
    ]
    return Image(_assemble(sections, mappings, is_library), build_id, mappings)


def _groups(ordered: Sequence[Symbol]) -> list[list[Symbol]]:
    """Cut functions in the order of their addresses where the next one is far away."""
    groups: list[list[Symbol]] = []
    end = 0
    for symbol in ordered:
        if not groups or symbol.address > end + _GAP:
            groups.append([])
        groups[-1].append(symbol)
        end = max(end, symbol.address + max(symbol.size, 1))
    return groups


def _mappings(groups: Sequence[Sequence[Symbol]]) -> tuple[Mapping, ...]:
    """Lay the groups out, page by page, behind the file's first page."""
    found = []
    at = PAGE
    for group in groups:
        first = group[0].address // PAGE * PAGE
        last = max(symbol.address + max(symbol.size, 1) for symbol in group)
        size = -(-(last - first) // PAGE) * PAGE
        found.append(Mapping(first, size, at))
        at += size
    return tuple(found)


def _symbol_table(groups: Sequence[Sequence[Symbol]]) -> tuple[bytes, bytes]:
    table, names = bytes(24), b"\0"
    for number, group in enumerate(groups):
        for symbol in group:
            table += struct.pack(
                "<IBBHQQ",
                len(names),
                _STB_GLOBAL_STT_FUNC,
                0,
                number + 1,
                symbol.address,
                max(symbol.size, 1),
            )
            names += symbol.name.encode().replace(b"\0", b"?") + b"\0"
    return table, names


def _note(build_id: bytes) -> bytes:
    return struct.pack("<III4s", 4, len(build_id), _NT_GNU_BUILD_ID, b"GNU\0") + build_id


def _assemble(
    sections: list[tuple[str, int, int, int, bytes, int, int]],
    mappings: Sequence[Mapping],
    is_library: bool,
) -> bytes:
    """Put header, program headers, sections and their table together; the code begins at the second page."""
    section_names = b"".join(name.encode() + b"\0" for name, *_ in sections) + b".shstrtab\0"
    sections = [*sections, (".shstrtab", _SHT_STRTAB, 0, 0, section_names, 0, 0)]
    programs = b"".join(
        struct.pack("<IIQQQQQQ", 1, 5, m.file_offset, m.address, m.address, m.size, m.size, PAGE)
        for m in mappings
    )
    if 64 + len(programs) > PAGE:
        programs = b""  # only a loader would miss them
    body = bytearray(PAGE)
    table = b""
    name_at = 0
    for name, kind, flags, address, content, link, entry in sections:
        info = 1 if kind == _SHT_SYMTAB else 0
        align = PAGE if kind == _SHT_PROGBITS else 8 if kind else 0
        body += bytes(-len(body) % 8)
        table += struct.pack(
            "<IIQQQQIIQQ",
            name_at,
            kind,
            flags,
            address,
            len(body) if kind else 0,
            len(content),
            link,
            info,
            align,
            entry,
        )
        body += content
        name_at += len(name) + 1
    body += bytes(-len(body) % 8)
    head = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        _ET_DYN if is_library else _ET_EXEC,
        _EM_X86_64,
        1,
        mappings[0].address,
        64 if programs else 0,
        len(body),
        0,
        64,
        56,
        len(programs) // 56,
        64,
        len(sections),
        len(sections) - 1,
    )
    body[: len(head) + len(programs)] = head + programs
    return bytes(body) + table
