"""Write stat.trace: what ``trace-cmd report`` would print for two vCPUs whose guests run ``perf stat``.

No machine recorded it.  The accesses are those of Linux's driver for ``perf stat -e branches,cpu-cycles,
dTLB-load-misses`` of a thread that is switched in and out (`SWITCH_IN`, `SWITCH_OUT`); times and
latencies are the constants below.

    $ python make_trace.py > stat.trace
"""

from collections.abc import Iterator
from typing import Final

START_NS: Final = 5_678_000_000_000
SLICE_NS: Final = 3_000_000
"""How long the measured thread runs, and how long the other one does."""
BETWEEN_NS: Final = 300
"""The driver's own code between two accesses."""
EXIT_NS: Final = 2_000
"""From exit to entry, but for..."""
EVENTS_NS: Final = 60_000
"""...the write that makes the host create or release its events."""
SWITCHES: Final = 6

GLOBAL_CTRL, ALL = 0x38F, 0x70000000F
COUNTER = 0xFFFF80000001
"""-(2^31 - 1) in 48 bits."""

Step = tuple[str, int, int]
"""``R``, ``W`` or ``P`` (RDPMC), register, value."""

PROBE: Final[list[Step]] = [("R", 0x186, 0), ("R", 0x1A6, -1)]
"""The driver's start looks at a selector and finds no MSR_OFFCORE_RSP_0: #GP, value -1 here."""
SWITCH_IN: Final[list[Step]] = [
    ("W", GLOBAL_CTRL, 0),
    ("W", 0xC1, COUNTER),
    ("W", 0x186, 0x5300C4),
    ("W", 0x30A, COUNTER),
    ("R", 0x38D, 0),
    ("W", 0x38D, 0x0B0),
    ("W", 0xC2, COUNTER),
    ("W", 0x187, 0x530108),
    ("W", 0x834, 0x400),
    ("W", GLOBAL_CTRL, ALL),
]
SWITCH_OUT: Final[list[Step]] = [
    ("W", GLOBAL_CTRL, 0),
    ("W", 0x186, 0x1300C4),
    ("P", 0, 0),
    ("R", 0x38D, 0x0B0),
    ("W", 0x38D, 0),
    ("P", 0x40000001, 0),
    ("W", 0x187, 0x130108),
    ("P", 1, 0),
    ("W", GLOBAL_CTRL, ALL),
]
REASONS: Final = {"R": "MSR_READ", "W": "MSR_WRITE", "P": "RDPMC"}


class Vcpu:
    """A vCPU's thread, which writes its lines."""

    def __init__(self, number: int, at_ns: int) -> None:
        self.number = number
        self.at_ns = at_ns
        self.lines: list[tuple[int, str]] = []
        self._rip = 0xFFFFFFFF8100A000

    def line(self, event: str, text: str) -> None:
        """Write a line at this vCPU's time."""
        seconds, ns = divmod(self.at_ns, 10**9)
        head = f"       CPU {self.number}/KVM-{4211 + self.number}  [00{self.number}]"
        self.lines.append((self.at_ns, f"{head} {seconds:5d}.{ns // 1000:06d}: {event + ':':<21}{text}"))

    def exit(self, reason: str, took_ns: int, between: tuple[str, str] | None = None) -> None:
        """Leave the guest and enter it again; an event may come between."""
        self._rip += 2
        self.line("kvm_exit", f"reason {reason} rip 0x{self._rip:x} info 0 0")
        if between is not None:
            self.line(*between)
        self.at_ns += took_ns
        self.line("kvm_entry", f"vcpu {self.number}")

    def access(self, kind: str, register: int, value: int) -> None:
        """Make an access of the PMU."""
        self.at_ns += BETWEEN_NS
        between = None
        if kind != "P":
            way = "read" if kind == "R" else "write"
            between = (
                "kvm_msr",
                f"msr_{way} {register:x} = 0x{max(value, 0):x}{' (#GP)' if value < 0 else ''}",
            )
        self.exit(REASONS[kind], EVENTS_NS if register == GLOBAL_CTRL else EXIT_NS, between)

    def run(self) -> None:
        """Be a guest: probe, then switch in and out."""
        for step in PROBE:
            self.access(*step)
        for _ in range(SWITCHES):
            for sequence in (SWITCH_IN, SWITCH_OUT):
                for step in sequence:
                    self.access(*step)
                self.at_ns += SLICE_NS // 2
                # The guest's timer, which is not the PMU's, and a device.
                self.exit("MSR_WRITE", EXIT_NS, ("kvm_msr", f"msr_write 6e0 = 0x{self.at_ns:x}"))
                self.exit("IO_INSTRUCTION", EXIT_NS, ("kvm_pio", "pio_write at 0x80 size 1 count 1 val 0x0"))
                self.at_ns += SLICE_NS // 2


def lines() -> Iterator[str]:
    """Yield the trace's lines, in the order of time."""
    vcpus = [Vcpu(number, START_NS + number * 700_000) for number in range(2)]
    for vcpu in vcpus:
        vcpu.run()
    yield "cpus=2"
    yield "CPU:1 [LOST 12 EVENTS]"
    merged = sorted((at_ns, line) for vcpu in vcpus for at_ns, line in enumerated(vcpu))
    yield from (line for _, line in merged)


def enumerated(vcpu: Vcpu) -> Iterator[tuple[tuple[int, int, int], str]]:
    """Yield a vCPU's lines with what puts them in order: time, vCPU, position."""
    for position, (at_ns, line) in enumerate(vcpu.lines):
        yield (at_ns, vcpu.number, position), line


if __name__ == "__main__":
    print("\n".join(lines()))
