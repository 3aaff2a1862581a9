"""What ends a machine that goes wrong, and what the processor's parts do by themselves."""

import pytest

from tests.guests.assemble import ENTRY
from tests.vpmu.machine.reference import Host, config
from vpmu.errors import UserError
from vpmu.machine import apic
from vpmu.machine.apic import Apic
from vpmu.machine.devices import Ports
from vpmu.machine.image import Image, Segment
from vpmu.machine.machine import Machine
from vpmu.machine.operands import register_width
from vpmu.machine.paging import READ, WRITE
from vpmu.machine.processor import GuestFault, Processor


def machine_of(code: str, **changes: object) -> Machine:
    data = bytes.fromhex(code)
    return Machine(
        Image("x", (Segment(ENTRY, data, len(data)),), ENTRY, multiboot=False),
        config(**changes),
        bytearray().extend,
    )


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        ("0f 0b", "triple fault: no way to deliver vector 6 at RIP 0x100000"),  # ud2
        ("cd 80", "triple fault: no way to deliver vector 128 at RIP 0x100002"),  # int 0x80
        ("31 c9 f7 f1", "triple fault: no way to deliver vector 0 at RIP 0x100002"),  # div ecx
        (
            "48 a1 00 00 00 00 01 00 00 00",
            "triple fault: no way to deliver vector 14 at RIP 0x100000",
        ),  # beyond 4 GB
        ("b8 20 00 e0 fe 87 00", "`xchg dword ptr [rax], eax` at 0x100005 accesses a device: only MOV can"),
        ("b8 00 00 e0 fe ff e0", "jump to 0xfee00000, where no memory is"),
        ("66 ba f8 03 6c", "`insb` at 0x100004: no device of the machine is read so"),
    ],
)
def test_what_ends_a_machine(code: str, failure: str):
    machine = machine_of(code)
    Host(machine).run()
    assert machine.is_over
    assert machine.exit_value is None
    assert machine.failure is not None
    assert machine.failure.startswith(failure)


def test_an_endless_loop_runs_to_the_limit_and_is_folded():
    """10 s at 2.8 GHz and 4 instructions a cycle: nobody executes them one by one."""
    machine = machine_of("eb fe")
    host = Host(machine, slice_ns=10_000_000)
    host.run(until_ns=10_000_000_000)
    assert not machine.is_over
    assert machine.statistics.total(1) == pytest.approx(10 * 2_800_000_000 * 4, rel=1e-3)
    assert machine.statistics.total(1) == machine.statistics.total(2)


@pytest.mark.parametrize("turns", [1, 2, 3, 1000, 100_000])
def test_folding_a_loop_counts_as_executing_it(turns: int):
    # mov ecx, turns; loop .; out 0xf4, al
    code = f"b9 {turns.to_bytes(4, 'little').hex()} e2 fe e6 f4"
    machine = machine_of(code)
    Host(machine).run()
    assert machine.exit_value is not None
    assert machine.statistics.total(1) == 1 + turns
    assert machine.statistics.total(2) == turns
    assert machine.processor.read("rcx") == 0


@pytest.mark.parametrize("nops", [2, 14])
def test_code_that_is_overwritten_is_counted_as_it_stands(nops: int):
    """Twice the same block; in between, the first of its bytes makes one nop of two. It may be long."""
    back, again = ((-n - nops) & 0xFF for n in (9, 11))
    # mov ecx, 2; the block: nops, jmp ahead; mov byte [rip - 9 - nops], 0x66; loop to the block; out
    code = f"b9 02 00 00 00 {'90' * nops} eb 00 c6 05 {back:02x} ff ff ff 66 e2 {again:02x} e6 f4"
    machine = machine_of(code)
    Host(machine).run()
    # mov; then nops, jmp, mov, loop; then one nop less; OUT is the hypervisor's
    assert machine.statistics.total(1) == 1 + (nops + 3) + (nops + 2)


def test_halted_for_good():
    machine = machine_of("f4")
    host = Host(machine)
    host.run(until_ns=1_000_000)
    assert not machine.is_over
    assert host.now_ns >= 1_000_000


def test_command_line_that_does_not_fit():
    with pytest.raises(UserError, match="the guest's command line has 5002 bytes"):
        machine_of("f4", arguments=("x" * 5000,))


