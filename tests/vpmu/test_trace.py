"""Traces of real hosts: lines of every recorder come back, malformed ones are named; what is picked out."""

import importlib.util
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vpmu.traces import (
    FORMS,
    KERNELS,
    Style,
    Thread,
    as_read,
    in_time,
    line_of,
    picked,
    read,
)
from vpmu.errors import UserError
from vpmu.trace.accesses import ACTIONS, RDPMC_FIXED, pick_accesses
from vpmu.trace.reader import EntryEvent, ExitEvent, Head, LostEvents, MsrEvent, read_trace

EXAMPLE = Path(__file__).parents[2] / "examples" / "replay"
HEAD = "       CPU 0/KVM-100   [000]  1.000000: "

# What the kernel lets a task be called, but for what no reader could tell from a task's id.
TASKS = st.sampled_from(
    ["qemu", "CPU 0/KVM", "qemu-system-x86", "a-b c/d-7", "<...>", "fc_vcpu 1", "12", "x [y]", "vm: 1", "-"]
)
REASONS = st.sampled_from(
    ["MSR_WRITE", "MSR_READ", "RDPMC", "HLT", "UNKNOWN (63)", "0x3e", "EPT_VIOLATION FAILED_VMENTRY", "msr"]
)
WORDS = st.integers(0, 2**64 - 1)


@st.composite
def streams(draw: st.DrawFn) -> tuple[Style, list[Any]]:
    style = Style(draw(st.sampled_from(FORMS)), draw(st.sampled_from(KERNELS)))
    at_ns, events = draw(st.integers(0, 10**14)), []
    for _ in range(draw(st.integers(1, 8))):
        at_ns += draw(st.integers(0, 10**10))
        head = Head(0, at_ns, draw(st.integers(0, 300)), draw(TASKS), draw(st.integers(0, 2**22)))
        vcpu = draw(st.integers(0, 1023))
        msr = MsrEvent(
            head, draw(st.booleans()), draw(st.integers(0, 2**32 - 1)), draw(WORDS), draw(st.booleans())
        )
        leave = ExitEvent(head, draw(REASONS), vcpu if style.says_vcpu_of_exits() else None)
        events.append(draw(st.sampled_from([msr, leave, EntryEvent(head, vcpu)])))
    return style, events


@given(streams())
def test_every_recorders_lines_come_back_as_they_were(drawn: tuple[Style, list[Any]]):
    style, events = drawn
    trace = read(*(line_of(event, style) for event in events))
    assert trace.items == [as_read(event, style, line) for line, event in enumerate(events, 1)]
    assert trace.unknown.total() == 0


