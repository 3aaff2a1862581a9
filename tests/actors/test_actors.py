"""Each actor by itself: what it answers, and what it refuses."""

from collections.abc import Callable

import numpy as np
import pytest
from msgspec.structs import replace

from tests.cluster.machines import machine_of, scenario_text
from vpmu.actors.actor import UnexpectedMessage
from vpmu.actors.call_words import CALL_END, CALL_FIRST, CallWords
from vpmu.actors.host_perf import (
    GiveRows,
    HostPerf,
    Passed,
    PerfReply,
    PerfRequest,
    Request,
    Reserved,
    ShareRows,
    Waiting,
)
from vpmu.actors.machine import Machine
from vpmu.actors.messages import Address, Message, host_perf, physical_cpu, vcpu
from vpmu.actors.observer import Observer
from vpmu.actors.physical_cpu import Guests, PhysicalCpus, VcpuComes
from vpmu.actors.rows import RowMap
from vpmu.actors.vcpu import Go, Resume, Retired, VCpu, VcpuRows, WantRows, WatchList
from vpmu.actors.vm import Vm
from vpmu.kernels import columns as col
from vpmu.kernels.guest.step import GUEST_HALT, GUEST_RUN
from vpmu.kernels.host.perf import CALL_CREATE, CALL_RELEASE, CALL_TASK_IN, CALL_TASK_OUT, CALL_TOOL_OPEN
from vpmu.kernels.jit import U64
from vpmu.kernels.log import RECORD_ACCESS, RECORD_SWITCH

FIRST, SECOND = physical_cpu(0), physical_cpu(1)


@pytest.fixture
def machine() -> Machine:
    """One host of two physical CPUs, a pinned and two floating vCPUs."""
    return machine_of(scenario_text(2, "9 ms", [(2, 1, 2)]), "optimized")


@pytest.fixture
def perf(machine: Machine) -> HostPerf:
    """Host perf of two shares, of which the first lives in its process."""
    shares = {FIRST: [machine.pcpus[0]], SECOND: [machine.pcpus[1]]}
    return HostPerf(machine, machine.hosts[0], shares, {machine.pcpus[0].offset}, RowMap(machine))


def waits(share: Address, at_ns: int, pcpu: int | None = None, loads: tuple[int, ...] = (1,)) -> Waiting:
    request = None if pcpu is None else Request(at_ns, pcpu, 0)
    return Waiting(share, at_ns, request, () if request else loads)


def test_the_earliest_request_is_served_once_nobody_can_ask_earlier(perf: HostPerf):
    assert perf.handle(perf.address, waits(FIRST, 700, pcpu=0)) == []
    ((to, answer),) = perf.handle(perf.address, waits(SECOND, 600, pcpu=1))
    assert to == SECOND
    assert isinstance(answer, Reserved)
    assert (answer.pcpu, answer.start_ns) == (1, 600)
    assert answer.work_ns > 0
    # The first share still waits; the mutex is free when the second's work is done.
    ((to, second),) = perf.handle(perf.address, waits(SECOND, 3_000_000))
    assert to == FIRST
    assert isinstance(second, Reserved)
    assert (second.start_ns, second.work_ns) == (600 + answer.work_ns, 0)


def test_equal_times_go_by_physical_cpu(perf: HostPerf):
    perf.handle(perf.address, waits(SECOND, 600, pcpu=1))
    ((to, _),) = perf.handle(perf.address, waits(FIRST, 600, pcpu=0))
    assert to == FIRST


def test_even_loads_pass_without_rows_and_uneven_ones_ask_for_them(perf: HostPerf):
    perf.handle(perf.address, waits(FIRST, 3_000_000, loads=(2,)))
    passed = perf.handle(perf.address, waits(SECOND, 3_000_000, loads=(1,)))
    # The balance interval is 3 ms.
    assert passed == [(share, Passed(perf.address, 3_000_000, 6_000_000, 0, ())) for share in (FIRST, SECOND)]
    perf.handle(perf.address, waits(FIRST, 6_000_000, loads=(3,)))
    asked = perf.handle(perf.address, waits(SECOND, 6_000_000, loads=(1,)))
    assert asked == [(share, GiveRows(perf.address, 6_000_000)) for share in (FIRST, SECOND)]
    assert perf.handle(perf.address, ShareRows(FIRST, 6_000_000, [])) == []
    with pytest.raises(
        UnexpectedMessage, match="rows from physical_cpu 0, which host_perf 0 did not ask for"
    ):
        perf.handle(perf.address, ShareRows(FIRST, 6_000_000, []))


