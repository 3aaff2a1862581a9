"""The frame of a ``perf.data`` file: header, ids, attrs, data, features; and the numbers of its records.

Little-endian throughout. The data are written as they come; the header, which says how long they are, is
filled in when the file is complete.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from io import BufferedWriter
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vpmu.errors import UserError

MAGIC: Final = b"PERFILE2"
HEADER_BYTES: Final = 104
ATTR_BYTES: Final = 128
"""PERF_ATTR_SIZE_VER7."""
ATTR_ENTRY_BYTES: Final = ATTR_BYTES + 16
"""An attr in the file's table, with offset and size of its ids."""

RECORD_MMAP: Final = 1
RECORD_LOST: Final = 2
RECORD_COMM: Final = 3
RECORD_EXIT: Final = 4
RECORD_THROTTLE: Final = 5
RECORD_UNTHROTTLE: Final = 6
RECORD_FORK: Final = 7
RECORD_SAMPLE: Final = 9
RECORD_MMAP2: Final = 10
RECORD_FINISHED_ROUND: Final = 68
RECORD_THREAD_MAP: Final = 73
RECORD_CPU_MAP: Final = 74
RECORD_STAT_CONFIG: Final = 75
RECORD_STAT: Final = 76
RECORD_STAT_ROUND: Final = 77

MISC_KERNEL: Final = 1
MISC_USER: Final = 2
MISC_COMM_EXEC: Final = 1 << 13

Words = NDArray[np.uint64]


def plain_bytes(text: str) -> bytes:
    """Return a text as bytes that end at the first NUL: it must hold none, and no half of a character."""
    return text.encode(errors="replace").replace(b"\0", b"?")


def record(kind: int, misc: int, payload: bytes) -> bytes:
    """Return a record: ``perf_event_header`` and payload, which is padded to whole words."""
    padded = payload + bytes(-len(payload) % 8)
    return struct.pack("<IHH", kind, misc, 8 + len(padded)) + padded


FINISHED_ROUND: Final = record(RECORD_FINISHED_ROUND, 0, b"")
"""Tells the reader that no later record is older than those before it: it can sort and let go of them."""


class PerfFile:
    """A ``perf.data`` file in the making, under a temporary name until `close`.

    Note that the file is open only while something is written, since a run may have thousands.

    Parameters
    ----------
    path : Path
        Its final name; the directory is made if it is absent.
    attrs : sequence of bytes
        A ``perf_event_attr`` of `ATTR_BYTES` each.
    ids : sequence of sequences of int
        Each event's ids, one per CPU or thread that it was opened on.

    Raises
    ------
    UserError
        If it cannot be written.
    """

    def __init__(self, path: Path, attrs: Sequence[bytes], ids: Sequence[Sequence[int]]) -> None:
        self.path = path
        self.data_bytes = 0
        self._part = path.with_name(f".{path.name}.part")
        self._attrs_at, self._attrs_bytes = 0, len(attrs) * ATTR_ENTRY_BYTES
        front = bytearray(HEADER_BYTES)
        places = []
        for numbers in ids:
            places.append((len(front), 8 * len(numbers)))
            front += np.array(numbers, dtype="<u8").tobytes()
        self._attrs_at = len(front)
        for attr, place in zip(attrs, places, strict=True):
            front += attr + struct.pack("<QQ", *place)
        self._data_at = len(front)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._part.write_bytes(front)
        except OSError as error:
            raise self._failure(error) from None

    def write(self, *chunks: bytes | Words) -> None:
        """Append whole records.

        Raises
        ------
        UserError
            If they cannot be written, e.g. because the disk is full.
        """
        try:
            with self._part.open("ab") as file:
                for chunk in chunks:
                    self.data_bytes += _write(file, chunk)
        except OSError as error:
            raise self._failure(error) from None

    def close(self, features: Mapping[int, bytes]) -> None:
        """Write the features, by their number, then the header, and give the file its name."""
        numbers = sorted(features)
        at = self._data_at + self.data_bytes + 16 * len(numbers)
        table, bodies = b"", b""
        for number in numbers:
            table += struct.pack("<QQ", at + len(bodies), len(features[number]))
            bodies += features[number]
        bits = sum(1 << number for number in numbers)
        header = MAGIC + struct.pack(
            "<QQQQQQQQ",
            HEADER_BYTES,
            ATTR_ENTRY_BYTES,
            self._attrs_at,
            self._attrs_bytes,
            self._data_at,
            self.data_bytes,
            0,
            0,
        )
        try:
            with self._part.open("r+b") as file:
                file.write(header + bits.to_bytes(32, "little"))
                file.seek(0, 2)
                file.write(table + bodies)
            self._part.replace(self.path)
        except OSError as error:
            raise self._failure(error) from None

    def discard(self) -> None:
        """Remove what was written; a file that is closed stays."""
        self._part.unlink(missing_ok=True)

    def _failure(self, error: OSError) -> UserError:
        return UserError(f"cannot write: {error.strerror or error}", file=str(self.path))


def _write(file: BufferedWriter, chunk: bytes | Words) -> int:
    if isinstance(chunk, bytes):
        return file.write(chunk)
    words = np.ascontiguousarray(chunk, dtype="<u8")
    file.write(words.data)
    return words.nbytes
