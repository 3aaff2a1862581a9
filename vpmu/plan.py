"""``vpmu cluster plan``: what would go where, its memory, and how fast it would be; nothing runs.

Placement is that of the run. The arena is laid out, not filled, so its size is exact; the speed is an
estimate: exits a virtual second, from what the scenario says of ticks, switches, wake-ups and samples, times
what an exit takes here.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from vpmu.actors.messages import physical_cpu, vcpu
from vpmu.cluster.placement import HostActors, Placement, place
from vpmu.units import NS_PER_S

if TYPE_CHECKING:
    from vpmu.scenario import Host, Scenario, Vm

NS_PER_EXIT: Final = 160
"""What one exit takes with all that belongs to it, guest code included: `make scale` (docs/scale.md)."""
EXITS_PER_SAMPLE: Final = 10
"""Accesses of a sample's PMI and the PMI, and a fifth more than the frequency asks for: as above."""
EXITS_PER_TICK: Final = 18
"""Accesses of a guest's tick while it samples, which adjusts the period, and of its switches: as above."""
_MOST_HZ: Final = 2000
"""Frequency that vCPUs which share a CPU reach at most: the adjustment lags behind."""
_EXITS_PER_WAKE: Final = 2
_BASE_BYTES: Final = 170 << 20
"""A process with the engine and no machine: the first line of docs/scale.md."""
_DIRECTORY_BYTES: Final = 1536
"""What Python keeps of a vCPU beside its rows: `python -m benchmarks --only memory`, less the rows."""


@dataclass
class WorkerPlan:
    """What one process would have.

    Attributes
    ----------
    hosts : list of str
        Those that it has as a whole.
    parts : dict of str to int
        How many physical CPUs of each other host.
    cpus, vcpus : int
        Physical CPUs, and vCPUs that begin here.
    exits : float
        Estimated, a virtual second.
    memory_bytes : int
    """

    hosts: list[str] = field(default_factory=list)
    parts: dict[str, int] = field(default_factory=dict)
    cpus: int = 0
    vcpus: int = 0
    exits: float = 0.0
    memory_bytes: int = 0

    @property
    def busy_s(self) -> float:
        """Estimated processor time of a virtual second."""
        return self.exits * NS_PER_EXIT / NS_PER_S


@dataclass
class Plan:
    """What all processes would have."""

    design: str
    place: str
    workers: list[WorkerPlan]
    arena_bytes: int

    def speed(self, cores: int | None = None) -> float:
        """Return the estimated virtual seconds a wall second, with a core for each worker or with so many."""
        busiest = max(worker.busy_s for worker in self.workers)
        if cores is not None:
            busiest = max(busiest, sum(worker.busy_s for worker in self.workers) / cores)
        return 1 / busiest if busiest else float("inf")

    def as_json(self) -> dict[str, Any]:
        """Return all of it as it is printed with ``--json``."""
        workers = [
            {
                "hosts": worker.hosts,
                "parts": worker.parts,
                "cpus": worker.cpus,
                "vcpus": worker.vcpus,
                "memory_bytes": worker.memory_bytes,
                "exits_per_virtual_s": round(worker.exits),
                "busy_s_per_virtual_s": round(worker.busy_s, 3),
            }
            for worker in self.workers
        ]
        return {
            "design": self.design,
            "place": self.place,
            "workers": workers,
            "arena_bytes": self.arena_bytes,
            "virtual_s_per_wall_s": round(self.speed(), 3),
            "cores_here": cores_here(),
            "virtual_s_per_wall_s_here": round(self.speed(cores_here()), 3),
        }


def cores_here() -> int:
    """Return how many processors this machine lets us use."""
    return len(os.sched_getaffinity(0))


def make_plan(scenario: Scenario, design: str, workers: int, policy: str) -> Plan:
    """Return where a run's actors would live, and what that would take.

    Parameters
    ----------
    scenario : Scenario
        As `load_scenario` returns it.
    design : str
        A name.
    workers : int
        Processes.
    policy : str
        See `placement.place`.
    """
    from vpmu.build import Builder, load_programs

    arena_bytes = 8 * Builder(scenario, design, load_programs(scenario)).arena_words()
    hosts = _actors(scenario)
    placement = place(workers, policy, hosts)
    plans = [WorkerPlan() for _ in range(workers)]
    work = exits_of_hosts(scenario)
    for host, actors in zip(scenario.hosts, hosts, strict=True):
        _add_host(plans, placement, host, actors, work[host.name])
    vcpus = sum(len(actors.vcpus) for actors in hosts)
    for plan in plans:
        # Every rank has all rows: which of them are true changes as VMs travel.
        plan.memory_bytes = _BASE_BYTES + arena_bytes + vcpus * _DIRECTORY_BYTES
    return Plan(design, policy, plans, arena_bytes)


def _add_host(
    plans: list[WorkerPlan], placement: Placement, host: Host, actors: HostActors, exits: float
) -> None:
    ranks = Counter(placement.rank_of[physical_cpu(cpu)] for cpu in actors.physical_cpus)
    for rank, cpus in ranks.items():
        plan = plans[rank]
        plan.cpus += cpus
        plan.exits += exits * cpus / host.cpus
        if cpus == host.cpus:
            plan.hosts.append(host.name)
        else:
            plan.parts[host.name] = cpus
    for guest in actors.vcpus:
        plans[placement.rank_of[vcpu(guest)]].vcpus += 1


