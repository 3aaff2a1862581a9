"""From a run's records to perf's: samples, throttles and exits as rows of words, whole batches at a time.

Rows of all kinds lie in one matrix, as wide as the widest, and are cut to their lengths at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from vpmu.kernels.log import RECORD_EXIT, RECORD_SAMPLE
from vpmu.perfdata.attr import (
    SAMPLE_CALLCHAIN,
    SAMPLE_CPU,
    SAMPLE_IDENTIFIER,
    SAMPLE_IP,
    SAMPLE_PERIOD,
    SAMPLE_TID,
    SAMPLE_TIME,
)
from vpmu.perfdata.layout import (
    MISC_KERNEL,
    MISC_USER,
    RECORD_LOST,
    RECORD_UNTHROTTLE,
    Words,
)
from vpmu.perfdata.layout import RECORD_EXIT as PERF_EXIT
from vpmu.perfdata.layout import RECORD_SAMPLE as PERF_SAMPLE
from vpmu.perfdata.records import INIT_PID

LOST: Final = np.uint64(9)
"""Kind of a record that says how many samples found no room (word 5; word 4: E_OWNER; word 6: TH_ID).

Note that no kernel writes it: a guest's ring buffer is never full in the model.
"""

_CONTEXT_KERNEL: Final = np.uint64(2**64 - 128)
_CONTEXT_USER: Final = np.uint64(2**64 - 512)
_KIND: Final = np.uint64(0xFF)
_U8, _U16, _U32, _U48 = (np.uint64(shift) for shift in (8, 16, 32, 48))
_HALF: Final = np.uint64(0xFFFF)
_WHOLE: Final = np.uint64(0xFFFFFFFF)


@dataclass(frozen=True)
class Tables:
    """What the numbers in a run's records mean to a session's file.

    Attributes
    ----------
    tasks : uint64[cpus, threads + 1]
        pid | tid << 32 of each vCPU's threads by TH_ID; 0 is the idle task.
    cpus : uint64[cpus]
        Number of each vCPU in its VM.
    ids : uint64[events, cpus]
        Each event's ids.
    chain_of : uint64[cpus, threads + 1]
        Where the chains of a thread's program begin in `callers`.
    callers : uint64[chains, longest]
        Return addresses of each call chain, the innermost first.
    depths : uint64[chains]
        How many of them there are.
    """

    tasks: Words
    cpus: Words
    ids: Words
    chain_of: Words
    callers: Words
    depths: Words

    @property
    def has_chains(self) -> bool:
        """Whether samples have call chains: some function is called by another."""
        return bool(self.callers.shape[1] > 0)

    @property
    def has_ids(self) -> bool:
        """Whether records say which event they are of."""
        return bool(self.ids.shape[0] > 1)

    @property
    def sample_type(self) -> int:
        """What a sample holds, as ``perf_event_attr`` says it."""
        bits = SAMPLE_IP | SAMPLE_TID | SAMPLE_TIME | SAMPLE_CPU | SAMPLE_PERIOD
        bits |= SAMPLE_CALLCHAIN if self.has_chains else 0
        return bits | (SAMPLE_IDENTIFIER if self.has_ids else 0)


def caller_tables(
    programs: Mapping[str, Sequence[Sequence[int]]],
) -> tuple[dict[str, int], Words, Words]:
    """Return where each program's chains begin, and the tables `callers` and `depths` of `Tables`.

    Parameters
    ----------
    programs : mapping of str to chains
        Each chain's return addresses, the innermost first.
    """
    first: dict[str, int] = {}
    chains: list[Sequence[int]] = []
    for name, its in programs.items():
        first[name] = len(chains)
        chains += its
    longest = max((len(chain) for chain in chains), default=0)
    callers = np.zeros((max(len(chains), 1), longest), dtype=np.uint64)
    for row, chain in zip(callers, chains, strict=False):
        row[: len(chain)] = chain
    depths = np.array([len(chain) for chain in chains] or [0], dtype=np.uint64)
    return first, callers, depths


def encode(records: Words, cpus: Words | int, tables: Tables) -> Words:
    """Return records as perf's, words of a file.

    Parameters
    ----------
    records : uint64[n, 8]
        Samples, throttles, exits and losses of one session, in order.
    cpus : uint64[n] or int
        Index of each record's vCPU in `tables`.
    tables : Tables
        What the numbers mean.

    Returns
    -------
    uint64[words]
    """
    is_sample = records[:, 0] & _KIND == RECORD_SAMPLE
    if is_sample.all():
        return _cut(*_samples(records, cpus, tables))
    where = np.broadcast_to(np.asarray(cpus, dtype=np.uint64), len(records))
    parts = [
        (chosen, *encoder(records[chosen], where[chosen], tables))
        for chosen, encoder in ((np.flatnonzero(is_sample), _samples), (np.flatnonzero(~is_sample), _others))
    ]
    rows = np.zeros((len(records), max(part.shape[1] for _, part, _ in parts)), dtype=np.uint64)
    sizes = np.zeros(len(records), dtype=np.uint64)
    for chosen, part, size in parts:
        rows[chosen, : part.shape[1]] = part
        sizes[chosen] = size
    return _cut(rows, sizes)


def _samples(records: Words, cpus: Words | int, tables: Tables) -> tuple[Words, Words]:
    """Return samples (id, ip, thread, time, CPU, period, call chain), and the size of each in words."""
    extra = records[:, 7]
    user = (extra >> _U48) & _KIND != 0
    event = (extra >> _U16) & _KIND
    task = extra & _HALF
    fixed = 6 + int(tables.has_ids)
    deepest = 3 + tables.callers.shape[1] if tables.has_chains else 0
    rows = np.zeros((len(records), fixed + deepest), dtype=np.uint64)
    size = np.full(len(records), fixed, dtype=np.uint64)
    at = 1
    if tables.has_ids:
        rows[:, 1] = tables.ids[event, cpus]
        at = 2
    rows[:, at] = records[:, 4]
    rows[:, at + 1] = tables.tasks[cpus, task]
    rows[:, at + 2] = records[:, 1]
    rows[:, at + 3] = tables.cpus[cpus]
    rows[:, at + 4] = records[:, 5]
    if tables.has_chains:
        chain = np.where(user, tables.chain_of[cpus, task] + (records[:, 6] >> _U32), 0)
        depth = np.where(user, tables.depths[chain], 0)
        rows[:, fixed] = depth + 2
        rows[:, fixed + 1] = np.where(user, _CONTEXT_USER, _CONTEXT_KERNEL)
        rows[:, fixed + 2] = records[:, 4]
        rows[:, fixed + 3 :] = tables.callers[chain]
        size += depth + 3
    misc = np.where(user, np.uint64(MISC_USER << 32), np.uint64(MISC_KERNEL << 32))
    rows[:, 0] = np.uint64(PERF_SAMPLE) | misc | (size << np.uint64(51))
    return rows, size


def _others(records: Words, cpus: Words | int, tables: Tables) -> tuple[Words, Words]:
    """Return THROTTLE, UNTHROTTLE, EXIT and LOST with their trailers, and the size of each in words."""
    head = records[:, 0]
    kinds = head & _KIND
    is_exit = kinds == RECORD_EXIT
    is_lost = kinds == LOST
    event = np.where(is_exit, 0, records[:, 4] & _KIND)
    number = np.where(is_exit, records[:, 4], np.where(is_lost, records[:, 6], records[:, 5]))
    task = tables.tasks[cpus, number]
    ids = tables.ids[event, cpus]
    rows = np.zeros((len(records), 8), dtype=np.uint64)
    size = np.where(is_lost, 6, 7).astype(np.uint64) + np.uint64(tables.has_ids)
    throttle = np.uint64(RECORD_UNTHROTTLE) - ((head >> _U16) & _KIND)
    kind = np.where(is_exit, np.uint64(PERF_EXIT), np.where(is_lost, np.uint64(RECORD_LOST), throttle))
    rows[:, 0] = kind | (size << np.uint64(51))
    parent = np.uint64(INIT_PID)
    pids = (task & _WHOLE) | (parent << _U32)
    tids = (task >> _U32) | (parent << _U32)
    rows[:, 1] = np.where(is_exit, pids, np.where(is_lost, ids, records[:, 1]))
    rows[:, 2] = np.where(is_exit, tids, np.where(is_lost, records[:, 5], ids))
    rows[:, 3] = np.where(is_exit, records[:, 1], ids)
    trailer = np.where(is_lost, 3, 4)
    for offset, words in enumerate((task, records[:, 1], tables.cpus[cpus], ids)):
        rows[np.arange(len(rows)), np.minimum(trailer + offset, 7)] = words
    return rows, size


def _cut(rows: Words, size: Words) -> Words:
    """Return the rows one after the other, each cut to its size."""
    if len(rows) and (size == size[0]).all():
        return rows[:, : int(size[0])].reshape(-1)
    return rows[np.arange(rows.shape[1], dtype=np.uint64) < size[:, None]]
