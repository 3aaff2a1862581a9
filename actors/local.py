"""A machine run in one process: the kernels advance it, the log is drained, nobody else is asked."""

from collections.abc import Callable, Iterator

import numpy as np

from vpmu.actors.fleet import Fleet
from vpmu.actors.machine import Machine
from vpmu.kernels.advance import advance
from vpmu.kernels.columns import G_ACCESSED_AT, P_NOW, R_LOG_COUNT, V_COMPLETE, V_GUEST, V_REASON
from vpmu.kernels.engine import STOP_GUEST, STOP_LOG, STOP_WINDOW
from vpmu.kernels.guest.step import GUEST_ACCESS
from vpmu.kernels.jit import U64, Arena
from vpmu.kernels.log import RECORD_WORDS

STEPS = 1_000_000
"""Engine steps of one kernel call: about 0.1 s of work."""

OnRecords = Callable[[Arena], None]
"""Takes records, ``uint64[n, RECORD_WORDS]``, a view that the next kernel call overwrites."""


def drain_log(machine: Machine) -> Arena:
    """Return the records since the last call, ``uint64[n, RECORD_WORDS]``, a view, and make room for more."""
    count = int(machine.arena[R_LOG_COUNT])
    machine.arena[R_LOG_COUNT] = U64(0)
    return machine.log[: count * RECORD_WORDS].reshape(count, RECORD_WORDS)


def steps(machine: Machine, until_ns: int | None = None) -> Iterator[Arena]:
    """Advance a machine to its end, or to ``until_ns`` before it, a budget at a time; yield each's records.

    The caller gets its turn about every tenth of a second and may stop for good at any yield.
    """
    end = machine.until_ns if until_ns is None else min(until_ns, machine.until_ns)
    fleet = Fleet(machine)
    while True:
        window = min(end, fleet.next_ns)
        stop = advance(machine.arena, machine.log, np.uint64(window), U64(STEPS))
        yield drain_log(machine)
        if stop == STOP_GUEST:
            raise RuntimeError("a guest decides outside the kernels, and nobody asks it (actors/outside.py)")
        if stop == STOP_WINDOW:
            if window == end:
                return
            fleet.turn(window)
            continue
        assert stop == STOP_LOG or machine.arena[R_LOG_COUNT] == 0


def run_machine(machine: Machine, on_records: OnRecords | None = None, until_ns: int | None = None) -> None:
    """Advance a machine to its end, or to ``until_ns``, in the calling thread."""
    for records in steps(machine, until_ns):
        if on_records is not None and len(records):
            on_records(records)


def clock_ns(machine: Machine) -> int:
    """Return how far the slowest physical CPU has come."""
    region = machine.regions["pcpu"]
    return int(machine.table("pcpu")[:, int(P_NOW)].min()) if region.rows else machine.until_ns


def settled_ns(machine: Machine) -> int:
    """Return the time before which no record can come any more.

    An access is recorded when its guest goes on, at the time when it began.
    """
    s, vcpus = machine.arena, machine.table("vcpu")
    under_way = (vcpus[:, int(V_COMPLETE)] != 0) | (vcpus[:, int(V_REASON)] == GUEST_ACCESS)
    guests = vcpus[under_way, int(V_GUEST)].astype(np.intp)
    began = s[guests + int(G_ACCESSED_AT)]
    return min(clock_ns(machine), int(began.min())) if began.size else clock_ns(machine)
