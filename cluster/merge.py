"""One arena from what several processes have: every row from its owner, and sums of what all count."""

from __future__ import annotations

import numpy as np

from vpmu.actors.machine import Machine
from vpmu.cluster.proto import U64Array
from vpmu.kernels.jit import Arena
from vpmu.kernels.log import RECORD_WORDS


class Merge:
    """The state of a whole run in the making.

    Parameters
    ----------
    machine : Machine
        As built; it is not changed, and words that nobody owns are as they are there.
    arena : uint64[n], optional
        Where rows are, or will be; a copy of the machine's if not given.
    """

    def __init__(self, machine: Machine, arena: Arena | None = None) -> None:
        self._machine = machine
        self._arena = machine.arena.copy() if arena is None else arena
        self._owned = np.zeros(self._arena.size, dtype=np.bool_)
        region = machine.regions["action"]
        self._stats = np.zeros((region.rows, region.columns), dtype=np.uint64)
        self._accesses = 0

    def claim(self, offset: int, length: int) -> Arena:
        """Return rows, ``uint64[length]``, for their owner to fill; ValueError if they have one."""
        whose = self._owned[offset : offset + length]
        if whose.size != length:
            raise ValueError(f"there are no rows at {offset}")
        if whose.any():
            raise ValueError(f"the rows at {offset} are another's")
        whose[:] = True
        return self._arena[offset : offset + length]

    def add(self, actions: U64Array, accesses: int) -> None:
        """Add a process's action histograms, flat, and accesses; ValueError if these are none."""
        add_actions(self._stats, actions.reshape(self._stats.shape))
        self._accesses += accesses

    def finish(self) -> Arena:
        """Return the arena; nothing in it says any more where a host was advanced."""
        from vpmu.kernels.columns import H_REMOTE, R_ACCESSES

        region = self._machine.regions["action"]
        self._arena[region.base : region.base + self._stats.size] = self._stats.reshape(-1)
        self._arena[R_ACCESSES] = self._accesses
        for host in self._machine.hosts:
            self._arena[host.offset + int(H_REMOTE)] = 0
        return self._arena


def add_actions(total: U64Array, more: U64Array) -> None:
    """Add action histograms, ``uint64[actions, ACTION_COLUMNS]``: all columns are sums, but the maximum."""
    from vpmu.kernels.stats import A_MAX

    column = int(A_MAX)
    largest = np.maximum(total[:, column], more[:, column])
    total += more
    total[:, column] = largest


def sort_records(records: U64Array) -> U64Array:
    """Return records, ``uint64[n, 8]``, in the order of time, actor and sequence."""
    order = np.lexsort((records[:, 3], records[:, 2], records[:, 1]))
    return records[order]


class InOrder:
    """Holds records back until nothing earlier can come; they leave in the order of `sort_records`."""

    def __init__(self) -> None:
        self._held: list[U64Array] = []

    def add(self, records: U64Array) -> None:
        """Take records, ``uint64[n, 8]``; the array may be overwritten afterwards."""
        if len(records):
            self._held.append(records.copy())

    def before(self, at_ns: int | None = None) -> U64Array:
        """Return all records before a time, or all that are left, in order."""
        if not self._held:
            return np.empty((0, RECORD_WORDS), np.uint64)
        held = np.concatenate(self._held)
        ready = np.ones(len(held), dtype=np.bool_) if at_ns is None else held[:, 1] < np.uint64(at_ns)
        self._held = [held[~ready]]
        return sort_records(held[ready])
