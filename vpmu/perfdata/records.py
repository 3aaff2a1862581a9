"""What perf notes beside samples: mappings, names and forks, with the trailer of ``sample_id_all``."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from vpmu.perfdata.layout import (
    MISC_COMM_EXEC,
    MISC_KERNEL,
    MISC_USER,
    RECORD_COMM,
    RECORD_FORK,
    RECORD_MMAP,
    RECORD_MMAP2,
    plain_bytes,
    record,
)

INIT_PID: Final = 1
KERNEL_PID: Final = 0xFFFFFFFF
_PROT_READ_EXEC: Final = 5
_MAP_PRIVATE: Final = 2


@dataclass(frozen=True, slots=True)
class Stamp:
    """Who did something, when and where: a record's trailer; with several events also of which."""

    pid: int
    tid: int
    at_ns: int = 0
    cpu: int = 0
    event_id: int | None = None

    def encode(self) -> bytes:
        """Return the trailer: TID, TIME, CPU and, with several events, IDENTIFIER."""
        words = struct.pack("<IIQII", self.pid, self.tid, self.at_ns, self.cpu, 0)
        return words if self.event_id is None else words + struct.pack("<Q", self.event_id)


def _text(text: str) -> bytes:
    """Return a text as records hold it: padded with NULs, at least one, to whole words."""
    raw = plain_bytes(text) + b"\0"
    return raw + bytes(-len(raw) % 8)


def comm(stamp: Stamp, name: str, *, is_exec: bool) -> bytes:
    """Return COMM: a thread's name; ``is_exec`` if it has just executed its program."""
    misc = MISC_COMM_EXEC if is_exec else 0
    return record(RECORD_COMM, misc, struct.pack("<II", stamp.pid, stamp.tid) + _text(name) + stamp.encode())


def fork(stamp: Stamp, parent: int) -> bytes:
    """Return FORK: a thread begins, a process of its own if the parent's pid is another."""
    ptid = parent
    return record(
        RECORD_FORK,
        0,
        struct.pack("<IIIIQ", stamp.pid, parent, stamp.tid, ptid, stamp.at_ns) + stamp.encode(),
    )


def mmap2(stamp: Stamp, address: int, size: int, file_offset: int, inode: int, name: str) -> bytes:
    """Return MMAP2: a process has mapped an image's code."""
    body = struct.pack("<IIQQQ", stamp.pid, stamp.tid, address, size, file_offset)
    body += struct.pack("<IIQQII", 8, 1, inode, 0, _PROT_READ_EXEC, _MAP_PRIVATE)
    return record(RECORD_MMAP2, MISC_USER, body + _text(name) + stamp.encode())


def kernel_mmap(stamp: Stamp, address: int, size: int) -> bytes:
    """Return MMAP of the kernel's code: a mapping of nobody's, its offset its address."""
    body = struct.pack("<IIQQQ", KERNEL_PID, 0, address, size, address)
    return record(RECORD_MMAP, MISC_KERNEL, body + _text("[kernel.kallsyms]_text") + stamp.encode())
