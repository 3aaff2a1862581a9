"""What a scenario's values must be: ranges, references and combinations, each mistake at its key.

`vpmu.schema` has already refused unknown keys and wrong types; here the values are judged against each other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

from vpmu.actors.cpuid import ARCHITECTURAL_EVENTS
from vpmu.errors import UserError
from vpmu.scenario.check_fleet import check_event, check_fleet, check_groups_agree, template_as_vm
from vpmu.scenario.contexts import check_contexts
from vpmu.scenario.events import check_groups
from vpmu.scenario.model import (
    FILTER_EVENTS,
    EventFilter,
    Host,
    Program,
    Scenario,
    Session,
    Thread,
    Tool,
    Vm,
)
from vpmu.scenario.storm import fleets_of, storm_sessions
from vpmu.schema import join

_NAME = re.compile(r"[A-Za-z0-9_+@-]+")
_MOST = {"cpus": 8192, "vcpus": 1024, "count": 1_000_000}
_WORK_LIMIT = Fraction(10**9)
_MAX_SAMPLE_RATE = 100_000
_MASKED_ENTRY = 0xFF80_0000_0000_FFFF


class _Named(Protocol):
    @property
    def name(self) -> str: ...


@dataclass(frozen=True)
class _Place:
    """A table of the scenario: the file and the key path that messages name."""

    file: str
    path: str = ""

    def entry(self, key: str, index: int) -> _Place:
        return _Place(self.file, join(join(self.path, key), index))

    def error(
        self, key: str, problem: str, found: str | None = None, allowed: Iterable[str] = ()
    ) -> UserError:
        return UserError(problem, file=self.file, key=join(self.path, key), found=found, allowed=allowed)

    def within(self, key: str, value: int | Fraction | None, low: int, high: int | None) -> None:
        if value is None:
            return
        if value < 0 == low:
            raise self.error(key, f"must not be negative, found {value}")
        if value < low:
            raise self.error(key, f"must be at least {low}, found {value}")
        if high is not None and value > high:
            raise self.error(key, f"must be at most {high}, found {value}")

    def known(self, key: str, what: str, name: str, names: Iterable[str]) -> None:
        names = list(names)
        if name not in names:
            raise self.error(key, f"unknown {what}", found=name, allowed=names)

    def unique(self, key: str, items: Iterable[_Named]) -> None:
        seen: set[str] = set()
        for index, item in enumerate(items):
            place = self.entry(key, index)
            if not _NAME.fullmatch(item.name):
                raise place.error("name", "expected letters, digits and -_+@, found", found=item.name)
            if item.name in seen:
                raise place.error("name", "appears twice", found=item.name)
            seen.add(item.name)


def check_scenario(scenario: Scenario, file: str) -> None:
    """Check what a converted scenario says; raise `UserError` at the first mistake."""
    top = _Place(file)
    top.within("until", scenario.until_ns, 1, None)
    top.within("seed", scenario.seed, 0, 2**64 - 1)
    for key, items in (("program", scenario.programs), ("vm", scenario.vms), ("tool", scenario.tools)):
        top.unique(key, items)
    top.unique("host", scenario.hosts)
    top.unique("template", scenario.templates)
    top.unique("fleet", scenario.fleets)
    if not scenario.hosts:
        raise top.error("host", "at least one [[host]] is needed")
    for index, program in enumerate(scenario.programs):
        _check_program(program, top.entry("program", index))
    for index, host in enumerate(scenario.hosts):
        _check_host(host, top.entry("host", index))
    for index, vm in enumerate(scenario.vms):
        _check_vm(vm, scenario, top.entry("vm", index))
        _check_storms(vm, [vm.name], scenario, top)
    for index, tool in enumerate(scenario.tools):
        _check_tool(tool, scenario, top.entry("tool", index))
    check_groups_agree(scenario, top)
    for index in range(len(scenario.templates)):
        vm = template_as_vm(scenario, index)
        _check_vm(vm, scenario, top.entry("template", index))
        _check_storms(vm, fleets_of(scenario, vm.name), scenario, top)
    for index, fleet in enumerate(scenario.fleets):
        check_fleet(fleet, scenario, top.entry("fleet", index))
    for index, event in enumerate(scenario.events):
        check_event(event, scenario, top.entry("event", index))
    check_contexts(scenario, file)


def _check_program(program: Program, place: _Place) -> None:
    if bool(program.file) == bool(program.functions):
        raise place.error("file", 'a program needs either "file" or "functions"')
    if program.file:
        if program.cycles:
            raise place.error("cycles", 'goes with "functions", a file has its own')
        if not Path(program.file).is_file():
            raise place.error("file", "no such file", found=program.file)
        return
    place.within("cycles", program.cycles, 1, 2**43 - 1)
    place.unique("functions", program.functions)
    for index, function in enumerate(program.functions):
        at = place.entry("functions", index)
        if function.share <= 0:
            raise at.error("share", f"must be above 0, found {_decimal(function.share)}")
        if not 0 < function.ipc <= 8:
            raise at.error("ipc", f"must be above 0 and at most 8, found {_decimal(function.ipc)}")
        for name, rate in function.rates.items():
            if not 0 <= rate <= 64:
                raise at.error(name, f"must be from 0 to 64 events per instruction, found {_decimal(rate)}")


def _check_host(host: Host, place: _Place) -> None:
    place.within("count", host.count, 1, _MOST["count"])
    place.within("cpus", host.cpus, 1, _MOST["cpus"])
    place.within("possible_cpus", host.possible_cpus, 1, _MOST["cpus"])
    if host.cpus > host.possible_cpus:
        raise place.error("cpus", f"must be at most possible_cpus ({host.possible_cpus}), found {host.cpus}")
    place.within("core_khz", host.core_khz, 100_000, 10_000_000)
    place.within("hz", host.hz, 1, 10_000)
    place.within("balance", host.balance_ns, 1, None)
    _check_sched(host, place)
    for name, value in host.parameters.items():
        place.within(f"parameters.{name}", value, 0, 2**63 - 1)


def _check_sched(table: Host | Vm, place: _Place) -> None:
    place.within("sched_latency", table.sched_latency_ns, 1, None)
    place.within("min_granularity", table.min_granularity_ns, 1, table.sched_latency_ns)


def _check_vm(vm: Vm, scenario: Scenario, place: _Place) -> None:
    place.known("host", "host", vm.host, (host.name for host in scenario.hosts))
    host = scenario.host(vm.host)
    place.within("count", vm.count, 1, _MOST["count"])
    place.within("vcpus", vm.vcpus, 1, _MOST["vcpus"])
    place.within("hz", vm.hz, 1, 10_000)
    _check_sched(vm, place)
    _check_pmu(vm, place)
    if vm.stop_ns is not None and vm.stop_ns <= vm.start_ns:
        raise place.error("stop", "must be later than start")
    if vm.cpus != "float":
        _check_cpus(vm.cpus, host, place)
    place.unique("thread", vm.threads)
    place.unique("session", vm.sessions)
    for index, thread in enumerate(vm.threads):
        _check_thread(thread, vm, scenario, place.entry("thread", index))
    for index, session in enumerate(vm.sessions):
        _check_session(session, vm, host, place.entry("session", index))


def _check_pmu(vm: Vm, place: _Place) -> None:
    """Check what a VM's PMU is like, and that a guest from outside has no threads of ours."""
    place.within("pmu_version", vm.pmu_version, 1, 2)
    if vm.pmu_version == 1 and (vm.sessions or vm.watchdog):
        raise place.error("pmu_version", "perf in a guest of ours drives a PMU of version 2, found 1")
    for index, event in enumerate(vm.hide_events):
        place.known(join("hide_events", index), "architectural event", event, ARCHITECTURAL_EVENTS)
    if vm.event_filter is not None:
        _check_filter(vm.event_filter, place)
    if vm.image and vm.remote:
        raise place.error("remote", "either an image or remote = true, not both")
    if vm.image and not Path(vm.image).is_file():
        raise place.error("image", "no such file", found=vm.image)
    for key, given in (("thread", vm.threads), ("session", vm.sessions), ("watchdog", vm.watchdog)):
        if vm.outside and given:
            raise place.error(key, "does not go with an image or remote = true: the guest brings its own")


