"""Layouts of everything that crosses a socket, and nothing else.

A frame is a 64-byte header and `nr_records` records of `words` unsigned 64-bit words each, all
little-endian. `docs/protocol.md` gives the byte layouts; this module is their one implementation.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from vpmu.cluster.errors import LocalProtocolError, RemoteProtocolError

U64_DTYPE: Final = np.dtype("<u8")
U64Array = npt.NDArray[np.uint64]

MAGIC: Final = b"vPMU"
VERSION: Final = 1
WORD_BYTES: Final = 8
MAX_FRAME_BYTES: Final = 64 << 20
COORDINATOR: Final = 0xFFFF
"""The rank number of the process that starts a gang; never a rank of the run."""

HEADER: Final = struct.Struct("<4sHHQQQIIIHHIIQ")
assert HEADER.size == 64
_PREFIX: Final = struct.pack("<4sH", MAGIC, VERSION)
_FIELDS: Final = struct.Struct("<6xHQQQIIIHHIIQ")
"""A header without its prefix."""
assert _FIELDS.size == HEADER.size
ROUTING_ID: Final = struct.Struct("<4sHHQI")
assert ROUTING_ID.size == 20


class Kind(IntEnum):
    """What a frame is. Values under 0x40 are the base's: start, end, failure, measurement."""

    HELLO = 0x01
    PEERS = 0x02
    READY = 0x03
    GO = 0x04
    RESULT = 0x05
    FINISH = 0x06
    FAIL = 0x07
    BENCH = 0x08
    ACCESS = 0x40
    ACCESS_DONE = 0x41
    PMI = 0x42
    GRANT = 0x43
    RETIRED = 0x44
    PERF_REQUEST = 0x45
    PERF_REPLY = 0x46
    RESERVE = 0x47
    RESERVED = 0x48
    WINDOW = 0x49
    ROWS = 0x4A
    RECORDS = 0x4B
    CHECKPOINT = 0x4C


FIXED_WORDS: Final[dict[int, int]] = {
    Kind.HELLO: 1,
    Kind.PEERS: 1,
    Kind.READY: 1,
    Kind.GO: 1,
    Kind.RESULT: 1,
    Kind.FINISH: 1,
    Kind.FAIL: 1,
    Kind.ROWS: 1,
    Kind.RECORDS: 8,
    Kind.CHECKPOINT: 1,
}
"""Words per record of the kinds whose records have one size; the others choose theirs."""

LEAST_WORDS: Final[dict[int, int]] = {Kind.ACCESS: 8, Kind.ACCESS_DONE: 8, Kind.PMI: 8}
"""Words that a record of these kinds begins with; what a guest runs, or has run, may follow."""

KINDS: Final[dict[int, Kind]] = {int(kind): kind for kind in Kind}


class Header(NamedTuple):
    """The header of a frame, without magic and version, in the order of the bytes.

    `sequence` counts the frames of one link (source rank to destination rank) from 0 without a
    gap; `at_ns` is virtual time in nanoseconds; `request` pairs a question with its answer.
    """

    kind: int
    run: int
    sequence: int
    at_ns: int
    attempt: int
    source_actor: int
    destination_actor: int
    source_rank: int
    destination_rank: int
    nr_records: int
    words: int
    request: int


class Frame:
    """A received frame: its header and its bytes; records are viewed, never copied.

    Parameters
    ----------
    header : Header
        The decoded header.
    body : bytes
        The whole frame, header included.
    """

    __slots__ = ("body", "header")

    def __init__(self, header: Header, body: bytes) -> None:
        self.header = header
        self.body = body

    def __repr__(self) -> str:
        return f"Frame({self.header!r})"

    @property
    def records(self) -> U64Array:
        """The records, uint64[count, words], read-only, a view of the received bytes."""
        flat = np.frombuffer(self.body, U64_DTYPE, offset=HEADER.size)
        return flat.reshape(self.header.nr_records, self.header.words)

    def record(self) -> tuple[int, ...]:
        """Return all words of the frame as Python integers; the fast way for a frame of one record."""
        return _words(self.header.nr_records * self.header.words).unpack_from(self.body, HEADER.size)

    def head(self, nr_words: int) -> tuple[int, ...]:
        """Return the first words of the frame, which must have as many, as Python integers."""
        return _words(nr_words).unpack_from(self.body, HEADER.size)

    def tail(self, nr_words: int) -> bytes:
        """Return what follows the first words of the frame, as it came."""
        return self.body[HEADER.size + nr_words * WORD_BYTES :]


