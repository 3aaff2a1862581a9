"""Program files: a program as JSON (written and read) or TOML (read), checked by its keys."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from vpmu.errors import UserError
from vpmu.program.importer import import_callgrind
from vpmu.program.model import EVENT_KINDS, PROGRAM_VERSION, Program, ProgramError
from vpmu.schema import convert, join, read_toml


def save_program(program: Program, path: Path) -> None:
    """Write a program as JSON with one segment a line, so that people and ``diff`` can read it."""
    path.write_text(dump_program(program), encoding="utf-8")


def dump_program(program: Program) -> str:
    """Return a program's file: JSON, one function, chain or segment a line."""
    return _dump(msgspec.to_builtins(program), "") + "\n"


def _dump(value: Any, indent: str) -> str:
    """Break tables and arrays over lines where they hold tables or arrays of their own."""
    inner = indent + "  "
    if isinstance(value, dict) and "cycles" not in value and "address" not in value:
        items = [f"{json.dumps(key)}: {_dump(item, inner)}" for key, item in value.items()]
        return _block("{", items, "}", indent)
    if isinstance(value, list | tuple) and any(isinstance(item, dict | list | tuple) for item in value):
        return _block("[", [_dump(item, inner) for item in value], "]", indent)
    return json.dumps(value, ensure_ascii=False)


def _block(begin: str, items: Iterable[str], end: str, indent: str) -> str:
    return begin + ",".join(f"\n{indent}  {item}" for item in items) + f"\n{indent}{end}"


def load_program(path: Path) -> Program:
    """Read a program: a program file (JSON, or TOML if its name ends so) or a Callgrind profile.

    Raises
    ------
    ProgramError
        The file cannot be read or is none of these, with its line or key.
    """
    if path.suffix == ".toml":
        return _check(_convert(read_toml(path), path), path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ProgramError(f"cannot read: {error.strerror or error}", file=str(path)) from None
    if not data.lstrip().startswith(b"{"):
        return _import(path, data)
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ProgramError(f"not valid JSON: {error}", file=str(path)) from None
    return _check(_convert(raw, path), path)


@lru_cache(maxsize=8)
def _import(path: Path, data: bytes) -> Program:
    """Import a profile; one and the same is imported once, however many seeds run it."""
    return import_callgrind(path)


def _convert(raw: dict[str, Any], path: Path) -> Program:
    version = raw.get("version")
    if version != PROGRAM_VERSION:
        problem = f"expected {PROGRAM_VERSION}, found {json.dumps(version, default=str)}"
        raise ProgramError(problem, file=str(path), key="version")
    try:
        return convert(raw, Program, str(path))
    except UserError as error:
        raise ProgramError(
            error.problem, file=error.file, key=error.key, found=error.found, allowed=error.allowed
        ) from None


def _check(program: Program, path: Path) -> Program:
    """Check what the types cannot: indices, event names, and that the kernels' encoder takes the numbers."""
    for index, chain in enumerate(program.chains):
        for function in chain:
            _check_index(function, program.functions, path, join("chains", index))
    for phase_index, phase in enumerate(program.phases):
        for index, segment in enumerate(phase.segments):
            key = join(join(join("phases", phase_index), "segments"), index)
            _check_index(segment.function, program.functions, path, join(key, "function"))
            _check_index(segment.chain, program.chains, path, join(key, "chain"))
            for name in segment.events:
                if name not in EVENT_KINDS:
                    place = join(join(key, "events"), name)
                    raise ProgramError(
                        "unknown event", file=str(path), key=place, found=name, allowed=EVENT_KINDS
                    )
    try:
        program.encode()
    except ValueError as error:
        raise ProgramError(str(error), file=str(path), key="phases") from None
    return program


def _check_index(index: int, table: tuple[object, ...], path: Path, key: str) -> None:
    if not 0 <= index < len(table):
        raise ProgramError(
            f"expected an index from 0 to {len(table) - 1}, found {index}", file=str(path), key=key
        )
