"""Events of a trace to the accesses that each vCPU made of its PMU, with the time between them.

An access begins at the exit that it causes and ends at the entry after it, where the trace has both; its
guest runs from there to the next one.  Which counter an RDPMC read is not traced: it is filled in here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from vpmu.trace.reader import EntryEvent, ExitEvent, Head, LostEvents, MsrEvent, Trace

Operation = Literal["rdmsr", "wrmsr", "rdpmc"]

PMC0: Final = 0xC1
EVENTSEL0: Final = 0x186
FULL_PMC0: Final = 0x4C1
FIXED_CTR0: Final = 0x309
FIXED_CTR_CTRL: Final = 0x38D
GLOBAL_STATUS: Final = 0x38E
GLOBAL_CTRL: Final = 0x38F
GLOBAL_OVF_CTRL: Final = 0x390
LVTPC: Final = 0x834
RDPMC_FIXED: Final = 0x40000000

ENABLE: Final = "enable global_ctrl"
DISABLE: Final = "disable global_ctrl"
FIXED_CTRL: Final = "rd/wr fixed_ctrl"
EVENTSEL: Final = "rd/wr eventsel"
RDPMC: Final = "rdpmc"
COUNTER: Final = "rd/wr counter"
STATUS: Final = "global_status, ovf_ctrl"
LVT: Final = "lvtpc"
OTHER: Final = "other PMU register"
ACTIONS: Final = (ENABLE, DISABLE, FIXED_CTRL, EVENTSEL, RDPMC, COUNTER, STATUS, LVT, OTHER)
"""What an access counts as, by the names of `vpmu.tables.ACTIONS`, which has no place for the last one."""

_COUNTERS: Final = 8
_FIXED: Final = 3
_FIELD_BITS: Final = 4
_NAMED: Final = {
    FIXED_CTR_CTRL: FIXED_CTRL,
    GLOBAL_STATUS: STATUS,
    GLOBAL_CTRL: ENABLE,
    GLOBAL_OVF_CTRL: STATUS,
    LVTPC: LVT,
}
_RANGES: Final = (
    (PMC0, _COUNTERS, COUNTER),
    (FULL_PMC0, _COUNTERS, COUNTER),
    (FIXED_CTR0, _FIXED, COUNTER),
    (EVENTSEL0, _COUNTERS, EVENTSEL),
    (0x1A6, 2, OTHER),  # MSR_OFFCORE_RSP_0 and 1
    (0x1C8, 2, OTHER),  # MSR_LBR_SELECT, MSR_LASTBRANCH_TOS
    (0x1D9, 1, OTHER),  # IA32_DEBUGCTL: freezing on a PMI
    (0x345, 1, OTHER),  # IA32_PERF_CAPABILITIES
    (0x391, 2, OTHER),  # IA32_PERF_GLOBAL_STATUS_SET, IA32_PERF_GLOBAL_INUSE
    (0x3F1, 1, OTHER),  # IA32_PEBS_ENABLE
    (0x3F6, 1, OTHER),  # MSR_PEBS_LD_LAT
    (0x600, 1, OTHER),  # IA32_DS_AREA
    (0x680, 16, OTHER),  # LBR FROM
    (0x6C0, 16, OTHER),  # LBR TO
)
_REGISTERS: Final = _NAMED | {first + i: action for first, n, action in _RANGES for i in range(n)}
"""The PMU's registers (SDM chapters 18 and 35) and what an access to each counts as."""


@dataclass(slots=True)
class Access:
    """One access of a guest.

    Attributes
    ----------
    at_ns : int
        When it began, in the trace's time.
    gap_ns : int
        How long its guest ran before it.
    operation : str
        ``rdmsr``, ``wrmsr`` or ``rdpmc``.
    register : int
        MSR number; for ``rdpmc`` the counter's index, which is assumed.
    value : int
        Written or read; 0 for ``rdpmc``, whose value is not traced.
    fault : bool, optional
        Whether the host answered with #GP; None for ``rdpmc``.
    host_ns : int, optional
        From exit to entry on the real host; None if the trace does not say.
    """

    at_ns: int
    gap_ns: int
    operation: Operation
    register: int
    value: int
    fault: bool | None
    host_ns: int | None = None

    @property
    def action(self) -> str:
        """What it counts as, of `ACTIONS`."""
        if self.operation == "rdpmc":
            return RDPMC
        if self.register == GLOBAL_CTRL and self.operation == "wrmsr" and self.value == 0:
            return DISABLE
        return _REGISTERS[self.register]


