"""Observers: they follow a vCPU's accesses and PMIs, in order and complete, in batches."""

from __future__ import annotations

import math
from types import TracebackType
from typing import Self

import numpy as np
import trio

from vpmu.actors.actor import UnexpectedMessage
from vpmu.actors.machine import Machine, VcpuEntry
from vpmu.actors.messages import observer
from vpmu.kernels.columns import G_ID, R_KEEP
from vpmu.kernels.jit import U64, Arena
from vpmu.kernels.log import RECORD_ACCESS, RECORD_PMI

_KINDS = (int(RECORD_ACCESS), int(RECORD_PMI))
_KIND_BITS = U64(0xFF)


class Observer:
    """Follows one vCPU: owns the sending end of `batches`.

    Takes records of the log in any batches; those of a vCPU that moves between processes may come out of
    order: a later one is held back until those before it are there. Emits records of accesses and PMIs,
    ``uint64[n, 8]``, to whoever reads `batches`. It stops when it is closed, which ends `batches`.

    Parameters
    ----------
    machine : Machine
        Not yet run: its log is told to keep accesses and PMIs.
    entry : VcpuEntry
        The vCPU.
    """

    def __init__(self, machine: Machine, entry: VcpuEntry) -> None:
        self.address = observer(entry.index)
        machine.arena[R_KEEP] |= U64(sum(1 << kind for kind in _KINDS))
        self._actor = machine.arena[entry.guest + int(G_ID)]
        self._next = 1
        self._held: list[Arena] = []
        self._send, self.batches = trio.open_memory_channel[Arena](math.inf)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._send.close()

    def take(self, records: Arena) -> None:
        """Take records of a log, ``uint64[n, 8]``; those of other actors are left alone."""
        mine = records[records[:, 2] == self._actor]
        if len(mine) == 0:
            return
        mine = np.concatenate([*self._held, mine])
        mine = mine[np.argsort(mine[:, 3], kind="stable")]
        due = np.arange(self._next, self._next + len(mine), dtype=np.uint64)
        ready = int(np.argmin(np.append(mine[:, 3] == due, False)))
        self._held = [mine[ready:]] if ready < len(mine) else []
        self._next += ready
        wanted = mine[:ready][np.isin(mine[:ready, 0] & _KIND_BITS, _KINDS)]
        if len(wanted):
            self._send.send_nowait(wanted)

    def close(self) -> None:
        """End `batches`.

        Raises
        ------
        UnexpectedMessage
            If a record is missing.
        """
        self._send.close()
        if self._held:
            raise UnexpectedMessage(f"{self.address}: record {self._next} of the vCPU never came")
