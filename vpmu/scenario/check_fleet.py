"""What a scenario's groups, fleets and events must be; each mistake at its key."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from vpmu.errors import UserError
from vpmu.scenario.fleet import vm_of
from vpmu.scenario.model import START, Event, Fleet, Scenario, Vm

_MOST: Final = 1_000_000
_KEYS: Final = {
    "migrate": {"vm", "to", "cpus", "every", "downtime"},
    "drain": {"host", "to", "every", "downtime"},
    "reboot": {"host", "design", "duration"},
    "storm": {"vm", "every", "duration", "session"},
}
"""Which keys go with which kind of event."""


class Place(Protocol):
    """A table of the scenario, as `vpmu.scenario.check` walks them."""

    def error(
        self, key: str, problem: str, found: str | None = None, allowed: Iterable[str] = ()
    ) -> UserError:
        """Return the error of a key."""

    def within(self, key: str, value: int | None, low: int, high: int | None) -> None:
        """Refuse a value out of range."""

    def known(self, key: str, what: str, name: str, names: Iterable[str]) -> None:
        """Refuse a name that nothing has."""


def check_groups_agree(scenario: Scenario, place: Place) -> None:
    """Refuse hosts of different cost profiles: a run has one table of costs."""
    first = scenario.hosts[0]
    for index, host in enumerate(scenario.hosts):
        for key in ("profile", "possible_cpus", "core_khz"):
            if getattr(host, key) != getattr(first, key):
                problem = (
                    f'must be that of host "{first.name}" ({getattr(first, key)}): a run has one profile'
                )
                raise place.error(f"host[{index}].{key}", problem, found=str(getattr(host, key)))


def template_as_vm(scenario: Scenario, index: int) -> Vm:
    """Return a template as a VM, which is checked as any other."""
    template = scenario.templates[index]
    return vm_of(template, template.name, scenario.hosts[0].name, START, None)


def check_fleet(fleet: Fleet, scenario: Scenario, place: Place) -> None:
    """Check one fleet."""
    place.within("count", fleet.count, 1, _MOST)
    if not fleet.hosts:
        raise place.error("hosts", "at least one host is needed")
    for name in fleet.hosts:
        place.known("hosts", "host", name, (host.name for host in scenario.hosts))
    if not fleet.templates:
        raise place.error("templates", "at least one template is needed")
    for name in fleet.templates:
        place.known("templates", "template", name, (each.name for each in scenario.templates))
    if fleet.weights and len(fleet.weights) != len(fleet.templates):
        raise place.error("weights", f"one for each of the {len(fleet.templates)} templates is needed")
    for weight in fleet.weights:
        place.within("weights", weight, 1, _MOST)
    if fleet.lifetime_ns is not None:
        place.within("lifetime", int(fleet.lifetime_ns), 1, None)


def check_event(event: Event, scenario: Scenario, place: Place) -> None:
    """Check one event."""
    defaults = Event(kind=event.kind, at_ns=event.at_ns)
    for field, key in zip(Event.__struct_fields__, Event.__struct_encode_fields__, strict=True):
        given = getattr(event, field) != getattr(defaults, field)
        if key not in {"kind", "at", *_KEYS[event.kind]} and given:
            raise place.error(key, f'does not go with kind "{event.kind}"')
    place.within("downtime", int(event.downtime_ns), 1, None)
    hosts = [name for host in scenario.hosts for name in dict.fromkeys((host.name, *host.copies()))]
    if event.kind in ("migrate", "storm"):
        place.known("vm", "vm", event.vm, _vm_names(scenario))
    if event.kind == "migrate" and not event.to:
        raise place.error("to", "at least one host is needed")
    if event.kind == "storm":
        _check_storm(event, place)
    if event.kind in ("drain", "reboot"):
        place.known("host", "host", event.host, hosts)
    for name in event.to:
        place.known("to", "host", name, hosts)
    most = min(host.cpus for host in scenario.hosts) - 1
    for cpu in event.cpus:
        place.within("cpus", cpu, 0, most)


def _check_storm(event: Event, place: Place) -> None:
    """Check what a storm needs; its sessions are checked for each VM that may be in it."""
    place.within("duration", int(event.duration_ns), 1, None)
    if not event.sessions:
        raise place.error("session", "at least one is needed")
    for index, session in enumerate(event.sessions):
        for key, given in (("start", session.start_ns > 0), ("stop", session.stop_ns is not None)):
            if given:
                raise place.error(f"session[{index}].{key}", "a storm's at and duration say when")


def _vm_names(scenario: Scenario) -> list[str]:
    names = [name for vm in scenario.vms for name in dict.fromkeys((vm.name, *vm.copies()))]
    for fleet in scenario.fleets:
        names += [fleet.name, *(f"{fleet.name}.{index}" for index in range(fleet.count))]
    return names