@dataclass(slots=True)
class VcpuAccesses:
    """What a vCPU did: its thread's name and id, its number if the trace says it, the accesses in order."""

    task: str
    pid: int
    number: int | None
    accesses: list[Access] = field(default_factory=list)

    @property
    def name(self) -> str:
        """How to call its thread: ``TASK-PID``."""
        return f"{self.task}-{self.pid}"


@dataclass(slots=True)
class Picked:
    """What a trace holds for a replay.

    Attributes
    ----------
    vcpus : list
        The vCPUs that touch their PMU, in the order of their first events.
    start_ns, end_ns : int
        Times of the first and the last event.
    other_msrs : Counter
        Accesses to MSRs that are not the PMU's, by number.
    other_exits : Counter
        Exits that no access of the PMU caused, by reason.
    idle_vcpus : int
        vCPUs that never touch their PMU.
    halted_ns : int
        How long those that do were in HLT, in sum; it is part of the gaps.
    """

    vcpus: list[VcpuAccesses]
    start_ns: int
    end_ns: int
    other_msrs: Counter[int]
    other_exits: Counter[str]
    idle_vcpus: int
    halted_ns: int

    def all(self) -> Iterator[Access]:
        """Yield every access, vCPU by vCPU."""
        for vcpu in self.vcpus:
            yield from vcpu.accesses


def pick_accesses(trace: Trace) -> Picked:
    """Pick the accesses of the PMU out of a trace."""
    picker = _Picker(trace)
    for item in trace.items:
        if isinstance(item, LostEvents):
            picker.lose(item)
        elif isinstance(item, MsrEvent):
            picker.take_msr(item)
        elif isinstance(item, ExitEvent):
            picker.take_exit(item)
        else:
            picker.take_entry(item)
    return picker.finish()


class _Follower:
    """Follows one vCPU: where it is in its exit, when its guest went on, which counter it wrote last."""

    def __init__(self, vcpu: VcpuAccesses, start_ns: int) -> None:
        self.vcpu = vcpu
        self.cpu: int | None = None
        self.exit_at: int | None = None
        self.reason = ""
        self.inside = 0
        """Accesses since the exit."""
        self.halted_ns = 0
        self._resumed_at = start_ns
        self._last_counter = 0
        self._fixed_ctrl = 0

    def add(self, at_ns: int, operation: Operation, register: int, value: int, fault: bool | None) -> None:
        """Add an access that the trace shows at a time; it began at its exit, if that is known."""
        if self.exit_at is not None and not self.inside:
            at_ns = self.exit_at
        gap_ns = max(at_ns - self._resumed_at, 0)
        self.vcpu.accesses.append(Access(at_ns, gap_ns, operation, register, value, fault))
        self._resumed_at = at_ns
        self.inside += 1
        if operation == "wrmsr" and not fault:
            self._note_counter(register, value)

    def add_rdpmc(self, at_ns: int) -> None:
        """Add an RDPMC, of the counter that was written last: the trace does not say which it read."""
        self.add(at_ns, "rdpmc", self._last_counter, 0, None)

    def enter(self, at_ns: int) -> None:
        """Let the guest go on; the exit's only access has taken until now."""
        if self.inside:
            self._resumed_at = at_ns
        if self.reason == "HLT" and self.exit_at is not None:
            self.halted_ns += at_ns - self.exit_at
        if self.inside == 1 and self.exit_at is not None:
            self.vcpu.accesses[-1].host_ns = at_ns - self.exit_at
        self.forget()

    def forget(self) -> None:
        """Begin anew, outside an exit."""
        self.exit_at, self.inside = None, 0

    def _note_counter(self, register: int, value: int) -> None:
        """Note which counter a write concerns: its value, its selector, or its field of FIXED_CTR_CTRL."""
        for first, n, index in (
            (PMC0, _COUNTERS, 0),
            (FULL_PMC0, _COUNTERS, 0),
            (EVENTSEL0, _COUNTERS, 0),
            (FIXED_CTR0, _FIXED, RDPMC_FIXED),
        ):
            if first <= register < first + n:
                self._last_counter = index + register - first
        if register == FIXED_CTR_CTRL:
            changed = value ^ self._fixed_ctrl
            self._fixed_ctrl = value
            fields = [i for i in range(_FIXED) if changed >> _FIELD_BITS * i & 0xF]
            if fields:
                self._last_counter = RDPMC_FIXED + fields[0]


