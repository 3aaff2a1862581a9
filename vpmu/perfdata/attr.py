"""Events as perf opens them: ``perf_event_attr`` of a session's events.

Names that perf has for its generic events become those (type HARDWARE or HW_CACHE); all others are raw.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Final

from vpmu.perfdata.layout import ATTR_BYTES

if TYPE_CHECKING:
    from vpmu.kernels.events import EventSpec

TYPE_HARDWARE: Final = 0
TYPE_HW_CACHE: Final = 3
TYPE_RAW: Final = 4

HARDWARE: Final = {
    "cpu-cycles": 0,
    "cycles": 0,
    "instructions": 1,
    "cache-references": 2,
    "cache-misses": 3,
    "branches": 4,
    "branch-instructions": 4,
    "branch-misses": 5,
    "bus-cycles": 6,
    "ref-cycles": 9,
}
_CACHES: Final = {
    "L1-dcache": 0, "L1-icache": 1, "LLC": 2, "dTLB": 3, "iTLB": 4, "branch": 5, "node": 6,
}  # fmt: skip
_ACCESSES: Final = {"load": 0, "store": 1}
HW_CACHE: Final = {
    name: _CACHES[cache] | _ACCESSES[access] << 8 | miss << 16
    for cache, access in product(_CACHES, _ACCESSES)
    for miss, name in enumerate((f"{cache}-{access}s", f"{cache}-{access}-misses"))
}

SAMPLE_IP: Final = 1 << 0
SAMPLE_TID: Final = 1 << 1
SAMPLE_TIME: Final = 1 << 2
SAMPLE_CALLCHAIN: Final = 1 << 5
SAMPLE_CPU: Final = 1 << 7
SAMPLE_PERIOD: Final = 1 << 8
SAMPLE_IDENTIFIER: Final = 1 << 16

_DISABLED, _INHERIT, _EXCLUDE_USER, _EXCLUDE_KERNEL, _EXCLUDE_HV = 0, 1, 4, 5, 6
_MMAP, _COMM, _FREQ, _ENABLE_ON_EXEC, _TASK = 8, 9, 10, 12, 13
_SAMPLE_ID_ALL, _EXCLUDE_GUEST, _MMAP2, _COMM_EXEC = 18, 20, 23, 24
_TOTAL_TIMES: Final = 3
"""PERF_FORMAT_TOTAL_TIME_ENABLED and _RUNNING."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How ``perf record`` samples: at a frequency in Hz, or every so many events; and what a sample holds."""

    sample_type: int
    frequency: int = 0
    period: int = 0


def event_code(name: str, config: int) -> tuple[int, int]:
    """Return type and config of an event: perf's generic one if the name, without modifiers, is one's."""
    plain = name.partition(":")[0]
    if plain in HARDWARE:
        return TYPE_HARDWARE, HARDWARE[plain]
    if plain in HW_CACHE:
        return TYPE_HW_CACHE, HW_CACHE[plain]
    return TYPE_RAW, config


def encode_attr(
    spec: EventSpec, *, user_only: bool, of_task: bool, first: bool, sampling: Sampling | None
) -> bytes:
    """Return an event's ``perf_event_attr``.

    Parameters
    ----------
    spec : EventSpec
        The event.
    user_only : bool
        ``--all-user``.
    of_task : bool
        It follows a program that perf starts, and its children; else it is a CPU's.
    first : bool
        The session's first event also notes mmaps, comms and tasks.
    sampling : Sampling or None
        None for ``perf stat``.
    """
    kind, config = event_code(spec.name, spec.config)
    flags = {_DISABLED, _INHERIT, _EXCLUDE_GUEST}
    flags |= {_EXCLUDE_USER, _EXCLUDE_HV} if spec.exclude_user else set()
    flags |= {_EXCLUDE_KERNEL, _EXCLUDE_HV} if spec.exclude_kernel or user_only else set()
    flags |= {_ENABLE_ON_EXEC} if of_task else set()
    rate, sample_type, read_format = 0, SAMPLE_IDENTIFIER, _TOTAL_TIMES
    if sampling is not None:
        flags |= {_SAMPLE_ID_ALL}
        flags |= {_FREQ} if sampling.frequency else set()
        flags |= {_MMAP, _COMM, _TASK, _MMAP2, _COMM_EXEC} if first else set()
        rate, sample_type, read_format = sampling.frequency or sampling.period, sampling.sample_type, 0
    bits = sum(1 << flag for flag in flags)
    head = struct.pack("<IIQQQQQ", kind, ATTR_BYTES, config, rate, sample_type, read_format, bits)
    return head.ljust(ATTR_BYTES, b"\0")