def _check_filter(found: EventFilter, place: _Place) -> None:
    """Check an event filter as KVM_SET_PMU_EVENT_FILTER does."""
    if len(found.events) > FILTER_EVENTS:
        raise place.error("event_filter.events", f"at most {FILTER_EVENTS}, found {len(found.events)}")
    place.within("event_filter.fixed_counter_bitmap", found.fixed_counter_bitmap, 0, 2**32 - 1)
    for index, entry in enumerate(found.events):
        key = join("event_filter.events", index)
        place.within(key, entry, 0, 2**64 - 1)
        if found.masked and entry & ~_MASKED_ENTRY:
            problem = f"a masked entry has the bits {_MASKED_ENTRY:#x} (umask mask, exclude, umask, event)"
            raise place.error(key, f"{problem}, found {entry:#x}")


def _check_storms(vm: Vm, names: list[str], scenario: Scenario, top: _Place) -> None:
    """Check the sessions of storms that a VM may be in, beside its own."""
    taken = {session.name for session in vm.sessions}
    for number, index, session in storm_sessions(scenario, names):
        place = top.entry("event", number).entry("session", index)
        _check_session(session, vm, scenario.host(vm.host), place)
        if session.name in taken:
            raise place.error("name", f'a session of "{vm.name}" is called so already,', found=session.name)
        taken.add(session.name)