class _Picker:
    """Sorts a trace's events by vCPU: a thread, and its vCPU's number where a thread runs several."""

    def __init__(self, trace: Trace) -> None:
        times = [item.at_ns if isinstance(item, LostEvents) else item.head.at_ns for item in trace.items]
        self._start_ns, self._end_ns = (times[0], times[-1]) if times else (0, 0)
        self._followers: dict[tuple[int, int | None], _Follower] = {}
        self._current: dict[int, int | None] = {}
        self._other_msrs: Counter[int] = Counter()
        self._other_exits: Counter[str] = Counter()

    def take_msr(self, event: MsrEvent) -> None:
        """Take an access to an MSR."""
        follower = self._of(event.head, None)
        if event.msr not in _REGISTERS:
            self._other_msrs[event.msr] += 1
            return
        operation: Operation = "wrmsr" if event.write else "rdmsr"
        follower.add(event.head.at_ns, operation, event.msr, event.value, event.fault)

    def take_exit(self, event: ExitEvent) -> None:
        """Take an exit; that of an RDPMC is all that is traced of it."""
        follower = self._of(event.head, event.vcpu)
        self._close(follower)
        follower.exit_at, follower.reason = event.head.at_ns, event.reason
        if event.reason == "RDPMC":
            follower.add_rdpmc(event.head.at_ns)

    def take_entry(self, event: EntryEvent) -> None:
        """Take an entry."""
        follower = self._of(event.head, event.vcpu)
        self._count_exit(follower)
        follower.enter(event.head.at_ns)

    def lose(self, gap: LostEvents) -> None:
        """Measure nothing across a gap of the CPU that a vCPU was last seen on."""
        for follower in self._followers.values():
            if gap.cpu is None or follower.cpu is None or follower.cpu == gap.cpu:
                follower.forget()

    def finish(self) -> Picked:
        """Return what was picked."""
        for follower in self._followers.values():
            self._close(follower)
        vcpus = [follower.vcpu for follower in self._followers.values()]
        busy = [vcpu for vcpu in vcpus if vcpu.accesses]
        return Picked(
            vcpus=busy,
            start_ns=self._start_ns,
            end_ns=self._end_ns,
            other_msrs=self._other_msrs,
            other_exits=self._other_exits,
            idle_vcpus=len(vcpus) - len(busy),
            halted_ns=sum(each.halted_ns for each in self._followers.values() if each.vcpu.accesses),
        )

    def _close(self, follower: _Follower) -> None:
        """End an exit whose entry is not in the trace."""
        self._count_exit(follower)
        follower.forget()

    def _count_exit(self, follower: _Follower) -> None:
        if follower.exit_at is not None and not follower.inside:
            self._other_exits[follower.reason] += 1

    def _of(self, head: Head, number: int | None) -> _Follower:
        """Return who follows the vCPU that a thread runs; not every event says its number."""
        if number is None:
            number = self._current.get(head.pid)
        self._current[head.pid] = number
        nameless = self._followers.get((head.pid, None))
        if number is not None and nameless is not None:
            # Its events so far came before the first that says its number.
            self._followers = {
                (pid, number if pid == head.pid and old is None else old): follower
                for (pid, old), follower in self._followers.items()
            }
            nameless.vcpu.number = number
        key = head.pid, number
        if key not in self._followers:
            vcpu = VcpuAccesses(head.task, head.pid, number)
            self._followers[key] = _Follower(vcpu, self._start_ns)
        follower = self._followers[key]
        follower.cpu = head.cpu
        return follower
