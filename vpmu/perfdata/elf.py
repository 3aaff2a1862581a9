"""ELF images made by hand: just enough for perf to name functions (.text, .symtab, .strtab, a build-id).

The code is filling: nobody executes it. Functions that lie far apart get a section each.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from vpmu.perfdata.layout import plain_bytes

PAGE: Final = 4096
_GAP: Final = 1 << 16
"""Functions further apart than this are in different sections."""
_ET_EXEC, _ET_DYN, _EM_X86_64 = 2, 3, 62
_SHT_PROGBITS, _SHT_SYMTAB, _SHT_STRTAB, _SHT_NOTE = 1, 2, 3, 7
_ALLOC, _EXECUTE = 2, 4
_HEADER_BYTES, _PROGRAM_BYTES, _SECTION_BYTES = 64, 56, 64
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


class _Section(NamedTuple):
    """A section, with what its header says of it."""

    name: str
    kind: int
    content: bytes = b""
    flags: int = 0
    address: int = 0
    link: int = 0
    info: int = 0
    entry: int = 0
    align: int = 8

    def header(self, name_at: int, offset: int) -> bytes:
        """Return its entry in the table of sections."""
        place = (self.flags, self.address, offset if self.kind else 0, len(self.content))
        rest = (self.link, self.info, self.align, self.entry)
        return struct.pack("<IIQQQQIIQQ", name_at, self.kind, *place, *rest)


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
    build_id = hashlib.sha1(table + names + repr(mappings).encode(), usedforsecurity=False).digest()
    code = [_code(number, mapping) for number, mapping in enumerate(mappings)]
    sections = [
        _Section("", 0, align=0),
        *code,
        _Section(".note.gnu.build-id", _SHT_NOTE, _note(build_id), flags=_ALLOC),
        _Section(".symtab", _SHT_SYMTAB, table, link=len(code) + 3, info=1, entry=24),
        _Section(".strtab", _SHT_STRTAB, names),
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
            names += plain_bytes(symbol.name) + b"\0"
    return table, names


def _note(build_id: bytes) -> bytes:
    return struct.pack("<III4s", 4, len(build_id), _NT_GNU_BUILD_ID, b"GNU\0") + build_id


def _code(number: int, mapping: Mapping) -> _Section:
    name = f".text.{number}" if number else ".text"
    content = bytes([_NOP]) * mapping.size
    return _Section(name, _SHT_PROGBITS, content, _ALLOC | _EXECUTE, mapping.address, align=PAGE)


def _assemble(sections: list[_Section], mappings: Sequence[Mapping], is_library: bool) -> bytes:
    """Put header, program headers, sections and their table together; the code begins at the second page."""
    own_names = b"".join(section.name.encode() + b"\0" for section in sections) + b".shstrtab\0"
    sections = [*sections, _Section(".shstrtab", _SHT_STRTAB, own_names)]
    body = bytearray(PAGE)
    table = b""
    name_at = 0
    for section in sections:
        body += bytes(-len(body) % 8)
        table += section.header(name_at, len(body))
        body += section.content
        name_at += len(section.name) + 1
    body += bytes(-len(body) % 8)
    front = _front(mappings, is_library, len(body), len(sections))
    body[: len(front)] = front
    return bytes(body) + table


def _front(mappings: Sequence[Mapping], is_library: bool, sections_at: int, nr_sections: int) -> bytes:
    """Return ELF header and program headers; if these are too many, none: only a loader would miss them."""
    programs = b"".join(
        struct.pack("<IIQQQQQQ", 1, 5, m.file_offset, m.address, m.address, m.size, m.size, PAGE)
        for m in mappings
    )
    if _HEADER_BYTES + len(programs) > PAGE:
        programs = b""
    return (
        struct.pack(
            "<16sHHIQQQIHHHHHH",
            b"\x7fELF\x02\x01\x01",
            _ET_DYN if is_library else _ET_EXEC,
            _EM_X86_64,
            1,
            mappings[0].address,
            _HEADER_BYTES if programs else 0,
            sections_at,
            0,
            _HEADER_BYTES,
            _PROGRAM_BYTES,
            len(programs) // _PROGRAM_BYTES,
            _SECTION_BYTES,
            nr_sections,
            nr_sections - 1,
        )
        + programs
    )
