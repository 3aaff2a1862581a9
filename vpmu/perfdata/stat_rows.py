"""What a ``perf stat`` session counted, to print and to write: by interval, event, and vCPU or thread."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vpmu.perfdata.plan import PlannedSession
    from vpmu.results import CounterRow, DesignResult, ThreadRow


@dataclass(frozen=True, slots=True)
class Reading:
    """What one event counted, not scaled, and how long it was enabled and on a counter, ns."""

    count: int = 0
    enabled_ns: int = 0
    running_ns: int = 0

    def __add__(self, other: Reading) -> Reading:
        return Reading(
            self.count + other.count,
            self.enabled_ns + other.enabled_ns,
            self.running_ns + other.running_ns,
        )

    def __sub__(self, other: Reading) -> Reading:
        return Reading(
            self.count - other.count,
            self.enabled_ns - other.enabled_ns,
            self.running_ns - other.running_ns,
        )

    @property
    def was_counted(self) -> bool:
        """Whether the event was on a counter at all; if not, perf prints no number."""
        return self.running_ns > 0 and self.enabled_ns > 0

    @property
    def scaled(self) -> int:
        """The count scaled to the enabled time, as perf does it: in floating point, cut to an integer."""
        if not self.was_counted or self.running_ns == self.enabled_ns:
            return self.count if self.was_counted else 0
        return int(float(self.count) * self.enabled_ns / self.running_ns)


@dataclass(frozen=True, slots=True)
class Round:
    """What was read at one time, ns since the session's start: a reading for each event and place."""

    at_ns: int
    readings: tuple[tuple[Reading, ...], ...]


@dataclass(frozen=True, slots=True)
class StatSession:
    """A ``perf stat`` session as perf sees it.

    Attributes
    ----------
    events : tuple of str
    cpus : tuple of int
        Numbers of the vCPUs; empty for a session on a thread.
    threads : tuple of (int, str)
        tid and name of the measured threads; empty for a session on vCPUs.
    rounds : tuple of Round
        The totals so far at the end of each interval and at the session's end; without intervals only there.
    interval_ns : int
        0 if there are none.
    """

    events: tuple[str, ...]
    cpus: tuple[int, ...]
    threads: tuple[tuple[int, str], ...]
    rounds: tuple[Round, ...]
    interval_ns: int

    def printed(self) -> Iterable[Round]:
        """Yield what perf prints: with intervals what each one added, else the totals."""
        if not self.interval_ns:
            yield self.rounds[-1]
            return
        before: tuple[tuple[Reading, ...], ...] | None = None
        for each in self.rounds:
            yield Round(each.at_ns, each.readings if before is None else _less(each.readings, before))
            before = each.readings


def _less(
    now: tuple[tuple[Reading, ...], ...], before: tuple[tuple[Reading, ...], ...]
) -> tuple[tuple[Reading, ...], ...]:
    return tuple(
        tuple(a - b for a, b in zip(left, right, strict=True))
        for left, right in zip(now, before, strict=True)
    )


class Index:
    """A run's result, found by VM: a run may have thousands of sessions."""

    def __init__(self, result: DesignResult) -> None:
        self.end_ns = result.end_ns
        self.counters: defaultdict[tuple[str, int, str], list[CounterRow]] = defaultdict(list)
        self.threads: defaultdict[str, list[ThreadRow]] = defaultdict(list)
        for row in result.counters:
            self.counters[row.vm, row.vcpu, row.session].append(row)
        for thread in result.threads:
            self.threads[thread.vm].append(thread)


def stat_session(session: PlannedSession, result: Index) -> StatSession:
    """Return what a session of a run counted."""
    rows = _rows(session, result)
    total = tuple(tuple(Reading(r.count, r.enabled_ns, r.running_ns) for r in event) for event in rows)
    elapsed = max(_end_ns(session, result) - session.start_ns, 1)
    rounds = [*_rounds(session, rows)]
    if not rounds or rounds[-1].readings != total:
        rounds.append(Round(max([elapsed, *(r.at_ns + 1 for r in rounds[-1:])]), total))
    threads = []
    if session.spec.thread:
        tasks = {(task.cpu, task.name): (task.tid, task.name) for task in session.measured}
        threads = [tasks[place.cpu, place.thread] for place in session.places]
    return StatSession(
        tuple(event.name for event in session.events),
        () if session.spec.thread else tuple(place.cpu for place in session.places),
        tuple(threads),
        tuple(rounds),
        session.spec.interval_ns or 0,
    )


def _rows(session: PlannedSession, result: Index) -> list[list[CounterRow]]:
    """Return the rows of a session's events, each over the vCPUs."""
    found = [result.counters[session.vm, place.cpu, place.name] for place in session.places]
    return [[rows[event] for rows in found] for event in range(len(session.events))]


def _rounds(session: PlannedSession, rows: Sequence[Sequence[CounterRow]]) -> list[Round]:
    """Return the totals at the end of each interval; the vCPUs' readings of one interval count as one."""
    most = max((len(row.intervals) for event in rows for row in event), default=0)
    totals = [[_totals(row, most) for row in event] for event in rows]
    found = []
    for number in range(most):
        at_ns = max(
            row.intervals[number].at_ns for event in rows for row in event if number < len(row.intervals)
        )
        readings = tuple(tuple(place[number] for place in event) for event in totals)
        found.append(Round(at_ns - session.start_ns, readings))
    return found


def _totals(row: CounterRow, most: int) -> list[Reading]:
    """Return what a row's intervals add up to, one by one; a vCPU that has ended stays where it is."""
    added = [Reading(line.count, line.enabled_ns, line.running_ns) for line in row.intervals]
    added += [Reading()] * (most - len(added))
    return list(accumulate(added))


def _end_ns(session: PlannedSession, result: Index) -> int:
    """Return when a session's tool ended: at its stop, or with the programs that it measures."""
    watched = {(task.cpu, task.name) for task in session.measured}
    ends = [
        row.end_ns
        for row in result.threads[session.vm]
        if (row.vcpu, row.thread) in watched and (session.spec.thread or row.kind == "program")
    ]
    end = max(ends, default=result.end_ns)
    return end if session.stop_ns is None else min(end, session.stop_ns)
