"""How long windows are when a run is to write checkpoints: by the wall clock, which changes no result."""

from __future__ import annotations

import time
from typing import Final

FIRST_NS: Final = 1_000_000
"""Virtual length of a run's first window, before its speed is known."""
_WINDOWS: Final = 6
_EARLY: Final = 2 / 3
_GROWTH: Final = 8
"""A window is at most so much longer than the one before."""


class Pace:
    """Proposes where the next window ends, and says whether a checkpoint is due.

    A window lasts about a sixth of the time between two checkpoints, and one is written when two thirds of it
    have passed: then it is there in time even if the run becomes slower.

    Parameters
    ----------
    every_s : float
        Wall time between two checkpoints, at most; 0 writes one at the end of every window.
    at_ns : int
        Virtual time at the beginning.
    """

    def __init__(self, every_s: float, at_ns: int) -> None:
        self._every_s = every_s
        self._at_ns = at_ns
        self._began_s = self._written_s = time.monotonic()
        self._length_ns = FIRST_NS

    def first_ns(self) -> int:
        """Return the end of the first window, ns."""
        return self._at_ns + self._length_ns

    def plan(self, at_ns: int) -> tuple[bool, int]:
        """Return whether to write a checkpoint at the end of a window, and the end of the next one, ns."""
        now_s = time.monotonic()
        passed_s = max(now_s - self._began_s, 1e-6)
        wanted = (at_ns - self._at_ns) * (self._every_s / _WINDOWS) / passed_s
        self._length_ns = int(max(FIRST_NS, min(wanted, _GROWTH * self._length_ns)))
        self._at_ns, self._began_s = at_ns, now_s
        write = now_s - self._written_s >= self._every_s * _EARLY
        if write:
            self._written_s = now_s
        return write, at_ns + self._length_ns
