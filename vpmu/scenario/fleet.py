"""A fleet in few lines: groups of hosts, VMs drawn from templates, and what becomes of them over time.

`expand` turns what a scenario says into single hosts and single VMs; `moves` turns its events into single
migrations. Both are functions of the scenario and its seed alone, without floating point.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from decimal import Context, Decimal
from typing import Final

from msgspec import Struct
from msgspec.structs import asdict, replace

from vpmu.scenario.model import Event, Fleet, Scenario, Template, Tool, Vm
from vpmu.scenario.storm import group_of, in_storms
from vpmu.units import Duration

_EXACT: Final = Context(prec=40)
_2_64: Final = 1 << 64


class Move(Struct, frozen=True):
    """One VM leaves its host: for another one, or, if `to` is empty, for good.

    Attributes
    ----------
    at_ns : int
        When it is asked to.
    vm : str
        Its name, a copy's.
    to : str
        Host that it goes to, a copy's name.
    downtime_ns : int
        From being asked to going on there, at least; it takes as many more of these as it needs to stop.
    cpus : tuple of int
        Physical CPUs there that its vCPUs are pinned to, round-robin; it floats if empty.
    """

    at_ns: int
    vm: str
    to: str = ""
    downtime_ns: int = 0
    cpus: tuple[int, ...] = ()


class Reboot(Struct, frozen=True):
    """A host that is empty comes up with another design (or the same) after a while."""

    at_ns: int
    host: str
    design: str
    duration_ns: int


def draw(seed: int, fleet: str, number: int, what: str) -> int:
    """Return 64 random bits for a fleet's member: a hash of all four."""
    text = f"{seed}/{fleet}/{number}/{what}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def exponential_ns(bits: int, mean_ns: int) -> int:
    """Return an exponentially distributed time, ns: the mean times minus the logarithm of a uniform draw."""
    uniform = Decimal(bits + 1) / Decimal(_2_64)
    return int(-_EXACT.ln(uniform) * mean_ns)


def expand(scenario: Scenario) -> Scenario:
    """Return a checked scenario with every host, VM and tool by itself."""
    hosts = tuple(replace(host, name=name, count=1) for host in scenario.hosts for name in host.copies())
    vms = (*(each for vm in scenario.vms for each in _vm_copies(vm, scenario)), *_fleet_vms(scenario))
    vms = in_storms(vms, scenario)
    by_host: dict[str, list[Vm]] = {}
    for vm in vms:
        by_host.setdefault(vm.host, []).append(vm)
    tools = tuple(each for tool in scenario.tools for each in _tool_copies(tool, scenario, by_host))
    return replace(scenario, hosts=hosts, vms=vms, tools=tools)


def _vm_copies(vm: Vm, scenario: Scenario) -> Iterator[Vm]:
    """Spread the copies of a VM over its group of hosts, round-robin; pinned ones take CPUs host by host."""
    hosts = scenario.host(vm.host).copies()
    if hosts == (vm.host,):
        yield vm
        return
    for index, name in enumerate(vm.copies()):
        on_host = index // len(hosts)
        cpus = vm.cpus
        if cpus != "float":
            cpus = tuple(cpus[(on_host * vm.vcpus + vcpu) % len(cpus)] for vcpu in range(vm.vcpus))
        yield replace(vm, name=name, host=hosts[index % len(hosts)], count=1, cpus=cpus)


def _fleet_vms(scenario: Scenario) -> Iterator[Vm]:
    for fleet in scenario.fleets:
        yield from _members(fleet, scenario)


def _members(fleet: Fleet, scenario: Scenario) -> Iterator[Vm]:
    """Draw a fleet's members: a template each, when it comes and when it leaves."""
    hosts = [copy for name in fleet.hosts for copy in scenario.host(name).copies()]
    templates = {template.name: template for template in scenario.templates}
    weights = fleet.weights or (1,) * len(fleet.templates)
    at_ns = int(fleet.start_ns)
    for index in range(fleet.count):
        name = f"{fleet.name}.{index}"
        if fleet.arrivals is not None:
            at_ns += exponential_ns(
                draw(scenario.seed, fleet.name, index, "arrival"), fleet.arrivals.interval_ns
            )
        chosen = draw(scenario.seed, fleet.name, index, "template") % sum(weights)
        template = templates[_weighted(fleet.templates, weights, chosen)]
        stop = None
        if fleet.lifetime_ns:
            life_ns = exponential_ns(
                draw(scenario.seed, fleet.name, index, "lifetime"), int(fleet.lifetime_ns)
            )
            stop = Duration(at_ns + max(life_ns, 1))
        yield vm_of(template, name, hosts[index % len(hosts)], Duration(at_ns), stop)


