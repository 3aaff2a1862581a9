"""Which rank each actor lives in: a pure function of the policy, the hosts and the number of ranks.

Placement changes the speed of a run and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from vpmu.actors.messages import Address, host_perf, physical_cpu, vcpu

POLICIES: Final = ("packed", "spread", "split:HOST", "random:SEED")
"""What a placement may be; see `place`."""

ROLES: Final = ("physical CPUs", "host perf", "vCPUs")
"""What `spread` keeps apart, in the order of their ranks."""


@dataclass(frozen=True, slots=True)
class HostActors:
    """The actors of one host.

    Parameters
    ----------
    host : int
        The host's number; its perf subsystem has the same.
    physical_cpus : sequence of int
        Their numbers, counted over the whole run.
    vcpus : sequence of int
        The vCPUs that start on this host, counted over the whole run.
    pinned : mapping of int to int
        The physical CPU of each pinned vCPU; a vCPU that is not in it floats.
    name : str
        What `split:HOST` calls it.
    """

    host: int
    physical_cpus: Sequence[int]
    vcpus: Sequence[int] = ()
    pinned: Mapping[int, int] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where every actor lives.

    Parameters
    ----------
    nr_ranks : int
        Processes; some may have no actor.
    rank_of : mapping of Address to int
        The rank of each physical CPU, host perf and vCPU.
    """

    nr_ranks: int
    rank_of: Mapping[Address, int]

    def actors_of(self, rank: int) -> list[Address]:
        """Return the actors that live in `rank`, in address order."""
        return sorted(address for address, its in self.rank_of.items() if its == rank)


def policy_fault(policy: str, hosts: Sequence[str]) -> str:
    """Return what is wrong with a placement, nothing if it is one; `hosts` are the names that there are."""
    kind, _, detail = policy.partition(":")
    if kind == "random" and detail:
        return "" if detail.isdecimal() else "not a whole number behind random:, found"
    if kind == "split" and detail:
        return "" if detail in hosts else "unknown host behind split:, found"
    return "" if policy in POLICIES[:2] else "unknown placement"


def place(nr_workers: int, policy: str, hosts: Sequence[HostActors]) -> Placement:
    """Return where the actors of `hosts` live.

    `packed` keeps what talks most together: whole hosts per rank, or, with more ranks than hosts, a
    run of neighbouring physical CPUs per rank, each with its pinned vCPUs. `spread` keeps the three
    roles apart: round-robin over the ranks if these are fewer, otherwise one rank for host perf and
    the others divided between physical CPUs and vCPUs. `split:HOST` is `packed`, but for one host, of which
    every rank has a part. `random:SEED` draws: half of the hosts go to a rank each, and of the other half
    every physical CPU by itself.

    Parameters
    ----------
    nr_workers : int
        Ranks to use, at least 1.
    policy : str
        One of `POLICIES`.
    hosts : sequence of HostActors
        At least one; no actor may appear twice.

    Raises
    ------
    ValueError
        If the number or the policy makes no sense, an actor appears twice, or a vCPU is pinned to a
        physical CPU that its host does not have.
    """
    if nr_workers < 1:
        raise ValueError(f"nr_workers is {nr_workers}, expected at least 1")
    if fault := policy_fault(policy, [host.name for host in hosts]):
        raise ValueError(f"policy is {policy!r}: {fault}; expected one of {', '.join(POLICIES)}")
    _check(hosts)
    kind, _, detail = policy.partition(":")
    if kind == "random":
        rank_of = _random(nr_workers, int(detail), hosts)
    elif kind == "split":
        rank_of = _split(nr_workers, detail, hosts)
    else:
        rank_of = _packed(nr_workers, hosts) if kind == "packed" else _spread(nr_workers, hosts)
    return Placement(nr_workers, rank_of)


def _check(hosts: Sequence[HostActors]) -> None:
    seen: set[Address] = set()
    for host in hosts:
        for address in _actors(host):
            if address in seen:
                raise ValueError(f"{address} appears twice")
            seen.add(address)
        for guest, cpu in host.pinned.items():
            if cpu not in host.physical_cpus or guest not in host.vcpus:
                raise ValueError(
                    f"vcpu {guest} is pinned to physical_cpu {cpu}: not both on host {host.host}"
                )


