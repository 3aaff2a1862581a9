"""Images: what is loaded, and each way in which a file is not one."""

import struct
from pathlib import Path

import pytest

from tests.guests.assemble import ENTRY, elf_of
from vpmu.errors import UserError
from vpmu.machine.image import load_image, parse_image

MEMORY = 64 << 20
CODE = b"\x90\xf4"


def test_elf():
    image = parse_image(elf_of(CODE, size=4096), "x.elf", MEMORY)
    (segment,) = image.segments
    assert (segment.address, segment.data, segment.size) == (ENTRY, CODE, 4096)
    assert image.entry == ENTRY
    assert not image.multiboot


def test_multiboot_header_makes_the_entry_32_bit_code():
    header = struct.pack("<III", 0x1BADB002, 0, -0x1BADB002 & 0xFFFFFFFF)
    assert parse_image(elf_of(header + CODE, entry=ENTRY + 12), "x.elf", MEMORY).multiboot
    wrong = struct.pack("<III", 0x1BADB002, 0, 1)
    assert not parse_image(elf_of(wrong + CODE), "x.elf", MEMORY).multiboot


def changed(at: int, data: bytes) -> bytes:
    whole = bytearray(elf_of(CODE))
    whole[at : at + len(data)] = data
    return bytes(whole)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"#!/bin/sh\n", "the image is no ELF file"),
        (b"", "the image is no ELF file"),
        (elf_of(CODE)[:40], "the image is cut off: no whole ELF header"),
        (elf_of(CODE)[:100], "the image is cut off: its program headers are not in the file"),
        (elf_of(CODE)[:-1], "the image is cut off: the segment at 0x100000 is not in the file"),
        (changed(4, b"\x01"), "the image is a 32-bit ELF file: the machine runs 64-bit code only"),
        (changed(18, b"\xb7\x00"), "the image is for another processor (ELF machine 183, not 62)"),
        (changed(16, b"\x03\x00"), "the image is not linked to an address"),
        (changed(56, b"\x00\x00"), "the image has nothing to load"),
        (elf_of(CODE, entry=0), "the image has no entry: 0x0 is in none of its segments"),
        (elf_of(CODE, entry=0x200000), "the image has no entry: 0x200000 is in none of its segments"),
        (elf_of(CODE, address=0x8000, entry=0x8000), "the image loads to 0x8000"),
        (elf_of(CODE, size=MEMORY), "the image is too large: it needs 65 MiB, the machine has 64 MiB"),
    ],
)
def test_what_is_no_image(data: bytes, problem: str):
    with pytest.raises(UserError) as caught:
        parse_image(data, "x.elf", MEMORY)
    assert caught.value.problem.startswith(problem)
    assert caught.value.file == "x.elf"


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(UserError, match="cannot read the image: No such file"):
        load_image(tmp_path / "x.elf", MEMORY)