MALFORMED = [
    (f"{HEAD}kvm_msr: msr_write 38f = 70000000f", "msr_write 38f = 70000000f"),
    (f"{HEAD}kvm_msr: msr_write 38f = 0x", "msr_write 38f = 0x"),
    (f"{HEAD}kvm_msr: msr_write 38F = 0x0", "msr_write 38F = 0x0"),
    (f"{HEAD}kvm_msr: msr_wri", "msr_wri"),
    (f"{HEAD}kvm_msr: msr_read 38e = 0x0 (#UD)", "msr_read 38e = 0x0 (#UD)"),
    (f"{HEAD}kvm_msr: msr_read 38e = 0x{2**64:x}", "msr_read 38e = 0x10000000000000000"),
    (f"{HEAD}kvm_msr: msr_read 123456789 = 0x0", "msr_read 123456789 = 0x0"),
    (f"{HEAD}kvm_exit: reason MSR_WRITE", "reason MSR_WRITE"),
    (f"{HEAD}kvm_exit: reason MSR_WRITE rip 0x10 info 0", "reason MSR_WRITE rip 0x10 info 0"),
    (f"{HEAD}kvm_exit: vcpu x reason HLT rip 0x10 info 0 0", "vcpu x reason HLT rip 0x10 info 0 0"),
    (f"{HEAD}kvm_exit: reason HLT rip 0x10 info1 0x0 info2 zz", "reason HLT rip 0x10 info1 0x0 info2 zz"),
    (f"{HEAD}kvm_entry: vcpu", "vcpu"),
    (f"{HEAD}kvm_entry: vcpu 0, rip", "vcpu 0, rip"),
    (f"{HEAD}kvm_entry:", ""),
    ("CPU 0/KVM-100 [000] 1: kvm_entry: vcpu 0", "CPU 0/KVM-100 [000] 1: kvm_entry: vcpu 0"),
    ("CPU 0/KVM-100 [000] 1.0123456789: kvm_entry: vcpu 0", "1.0123456789"),
    ("[000] 1.000000: kvm_entry: vcpu 0", "[000]"),
    (f"{'x' * 200}-1 [000] 1.000000: kvm_entry: vcpu 0", f"{'x' * 100}..."),
    ("CPU 0/KVM-x [000] 1.000000: kvm_entry: vcpu 0", "CPU 0/KVM-x [000]"),
    ("CPU 0/KVM-100 [x] 1.000000: kvm_entry: vcpu 0", "CPU 0/KVM-100 [x]"),
    ("kvm_msr: msr_read 38e = 0x0", "kvm_msr: msr_read 38e = 0x0"),
    ("CPU:3 [LOST many EVENTS]", "CPU:3 [LOST many EVENTS]"),
]


@pytest.mark.parametrize(("line", "found"), MALFORMED)
def test_a_malformed_line_is_named_with_file_and_line(line: str, found: str):
    with pytest.raises(UserError) as caught:
        read("# tracer: nop", f"{HEAD}kvm_entry: vcpu 0", line)
    assert str(caught.value).startswith("t:3: expected ")
    assert caught.value.found == found


@given(st.integers(0, 2), st.data())
def test_a_line_cut_short_is_refused_or_says_the_same(which: int, data: st.DataObject):
    """A recorder that was killed leaves half a line: it never reads as something else."""
    head = Head(0, 10**9, 0, "CPU 0/KVM", 100)
    event = (
        MsrEvent(head, True, 0x38F, 0x70000000F, False),
        ExitEvent(head, "MSR_READ", 3),
        EntryEvent(head, 12),
    )[which]
    line = line_of(event, Style("ftrace", "6.12"))
    kept = line[: data.draw(st.integers(0, len(line) - 1))]
    try:
        items = read(kept).items
    except UserError:
        return
    if items and isinstance(event, MsrEvent):
        # Digits at the very end may be missing: nobody can see that.
        (item,) = items
        assert isinstance(item, MsrEvent)
        assert f"{event.value:x}".startswith(f"{item.value:x}")
        assert item.msr == event.msr
    elif items and isinstance(event, EntryEvent):
        assert (
            items[0] == EntryEvent(Head(1, 10**9, 0, "CPU 0/KVM", 100), 1)
            or as_read(event, Style("ftrace"), 1) == items[0]
        )
    else:
        assert items in ([], [as_read(event, Style("ftrace"), 1)])


OTHERS = [
    "",
    "cpus=4",
    "# TASK-PID     CPU#  TIMESTAMP  FUNCTION",
    "  kworker/0:1-17    [000] d..2. 1.000000: sched_switch: prev_comm=kvm_msr prev_pid=17 ==> next_comm=x",
    "    CPU 0/KVM-100   [000]  1.000000: kvm_pio: pio_write at 0x80 size 1 count 1 val 0x0",
    "    CPU 0/KVM-100   [000]  1.000000: kvm_msr_extra: no such event",
    "         bash-9     [001] ..... 1.000000: tracing_mark_write: 2.0 kvm_msr: msr_write nonsense",
    "\tffffffff81036706 native_write_msr+0x6 ([kernel.kallsyms])",
    "CPU 0/KVM 100 [000] 1.000000:     250000 cycles:  ffffffff81036706 [unknown] ([kernel.kallsyms])",
]


