"""The scenario's structs: every key of a scenario file, with its type, default and meaning.

What `vpmu.scenario.load` returns is checked and complete: every name resolves, every quantity is in the unit
its field's name says, and no default is left to look up.  Where a field's name differs from the key in the
file (units), the key is its ``name=``.  Documented for users in ``docs/scenario.md``.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Final, Literal, TypeVar

from msgspec import Struct, field
from msgspec.structs import replace

from vpmu.units import Duration, Rate

SCENARIO_VERSION: Final = 1
DEFAULT_PROFILE: Final = "e5-2699v4-linux-5.0"
DEFAULT_RECORD_FREQUENCY: Final = 4000
GP_COUNTERS_HT: Final = 4
GP_COUNTERS_NO_HT: Final = 8
FILTER_EVENTS: Final = 300
"""Entries that an event filter may have (KVM_PMU_EVENT_FILTER_MAX_EVENTS)."""

ZERO = Fraction(0)
START = Duration(0)
DOWNTIME = Duration(100_000_000)
"""How long a VM stands still when it migrates, unless a scenario says otherwise."""


class Function(Struct, frozen=True, forbid_unknown_fields=True):
    """One function of a program written in the scenario; rates are events per instruction."""

    name: str
    share: Fraction
    ipc: Fraction = Fraction(1)
    branches: Fraction = ZERO
    branch_misses: Fraction = ZERO
    cache_references: Fraction = ZERO
    cache_misses: Fraction = ZERO
    l1_dcache_loads: Fraction = ZERO
    l1_dcache_stores: Fraction = ZERO
    l1_dcache_load_misses: Fraction = ZERO
    l1_icache_load_misses: Fraction = ZERO
    dtlb_load_misses: Fraction = ZERO
    dtlb_store_misses: Fraction = ZERO
    itlb_load_misses: Fraction = ZERO
    l1d_pending: Fraction = ZERO
    l1d_stalls: Fraction = ZERO
    l3_load_misses: Fraction = ZERO

    @property
    def rates(self) -> dict[str, Fraction]:
        """Events per instruction, by the names of `vpmu.program.EVENT_KINDS`."""
        return {name: getattr(self, name) for name in self.__struct_fields__[3:]}


class Program(Struct, frozen=True, forbid_unknown_fields=True):
    """What a thread executes: an imported profile (`file`), or `functions` that share `cycles`."""

    name: str
    file: str = ""
    functions: tuple[Function, ...] = ()
    cycles: int = 0


class Host(Struct, frozen=True, forbid_unknown_fields=True):
    """A physical machine and its kernel, or a group of `count` equal ones."""

    name: str
    possible_cpus: int
    core_khz: int
    hz: int
    balance_ns: Duration = field(name="balance")
    sched_latency_ns: Duration = field(name="sched_latency")
    min_granularity_ns: Duration = field(name="min_granularity")
    wakeup_granularity_ns: Duration = field(name="wakeup_granularity")
    count: int = 1
    cpus: int = 1
    profile: str = DEFAULT_PROFILE
    hyperthreading: bool = True
    watchdog: bool = False
    noise: bool = True
    lvtpc_mask: bool = True
    kvm: Literal["5.0", "7.0"] = "5.0"
    design: str = ""
    parameters: dict[str, int] = field(default_factory=dict)

    @property
    def gp_counters(self) -> int:
        """General-purpose counters a logical CPU has: 4 with hyper-threading, 8 without."""
        return GP_COUNTERS_HT if self.hyperthreading else GP_COUNTERS_NO_HT

    def copies(self) -> tuple[str, ...]:
        """Names of the hosts: the name, or ``name.0``, ``name.1`` and so on when `count` is above 1."""
        return _copies(self.name, self.count)


class Thread(Struct, frozen=True, forbid_unknown_fields=True):
    """A thread (or `count` equal threads) of a guest."""

    name: str
    kind: Literal["program", "spin", "sleeper"] = "program"
    program: str = ""
    work: Fraction = Fraction(1)
    vcpu: int | None = None
    nice: int = 0
    start_ns: Duration = field(name="start", default=START)
    count: int = 1
    wakeups: Rate | None = None
    process: Literal["memoryless", "regular"] = "memoryless"
    burst_ns: Duration = field(name="burst", default=START)

    def copies(self) -> tuple[str, ...]:
        """Names of the threads: the name, or ``name.0``, ``name.1`` and so on when `count` is above 1."""
        return _copies(self.name, self.count)

    def vcpu_of_copy(self, index: int, vcpus: int) -> int:
        """Return the vCPU that copy `index` runs on: `vcpu`, or round-robin over all without it."""
        return index % vcpus if self.vcpu is None else self.vcpu


class Session(Struct, frozen=True, forbid_unknown_fields=True):
    """``perf stat`` or ``perf record`` run inside a guest, on one thread or on whole vCPUs."""

    name: str
    tool: Literal["stat", "record"]
    events: tuple[str, ...]
    thread: str = ""
    cpu: bool = False
    vcpu: int | None = None
    interval_ns: Duration | None = field(name="interval", default=None)
    frequency: int | None = None
    period: int | None = None
    user_only: bool = False
    start_ns: Duration = field(name="start", default=START)
    stop_ns: Duration | None = field(name="stop", default=None)


class EventFilter(Struct, frozen=True, forbid_unknown_fields=True):
    """A VM's PMU event filter, as KVM_SET_PMU_EVENT_FILTER takes it."""

    action: Literal["allow", "deny"]
    events: tuple[int, ...] = ()
    fixed_counter_bitmap: int = 0
    masked: bool = False