def test_registers_by_name():
    widths = {
        "rax": ("rax", 64, 0), "eax": ("rax", 32, 0), "ax": ("rax", 16, 0), "al": ("rax", 8, 0),
        "ah": ("rax", 8, 8), "r8": ("r8", 64, 0), "r10d": ("r10", 32, 0), "r15w": ("r15", 16, 0),
        "r9b": ("r9", 8, 0), "rsp": ("rsp", 64, 0), "esi": ("rsi", 32, 0), "di": ("rdi", 16, 0),
        "sil": ("rsi", 8, 0), "bpl": ("rbp", 8, 0), "bl": ("rbx", 8, 0),
    }  # fmt: skip
    assert {name: register_width(name) for name in widths} == widths


# -- local APIC --


def enabled() -> Apic:
    made = Apic()
    made.write(apic.SVR, 0x1FF, 0)
    return made


def next_vector(local: Apic) -> int | None:
    return local.vector


def test_apic_priorities():
    local = enabled()
    local.request(0x31)
    local.request(0x42)
    assert next_vector(local) == 0x42
    local.acknowledge(0x42)
    assert next_vector(local) is None  # 0x31 waits for the end of 0x42
    assert local.read(apic.ISR + 0x20, 0) == 1 << 2
    local.write(apic.EOI, 0, 0)
    assert next_vector(local) == 0x31
    local.write(apic.TPR, 0x30, 0)
    assert next_vector(local) is None


def test_apic_that_is_off_requests_nothing():
    local = Apic()
    local.request(0x40)
    assert next_vector(local) is None
    local.write(apic.SVR, 0x1FF, 0)
    local.request(15)  # reserved
    assert next_vector(local) is None


def test_apic_timer():
    local = enabled()
    local.write(apic.DIVIDE, 0b0001, 0)  # by 4
    local.write(apic.LVT_TIMER, 0x20030, 0)  # periodic
    local.write(apic.INITIAL_COUNT, 250, 1000)
    assert local.timer_at_ns == 2000
    assert local.read(apic.CURRENT_COUNT, 1400) == 150
    local.advance(1999)
    assert next_vector(local) is None
    local.advance(4500)  # two more were missed
    assert next_vector(local) == 0x30
    assert local.timer_at_ns == 5000
    local.write(apic.INITIAL_COUNT, 0, 5000)
    assert local.timer_at_ns == apic.NEVER


def test_apic_register_that_is_not_there():
    local = enabled()
    assert local.read(0x40, 0) == 0
    local.x2apic = True
    with pytest.raises(GuestFault):
        local.read(0x40, 0)
    with pytest.raises(GuestFault):
        local.write(0x40, 0, 0)


# -- ports, memory --


def test_ports():
    text = bytearray()
    ports = Ports(text.extend, 64 << 20)
    ports.write(0x3FB, 1, 0x80)
    ports.write(0x3F8, 1, 1)  # the divisor, not a character
    ports.write(0x3FB, 1, 3)
    ports.write(0x3F8, 1, ord("a"))
    assert text == b"a"
    assert ports.read(0x3FD, 1) == 0x60
    ports.write(0x510, 2, 3)
    assert bytes(ports.read(0x511, 1) for _ in range(9)) == (64 << 20).to_bytes(8, "little") + b"\0"
    ports.write(0x21, 1, 0xFE)
    assert (ports.read(0x21, 1), ports.read(0xA1, 1), ports.read(0xCFC, 4)) == (0xFE, 0xFF, 0xFFFFFFFF)
    ports.write(0xF4, 4, 7)
    assert ports.exit_value == 7


def test_paging():
    """Present, writable and user, at the level of a page of 4 KB, with the bits that a walk sets."""
    processor = Processor(64 << 20, 0)

    def put(address: int, value: int) -> None:
        processor.ram[address : address + 8] = list(value.to_bytes(8, "little"))

    put(0x2000, 0x3007)
    put(0x3000, 0x4007)
    put(0x4000, 0x5007)
    put(0x5000 + 8 * 0x10, 0x10005)  # user, read only
    put(0x5000 + 8 * 0x11, 0x11003)  # kernel, writable
    processor.write("cr3", 0x2000)
    processor.write("cr0", 1 << 31 | 1 << 16 | 1)
    assert processor.translate(0x10123, cpl=3) == 0x10123
    assert processor.ram[0x5000 + 8 * 0x10] == 0x25  # accessed
    for address, write, cpl, error in (
        (0x10000, 1, 0, 3),
        (0x11000, 0, 3, 5),
        (0x12000, 1, 3, 6),
        (1 << 40, 0, 0, 0),
    ):
        with pytest.raises(GuestFault) as caught:
            processor.translate(address, WRITE if write else READ, cpl)
        assert (caught.value.vector, caught.value.error, caught.value.address) == (14, error, address)
    processor.write_memory(0x11FFE, b"ab", cpl=0)
    assert processor.ram[0x5000 + 8 * 0x11] == 0x63  # accessed and dirty
