"""The source's figures, out of ``source.toml``: the only place where they stand."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct, field

SOURCE_FILE: Final = Path(__file__).with_name("source.toml")
COLUMNS: Final = ("legacy", "optimized", "native", "ratio")
"""Where a row may have a figure: under a design, or as the ratio of two."""


class Bounds(Struct, frozen=True, forbid_unknown_fields=True):
    """Per column, the least and the greatest ratio of emulated to source that is asked for."""

    legacy: tuple[float, float] | None = None
    optimized: tuple[float, float] | None = None
    native: tuple[float, float] | None = None
    ratio: tuple[float, float] | None = None


class SourceRow(Struct, frozen=True, forbid_unknown_fields=True):
    """One row: the source's figure per column, and which figure of a run stands beside it.

    `input` marks what the cost profile starts from, `derived` what follows from other rows, `checked` the
    columns that a program's own loop counts were chosen for, which have to come `within` that distance: none
    of these is a prediction.
    """

    row: str
    origin: str = field(name="from")
    legacy: float | None = None
    optimized: float | None = None
    native: float | None = None
    ratio: float | None = None
    bound: Bounds = Bounds()
    input: bool = False
    derived: bool = False
    checked: tuple[str, ...] = ()
    within: float = 0.0
    note: str = ""


class SourceTable(Struct, frozen=True, forbid_unknown_fields=True):
    """One table of the source."""

    number: str
    title: str
    unit: str
    rows: tuple[SourceRow, ...]
    note: str = ""


class Source(Struct, frozen=True, forbid_unknown_fields=True):
    """All tables."""

    tables: tuple[SourceTable, ...] = field(name="table")


def load_source() -> Source:
    """Read the source's figures."""
    return msgspec.convert(tomllib.loads(SOURCE_FILE.read_text(encoding="utf-8")), Source)