def test_host_perf_refuses_what_is_out_of_turn(perf: HostPerf, machine: Machine):
    perf.handle(perf.address, waits(FIRST, 700, pcpu=0))
    with pytest.raises(UnexpectedMessage, match="physical_cpu 0 waits for host_perf 0 out of turn"):
        perf.handle(perf.address, waits(FIRST, 800, pcpu=0))
    with pytest.raises(UnexpectedMessage, match="physical_cpu 9 waits"):
        perf.handle(perf.address, waits(physical_cpu(9), 1))
    with pytest.raises(UnexpectedMessage, match="host_perf 0 cannot take a WantRows"):
        perf.handle(perf.address, WantRows(FIRST, 1))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (waits(FIRST, 3_000_000, loads=(1, 1)), "waits at the end of another window, 3000000 ns"),
        (waits(FIRST, 2_999_999), "waits at the end of another window, 2999999 ns"),
        (waits(FIRST, 700, pcpu=1), "asks for physical_cpu 1, 700 ns"),
        (waits(FIRST, 3_000_000, pcpu=0), "asks for physical_cpu 0, 3000000 ns"),
        (ShareRows(FIRST, 3_000_000, []), "rows from physical_cpu 0, which host_perf 0 did not ask for"),
    ],
)
def test_host_perf_refuses_promises_that_are_none(perf: HostPerf, message: Message, reason: str):
    with pytest.raises(UnexpectedMessage, match=reason):
        perf.handle(perf.address, message)


def test_nobody_promises_and_then_goes_back(perf: HostPerf):
    perf.handle(perf.address, waits(SECOND, 600, pcpu=1))
    perf.handle(perf.address, waits(FIRST, 700, pcpu=0))
    with pytest.raises(UnexpectedMessage, match="physical_cpu 1 waits at 599 ns, behind 600 ns"):
        perf.handle(perf.address, waits(SECOND, 599, pcpu=1))


def test_a_share_gives_its_own_rows(perf: HostPerf, machine: Machine):
    perf.handle(perf.address, waits(FIRST, 3_000_000, loads=(3,)))
    perf.handle(perf.address, waits(SECOND, 3_000_000, loads=(1,)))
    row = np.zeros(int(col.P_CPU_HW), np.uint64)
    with pytest.raises(UnexpectedMessage, match="rows from physical_cpu 0 that are not its own"):
        perf.handle(perf.address, ShareRows(FIRST, 3_000_000, [(machine.pcpus[1].offset, row)]))


NO_CALLS = {
    "no such call": ({"P_CALL": 12}, "calls 12 for"),
    "nobody's": ({"P_CALL_VCPU": 0xEEEE}, "calls 5 for 61166"),
    "a slot that there is not": ({"P_CALL_SLOT": 0xEEEE}, "says that word 6 of a call is 0xeeee"),
    "an event that there is not": ({"P_CALL": int(CALL_RELEASE)}, "calls 2 for"),
    "a counter that a vPMU has not": (
        {"P_CALL": int(CALL_CREATE), "P_CALL_SLOT": 7},
        "calls 1 for .*slot 7: there is none",
    ),
    "out before in": ({"P_CALL": int(CALL_TASK_OUT)}, "calls 6 for"),
    "a vCPU as a tool": ({"P_CALL": int(CALL_TOOL_OPEN)}, "calls 10 for"),
    "a status bit that cannot be cleared": ({"HW_GLOBAL_STATUS": 1 << 7}, "says that word 37"),
    "more counters": ({"HW_NR_GP": 8}, "speaks of another call, or another CPU"),
    "another time": ({"P_NOW": 77}, "calls at 77 ns, in a message of 0 ns"),
}


def call_of(machine: Machine, **changed: int) -> bytes:
    """Return the words of the first physical CPU's call to switch the first vCPU in, some of them changed."""
    p = machine.pcpus[0].offset
    words = machine.arena[p + CALL_FIRST : p + CALL_END].copy()
    right = {"P_CALL": int(CALL_TASK_IN), "P_CALL_VCPU": machine.vcpus[0].offset}
    for name, value in (right | changed).items():
        words[int(getattr(col, name)) - CALL_FIRST] = value
    return words.tobytes()


