"""Reads perf.data and ELF files for the tests; it shares nothing with what writes them."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SAMPLE, THROTTLE, UNTHROTTLE, FORK, EXIT, COMM, MMAP, MMAP2, LOST = 9, 5, 6, 7, 4, 3, 1, 10, 2
FINISHED_ROUND = 68
NAMES = {
    SAMPLE: "sample", THROTTLE: "throttle", UNTHROTTLE: "unthrottle", FORK: "fork", EXIT: "exit",
    COMM: "comm", MMAP: "mmap", MMAP2: "mmap2", LOST: "lost", FINISHED_ROUND: "round",
}  # fmt: skip


@dataclass
class Attr:
    """An event of a file."""

    kind: int
    config: int
    rate: int
    sample_type: int
    flags: int
    ids: tuple[int, ...]


@dataclass
class PerfData:
    """A whole file."""

    attrs: list[Attr]
    records: list[dict[str, Any]]
    features: dict[int, bytes] = field(default_factory=dict)

    def of(self, *names: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["name"] in names]


def read_perf_data(path: Path) -> PerfData:
    """Read a file; every byte of its data belongs to a record."""
    data = path.read_bytes()
    magic, size, attr_size = struct.unpack_from("<8sQQ", data)
    assert (magic, size, attr_size) == (b"PERFILE2", 104, 144)
    attrs_at, attrs_size, data_at, data_size, events_at, events_size = struct.unpack_from("<6Q", data, 24)
    assert (events_at, events_size) == (0, 0)
    attrs = []
    for at in range(attrs_at, attrs_at + attrs_size, 144):
        kind, own_size, config, rate, sample_type, _, flags = struct.unpack_from("<II5Q", data, at)
        ids_at, ids_size = struct.unpack_from("<QQ", data, at + 128)
        assert own_size == 128
        ids = struct.unpack_from(f"<{ids_size // 8}Q", data, ids_at)
        attrs.append(Attr(kind, config, rate, sample_type, flags, ids))
    bits = int.from_bytes(data[72:104], "little")
    features = {}
    for index, number in enumerate(bit for bit in range(256) if bits >> bit & 1):
        at, length = struct.unpack_from("<QQ", data, data_at + data_size + 16 * index)
        assert at + length <= len(data)
        features[number] = data[at : at + length]
    body = data[data_at : data_at + data_size]
    return PerfData(attrs, list(_records(body, attrs[0].sample_type)), features)


def _records(body: bytes, sample_type: int) -> Iterator[dict[str, Any]]:
    at = 0
    while at < len(body):
        kind, misc, size = struct.unpack_from("<IHH", body, at)
        assert size >= 8
        assert size % 8 == 0
        found: dict[str, Any] = {"name": NAMES[kind], "misc": misc, "size": size}
        payload = body[at + 8 : at + size]
        if kind == SAMPLE:
            found |= _sample(payload, sample_type)
        elif kind != FINISHED_ROUND:
            found |= _other(kind, payload, sample_type)
        yield found
        at += size
    assert at == len(body)


def _sample(payload: bytes, sample_type: int) -> dict[str, Any]:
    words = list(struct.unpack(f"<{len(payload) // 8}Q", payload))
    found: dict[str, Any] = {}
    if sample_type & 1 << 16:
        found["id"] = words.pop(0)
    found["ip"] = words.pop(0)
    task = words.pop(0)
    found |= {"pid": task & 0xFFFFFFFF, "tid": task >> 32}
    found["time"] = words.pop(0)
    found["cpu"] = words.pop(0)
    found["period"] = words.pop(0)
    if sample_type & 1 << 5:
        assert words.pop(0) == len(words)
        found["chain"] = words
    else:
        assert words == []
    return found


def _other(kind: int, payload: bytes, sample_type: int) -> dict[str, Any]:
    trailer = 32 if sample_type & 1 << 16 else 24
    body, tail = payload[:-trailer], payload[-trailer:]
    pid, tid, time, cpu = struct.unpack_from("<IIQQ", tail)
    found: dict[str, Any] = {"pid": pid, "tid": tid, "time": time, "cpu": cpu}
    if trailer == 32:
        (found["id"],) = struct.unpack_from("<Q", tail, 24)
    if kind in (FORK, EXIT):
        own = ("pid", "ppid", "tid", "ptid", "own_time")
        found |= dict(zip(own, struct.unpack("<IIIIQ", body), strict=True))
    elif kind in (THROTTLE, UNTHROTTLE):
        found |= dict(zip(("own_time", "event", "stream"), struct.unpack("<QQQ", body), strict=True))
    elif kind == LOST:
        found |= dict(zip(("event", "lost"), struct.unpack("<QQ", body), strict=True))
    elif kind == COMM:
        found["comm"] = body[8:].rstrip(b"\0").decode()
    else:
        names = ("address", "length", "offset")
        found |= dict(zip(names, struct.unpack_from("<QQQ", body, 8), strict=True))
        found["file"] = body[64 if kind == MMAP2 else 32 :].rstrip(b"\0").decode()
    return found


@dataclass
class Elf:
    """What perf needs of an ELF file: functions by file offset, and the build-id."""

    symbols: dict[str, tuple[int, int]]
    build_id: bytes


def read_elf(path: Path) -> Elf:
    """Read an ELF file's functions, each with its offset in the file and its size, and its build-id."""
    data = path.read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01"
    (sections_at,) = struct.unpack_from("<Q", data, 40)
    size, count, names_index = struct.unpack_from("<HHH", data, 58)
    assert size == 64
    headers = [struct.unpack_from("<IIQQQQIIQQ", data, sections_at + 64 * i) for i in range(count)]
    names_at = headers[names_index][4]
    by_name = {_text(data, names_at + header[0]): header for header in headers}
    note, table = by_name[".note.gnu.build-id"], by_name[".symtab"]
    assert struct.unpack_from("<III4s", data, note[4]) == (4, 20, 3, b"GNU\0")
    symbols = {}
    strings_at = headers[table[6]][4]
    for at in range(table[4] + 24, table[4] + table[5], 24):
        name, info, _, section, value, length = struct.unpack_from("<IBBHQQ", data, at)
        assert info & 0xF == 2
        home = headers[section]
        assert home[3] <= value < value + length <= home[3] + home[5]
        symbols[_text(data, strings_at + name)] = (value - home[3] + home[4], length)
    return Elf(symbols, data[note[4] + 16 : note[4] + 36])


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()