_STRUCTS: dict[int, struct.Struct] = {}


def _words(nr_words: int) -> struct.Struct:
    if nr_words > 64:
        return struct.Struct(f"<{nr_words}Q")
    found = _STRUCTS.get(nr_words)
    if found is None:
        found = _STRUCTS[nr_words] = struct.Struct(f"<{nr_words}Q")
    return found


def pack_records(records: U64Array) -> memoryview:
    """Return uint64[count, words] as a frame carries it: a view where the array's layout allows."""
    if records.dtype != U64_DTYPE or records.ndim != 2:
        raise LocalProtocolError(f"records must be uint64[count, words], not {records.dtype}{records.shape}")
    return records.data if records.flags.c_contiguous else np.ascontiguousarray(records).data


def encode(header: Header, records: U64Array) -> bytes:
    """Return one frame as bytes.

    Parameters
    ----------
    header : Header
        `nr_records` and `words` must be the shape of `records`.
    records : uint64[count, words]
        The payload.

    Raises
    ------
    LocalProtocolError
        If header and records disagree, the kind's record size is another, or the frame is too long.
    """
    shape = (header.nr_records, header.words)
    if records.shape != shape:
        raise LocalProtocolError(f"header says {shape}, records are {records.shape}")
    due, fault = _shape_fault(header.kind, *shape)
    if fault:
        raise LocalProtocolError(fault)
    frame = b"".join((HEADER.pack(MAGIC, VERSION, *header), pack_records(records)))
    assert len(frame) == due
    return frame


def encode_record(header: Header, record: tuple[int, ...], tail: bytes) -> bytes:
    """Return a frame of one record: words as Python integers, then words as they lie in memory."""
    kind, words = header.kind, header.words
    due, fault = _shape_fault(kind, 1, words)
    frame = b"".join((_PREFIX, _record_struct(len(record)).pack(*header, *record), tail))
    if fault or len(frame) != due:
        raise LocalProtocolError(fault or f"frame of {len(frame)} bytes, but its header says {due}")
    return frame


_RECORD_STRUCTS: dict[int, struct.Struct] = {}


def _record_struct(nr_words: int) -> struct.Struct:
    """Return the struct of a header without its prefix and the first words of a record."""
    found = _RECORD_STRUCTS.get(nr_words)
    if found is None:
        found = _RECORD_STRUCTS[nr_words] = struct.Struct(f"<HQQQIIIHHIIQ{nr_words}Q")
    return found


def decode(body: bytes) -> Frame:
    """Return the frame in `body`.

    Raises
    ------
    RemoteProtocolError
        If `body` is not exactly one well-formed frame; says what was found and what was due.
    """
    if len(body) < HEADER.size:
        raise RemoteProtocolError(f"frame of {len(body)} bytes is shorter than its header of {HEADER.size}")
    if not body.startswith(_PREFIX):
        raise RemoteProtocolError(_prefix_fault(body))
    header = Header._make(_FIELDS.unpack_from(body))
    due, fault = _shape_fault(header.kind, header.nr_records, header.words)
    if fault:
        raise RemoteProtocolError(fault)
    if len(body) != due:
        raise RemoteProtocolError(
            f"frame of {len(body)} bytes, but {header.nr_records} records of {header.words} words make {due}"
        )
    return Frame(header, body)


def _prefix_fault(body: bytes) -> str:
    magic, version = struct.unpack_from("<4sH", body)
    if magic != MAGIC:
        return f"bad magic {magic!r}, expected {MAGIC!r}"
    return f"protocol version {version}, expected {VERSION}"


