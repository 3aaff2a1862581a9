"""What holds after every run, whatever the scenario: each check raises AssertionError with what it found."""

from __future__ import annotations

from tests.truth.machines import SLOTS, causes, event_rows, word, words
from vpmu.actors.machine import Machine
from vpmu.kernels import columns as col
from vpmu.kernels.host.scheduler import VCPU_DONE
from vpmu.kernels.jit import U64
from vpmu.kernels.msr import GLOBAL_OVF_CTRL

FLAG_VPMC = int(col.FLAG_VPMC)
COUNTING = int(col.RUN_COUNTING)
TOOL_OPEN = 1


def check_all(made: Machine) -> None:
    """Check everything that holds under `optimized` and `native`."""
    check_time(made)
    check_truth(made)
    check_pmis(made)
    check_teardown(made)


def check_time(made: Machine) -> None:
    """Every nanosecond of a physical CPU is booked to one cause."""
    for pcpu in made.pcpus:
        assert causes(made, pcpu.index) == word(made, pcpu.offset, col.P_NOW)


def check_truth(made: Machine) -> None:
    """Every read was true, and each session counted what its events' counters had to count, less what stood
    still.
    """
    for vcpu in made.vcpus:
        assert word(made, vcpu.guest, col.G_FAULTS) == 0
        assert word(made, vcpu.guest, col.T_WRONG) == 0
        missed = sum(words(made, vcpu.guest, col.T_SHORT, SLOTS))
        stood = sum(words(made, vcpu.offset, col.V_STILL_NS, SLOTS)) or word(made, vcpu.offset, col.V_STILL)
        assert not missed or stood
        short = 0
        for session in vcpu.sessions:
            for event in event_rows(session):
                less = word(made, event, col.E_TRUTH) - word(made, event, col.E_COUNT)
                assert less >= 0
                short += less
        assert short <= missed
        assert missed or short == 0


def check_nothing_stood_still(made: Machine) -> None:
    """No vPMC lost its counter: nobody competes."""
    for vcpu in made.vcpus:
        assert not word(made, vcpu.offset, col.V_STILL)
        assert not any(words(made, vcpu.offset, col.V_STILL_NS, SLOTS))


def check_pmis(made: Machine) -> None:
    """Each overflow that was due a PMI was acknowledged once; one may still wait in GLOBAL_STATUS.

    At the run's end the host may have carried out an acknowledgement of which the guest does not know yet.
    """
    for vcpu in made.vcpus:
        due, taken = word(made, vcpu.guest, col.T_DUE), word(made, vcpu.guest, col.T_TAKEN)
        register = word(made, vcpu.guest, col.G_REGISTER)
        if word(made, vcpu.offset, col.V_COMPLETE) and register == GLOBAL_OVF_CTRL:
            taken += word(made, vcpu.guest, col.G_VALUE).bit_count()
        waiting = word(made, vcpu.offset, col.V_GLOBAL_STATUS).bit_count()
        assert due in (taken, taken + waiting)


def check_teardown(made: Machine) -> None:
    """What ended guests held is the host's again: its own tools alone have counters, contexts and
    references.

    A guest has ended once its vCPU is off its CPU for good: before, it is giving back one by one.
    """
    ended = [word(made, vcpu.offset, col.V_STATE) == VCPU_DONE for vcpu in made.vcpus]
    for vcpu, has_ended in zip(made.vcpus, ended, strict=True):
        if has_ended:
            assert word(made, vcpu.offset, col.V_NR_EVENTS) == word(made, vcpu.offset, col.V_HAS_EVENT) == 0
    if not all(ended):
        return
    for pcpu in made.pcpus:
        assert word(made, pcpu.offset, col.HW_ARMED) == _slots_of_tools(made, pcpu.offset)
    if not any(word(made, host.offset, col.H_HELD) for host in made.hosts):
        tools = made.regions["tool"]
        opened = [word(made, tools.row(i), col.TO_STATE) == TOOL_OPEN for i in range(tools.rows)]
        assert sum(word(made, host.offset, col.H_HOLDERS) for host in made.hosts) == sum(opened)


def _slots_of_tools(made: Machine, pcpu: int) -> int:
    """Return the counters on which a physical CPU's own events count."""
    perf = pcpu + int(col.P_CPU_HW)
    slots = 0
    for event in words(made, perf, col.U_EVENT, SLOTS)[: word(made, perf, col.U_NR_EVENTS)]:
        assert not word(made, event, col.E_FLAGS) & FLAG_VPMC
        if word(made, event, col.E_RUNNING) == COUNTING:
            slots |= 1 << int(U64(word(made, event, col.E_SLOT)))
    return slots
