"""Small guests of our own, one for each rule, against a PMU of plain integers: exact effects."""

import subprocess
from shutil import which
from typing import Any

import pytest

from tests.guests.assemble import ENTRY, code_of, image_of, listing_of, names
from tests.vpmu.machine.reference import BUS_KHZ, CORE_KHZ, TSC_KHZ, Host, config
from vpmu.kernels.guest.step import GUEST_HALT
from vpmu.machine.machine import Machine

RESULTS = 0x200000


class Ran:
    """A guest that has run: its results, its console, and the host that it ran on."""

    def __init__(
        self, name: str, *, slice_ns: int = 1_000_000, until_ns: int = 1_000_000_000, **changes: object
    ) -> None:
        self.text = b""
        self.machine = Machine(image_of(name), config(**changes), self.write)
        self.host = Host(self.machine, slice_ns)
        self.host.run(until_ns)

    def write(self, data: bytes) -> None:
        self.text += data

    def __getitem__(self, index: int) -> int:
        at = RESULTS + 8 * index
        return int.from_bytes(self.machine.processor.ram[at : at + 8].tobytes(), "little")


def run(name: str, **changes: Any) -> Ran:
    ran = Ran(name, **changes)
    assert ran.machine.failure is None
    assert ran.machine.exit_value == 0
    return ran


@pytest.mark.skipif(which("as") is None, reason="needs GNU as")
@pytest.mark.parametrize("name", names())
def test_listing_is_its_source(name: str):
    try:
        listing = listing_of(name)
    except subprocess.CalledProcessError:
        pytest.skip("GNU as is not for x86-64")
    code = [line.partition(" |")[0].rstrip() for line in listing.splitlines()]
    assert b"".join(bytes.fromhex(line.partition(": ")[2]) for line in code) == code_of(name)


# The WRMSR that enables counts, the one that disables does not:
# 1 + (mov) + 1000 * (nop, add, loop) + (mov, xor, xor).
@pytest.mark.parametrize("slice_ns", [1_000_000, 1_000, 37])
def test_counts_around_a_loop_are_exact(slice_ns: int):
    ran = run("count", slice_ns=slice_ns)
    assert (ran[0], ran[1]) == (1 + 1 + 3000 + 3, 1000)


def test_a_grant_of_any_length_gives_the_same_time():
    """A block that does not fit is paid in parts: how time is cut leaves no trace in it."""
    whole, cut = run("count"), run("count", slice_ns=13)
    cycles = [sum(report.retired.get((0, 1), 0) for report in ran.host.reports) for ran in (whole, cut)]
    # Only the last cycle may be cut differently; the accesses' cost is not the guest's.
    assert cycles[0] == pytest.approx(cycles[1], abs=1)


def test_time_is_what_the_cycles_took():
    """Ends are in whole nanoseconds; what is left over is not lost from one grant to the next."""
    ran = run("count", slice_ns=13)
    cycles = sum(report.retired.get((0, 1), 0) for report in ran.host.reports)
    assert ran.host.ran_ns == pytest.approx(cycles * 1_000_000 / CORE_KHZ, abs=1)
    assert len(ran.host.accesses) >= 9


def test_an_overflow_interrupts_once_and_masks():
    ran = run("overflow")
    assert ran[0] == 1  # one interrupt, although the counter overflowed twice: nobody unmasked the LVTPC
    assert (ran[2], ran[3], ran[4]) == (1, 0, 1)
    assert ran[5] == 0x10040
    assert ran.host.pmis == 1
    # 1 + (mov) + 2 * 1000 + 3 for the next WRMSR, and 6 of the handler, from -500
    assert ran[1] == 1 + 1 + 2000 + 3 + HANDLER_OF_OVERFLOW - 500
    assert ran.machine.statistics.lateness.most <= 1


# push, inc, mov, mov (keep), then the EOI in two, pop, iretq; the write to the APIC is emulated and counts
HANDLER_OF_OVERFLOW = 8


def test_a_sample_lies_in_the_block_behind_the_overflow():
    """The interrupted RIP is the loop's, whose blocks are of two instructions."""
    ran = run("overflow")
    loop = ENTRY + code_of("overflow").index(bytes.fromhex("90 e2 fd"))
    assert ran[6] == loop


def test_nmi_comes_with_interrupts_off_and_blocks_itself():
    ran = run("nmi")
    assert (ran[0], ran[1]) == (2, 1)


def test_a_vector_waits_for_interrupts_and_priority():
    ran = run("pending")
    assert [ran[i] for i in range(5)] == [1, 0, 0, 0, 1]
    assert ran[5] & 0x200 == 0  # RFLAGS.IF in the handler


