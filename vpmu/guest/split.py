"""Where code that a guest executes has to stop: at the exact event of an overflow, or where its time ends.

Plain arithmetic of integers, with no rounding that adds up: a stretch cut anywhere retires the same.
"""

from __future__ import annotations

from collections.abc import Mapping

KHZ_NS = 1_000_000
"""A clock of 1 kHz ticks once in so many nanoseconds."""


class Code:
    """Code to execute: so many events of each kind, spread evenly over steps of at most one of each.

    Parameters
    ----------
    totals : mapping of int to int
        Events by kind; all zero makes code of no steps.
    """

    def __init__(self, totals: Mapping[int, int]) -> None:
        self._totals = {kind: total for kind, total in totals.items() if total}
        self.steps = max(self._totals.values(), default=0)
        self.done = 0

    def total(self, kind: int, step: int) -> int:
        """Return how many events of a kind the first steps retire."""
        return self._totals.get(kind, 0) * step // self.steps

    def step_of(self, kind: int, count: int) -> int:
        """Return the step that retires the event `count` further on than now; past the end if none."""
        total = self._totals.get(kind, 0)
        wanted = self.total(kind, self.done) + count
        return -(-wanted * self.steps // total) if wanted <= total else self.steps + 1

    def last_step_within(self, kind: int, count: int) -> int:
        """Return the last step up to which at most `count` more events of a kind retire."""
        total = self._totals.get(kind, 0)
        if not total:
            return self.steps
        most = self.total(kind, self.done) + count
        return min(((most + 1) * self.steps - 1) // total, self.steps)

    def advance(self, step: int) -> dict[int, int]:
        """Execute up to a step; return what this retired, by kind."""
        retired = {kind: self.total(kind, step) - self.total(kind, self.done) for kind in self._totals}
        self.done = step
        return retired


class Clock:
    """The cycles that a core at a frequency makes of time; what is left of a cycle is kept.

    Parameters
    ----------
    khz : int
        The core's frequency.
    """

    def __init__(self, khz: int) -> None:
        self._khz = khz
        self._credit = 0

    def cycles_within(self, ns: int) -> int:
        """Return how many cycles may pass in a time."""
        return (self._credit + ns * self._khz) // KHZ_NS

    def ns_for(self, cycles: int) -> int:
        """Return the least time in which so many cycles pass."""
        return max(0, -((self._credit - cycles * KHZ_NS) // self._khz))

    def spend(self, cycles: int, ns: int) -> None:
        """Let time pass in which so many cycles were used; what is over, less than a cycle or 1 ns, stays."""
        self._credit += ns * self._khz - cycles * KHZ_NS
