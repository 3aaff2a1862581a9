"""Records of single events: their layout, and Parquet files written as a run goes on.

A record is eight 64-bit words, as the kernels' rings hold them.  The files are cut into row groups of a fixed
size, so that their content does not depend on how the rings were drained; memory is bounded by one row group
a file.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import numpy as np
from numpy.typing import NDArray

from vpmu.errors import Interrupted, UserError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

Words = NDArray[np.uint64]

RECORD_WORDS: Final = 8
KIND_ACCESS: Final = 1
KIND_PMI: Final = 2
KIND_SWITCH: Final = 3
KIND_SAMPLE: Final = 4
KIND_REQUEST: Final = 5
KIND_THROTTLE: Final = 6

ROW_GROUP: Final = 65_536
KEEP_CHOICES: Final = ("samples", "accesses", "switches", "pmis")
DEFAULT_KEEP: Final = frozenset({"samples"})
FILES: Final = {
    KIND_ACCESS: "accesses",
    KIND_REQUEST: "requests",
    KIND_PMI: "pmis",
    KIND_SWITCH: "switches",
    KIND_SAMPLE: "samples",
    KIND_THROTTLE: "throttles",
}
"""File of each kind of record, without ``.parquet``."""
KIND_KEPT_BY: Final = {
    KIND_ACCESS: "accesses",
    KIND_REQUEST: "accesses",
    KIND_PMI: "pmis",
    KIND_SWITCH: "switches",
    KIND_SAMPLE: "samples",
    KIND_THROTTLE: "samples",
}
"""Which choice of ``--keep`` keeps a kind of record."""

_Column = tuple[str, type[np.unsignedinteger], int, int, int]
_COMMON: Final[list[_Column]] = [
    # name, type, word, shift, bits
    ("at_ns", np.uint64, 1, 0, 64),
    ("actor", np.uint32, 2, 0, 32),
    ("sequence", np.uint64, 3, 0, 64),
]
_EVENT_COLUMNS: Final[list[_Column]] = [
    *_COMMON,
    ("op", np.uint8, 0, 16, 8),
    ("outcome", np.uint8, 0, 8, 8),
    ("register", np.uint64, 4, 0, 64),
    ("value", np.uint64, 5, 0, 64),
    ("cost_ns", np.uint64, 6, 0, 64),
    ("aux", np.uint64, 7, 0, 64),
]
_SAMPLE_COLUMNS: Final[list[_Column]] = [
    *_COMMON,
    ("ip", np.uint64, 4, 0, 64),
    ("period", np.uint64, 5, 0, 64),
    ("function", np.uint32, 6, 0, 32),
    ("chain", np.uint32, 6, 32, 32),
    ("tid", np.uint16, 7, 0, 16),
    ("session", np.uint16, 7, 24, 16),
    ("event", np.uint16, 7, 16, 8),
    ("cpl", np.uint8, 7, 48, 8),
]


def columns_of(kind: int) -> list[_Column]:
    """Columns of a kind's file: name, type, and where it lies in the record (word, shift, bits)."""
    return _SAMPLE_COLUMNS if kind == KIND_SAMPLE else _EVENT_COLUMNS


def parse_keep(text: str) -> frozenset[str]:
    """Read ``--keep``: choices of `KEEP_CHOICES` with commas between, or ``all`` or ``none``.

    Raises
    ------
    UserError
        For an unknown choice.
    """
    if text == "all":
        return frozenset(KEEP_CHOICES)
    if text == "none":
        return frozenset()
    chosen = [choice.strip() for choice in text.split(",")]
    for choice in chosen:
        if choice not in KEEP_CHOICES:
            allowed = (*KEEP_CHOICES, "all", "none")
            raise UserError("unknown choice", file="--keep", found=choice, allowed=allowed)
    return frozenset(chosen)