class Vm(Struct, frozen=True, forbid_unknown_fields=True):
    """A VM, or `count` equal VMs.

    With an `image` it is a machine that executes real code, with `remote` its vCPUs are other processes.
    """

    name: str
    host: str
    sched_latency_ns: Duration = field(name="sched_latency")
    min_granularity_ns: Duration = field(name="min_granularity")
    wakeup_granularity_ns: Duration = field(name="wakeup_granularity")
    count: int = 1
    vcpus: int = 1
    cpus: tuple[int, ...] | Literal["float"] = "float"
    hz: int = 250
    watchdog: bool = False
    pmu_version: int = 2
    hide_events: tuple[str, ...] = ()
    event_filter: EventFilter | None = None
    image: str = ""
    remote: bool = False
    start_ns: Duration = field(name="start", default=START)
    stop_ns: Duration | None = field(name="stop", default=None)
    threads: tuple[Thread, ...] = field(name="thread", default=())
    sessions: tuple[Session, ...] = field(name="session", default=())

    @property
    def outside(self) -> bool:
        """Whether its guests decide outside the kernels."""
        return self.remote or bool(self.image)

    def copies(self) -> tuple[str, ...]:
        """Names of the VMs: the name itself, or ``name.0``, ``name.1`` and so on when `count` is above 1."""
        return _copies(self.name, self.count)

    def placed_sessions(self) -> tuple[Session, ...]:
        """Sessions as they run: one on a thread with copies is one on each copy, called ``name@copy``."""
        copies = {thread.name: thread.copies() for thread in self.threads if thread.count > 1}
        return tuple(
            replace(session, name=f"{session.name}@{copy}", thread=copy)
            if copy != session.thread
            else session
            for session in self.sessions
            for copy in copies.get(session.thread, (session.thread,))
        )

    def pinned_cpu(self, copy: int, vcpu: int) -> int | None:
        """Physical CPU that `vcpu` of copy number `copy` is pinned to, or None if it floats.

        The vCPUs of all copies, in order, take the listed CPUs round-robin.
        """
        if self.cpus == "float":
            return None
        return self.cpus[(copy * self.vcpus + vcpu) % len(self.cpus)]