@given(st.lists(st.tuples(st.sampled_from(OTHERS), st.integers(0, 6))))
def test_other_lines_change_nothing_wherever_they_stand(inserted: list[tuple[str, int]]):
    thread = Thread()
    lines = [*thread.write(0x38F, 0), *thread.read(0x38E, 1)]
    expected = picked(*lines)
    for line, at in inserted:
        lines.insert(at, line)
    trace = read(*lines)
    assert pick_accesses(trace) == expected
    assert trace.unknown.total() == sum(not line.startswith("#") for line, _ in inserted)


def test_lines_of_other_events_are_counted_by_name():
    assert read(*OTHERS).unknown == {
        "sched_switch": 1,
        "kvm_pio": 1,
        "kvm_msr_extra": 1,
        "tracing_mark_write": 1,
        "no event": 4,
    }


def test_times_do_not_run_backwards_on_a_cpu():
    with pytest.raises(UserError, match="no time of CPU 0 before that of line 1"):
        read(f"{HEAD}kvm_entry: vcpu 0", f"{HEAD.replace('1.000000', '0.999999')}kvm_entry: vcpu 0")


def test_cpus_that_are_not_merged_are_put_in_order():
    one = f"{HEAD}kvm_entry: vcpu 0"
    other = "       CPU 1/KVM-101   [001]  0.999999: kvm_entry: vcpu 1"
    assert [item.at_ns for item in [i.head for i in read(one, other).items if isinstance(i, EntryEvent)]] == [
        999_999_000,
        1_000_000_000,
    ]


def test_two_recorders_in_one_file_are_refused():
    with pytest.raises(UserError, match="written as on the lines before"):
        read(f"{HEAD}kvm_entry: vcpu 0", "CPU 0/KVM 100 [000] 1.000000: kvm:kvm_entry: vcpu 0")


LOST = [
    ("CPU:0 [LOST 123 EVENTS]", 0, 123),
    ("CPU:0 [123 EVENTS DROPPED]", 0, 123),
    ("CPU:0 [LOST EVENTS]", 0, None),
    ("CPU:0 [EVENTS DROPPED]", 0, None),
]


@pytest.mark.parametrize(("line", "cpu", "count"), LOST)
def test_lost_events_are_told_and_no_latency_spans_them(line: str, cpu: int, count: int | None):
    thread = Thread(at_ns=2_000_000_000)
    leave, msr, enter = thread.write(0x38F, 0)
    assert read(leave, msr, line, enter).gaps == [LostEvents(3, thread.at_ns, cpu, count)]
    assert [access.host_ns for access in picked(leave, msr, enter).all()] == [2_000]
    assert [access.host_ns for access in picked(leave, msr, line, enter).all()] == [None]
    # Another CPU's loss does not concern this one.
    elsewhere = line.replace("CPU:0", "CPU:1")
    assert [access.host_ns for access in picked(leave, msr, elsewhere, enter).all()] == [2_000]


def test_a_gap_of_one_cpu_waits_for_its_next_event():
    lines = ["CPU:1 [LOST 5 EVENTS]", f"{HEAD}kvm_entry: vcpu 0"]
    assert read(*lines).gaps == [LostEvents(1, 10**9, 1, 5)]
    lines.append("       CPU 1/KVM-101   [001]  1.500000: kvm_entry: vcpu 1")
    assert read(*lines).gaps == [LostEvents(1, 1_500_000_000, 1, 5)]


def test_perfs_lost_records_are_told():
    line = "  CPU 0/KVM   100 [002] 1.500000: PERF_RECORD_LOST lost 9"
    assert read(line).gaps == [LostEvents(1, 0, 2, 9)]
    assert read("PERF_RECORD_LOST_SAMPLES lost 3").gaps == [LostEvents(1, 0, None, 3)]
    assert read("PERF_RECORD_LOST").gaps == [LostEvents(1, 0, None, None)]