@pytest.mark.parametrize("name", NO_CALLS)
def test_host_perf_refuses_a_call_that_is_none(perf: HostPerf, machine: Machine, name: str):
    changed, message = NO_CALLS[name]
    before = machine.arena.copy()
    with pytest.raises(UnexpectedMessage, match=f"physical_cpu 0 {message}"):
        perf.handle(perf.address, PerfRequest(FIRST, 0, call_of(machine, **changed)))
    assert (machine.arena == before).all()
    ((to, reply),) = perf.handle(perf.address, PerfRequest(FIRST, 0, call_of(machine)))
    assert to == FIRST
    assert isinstance(reply, PerfReply)


def test_host_perf_refuses_another_hosts_physical_cpu(perf: HostPerf, machine: Machine):
    with pytest.raises(UnexpectedMessage, match="physical_cpu 9 is not a physical CPU of host_perf 0"):
        perf.handle(perf.address, PerfRequest(physical_cpu(9), 0, call_of(machine)))


def test_an_answer_has_counters_that_there_are_and_is_to_the_question(machine: Machine):
    p = machine.pcpus[0].offset
    machine.arena[p + CALL_FIRST : p + CALL_END] = np.frombuffer(call_of(machine), np.uint64)
    calls = CallWords(machine.arena)
    calls.check_reply(host_perf(0), p, call_of(machine))
    for changed, message in (({"P_GRANT": 11}, "grants counters"), ({"P_CALL": 1}, "speaks of another call")):
        with pytest.raises(UnexpectedMessage, match=f"host_perf 0 {message}"):
            calls.check_reply(host_perf(0), p, call_of(machine, **changed))


@pytest.fixture
def waiting(machine: Machine) -> PhysicalCpus:
    """Two shares of one physical CPU each, both of which wait at the end of the first window."""
    shares = {FIRST: machine.pcpus[:1], SECOND: machine.pcpus[1:]}
    machine.arena[machine.hosts[0].offset + int(col.H_REMOTE)] = U64(1)
    cpus = PhysicalCpus(machine, shares, RowMap(machine), Guests.HERE)
    effects, more = cpus.turn()
    while more or any(not isinstance(message, Waiting) for _, message in effects):
        effects, more = cpus.turn()
    waits_of = {message.source: message for _, message in effects}
    while any(isinstance(each, Waiting) and each.request for each in waits_of.values()):
        each = next(each for each in waits_of.values() if isinstance(each, Waiting) and each.request)
        assert each.request is not None
        cpus.handle(each.source, Reserved(host_perf(0), each.at_ns, each.request.pcpu, each.at_ns, 1000))
        effects, _ = cpus.turn()
        waits_of |= {message.source: message for _, message in effects}
    return cpus


FOREIGN = [(0, np.zeros(3, np.uint64))]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (GiveRows(vcpu(0), 1), "vcpu 0 speaks for host_perf 0"),
        (Reserved(host_perf(0), 1, 0, 1, 1), "physical_cpu 0 got a Reserved for physical_cpu 0"),
        (ShareRows(host_perf(0), 1, FOREIGN), "physical_cpu 0 got rows of others"),
        (VcpuComes(SECOND, 1, FOREIGN), "physical_cpu 1 sent rows that make no vCPU"),
        (Passed(host_perf(0), 1, 9, 0, ((44, SECOND),)), "is to send vcpu 44 away, which it has not"),
        (waits(SECOND, 1), "physical_cpu 1 speaks for host_perf 0"),
        (Waiting(host_perf(0), 1, None, ()), "physical_cpu 0 cannot take a Waiting"),
    ],
)
def test_a_share_refuses_what_does_not_fit(waiting: PhysicalCpus, message: Message, reason: str):
    with pytest.raises(UnexpectedMessage, match=reason):
        waiting.handle(FIRST, message)


def test_a_share_passes_once(waiting: PhysicalCpus):
    passed = Passed(host_perf(0), 3_000_000, 6_000_000, 1, ())
    assert waiting.handle(FIRST, passed) == []  # somebody has yet to come
    with pytest.raises(UnexpectedMessage, match="physical_cpu 0 got a Passed but does not wait"):
        waiting.handle(FIRST, passed)