def _actors(scenario: Scenario) -> list[HostActors]:
    """Return who is on which host, numbered as a machine numbers them."""
    vcpus: dict[str, list[int]] = {host.name: [] for host in scenario.hosts}
    pinned: dict[str, dict[int, int]] = {host.name: {} for host in scenario.hosts}
    first: dict[str, int] = {}
    cpus = 0
    for host in scenario.hosts:
        first[host.name] = cpus
        cpus += host.cpus
    number = 0
    for vm in scenario.vms:
        for copy in range(vm.count):
            for index in range(vm.vcpus):
                vcpus[vm.host].append(number)
                cpu = vm.pinned_cpu(copy, index)
                if cpu is not None:
                    pinned[vm.host][number] = first[vm.host] + cpu
                number += 1
    return [
        HostActors(
            index,
            range(first[host.name], first[host.name] + host.cpus),
            vcpus[host.name],
            pinned[host.name],
            host.name,
        )
        for index, host in enumerate(scenario.hosts)
    ]


@dataclass
class _Demand:
    """What the guests of a host ask of it, on average over the run."""

    runnable: float = 0.0
    """vCPUs that always have something to run."""
    asleep: float = 0.0
    """Physical CPUs that those need which sleep and wake."""
    wakes: float = 0.0
    """Wake-ups a second."""
    sampling: float = 0.0
    """Exits a second for sampling, if each vCPU had a physical CPU for itself."""


def exits_of_hosts(scenario: Scenario) -> dict[str, float]:
    """Return the estimated VM exits a virtual second of each host."""
    from vpmu.profile import load_profile

    demands: dict[str, _Demand] = {host.name: _Demand() for host in scenario.hosts}
    for vm in scenario.vms:
        _ask(demands[vm.host], vm, scenario)
    # All hosts of a scenario have one profile.
    rate = float(load_profile(scenario.hosts[0].profile).interrupts.rate)
    return {host.name: _exits(host, demands[host.name], rate) for host in scenario.hosts}


def _there(vm: Vm, until_ns: int) -> float:
    """Return the part of the run in which a VM is there."""
    stop = until_ns if vm.stop_ns is None else min(int(vm.stop_ns), until_ns)
    return max(stop - int(vm.start_ns), 0) / until_ns


def _ask(demand: _Demand, vm: Vm, scenario: Scenario) -> None:
    there = vm.count * _there(vm, scenario.until_ns)
    busy = [thread for thread in vm.threads if thread.kind != "sleeper"]
    always = min(sum(thread.count for thread in busy), vm.vcpus)
    demand.runnable += there * always
    for thread in vm.threads:
        if thread.kind == "sleeper" and thread.wakeups is not None:
            wakes = there * thread.count * NS_PER_S / thread.wakeups.interval_ns
            demand.wakes += wakes
            demand.asleep += wakes * int(thread.burst_ns) / NS_PER_S
    for session in vm.sessions:
        if session.tool == "record":
            stop = scenario.until_ns if session.stop_ns is None else int(session.stop_ns)
            lasts = max(min(stop, scenario.until_ns) - int(session.start_ns), 0) / scenario.until_ns
            copies = vm.vcpus if session.cpu and session.vcpu is None else 1
            rate = min(_rate(session.frequency, session.period), _MOST_HZ)
            demand.sampling += there * lasts * copies * (rate * EXITS_PER_SAMPLE + vm.hz * EXITS_PER_TICK)


def _rate(frequency: int | None, period: int | None) -> float:
    """Return samples a second; a period is taken as one of cycles at 3 GHz."""
    return float(frequency) if frequency else 3e9 / (period or 1)


def _exits(host: Host, demand: _Demand, interrupts: float) -> float:
    """Return the exits a virtual second of a host: ticks and interrupts, switches, wake-ups, samples."""
    busy = min(demand.runnable + demand.asleep, host.cpus)
    share = min(1.0, host.cpus / demand.runnable) if demand.runnable else 1.0
    queue = demand.runnable / host.cpus
    exits = busy * (host.hz + interrupts) if host.noise else 0.0
    if queue > 1:
        slice_ns = max(int(host.sched_latency_ns) / queue, int(host.min_granularity_ns))
        exits += busy * NS_PER_S / slice_ns
    exits += demand.wakes * _EXITS_PER_WAKE
    return exits + demand.sampling * share


def named(hosts: Iterable[str]) -> str:
    """Return hosts in a few words: those that follow each other in a group as one."""
    runs: list[tuple[str, int, int]] = []
    for name in hosts:
        group, _, number = name.rpartition(".")
        index = int(number) if group else -1
        if group and runs and runs[-1][0] == group and runs[-1][2] == index - 1:
            runs[-1] = (group, runs[-1][1], index)
        else:
            runs.append((group or name, index, index))
    return ", ".join(
        group if first < 0 else f"{group}.{first}" + (f" to {last}" if last > first else "")
        for group, first, last in runs
    )


def plan_lines(plan: Plan) -> Iterator[str]:
    """Yield a plan as lines of text."""
    for rank, worker in enumerate(plan.workers):
        parts = [f"{cpus} CPUs of {host}" for host, cpus in worker.parts.items()]
        has = ", ".join(filter(None, [named(worker.hosts), *parts])) or "nothing to advance"
        yield (
            f"{plan.design}, worker {rank}: {has}; {worker.cpus:,} CPUs, {worker.vcpus:,} vCPUs, "
            f"{worker.memory_bytes >> 20:,} MB, works {worker.busy_s:.2f} s a virtual second"
        )
    cores = cores_here()
    yield (
        f"{plan.design}: about {plan.speed():.2f} virtual seconds a second with a core for each worker, "
        f"{plan.speed(cores):.2f} on the {cores} of this machine; the arena has {plan.arena_bytes >> 20:,} MB"
    )
