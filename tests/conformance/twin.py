"""The PMU of a guest (rules of KVM 5.0 or 7.0) or of the hardware in plain integers, written from the rules.

Every decision names its rule, and a twin can be made with one rule inverted: what its cases then expect shows
which cases the rule has. `RegisterTwin` is what an access does to the registers; `Twin` in `counting.py` adds
what code does to the counters.

Counters are known by their bit in GLOBAL_CTRL: general-purpose ones from 0, fixed ones from 32.
"""

from __future__ import annotations

from typing import Final

from tests.conformance.setup import Setup

WIDTH: Final = 48
TOP: Final = (1 << WIDTH) - 1
PMC, EVENTSEL, FULL_PMC, FIXED_CTR = 0xC1, 0x186, 0x4C1, 0x309
MISC_ENABLE, DEBUGCTL, PERF_CAPABILITIES, LVTPC = 0x1A0, 0x1D9, 0x345, 0x834
FIXED_CTR_CTRL, GLOBAL_STATUS, GLOBAL_CTRL, GLOBAL_OVF_CTRL = 0x38D, 0x38E, 0x38F, 0x390
MASKED: Final = 1 << 16
NMI: Final = 0x400
FIXED: Final = 0x40000000
"""Bit of a RDPMC index."""

ABSENT: Final = {
    "A1.14": (0x391,),  # GLOBAL_STATUS_SET
    "A1.15": (0x392,),  # GLOBAL_INUSE
    "A1.16": (0x1C8, 0x1C9, *range(0x680, 0x690), *range(0x6C0, 0x6D0)),  # LBR
    "A1.17": (0x3F1, 0x3F6, 0x600),  # PEBS and debug store
    "A1.18": (0x1A6, 0x1A7),  # off-core response
    "E1.9": (0xC0000300, 0xC0000301, 0xC0000302, 0xC0010000, 0xC0010004, 0xC0010200, 0xC0010201),  # AMD
}
"""Registers that are not offered, by the rule that says so."""

ARCHITECTURAL_EVENTS: Final = (
    "cycles",
    "instructions",
    "ref-cycles",
    "llc-references",
    "llc-misses",
    "branches",
    "branch-misses",
)
_MOST_GP = 8
_MOST_FIXED = 3


def bits(*positions: int) -> int:
    """Return a word with these bits set."""
    return sum(1 << position for position in positions)


def extended(value: int) -> int:
    """Return the low 32 bits, sign-extended to the counters' width."""
    low = value & 0xFFFFFFFF
    return low | (TOP ^ 0xFFFFFFFF) if low >> 31 else low


class Fault(Exception):
    """#GP."""


