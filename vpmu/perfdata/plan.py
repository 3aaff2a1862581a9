"""Which sessions a run has, as perf's user sees them: one for all vCPUs of a VM; and its threads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vpmu.kernels.columns import G_ID
from vpmu.scenario.events import event_groups

if TYPE_CHECKING:
    from vpmu.actors.machine import Machine, VcpuEntry
    from vpmu.kernels.events import EventSpec
    from vpmu.scenario import Scenario, Session, Vm

FIRST_TID: Final = 1000


@dataclass(frozen=True, slots=True)
class Task:
    """A thread of a guest as perf names it.

    Copies of one thread of a scenario are threads of one process. `cpu` is its vCPU, `number` its TH_ID
    there, `start_ns` when it begins.
    """

    name: str
    program: str
    pid: int
    tid: int
    cpu: int
    number: int
    start_ns: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a session is: a vCPU, or a thread there.

    `cpu` is the vCPU's number in the VM, `actor` its guest's id in records, `index` and `name` the session's
    there, `thread` the name of the thread that it is on, empty for a vCPU.
    """

    cpu: int
    actor: int
    index: int
    name: str
    thread: str

    def measures(self, task: Task) -> bool:
        """Return whether a task is measured here."""
        return task.cpu == self.cpu and self.thread in ("", task.name)


@dataclass(frozen=True, slots=True)
class PlannedSession:
    """A perf session of one VM over all vCPUs that it is on.

    Attributes
    ----------
    vm : str
        Name of the VM, or of one copy.
    machine_spec, spec : Vm, Session
        What the scenario says of the VM and of the session.
    events : tuple of EventSpec
    places : tuple of Place
        In the order of vCPUs.
    tasks : tuple of Task
        All threads of these vCPUs.
    measured : tuple of Task
        Those that it is attached to; all of them for a session on whole vCPUs.
    """

    vm: str
    machine_spec: Vm
    spec: Session
    events: tuple[EventSpec, ...]
    places: tuple[Place, ...]
    tasks: tuple[Task, ...]
    measured: tuple[Task, ...]

    @property
    def file_stem(self) -> str:
        """The session's files' name without ending; session names have no dots, so it is unique."""
        return f"{self.vm}.{self.spec.name}"

    @property
    def start_ns(self) -> int:
        """When the session starts, in the run's time."""
        return int(self.machine_spec.start_ns + self.spec.start_ns)

    @property
    def stop_ns(self) -> int | None:
        """When the session is stopped, in the run's time; None if it goes on to the end."""
        stop = self.spec.stop_ns
        return None if stop is None else int(self.machine_spec.start_ns + stop)

    def command(self) -> list[str]:
        """Return the command line that a user would have given in the guest."""
        spec = self.spec
        words = ["perf", spec.tool]
        for event in spec.events:
            words += ["-e", event]
        if spec.tool == "record":
            words += ["-c", str(spec.period)] if spec.period else ["-F", str(spec.frequency)]
        if spec.user_only:
            words.append("--all-user")
        if spec.interval_ns:
            words += ["-I", str(spec.interval_ns // 1_000_000)]
        if spec.thread:
            return [*words, f"./{self.measured[0].program}"]
        return [*words, "-a"] if spec.vcpu is None else [*words, "-C", str(spec.vcpu)]


def plan_sessions(machine: Machine, scenario: Scenario) -> list[PlannedSession]:
    """Return the sessions of a machine's guests, VM by VM."""
    found = []
    for vm, name, vcpus in _machines(machine, scenario):
        tasks = _tasks(vm, vcpus)
        for spec in vm.sessions:
            places = tuple(_places(machine, vm, vcpus, spec))
            if places:
                found.append(_session(vm, name, spec, places, tasks))
    return found


def _machines(machine: Machine, scenario: Scenario) -> Iterator[tuple[Vm, str, list[VcpuEntry]]]:
    """Yield each VM with its name and its vCPUs."""
    by_name: dict[str, list[VcpuEntry]] = {}
    for vcpu in machine.vcpus:
        by_name.setdefault(vcpu.vm, []).append(vcpu)
    for vm in scenario.vms:
        for name in vm.copies():
            yield vm, name, by_name[name]


def _tasks(vm: Vm, vcpus: list[VcpuEntry]) -> tuple[Task, ...]:
    """Return the threads of a VM in the order of vCPUs, numbered in this order."""
    spec_of = {name: spec for spec in vm.threads for name in spec.copies()}
    pids: dict[str, int] = {}
    tasks: list[Task] = []
    for vcpu in vcpus:
        for number, thread in enumerate(vcpu.threads, 1):
            spec = spec_of[thread.name]
            tid = FIRST_TID + len(tasks)
            pid = pids.setdefault(spec.name, tid)
            start = int(vm.start_ns + spec.start_ns)
            tasks.append(Task(thread.name, thread.program, pid, tid, vcpu.vcpu, number, start))
    return tuple(tasks)


def _places(machine: Machine, vm: Vm, vcpus: list[VcpuEntry], spec: Session) -> Iterator[Place]:
    names = {placed.name for placed in vm.placed_sessions() if placed.name.partition("@")[0] == spec.name}
    for vcpu in vcpus:
        actor = int(machine.arena[vcpu.guest + int(G_ID)])
        for index, session in enumerate(vcpu.sessions):
            if session.name == spec.name or session.name in names:
                yield Place(vcpu.vcpu, actor, index, session.name, session.thread)


def _session(
    vm: Vm, name: str, spec: Session, places: tuple[Place, ...], tasks: tuple[Task, ...]
) -> PlannedSession:
    cpus = {place.cpu for place in places}
    here = tuple(task for task in tasks if task.cpu in cpus)
    names = {spec.thread, *(c for t in vm.threads if t.name == spec.thread for c in t.copies())}
    measured = tuple(task for task in here if task.name in names) if spec.thread else here
    events = tuple(event for group in event_groups(spec.events) for event in group)
    return PlannedSession(name, vm, spec, events, places, here, measured)
