"""Nothing leaks: between guests, from the host into a guest, from a guest into the host's own counts."""

from __future__ import annotations

import pytest

from tests.truth.machines import Table, counts, event_rows, run, scenario, word
from vpmu.actors.machine import Machine
from vpmu.kernels import columns as col
from vpmu.kernels.events import KIND_BRANCHES, KIND_CYCLES, KIND_INSTRUCTIONS
from vpmu.kernels.jit import U64
from vpmu.kernels.program import program_count

USER = ["branches:u", "instructions:u", "cpu-cycles:u"]
KINDS = (KIND_BRANCHES, KIND_INSTRUCTIONS, KIND_CYCLES)
DESIGNS = ("legacy", "optimized", "native")


def vm(name: str, cpu: int, events: list[str], *, program: str = "loops", **session: object) -> Table:
    """Return a VM with one measured thread and a sleeper."""
    beside = {"name": "beside", "kind": "sleeper", "wakeups": "200/s", "burst": "30 us"}
    main = {"name": "main", "program": program, "work": 30}
    perf = {"name": "perf", "tool": "stat", "thread": "main", "events": events, **session}
    return {"name": name, "cpus": [cpu], "thread": [main, beside], "session": [perf]}


def hosts(cpus: int) -> list[Table]:
    """Return one host, with noise."""
    return [{"name": "host", "cpus": cpus}]


def retired(made: Machine, vcpu: int, kind: U64) -> int:
    """Return what the first thread of a guest retired in all, from its position alone."""
    thread = U64(made.vcpus[vcpu].threads[0].offset)
    program = U64(word(made, int(thread), col.TH_PROGRAM))
    return int(program_count(made.arena, program, thread + col.TH_CURSOR, kind))


@pytest.mark.parametrize("design", DESIGNS)
def test_another_guest_changes_no_count(design: str) -> None:
    """Two VMs pinned apart: whatever the other one does, the first one's user events are the same, and its
    program's own.
    """
    found = []
    for other in (
        vm("other", 1, ["branches"]),
        vm("other", 1, ["cpu-cycles"], program="other", tool="record", period=5000),
        vm("other", 1, ["branches"] * 9, program="other", interval="1 ms"),
    ):
        made = run(scenario(until="60 s", host=hosts(2), vm=[vm("one", 0, USER), other]), design)
        found.append(counts(made, made.vcpus[0]))
        assert list(found[-1].values()) == [retired(made, 0, kind) for kind in KINDS]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("design", ["optimized", "native"])
def test_a_shared_cpu_changes_no_count(design: str) -> None:
    """Two VMs on one CPU: each counts its own program, however often they alternate on the same counters."""
    guests = [vm("one", 0, USER), vm("two", 0, USER, program="other")]
    slices = [{"name": "host", "sched_latency": "2 ms", "min_granularity": "500 us"}]
    made = run(scenario(until="5 s", host=slices, vm=guests), design)
    for vcpu in made.vcpus:
        assert word(made, vcpu.offset, col.V_DONE)
        assert list(counts(made, vcpu).values()) == [retired(made, vcpu.index, kind) for kind in KINDS]
    assert word(made, made.pcpus[0].offset, col.P_SWITCHES) >= 8


def tool_counts(made: Machine) -> list[int]:
    """Return the counts of the host's first tool."""
    tool = made.regions["tool"].row(0)
    first = word(made, tool, col.TO_FIRST)
    return [
        word(made, first + i * col.EVENT_COLUMNS, col.E_COUNT)
        for i in range(word(made, tool, col.TO_NR_EVENTS))
    ]


@pytest.mark.parametrize("design", ["legacy", "optimized"])
@pytest.mark.parametrize(("exclude_guest", "exclude_host"), [(True, False), (False, True), (False, False)])
def test_host_tools_count_what_they_are_to(design: str, exclude_guest: bool, exclude_host: bool) -> None:
    """The host runs kernel code only: user branches are the guest's, all of them or none; its own count
    stays.
    """
    tool = {"name": "t", "kind": "stat", "events": ["branches:u"], "pinned": True, "stop": "4 s"}
    tool |= {"exclude_guest": exclude_guest, "exclude_host": exclude_host}
    guest = vm("one", 0, ["branches:u"])
    guest["thread"] = guest["thread"][:1]
    made = run(scenario(until="5 s", host=hosts(1), vm=[guest], tool=[tool]), design)
    whole = retired(made, 0, KIND_BRANCHES)
    assert word(made, made.vcpus[0].offset, col.V_DONE)
    assert word(made, event_rows(made.vcpus[0].sessions[0])[0], col.E_COUNT) == whole
    assert tool_counts(made) == [0 if exclude_guest else whole]


@pytest.mark.parametrize("design", ["legacy", "optimized"])
def test_a_guest_does_not_count_the_host(design: str) -> None:
    """A guest counts kernel cycles on its CPU: they are its own kernel's, not those of the host that serves
    it.
    """
    guest = vm("one", 0, [])
    guest["session"] = [
        {"name": "perf", "tool": "stat", "cpu": True, "events": ["cpu-cycles:k", "cpu-cycles:u"]}
    ]
    made = run(scenario(until="20 s", host=hosts(1), vm=[guest]), design)
    vcpu = made.vcpus[0]
    kernel, user = counts(made, vcpu).values()
    # Core cycles are 2.8 a nanosecond. The session begins and ends inside the run: it may miss some
    # microseconds of it.
    inside = (word(made, vcpu.guest, col.G_KERNEL_NS), word(made, vcpu.guest, col.G_USER_NS))
    for count, ns in zip((kernel, user), inside, strict=True):
        assert abs(count - ns * 2.8) < 50_000
