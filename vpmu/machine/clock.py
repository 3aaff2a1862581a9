"""Virtual time of a machine, and what it retired: between a grant and a report.

Time is what the blocks cost, in units of 1/16 core cycle. Cycles, reference cycles and bus cycles follow it.
A block whose cost does not fit into the grant is paid in part, so that the cut leaves no trace.
"""

from typing import Any, NamedTuple

from vpmu.actors.outside import Grant, Watched, time_events
from vpmu.kernels.events import KIND_BUS_CYCLES, KIND_CYCLES, KIND_DERIVED_FIRST, KIND_REF_CYCLES
from vpmu.kernels.jit import U64
from vpmu.machine import layout as at

_SHIFT = 28
"""Rates are in 1/2**28 per ns, as the kernels have them."""
_LEVELS = (1, 2)


class Rates(NamedTuple):
    """What the clocks of a machine count, in 1/2**28 per ns."""

    core: int
    tsc: int
    bus: int


class Clock:
    """Counts one grant after the other.

    Parameters
    ----------
    words
        The machine's words (`vpmu.machine.layout`).
    rates
        Of the core, of the time-stamp counter and of the bus.
    """

    def __init__(self, words: Any, rates: Rates) -> None:
        self._words = words
        self._rates = rates
        self._units = rates.core * at.UNITS
        self._grant: Grant
        self._carry = 0
        self._cycle_rest = {1: 0, 2: 0}
        self._watched: list[Watched] = []

    def begin(self, grant: Grant) -> None:
        """Begin a grant: no events yet, and alarms where watched counters overflow."""
        words = self._words
        self._grant = grant
        words[at.COUNT : at.COUNT + 2 * at.KINDS] = 0
        words[at.CLOCK] = self._carry
        words[at.HARD] = self._at(grant.limit_ns) - self._at(grant.now_ns)
        self._watched = [watched for watched in grant.watched if watched.left]
        self._set_alarms()

    def _set_alarms(self) -> None:
        words = self._words
        for i, watched in enumerate(self._watched):
            kind, limit = self._alarm(watched)
            first, second = (at.COUNT + level * at.KINDS + kind for level in (0, 1))
            if not watched.levels & 1:
                first = at.ZERO
            if not watched.levels & 2:
                second = at.ZERO
            word = at.ALARMS + i * at.ALARM_WORDS
            words[word : word + at.ALARM_WORDS] = (first, second, limit)
        words[at.ARMED] = len(self._watched)

    def rearm(self) -> None:
        """Put off alarms that went off before their counter overflowed: some are guesses."""
        for i in range(len(self._watched)):
            word = at.ALARMS + i * at.ALARM_WORDS
            first, second, limit = self._words[word : word + at.ALARM_WORDS].tolist()
            if int(self._words[first]) + int(self._words[second]) >= limit:
                self._words[word + 2] = limit + at.UNITS

    def _alarm(self, watched: Watched) -> tuple[int, int]:
        """Return the kind whose count tells of a counter's overflow, and the least count that can."""
        kind, left = watched.kind, watched.left
        if kind == KIND_CYCLES:
            return 0, max(left * at.UNITS - sum(self._rest(watched.levels)), 1)
        if kind == KIND_REF_CYCLES:
            return 0, max((left - 1) * self._units // self._rates.tsc, 1)
        if kind == KIND_BUS_CYCLES:
            return 0, max((left - 1) * self._units // self._rates.bus, 1)
        if kind >= KIND_DERIVED_FIRST:
            return 0, left * at.UNITS
        return kind, left

    def _rest(self, levels: int) -> list[int]:
        return [self._cycle_rest[level] for level in _LEVELS if levels & level]

    # -- time --

    @property
    def now_ns(self) -> int:
        """Virtual time."""
        grant, clock = self._grant, int(self._words[at.CLOCK])
        if clock >= int(self._words[at.HARD]):
            return grant.limit_ns
        return max(((self._at(grant.now_ns) + clock) << _SHIFT) // self._units, grant.now_ns)

    def _at(self, at_ns: int) -> int:
        """Return the units from virtual time 0 on, so that a time's cuts are not rounded one by one."""
        return at_ns * self._units >> _SHIFT

    @property
    def tsc(self) -> int:
        """The time-stamp counter."""
        return self.now_ns * self._rates.tsc >> _SHIFT

    def alarm_at(self, at_ns: int) -> None:
        """Let no block begin after a time."""
        ahead = max(at_ns - self._grant.now_ns, 0)
        self._words[at.SOFT] = min(
            self._at(self._grant.now_ns + ahead) - self._at(self._grant.now_ns) + 1, at.NEVER
        )

    def spend(self, units: int) -> int:
        """Let time pass; return how much of it did not fit into the grant."""
        room = max(int(self._words[at.HARD]) - int(self._words[at.CLOCK]), 0)
        self._pass(min(units, room))
        return units - min(units, room)

    def use_up(self) -> None:
        """Pay what is left of the grant towards the next block."""
        room = max(int(self._words[at.HARD]) - int(self._words[at.CLOCK]), 0)
        self._words[at.CREDIT] += U64(room)
        self._pass(room)

    def _pass(self, units: int) -> None:
        words = self._words
        words[at.CLOCK] += U64(units)
        words[at.COUNT + int(words[at.LEVEL]) * at.KINDS] += U64(units)

    # -- what was retired --

    def overdue(self) -> int | None:
        """Return how many events ago the first watched counter overflowed; None if none has."""
        retired = self._retired(self.now_ns)[0]
        overdue = [
            sum(retired.get((watched.kind, level), 0) for level in _LEVELS if watched.levels & level)
            - watched.left
            for watched in self._watched
        ]
        late = [events for events in overdue if events >= 0]
        return max(late) if late else None

    def end(self) -> tuple[int, dict[tuple[int, int], int]]:
        """End the grant; return when, and the events by kind and level."""
        end_ns = self.now_ns
        retired, rest = self._retired(end_ns)
        self._cycle_rest = rest
        used = self._at(end_ns) - self._at(self._grant.now_ns)
        self._carry = max(int(self._words[at.CLOCK]) - used, 0)
        return end_ns, retired

    def _retired(self, end_ns: int) -> tuple[dict[tuple[int, int], int], dict[int, int]]:
        retired: dict[tuple[int, int], int] = {}
        rest: dict[int, int] = {}
        units = {}
        for level in _LEVELS:
            first = at.COUNT + (level - 1) * at.KINDS
            counts = self._words[first : first + at.KINDS].tolist()
            units[level] = counts[0]
            cycles, rest[level] = divmod(counts[0] + self._cycle_rest[level], at.UNITS)
            for kind, events in enumerate([cycles, *counts[1:]]):
                if events:
                    retired[kind, level] = events
        total = units[1] + units[2]
        for kind, events in time_events(self._grant.now_ns, end_ns, self._rates.tsc, self._rates.bus).items():
            user = events * units[2] // total if total else 0
            retired |= {(kind, level): part for level, part in ((1, events - user), (2, user)) if part}
        return retired, rest
