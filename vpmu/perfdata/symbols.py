"""The images that make symbols resolve: an ELF per object of a program and a vmlinux, for ``--symfs``.

A program's files are in a directory of its own, ``/opt/PROGRAM``, since two profiles of one library have
different addresses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vpmu.errors import UserError
from vpmu.perfdata.elf import Image, Symbol, make_image

if TYPE_CHECKING:
    from vpmu.program import Program

KERNEL_ADDRESS: Final = 0xFFFFFFFF81000000
"""Where the guest's kernel is hit, `vpmu.kernels.guest.driver.KERNEL_IP`: kernel code has no functions."""
KERNEL_BYTES: Final = 0x1000
KERNEL_DSO: Final = "[kernel.kallsyms]"
VMLINUX: Final = "vmlinux"
_FIRST_INODE: Final = 100
_LAST_ADDRESS: Final = 1 << 63
_LARGEST_IMAGE: Final = 1 << 28


@dataclass(frozen=True, slots=True)
class Object:
    """An image of a program: its file name in the guest, its inode, and its ELF."""

    path: str
    inode: int
    image: Image


def kernel_image(name: str) -> Image:
    """Return the vmlinux: one function of this name."""
    return make_image([Symbol(name, KERNEL_ADDRESS, KERNEL_BYTES)])


def program_objects(programs: Mapping[str, Program]) -> dict[str, tuple[Object, ...]]:
    """Return the images of each program, by its name, the program's own first.

    Raises
    ------
    UserError
        If a function lies where no image can hold it, or the functions are too large.
    """
    found: dict[str, tuple[Object, ...]] = {}
    inode = _FIRST_INODE
    for name, program in programs.items():
        objects = []
        for file, symbols in _by_object(program).items():
            _check_place(name, file, symbols)
            image = make_image(symbols, is_library=".so" in file)
            objects.append(Object(f"/opt/{file_name(name)}/{file}", inode, image))
            inode += 1
        found[name] = tuple(objects)
    return found


def _check_place(program: str, file: str, symbols: Sequence[Symbol]) -> None:
    """Refuse functions that no image can hold."""
    for symbol in symbols:
        if not 0 <= symbol.address < _LAST_ADDRESS or symbol.size < 0:
            problem = f"no image can hold function {symbol.name}: {symbol.size} bytes at {symbol.address:#x}"
            raise UserError(problem, file="--perf-data", key=program)
    size = sum(symbol.size for symbol in symbols)
    if size > _LARGEST_IMAGE:
        problem = f"the functions of {file} have {size} bytes; an image can have {_LARGEST_IMAGE}"
        raise UserError(problem, file="--perf-data", key=program)


def _by_object(program: Program) -> dict[str, list[Symbol]]:
    """Return a program's functions by file; those of an unknown object count as the program's own."""
    own = file_name(program.name)
    found: dict[str, list[Symbol]] = {own: []}
    for function in program.functions:
        file = file_name(function.object) if function.object else own
        found.setdefault(file, []).append(Symbol(function.name, function.address, function.size))
    return {file: symbols for file, symbols in found.items() if symbols}


def file_name(name: str) -> str:
    """Return a program's or an object's name as a file: its last part, with harmless characters only."""
    plain = re.sub(r"[^\w.+@-]", "_", name.rpartition("/")[2].strip("[]"))
    return plain if plain.strip(".") else f"_{plain}"


def write_tree(directory: Path, kernel: Image, objects: Iterable[Object]) -> None:
    """Write the images to a tree for ``perf report --symfs``.

    Raises
    ------
    UserError
        If a file cannot be written.
    """
    files = {directory / VMLINUX: kernel}
    files |= {directory / each.path.lstrip("/"): each.image for each in objects}
    for path, image in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image.content)
        except OSError as error:
            raise UserError(f"cannot write: {error.strerror or error}", file=str(path)) from None