class RegisterTwin:
    """A PMU's registers.

    Parameters
    ----------
    setup : Setup
        Whose.
    inverted : str
        Number of the rule that is to hold the other way round.
    """

    def __init__(self, setup: Setup, inverted: str = "") -> None:
        self.setup = setup
        self.inverted = inverted
        self.asked: set[str] = set()
        self.hardware = setup.design == "native"
        self.new = setup.kvm == "7.0" and not self.hardware
        self.old = setup.kvm == "5.0" and not self.hardware
        self.version = 3 if self.hardware else setup.version
        self.nr_gp = setup.nr_gp
        self.nr_fixed = setup.nr_fixed if self.is_("A6.5") and self.version > 1 else 0
        if not self.is_("A6.5") and self.version == 1:
            self.nr_fixed = setup.nr_fixed
        self.value = dict.fromkeys([*range(_MOST_GP), *range(32, 32 + _MOST_FIXED)], 0)
        self.eventsel = [0] * _MOST_GP
        self.fixed_ctrl = self.status = self.ovf_ctrl = self.debugctl = 0
        self.lvtpc = MASKED if self.is_("A4.10") else NMI
        self.global_ctrl = self._global_ctrl_at_reset()
        self.host_writes = False
        """Whether the host is writing, as for a migration."""
        self.capabilities = bits(13) if self.full_width else 0
        self.stray: dict[int, int] = {}
        """Registers that exist only because a rule is inverted."""

    # -- rules --

    def is_(self, *rules: str) -> bool:
        """Return True, unless one of the rules is inverted."""
        self.asked.update(rules)
        return self.inverted not in rules

    def gap(self, where: bool, *rules: str) -> bool:
        """Return whether a difference applies: it does where it should, unless its rule is inverted."""
        return where and self.is_(*rules)

    @property
    def full_width(self) -> bool:
        """Whether PERF_CAPABILITIES bit 13 is offered."""
        if self.gap(self.old, "D3.19"):
            return False
        return self.hardware or self.is_("E1.4")

    def _global_ctrl_at_reset(self) -> int:
        counters = (1 << self.nr_gp) - 1
        if self.version == 1:
            return counters
        if self.hardware:
            return counters if self.is_("A4.18") else 0
        if self.gap(self.old, "D3.26"):
            return 0
        return counters if self.is_("E1.7") else 0

    @property
    def counters(self) -> int:
        """The bits of all counters that there are."""
        return ((1 << self.nr_gp) - 1) | (((1 << self.nr_fixed) - 1) << 32)

    # -- which register --

    def _index(self, msr: int, first: int, count: int, rule: str) -> int | None:
        """Return which one of a row of registers a number is, if it exists."""
        if not first <= msr < first + count:
            return None
        return msr - first if self.is_(rule) else None

    def _gp_index(self, msr: int, first: int, rule: str) -> int | None:
        count = self.nr_gp if self.is_("A3.7") else _MOST_GP
        return self._index(msr, first, count, rule)

    def _counter(self, msr: int) -> int | None:
        """Return the counter of a counter's register."""
        index = self._gp_index(msr, PMC, "A1.1")
        if index is None and (self.hardware or self.capabilities):
            index = self._gp_index(msr, FULL_PMC, "A1.3")
            if index is not None and not self.is_("A1.4"):
                index ^= 1
        if index is None:
            fixed = self._index(msr, FIXED_CTR, self.nr_fixed, "A1.5")
            index = None if fixed is None else 32 + fixed
        return index

    def _exists(self, msr: int) -> bool:
        """Return whether one of the registers exists that version 2 brings."""
        needed = self.version > 1 or not self.is_("D3.17", "A6.6")
        rule = {
            FIXED_CTR_CTRL: "A1.6",
            GLOBAL_STATUS: "A1.7",
            GLOBAL_CTRL: "A1.8",
            GLOBAL_OVF_CTRL: "A1.9",
        }[msr]
        return needed and self.is_(rule)

    def _dropped(self, msr: int) -> bool:
        """Return whether an absent register is one of those that the P6 had: ignored, reads 0."""
        if self.hardware or not self.is_("D3.18", "F1.5"):
            return False
        return msr in (0xC1, 0xC2, 0x186, 0x187)

    def _stray(self, msr: int) -> bool:
        """Return whether a register is only there because the rule that denies it is inverted."""
        return any(msr in msrs and not self.is_(rule) for rule, msrs in ABSENT.items())

    # -- what may be written --

    def _eventsel_valid(self) -> int:
        valid = 0xFFFFFFFF
        if not self.hardware and self.is_("A2.7", "D3.13", "E3.4"):
            valid &= ~bits(21)
        if self.hardware and not self.is_("A2.7"):
            valid &= ~bits(21)
        if self.hardware == self.is_("A2.11"):
            valid |= bits(32, 33)
        if not self.is_("A2.12", "A3.1"):
            valid |= 0xFFFFFFFC00000000
        if not self.is_("A2.5", "D3.14"):
            valid &= ~bits(19)
        if not self.is_("A2.4"):
            valid &= ~bits(18)
        return valid

    def _fixed_ctrl_valid(self) -> int:
        field = 0xB
        if (self.hardware and self.is_("A3.10")) or (not self.hardware and not self.is_("D3.2")):
            field = 0xF
        count = self.nr_fixed
        if self.gap(self.old, "D3.3") or (self.new and not self.is_("E3.2", "F1.6")):
            count = _MOST_FIXED
        valid = sum(field << 4 * i for i in range(count))
        return valid if self.is_("A3.2") else valid | bits(12)

    def _global_ctrl_valid(self) -> int:
        valid = self.counters if self.is_("A3.3", "D3.5") else self.counters | bits(35)
        return valid if self.is_("A3.8") else valid | 0xFF

    def _ovf_ctrl_valid(self) -> int:
        valid = self.counters | bits(62, 63)
        if not self.is_("D3.7", "E3.3") and not self.hardware:
            valid = self.counters
        if self.hardware == self.is_("A1.12"):
            valid |= bits(55, 61)
        if not self.is_("A3.8"):
            valid |= 0xFF
        if not self.is_("A4.20"):
            valid |= bits(58, 59, 60)
        return valid if self.is_("A3.4") else valid | bits(35)

    def _lvtpc_valid(self) -> int:
        return 0x7FF | bits(12, 16) if self.hardware and self.is_("A4.15") else (1 << 64) - 1

    # -- accesses --

    def write(self, msr: int, value: int) -> None:
        """Execute WRMSR; `Fault` for #GP."""
        counter = self._counter(msr)
        selector = self._gp_index(msr, EVENTSEL, "A1.2")
        if counter is not None:
            self._write_counter(msr, counter, value)
        elif selector is not None:
            self._demand(value, self._eventsel_valid())
            self._demand_unfiltered(selector, value)
            self._write_eventsel(selector, value)
        elif FIXED_CTR_CTRL <= msr <= GLOBAL_OVF_CTRL:
            self._write_global(msr, value)
        elif msr == LVTPC:
            self._demand(value, self._lvtpc_valid())
            self._write_lvtpc(value & ~bits(12) if self.hardware and self.is_("A4.15") else value)
        elif msr == DEBUGCTL and self.is_("A1.11"):
            self._write_debugctl(value)
        elif msr == PERF_CAPABILITIES and self._may_write_capabilities():
            self._demand(value, bits(13))
            self.capabilities = value
        elif self._stray(msr):
            self.stray[msr] = value
        elif not self._dropped(msr):
            raise Fault

    def _may_write_capabilities(self) -> bool:
        if self.host_writes and self.full_width and self.is_("D3.28"):
            return True
        return not self.is_("A3.6", "E3.5", "F3.1")

    @staticmethod
    def _demand(value: int, valid: int) -> None:
        if value & ~valid:
            raise Fault

    def _demand_unfiltered(self, index: int, value: int) -> None:
        """Refuse an event that the filter blocks: nobody does."""

    def _write_global(self, msr: int, value: int) -> None:
        if not self._exists(msr):
            raise Fault
        if msr == FIXED_CTR_CTRL:
            self._demand(value, self._fixed_ctrl_valid())
            self._write_fixed_ctrl(value)
        elif msr == GLOBAL_CTRL:
            self._demand(value, self._global_ctrl_valid())
            self._write_global_ctrl(value)
        elif msr == GLOBAL_STATUS:
            if not self.host_writes and self.is_("A3.5"):
                raise Fault
            if self.host_writes and (not self.is_("D3.6") or (self.new and value & ~self._ovf_ctrl_valid())):
                raise Fault
            self.status = value
        else:
            self._demand(value, self._ovf_ctrl_valid())
            self.ovf_ctrl = value
            if not self.host_writes or not self.is_("D3.27"):
                self.status &= ~value if self.is_("A1.13") else 0

    def _write_lvtpc(self, value: int) -> None:
        self.lvtpc = value

    def _write_debugctl(self, value: int) -> None:
        if self.hardware:
            self._demand(value, bits(0, 1, *range(6, 16)))
            self.debugctl = value
        elif value & ~bits(0, 1) and self.is_("D3.20", "D5.12"):
            raise Fault
        elif not self.is_("D3.20"):
            self.debugctl = value

    def _write_counter(self, msr: int, counter: int, value: int) -> None:
        if self.host_writes and msr < FULL_PMC and self.is_("D3.24"):
            word = value & TOP
        elif msr >= FULL_PMC:
            if value > TOP and self.is_("A3.9", "E3.6"):
                raise Fault
            word = value & TOP if self.is_("A4.2") else extended(value)
        elif counter < 32:
            word = extended(value) if self.is_("A4.1", "D3.9") else value & TOP
        elif self.gap(self.old, "D3.10", "D5.9"):
            word = extended(value)
        else:
            if value > TOP and not self.is_("A3.11"):
                raise Fault
            word = value & TOP if self.is_("A4.3", "E1.8") else extended(value)
        self.value[counter] = word
        self._counter_written(counter)

    def _write_eventsel(self, index: int, value: int) -> None:
        if self.eventsel[index] == value and self.is_("D3.12"):
            return
        self.eventsel[index] = value
        self._program(index)

    def _write_fixed_ctrl(self, value: int) -> None:
        before = self.fixed_ctrl
        self.fixed_ctrl = value
        for i in range(_MOST_FIXED):
            if (before ^ value) >> 4 * i & 15 or not self.is_("D3.1"):
                self._program(32 + i)

    def _write_global_ctrl(self, value: int) -> None:
        changed = self.global_ctrl ^ value
        self.global_ctrl = value
        for counter in self.value:
            if changed >> counter & 1 or not self.is_("D3.4"):
                self._program(counter)

    def _program(self, counter: int) -> None:
        """Begin to count anew, or stop: its control has changed."""

    def _counter_written(self, counter: int) -> None:
        """Go on from a count that was just written."""

    def read(self, msr: int) -> int:
        """Execute RDMSR; `Fault` for #GP."""
        counter = self._counter(msr)
        selector = self._gp_index(msr, EVENTSEL, "A1.2")
        if counter is not None:
            return self._count_of(counter)
        if selector is not None:
            return self.eventsel[selector] if self.is_("D3.15") else 0
        if FIXED_CTR_CTRL <= msr <= GLOBAL_OVF_CTRL and self._exists(msr):
            return self._read_global(msr)
        if msr == LVTPC:
            return self.lvtpc
        if msr == DEBUGCTL and self.is_("A1.11"):
            return self.debugctl
        if msr == PERF_CAPABILITIES and self.full_width and self.is_("A1.10"):
            return 0x32C4 if self.hardware else self.capabilities
        if self._stray(msr):
            return self.stray.get(msr, 0)
        if self._dropped(msr):
            return 0
        raise Fault

    def _read_global(self, msr: int) -> int:
        if msr == GLOBAL_OVF_CTRL:
            if self.hardware:
                raise Fault
            if self.gap(self.old, "D3.8"):
                return self.ovf_ctrl
            return 0 if self.is_("E3.15") else self.ovf_ctrl
        return {
            FIXED_CTR_CTRL: self.fixed_ctrl,
            GLOBAL_STATUS: self.status,
            GLOBAL_CTRL: self.global_ctrl,
        }[msr]

    def rdpmc(self, index: int) -> int:
        """Execute RDPMC; `Fault` for #GP."""
        if self.gap(self.old, "D3.22"):
            kind, number, fast = index >> 30 & 1, index & 0x3FFFFFFF, index >> 31
            fast = fast if self.is_("D3.23") else 0
            kind <<= 14
        else:
            kind, number, fast = index >> 16, index & 0xFFFF, 0
            if kind >> 15 and not self.is_("A5.5", "F1.4"):
                kind, fast = kind & 0x7FFF, 1
            if kind not in (0, 0x4000) and not self.is_("A5.4", "E3.7"):
                kind &= 0x4000
        value = self._count_of(self._of_index(kind, number))
        if not self.is_("A4.4", "F1.3"):
            value ^= 1
        return value & 0xFFFFFFFF if fast else value

    def _of_index(self, kind: int, number: int) -> int:
        if kind == 0 and number < self.nr_gp and self.is_("A5.1"):
            return number
        if kind == 0x4000 and number < self.nr_fixed and self.is_("A5.2"):
            return 32 + number
        if kind in (0, 0x4000) and not self.is_("A5.3"):
            return 0
        if (kind, number) == (0, 64) and not self.is_("F3.4"):
            return 0
        if (kind << 16 | number) in (0x10000, 0x10001, 0x10002) and not self.is_("D3.25"):
            return 0
        raise Fault

    def leaf_0a(self) -> tuple[int, int, int, int]:
        """Return EAX, EBX, ECX and EDX of CPUID leaf 0xA."""
        version = self.version if self.is_("A6.1") else 4
        nr_gp = self.nr_gp if self.is_("A6.2") else 2
        width = WIDTH if self.is_("A6.3") else 40
        names = (
            "cycles",
            "instructions",
            "ref-cycles",
            "llc-references",
            "llc-misses",
            "branches",
            "branch-misses",
        )
        absent = {names.index(name) for name in self.setup.hidden} if self.is_("A6.4") else {0, 1, 2}
        edx = self.nr_fixed | width << 5 if self.version > 1 else 0
        if self.gap(self.new, "A6.7"):
            edx |= bits(15)
        return version | nr_gp << 8 | width << 16 | 7 << 24, bits(*absent), int(not self.is_("A6.8")), edx

    def _count_of(self, counter: int) -> int:
        """Return what a counter shows."""
        return self.value[counter]