def _shape_fault(kind: int, count: int, words: int) -> tuple[int, str]:
    """Return the frame's length in bytes, and what is wrong with its kind and shape, or ''."""
    due = HEADER.size + count * words * WORD_BYTES
    if kind not in KINDS:
        return due, f"unknown kind {kind:#x}"
    fixed = FIXED_WORDS.get(kind)
    if fixed is not None and words != fixed:
        return due, f"{KINDS[kind].name} record of {words} words, expected {fixed}"
    if words < LEAST_WORDS.get(kind, 0):
        return due, f"{KINDS[kind].name} record of {words} words, expected at least {LEAST_WORDS[kind]}"
    if words == 0 and count != 0:
        return due, f"{count} records of no words"
    if due > MAX_FRAME_BYTES:
        return due, f"frame of {due} bytes exceeds the limit of {MAX_FRAME_BYTES}"
    return due, ""


def routing_id(run: int, attempt: int, rank: int) -> bytes:
    """Return the ZeroMQ routing id under which `rank` speaks in this attempt of this run."""
    return ROUTING_ID.pack(MAGIC, VERSION, rank, run, attempt)


def parse_routing_id(identity: bytes) -> tuple[int, int, int] | None:
    """Return (run, attempt, rank) of a routing id, or None if it is not one of ours."""
    if len(identity) != ROUTING_ID.size:
        return None
    magic, version, rank, run, attempt = ROUTING_ID.unpack(identity)
    return (run, attempt, rank) if (magic, version) == (MAGIC, VERSION) else None


def pack_bytes(data: bytes) -> U64Array:
    """Return `data` as uint64[n, 1]: a word with its length in bytes, then its bytes padded by zeros."""
    padded = len(data).to_bytes(WORD_BYTES, "little") + data + bytes(-len(data) % WORD_BYTES)
    return np.frombuffer(padded, U64_DTYPE).reshape(-1, 1)


def unpack_bytes(records: U64Array) -> bytes:
    """Return what `pack_bytes` was given.

    Raises
    ------
    RemoteProtocolError
        If the length does not fit the words or the padding is not zero.
    """
    flat = records.reshape(-1)
    length = int(flat[0]) if flat.size else -1
    if not 0 <= length <= (flat.size - 1) * WORD_BYTES or flat.size - 1 != -(-length // WORD_BYTES):
        raise RemoteProtocolError(f"{length} bytes in a payload of {flat.size} words")
    raw = flat[1:].tobytes()
    if any(raw[length:]):
        raise RemoteProtocolError("padding is not zero")
    return raw[:length]


def pack_rows(arena: U64Array, slices: Iterable[tuple[int, int]]) -> U64Array:
    """Return slices of an arena as the records of a ROWS frame, uint64[n, 1].

    Parameters
    ----------
    arena : uint64[n]
        All state of a process.
    slices : iterable of (offset, length)
        In words; each becomes a word `offset`, a word `length` and `length` words of the arena.
    """
    parts: list[U64Array] = []
    for offset, length in slices:
        if not 0 <= offset <= offset + length <= arena.size:
            raise LocalProtocolError(f"slice {offset}+{length} is outside an arena of {arena.size} words")
        parts += [np.array([offset, length], np.uint64), arena[offset : offset + length]]
    flat = np.concatenate(parts) if parts else np.empty(0, np.uint64)
    return flat.reshape(-1, 1)


def iter_rows(records: U64Array, arena_words: int) -> Iterator[tuple[int, U64Array]]:
    """Yield (offset, uint64[length]) for each slice of a ROWS frame.

    Raises
    ------
    RemoteProtocolError
        If a slice is cut short or lies outside an arena of `arena_words` words.
    """
    flat = records.reshape(-1)
    position = 0
    while position < flat.size:
        if position + 2 > flat.size:
            raise RemoteProtocolError("ROWS end inside a slice's header")
        offset, length = int(flat[position]), int(flat[position + 1])
        position += 2
        if position + length > flat.size:
            raise RemoteProtocolError(f"ROWS slice of {length} words, {flat.size - position} are left")
        if offset + length > arena_words:
            raise RemoteProtocolError(
                f"ROWS slice {offset}+{length} is outside an arena of {arena_words} words"
            )
        yield offset, flat[position : position + length]
        position += length


def install_rows(arena: U64Array, records: U64Array) -> None:
    """Copy the slices of a ROWS frame to their offsets in `arena`; a bad frame changes nothing."""
    for offset, words in list(iter_rows(records, arena.size)):
        arena[offset : offset + words.size] = words