def test_physical_cpus_refuse_answers_that_nobody_asked_for(machine: Machine):
    cpus = PhysicalCpus(machine, {FIRST: machine.pcpus}, RowMap(machine), Guests.ANSWER)
    words = bytes(8 * (CALL_END - CALL_FIRST))
    with pytest.raises(UnexpectedMessage, match="physical_cpu 1 got an answer that it did not ask for"):
        cpus.handle(SECOND, PerfReply(host_perf(0), 0, words, 0))
    with pytest.raises(UnexpectedMessage, match="physical_cpu 7 got an answer"):
        cpus.handle(physical_cpu(7), PerfReply(host_perf(0), 0, words, 0))
    with pytest.raises(UnexpectedMessage, match="physical_cpu 0 got a Reserved but does not wait"):
        cpus.handle(FIRST, Reserved(host_perf(0), 0, 0, 0, 0))
    with pytest.raises(UnexpectedMessage, match="physical_cpu 1 cannot take a Reserved"):
        cpus.handle(SECOND, Reserved(host_perf(0), 0, 0, 0, 0))


def test_a_vcpu_that_is_resumed_says_what_it_wants(machine: Machine):
    vm = Vm(machine, "vm0-0", [machine.vcpus[0]], RowMap(machine))
    assert vm.vcpus == {}  # nobody has spoken to it
    ((to, answer),) = vm.handle(vcpu(0), Resume(FIRST, 0, 0, 0, 0, 0, 0, 0))
    assert to == FIRST
    assert isinstance(answer, Retired)
    assert answer.reason == GUEST_RUN
    assert answer.watch == b""
    with pytest.raises(UnexpectedMessage, match="vcpu 0 cannot take a Waiting"):
        vm.handle(vcpu(0), waits(FIRST, 1))


def test_a_vcpu_gets_the_result_of_its_access_and_of_no_other(machine: Machine):
    actor = VCpu(machine, machine.vcpus[0], RowMap(machine))
    enter = Resume(FIRST, 0, 0, 0, 0, 0, 0, 0)
    done = Resume(FIRST, 9, 1, 1, 0x38F, 0, 0, 0)
    with pytest.raises(UnexpectedMessage, match="vcpu 0 got the result of an access that it does not make"):
        actor.handle(actor.address, done)
    ((_, answer),) = actor.handle(actor.address, enter)
    watch = WatchList(machine).read(machine.vcpus[0].guest)
    while isinstance(answer, Retired) and answer.access is None:
        # What wakes it, when it halts, is its next timer.
        at = max(answer.at_ns, answer.timer_at_ns if answer.reason == GUEST_HALT else 0)
        message = Resume(FIRST, at, 0, 0, 0, 0, 0, 0, at + 1_000_000, watch)
        ((_, answer),) = actor.handle(actor.address, message)
    assert isinstance(answer, Retired)
    access = answer.access
    assert access is not None
    wrong = Resume(FIRST, answer.at_ns, 1, access.operation, access.register + 1, 0, 0, 0)
    for refused in (enter, wrong):
        with pytest.raises(UnexpectedMessage, match="of an access that it does not make"):
            actor.handle(actor.address, refused)
    with pytest.raises(UnexpectedMessage, match="vcpu 0 is to run, but waits for the result of its access"):
        actor.handle(actor.address, Go(FIRST, answer.at_ns, answer.at_ns + 5, watch))
    right = Resume(FIRST, answer.at_ns, 1, access.operation, access.register, 0, 0, 0)
    actor.handle(actor.address, right)


Change = Callable[[Resume, Retired], Retired]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda asked, run: replace(run, source=vcpu(7)), "vcpu 7 answers for"),
        (lambda asked, run: replace(run, at_ns=run.at_ns + 1), "got the answer to another question"),
        (lambda asked, run: replace(run, watch=asked.watch + bytes(8)), "got the answer to another question"),
        (
            lambda asked, run: replace(run, watch=asked.watch, at_ns=asked.limit_ns + 1),
            "got the answer to another question",
        ),
        (lambda asked, run: run, ""),
    ],
)
def test_physical_cpus_refuse_answers_to_another_question(machine: Machine, change: Change, reason: str):
    machine.arena[machine.hosts[0].offset + int(col.H_REMOTE)] = U64(1)
    rows = RowMap(machine)
    cpus = PhysicalCpus(machine, {FIRST: machine.pcpus}, rows, Guests.ANSWER)
    perf = HostPerf(machine, machine.hosts[0], {FIRST: machine.pcpus}, set(), rows)
    asked: list[tuple[Address, Message]] = []
    while not asked:
        for to, message in cpus.turn()[0]:
            if isinstance(message, PerfRequest):
                ((_, reply),) = perf.handle(to, message)
                cpus.handle(message.source, reply)
            else:
                asked.append((to, message))
    to, question = asked[0]
    assert isinstance(question, Resume)
    assert question.limit_ns > question.at_ns
    run = Retired(to, question.at_ns, int(GUEST_RUN), question.at_ns, b"", None)
    if reason:
        with pytest.raises(UnexpectedMessage, match=reason):
            cpus.handle(question.source, change(question, run))
    else:
        cpus.handle(question.source, change(question, run))