def test_what_the_ring_buffer_overwrote_is_told():
    header = "# entries-in-buffer/entries-written: 140080/250280   #P:4"
    assert read(header).overwritten == 250280 - 140080


def test_gaps_and_latencies_follow_exits_and_entries():
    thread = Thread()
    lines = thread.write(0x38F, 0, 5_000)
    thread.wait(40_000)
    lines += thread.exits("EXTERNAL_INTERRUPT", 7_000)
    thread.wait(10_000)
    lines += thread.read(0x38E, 1, 3_000)
    found = list(picked(*lines).all())
    # From the first entry to the second access's exit: with what the interrupt took, without the accesses.
    assert [access.gap_ns for access in found] == [0, 57_000]
    assert [access.host_ns for access in found] == [5_000, 3_000]


def test_an_exit_of_several_accesses_has_no_latency_of_its_own():
    thread = Thread()
    first = MsrEvent(thread.head(), True, 0x38F, 0, False)
    thread.wait(4_000)
    second = MsrEvent(thread.head(), True, 0x38F, 1, False)
    thread.at_ns = first.head.at_ns - 1_000
    lines = thread.exits("EXCEPTION_NMI", 10_000, first, second)
    # The first began at the exit, the second 5 us later, when its line was written.
    assert [(a.at_ns, a.gap_ns, a.host_ns) for a in picked(*lines).all()] == [
        (999_999_000, 0, None),
        (1_000_004_000, 5_000, None),
    ]


def test_an_exit_without_its_entry_is_not_measured():
    thread = Thread()
    leave, msr, _ = thread.write(0x38F, 0)
    lines = [leave, msr, *thread.write(0x38F, 1)]
    assert [access.host_ns for access in picked(*lines).all()] == [None, 2_000]


def test_without_exits_the_spacing_is_that_of_the_accesses():
    lines = [
        f"{HEAD}kvm_msr: msr_write 38f = 0x0",
        f"{HEAD.replace('1.000000', '1.000250')}kvm_msr: msr_write 38f = 0xf",
    ]
    found = list(picked(*lines).all())
    assert [(access.gap_ns, access.host_ns) for access in found] == [(0, None), (250_000, None)]


def test_an_rdpmc_reads_the_counter_that_was_written_last():
    thread = Thread()
    lines = thread.rdpmc()
    for msr, value in ((0xC1, 5), (0x187, 0x130108), (0x38D, 0x0B0), (0x309, 1), (0x4C3, 0), (0x38F, 0xF)):
        lines += thread.write(msr, value) + thread.rdpmc()
    # Of two fields that change at once, the lower one: here of FIXED_CTR0, from 0xB0.
    lines += thread.write(0x38D, 0xBBB) + thread.rdpmc()
    lines += thread.write(0x186, 0x300000000, fault=True) + thread.rdpmc()
    indices = [access.register for access in picked(*lines).all() if access.operation == "rdpmc"]
    assert indices == [0, 0, 1, RDPMC_FIXED + 1, RDPMC_FIXED, 2, 2, RDPMC_FIXED, RDPMC_FIXED]


def test_other_msrs_exits_and_vcpus_are_counted():
    first, second = Thread(), Thread(pid=101, cpu=1, number=1)
    lines = first.write(0x6E0, 1) + first.exits("HLT", 10) + first.write(0x38F, 0)
    found = picked(*lines, *second.write(0x6E0, 1))
    assert found.other_msrs == {0x6E0: 2}
    assert found.other_exits == {"MSR_WRITE": 2, "HLT": 1}
    assert found.idle_vcpus == 1
    assert found.halted_ns == 10
    assert [(vcpu.name, vcpu.number, len(vcpu.accesses)) for vcpu in found.vcpus] == [("CPU 0/KVM-100", 0, 1)]


