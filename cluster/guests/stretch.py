"""A stretch of a remote guest: what it is told when it is granted one, and what of its report is believed.

The rules are `vpmu.actors.outside`'s, and a remote guest's own: it stops at the exact event of an overflow,
at a limit it asks for more before it does anything else, and its clock makes no more cycles than there are.
"""

from __future__ import annotations

from typing import Final

from vpmu.actors.outside import Grant, OutsideVcpu, Report
from vpmu.cluster.errors import RemoteProtocolError
from vpmu.cluster.guests import messages as say
from vpmu.cluster.guests.messages import FIRST_TIME_KIND, NR_TIME_KINDS, Given, Level, Reason

KHZ_NS: Final = 1_000_000
"""A clock of 1 kHz ticks once in so many nanoseconds."""
_TIME_KINDS: Final = range(FIRST_TIME_KIND, FIRST_TIME_KIND + NR_TIME_KINDS)
_KERNEL, _USER = int(Level.KERNEL), int(Level.USER)
_OVERFLOW, _LIMIT = int(Reason.OVERFLOW), int(Reason.LIMIT)
_RESULT, _FAULT, _PMI = int(Given.RESULT), int(Given.FAULT), int(Given.PMI)
_RATE_SHIFT: Final = 28
_RATE_MASK: Final = (1 << _RATE_SHIFT) - 1


class Stretches:
    """The stretches of one vCPU, one after another.

    Reference and bus cycles follow the clock: the host counts them for the guest, and ends its stretch where
    a counter of them overflows.

    Parameters
    ----------
    vcpu : OutsideVcpu
        Its rates are read.
    """

    def __init__(self, vcpu: OutsideVcpu) -> None:
        self.core_khz = khz_of(vcpu.core_rate)
        self._rates = dict(zip(_TIME_KINDS, (vcpu.tsc_rate, vcpu.bus_rate), strict=True))
        self._limit_ns = 0

    def told(self, grant: Grant) -> say.Grant:
        """Return a grant as its guest is told."""
        given = value = cost_ns = lvtpc = 0
        if grant.result is not None:
            given = _RESULT | _FAULT if grant.result.fault else _RESULT
            value, cost_ns = grant.result.value, grant.result.cost_ns
        if grant.pmi is not None:
            given |= _PMI
            lvtpc = grant.pmi
        self._limit_ns = self._first_limit_ns(grant)
        watched = [say.Watched(*each) for each in grant.watched if each.kind not in self._rates]
        return say.Grant(grant.now_ns, self._limit_ns, value, cost_ns, given, lvtpc, tuple(watched))

    def believed(self, grant: Grant, report: say.Report) -> Report:
        """Return a guest's report as its vCPU takes it.

        Raises
        ------
        RemoteProtocolError
            If it breaks a rule of remote guests; `OutsideVcpu.answer` checks the others.
        """
        end_ns, reason, limit_ns = report.end_ns, report.reason, self._limit_ns
        if end_ns > limit_ns:
            raise RemoteProtocolError(f"ran to {end_ns} ns, beyond its limit of {limit_ns} ns")
        if (reason == _LIMIT) != (end_ns == limit_ns) and reason != _OVERFLOW:
            raise RemoteProtocolError(f"{Reason(reason).name} at {end_ns} ns, the limit is {limit_ns} ns")
        retired = {(kind, level): events for kind, level, events in report.retired}
        if reason == _OVERFLOW:
            _check_overflow(grant, retired)
        if end_ns >= grant.now_ns:
            self._check_cycles(end_ns - grant.now_ns, retired)
            self._count_time(grant.now_ns, end_ns, retired)
        at_overflow = end_ns == limit_ns < grant.limit_ns
        return Report(
            end_ns,
            _OVERFLOW if at_overflow else reason,
            retired,
            report.operation,
            report.register,
            report.value,
            report.level or _KERNEL,
            report.timer_at_ns,
        )

    def _first_limit_ns(self, grant: Grant) -> int:
        """Return a grant's limit, or when the first counter of time overflows if that is earlier.

        A counter that counts at one privilege level only is taken to count all the time: then the stretch
        ends early, and nothing else happens.
        """
        limit_ns = grant.limit_ns
        for each in grant.watched:
            if each.left and each.kind in self._rates:
                limit_ns = min(limit_ns, grant.now_ns + self._ns_until(each.kind, grant.now_ns, each.left))
        return limit_ns

    def _ns_until(self, kind: int, now_ns: int, events: int) -> int:
        """Return the least time in which so many events come, as the kernels' `ticks_until`."""
        rate = self._rates[kind]
        gathered = now_ns * rate & _RATE_MASK
        return -(-((events << _RATE_SHIFT) - gathered) // rate)

    def _count_time(self, begin_ns: int, end_ns: int, retired: dict[tuple[int, int], int]) -> None:
        """Add what follows the clock to what retired, split over the privilege levels as cycles are."""
        at_kernel, at_user = retired.get((0, _KERNEL), 0), retired.get((0, _USER), 0)
        for kind, rate in self._rates.items():
            events = (end_ns * rate >> _RATE_SHIFT) - (begin_ns * rate >> _RATE_SHIFT)
            user = events * at_user // (at_kernel + at_user) if at_user else 0
            if user:
                retired[kind, _USER] = user
            if events - user:
                retired[kind, _KERNEL] = events - user

    def _check_cycles(self, ns: int, retired: dict[tuple[int, int], int]) -> None:
        """Raise if there are more cycles than the core makes; up to one, or 1 ns, may be from before."""
        cycles = retired.get((0, _KERNEL), 0) + retired.get((0, _USER), 0)
        if cycles * KHZ_NS >= ns * self.core_khz + max(KHZ_NS, self.core_khz):
            raise RemoteProtocolError(f"{cycles} cycles in {ns} ns, at {self.core_khz} kHz")


def _check_overflow(grant: Grant, retired: dict[tuple[int, int], int]) -> None:
    """Raise if a guest says that a counter has overflowed and none has."""
    for each in grant.watched:
        levels = [level for level in (_KERNEL, _USER) if each.levels & level]
        if each.left and sum(retired.get((each.kind, level), 0) for level in levels) == each.left:
            return
    raise RemoteProtocolError("OVERFLOW, and no watched counter has come to its end")


def khz_of(rate: int) -> int:
    """Return the frequency of a rate in 1/2**28 per ns."""
    return (rate * KHZ_NS + (1 << _RATE_SHIFT - 1)) >> _RATE_SHIFT