def _actors(host: HostActors) -> list[Address]:
    cpus = [physical_cpu(cpu) for cpu in host.physical_cpus]
    return [host_perf(host.host), *cpus, *(vcpu(guest) for guest in host.vcpus)]


def _packed(nr_workers: int, hosts: Sequence[HostActors]) -> dict[Address, int]:
    if nr_workers <= len(hosts):
        shares = _divide(len(hosts), 0, nr_workers)
        return {address: rank for host, rank in zip(hosts, shares, strict=True) for address in _actors(host)}
    rank_of: dict[Address, int] = {}
    for position, host in enumerate(hosts):
        first = position * nr_workers // len(hosts)
        last = (position + 1) * nr_workers // len(hosts)
        rank_of |= _packed_host(host, first, last - first)
    return rank_of


def _packed_host(host: HostActors, first: int, nr_ranks: int) -> dict[Address, int]:
    """Divide one host over the ranks `first` to `first + nr_ranks - 1`; its perf goes to the first."""
    return _on_ranks(host, _divide(len(host.physical_cpus), first, nr_ranks))


def _on_ranks(host: HostActors, ranks: Sequence[int]) -> dict[Address, int]:
    """Put a host's physical CPUs on ranks, in order; its perf goes with the first, vCPUs in turn."""
    rank_of_cpu = dict(zip(host.physical_cpus, ranks, strict=True))
    rank_of = {physical_cpu(cpu): rank for cpu, rank in rank_of_cpu.items()}
    rank_of[host_perf(host.host)] = ranks[0]
    for index, guest in enumerate(host.vcpus):
        pinned_to = host.pinned.get(guest)
        rank_of[vcpu(guest)] = ranks[index % len(ranks)] if pinned_to is None else rank_of_cpu[pinned_to]
    return rank_of


def _split(nr_workers: int, name: str, hosts: Sequence[HostActors]) -> dict[Address, int]:
    rank_of = _packed(nr_workers, hosts)
    for host in hosts:
        if host.name == name:
            rank_of |= _packed_host(host, 0, nr_workers)
    return rank_of


def _random(nr_workers: int, seed: int, hosts: Sequence[HostActors]) -> dict[Address, int]:
    rank_of: dict[Address, int] = {}
    for host in hosts:
        first = _draw(seed, "host", host.host)
        scatters = first & 1
        ranks = [
            (_draw(seed, "cpu", cpu) if scatters else first >> 1) % nr_workers for cpu in host.physical_cpus
        ]
        rank_of |= _on_ranks(host, ranks)
    return rank_of


def _draw(seed: int, what: str, number: int) -> int:
    text = f"{seed}/{what}/{number}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _spread(nr_workers: int, hosts: Sequence[HostActors]) -> dict[Address, int]:
    cpus = [physical_cpu(cpu) for host in hosts for cpu in host.physical_cpus]
    perfs = [host_perf(host.host) for host in hosts]
    guests = [vcpu(guest) for host in hosts for guest in host.vcpus]
    shares = _role_ranks(nr_workers)
    rank_of: dict[Address, int] = {}
    for actors, (first, nr_ranks) in zip((cpus, perfs, guests), shares, strict=True):
        rank_of |= zip(actors, _divide(len(actors), first, nr_ranks), strict=True)
    return rank_of


def _role_ranks(nr_workers: int) -> list[tuple[int, int]]:
    """Return (first rank, number of ranks) of each role."""
    if nr_workers < len(ROLES):
        return [(role % nr_workers, 1) for role in range(len(ROLES))]
    nr_for_cpus = nr_workers // 2
    return [(0, nr_for_cpus), (nr_for_cpus, 1), (nr_for_cpus + 1, nr_workers - nr_for_cpus - 1)]


def _divide(nr_items: int, first: int, nr_ranks: int) -> list[int]:
    """Return the rank of each of `nr_items` items, in runs as even as can be."""
    return [first + item * nr_ranks // nr_items for item in range(nr_items)]
