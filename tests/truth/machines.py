"""Machines for the tests of truth: from a scenario's table to a run, and a look at what came out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vpmu.actors.local import drain_log, run_machine
from vpmu.actors.machine import Machine, SessionEntry, VcpuEntry
from vpmu.build import build
from vpmu.kernels import columns as col
from vpmu.kernels.advance import advance
from vpmu.kernels.engine import STOP_LOG, STOP_WINDOW
from vpmu.kernels.host.clock import CAUSE_NAMES
from vpmu.kernels.jit import U64, Arena
from vpmu.scenario import parse_scenario

Table = dict[str, Any]

SLOTS = col.SLOTS
RECORD_ACCESS = 1
"""Bit number in R_KEEP of access records."""

LOOPS: Table = {
    "name": "loops",
    "cycles": 3_000_000,
    "functions": [
        {"name": "hot", "share": 0.6, "ipc": 1.7, "branches": 0.19, "dtlb_load_misses": 0.0007},
        {
            "name": "cold",
            "share": 0.3,
            "ipc": 0.6,
            "branches": 0.11,
            "branch_misses": 0.02,
            "cache_misses": 0.003,
        },
        {"name": "tail", "share": 0.1, "ipc": 2.9, "branches": 0.31, "l1_dcache_loads": 0.4},
    ],
}
OTHER: Table = {
    "name": "other",
    "cycles": 1_000_000,
    "functions": [{"name": "only", "share": 1, "ipc": 1.1, "branches": 0.25, "dtlb_load_misses": 0.01}],
}


def scenario(**keys: Any) -> Table:
    """Return a scenario's table with both programs and, unless given, one host of one CPU and no noise."""
    table: Table = {"version": 1, "seed": 1, "until": "1 s", "program": [LOOPS, OTHER]}
    table["host"] = [{"name": "host", "noise": False}]
    return {**table, **keys}


def machine(table: Table, design: str, keep: int = 0) -> Machine:
    """Return the machine that runs a scenario's table under a design; ``keep`` is a set of record kinds."""
    built = build(parse_scenario(table), design)
    built.arena[col.R_KEEP] = U64(keep)
    return built


def run(table: Table, design: str) -> Machine:
    """Return the machine after a whole run."""
    made = machine(table, design)
    run_machine(made)
    return made


def accesses(made: Machine) -> list[tuple[int, int, int, int, int]]:
    """Run a machine; return (guest, operation, register, value, outcome) of every access, in order."""
    made.arena[col.R_KEEP] |= U64(1 << RECORD_ACCESS)
    found: list[tuple[int, int, int, int, int]] = []

    def take(records: Arena) -> None:
        for head, _, actor, _, register, value, _, _ in records.tolist():
            if head & 0xFF == RECORD_ACCESS:
                found.append((actor & 0xFFFF, head >> 16, register, value, head >> 8 & 0xFF))

    run_machine(made, take)
    return found


def run_in_pieces(made: Machine, pieces: Iterator[tuple[int, int]]) -> None:
    """Run a machine in windows of given lengths (ns) and with given step budgets."""
    end = 0
    while end < made.until_ns:
        length, steps = next(pieces)
        end = min(made.until_ns, end + length)
        stop = STOP_LOG
        while stop != STOP_WINDOW:
            stop = advance(made.arena, made.log, U64(end), U64(steps))
            drain_log(made)


def word(made: Machine, offset: int, column: np.uint64) -> int:
    """Return one word of a row."""
    return int(made.arena[offset + int(column)])


def words(made: Machine, offset: int, column: np.uint64, count: int) -> list[int]:
    """Return an array inside a row."""
    first = offset + int(column)
    return [int(x) for x in made.arena[first : first + count]]


def event_rows(session: SessionEntry) -> list[int]:
    """Return the offsets of a session's events."""
    return [session.first_event + i * col.EVENT_COLUMNS for i in range(len(session.events))]


def counts(made: Machine, vcpu: VcpuEntry) -> dict[tuple[str, str], int]:
    """Return what the sessions of a guest counted."""
    return {
        (session.name, f"{index} {event}"): word(made, at, col.E_COUNT)
        for session in vcpu.sessions
        for index, (event, at) in enumerate(zip(session.events, event_rows(session), strict=True))
    }


def causes(made: Machine, pcpu: int) -> int:
    """Return the sum of what a physical CPU's time was booked to."""
    return sum(words(made, made.pcpus[pcpu].offset, col.P_CAUSES, len(CAUSE_NAMES)))


_GUEST = (col.G_HASH, col.G_ACCESSES, col.G_PMIS, col.G_SWITCHES, col.G_SAMPLES, col.T_READS, col.T_WRONG)
_PCPU = (col.P_HASH, col.P_NOW, col.P_SWITCHES, col.P_EXITS, col.P_PMIS)


def digest(made: Machine) -> str:
    """Return a hash over the rolling hashes and counts of every actor."""
    total = hashlib.sha256()
    parts: list[int] = []
    for host in made.hosts:
        parts += [word(made, host.offset, col.H_HASH), word(made, host.offset, col.H_MIGRATIONS)]
    for pcpu in made.pcpus:
        parts += [word(made, pcpu.offset, column) for column in _PCPU if column is not col.P_NOW]
    for vcpu in made.vcpus:
        parts += [word(made, vcpu.guest, column) for column in _GUEST]
        parts += counts(made, vcpu).values()
    total.update(np.array(parts, dtype=np.uint64).tobytes())
    return total.hexdigest()


OnRecords = Callable[[Arena], None]
