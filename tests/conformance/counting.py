"""What code and emulated instructions do to a twin's counters: counts, overflows, PMIs, the event filter."""

from __future__ import annotations

from typing import Final

from tests.conformance.setup import (
    BUS_KHZ,
    CORE_KHZ,
    CPUID,
    EMULATE,
    HALF,
    HOST_READ,
    HOST_WRITE,
    KERNEL,
    LOOKS,
    RATES,
    RDMSR,
    RDPMC,
    SWITCH,
    TSC_KHZ,
    USER,
    WORK,
    WRMSR,
    Seen,
    Setup,
    Step,
)
from tests.conformance.twin import MASKED, TOP, Fault, RegisterTwin, bits

INSTRUCTIONS: Final = 0x00C0
CYCLES: Final = 0x003C
BRANCHES: Final = 0x00C4
BUS_CYCLES: Final = 0x013C
FIXED_EVENTS: Final = (INSTRUCTIONS, CYCLES, 0x0300)

_EVERY_OTHER: Final = -2
"""In place of a rate: an event in every other cycle."""
_EDGE, _INV, _CMASK = bits(18), bits(23), 0xFF << 24
_FREEZE = bits(12)


class Twin(RegisterTwin):
    """A PMU whose counters count; `step` does what a guest does.

    `left` says after how many events a counter's overflow is noticed. By the manual that is when it wraps; it
    is kept apart because a host event that was armed once knows nothing of what is written later.
    """

    def __init__(self, setup: Setup, inverted: str = "") -> None:
        super().__init__(setup, inverted)
        self.legacy = setup.design == "legacy"
        self.left: dict[int, int | None] = dict.fromkeys(self.value)
        self.loose = dict.fromkeys(self.value, 0)
        """By how much a counter that follows the clock may be off: a fraction for each stretch of code."""
        self.pmis = 0
        self.position = 0
        """User cycles so far: of an event that not every cycle has, it decides which ones do."""
        self.kept = False
        """A PMI that waits for LVTPC to be unmasked: nowhere, but with a rule inverted."""
        self.begun = dict(self.value)
        self.events: set[int] = set()
        """Counters with a host event, under legacy; how many were created and released."""
        self.created = self.released = 0

    def step(self, step: Step) -> Seen:
        """Do a step; return what the guest sees of it."""
        before = self.pmis
        try:
            value = self._do(step)
            self._retire(step)
        except Fault:
            return Seen(1, step.value if step.kind in (WRMSR, HOST_WRITE) else 0, self.pmis - before)
        return Seen(0, value, self.pmis - before)

    def _do(self, step: Step) -> int:
        if step.kind == CPUID:
            return self.leaf_0a()[step.register]
        if step.kind == HOST_READ:
            return self.read(step.register)
        if step.kind == HOST_WRITE:
            self.host_writes = True
            try:
                self.write(step.register, step.value)
            finally:
                self.host_writes = False
            return step.value
        if step.kind == WORK:
            return self._host_work(step)
        if step.kind in LOOKS:
            return step.value if self.is_("B10.2", "B10.4") else ~step.value
        if step.kind == WRMSR:
            self.write(step.register, step.value)
            return step.value
        if step.kind == RDMSR:
            return self.read(step.register)
        if step.kind == RDPMC:
            return self.rdpmc(step.register)
        if step.kind == EMULATE:
            self._emulate(branch=bool(step.register & 2), user=step.value == 2)
            return 0
        if step.kind == SWITCH and not self.is_("B10.1"):
            self.value = dict.fromkeys(self.value, 0)
        assert step.kind in (USER, KERNEL, SWITCH)
        self._code(step.value, user=step.kind != KERNEL)
        return step.value

    def _host_work(self, step: Step) -> int:
        """Return how many events were created and released; for `optimized` the case itself says so."""
        if self.legacy:
            return self.created << 16 | self.released
        return step.value if self.is_("B10.3") else step.value & ~0xFFFF

    def _retire(self, step: Step) -> None:
        """Count an access itself, where it counts: KVM 7.0 does when it goes on behind it."""
        if step.kind in (HOST_READ, HOST_WRITE) and self.is_("D3.29"):
            return
        if step.kind not in (WRMSR, RDMSR, RDPMC, HOST_READ, HOST_WRITE):
            return
        if self.new and self.is_("E3.16"):
            self._emulate(branch=False, user=False)
        elif not self.new and not self.is_("A4.19"):
            on = [c for c in self._counting(user=True) if self._event(c) == INSTRUCTIONS]
            self._count(dict.fromkeys(on, 1))

    def slack(self, step: Step) -> int:
        """Return by how much the word that a step read may be off."""
        if step.kind in (RDMSR, HOST_READ):
            counter = self._counter(step.register)
            return 0 if counter is None else self.loose[counter]
        if step.kind == RDPMC and step.register & 0xFFFF < 8:
            return self.loose.get((32 if step.register >> 30 & 1 else 0) + (step.register & 0xFFFF), 0)
        return 0

    # -- whether a counter counts --

    def _levels(self, counter: int) -> tuple[bool, bool]:
        """Return whether a counter's own control lets it count at CPL 3, and at CPL 0."""
        if counter < 32:
            word = self.eventsel[counter]
            on = bool(word >> 22 & 1) if self.is_("A2.8") else not word >> 22 & 1
            user, kernel = bool(word >> 16 & 1), bool(word >> 17 & 1)
            return (
                on and (user or not self.is_("A2.2")),
                on and (kernel or not self.is_("A2.3")),
            )
        field = self.fixed_ctrl >> 4 * (counter - 32) & 3
        if not self.is_("A2.15"):
            field = field >> 1 | (field & 1) << 1
        return bool(field & 2), bool(field & 1)

    def _globally(self, counter: int) -> bool:
        if self.version == 1:
            return counter < self.nr_gp and self.is_("A2.16")
        on = bool(self.global_ctrl >> counter & 1)
        return on if self.is_("A2.13" if counter < 32 else "A2.14") else True

    def enabled(self, counter: int) -> bool:
        """Return whether a counter's control and GLOBAL_CTRL let it count at some level."""
        own = self.eventsel[counter] >> 22 & 1 if counter < 32 else self.fixed_ctrl >> 4 * (counter - 32) & 3
        return bool(own) and self._globally(counter)

    def _count_of(self, counter: int) -> int:
        return self.value[counter] if self.is_("D3.16") else self.begun[counter]

    def _interrupts(self, counter: int) -> bool:
        if counter < 32:
            return bool(self.eventsel[counter] >> 20 & 1) or not self.is_("A2.6", "A4.8")
        return bool(self.fixed_ctrl >> 4 * (counter - 32) & 8) or not self.is_("A4.9")

    def _event(self, counter: int) -> int:
        """Return event and umask of a counter."""
        return self.eventsel[counter] & 0xFFFF if counter < 32 else FIXED_EVENTS[counter - 32]

    def _rate(self, counter: int) -> int:
        """Return a counter's events in a cycle of user code; that of an unknown event is 0."""
        word = self.eventsel[counter] if counter < 32 else FIXED_EVENTS[counter - 32]
        rate = RATES.get(word & 0xFFFF if self.is_("A2.1") else word & 0xFF, 0)
        if self.setup.hidden and not self.is_("F1.1"):
            return 0
        cmask = word >> 24 & 0xFF
        if word & 0xFFFF == HALF and not cmask and counter < 32:
            return _EVERY_OTHER
        if word & _EDGE:
            return 0  # the model has no rate for it unless a scenario asks
        if not cmask:
            return rate if self.is_("A2.9") or not word & _INV else 0
        if not self.is_("A2.10"):
            return rate
        known = {(BRANCHES, 2, False), (BRANCHES, 5, False), (BRANCHES, 5, True)}
        inverted = bool(word & _INV)
        if (word & 0xFFFF, cmask, inverted) not in known:
            return 0
        return int((rate >= cmask) != (inverted and self.is_("A2.9")))

    def _passes(self, counter: int) -> bool:
        """Return whether the event filter lets a counter count."""
        wanted = self.setup.filter
        if wanted is None or not self.is_("E1.1"):
            return True
        allow = wanted.action == "allow"
        if counter >= 32:
            listed = bool(wanted.fixed >> (counter - 32) & 1)
            if not self.is_("E4.7"):
                listed = self._listed(self._event(counter))
            return (listed == allow) if self.is_("E4.6") else True
        listed = self._listed(self._event(counter))
        if self.eventsel[counter] & (_CMASK | _EDGE | _INV) and not self.is_("E4.9"):
            listed = False
        rule = "E4.1" if allow else "E4.2"
        return listed == allow if self.is_(rule) else True

    def _listed(self, code: int) -> bool:
        """Return whether an event is in the filter's list."""
        wanted = self.setup.filter
        assert wanted is not None
        event, umask = code & 0xFF, code >> 8
        if not wanted.masked:
            entries = [each if self.is_("E4.3") else each & 0xFFFF for each in wanted.events]
            return code in entries
        found = {0: False, 1: False}
        for entry in wanted.events:
            match, mask, exclude = entry >> 8 & 0xFF, entry >> 56, entry >> 55 & 1
            if entry & 0xFF == event and (umask & mask == match if self.is_("E4.4") else umask == match):
                found[exclude] = True
        return found[0] and not (found[1] and self.is_("E4.5"))

    def still(self, counter: int) -> bool:
        """Return whether the host has no hardware counter for one that is enabled."""
        if self.setup.taken == "all":
            # A fixed counter knows neither counter mask nor edges.
            odd = counter < 32 and self.eventsel[counter] & (_CMASK | _EDGE | _INV)
            return bool(odd or self._event(counter) not in (INSTRUCTIONS, 0x0300)) and self.is_("D5.1")
        return self.setup.taken == "cycles" and counter == 33 and not self.is_("D5.2")

    def _demand_unfiltered(self, index: int, value: int) -> None:
        before, self.eventsel[index] = self.eventsel[index], value
        passes = self._passes(index) or self.is_("E4.8")
        self.eventsel[index] = before
        if not passes:
            raise Fault

    # -- overflow --

    def _program(self, counter: int) -> None:
        self._reprogram(counter)
        self.begun[counter] = self.value[counter]
        if not self.enabled(counter) and not self.is_("F1.2"):
            self.value[counter] = 0
        self._arm(counter)

    def _reprogram(self, counter: int) -> None:
        """Release a counter's host event, if it has one, and create another, if it is to count."""
        self.released += counter in self.events
        self.events.discard(counter)
        if self.enabled(counter) and self._passes(counter):
            self.created += 1
            self.events.add(counter)

    def _arm(self, counter: int) -> None:
        """Note after how many events a counter's overflow is noticed, as long as nothing is written."""
        value = self.value[counter]
        self.left[counter] = None
        if not self.enabled(counter):
            return
        if value == 0 and self.gap(self.legacy and self.old, "D5.5"):
            return
        if value == 0 and self.new and not self.is_("E1.3"):
            return
        left = TOP + 1 - value
        # A host event's period is at least two events (x86_perf_event_set_period()).
        self.left[counter] = max(left, 2) if self.gap(self.legacy, "D5.13") else left

    def _counter_written(self, counter: int) -> None:
        self.loose[counter] = 0
        self.begun[counter] = self.value[counter]
        if self.gap(self.legacy and self.old, "D3.11", "D5.6") or not self.is_("E1.2"):
            return
        self._arm(counter)

    def _overflow(self, due: list[int], *, reprograms: bool = True) -> None:
        """Notice overflows: status, PMI; the counters go on."""
        raised = False
        for counter in due:
            if self.is_("A4.6", "E3.8", "F3.2") and (self.is_("A4.7") or self._interrupts(counter)):
                self.status |= 1 << counter
            raised = raised or self._interrupts(counter)
        if raised:
            self._pmi()
            if self.hardware and self.debugctl & _FREEZE and self.is_("A4.16"):
                self.global_ctrl = 0
        elif self.hardware and self.debugctl & _FREEZE and not self.is_("A4.17"):
            self.global_ctrl = 0
        for counter in due:
            if reprograms:
                self._reprogram(counter)
            self._arm(counter)

    def _pmi(self) -> None:
        if self.lvtpc & MASKED and self.is_("A4.11"):
            self.kept = not self.is_("A4.12")
            return
        self.pmis += 1
        if self.is_("A4.13", "E1.6") and not self.gap(self.legacy and self.old, "D5.4"):
            self.lvtpc |= MASKED if self.is_("A4.14") else 0

    def _write_lvtpc(self, value: int) -> None:
        super()._write_lvtpc(value)
        if self.kept:
            self.kept = False
            self._pmi()

    # -- code --

    def _counting(self, *, user: bool) -> list[int]:
        level = 0 if user else 1
        there = [c for c in self.value if self.counters >> c & 1]
        on = [
            c
            for c in there
            if self._levels(c)[level] and self._globally(c) and self._passes(c) and not self.still(c)
        ]
        return on if self.is_("F3.3") else on[:1]

    def knows(self, *, user: bool) -> bool:
        """Return whether the twin knows what such code would count: of the kernel's, it knows the cycles."""
        return user or all(self._event(c) == CYCLES and self._rate(c) == 1 for c in self._counting(user=user))

    def _code(self, cycles: int, *, user: bool) -> None:
        """Let code run; PMIs come where a counter overflows, to the cycle."""
        while cycles:
            on = {c: self._rate(c) for c in self._counting(user=user) if not self._timed(c)}
            step = cycles
            for counter, rate in on.items():
                left = self.left[counter]
                if left is not None and rate == _EVERY_OTHER:
                    step = min(step, 2 * left - (self.position & 1))
                elif left is not None and rate:
                    step = min(step, -(-left // rate))
            cycles -= step
            half = (self.position + step) // 2 - self.position // 2
            self._count({c: half if rate == _EVERY_OTHER else rate * step for c, rate in on.items()})
            self.position += step if user else 0
            self._tick(step, user=user)
            self._notice(on)

    def _count(self, gains: dict[int, int]) -> None:
        for counter, gain in gains.items():
            total = self.value[counter] + gain
            self.value[counter] = total & TOP if self.is_("A4.5") else min(total, TOP)
            if total > TOP and self.legacy and self.old and not self.is_("D5.7"):
                self.status |= 1 << counter
            left = self.left[counter]
            if left is not None:
                self.left[counter] = left - gain

    def _notice(self, on: dict[int, int]) -> None:
        due = [c for c in on if (left := self.left[c]) is not None and left <= 0]
        if due:
            self._overflow(due)

    def _timed(self, counter: int) -> bool:
        """Return whether a counter follows the clock instead of the cycles."""
        word = self.eventsel[counter] if counter < 32 else FIXED_EVENTS[counter - 32]
        return counter == 34 or word & 0xFF00FFFF | word & _EDGE == BUS_CYCLES

    def _tick(self, cycles: int, *, user: bool) -> None:
        for counter in self._counting(user=user):
            if self._timed(counter):
                khz = TSC_KHZ if counter == 34 or not self.is_("D5.11") else BUS_KHZ
                self.value[counter] = (self.value[counter] + cycles * khz // CORE_KHZ) & TOP
                self.loose[counter] += 1

    def _emulate(self, *, branch: bool, user: bool) -> None:
        """Count an instruction that KVM emulates, as 7.0 does (kvm_pmu_trigger_event())."""
        if self.gap(self.old, "D5.3") or (self.new and not self.is_("E1.5")):
            return
        events = {INSTRUCTIONS, BRANCHES} if branch else {INSTRUCTIONS}
        for counter in self.value:
            if self.counters >> counter & 1 and self._sees_emulated(counter, events, user=user):
                self._count_one(counter)

    def _sees_emulated(self, counter: int, events: set[int], *, user: bool) -> bool:
        """Return whether a counter counts an emulated instruction."""
        levels = self._levels(counter)
        return (
            (self._event(counter) in events or not self.is_("E3.9"))
            and (self.enabled(counter) or not self.is_("E3.10"))
            and (levels[0 if user else 1] or (any(levels) and not self.is_("E3.11")))
            and (self._passes(counter) or not self.is_("E3.12"))
        )

    def _count_one(self, counter: int) -> None:
        total = self.value[counter] + 1
        self.value[counter] = total & TOP
        self._arm(counter)
        if total > TOP and self.is_("E3.13"):
            self._overflow([counter], reprograms=False)
