"""Puts the records of several vCPUs in order: each vCPU's are kept in a file, and merged when all are there.

A run advances one physical CPU after the other, so that what one vCPU did may come long after what another
did later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vpmu.errors import UserError
from vpmu.perfdata.layout import Words

_RECORD_WORDS = 8
_RECORD_BYTES = 64
_TIME, _SEQUENCE = 1, 3


class Spool:
    """One vCPU's records, ``uint64[n, 8]``, in the order of time; a file in the making."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = 0

    def append(self, records: Words) -> None:
        """Add records behind those that are there."""
        try:
            with self.path.open("ab") as file:
                file.write(np.ascontiguousarray(records).data)
        except OSError as error:
            raise UserError(f"cannot write: {error.strerror or error}", file=str(self.path)) from None
        self.records += len(records)

    def read(self, first: int, count: int) -> Words:
        """Return up to ``count`` records from ``first`` on."""
        count = min(count, self.records - first)
        if count <= 0:
            return np.empty((0, _RECORD_WORDS), dtype=np.uint64)
        words = np.fromfile(
            self.path, dtype=np.uint64, count=count * _RECORD_WORDS, offset=first * _RECORD_BYTES
        )
        return words.reshape(-1, _RECORD_WORDS)

    def discard(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


def merged(spools: Sequence[Spool], chunk: int) -> Iterator[tuple[Words, Words]]:
    """Yield records of all spools by time, then vCPU, then sequence; with each its spool's index.

    Parameters
    ----------
    spools : sequence of Spool
    chunk : int
        Records of one spool that are in memory at once.
    """
    at = [0] * len(spools)
    heads = [spool.read(0, chunk) for spool in spools]
    while any(len(head) for head in heads):
        # Beyond the last record of a head there may be earlier ones than in other heads.
        ends = [
            head[-1, _TIME]
            for spool, head, first in zip(spools, heads, at, strict=True)
            if first + len(head) < spool.records
        ]
        takes = [
            len(head) if not ends else int(np.searchsorted(head[:, _TIME], min(ends), side="right"))
            for head in heads
        ]
        records = np.concatenate([head[:take] for head, take in zip(heads, takes, strict=True)])
        cpus = np.repeat(np.arange(len(spools), dtype=np.uint64), takes)
        order = np.lexsort((records[:, _SEQUENCE], cpus, records[:, _TIME]))
        yield records[order], cpus[order]
        for index, take in enumerate(takes):
            at[index] += take
            heads[index] = spools[index].read(at[index], chunk)