class Tool(Struct, frozen=True, forbid_unknown_fields=True):
    """``perf stat`` or ``perf record`` run on the host: on physical CPUs, or attached to vCPU threads."""

    name: str
    host: str
    kind: Literal["stat", "record"]
    events: tuple[str, ...]
    cpus: tuple[int, ...] | Literal["all"] | None = None
    vm: str = ""
    vcpu: int | None = None
    exclude_guest: bool = True
    exclude_host: bool = False
    pinned: bool = False
    frequency: int | None = None
    period: int | None = None
    start_ns: Duration = field(name="start", default=START)
    stop_ns: Duration | None = field(name="stop", default=None)


class Template(Struct, frozen=True, forbid_unknown_fields=True):
    """What a fleet's VMs are like."""

    name: str
    sched_latency_ns: Duration = field(name="sched_latency")
    min_granularity_ns: Duration = field(name="min_granularity")
    wakeup_granularity_ns: Duration = field(name="wakeup_granularity")
    vcpus: int = 1
    hz: int = 250
    watchdog: bool = False
    threads: tuple[Thread, ...] = field(name="thread", default=())
    sessions: tuple[Session, ...] = field(name="session", default=())


class Fleet(Struct, frozen=True, forbid_unknown_fields=True):
    """Many VMs, each of a template drawn by weight, spread over hosts in turn; they come and go."""

    name: str
    hosts: tuple[str, ...]
    templates: tuple[str, ...]
    count: int
    weights: tuple[int, ...] = ()
    start_ns: Duration = field(name="start", default=START)
    arrivals: Rate | None = None
    lifetime_ns: Duration | None = field(name="lifetime", default=None)


class Event(Struct, frozen=True, forbid_unknown_fields=True):
    """Something that befalls a fleet: a migration, a drained host, a reboot, a storm of perf sessions."""

    kind: Literal["migrate", "drain", "reboot", "storm"]
    at_ns: Duration = field(name="at")
    vm: str = ""
    host: str = ""
    to: tuple[str, ...] = ()
    cpus: tuple[int, ...] = ()
    every_ns: Duration = field(name="every", default=START)
    downtime_ns: Duration = field(name="downtime", default=DOWNTIME)
    design: str = ""
    duration_ns: Duration = field(name="duration", default=START)
    sessions: tuple[Session, ...] = field(name="session", default=())


class Scenario(Struct, frozen=True, forbid_unknown_fields=True):
    """A whole run: hosts, their guests, what the guests execute and who measures them."""

    version: int
    until_ns: Duration = field(name="until")
    seed: int = 0
    title: str = ""
    calibration: dict[str, str] = field(default_factory=dict)
    programs: tuple[Program, ...] = field(name="program", default=())
    hosts: tuple[Host, ...] = field(name="host", default=())
    vms: tuple[Vm, ...] = field(name="vm", default=())
    tools: tuple[Tool, ...] = field(name="tool", default=())
    templates: tuple[Template, ...] = field(name="template", default=())
    fleets: tuple[Fleet, ...] = field(name="fleet", default=())
    events: tuple[Event, ...] = field(name="event", default=())

    def program(self, name: str) -> Program:
        """Return the program called `name`; KeyError if there is none."""
        return _named(self.programs, name)

    def host(self, name: str) -> Host:
        """Return the host called `name`; KeyError if there is none."""
        return _named(self.hosts, name)

    def vm(self, name: str) -> Vm:
        """Return the VM called `name` (not a copy's name); KeyError if there is none."""
        return _named(self.vms, name)

    def vm_copies(self, name: str) -> tuple[tuple[Vm, int], ...]:
        """Return the (VM, copy number) pairs of `name`: one copy by its own name, or all by the VM's."""
        pairs = [(vm, index, copy) for vm in self.vms for index, copy in enumerate(vm.copies())]
        return tuple((vm, index) for vm, index, copy in pairs if name in (vm.name, copy))


_Named = TypeVar("_Named", Program, Host, Vm)


def _copies(name: str, count: int) -> tuple[str, ...]:
    return (name,) if count == 1 else tuple(f"{name}.{index}" for index in range(count))


def _named(items: tuple[_Named, ...], name: str) -> _Named:
    for item in items:
        if item.name == name:
            return item
    raise KeyError(name)
