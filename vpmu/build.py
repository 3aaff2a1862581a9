"""From a scenario to a machine: every row of the arena, filled in for one design."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vpmu.actors.machine import (
    HostEntry,
    Layout,
    Machine,
    MoveEntry,
    PcpuEntry,
    RebootEntry,
    Region,
    SessionEntry,
    ThreadEntry,
    VcpuEntry,
    empty_log,
)
from vpmu.errors import UserError
from vpmu.kernels import columns as col
from vpmu.kernels.boot import boot_guest, boot_pcpu, boot_timers, place_vcpu
from vpmu.kernels.costs import COST_NAMES, constant_costs, encode_costs
from vpmu.kernels.designs.common import RULES_7_0
from vpmu.kernels.designs.registry import design_names, load_design
from vpmu.kernels.events import KINDS_WORDS, derived_configs, encode_kinds
from vpmu.kernels.guest.threads import (
    RUNNABLE,
    SLEEPING,
    THREAD_PROGRAM,
    THREAD_SLEEPER,
    THREAD_SPIN,
    WAITING,
)
from vpmu.kernels.host.scheduler import VCPU_HALTED
from vpmu.kernels.integers import NEVER
from vpmu.kernels.jit import U64
from vpmu.kernels.log import RECORD_WORDS
from vpmu.kernels.msr import (
    CAPABILITIES_FULL_WIDTH,
    EVENTSEL_INT,
    EVENTSEL_OS,
    EVENTSEL_RESERVED_V2,
    EVENTSEL_USR,
    FIXED_OS,
    FIXED_PMI,
    FIXED_USR,
    FULL_PMC0,
    LVT_MASKED,
    PMC0,
)
from vpmu.kernels.stats import ACTION_COLUMNS, ACTION_NAMES
from vpmu.profile import Profile, load_profile
from vpmu.program import Program
from vpmu.scenario.contexts import EVENTS_PER_CONTEXT
from vpmu.scenario.events import event_groups
from vpmu.scenario.fleet import Move, Reboot, moves, reboots
from vpmu.scenario.storm import group_of

if TYPE_CHECKING:
    from vpmu.kernels.events import EventSpec
    from vpmu.kernels.jit import Arena
    from vpmu.scenario import Host, Scenario, Session, Thread, Tool, Vm
    from vpmu.scenario.model import EventFilter

SPIN: Final = "[spin]"
"""Program of CPU-bound competitors and sleepers."""
KERNEL: Final = "[kernel]"
"""Program of kernel code, guest and host."""

_RATE_ONE: Final = 1 << 28
_BUS_KHZ: Final = 100_000
_KHZ_PER_GHZ: Final = 1_000_000
_SEC: Final = 1_000_000_000
_NEVER: Final = int(NEVER)
_GUEST_COSTS: Final = {
    "guest_switch": col.G_COST_SWITCH,
    "guest_tick": col.G_COST_TICK,
    "guest_wakeup": col.G_COST_WAKEUP,
    "guest_pmi": col.G_COST_PMI,
    "guest_irq_entry": col.G_COST_IRQ,
}
_MAX_SAMPLE_RATE: Final = 100_000
_SAMPLE_ALLOWED_NS: Final = 2_500
_NATIVE: Final = "native"
_NR_GP: Final = 4
_NR_FIXED: Final = 3


@dataclass(frozen=True, slots=True)
class _Rates:
    """A function of estimated rates, per instruction."""

    name: str
    share: Fraction
    ipc: Fraction
    rates: dict[str, Fraction] = field(default_factory=dict)


def _estimate(name: str, ipc: str, branches: str, misses: str) -> Program:
    """Return a program of one function with plausible rates: code that is not measured for itself."""
    rates = {
        "branches": Fraction(branches),
        "branch_misses": Fraction(misses),
        "cache_references": Fraction(misses) / 2,
        "l1_dcache_loads": Fraction(1, 4),
        "l1_dcache_stores": Fraction(1, 8),
        "l1_dcache_load_misses": Fraction(misses) * 2,
        "dtlb_load_misses": Fraction(misses) / 8,
    }
    return Program.from_functions(name, [_Rates(name, Fraction(1), Fraction(ipc), rates)], 2_800_000_000)


@dataclass(slots=True)
class _Placed:
    """A vCPU to be built."""

    vm: Vm
    copy: int
    vm_name: str
    vcpu: int
    host: int
    pinned: int | None
    threads: list[tuple[str, Thread, int]]
    sessions: list[Session]


class Builder:
    """Builds one machine; see `build`."""

    def __init__(self, scenario: Scenario, design: str, programs: dict[str, Program]) -> None:
        self.scenario = scenario
        self.design = design
        self.designs = [host.design or design for host in scenario.hosts]
        self.modules = [load_design(name) for name in self.designs]
        self.programs = programs
        self.profiles: dict[str, Profile] = {
            name: load_profile(name) for name in {host.profile: None for host in scenario.hosts}
        }
        self._figures: dict[tuple[str, int], dict[str, tuple[int, int, int]]] = {}
        self.layout = Layout()
        self._numbers = {host.name: number for number, host in enumerate(scenario.hosts)}
        self.placed = [placed for vm in scenario.vms for placed in self._place(vm)]
        self._floating = Counter(placed.host for placed in self.placed if placed.pinned is None)
        self.derived = derived_configs(self._configs())

    def _native(self, host: int) -> bool:
        """Return whether a host's guests are its own system."""
        return not self.modules[host].INTERCEPTS

    def _place(self, vm: Vm) -> list[_Placed]:
        host = self._numbers[vm.host]
        placed = []
        for copy, name in enumerate(vm.copies()):
            for vcpu in range(vm.vcpus):
                threads = [
                    (thread_name, thread, index)
                    for thread in vm.threads
                    for index, thread_name in enumerate(thread.copies())
                    if thread.vcpu_of_copy(index, vm.vcpus) == vcpu
                ]
                names = {thread_name for thread_name, _, _ in threads}
                sessions = [s for s in vm.placed_sessions() if self._session_here(s, vcpu, names)]
                placed.append(
                    _Placed(vm, copy, name, vcpu, host, vm.pinned_cpu(copy, vcpu), threads, sessions)
                )
        return placed

    @staticmethod
    def _session_here(session: Session, vcpu: int, threads: set[str]) -> bool:
        if session.thread:
            return session.thread in threads
        return session.vcpu is None or session.vcpu == vcpu

    def _configs(self) -> list[int]:
        sources = chain(
            (s.events for vm in self.scenario.vms for s in vm.sessions),
            (t.events for t in self.scenario.tools),
        )
        return [spec.config for events in sources for group in event_groups(events) for spec in group]

    def _tools(self, host: int) -> list[tuple[Tool, int, int | None]]:
        """Return (tool, CPU, index of its vCPU or None) for every tool instance of a host."""
        if self._native(host):
            return []
        name = self.scenario.hosts[host].name
        cpus = self.scenario.hosts[host].cpus
        found: list[tuple[Tool, int, int | None]] = []
        for tool in self.scenario.tools:
            if tool.host != name:
                continue
            if tool.vm:
                found += self._thread_tools(tool)
            else:
                chosen = range(cpus) if tool.cpus is None or isinstance(tool.cpus, str) else tool.cpus
                found += [(tool, cpu, None) for cpu in chosen]
        return sorted(found, key=lambda item: item[1])

    def _thread_tools(self, tool: Tool) -> list[tuple[Tool, int, int | None]]:
        return [
            (tool, placed.pinned, index)
            for index, placed in enumerate(self.placed)
            if tool.vm in (placed.vm_name, group_of(placed.vm_name))
            and (tool.vcpu is None or tool.vcpu == placed.vcpu)
            and placed.pinned is not None
        ]

    def arena_words(self) -> int:
        """Return how large the arena would be; nothing is filled in."""
        self._lay_out()
        return self.layout.size

    def build(self) -> Machine:
        """Lay the arena out and fill it."""
        scenario = self.scenario
        layout = self.layout
        encoded = self._lay_out()
        self.s = layout.allocate()
        self.machine = Machine(self.design, scenario.until_ns, self.s, empty_log(), regions=layout.regions)
        self._taken = {region.name: 0 for region in layout.regions.values()}
        self._fill_run(encoded)
        self.filters = {vm.name: self._fill_filter(vm.event_filter) for vm in scenario.vms}
        for index, host in enumerate(scenario.hosts):
            self._fill_host(index, host)
        for index, placed in enumerate(self.placed):
            self._fill_vcpu(index, placed)
        self._fill_tools()
        self._start()
        self._add_events()
        self.machine.functions = {
            name: tuple(function.name for function in program.functions)
            for name, program in self.programs.items()
        }
        return self.machine

    def _lay_out(self) -> dict[str, Arena]:
        """Add every table to the layout; return the programs as the arena has them."""
        scenario = self.scenario
        layout = self.layout
        encoded = {name: program.encode(self.derived) for name, program in self.programs.items()}
        for placed in self.placed:
            self._check_own_tools(placed)
        self.host_tools = [self._tools(index) for index in range(len(scenario.hosts))]
        pcpus = sum(host.cpus for host in scenario.hosts)
        tools = sum(len(tools) for tools in self.host_tools) + pcpus
        tool_events = sum(self._nr_events(t.events) for tools in self.host_tools for t, _, _ in tools) + pcpus
        self.costs = layout.add("cost", len(COST_NAMES), 3)
        self.kinds = layout.add("kind", 1, int(KINDS_WORDS))
        self.stats = layout.add("action", len(ACTION_NAMES), ACTION_COLUMNS)
        self.program_regions = {
            name: layout.add(f"program {name}", 1, words.size) for name, words in encoded.items()
        }
        self.host_rows = layout.add("host", len(scenario.hosts), col.HOST_COLUMNS)
        self.pcpu_rows = layout.add("pcpu", pcpus, col.PCPU_COLUMNS)
        self.vcpu_rows = layout.add("vcpu", len(self.placed), col.VCPU_COLUMNS)
        self.guest_rows = layout.add("guest", len(self.placed), col.GUEST_COLUMNS)
        self.thread_rows = layout.add("thread", sum(len(p.threads) for p in self.placed), col.THREAD_COLUMNS)
        self.session_rows = layout.add(
            "session", sum(self._nr_sessions(p) for p in self.placed), col.SESSION_COLUMNS
        )
        contexts = pcpus + 2 * len(self.placed) + sum(self._nr_thread_contexts(p) for p in self.placed)
        self.context_rows = layout.add("context", contexts, col.CONTEXT_COLUMNS)
        events = tool_events + sum(self._nr_guest_events(p) for p in self.placed)
        self.event_rows = layout.add("event", events, col.EVENT_COLUMNS)
        self.tool_rows = layout.add("tool", tools, col.TOOL_COLUMNS)
        outside = sum(placed.vm.outside for placed in self.placed)
        self.outside_rows = layout.add("outside", outside, col.OUTSIDE_COLUMNS)
        filters = sum(vm.event_filter is not None for vm in scenario.vms)
        self.filter_rows = layout.add("filter", filters, col.FILTER_COLUMNS)
        return encoded

    def _nr_events(self, events: tuple[str, ...]) -> int:
        return sum(len(group) for group in event_groups(events))

    def _nr_thread_contexts(self, placed: _Placed) -> int:
        return sum(self._is_measured(placed, name) for name, _, _ in placed.threads)

    @staticmethod
    def _is_measured(placed: _Placed, thread: str) -> bool:
        """Return whether a session is on a thread, which then has a context."""
        return any(session.thread == thread for session in placed.sessions)

    def _nr_guest_events(self, placed: _Placed) -> int:
        own = sum(self._nr_events(s.events) for s in placed.sessions)
        system = int(self._has_watchdog(placed)) + sum(
            self._nr_events(t.events) for t in self._own_tools(placed)
        )
        return self._nr_gp(placed) + _NR_FIXED + own + system

    def _nr_gp(self, placed: _Placed) -> int:
        """Return how many general-purpose counters a vCPU has; on bare hardware it has the host's."""
        return self.scenario.hosts[placed.host].gp_counters if self._native(placed.host) else _NR_GP

    def _has_watchdog(self, placed: _Placed) -> bool:
        """Return whether the system in a vCPU has an NMI watchdog; on bare hardware it is the host's."""
        return self.scenario.hosts[placed.host].watchdog if self._native(placed.host) else placed.vm.watchdog

    def _own_tools(self, placed: _Placed) -> list[Tool]:
        """Return the host tools that run in the system itself, on bare hardware, on the CPU of this vCPU."""
        if not self._native(placed.host):
            return []
        host = self.scenario.hosts[placed.host].name
        tools = [tool for tool in self.scenario.tools if tool.host == host]
        return [tool for tool in tools if self._tool_covers(tool, placed)]

    def _check_own_tools(self, placed: _Placed) -> None:
        """Refuse more host tools than fit beside the sessions of a CPU, on bare hardware.

        Raises
        ------
        UserError
            With how many events there would be.
        """
        tools = self._own_tools(placed)
        events = sum(self._nr_events(tool.events) for tool in tools) + int(self._has_watchdog(placed))
        events += sum(self._nr_events(each.events) for each in placed.sessions if not each.thread)
        if tools and events > EVENTS_PER_CONTEXT:
            who = f'vCPU {placed.vcpu} of "{placed.vm_name}"'
            problem = (
                f"on bare hardware the host's tools are the system's own: {who} would have {events} events"
            )
            raise UserError(f"{problem}, a perf context here holds {EVENTS_PER_CONTEXT}", file="tool")

    @staticmethod
    def _tool_covers(tool: Tool, placed: _Placed) -> bool:
        if tool.vm:
            mine = tool.vm in (placed.vm_name, group_of(placed.vm_name))
            return mine and (tool.vcpu is None or tool.vcpu == placed.vcpu)
        return tool.cpus in ("all", None) or placed.pinned is None or placed.pinned in (tool.cpus or ())

    def _nr_sessions(self, placed: _Placed) -> int:
        return len(placed.sessions) + int(self._has_watchdog(placed)) + len(self._own_tools(placed))

    def _take(self, region: Region, rows: int = 1) -> int:
        """Return the offset of the next free row of a table."""
        index = self._taken[region.name]
        self._taken[region.name] = index + rows
        assert index + rows <= region.rows, region.name
        return region.row(index)

    def _set(self, offset: int, **words: int) -> None:
        """Set columns of a row by name."""
        for name, word in words.items():
            self.s[offset + int(getattr(col, name))] = word

    def _cost_figures(self, host: Host) -> dict[str, tuple[int, int, int]]:
        """Return what everything costs on a host; few are of different kinds."""
        kind = host.profile, host.possible_cpus
        if kind not in self._figures:
            self._figures[kind] = self.profiles[host.profile].cost_figures(host.possible_cpus)
        return self._figures[kind]

    def _fill_run(self, encoded: dict[str, Arena]) -> None:
        host = self.scenario.hosts[0]
        figures = self._cost_figures(host)
        costs = encode_costs(figures)
        self.s[self.costs.base : self.costs.base + costs.size] = costs.reshape(-1)
        self.s[int(col.R_CONSTANT) : int(col.R_CONSTANT) + len(costs)] = constant_costs(costs)
        kinds = encode_kinds(self.derived)
        self.s[self.kinds.base : self.kinds.base + kinds.size] = kinds
        for name, words in encoded.items():
            base = self.program_regions[name].base
            self.s[base : base + words.size] = words
        self._set(
            0,
            R_SEED=self.scenario.seed,
            R_COSTS=self.costs.base,
            R_KINDS=self.kinds.base,
            R_STATS=self.stats.base,
            R_LOG_CAPACITY=self.machine.log.size // RECORD_WORDS,
            R_HOSTS=self.host_rows.base,
            R_NR_HOSTS=len(self.scenario.hosts),
        )

    def _fill_filter(self, chosen: EventFilter | None) -> int:
        """Fill a VM's event filter in; return its offset, 0 if it has none."""
        if chosen is None:
            return 0
        f = self._take(self.filter_rows)
        count = len(chosen.events)
        self._set(f, F_DENY=int(chosen.action == "deny"), F_MASKED=int(chosen.masked), F_COUNT=count)
        self._set(f, F_FIXED=chosen.fixed_counter_bitmap)
        first = f + int(col.F_EVENTS)
        for number, entry in enumerate(chosen.events):
            self.s[first + number] = entry
        return f

    def _fill_host(self, index: int, host: Host) -> None:
        profile = self.profiles[host.profile]
        h = self._take(self.host_rows)
        self.machine.hosts.append(HostEntry(index, host.name, h))
        first = self.pcpu_rows.row(self._taken["pcpu"])
        self._set(
            h,
            H_ID=(1 << 40) | index,
            H_PCPUS=first,
            H_NR_PCPUS=host.cpus,
            H_POSSIBLE=host.possible_cpus,
            H_HELD=int(host.watchdog and not self._native(index)),
            H_BALANCE_NS=host.balance_ns,
            H_BALANCE_AT=host.balance_ns,
            H_FLOATING=self._floating[index],
        )
        for cpu in range(host.cpus):
            self._fill_pcpu(index, host, profile, h, cpu)

    def _fill_pcpu(self, index: int, host: Host, profile: Profile, h: int, cpu: int) -> None:
        p = self._take(self.pcpu_rows)
        number = len(self.machine.pcpus)
        self.machine.pcpus.append(PcpuEntry(number, index, cpu, p))
        tick_ns = _SEC // host.hz
        # Ticks of different CPUs do not coincide (skew_tick).
        tick_at = tick_ns + (tick_ns // (2 * host.possible_cpus)) * cpu
        noise_ns = self._noise_ns(profile) if host.noise else 0
        nr_gp = host.gp_counters
        self._set(
            p,
            P_ID=(1 << 41) | number,
            P_HOST=h,
            P_TICK_NS=tick_ns,
            P_TICK_AT=tick_at if host.noise else _NEVER,
            P_NOISE_NS=noise_ns,
            P_NOISE_AT=0 if noise_ns else _NEVER,
            P_IRQ_AT=_NEVER,
            P_IDLE=1,
            P_LATENCY_NS=host.sched_latency_ns,
            P_GRANULARITY_NS=host.min_granularity_ns,
            P_WAKEUP_NS=host.wakeup_granularity_ns,
            P_WAKE_AT=_NEVER,
            P_TIMER_AT=_NEVER,
            P_CORE_RATE=self._rate(host.core_khz),
            P_TSC_RATE=self._rate(profile.cpu.tsc_khz),
            P_BUS_RATE=self._rate(_BUS_KHZ),
            P_HOST_PROGRAM=self.program_regions[KERNEL].base,
            P_DESIGN=design_names().index(self.designs[index]),
            P_INTERCEPTS=int(self.modules[index].INTERCEPTS),
            HW_NR_GP=nr_gp,
            HW_NR_FIXED=profile.cpu.fixed_counters,
            HW_MASK=(1 << profile.cpu.counter_width) - 1,
        )
        boot_pcpu(self.s, U64(p))
        self._set(p, HW_MASKED=_masked(host))
        self.s[p + int(col.HW_LVTPC)] = LVT_MASKED if self._native(index) else 0x400
        u = p + int(col.P_CPU_HW)
        context = self._take(self.context_rows)
        self._fill_cpu_hw(
            u,
            nr_gp,
            full_width=True,
            tick_ns=tick_ns,
            context=context,
            queue=p + int(col.P_QUEUE),
            masked=_masked(host),
        )

    @staticmethod
    def _noise_ns(profile: Profile) -> int:
        rate = profile.interrupts.rate
        return rate.interval_ns if rate else 0

    @staticmethod
    def _rate(khz: int) -> int:
        return (khz * _RATE_ONE + _KHZ_PER_GHZ // 2) // _KHZ_PER_GHZ

    def _fill_cpu_hw(
        self, u: int, nr_gp: int, *, full_width: bool, tick_ns: int, context: int, queue: int, masked: int
    ) -> None:
        hz = _SEC // tick_ns
        self._set(
            u,
            U_NR_GP=nr_gp,
            U_NR_FIXED=3,
            U_MAX_PERIOD=_max_period(full_width),
            U_COUNTER_MSR=int(FULL_PMC0 if full_width else PMC0),
            U_COUNTER_MASK=(1 << 48) - 1,
            U_ALL=((1 << nr_gp) - 1) | (7 << 32),
            U_CPU_CONTEXT=context,
            U_TICK_NS=tick_ns,
            U_MAX_SAMPLES=-(-_MAX_SAMPLE_RATE // hz),
            U_ALLOWED_NS=_SAMPLE_ALLOWED_NS,
            U_SAMPLE_RATE=_MAX_SAMPLE_RATE,
            U_MUX_NS=max(_SEC // hz, 1_000_000),
            U_MUX_AT=_NEVER,
            U_QUEUE=queue,
            U_MASKED=masked,
        )

    def _fill_vcpu(self, index: int, placed: _Placed) -> None:
        host = self.scenario.hosts[placed.host]
        v = self._take(self.vcpu_rows)
        g = self._take(self.guest_rows)
        nr_gp = self._nr_gp(placed)
        events = self._take(self.event_rows, nr_gp + _NR_FIXED)
        for slot in range(nr_gp + _NR_FIXED):
            self._set(events + slot * col.EVENT_COLUMNS, E_STATE=int(col.EVENT_DEAD), E_SLOT=int(col.NO_SLOT))
        self._set(
            v,
            V_ID=index,
            V_GUEST=g,
            V_PINNED=int(placed.pinned is not None),
            V_STATE=int(VCPU_HALTED),
            V_WAKE_AT=placed.vm.start_ns,
            V_EVENTS=events,
            V_CONTEXT=self._take(self.context_rows),
            V_NR_GP=nr_gp,
            V_MASK=(1 << 48) - 1,
            V_LVTPC=int(LVT_MASKED),
            V_MASKED=_masked(self.scenario.hosts[placed.host]),
        )
        self._fill_rules(placed, v, g)
        for slot in range(col.SLOTS):
            self.s[v + int(col.V_HW_SLOT) + slot] = col.NO_SLOT
            self.s[v + int(col.V_STILL_AT) + slot] = _NEVER
        for number, value in enumerate(self._parameters(placed.host)):
            self.s[v + int(col.V_PARAMETER) + number] = value
        threads, sessions = self._fill_guest(index, placed, host, v, g)
        self.machine.vcpus.append(
            VcpuEntry(index, placed.vm_name, placed.vcpu, placed.host, v, g, tuple(threads), tuple(sessions))
        )

    def _fill_rules(self, placed: _Placed, v: int, g: int) -> None:
        """Fill in what a guest's PMU is like: its version, and the rules of its host's KVM.

        At reset GLOBAL_CTRL has the general-purpose counters' bits set (SDM 18.2, table of reset values). In
        Linux 5.0, QEMU clears it: a guest of version 2 finds 0.
        """
        native = self._native(placed.host)
        later = self.scenario.hosts[placed.host].kvm == "7.0"
        version = 2 if native else placed.vm.pmu_version
        nr_gp = int(self.s[v + int(col.V_NR_GP)])
        nr_fixed = _NR_FIXED if version > 1 else 0
        gp_bits, fixed_bits = (1 << nr_gp) - 1, ((1 << nr_fixed) - 1) << 32
        global_ctrl = gp_bits if later or version == 1 or native else 0
        blocked = 0
        chosen = placed.vm.event_filter
        if chosen is not None and not native:
            passing = chosen.fixed_counter_bitmap
            blocked = (~passing if chosen.action == "allow" else passing) & 7
            self._set(v, V_FILTER=self.filters[placed.vm.name], V_BLOCKED=blocked << int(col.FIXED_SLOT))
            self._set(g, G_FILTER=self.filters[placed.vm.name])
        self._set(
            v,
            V_VERSION=version,
            V_NR_FIXED=nr_fixed,
            V_GLOBAL_VALID=gp_bits | fixed_bits if version > 1 else 0,
            V_GLOBAL_CTRL=global_ctrl,
            V_RULES=int(RULES_7_0) if later and not native else 0,
            V_EVENTSEL_RESERVED=int(EVENTSEL_RESERVED_V2),
            V_FIXED_RESERVED=_fixed_reserved(nr_fixed),
            V_CAPABILITIES=int(CAPABILITIES_FULL_WIDTH) if later else 0,
        )
        self._set(g, G_LEVEL=1, G_EMULATED=int(later and not native), T_GLOBAL_CTRL=global_ctrl)
        self._set(g, G_FULL_WIDTH=int(self._full_width(placed.host)))
        if placed.vm.outside:
            self._set(g, G_OUTSIDE=self._take(self.outside_rows))

    def _full_width(self, host: int) -> bool:
        """Return whether a host's guests can write their counters in full."""
        return self._native(host) or self.scenario.hosts[host].kvm == "7.0"

    def _parameters(self, host: int) -> list[int]:
        """Return the parameters of a host's design, in its order."""
        return self._parameters_of(host, self.designs[host])

    def _parameters_of(self, host: int, design: str) -> list[int]:
        """Return the parameters of a design on a host."""
        defaults: dict[str, int] = getattr(load_design(design), "PARAMETERS", {})
        chosen = self.scenario.hosts[host].parameters
        return [chosen.get(name, default) for name, default in defaults.items()]

    def _fill_guest(
        self, index: int, placed: _Placed, host: Host, v: int, g: int
    ) -> tuple[list[ThreadEntry], list[SessionEntry]]:
        profile = self.profiles[host.profile]
        vm = placed.vm
        tick_ns = _SEC // vm.hz
        finite = sum(1 for _, thread, _ in placed.threads if thread.kind == "program")
        costs = self._cost_figures(host)
        self._set(
            g,
            G_ID=(1 << 42) | index,
            G_VCPU=v,
            G_TICK_NS=tick_ns,
            G_TICK_AT=_NEVER if vm.outside else vm.start_ns + tick_ns,
            G_WAKE_AT=_NEVER,
            G_INTERVAL_AT=_NEVER,
            G_LATENCY_NS=vm.sched_latency_ns,
            G_GRANULARITY_NS=vm.min_granularity_ns,
            G_WAKEUP_NS=vm.wakeup_granularity_ns,
            G_RESCHED=1,
            G_RUNNING=finite or 1,
            G_KERNEL_PROGRAM=self.program_regions[KERNEL].base,
            G_CORE_RATE=self._rate(self.scenario.hosts[placed.host].core_khz),
            G_TSC_RATE=self._rate(profile.cpu.tsc_khz),
            G_BUS_RATE=self._rate(_BUS_KHZ),
            G_LOG=1,
            G_MASK=(1 << 48) - 1,
            G_NR_THREADS=len(placed.threads),
            G_NR_SESSIONS=self._nr_sessions(placed),
            G_SESSIONS=self.session_rows.row(self._taken["session"]),
            G_ACCOUNTED_AT=vm.start_ns,
            **{_GUEST_COST_NAMES[name]: sum(costs[name][:2]) for name in _GUEST_COSTS},
        )
        u = g + int(col.G_CPU_HW)
        context = self._take(self.context_rows)
        nr_gp = int(self.s[v + int(col.V_NR_GP)])
        queue = g + int(col.G_QUEUE)
        self._set(g + int(col.G_NMI_QUEUE), Q_CUT=col.QUEUE_SIZE - col.NMI_QUEUE_SIZE)
        masked = _masked(self.scenario.hosts[placed.host])
        self._fill_cpu_hw(
            u,
            nr_gp,
            full_width=self._full_width(placed.host),
            tick_ns=tick_ns,
            context=context,
            queue=queue,
            masked=masked,
        )
        # The guest's perf has been on before: a tool's child is switched in, its events off, before it runs.
        self._set(u, U_ENABLED=1)
        threads = [
            self._fill_thread(number, name, thread, placed)
            for number, (name, thread, _) in enumerate(placed.threads)
        ]
        if threads:
            self._set(g, G_THREADS=threads[0].offset)
        sessions = [
            self._fill_session(number, session, placed, threads, context)
            for number, session in enumerate(placed.sessions)
        ]
        self._fill_system_sessions(placed, profile, context)
        return threads, sessions

    def _fill_thread(self, number: int, name: str, thread: Thread, placed: _Placed) -> ThreadEntry:
        th = self._take(self.thread_rows)
        program = thread.program if thread.kind == "program" else (thread.program or SPIN)
        region = self.program_regions[program]
        end = _NEVER
        if thread.kind == "program":
            end = int(Fraction(self.programs[program].cycles) * thread.work)
        kinds = {"program": THREAD_PROGRAM, "spin": THREAD_SPIN, "sleeper": THREAD_SLEEPER}
        sleeper = thread.kind == "sleeper"
        start = placed.vm.start_ns + thread.start_ns
        self._set(
            th,
            TH_ID=number + 1,
            TH_TYPE=int(kinds[thread.kind]),
            TH_STATE=int(SLEEPING) if sleeper else int(WAITING) if start else int(RUNNABLE),
            TH_PROGRAM=region.base,
            TH_END=0 if sleeper else end,
            TH_WAKE_AT=start if start or sleeper else _NEVER,
            TH_FINISHED_AT=_NEVER,
        )
        if sleeper and thread.wakeups is not None:
            mean_ns = thread.wakeups.interval_ns
            cycles = thread.burst_ns * self.scenario.hosts[placed.host].core_khz // _KHZ_PER_GHZ
            regular = int(thread.process == "regular")
            self._set(th, TH_WAKE_MEAN_NS=mean_ns, TH_WAKE_REGULAR=regular, TH_BURST_CYCLES=cycles)
            self._set(th, TH_WAKE_AT=start + mean_ns)
        if self._is_measured(placed, name):
            self._set(th, TH_CONTEXT=self._take(self.context_rows))
        return ThreadEntry(name, thread.kind, program, th)

    def _fill_session(
        self, number: int, session: Session, placed: _Placed, threads: list[ThreadEntry], context: int
    ) -> SessionEntry:
        row = self._take(self.session_rows)
        groups = event_groups(session.events)
        first = self._take(self.event_rows, sum(len(group) for group in groups))
        thread = next((t for t in threads if t.name == session.thread), None)
        if thread is not None:
            context = int(self.s[thread.offset + int(col.TH_CONTEXT)])
        start = placed.vm.start_ns + session.start_ns
        self._set(
            row,
            S_ID=number,
            S_CONTEXT=context,
            S_THREAD=thread.offset if thread else 0,
            S_START_AT=start,
            S_STOP_AT=_NEVER if session.stop_ns is None else placed.vm.start_ns + session.stop_ns,
            S_INTERVAL_NS=session.interval_ns or 0,
            S_NEXT_AT=_NEVER,
            S_FIRST=first,
            S_NR_EVENTS=sum(len(group) for group in groups),
        )
        sampling = session.tool == "record"
        names: list[str] = []
        at = first
        for group in groups:
            leader = at
            for spec in group:
                flags = int(col.FLAG_SAMPLING) if sampling else 0
                frequency = session.frequency or 0 if sampling else 0
                period = session.period or 0
                self._fill_event(
                    at,
                    spec,
                    leader,
                    flags,
                    frequency,
                    period,
                    session.user_only,
                    _max_period(self._full_width(placed.host)),
                )
                self._set(at, E_OWNER=(number << 8) | len(names))
                names.append(spec.name)
                at += col.EVENT_COLUMNS
        return SessionEntry(
            session.name, session.tool, tuple(names), thread.name if thread else "", row, first
        )

    def _fill_system_sessions(self, placed: _Placed, profile: Profile, context: int) -> None:
        """Fill in what the system measures for itself: its watchdog; on hardware, the host's tools."""
        number = len(placed.sessions)
        if self._has_watchdog(placed):
            row, event = self._take(self.session_rows), self._take(self.event_rows)
            self._set(row, S_ID=number, S_CONTEXT=context, S_START_AT=placed.vm.start_ns, S_STOP_AT=_NEVER)
            self._set(row, S_NEXT_AT=_NEVER, S_FIRST=event, S_NR_EVENTS=1)
            self._fill_watchdog_event(event, profile)
            self._set(event, E_OWNER=number << 8)
            number += 1
        for tool in self._own_tools(placed):
            row = self._take(self.session_rows)
            first = self._take(self.event_rows, self._nr_events(tool.events))
            self._set(row, S_ID=number, S_CONTEXT=context, S_START_AT=tool.start_ns, S_NEXT_AT=_NEVER)
            self._set(row, S_STOP_AT=_NEVER if tool.stop_ns is None else tool.stop_ns, S_FIRST=first)
            self._set(row, S_NR_EVENTS=self._fill_tool_events(tool, first, number))
            number += 1

    def _fill_event(
        self,
        at: int,
        spec: EventSpec,
        leader: int,
        flags: int,
        frequency: int,
        period: int,
        user_only: bool,
        max_period: int,
    ) -> None:
        config = spec.config | int(EVENTSEL_INT)
        if not spec.exclude_user:
            config |= int(EVENTSEL_USR)
        if not spec.exclude_kernel and not user_only:
            config |= int(EVENTSEL_OS)
        if frequency:
            flags |= int(col.FLAG_FREQUENCY)
        self._set(
            at,
            E_STATE=int(col.EVENT_OFF),
            E_CONFIG=config,
            E_FLAGS=flags,
            E_FREQUENCY=frequency,
            E_PERIOD=period or (1 if frequency else max_period),
            E_SLOT=int(col.NO_SLOT),
            E_LEADER=leader,
        )

    def _fill_tools(self) -> None:
        """Fill every physical CPU's tools in, the watchdog as its first."""
        for pcpu in self.machine.pcpus:
            host = self.scenario.hosts[pcpu.host]
            profile = self.profiles[host.profile]
            first = self.tool_rows.row(self._taken["tool"])
            count = 0
            if host.watchdog and not self._native(pcpu.host):
                self._fill_watchdog(profile)
                count += 1
            for tool, cpu, vcpu in self.host_tools[pcpu.host]:
                if cpu == pcpu.cpu:
                    self._fill_tool(tool, vcpu, count)
                    count += 1
            self._set(pcpu.offset, P_TOOLS=first, P_NR_TOOLS=count)

    def _fill_watchdog(self, profile: Profile) -> None:
        row = self._take(self.tool_rows)
        event = self._take(self.event_rows)
        self._set(row, TO_STOP_AT=_NEVER, TO_FIRST=event, TO_NR_EVENTS=1)
        self._fill_watchdog_event(event, profile)

    def _fill_watchdog_event(self, event: int, profile: Profile) -> None:
        """Fill in the NMI watchdog's event: pinned cycles, ten seconds' worth at the TSC's frequency."""
        config = 0x3C | int(EVENTSEL_INT) | int(EVENTSEL_USR) | int(EVENTSEL_OS)
        flags = int(col.FLAG_PINNED | col.FLAG_SAMPLING | col.FLAG_WATCHDOG)
        period = profile.cpu.tsc_khz * 1000 * 10
        self._set(
            event, E_CONFIG=config, E_FLAGS=flags, E_PERIOD=period, E_SLOT=int(col.NO_SLOT), E_LEADER=event
        )

    def _fill_tool(self, tool: Tool, vcpu: int | None, number: int) -> None:
        row = self._take(self.tool_rows)
        first = self._take(self.event_rows, self._nr_events(tool.events))
        self._set(
            row,
            TO_ID=number,
            TO_START_AT=tool.start_ns,
            TO_STOP_AT=_NEVER if tool.stop_ns is None else tool.stop_ns,
            TO_FIRST=first,
            TO_NR_EVENTS=self._fill_tool_events(tool, first, 0),
            TO_VCPU=0 if vcpu is None else self.machine.vcpus[vcpu].offset,
        )

    def _fill_tool_events(self, tool: Tool, first: int, session: int) -> int:
        """Fill in a host tool's events from the row at ``first`` on; return how many there are."""
        flags = int(col.FLAG_PINNED) if tool.pinned else 0
        flags |= int(col.FLAG_EXCLUDE_GUEST) if tool.exclude_guest else 0
        flags |= int(col.FLAG_EXCLUDE_HOST) if tool.exclude_host else 0
        flags |= int(col.FLAG_SAMPLING) if tool.kind == "record" else 0
        frequency = tool.frequency or 0 if tool.kind == "record" else 0
        at = first
        number = 0
        for group in event_groups(tool.events):
            leader = at
            for spec in group:
                self._fill_event(
                    at, spec, leader, flags, frequency, tool.period or 0, False, _max_period(True)
                )
                self._set(at, E_OWNER=(session << 8) | number)
                at += col.EVENT_COLUMNS
                number += 1
        return number

    def _add_events(self) -> None:
        """Resolve what happens to the fleet: to vCPUs, hosts and physical CPUs by number.

        Raises
        ------
        UserError
            If a VM would come to, or leave, bare hardware, or leave while it is under way, or a host reboots
            with a VM on it.
        """
        names = [host.name for host in self.scenario.hosts]
        designs = list(self.designs)
        vms: dict[str, list[VcpuEntry]] = {}
        for entry in self.machine.vcpus:
            vms.setdefault(entry.vm, []).append(entry)
        vms_on = Counter(vcpus[0].host for vcpus in vms.values())
        where = {name: vcpus[0].host for name, vcpus in vms.items()}
        cpus: dict[int, list[int]] = {}
        for pcpu in self.machine.pcpus:
            cpus.setdefault(pcpu.host, []).append(pcpu.index)
        arrived: Counter[int] = Counter()
        comes_at: dict[str, int] = {}
        changes: list[Move | Reboot] = [*moves(self.scenario), *reboots(self.scenario)]
        for change in sorted(changes, key=lambda each: each.at_ns):
            if isinstance(change, Reboot):
                self._add_reboot(change, names, designs, vms_on)
                continue
            if change.at_ns < comes_at.get(change.vm, 0):
                problem = (
                    f'vm "{change.vm}" would have to leave at {change.at_ns:,} ns, while it is under way'
                )
                raise UserError(f"{problem} until {comes_at[change.vm]:,} ns", file="event")
            comes_at[change.vm] = change.at_ns + change.downtime_ns
            vcpus = vms[change.vm]
            vms_on[where[change.vm]] -= 1
            numbers = tuple(entry.index for entry in vcpus)
            if not change.to:
                self.machine.moves.append(MoveEntry(change.at_ns, 0, numbers))
                continue
            to = names.index(change.to)
            self._check_move(change.vm, where[change.vm], to)
            where[change.vm] = to
            vms_on[to] += 1
            chosen = [cpus[to][cpu] for cpu in change.cpus] or cpus[to]
            first = 0 if change.cpus else arrived[to]
            arrived[to] += len(vcpus)
            pcpus = tuple(chosen[(first + i) % len(chosen)] for i in range(len(vcpus)))
            masked, parameters = _masked(self.scenario.hosts[to]), self._parameters_of(to, designs[to])
            self.machine.moves.append(
                MoveEntry(
                    change.at_ns,
                    change.downtime_ns,
                    numbers,
                    to,
                    pcpus,
                    int(bool(change.cpus)),
                    masked,
                    tuple(parameters),
                )
            )
            if not change.cpus:
                h = self.machine.hosts[to].offset
                self._set(h, H_FLOATING=int(self.s[h + int(col.H_FLOATING)]) + len(vcpus))

    def _check_move(self, vm: str, source: int, to: int) -> None:
        hosts = self.scenario.hosts
        if self._native(to) or self._native(source):
            problem = f'vm "{vm}" cannot migrate: what runs on bare hardware is no VM'
            raise UserError(problem, file="event")
        if hosts[source].kvm != hosts[to].kvm:
            problem = f'vm "{vm}" cannot migrate from KVM {hosts[source].kvm} to KVM {hosts[to].kvm}'
            raise UserError(f"{problem}: its PMU would be another one", file="event")

    def _add_reboot(self, reboot: Reboot, names: list[str], designs: list[str], vms_on: Counter[int]) -> None:
        host = names.index(reboot.host)
        if vms_on[host]:
            problem = f'host "{reboot.host}" has {vms_on[host]} VMs when it reboots: drain it before'
            raise UserError(problem, file="event")
        designs[host] = reboot.design or designs[host]
        if not load_design(designs[host]).INTERCEPTS:
            raise UserError(f'host "{reboot.host}" cannot come up as bare hardware', file="event")
        number = design_names().index(designs[host])
        self.machine.reboots.append(RebootEntry(reboot.at_ns, reboot.duration_ns, host, number))

    def _start(self) -> None:
        """Put the vCPUs on their physical CPUs and set every timer."""
        load: dict[int, int] = {}
        pcpus = {(pcpu.host, pcpu.cpu): pcpu.offset for pcpu in self.machine.pcpus}
        for entry, placed in zip(self.machine.vcpus, self.placed, strict=True):
            host = self.scenario.hosts[placed.host]
            cpu = placed.pinned
            if cpu is None:
                cpu = load.get(placed.host, 0) % host.cpus
                load[placed.host] = load.get(placed.host, 0) + 1
            place_vcpu(self.s, U64(pcpus[placed.host, cpu]), U64(entry.offset))
            boot_guest(self.s, U64(entry.guest))
        for pcpu in self.machine.pcpus:
            boot_timers(self.s, U64(pcpu.offset))


def _max_period(full_width: bool) -> int:
    """Return the longest period that perf programs: the default of a counting event (x86_pmu.max_period)."""
    return (1 << 47) - 1 if full_width else (1 << 31) - 1


def _fixed_reserved(nr_fixed: int) -> int:
    """Return the bits of FIXED_CTR_CTRL that raise #GP: all but levels and PMI of the counters there are."""
    field = int(FIXED_OS | FIXED_USR | FIXED_PMI)
    return (1 << 64) - 1 - sum(field << 4 * fixed for fixed in range(nr_fixed))


def _masked(host: Host) -> int:
    """Return what a PMI sets in the LVTPC."""
    return int(LVT_MASKED) if host.lvtpc_mask else 0


_GUEST_COST_NAMES: Final = {
    cost: next(name for name, value in vars(col).items() if name.startswith("G_") and value is column)
    for cost, column in _GUEST_COSTS.items()
}


def load_programs(scenario: Scenario) -> dict[str, Program]:
    """Return the programs of a scenario by name, with those of kernel code and of competitors."""
    from vpmu.program import load_program

    programs = {
        program.name: load_program(Path(program.file))
        if program.file
        else Program.from_functions(program.name, program.functions, program.cycles)
        for program in scenario.programs
    }
    programs[SPIN] = _estimate(SPIN, "1.5", "0.2", "0.001")
    programs[KERNEL] = _estimate(KERNEL, "0.8", "0.2", "0.004")
    return programs


def build(scenario: Scenario, design: str, programs: dict[str, Program] | None = None) -> Machine:
    """Return the machine that runs a scenario under one design.

    Parameters
    ----------
    scenario : Scenario
        Checked and complete, as `load_scenario` returns it.
    design : str
        Name of a design.
    programs : dict, optional
        What `load_programs` returned for this scenario; read anew if not given.
    """
    return Builder(scenario, design, load_programs(scenario) if programs is None else programs).build()
