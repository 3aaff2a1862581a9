"""How many events one perf context holds: a thread's, a CPU's, or a vCPU thread's on the host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from vpmu.errors import UserError
from vpmu.scenario.events import event_groups
from vpmu.scenario.model import Scenario, Session, Template, Vm
from vpmu.scenario.storm import fleets_of, storm_sessions
from vpmu.schema import join

EVENTS_PER_CONTEXT: Final = 24
"""What `vpmu.kernels.columns.CONTEXT_CAPACITY` has room for; a test holds them together."""
_VPMCS: Final = 7
"""Host events of a vCPU thread that stand for its own counters: 4 general-purpose and 3 fixed."""


def check_contexts(scenario: Scenario, file: str) -> None:
    """Refuse more events than fit into one context.

    Raises
    ------
    UserError
        Naming the session or tool that is too much.
    """
    for index, vm in enumerate(scenario.vms):
        _check_sessions(vm, _sessions(vm, join("vm", index), [vm.name], scenario), file)
    for index, template in enumerate(scenario.templates):
        fleets = fleets_of(scenario, template.name)
        _check_sessions(template, _sessions(template, join("template", index), fleets, scenario), file)
    _check_tools(scenario, file)


def _sessions(
    vm: Vm | Template, path: str, names: list[str], scenario: Scenario
) -> Iterator[tuple[str, Session]]:
    """Yield (key path, session) of a VM's own sessions and those of the storms that it may be in."""
    for index, session in enumerate(vm.sessions):
        yield join(join(path, "session"), index), session
    for number, index, session in storm_sessions(scenario, names):
        yield join(join(join("event", number), "session"), index), session


def _check_sessions(vm: Vm | Template, sessions: Iterable[tuple[str, Session]], file: str) -> None:
    """Refuse too many for a thread, or with cpu = true for a vCPU."""
    held: Counter[str] = Counter()
    copies = {thread.name: thread.copies() for thread in vm.threads}
    for key, session in sessions:
        if session.thread:
            threads = copies.get(session.thread, (session.thread,))
            places, own = [f'thread "{thread}"' for thread in threads], 0
        else:
            chosen = range(vm.vcpus) if session.vcpu is None else [session.vcpu]
            places, own = [f"vCPU {vcpu}" for vcpu in chosen], int(vm.watchdog)
        for place in places:
            held[place] += _count(session.events)
            _refuse(held[place] + own, place, key, file)


def _check_tools(scenario: Scenario, file: str) -> None:
    """Refuse too many for a CPU, or for a vCPU's thread beside the vCPU's own counters."""
    held: Counter[str] = Counter()
    for index, tool in enumerate(scenario.tools):
        host = scenario.host(tool.host)
        key = join("tool", index)
        if tool.vm:
            vm = scenario.vm_copies(tool.vm)[0][0]
            chosen = range(vm.vcpus) if tool.vcpu is None else [tool.vcpu]
            places, own = [f'vCPU {vcpu} of "{tool.vm}"' for vcpu in chosen], _VPMCS
        else:
            cpus = tool.cpus if isinstance(tool.cpus, tuple) else range(host.cpus)
            places, own = [f'CPU {cpu} of "{host.name}"' for cpu in cpus], int(host.watchdog)
        for place in places:
            held[place] += _count(tool.events)
            _refuse(held[place] + own, place, key, file)


def _count(events: tuple[str, ...]) -> int:
    return sum(len(group) for group in event_groups(events))


def _refuse(events: int, place: str, key: str, file: str) -> None:
    if events > EVENTS_PER_CONTEXT:
        problem = f"{place} would have {events} events, a perf context here holds {EVENTS_PER_CONTEXT}"
        raise UserError(problem, file=file, key=join(key, "events"))