def test_rdpmc():
    ran = run("rdpmc")
    assert [ran[i] for i in range(5)] == [0x12345678, 0x9ABC, 0xFA17, 0xFA17, 2]


def test_writes_by_width():
    ran = run("width")
    assert [ran[i] for i in range(5)] == [0xFFFF89ABCDEF, 0x123456789ABC, 0x123456789ABC, 1, 0xBA9876543210]


def test_hlt_is_woken_by_timer_and_pmi():
    ran = run("halt")
    assert (ran[0], ran[1]) == (1, 1)
    halts = [report for report in ran.host.reports if report.reason == GUEST_HALT]
    assert len(halts) == 1  # with the PMI pending, the second HLT does not wait
    # 1 ms at 2.2 GHz, and the way from the timer's start to the RDTSC behind it; an access takes 100 ns
    ticks = TSC_KHZ // 1000 * 1000
    assert ticks - 1000 < ran[2] < ticks + 3000


def test_forced_emulation():
    ran = run("forced")
    assert (ran[0], ran[1]) == (1 + 5 + 3, 2)
    assert ran[2] == 2  # both increments were executed, the skipped one was not
    assert ran[3] == 1


def test_without_forced_emulation_the_prefix_is_undefined():
    ran = run("forced", forced_emulation=False)
    assert ran[3] == 1  # the first UD2 goes to the end at once
    assert ran[0] == 0


def test_user_code():
    ran = run("user")
    assert ran[0] == 1 + 200 + 1 + 2 + 1 + 1 + 1
    assert ran[2] == 100 + 2
    assert ran[3] == 0x23  # CS with privilege 3
    assert ran[5] == 8  # CS behind SYSCALL
    assert (ran[6], ran[7]) == (5, 0x600000)
    assert ran[8] == 0x230000 - 0x1000 - 40  # five words on the stack of the TSS
    assert ran[9] == 0x240000  # the interrupted RSP


def test_string_instructions_count_once():
    ran = run("rep")
    assert ran[0] == 1 + 5 + 3
    assert ran[2] == 1  # a PMI came
    assert 0 < ran[4] < 50000  # within the string
    assert ran[3] == 0x300000 + 50000
    assert ran[1] == 1 + 3 + 3 + HANDLER_OF_REP


# inc, mov, then the EOI in two, nop, iretq
HANDLER_OF_REP = 6


def test_clock():
    ran = run("clock")
    # 3 instructions a round at 4 a cycle, and misses: the model's, at 2.8 GHz; the TSC is at 2.2 GHz
    least = 100_000 * 3 // 4 * TSC_KHZ // 2_800_000
    assert least <= ran[0] <= least * 1.4
    assert ran[1] == pytest.approx(ran[0], rel=0.01)
    assert BUS_KHZ < TSC_KHZ


def test_perf_stat():
    ran = run("stat")
    # sum: 1 for the WRMSR, call, mov, 20000 * (add, xor, loop), ret, 3 for the next WRMSR
    assert ran.text.decode().splitlines()[0].startswith("sum: 60007 instructions, 20002 branches, ")
    # walk: call, 2 movs, 5000 * (mov, add, test, jz, loop) + 2500 nops, ret, 3 for the WRMSR, and 1
    assert (
        ran.text.decode()
        .splitlines()[1]
        .startswith(f"walk: {1 + 2 + 25000 + 2500 + 1 + 3 + 1} instructions, 10002 branches, ")
    )


def test_perf_record():
    ran = run("record")
    assert ran.text.decode() == f"heavy {ran[0]}, light {ran[1]}, elsewhere {ran[2]}\n"
    # 100 * (3 * 1200 + 4 + 4) instructions, and the kernel's way out and in again, at 1 sample each 1009
    assert 350 <= ran[0] + ran[1] + ran[2] <= 370
    assert ran[0] / ran[1] == pytest.approx(3, rel=0.1)
    assert ran[2] <= 3
    assert ran.machine.statistics.lateness.most <= 3


def test_the_same_bytes_twice():
    first, second = run("record"), run("record")
    assert first.text == second.text
    assert first.host.accesses == second.host.accesses
    assert first.machine.statistics == second.machine.statistics


def test_another_seed_misses_elsewhere():
    first, second = run("clock", seed=1), run("clock", seed=2)
    one, two = (ran.machine.statistics.total(kind=0) for ran in (first, second))
    assert one != two
    assert first.machine.statistics.total(1) == second.machine.statistics.total(1)
