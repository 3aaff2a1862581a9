"""Each actor by itself: what it answers, and what it refuses."""

import numpy as np
import pytest

from tests.cluster.machines import machine_of, scenario_text
from vpmu.actors.actor import UnexpectedMessage
from vpmu.actors.host_perf import (
    CALL_END,
    CALL_FIRST,
    GiveRows,
    HostPerf,
    Passed,
    PerfReply,
    Request,
    Reserved,
    ShareRows,
    Waiting,
)
from vpmu.actors.machine import Machine
from vpmu.actors.messages import Address, host_perf, physical_cpu, vcpu
from vpmu.actors.observer import Observer
from vpmu.actors.physical_cpu import Guests, PhysicalCpus
from vpmu.actors.rows import RowMap
from vpmu.actors.vcpu import Resume, Retired, VCpu, VcpuRows, WantRows
from vpmu.actors.vm import Vm
from vpmu.kernels import columns as col
from vpmu.kernels.guest.step import GUEST_RUN
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
