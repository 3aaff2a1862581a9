"""What a run leaves in ``DIR/checkpoint`` so that ``vpmu resume DIR`` can go on with it.

Beside the checkpoints of each design, in a directory of its name, `run.json` has what was asked for. A design
that is complete leaves its result there. Once all are, and the results are written, all this is removed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Final

import msgspec

from vpmu.errors import UserError
from vpmu.results import DesignResult, json_bytes

CHECKPOINT: Final = "checkpoint"
_RUN: Final = "run.json"
_RESULT: Final = "result.json"
FORMAT: Final = 1


class RunNote(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for, as the command line had it.

    Attributes
    ----------
    format : int
        Version of this file; another is refused.
    scenario : str
        Absolute path.
    overrides : list of str
        As given by ``--set``, ``--seed`` and ``--until``.
    designs : list of str
        Names, and absolute paths of designs that are files.
    keep : list of str
        Kinds of records to write.
    perf_data : bool
    workers : int
    place : str
    every_s : float
        Wall time between two checkpoints, at most.
    """

    format: int = FORMAT
    scenario: str
    overrides: list[str]
    designs: list[str]
    keep: list[str]
    perf_data: bool
    workers: int
    place: str
    every_s: float


def can_resume(out: Path) -> bool:
    """Return whether a directory holds a run that can go on."""
    return (out / CHECKPOINT / _RUN).is_file()


def write_note(out: Path, note: RunNote) -> None:
    """Begin a run that can go on."""
    (out / CHECKPOINT).mkdir(parents=True, exist_ok=True)
    _write(out / CHECKPOINT / _RUN, json_bytes(note))


def read_note(out: Path) -> RunNote:
    """Return what a run was asked for.

    Raises
    ------
    UserError
        If no run can go on there, or its note is damaged or of another version.
    """
    path = out / CHECKPOINT / _RUN
    try:
        content = path.read_bytes()
    except OSError as error:
        problem = f"no run to go on with: {error.strerror or error}"
        raise UserError(problem, file=str(path)) from None
    try:
        note = msgspec.json.decode(content, type=RunNote)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UserError(f"damaged: {error}", file=str(path)) from None
    if note.format != FORMAT:
        raise UserError(f"version {note.format} is not supported (known: {FORMAT})", file=str(path))
    return note


def design_directory(out: Path, design: str) -> Path:
    """Return where the checkpoints of a design are."""
    return out / CHECKPOINT / design


def finish_design(out: Path, result: DesignResult) -> None:
    """Keep the result of a design that is complete, and no checkpoint of it any more."""
    directory = design_directory(out, result.design)
    body = json_bytes(result)
    _write(directory / _RESULT, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    for path in directory.iterdir():
        if path.name != _RESULT:
            path.unlink()


def finished_design(out: Path, design: str) -> DesignResult | None:
    """Return the result of a design that is complete; None if it is not.

    Raises
    ------
    UserError
        If the file is not what was written.
    """
    path = design_directory(out, design) / _RESULT
    try:
        digest, _, body = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise UserError("damaged: its SHA-256 is another; remove it to run the design again", file=str(path))
    return msgspec.json.decode(body, type=DesignResult)


def finish(out: Path) -> None:
    """Remove what only a run that goes on needs; its results are written."""
    shutil.rmtree(out / CHECKPOINT)


def _write(path: Path, content: bytes) -> None:
    """Write a file at once or not at all."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
