"""The features of a ``perf.data`` file: what ``perf report --header`` shows, names of events, build-ids."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from vpmu.perfdata.layout import MISC_KERNEL, MISC_USER, plain_bytes

BUILD_ID: Final = 2
HOSTNAME: Final = 3
OSRELEASE: Final = 4
VERSION: Final = 5
ARCH: Final = 6
NRCPUS: Final = 7
CPUDESC: Final = 8
CPUID: Final = 9
CMDLINE: Final = 11
EVENT_DESC: Final = 12
STAT: Final = 19
SAMPLE_TIME: Final = 21

PERF_VERSION: Final = "6.1"
"""The perf whose formats these are."""

_ALIGN: Final = 64
_BUILD_ID_SIZE: Final = 1 << 15
"""PERF_RECORD_MISC_BUILD_ID_SIZE: the entry says how long its build-id is."""


@dataclass(frozen=True, slots=True)
class System:
    """Whose perf it is: what the features say of the guest and its CPU."""

    hostname: str
    release: str
    cpus: int
    cpu_model: str
    cpu_id: str


def string(text: str) -> bytes:
    """Return a string as features hold it: its length with padding, then the text, NUL and padding."""
    raw = plain_bytes(text) + b"\0"
    padded = raw.ljust(-(-len(raw) // _ALIGN) * _ALIGN, b"\0")
    return struct.pack("<I", len(padded)) + padded


def system_features(system: System, command: Sequence[str]) -> dict[int, bytes]:
    """Return the features that name guest, CPU and command line."""
    return {
        HOSTNAME: string(system.hostname),
        OSRELEASE: string(system.release),
        VERSION: string(PERF_VERSION),
        ARCH: string("x86_64"),
        NRCPUS: struct.pack("<II", system.cpus, system.cpus),
        CPUDESC: string(system.cpu_model),
        CPUID: string(system.cpu_id),
        CMDLINE: struct.pack("<I", len(command)) + b"".join(string(word) for word in command),
    }


def event_desc(attrs: Sequence[bytes], names: Sequence[str], ids: Sequence[Sequence[int]]) -> bytes:
    """Return EVENT_DESC: each event's attr, name and ids."""
    body = struct.pack("<II", len(attrs), len(attrs[0]))
    for attr, name, numbers in zip(attrs, names, ids, strict=True):
        body += attr + struct.pack("<I", len(numbers)) + string(name)
        body += struct.pack(f"<{len(numbers)}Q", *numbers)
    return body


def build_ids(images: Iterable[tuple[str, bytes, bool]]) -> bytes:
    """Return BUILD_ID of images: file name in the guest, build-id, and whether it is the kernel's."""
    body = b""
    for name, build_id, is_kernel in images:
        raw = plain_bytes(name) + b"\0"
        padded = raw.ljust(-(-len(raw) // _ALIGN) * _ALIGN, b"\0")
        misc = (MISC_KERNEL if is_kernel else MISC_USER) | _BUILD_ID_SIZE
        identity = build_id.ljust(20, b"\0") + bytes([len(build_id)]) + bytes(3)
        size = 8 + 4 + len(identity) + len(padded)
        body += struct.pack("<IHHi", 0, misc, size, -1 if is_kernel else 0) + identity + padded
    return body


def sample_time(first_ns: int, last_ns: int) -> bytes:
    """Return SAMPLE_TIME: when the first and the last sample were taken, ns."""
    return struct.pack("<QQ", first_ns, last_ns)
