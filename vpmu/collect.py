"""From a machine that has run to its results: every table, and the digest."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vpmu.kernels import columns as col
from vpmu.kernels.boot import due_of_event, function_cycles, times_of_event
from vpmu.kernels.host.clock import CAUSE_NAMES
from vpmu.kernels.host.move import MOVE_GONE
from vpmu.kernels.host.perf import CALL_CREATE, CALL_RELEASE
from vpmu.kernels.integers import NEVER
from vpmu.kernels.jit import U64
from vpmu.kernels.log import RECORD_INTERVAL, RECORD_SAMPLE
from vpmu.kernels.program_layout import CUR_POS
from vpmu.kernels.stats import A_BUCKETS, A_MAX, ACTION_NAMES
from vpmu.results import (
    ActionRow,
    CounterRow,
    DesignResult,
    FunctionRow,
    IntervalRow,
    ProfileRow,
    SampledEventRow,
    StoodStillRow,
    ThreadRow,
)

if TYPE_CHECKING:
    from vpmu.actors.machine import Machine, SessionEntry, ThreadEntry, VcpuEntry
    from vpmu.kernels.jit import Arena

KERNEL_NAME: Final = "[kernel]"
"""Function name of samples that hit kernel code."""

_NEVER: Final = int(NEVER)
_RATE_ONE: Final = 1 << 28
_FUNCTION_MASK: Final = 0xFFFFFFFF
_MOST_NEW: Final = 1 << 20
"""Samples that are counted at once."""
_KERNEL_FUNCTION: Final = 0xFFFFFFFF
_FINISHED: Final = 2
_SESSION_RUNNING: Final = 1
_GUEST_COUNTS: Final = (
    col.G_HASH,
    col.G_ACCESSES,
    col.G_PMIS,
    col.G_SWITCHES,
    col.G_SAMPLES,
    col.G_FAULTS,
    col.G_USER_NS,
    col.G_KERNEL_NS,
    col.T_READS,
    col.T_WRONG,
    col.T_DUE,
    col.T_TAKEN,
)
_VCPU_COUNTS: Final = (
    col.V_GUEST_NS,
    col.V_STEAL_NS,
    col.V_SLEEP_NS,
    col.V_MIGRATIONS,
    col.V_NR_EVENTS,
    col.V_MIGRATED,
    col.V_LEFT_AT,
    col.V_LOST_PMIS,
)
_PCPU_COUNTS: Final = (col.P_HASH, col.P_NOW, col.P_SWITCHES, col.P_EXITS, col.P_PMIS, col.P_REQUESTS)
_HOST_COUNTS: Final = (
    col.H_HASH,
    col.H_RESERVES,
    col.H_RELEASES,
    col.H_WAITS,
    col.H_WAIT_NS,
    col.H_MIGRATIONS,
)
_THREAD_COUNTS: Final = (
    col.TH_CPU_NS,
    col.TH_SWITCHES,
    col.TH_STATE,
    col.TH_FINISHED_AT,
    col.TH_CURSOR + CUR_POS,
)
_EVENT_COUNTS: Final = (col.E_COUNT, col.E_ENABLED_NS, col.E_RUNNING_NS, col.E_SAMPLES, col.E_THROTTLES)


def _key(actors: Any, sessions: Any) -> Any:
    """Return guests, by the 24 bits that tell them apart, and sessions as the upper half of a word."""
    return (actors << np.uint64(40)) | (sessions << np.uint64(32))


class SampleCounter:
    """Counts the samples of every session by function, and keeps intervals' reads, as the records go by."""

    def __init__(self) -> None:
        self._new: list[Arena] = []
        self._nr_new = 0
        self._keys: Arena = np.empty(0, np.uint64)
        self._totals = np.empty(0, np.int64)
        self._intervals: defaultdict[tuple[int, int], list[tuple[int, int, int, int]]] = defaultdict(list)

    def add(self, records: Arena) -> None:
        """Take records, ``uint64[n, 8]``, of any kind."""
        kinds = records[:, 0] & np.uint64(0xFF)
        for record in records[kinds == RECORD_INTERVAL].tolist():
            self._intervals[record[2], record[4]].append((record[1], *record[5:8]))
        samples = records[kinds == RECORD_SAMPLE]
        sessions = (samples[:, 7] >> np.uint64(24)) & np.uint64(0xFF)
        # One word for guest, session and function: sorting words is ten times as fast as sorting rows.
        self._new.append(_key(samples[:, 2], sessions) | samples[:, 6] & np.uint64(_FUNCTION_MASK))
        self._nr_new += len(samples)
        if self._nr_new > _MOST_NEW:
            self._count()

    def _count(self) -> None:
        """Add the samples since the last call to the totals, which are in the order of their keys."""
        keys, counts = np.unique(np.concatenate(self._new), return_counts=True)
        keys, counts = np.concatenate([self._keys, keys]), np.concatenate([self._totals, counts])
        self._keys, at = np.unique(keys, return_inverse=True)
        self._totals = np.zeros(len(self._keys), np.int64)
        np.add.at(self._totals, at, counts)
        self._new, self._nr_new = [], 0

    def of(self, actor: int, session: int) -> dict[int, int]:
        """Return function id -> samples of one session."""
        if self._new:
            self._count()
        first = _key(np.uint64(actor), np.uint64(session))
        begin, end = np.searchsorted(self._keys, [first, first + np.uint64(_FUNCTION_MASK + 1)])
        functions = self._keys[begin:end] & np.uint64(_FUNCTION_MASK)
        return dict(zip(functions.tolist(), self._totals[begin:end].tolist(), strict=True))

    def intervals_of(self, actor: int, owner: int) -> list[IntervalRow]:
        """Return the lines of ``perf stat -I`` of one event: what each interval added."""
        before = (0, 0, 0)
        rows = []
        for at_ns, *totals in sorted(self._intervals[actor, owner]):
            count, enabled_ns, running_ns = (now - then for now, then in zip(totals, before, strict=True))
            rows.append(IntervalRow(at_ns=at_ns, count=count, enabled_ns=enabled_ns, running_ns=running_ns))
            before = (totals[0], totals[1], totals[2])
        return rows


