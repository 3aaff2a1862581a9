"""Events that follow the clock: reference and bus cycles of a remote guest, which the host counts for it."""

from __future__ import annotations

from typing import Final

from vpmu.actors.outside import Grant
from vpmu.cluster.guests.wire import FIRST_TIME_KIND, NR_TIME_KINDS, Level

KINDS: Final = range(FIRST_TIME_KIND, FIRST_TIME_KIND + NR_TIME_KINDS)
KHZ_NS: Final = 1_000_000
"""A clock of 1 kHz ticks once in so many nanoseconds."""
_CYCLES: Final = 0
_SHIFT: Final = 28
_MASK: Final = (1 << _SHIFT) - 1


class TimeKinds:
    """Counts reference and bus cycles of one vCPU.

    Parameters
    ----------
    rates : tuple of int
        Of both kinds, ticks a nanosecond, in 1/2**28, as the kernels have them.
    """

    def __init__(self, rates: tuple[int, int]) -> None:
        self._rates = dict(zip(KINDS, rates, strict=True))

    def limit_ns(self, grant: Grant) -> int:
        """Return a grant's limit, or when the first counter of such events overflows if that is earlier.

        A counter that counts at one privilege level only is taken to count all the time: then the stretch
        ends early, and nothing else happens.
        """
        limit_ns = grant.limit_ns
        for each in grant.watched:
            if each.left and each.kind in self._rates:
                limit_ns = min(limit_ns, grant.now_ns + self._ns_until(each.kind, grant.now_ns, each.left))
        return limit_ns

    def add(self, begin_ns: int, end_ns: int, retired: dict[tuple[int, int], int]) -> None:
        """Add the events of a stretch to what retired, split over the privilege levels as cycles are."""
        at_kernel = retired.get((_CYCLES, Level.KERNEL), 0)
        at_user = retired.get((_CYCLES, Level.USER), 0)
        for kind, rate in self._rates.items():
            count = (end_ns * rate >> _SHIFT) - (begin_ns * rate >> _SHIFT)
            user = count * at_user // (at_kernel + at_user) if at_user else 0
            for level, part in ((Level.KERNEL, count - user), (Level.USER, user)):
                if part:
                    retired[kind, int(level)] = part

    def _ns_until(self, kind: int, now_ns: int, count: int) -> int:
        """Return the least time in which so many events come, as the kernels' `ticks_until`."""
        rate = self._rates[kind]
        gathered = now_ns * rate & _MASK
        return -(-((count << _SHIFT) - gathered) // rate)