def test_rows_of_a_vcpu_go_and_come_back_and_are_never_in_two_places(machine: Machine):
    entry = machine.vcpus[0]
    actor = VCpu(machine, entry, RowMap(machine))
    ((to, rows),) = actor.handle(actor.address, WantRows(FIRST, 5))
    assert to == FIRST
    assert isinstance(rows, VcpuRows)
    # Another physical CPU wants them while they are on their way: it waits.
    assert actor.handle(actor.address, WantRows(SECOND, 9)) == []
    (guest,) = (words for offset, words in rows.words if offset == entry.guest)
    guest[int(col.G_SWITCHES)] = U64(17)
    ((to, again),) = actor.handle(actor.address, rows)
    assert to == SECOND
    assert isinstance(again, VcpuRows)
    assert dict(again.words)[entry.guest][int(col.G_SWITCHES)] == 17
    with pytest.raises(UnexpectedMessage, match="physical_cpu 0 sent home other rows than those of vcpu 0"):
        actor.handle(actor.address, VcpuRows(FIRST, 9, again.words[1:]))
    actor.handle(actor.address, again)
    with pytest.raises(UnexpectedMessage, match="vcpu 0 is at home already"):
        actor.handle(actor.address, again)


def record(kind: np.uint64, actor: np.uint64, sequence: int):
    return np.array([int(kind), 0, int(actor), sequence, 0, 0, 0, 0], np.uint64)


async def test_an_observer_puts_records_in_order_and_leaves_others_out(machine: Machine):
    watcher = Observer(machine, machine.vcpus[1])
    me = machine.arena[machine.vcpus[1].guest + int(col.G_ID)]
    other = machine.arena[machine.vcpus[0].guest + int(col.G_ID)]
    watcher.take(np.array([record(RECORD_ACCESS, me, 2), record(RECORD_ACCESS, other, 1)]))
    watcher.take(np.array([record(RECORD_SWITCH, me, 1), record(RECORD_ACCESS, me, 3)]))
    watcher.close()
    assert [batch[:, 3].tolist() async for batch in watcher.batches] == [[2, 3]]


async def test_an_observer_says_what_is_missing(machine: Machine):
    with Observer(machine, machine.vcpus[1]) as watcher:
        me = machine.arena[machine.vcpus[1].guest + int(col.G_ID)]
        watcher.take(np.array([record(RECORD_ACCESS, me, 2)]))
        with pytest.raises(UnexpectedMessage, match="observer 1: record 1 of the vCPU never came"):
            watcher.close()


def test_the_rows_of_all_actors_are_disjoint_and_leave_only_what_is_shared(machine: Machine):
    rows = RowMap(machine)
    owners = np.zeros(machine.arena.size, np.int64)
    slices = [(machine.hosts[0].offset, col.HOST_COLUMNS)]
    for pcpu in machine.pcpus:
        slices += rows.pcpu(pcpu.offset) + rows.pcpu_perf(pcpu.offset)
    for each in machine.vcpus:
        v = each.offset
        slices += rows.thread(v) + rows.state(v) + rows.task(v) + rows.guest(v)
    for offset, length in slices:
        owners[offset : offset + length] += 1
    assert owners.max() == 1
    first = machine.regions["host"].base
    unowned = first + np.flatnonzero(owners[first:] == 0)
    # Rows that the layout holds in reserve belong to nobody and stay as they were built.
    events = machine.regions["event"]
    spare = unowned[(unowned < events.base) | (unowned >= events.base + events.rows * events.columns)]
    assert not machine.arena[spare].any()


def test_a_run_asked_to_go_beyond_its_end_ends_there():
    from tests.cluster.machines import example_machine
    from vpmu.actors.local import clock_ns, run_machine

    machine = example_machine("designs/pauses.toml", "native")
    run_machine(machine, None, machine.until_ns + 10**9)
    assert clock_ns(machine) == machine.until_ns