@given(st.randoms(use_true_random=False))
def test_how_vcpus_interleave_changes_none_of_them(rng: random.Random):
    streams, alone = [], []
    for number in range(3):
        thread = Thread(pid=100 + number, cpu=number, number=number)
        lines: list[str] = []
        for value in range(4):
            thread.wait(rng.randrange(0, 50_000, 1_000))
            lines += thread.write(0x38F, value) + thread.rdpmc()
        streams.append(lines)
        alone.append(picked(*lines).vcpus[0].accesses)
    merged = picked(*in_time(streams)).vcpus
    assert [vcpu.accesses[1:] for vcpu in sorted(merged, key=lambda vcpu: vcpu.pid)] == [a[1:] for a in alone]


def test_a_thread_that_runs_two_vcpus_is_two():
    style = Style("trace-cmd", "5.10")
    thread = Thread(style=style)
    lines = thread.write(0x38F, 1)
    thread.number = 1
    lines += thread.write(0x38F, 2)
    thread.number = 0
    lines += thread.write(0x38F, 3)
    found = picked(*lines).vcpus
    assert [(vcpu.number, [access.value for access in vcpu.accesses]) for vcpu in found] == [
        (0, [1, 3]),
        (1, [2]),
    ]


def test_a_migrated_thread_stays_the_same_vcpu():
    thread = Thread()
    lines = thread.write(0x38F, 1)
    thread.cpu = 5
    lines += thread.write(0x38F, 2)
    assert [len(vcpu.accesses) for vcpu in picked(*lines).vcpus] == [2]


@pytest.mark.parametrize(
    ("msr", "value", "action"),
    [
        (0x38F, 0, "disable global_ctrl"),
        (0x38F, 1, "enable global_ctrl"),
        (0x18D, 0, "rd/wr eventsel"),
        (0x38D, 0, "rd/wr fixed_ctrl"),
        (0xC8, 0, "rd/wr counter"),
        (0x4C1, 0, "rd/wr counter"),
        (0x30B, 0, "rd/wr counter"),
        (0x390, 0, "global_status, ovf_ctrl"),
        (0x834, 0, "lvtpc"),
        (0x345, 0, "other PMU register"),
        (0x6CF, 0, "other PMU register"),
    ],
)
def test_each_register_of_the_pmu_is_picked_out(msr: int, value: int, action: str):
    assert [access.action for access in picked(*Thread().write(msr, value)).all()] == [action]
    assert action in ACTIONS


@pytest.mark.parametrize(
    "msr", [0xC0, 0xC9, 0x185, 0x18E, 0x308, 0x30C, 0x4C0, 0x4C9, 0x833, 0x835, 0x1A0, 0x6D0]
)
def test_neighbours_of_the_pmus_registers_are_not(msr: int):
    assert not picked(*Thread().write(msr, 0)).vcpus


def example_maker() -> Any:
    spec = importlib.util.spec_from_file_location("make_trace", EXAMPLE / "make_trace.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_is_what_its_generator_writes():
    assert (EXAMPLE / "stat.trace").read_text() == "\n".join(example_maker().lines()) + "\n"


def test_the_examples_rdpmcs_are_guessed_right():
    """The driver stops a counter right before it reads it, so the guess is the generator's index."""
    maker = example_maker()
    steps = [
        *maker.PROBE,
        *(step for _ in range(maker.SWITCHES) for step in maker.SWITCH_IN + maker.SWITCH_OUT),
    ]
    expected = [(kind, register) for kind, register, _ in steps]
    kinds = {"rdmsr": "R", "wrmsr": "W", "rdpmc": "P"}
    found = pick_accesses(read_trace(maker.lines(), "example"))
    assert len(found.vcpus) == 2
    for vcpu in found.vcpus:
        assert [(kinds[access.operation], access.register) for access in vcpu.accesses] == expected
