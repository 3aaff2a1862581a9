"""Traces as tests write them: the lines of the three recorders, from events."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from vpmu.trace.accesses import Picked, pick_accesses
from vpmu.trace.reader import EntryEvent, ExitEvent, Head, MsrEvent, Trace, TraceEvent, read_trace

FORMS: Final = ("trace-cmd", "trace-cmd flags", "ftrace", "ftrace tgid", "perf", "perf tid", "perf no cpu")
KERNELS: Final = ("5.0", "5.10", "6.12", "libtraceevent")
"""Which kernel's words: later ones print more of exits and entries; perf's plugin prints less."""

GP_FAULT: Final = " (#GP)"


@dataclass(frozen=True)
class Style:
    """How lines are written."""

    form: str = "trace-cmd"
    kernel: str = "5.0"

    def without_cpu(self) -> bool:
        return self.form == "perf no cpu"

    def says_vcpu_of_exits(self) -> bool:
        return self.kernel in ("5.10", "6.12")


def line_of(event: TraceEvent, style: Style) -> str:
    """Return the line of an event."""
    name, payload = payload_of(event, style.kernel)
    head = event.head
    seconds, ns = divmod(head.at_ns, 10**9)
    time = f"{seconds:5d}.{ns:09d}" if ns % 1000 else f"{seconds:5d}.{ns // 1000:06d}"
    if style.form == "trace-cmd":
        return f"{head.task:>16}-{head.pid:<5} [{head.cpu:03d}] {time}: {name + ':':<21}{payload}"
    if style.form == "trace-cmd flags":
        return f"{head.task:>16}-{head.pid:<5} [{head.cpu:03d}] d..1. {time}: {name + ':':<21}{payload}"
    if style.form == "ftrace":
        return f"{head.task:>16}-{head.pid:<7} [{head.cpu:03d}] .N.. {time}: {name}: {payload}"
    if style.form == "ftrace tgid":
        return f"{head.task:>16}-{head.pid:<7} (-------) [{head.cpu:03d}] d..1. {time}: {name}: {payload}"
    if style.form == "perf":
        return f"{head.task:>16} {head.pid:5d} [{head.cpu:03d}] {time}:  kvm:{name}: {payload}"
    if style.form == "perf tid":
        return f"{head.task:>16} 77/{head.pid} [{head.cpu:03d}] {time}:  kvm:{name}:   {payload}"
    return f"{head.task:>16} {head.pid:5d} {time}:  kvm:{name}: {payload}"


def payload_of(event: TraceEvent, kernel: str) -> tuple[str, str]:
    """Return an event's name and what a kernel prints of it."""
    if isinstance(event, MsrEvent):
        way = "write" if event.write else "read"
        return "kvm_msr", f"msr_{way} {event.msr:x} = 0x{event.value:x}{GP_FAULT if event.fault else ''}"
    if isinstance(event, ExitEvent):
        vcpu = "" if event.vcpu is None else f"vcpu {event.vcpu} "
        info = "info 0 80000b0e"
        if kernel == "6.12":
            info = (
                "info1 0x0000000000000000 info2 0x000000000000001f intr_info 0x00000000 error_code 0x00000000"
            )
        return "kvm_exit", f"{vcpu}reason {event.reason} rip 0xffffffff81036706 {info}"
    rip = {"5.0": "", "5.10": ", rip 0xfff0", "libtraceevent": " rip 0xfff0"}
    later = ", rip 0xfff0 intr_info 0x00000000 error_code 0x00000000[immediate exit]"
    return "kvm_entry", f"vcpu {event.vcpu}{rip.get(kernel, later)}"


def as_read(event: TraceEvent, style: Style, line: int) -> TraceEvent:
    """Return an event as it comes back from its line."""
    head = replace(event.head, line=line, cpu=None if style.without_cpu() else event.head.cpu)
    return replace(event, head=head)


def read(*lines: str) -> Trace:
    """Read a trace's lines."""
    return read_trace(lines, "t")


def picked(*lines: str) -> Picked:
    """Read a trace's lines and pick the accesses."""
    return pick_accesses(read(*lines))


@dataclass
class Thread:
    """A vCPU's thread in a trace: its lines follow each other in time."""

    pid: int = 100
    cpu: int = 0
    number: int = 0
    at_ns: int = 1_000_000_000
    style: Style = Style()

    def head(self) -> Head:
        return Head(0, self.at_ns, self.cpu, f"CPU {self.number}/KVM", self.pid)

    def line(self, event: TraceEvent) -> str:
        return line_of(event, self.style)

    def exits(self, reason: str, took_ns: int, *msrs: MsrEvent) -> list[str]:
        """Return the lines of an exit, with MSRs in it."""
        vcpu = self.number if self.style.says_vcpu_of_exits() else None
        lines = [self.line(ExitEvent(self.head(), reason, vcpu)), *map(self.line, msrs)]
        self.at_ns += took_ns
        return [*lines, self.line(EntryEvent(self.head(), self.number))]

    def write(self, msr: int, value: int, took_ns: int = 2_000, *, fault: bool = False) -> list[str]:
        return self.exits("MSR_WRITE", took_ns, MsrEvent(self.head(), True, msr, value, fault))

    def read(self, msr: int, value: int, took_ns: int = 2_000, *, fault: bool = False) -> list[str]:
        return self.exits("MSR_READ", took_ns, MsrEvent(self.head(), False, msr, value, fault))

    def rdpmc(self, took_ns: int = 2_000) -> list[str]:
        return self.exits("RDPMC", took_ns)

    def wait(self, ns: int) -> None:
        self.at_ns += ns


def in_time(threads: Iterable[Sequence[str]]) -> list[str]:
    """Merge threads' lines (of `trace-cmd` form) by time, each in its order."""
    marked = [
        (line.split("]", 1)[1].split(":", 1)[0].split()[-1], number, at, line)
        for number, lines in enumerate(threads)
        for at, line in enumerate(lines)
    ]
    marked.sort(key=lambda entry: (float(entry[0]), entry[1], entry[2]))
    return [line for *_, line in marked]