def _check_cpus(cpus: tuple[int, ...], host: Host, place: _Place) -> None:
    if not cpus:
        raise place.error("cpus", "at least one physical CPU is needed")
    for index, cpu in enumerate(cpus):
        if not 0 <= cpu < host.cpus:
            problem = f'host "{host.name}" has physical CPUs 0 to {host.cpus - 1}, found {cpu}'
            raise place.error(join("cpus", index), problem)
        if cpu in cpus[:index]:
            raise place.error(join("cpus", index), f"physical CPU {cpu} appears twice")


def _check_thread(thread: Thread, vm: Vm, scenario: Scenario, place: _Place) -> None:
    place.within("count", thread.count, 1, _MOST["count"])
    if not -20 <= thread.nice <= 19:
        raise place.error("nice", f"must be from -20 to 19, found {thread.nice}")
    _check_vcpu(thread.vcpu, vm, place)
    if thread.kind == "program":
        if not thread.program:
            raise place.error("program", "missing")
        place.known("program", "program", thread.program, (program.name for program in scenario.programs))
    elif thread.program:
        raise place.error("program", f'a thread of kind "{thread.kind}" runs no program')
    if thread.work <= 0:
        raise place.error("work", f"must be above 0, found {_decimal(thread.work)}")
    if thread.work > _WORK_LIMIT or thread.work.denominator > _WORK_LIMIT:
        raise place.error("work", "must be at most 10^9 and have at most 9 decimals")
    if thread.kind != "program" and thread.work != 1:
        raise place.error("work", f'a thread of kind "{thread.kind}" has no work to multiply')
    _check_sleeper(thread, place)


def _check_sleeper(thread: Thread, place: _Place) -> None:
    if thread.kind == "sleeper":
        if thread.wakeups is None:
            raise place.error("wakeups", 'missing (a rate like "150/s")')
        if not thread.burst_ns:
            raise place.error("burst", 'missing (a duration like "50 us")')
        return
    for key, given in (("wakeups", thread.wakeups is not None), ("burst", thread.burst_ns != 0)):
        if given:
            raise place.error(key, f'goes with kind "sleeper", this thread is of kind "{thread.kind}"')