class Collector:
    """Reads the results of one design out of its machine; see `collect`."""

    def __init__(self, machine: Machine, samples: SampleCounter) -> None:
        self.machine = machine
        self.samples = samples
        self.s = machine.arena

    def word(self, offset: int, column: np.uint64) -> int:
        """Return one word of a row."""
        return int(self.s[offset + int(column)])

    def result(self) -> DesignResult:
        """Put the design's result together."""
        return DesignResult(
            design=self.machine.design,
            digest=self.digest(),
            until_ns=self.machine.until_ns,
            end_ns=self.end_ns,
            actions=self.actions(),
            threads=[self.thread(v, t) for v in self.machine.vcpus for t in v.threads],
            counters=[
                row for v in self.machine.vcpus for session in v.sessions for row in self.counters(v, session)
            ],
            profiles=[
                self.profile(v, i)
                for v in self.machine.vcpus
                for i, s in enumerate(v.sessions)
                if s.tool == "record"
            ],
            stood_still=[row for v in self.machine.vcpus for row in self.stood_still(v)],
            accounting=self.accounting(),
            host=self.host(),
            unfinished=[
                f"{v.vm}/{t.name}"
                for v in self.machine.vcpus
                for t in v.threads
                if t.kind == "program" and self.word(t.offset, col.TH_STATE) != _FINISHED
            ],
        )

    def digest(self) -> str:
        """Return SHA-256 over all rolling hashes and final counts, in actor order."""
        words: list[int] = []
        for host in self.machine.hosts:
            words += [self.word(host.offset, c) for c in _HOST_COUNTS]
        for pcpu in self.machine.pcpus:
            words += [self.word(pcpu.offset, c) for c in _PCPU_COUNTS]
            words += [self.word(pcpu.offset, col.P_CAUSES + U64(i)) for i in range(col.CAUSES)]
        for vcpu in self.machine.vcpus:
            words += [self.word(vcpu.offset, c) for c in _VCPU_COUNTS]
            words += [self.word(vcpu.guest, c) for c in _GUEST_COUNTS]
            words += [self.word(thread.offset, c) for thread in vcpu.threads for c in _THREAD_COUNTS]
            words += [
                self.word(at, c)
                for session in vcpu.sessions
                for at in _events(session)
                for c in _EVENT_COUNTS
            ]
        hasher = hashlib.sha256(np.array(words, dtype="<u8").tobytes())
        hasher.update(self.machine.table("action").astype("<u8").tobytes())
        return hasher.hexdigest()

    @cached_property
    def end_ns(self) -> int:
        """Return when the last program finished, or the run's end if one did not (or there is none)."""
        ends = [
            self.word(t.offset, col.TH_FINISHED_AT)
            for v in self.machine.vcpus
            for t in v.threads
            if t.kind == "program"
        ]
        clock = min(self.word(p.offset, col.P_NOW) for p in self.machine.pcpus)
        return min(max(ends), clock) if ends and max(ends) != _NEVER else clock

    def actions(self) -> list[ActionRow]:
        """Return the latency of every guest action that was taken."""
        rows = []
        for name, words in zip(ACTION_NAMES, self.machine.table("action"), strict=True):
            buckets = words[int(A_BUCKETS) :].reshape(-1, 2)
            calls, total_ns = (int(part) for part in buckets.sum(axis=0))
            if not calls:
                continue
            rows.append(
                ActionRow(
                    action=name,
                    calls=calls,
                    median_ns=_quantile(buckets, (calls + 1) // 2),
                    p99_ns=_quantile(buckets, -(-calls * 99 // 100)),
                    max_ns=int(words[int(A_MAX)]),
                    total_ns=total_ns,
                )
            )
        return rows

    def thread(self, vcpu: VcpuEntry, thread: ThreadEntry) -> ThreadRow:
        """Return what became of a thread."""
        finished = self.word(thread.offset, col.TH_STATE) == _FINISHED
        start = self.word(thread.offset, col.TH_STARTED_AT)
        end = self.word(thread.offset, col.TH_FINISHED_AT) if finished else self.end_ns
        cycles = self.word(thread.offset, col.TH_CURSOR + CUR_POS)
        return ThreadRow(
            vm=vcpu.vm,
            vcpu=vcpu.vcpu,
            thread=thread.name,
            kind=thread.kind,
            finished=finished,
            start_ns=start,
            end_ns=end,
            run_ns=max(end - start, 0),
            cpu_ns=self.word(thread.offset, col.TH_CPU_NS),
            unmeasured_ns=cycles * _RATE_ONE // self.word(vcpu.guest, col.G_CORE_RATE),
            switches=self.word(thread.offset, col.TH_SWITCHES),
        )

    def counters(self, vcpu: VcpuEntry, session: SessionEntry) -> list[CounterRow]:
        """Return the events of a ``perf stat`` session."""
        if session.tool != "stat":
            return []
        actor = self.word(vcpu.guest, col.G_ID)
        return [
            CounterRow(
                vm=vcpu.vm,
                vcpu=vcpu.vcpu,
                session=session.name,
                event=event,
                count=self.word(at, col.E_COUNT),
                enabled_ns=self.times(vcpu, session, at)[0],
                running_ns=self.times(vcpu, session, at)[1],
                intervals=self.samples.intervals_of(actor, self.word(at, col.E_OWNER)),
                truth=self.word(at, col.E_TRUTH),
            )
            for event, at in zip(session.events, _events(session), strict=True)
        ]

    def times(self, vcpu: VcpuEntry, session: SessionEntry, event: int) -> tuple[int, int]:
        """Return an event's enabled and running times at the end of the run, in ns."""
        if self.word(session.offset, col.S_STATE) != _SESSION_RUNNING:
            return self.word(event, col.E_ENABLED_NS), self.word(event, col.E_RUNNING_NS)
        clock = self.word(self.word(vcpu.offset, col.V_PCPU), col.P_NOW)
        if self.word(vcpu.offset, col.V_MOVE) == int(MOVE_GONE):
            clock = self.word(vcpu.offset, col.V_LEFT_AT)
        if self.word(vcpu.offset, col.V_DONE):
            clock = max(
                self.word(thread.offset, col.TH_FINISHED_AT)
                for thread in vcpu.threads
                if thread.kind == "program"
            )
        at = [U64(word) for word in (vcpu.guest, session.offset, event, clock)]
        enabled, running = times_of_event(self.s, *at)
        return int(enabled), int(running)

    def profile(self, vcpu: VcpuEntry, number: int) -> ProfileRow:
        """Return a ``perf record`` session: samples by function beside the cycles that each took."""
        session = vcpu.sessions[number]
        counts = self.samples.of(self.word(vcpu.guest, col.G_ID), number)
        functions = [
            FunctionRow(name=name, samples=counts.get(function, 0), truth_cycles=cycles)
            for function, (name, cycles) in self._truth_cycles(vcpu, session).items()
            if cycles or counts.get(function)
        ]
        if counts.get(_KERNEL_FUNCTION):
            functions.append(FunctionRow(name=KERNEL_NAME, samples=counts[_KERNEL_FUNCTION], truth_cycles=0))
        events = list(_events(session))
        return ProfileRow(
            vm=vcpu.vm,
            vcpu=vcpu.vcpu,
            session=session.name,
            samples=sum(self.word(at, col.E_SAMPLES) for at in events),
            throttled=sum(self.word(at, col.E_THROTTLES) for at in events),
            functions=sorted(functions, key=lambda row: (-row.truth_cycles, row.name)),
            events=[
                self.sampled_event(vcpu, session, name, at)
                for name, at in zip(session.events, events, strict=True)
            ],
        )

    def sampled_event(self, vcpu: VcpuEntry, session: SessionEntry, name: str, at: int) -> SampledEventRow:
        """Return what an event of a ``perf record`` session had to see, and what became of it."""
        out = np.zeros(5, dtype=np.uint64)
        due_of_event(self.s, U64(vcpu.guest), U64(at), out)
        counting, throttled, waiting, counted, stood = (int(part) for part in out)
        had_to_count = self.word(at, col.E_TRUTH) + counted + stood
        count = self.word(at, col.E_COUNT) + counted
        sampled, merged = self.word(at, col.E_SAMPLED), _signed(self.word(at, col.E_MERGED))
        due = counting + throttled + waiting
        period = self.word(at, col.E_PERIOD)
        if frequency := self.word(at, col.E_FREQUENCY):
            wanted = self.times(vcpu, session, at)[0] * frequency
            period = due * 1_000_000_000 // wanted if wanted else 0
        return SampledEventRow(
            event=name,
            due=due,
            throttled=throttled,
            waiting=waiting,
            masked=counting - had_to_count,
            stalled=had_to_count - count,
            sampled=sampled,
            merged=merged,
            rest=count - sampled - merged,
            period=period,
            samples=self.word(at, col.E_SAMPLES),
            skid=self.word(at, col.E_SKID),
            skid_max=self.word(at, col.E_SKID_MAX),
        )

    def _truth_cycles(self, vcpu: VcpuEntry, session: SessionEntry) -> dict[int, tuple[str, int]]:
        """Return function id -> (name, cycles that the measured threads spent in it)."""
        found: dict[int, tuple[str, int]] = {}
        for thread in vcpu.threads:
            if session.thread not in ("", thread.name):
                continue
            cursor = U64(thread.offset) + col.TH_CURSOR
            program = U64(self.word(thread.offset, col.TH_PROGRAM))
            for function, name in enumerate(self.machine.functions[thread.program]):
                cycles = int(function_cycles(self.s, program, cursor, U64(function)))
                found[function] = (name, found.get(function, (name, 0))[1] + cycles)
        return found

    def stood_still(self, vcpu: VcpuEntry) -> list[StoodStillRow]:
        """Return the vPMCs of a vCPU that stood still, with what they missed."""
        rows = []
        end = self.end_ns
        for slot in range(col.SLOTS):
            ns = self.word(vcpu.offset, col.V_STILL_NS + U64(slot))
            since = self.word(vcpu.offset, col.V_STILL_AT + U64(slot))
            if since != _NEVER:
                ns += max(end - since, 0)
            if ns:
                name = (
                    f"PMC{slot}" if slot < int(col.FIXED_SLOT) else f"FIXED_CTR{slot - int(col.FIXED_SLOT)}"
                )
                missed = self.word(vcpu.guest, col.T_SHORT + U64(slot))
                rows.append(StoodStillRow(vm=vcpu.vm, vcpu=vcpu.vcpu, pmc=name, ns=ns, events=missed))
        return rows

    def accounting(self) -> dict[str, int]:
        """Return where the time of all physical CPUs went; it adds up to their clocks."""
        causes = [0] * len(CAUSE_NAMES)
        for pcpu in self.machine.pcpus:
            for number in range(len(CAUSE_NAMES)):
                causes[number] += self.word(pcpu.offset, col.P_CAUSES + U64(number))
        return {name: ns for name, ns in zip(CAUSE_NAMES, causes, strict=True) if ns}

    def host(self) -> dict[str, int]:
        """Return the counts of what the hosts did."""
        pcpus = [pcpu.offset for pcpu in self.machine.pcpus]
        hosts = [host.offset for host in self.machine.hosts]
        guests = [vcpu.guest for vcpu in self.machine.vcpus]
        vcpus = [vcpu.offset for vcpu in self.machine.vcpus]
        sums = {
            "accesses": (guests, col.G_ACCESSES),
            "PMIs": (guests, col.G_PMIS),
            "guest switches": (guests, col.G_SWITCHES),
            "VM exits": (pcpus, col.P_EXITS),
            "vCPU switches": (pcpus, col.P_SWITCHES),
            "host PMIs": (pcpus, col.P_PMIS),
            "host perf calls": (pcpus, col.P_REQUESTS),
            "creates": (pcpus, col.P_CALLS + CALL_CREATE),
            "releases": (pcpus, col.P_CALLS + CALL_RELEASE),
            "reservations": (hosts, col.H_RESERVES),
            "last releases": (hosts, col.H_RELEASES),
            "mutex waits": (hosts, col.H_WAITS),
            "mutex wait ns": (hosts, col.H_WAIT_NS),
            "migrations": (hosts, col.H_MIGRATIONS),
            "live migrations of vCPUs": (vcpus, col.V_MIGRATED),
            "PMIs lost in live migrations": (vcpus, col.V_LOST_PMIS),
            "counters read": (guests, col.T_READS),
            "counters read that differ from the truth": (guests, col.T_WRONG),
        }
        return {name: sum(self.word(at, column) for at in rows) for name, (rows, column) in sums.items()}


def _events(session: SessionEntry) -> range:
    """Return the offsets of a session's event rows."""
    end = session.first_event + len(session.events) * col.EVENT_COLUMNS
    return range(session.first_event, end, col.EVENT_COLUMNS)


def _signed(word: int) -> int:
    """Return a word as the signed number that it is."""
    return word - (1 << 64) if word >> 63 else word


def _quantile(buckets: Arena, rank: int) -> int:
    """Return the mean of the bucket that holds the value of a rank (from 1)."""
    index = int(np.searchsorted(np.cumsum(buckets[:, 0]), rank))
    return int(buckets[index, 1]) // int(buckets[index, 0])


def collect(machine: Machine, samples: SampleCounter) -> DesignResult:
    """Return the result of a machine that has run.

    Parameters
    ----------
    machine : Machine
        With every row as its owner left it.
    samples : SampleCounter
        Has seen all records.
    """
    return Collector(machine, samples).result()
