"""Who does what in each rank of a run: a pure function of the machine, the ranks and the placement."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

from vpmu.actors.machine import HostEntry, Machine, PcpuEntry, VcpuEntry
from vpmu.actors.messages import Address, host_perf, physical_cpu, vcpu
from vpmu.actors.physical_cpu import Guests
from vpmu.cluster.placement import HostActors, place
from vpmu.kernels.columns import V_PCPU, V_PINNED

Shares = dict[Address, list[PcpuEntry]]


@dataclass(slots=True)
class Roles:
    """What lives where.

    Attributes
    ----------
    nr_ranks : int
        Processes; some may have nothing to do.
    rank_of : dict of Address to int
        Where each physical CPU, host perf and vCPU answers.
    guests : Guests
        How guests take part in hosts of several processes.
    whole : dict of int to int
        Hosts of which everything lives in one process, and which.
    shares : dict of int to dict
        The shares of every other host.
    """

    nr_ranks: int
    rank_of: dict[Address, int]
    guests: Guests
    whole: dict[int, int] = field(default_factory=dict)
    shares: dict[int, Shares] = field(default_factory=dict)

    def whole_hosts(self, rank: int) -> list[int]:
        """Return the hosts that live in a rank as a whole; they follow each other."""
        return [host for host, its in self.whole.items() if its == rank]

    def local_shares(self, rank: int) -> Shares:
        """Return the shares of hosts that live in a rank."""
        return {
            address: pcpus
            for shares in self.shares.values()
            for address, pcpus in shares.items()
            if self.rank_of[address] == rank
        }

    def rank_of_state(self, number: int, cpu: int) -> int:
        """Return where KVM's state of a vCPU is that comes to a physical CPU, both by their numbers."""
        at = vcpu(number) if self.guests is Guests.TRAVEL else physical_cpu(cpu)
        return self.rank_of[at]

    def cpu_ranks(self) -> set[int]:
        """Return the ranks that advance physical CPUs."""
        shared = {self.rank_of[address] for shares in self.shares.values() for address in shares}
        return shared | set(self.whole.values())


def pcpus_by_host(machine: Machine) -> list[list[PcpuEntry]]:
    """Return the physical CPUs of each host."""
    found: list[list[PcpuEntry]] = [[] for _ in machine.hosts]
    for pcpu in machine.pcpus:
        found[pcpu.host].append(pcpu)
    return found


def _vcpus_by_host(machine: Machine) -> list[list[VcpuEntry]]:
    found: list[list[VcpuEntry]] = [[] for _ in machine.hosts]
    for each in machine.vcpus:
        found[each.host].append(each)
    return found


def _actors_of(
    machine: Machine, host: HostEntry, pcpus: list[PcpuEntry], vcpus: list[VcpuEntry]
) -> HostActors:
    index_of = {pcpu.offset: pcpu.index for pcpu in pcpus}
    # Note that in a run that goes on, a vCPU may be on another host by now.
    pinned = {
        each.index: index_of[p]
        for each in vcpus
        if machine.arena[each.offset + int(V_PINNED)]
        and (p := int(machine.arena[each.offset + int(V_PCPU)])) in index_of
    }
    return HostActors(host.index, [p.index for p in pcpus], [each.index for each in vcpus], pinned, host.name)


def assign(machine: Machine, workers: int, policy: str, messages: bool) -> Roles:
    """Return the roles of a run.

    But under `spread`, a vCPU lives where its physical CPU does and moves with it. Message mode always keeps
    the roles apart.

    Parameters
    ----------
    machine : Machine
        As built, not yet run.
    workers : int
        Ranks, at least 1.
    policy : str
        See `placement.place`.
    messages : bool
        Message mode.
    """
    apart = messages or policy == "spread"
    by_host = pcpus_by_host(machine)
    actors = map(partial(_actors_of, machine), machine.hosts, by_host, _vcpus_by_host(machine))
    placement = place(workers, "spread" if apart else policy, list(actors))
    rank_of = dict(placement.rank_of)
    cpu_ranks = {rank_of[physical_cpu(pcpu.index)] for pcpu in machine.pcpus}
    guests = Guests.HERE
    if messages:
        guests = Guests.ANSWER
    elif apart and any(rank_of[vcpu(each.index)] not in cpu_ranks for each in machine.vcpus):
        guests = Guests.TRAVEL
    roles = Roles(workers, rank_of, guests)
    for host, pcpus in zip(machine.hosts, by_host, strict=True):
        ranks = {rank_of[physical_cpu(pcpu.index)] for pcpu in pcpus} | {rank_of[host_perf(host.index)]}
        if len(ranks) == 1 and guests is Guests.HERE:
            roles.whole[host.index] = ranks.pop()
        else:
            roles.shares[host.index] = _shares(pcpus, rank_of)
    return roles


def _shares(pcpus: Iterable[PcpuEntry], rank_of: dict[Address, int]) -> Shares:
    """Divide the physical CPUs of a host by rank; a share's address is that of its first."""
    by_rank: dict[int, list[PcpuEntry]] = {}
    for pcpu in pcpus:
        by_rank.setdefault(rank_of[physical_cpu(pcpu.index)], []).append(pcpu)
    return {physical_cpu(share[0].index): share for share in by_rank.values()}


def vms_of(vcpus: Iterable[VcpuEntry]) -> dict[str, list[VcpuEntry]]:
    """Return vCPUs by the name of their VM."""
    by_name: dict[str, list[VcpuEntry]] = {}
    for each in vcpus:
        by_name.setdefault(each.vm, []).append(each)
    return by_name