class RecordWriter:
    """Writes a design's records to ``DIRECTORY/DESIGN/*.parquet``.

    A file has a temporary name until `close`, which renames it: a file under its final name is whole.
    Leaving the context by an exception other than Ctrl-C discards the files.

    Parameters
    ----------
    directory : Path
        The results' directory; made when the first file is.
    design : str
        Name of the design, and of the directory inside.
    keep : collection of str
        Choices of `KEEP_CHOICES`; records of other kinds are dropped.
    """

    def __init__(self, directory: str | Path, design: str, keep: Iterable[str] = DEFAULT_KEEP) -> None:
        self.directory = Path(directory) / design
        self.keep = frozenset(keep)
        self.rows: dict[str, int] = {}
        self._closed = False
        self._files: dict[int, _RecordFile] = {}

    def append(self, records: Words) -> None:
        """Add records, in order.

        Parameters
        ----------
        records : uint64[n, 8]
            Of any kinds mixed; the array is free to be overwritten afterwards.
        """
        if self._closed:
            raise ValueError("append to a closed RecordWriter")
        if records.ndim != 2 or records.shape[1] != RECORD_WORDS:
            raise ValueError(f"records must be uint64[n, {RECORD_WORDS}], not {records.shape}")
        kinds = records[:, 0] & np.uint64(0xFF)
        for kind in np.unique(kinds).tolist():
            if kind not in FILES:
                raise ValueError(f"no record is of kind {kind}")
            if KIND_KEPT_BY[kind] in self.keep:
                self._file(kind).append(records[kinds == np.uint64(kind)])

    def close(self) -> None:
        """Write what is buffered, and give every kept kind's file its final name, empty ones too.

        Files that an earlier run left in their places are replaced, or removed where this run keeps no such
        kind.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self._close()
        except BaseException:
            # A full disk, or Ctrl-C just now: half of a run's files are worth nothing.
            for file in self._files.values():
                file.discard()
                file.path.unlink(missing_ok=True)
            raise

    def _close(self) -> None:
        for kind, choice in KIND_KEPT_BY.items():
            if choice in self.keep:
                file = self._file(kind)
                file.close()
                self.rows[FILES[kind]] = file.rows
            else:
                (self.directory / f"{FILES[kind]}.parquet").unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove what was written; a writer that is closed keeps its files."""
        if self._closed:
            return
        self._closed = True
        for file in self._files.values():
            file.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None or isinstance(error, KeyboardInterrupt | Interrupted):
            self.close()
        else:
            self.discard()

    def _file(self, kind: int) -> _RecordFile:
        if kind not in self._files:
            self._files[kind] = _RecordFile(self.directory / f"{FILES[kind]}.parquet", columns_of(kind))
        return self._files[kind]


class _RecordFile:
    """One Parquet file in the making, and the row group that is being filled."""

    def __init__(self, path: Path, columns: list[_Column]) -> None:
        self.path = path
        self.rows = 0
        self._part = path.with_name(f".{path.name}.part")
        self._columns = columns
        self._buffer: Words = np.empty((ROW_GROUP, RECORD_WORDS), dtype=np.uint64)
        self._used = 0
        self._writer: pq.ParquetWriter | None = None

    def append(self, records: Words) -> None:
        done = 0
        while done < len(records):
            step = min(len(records) - done, ROW_GROUP - self._used)
            self._buffer[self._used : self._used + step] = records[done : done + step]
            self._used += step
            done += step
            if self._used == ROW_GROUP:
                self._flush()

    def close(self) -> None:
        if self._used or self._writer is None:
            self._flush()
        self._open().close()
        self._part.replace(self.path)

    def discard(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._part.unlink(missing_ok=True)

    def _flush(self) -> None:
        import pyarrow as pa

        writer = self._open()
        filled = self._buffer[: self._used]
        arrays = [pa.array(_extract(filled, column)) for column in self._columns]
        writer.write_table(pa.Table.from_arrays(arrays, schema=writer.schema), row_group_size=ROW_GROUP)
        self.rows += self._used
        self._used = 0

    def _open(self) -> pq.ParquetWriter:
        import pyarrow.parquet as pq

        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._part, _schema(self._columns), compression="zstd")
        return self._writer


def _schema(columns: list[_Column]) -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [pa.field(name, pa.from_numpy_dtype(kind), nullable=False) for name, kind, *_ in columns]
    )


def _extract(records: Words, column: _Column) -> NDArray[np.unsignedinteger]:
    _, kind, word, shift, bits = column
    mask = np.uint64((1 << bits) - 1)
    return ((records[:, word] >> np.uint64(shift)) & mask).astype(kind)