def _check_session(session: Session, vm: Vm, host: Host, place: _Place) -> None:
    if bool(session.thread) == session.cpu:
        problem = (
            "either a thread or cpu = true, not both" if session.cpu else "a thread or cpu = true is needed"
        )
        raise place.error("thread", problem)
    if session.thread:
        names = dict.fromkeys(name for thread in vm.threads for name in (thread.name, *thread.copies()))
        place.known("thread", "thread", session.thread, names)
        if session.vcpu is not None:
            raise place.error("vcpu", "goes with cpu = true, a thread's session follows the thread")
    _check_vcpu(session.vcpu, vm, place)
    if session.interval_ns is not None:
        if session.tool == "record":
            raise place.error("interval", 'goes with tool "stat"')
        place.within("interval", session.interval_ns, 1, None)
    _check_events(session, session.tool, host, place)
    _check_times(session, place)


def _check_vcpu(vcpu: int | None, vm: Vm, place: _Place) -> None:
    if vcpu is not None and not 0 <= vcpu < vm.vcpus:
        raise place.error("vcpu", f'VM "{vm.name}" has vCPUs 0 to {vm.vcpus - 1}, found {vcpu}')


def _check_events(table: Session | Tool, tool: str, host: Host, place: _Place) -> None:
    if not table.events:
        raise place.error("events", "at least one event is needed")
    for index, text in enumerate(table.events):
        try:
            check_groups((text,), host.gp_counters)
        except UserError as error:
            raise error.at(file=place.file, key=join(place.path, join("events", index))) from None
    if tool == "stat":
        for key, value in (("frequency", table.frequency), ("period", table.period)):
            if value is not None:
                raise place.error(key, '"stat" counts, only "record" samples')
    if table.frequency is not None and table.period is not None:
        raise place.error("period", "either a frequency or a period, not both")
    place.within("frequency", table.frequency, 1, _MAX_SAMPLE_RATE)
    place.within("period", table.period, 1, 2**47 - 1)


def _check_times(table: Session | Tool, place: _Place) -> None:
    if table.stop_ns is not None and table.stop_ns <= table.start_ns:
        raise place.error("stop", "must be later than start")


def _check_tool(tool: Tool, scenario: Scenario, place: _Place) -> None:
    place.known("host", "host", tool.host, (host.name for host in scenario.hosts))
    host = scenario.host(tool.host)
    if tool.vm and tool.cpus is not None:
        raise place.error("cpus", "either cpus or a vm, not both")
    if tool.vm:
        _check_tool_vm(tool, scenario, place)
    elif tool.vcpu is not None:
        raise place.error("vcpu", "goes with a vm")
    if isinstance(tool.cpus, tuple):
        _check_cpus(tool.cpus, host, place)
    if tool.exclude_guest and tool.exclude_host:
        raise place.error("exclude_host", "with exclude_guest (true unless given) nothing is left to count")
    _check_events(tool, tool.kind, host, place)
    _check_times(tool, place)


def _check_tool_vm(tool: Tool, scenario: Scenario, place: _Place) -> None:
    copies = scenario.vm_copies(tool.vm)
    if not copies:
        names = [vm.name for vm in scenario.vms]
        raise place.error("vm", "unknown vm", found=tool.vm, allowed=names)
    vm = copies[0][0]
    if vm.cpus == "float":
        raise place.error("vm", f'the vCPUs of "{vm.name}" float: pin them with cpus for a tool to attach')
    if vm.host != tool.host:
        raise place.error("vm", f'vm "{tool.vm}" is on host "{vm.host}", the tool on "{tool.host}"')
    _check_vcpu(tool.vcpu, vm, place)


def _decimal(value: Fraction) -> str:
    return f"{float(value):g}"