def _weighted(names: Iterable[str], weights: Iterable[int], chosen: int) -> str:
    for name, weight in zip(names, weights, strict=True):
        if chosen < weight:
            return name
        chosen -= weight
    raise AssertionError("weights do not cover the draw")


def vm_of(template: Template, name: str, host: str, start: Duration, stop: Duration | None) -> Vm:
    """Return a VM made of a template."""
    fields = asdict(template) | {"name": name}
    return Vm(host=host, start_ns=start, stop_ns=stop, **fields)


def _tool_copies(tool: Tool, scenario: Scenario, by_host: dict[str, list[Vm]]) -> Iterator[Tool]:
    """Run a tool on every host of its group, attached there to every copy of its VM."""
    hosts = scenario.host(tool.host).copies()
    if hosts == (tool.host,):
        yield tool
        return
    for host in hosts:
        if not tool.vm:
            yield replace(tool, name=f"{tool.name}@{host}", host=host)
            continue
        names = {copy for vm, copy in _copies_of(scenario, tool.vm)}
        for vm in by_host.get(host, []):
            if vm.name in names:
                yield replace(tool, name=f"{tool.name}@{vm.name}", host=host, vm=vm.name)


def _copies_of(scenario: Scenario, name: str) -> list[tuple[Vm, str]]:
    pairs = [(vm, copy) for vm in scenario.vms for copy in vm.copies()]
    return [(vm, copy) for vm, copy in pairs if name in (vm.name, copy)]


def vm_names(scenario: Scenario, name: str) -> list[str]:
    """Return the single VMs of an expanded scenario that a name stands for: itself, or all copies of it."""
    return [copy for vm in scenario.vms for copy in vm.copies() if name in (copy, vm.name, group_of(copy))]


def host_names(scenario: Scenario, names: Iterable[str]) -> list[str]:
    """Return the single hosts of an expanded scenario that names stand for: themselves, or all of a group."""
    return [
        host.name
        for name in names
        for host in scenario.hosts
        if name in (host.name, host.name.rsplit(".", 1)[0])
    ]


def moves(scenario: Scenario) -> list[Move]:
    """Return all migrations and departures of an expanded scenario, in the order of time.

    A drained host's VMs go to the hosts named, else to all others, in turn.
    """
    place = {copy: vm.host for vm in scenario.vms for copy in vm.copies()}
    found = [
        Move(int(vm.stop_ns), copy) for vm in scenario.vms if vm.stop_ns is not None for copy in vm.copies()
    ]
    found = [move for move in found if move.at_ns < scenario.until_ns]
    leaves_at = {move.vm: move.at_ns for move in found}
    for event in sorted(scenario.events, key=lambda each: each.at_ns):
        if event.kind == "migrate":
            names, targets = vm_names(scenario, event.vm), host_names(scenario, event.to)
        elif event.kind == "drain":
            hosts = host_names(scenario, (event.host,))
            names = [vm for vm, host in place.items() if host in hosts]
            all_hosts = [host.name for host in scenario.hosts]
            targets = [host for host in host_names(scenario, event.to or all_hosts) if host not in hosts]
        else:
            continue
        found += _one_by_one(event, names, targets, place, leaves_at)
    return sorted(found, key=lambda move: (move.at_ns, move.vm))


def _one_by_one(
    event: Event, names: list[str], targets: list[str], place: dict[str, str], leaves_at: dict[str, int]
) -> Iterator[Move]:
    at_ns = int(event.at_ns)
    turn = 0
    for name in names:
        if at_ns + event.downtime_ns >= leaves_at.get(name, at_ns + event.downtime_ns + 1):
            continue
        to = targets[turn % len(targets)]
        turn += 1
        if place[name] == to:
            continue
        place[name] = to
        yield Move(at_ns, name, to, int(event.downtime_ns), event.cpus)
        at_ns += event.every_ns


def reboots(scenario: Scenario) -> list[Reboot]:
    """Return the hosts' reboots of an expanded scenario, in the order of time."""
    found = [
        Reboot(int(event.at_ns), host, event.design, int(event.duration_ns))
        for event in scenario.events
        if event.kind == "reboot"
        for host in host_names(scenario, (event.host,))
    ]
    return sorted(found, key=lambda reboot: (reboot.at_ns, reboot.host))
