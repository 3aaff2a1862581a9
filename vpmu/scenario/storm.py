"""A storm: many guests run perf at the same time, for a while; an event of kind "storm".

Its sessions are added to those of the VMs that take part, with times of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from vpmu.scenario.model import Event, Scenario, Session, Vm
from vpmu.units import Duration


def storms(scenario: Scenario) -> list[tuple[int, Event]]:
    """Return the storms of a scenario, with their indices among its events."""
    return [(index, event) for index, event in enumerate(scenario.events) if event.kind == "storm"]


def in_storms(vms: tuple[Vm, ...], scenario: Scenario) -> tuple[Vm, ...]:
    """Return VMs with the sessions of all storms; where there is any, every copy by itself."""
    found = storms(scenario)
    if not found:
        return vms
    singles = {single.name: single for vm in vms for single in _singles(vm)}
    for _, event in found:
        singles |= {vm.name: vm for vm in _in_storm(event, singles.values())}
    return tuple(singles.values())


def _singles(vm: Vm) -> Iterator[Vm]:
    """Yield the copies of a VM, each pinned as it was among them."""
    for copy, name in enumerate(vm.copies()):
        pinned = [vm.pinned_cpu(copy, vcpu) for vcpu in range(vm.vcpus)]
        cpus = tuple(cpu for cpu in pinned if cpu is not None) or vm.cpus
        yield replace(vm, name=name, count=1, cpus=cpus)


def _in_storm(event: Event, vms: Iterable[Vm]) -> Iterator[Vm]:
    """Yield those that take part, with their sessions: who is there at his turn."""
    at_ns = int(event.at_ns)
    for vm in vms:
        if event.vm not in (vm.name, group_of(vm.name)):
            continue
        if at_ns < vm.start_ns or (vm.stop_ns is not None and at_ns >= vm.stop_ns):
            continue
        start = Duration(at_ns - vm.start_ns)
        stop = Duration(start + event.duration_ns)
        more = tuple(replace(each, start_ns=start, stop_ns=stop) for each in event.sessions)
        yield replace(vm, sessions=vm.sessions + more)
        at_ns += event.every_ns


def group_of(name: str) -> str:
    """Return what a copy is one of, or the name itself: no name has a dot of its own."""
    return name.rsplit(".", 1)[0]


def storm_sessions(scenario: Scenario, names: Iterable[str]) -> list[tuple[int, int, Session]]:
    """Return (event, index, session) of every storm that VMs, groups or fleets of these names may be in."""
    asked = set(names)
    return [
        (number, index, session)
        for number, event in storms(scenario)
        if asked & {event.vm, group_of(event.vm)}
        for index, session in enumerate(event.sessions)
    ]


def fleets_of(scenario: Scenario, template: str) -> list[str]:
    """Return the names of the fleets that a template may be drawn for."""
    return [fleet.name for fleet in scenario.fleets if template in fleet.templates]
