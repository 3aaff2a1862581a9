"""Replaying a real host's trace: each vCPU's accesses of its PMU, with their spacing, as a guest.

A vCPU becomes a guest with one thread, which runs user-mode code for as long as the real guest ran and then
makes the next access.  Everything else, host perf, exits, interrupts, other vCPUs, is as in any run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from vpmu import sigint
from vpmu.actors.local import steps
from vpmu.build import build, load_programs
from vpmu.collect import SampleCounter, collect
from vpmu.kernels import columns as col
from vpmu.kernels.guest.step import REPLAY_WORDS
from vpmu.kernels.guest.threads import THREAD_REPLAY
from vpmu.kernels.host.scheduler import VCPU_DONE
from vpmu.kernels.integers import NEVER
from vpmu.kernels.jit import U64
from vpmu.kernels.log import RECORD_ACCESS
from vpmu.kernels.perf.interrupt import ACCESS_RDPMC, ACCESS_READ, ACCESS_WRITE
from vpmu.kernels.program_layout import CUR_POS
from vpmu.trace.accesses import ACTIONS, ENABLE, EVENTSEL, FIXED_CTRL, Access, Picked, VcpuAccesses

if TYPE_CHECKING:
    from vpmu.actors.machine import Machine, VcpuEntry
    from vpmu.kernels.jit import Arena
    from vpmu.program import Program
    from vpmu.results import DesignResult
    from vpmu.scenario import Scenario

_WINDOW_NS: Final = 1_000_000_000
_RATE_BITS: Final = 28
_REGISTER_SHIFT: Final = 8
_OPERATIONS: Final = {"rdmsr": int(ACCESS_READ), "wrmsr": int(ACCESS_WRITE), "rdpmc": int(ACCESS_RDPMC)}
_CONTROLS: Final = (ENABLE, EVENTSEL, FIXED_CTRL)
"""Actions on registers that hold what was written last: what is read back can be compared."""


@dataclass(frozen=True, slots=True)
class Latency:
    """How long the accesses of one action took: number, median (the lower of two), maximum and sum, ns."""

    action: str
    calls: int
    median_ns: int
    max_ns: int
    total_ns: int

    @classmethod
    def of(cls, action: str, durations: Iterable[int]) -> Latency:
        """Sum up durations, at least one."""
        ordered = sorted(durations)
        return cls(action, len(ordered), ordered[(len(ordered) - 1) // 2], ordered[-1], sum(ordered))


@dataclass(slots=True)
class Replayed:
    """What a design made of a trace.

    Attributes
    ----------
    result : DesignResult
        Of the emulated machine, as any run has it.
    latencies : list
        By action, those that occur.
    faults : int
        #GPs.
    faults_differ : dict
        Accesses whose #GP, or its absence, is not what the trace shows, by what they are.
    reads_compared, reads_differ : int
        Reads of control registers that the trace shows written before, and those that gave something else.
    pmis : int
        PMIs that the design delivered.
    """

    result: DesignResult
    latencies: list[Latency]
    faults: int = 0
    faults_differ: dict[str, int] = field(default_factory=dict)
    reads_compared: int = 0
    reads_differ: int = 0
    pmis: int = 0


def replay(
    picked: Picked, scenario: Scenario, design: str, programs: dict[str, Program] | None = None
) -> Replayed:
    """Replay a trace's accesses under a design.

    Parameters
    ----------
    picked : Picked
        The accesses.
    scenario : Scenario
        As `vpmu.trace.scenario.replay_scenario` makes it.
    design : str
        Name of the design, which is registered.
    programs : dict, optional
        The scenario's programs, if they are loaded already.
    """
    machine = build(scenario, design, load_programs(scenario) if programs is None else programs)
    _load_streams(machine, picked.vcpus)
    records = _run(machine, picked.end_ns - picked.start_ns)
    return _evaluate(machine, picked.vcpus, records)


def _load_streams(machine: Machine, vcpus: list[VcpuAccesses]) -> None:
    """Put each vCPU's accesses behind the machine's tables, and make its guest play them."""
    at = machine.arena.size
    rates = [int(machine.arena[entry.guest + int(col.G_CORE_RATE)]) for entry in machine.vcpus]
    streams = [_stream(vcpu.accesses, rate) for vcpu, rate in zip(vcpus, rates, strict=True)]
    machine.arena = np.concatenate([machine.arena, *(stream.reshape(-1) for stream in streams)])
    machine.arena[int(col.R_KEEP)] = U64(1) << RECORD_ACCESS
    for entry, stream in zip(machine.vcpus, streams, strict=True):
        _play(machine.arena, entry, at, len(stream))
        at += stream.size


def _stream(accesses: list[Access], core_rate: int) -> Arena:
    """Return accesses as a replay stream, ``uint64[n, REPLAY_WORDS]``.

    A gap becomes core cycles; what is rounded off goes to the next one, so that nothing adds up.
    """
    stream = np.zeros((len(accesses), int(REPLAY_WORDS)), np.uint64)
    ran_ns = cycles = 0
    for row, access in zip(stream, accesses, strict=True):
        ran_ns += access.gap_ns
        until = ran_ns * core_rate >> _RATE_BITS
        row[0] = _OPERATIONS[access.operation] | access.register << _REGISTER_SHIFT
        row[1] = access.value if access.operation == "wrmsr" else 0
        row[2] = until - cycles
        cycles = until
    return stream


def _play(s: Arena, entry: VcpuEntry, at: int, nr_records: int) -> None:
    """Make a guest play a stream, with no tick, and no PMI handler of its own.

    It counts as being in its handler all along: an NMI is counted and stays pending, as one that comes while
    another is handled.  The real handler's accesses are in the stream.
    """
    thread = entry.threads[0].offset
    s[thread + int(col.TH_TYPE)] = THREAD_REPLAY
    s[thread + int(col.TH_END)] = s[thread + int(col.TH_CURSOR + CUR_POS)]
    for timer in (col.G_TICK_AT, col.G_TIMER_AT, col.G_TICK_NS):
        s[entry.guest + int(timer)] = NEVER
    s[entry.guest + int(col.G_IN_PMI)] = 1
    s[entry.guest + int(col.G_STREAM)] = at
    s[entry.guest + int(col.G_STREAM_LEFT)] = nr_records


def _run(machine: Machine, span_ns: int) -> dict[int, list[tuple[bool, int, int]]]:
    """Run a machine until all guests are done; return (fault, word, cost) of every access by actor."""
    found: dict[int, list[tuple[bool, int, int]]] = defaultdict(list)

    def keep(records: Arena) -> None:
        for head, _, actor, _, _, word, cost_ns, _ in records.tolist():
            if head & 0xFF == int(RECORD_ACCESS):
                found[actor].append((bool(head >> 8 & 0xFF), word, cost_ns))

    until_ns = span_ns
    while any(
        int(machine.arena[entry.offset + int(col.V_STATE)]) != int(VCPU_DONE) for entry in machine.vcpus
    ):
        until_ns += _WINDOW_NS
        for records in steps(machine, until_ns):
            keep(records)
            sigint.check()
    return found


def _evaluate(
    machine: Machine, vcpus: list[VcpuAccesses], records: dict[int, list[tuple[bool, int, int]]]
) -> Replayed:
    """Hold what the design answered against the trace."""
    durations: dict[str, list[int]] = defaultdict(list)
    done = Replayed(collect(machine, SampleCounter()), [])
    for vcpu, entry in zip(vcpus, machine.vcpus, strict=True):
        answers = records[int(machine.arena[entry.guest + int(col.G_ID)])]
        for access, (_, _, cost_ns) in zip(vcpu.accesses, answers, strict=True):
            durations[access.action].append(cost_ns)
        _compare_faults(done, vcpu.accesses, [fault for fault, _, _ in answers])
        _compare_reads(done, vcpu.accesses, answers)
        done.pmis += int(machine.arena[entry.guest + int(col.G_PMIS)])
    done.latencies = [Latency.of(action, durations[action]) for action in ACTIONS if durations[action]]
    return done


def _compare_faults(done: Replayed, accesses: list[Access], faults: list[bool]) -> None:
    for access, fault in zip(accesses, faults, strict=True):
        done.faults += fault
        if access.fault is not None and access.fault != fault:
            answer = "#GP here only" if fault else "#GP in the trace only"
            what = f"{access.operation} 0x{access.register:x}: {answer}"
            done.faults_differ[what] = done.faults_differ.get(what, 0) + 1


def _compare_reads(done: Replayed, accesses: list[Access], answers: list[tuple[bool, int, int]]) -> None:
    """Compare reads of control registers, which hold what was written last, once a write was traced."""
    written: set[int] = set()
    for access, (fault, word, _) in zip(accesses, answers, strict=True):
        if fault or access.fault or access.action not in _CONTROLS:
            continue
        if access.operation == "wrmsr":
            written.add(access.register)
        elif access.register in written:
            done.reads_compared += 1
            done.reads_differ += word != access.value


def host_latencies(picked: Picked) -> list[Latency]:
    """Return how long accesses took on the real host, from exit to entry, where the trace says it."""
    durations: dict[str, list[int]] = defaultdict(list)
    for access in picked.all():
        if access.host_ns is not None:
            durations[access.action].append(access.host_ns)
    return [Latency.of(action, durations[action]) for action in ACTIONS if durations[action]]
