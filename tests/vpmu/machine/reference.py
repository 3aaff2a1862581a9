"""A PMU of plain Python integers, written from the manual, and a host that grants a machine time against it.

Version 2, four general-purpose counters, three fixed ones, 48 bits, full-width writes; accesses leave the
guest, and emulated instructions count, as in KVM of Linux 7.0. The machine is tested against it: event in,
exact effects out.
"""

from dataclasses import dataclass, field

from vpmu.actors.outside import Grant, Report, Result, Watched
from vpmu.kernels.guest.step import GUEST_ACCESS, GUEST_DONE, GUEST_HALT, GUEST_OVERFLOW
from vpmu.kernels.perf.interrupt import ACCESS_EMULATE, ACCESS_RDPMC, ACCESS_READ, ACCESS_WRITE
from vpmu.machine.clock import Rates
from vpmu.machine.machine import Machine, MachineConfig

WIDTH = 48
MASK = (1 << WIDTH) - 1
LEAF = (0x07300402, 0, 0, 0x603)
CORE_KHZ, TSC_KHZ, BUS_KHZ = 2_800_000, 2_200_000, 100_000
RATES = Rates(*((khz << 28) // 1_000_000 for khz in (CORE_KHZ, TSC_KHZ, BUS_KHZ)))

PMC, FULL, EVENTSEL, FIXED, FIXED_CTRL, STATUS, CTRL, OVF_CTRL = (
    0xC1,
    0x4C1,
    0x186,
    0x309,
    0x38D,
    0x38E,
    0x38F,
    0x390,
)
LVTPC, CAPABILITIES = 0x834, 0x345
KIND_OF_CODE = {0x3C: 0, 0xC0: 1, 0xC4: 2, 0xC5: 3, 0x4F2E: 4, 0x412E: 5}
KIND_OF_FIXED = (1, 0, 16)
_USR, _OS, _INT, _EN = 1 << 16, 1 << 17, 1 << 20, 1 << 22
_ALL = 0x70000000F


class Fault(Exception):
    """#GP."""


@dataclass
class ReferencePmu:
    """The registers; bit n of the masks is counter n, fixed ones from 32 on."""

    counters: dict[int, int] = field(default_factory=lambda: dict.fromkeys([0, 1, 2, 3, 32, 33, 34], 0))
    eventsel: list[int] = field(default_factory=lambda: [0] * 4)
    fixed_ctrl: int = 0
    ctrl: int = 0xF
    status: int = 0
    lvtpc: int = 1 << 16
    pmi: int | None = None

    def counting(self, number: int) -> tuple[int, int, bool] | None:
        """Return kind, levels (1: CPL 0, 2: CPL 3) and whether a counter interrupts; None if it stands."""
        if not self.ctrl >> number & 1:
            return None
        if number < 32:
            select = self.eventsel[number]
            levels = bool(select & _OS) | bool(select & _USR) << 1
            kind = KIND_OF_CODE.get(select & 0xFFFF)
            return None if not select & _EN or kind is None else (kind, levels, bool(select & _INT))
        nibble = self.fixed_ctrl >> 4 * (number - 32) & 0xF
        return (KIND_OF_FIXED[number - 32], nibble & 3, bool(nibble & 8)) if nibble & 3 else None

    def retire(self, kind: int, level: int, events: int) -> None:
        """Count events; at an overflow set the status, and request a PMI if the counter interrupts."""
        for number in self.counters:
            counting = self.counting(number)
            if counting is None or counting[0] != kind or not counting[1] & level:
                continue
            total = self.counters[number] + events
            self.counters[number] = total & MASK
            if total > MASK:
                self.status |= 1 << number
                if counting[2] and not self.lvtpc & 1 << 16:
                    self.pmi, self.lvtpc = self.lvtpc, self.lvtpc | 1 << 16

    def watched(self) -> tuple[Watched, ...]:
        """Return what counts, and how far it is to the next PMI."""
        found = []
        for number, value in self.counters.items():
            counting = self.counting(number)
            if counting is not None:
                found.append(Watched(counting[0], counting[1], MASK + 1 - value if counting[2] else 0))
        return tuple(found)

    def read(self, number: int) -> int:
        """RDMSR."""
        plain = {FIXED_CTRL: self.fixed_ctrl, STATUS: self.status, CTRL: self.ctrl, OVF_CTRL: 0,
                 LVTPC: self.lvtpc, CAPABILITIES: 1 << 13}  # fmt: skip
        if number in plain:
            return plain[number]
        if EVENTSEL <= number < EVENTSEL + 4:
            return self.eventsel[number - EVENTSEL]
        return self.counters[self._counter(number)]

    def write(self, number: int, value: int) -> None:
        """WRMSR."""
        if EVENTSEL <= number < EVENTSEL + 4:
            self.eventsel[number - EVENTSEL] = value
        elif number == FIXED_CTRL:
            self.fixed_ctrl = value
        elif number == CTRL:
            if value & ~_ALL:
                raise Fault
            self.ctrl = value
        elif number == OVF_CTRL:
            self.status &= ~value
        elif number == LVTPC:
            self.lvtpc = value
        elif number in (STATUS, CAPABILITIES) or (FULL <= number < FULL + 4 and value > MASK):
            raise Fault
        else:
            signed = (value & 0xFFFFFFFF ^ 1 << 31) - (1 << 31) if PMC <= number < PMC + 4 else value
            self.counters[self._counter(number)] = signed & MASK

    @staticmethod
    def _counter(number: int) -> int:
        for first, counters, base in ((PMC, 4, 0), (FULL, 4, 0), (FIXED, 3, 32)):
            if first <= number < first + counters:
                return base + number - first
        raise Fault

    def rdpmc(self, index: int) -> int:
        """RDPMC."""
        number = index & 0xFFFF
        if index >> 16 not in (0, 0x4000) or number >= (3 if index >> 16 else 4):
            raise Fault
        return self.counters[number + (32 if index >> 16 else 0)]


@dataclass
class Host:
    """Grants a machine stretches of time, and carries its accesses out.

    Parameters
    ----------
    machine
        The guest.
    slice_ns
        How long a stretch is at most.
    cost_ns
        What an access takes.
    """

    machine: Machine
    slice_ns: int = 1_000_000
    cost_ns: int = 100
    pmu: ReferencePmu = field(default_factory=ReferencePmu)
    now_ns: int = 0
    reports: list[Report] = field(default_factory=list)
    accesses: list[tuple[int, int, int]] = field(default_factory=list)
    pmis: int = 0
    ran_ns: int = 0

    def run(self, until_ns: int = 1_000_000_000) -> None:
        """Run the machine to its end, or to a time."""
        result: Result | None = None
        while self.now_ns < until_ns:
            pmi, self.pmu.pmi = self.pmu.pmi, None
            self.pmis += pmi is not None
            watched = self.pmu.watched()
            grant = Grant(self.now_ns, self.now_ns + self.slice_ns, result, pmi, watched)
            report = self.machine.go(grant)
            self.check(grant, report)
            for (kind, level), events in sorted(report.retired.items()):
                self.pmu.retire(kind, level, events)
            self.now_ns = report.end_ns
            self.ran_ns += report.end_ns - grant.now_ns
            result = self.carry_out(report) if report.reason == GUEST_ACCESS else None
            if report.reason == GUEST_HALT:
                self.now_ns = max(self.now_ns, min(report.timer_at_ns, until_ns))
            if report.reason == GUEST_DONE:
                return

    def check(self, grant: Grant, report: Report) -> None:
        """Hold a report against its grant."""
        self.reports.append(report)
        assert grant.now_ns <= report.end_ns <= grant.limit_ns
        due = any(
            watched.left
            and sum(report.retired.get((watched.kind, n), 0) for n in (1, 2) if watched.levels & n)
            >= watched.left
            for watched in grant.watched
        )
        assert (report.reason == GUEST_OVERFLOW) == due

    def carry_out(self, report: Report) -> Result:
        """Carry an access out, and count the emulated instruction."""
        self.now_ns += self.cost_ns
        self.accesses.append((report.operation, report.register, report.value))
        value, branch = 0, False
        try:
            if report.operation == ACCESS_READ:
                value = self.pmu.read(report.register)
            elif report.operation == ACCESS_WRITE:
                self.pmu.write(report.register, report.value)
            elif report.operation == ACCESS_RDPMC:
                value = self.pmu.rdpmc(report.register)
            else:
                assert report.operation == ACCESS_EMULATE
                branch = bool(report.register & 2)
        except Fault:
            return Result(True, 0, self.cost_ns)
        self.pmu.retire(1, report.level, 1)
        if branch:
            self.pmu.retire(2, report.level, 1)
        return Result(False, value, self.cost_ns)


def config(**changes: object) -> MachineConfig:
    """Return a machine's configuration that goes with the reference PMU."""
    wanted: dict[str, object] = {"rates": RATES, "pmu": LEAF, "perf_capabilities": True, "memory": 64 << 20}
    return MachineConfig(**(wanted | changes))  # type: ignore[arg-type]
