"""The small guests: bytes with their listing, and the image made of them.

The tests load ``NAME.lst``. After a change to ``NAME.s``, ``python -m tests.guests.assemble`` writes the
listings anew; it needs GNU as.
"""

import re
import struct
import subprocess
import sys
from pathlib import Path

from vpmu.machine.image import Image, Segment

FOLDER = Path(__file__).parent
ENTRY = 0x100000
_LINE = re.compile(r"^\s*\d+ ([0-9a-f]{4,}) ([0-9A-F ]+?)\s*(?:\t(.*))?$")
_LISTING = re.compile(r"^([0-9a-f]{4}): ([0-9a-f ]+?) *(?:\| .*)?$")
_ELF_HEADER, _PROGRAM_HEADER = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ")


def names() -> list[str]:
    """Names of all guests."""
    return sorted(path.stem for path in FOLDER.glob("*.s"))


def code_of(name: str) -> bytes:
    """Return a guest's bytes out of its listing."""
    code = bytearray()
    for line in (FOLDER / f"{name}.lst").read_text().splitlines():
        found = _LISTING.match(line)
        if found:
            assert int(found[1], 16) == len(code), f"{name}.lst: a gap before {found[1]}"
            code += bytes.fromhex(found[2])
    return bytes(code)


def image_of(name: str) -> Image:
    """Return a guest as an image."""
    code = code_of(name)
    return Image(name, (Segment(ENTRY, code, len(code)),), ENTRY, multiboot=False)


def elf_of(code: bytes, *, entry: int = ENTRY, address: int = ENTRY, size: int | None = None) -> bytes:
    """Return an ELF file with one segment."""
    offset = _ELF_HEADER.size + _PROGRAM_HEADER.size
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = _ELF_HEADER.pack(
        ident, 2, 62, 1, entry, _ELF_HEADER.size, 0, 0, _ELF_HEADER.size, _PROGRAM_HEADER.size, 1, 0, 0, 0
    )
    segment = _PROGRAM_HEADER.pack(1, 7, offset, address, address, len(code), size or len(code), 0x1000)
    return header + segment + code


def listing_of(name: str) -> str:
    """Assemble a guest; return its listing: offset, bytes and source of each line that has bytes."""
    widths = ["--listing-rhs-width=160", "--listing-lhs-width=4", "--listing-lhs-width2=4"]
    command = ["as", "--64", "-alcmn", *widths, "--listing-cont-lines=99", "-o", "/dev/null", f"{name}.s"]
    text = subprocess.run(command, cwd=FOLDER, check=True, capture_output=True, text=True).stdout
    lines = []
    for line in text.splitlines():
        found = _LINE.match(line)
        if found:
            code = bytes.fromhex(found[2].replace(" ", "")).hex(" ")
            source = re.sub(r"^>+", "", found[3] or "").strip()
            lines.append(f"{found[1]}: {code:47} | {source}".rstrip(" |"))
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write every listing."""
    for name in names():
        (FOLDER / f"{name}.lst").write_text(listing_of(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
