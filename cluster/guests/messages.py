"""What a remote guest and its host say to each other, as values; `wire` makes bytes of them."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

NEVER: Final = 2**63 - 1
"""A time that does not come, ns."""
FIRST_TIME_KIND: Final = 16
"""Reference and bus cycles, kinds 16 and 17, follow the clock: the host counts them for a guest."""
NR_TIME_KINDS: Final = 2
NR_KINDS: Final = 32


class Kind(IntEnum):
    """What a frame is: the guest's below 0x80, the host's answers from there."""

    HELLO = 0x01
    START = 0x02
    REPORT = 0x03
    CPUID = 0x04
    BYE = 0x05
    WELCOME = 0x81
    GRANT = 0x82
    CPUID_IS = 0x83
    END = 0x84
    REFUSED = 0x85


class Reason(IntEnum):
    """Why a guest ends its stretch; the numbers are those of the kernels' GUEST_ constants."""

    ACCESS = 1
    HALT = 3
    OVERFLOW = 4
    LIMIT = 5
    DONE = 6


class Operation(IntEnum):
    """What a guest executes that the host has to carry out; as the kernels' ACCESS_ constants."""

    NONE = 0
    RDMSR = 1
    WRMSR = 2
    RDPMC = 3
    EMULATED = 4


class Level(IntEnum):
    """A privilege level: CPL 0, or CPL 1 to 3."""

    NONE = 0
    KERNEL = 1
    USER = 2


class Given(IntFlag):
    """What a grant brings: the result of an access, that it was #GP, a performance interrupt."""

    RESULT = 1
    FAULT = 2
    PMI = 4


class EndReason(IntEnum):
    """Why there is nothing more for a guest to do."""

    LEFT = 0
    RUN_OVER = 1


class Hello(NamedTuple):
    """A process wants to be a vCPU, by the name of its VM and its number in it."""

    vm: str
    vcpu: int = 0


class Start(NamedTuple):
    """The guest is ready for its first grant."""


class Retired(NamedTuple):
    """Events of one kind that retired at one privilege level since the grant."""

    kind: int
    level: int
    events: int


class Report(NamedTuple):
    """What a guest did with a grant, and why it stops; the fields are `vpmu.actors.outside.Report`'s."""

    end_ns: int
    reason: int
    retired: tuple[Retired, ...] = ()
    operation: int = 0
    register: int = 0
    value: int = 0
    level: int = 0
    timer_at_ns: int = NEVER


class Cpuid(NamedTuple):
    """The guest executes CPUID."""

    leaf: int
    subleaf: int = 0


class Bye(NamedTuple):
    """The guest leaves where its last grant began."""


class Welcome(NamedTuple):
    """The guest is a vCPU now; what it has to know about it.

    Attributes
    ----------
    vcpu : int
        Its number in its VM.
    intercepts : int
        1 if its accesses exit: then what it accesses with retires in the host, or not at all.
    core_khz, tsc_khz : int
        Frequencies.
    version, nr_gp, gp_width, nr_fixed, fixed_width : int
        The PMU that it is offered.
    leaf_0a : tuple of int
        EAX, EBX, ECX and EDX of CPUID leaf 0xA.
    perf_capabilities : int
        What IA32_PERF_CAPABILITIES reads, 0 if there is none.
    until_ns : int
        Virtual end of the run.
    """

    vcpu: int
    intercepts: int
    core_khz: int
    tsc_khz: int
    version: int
    nr_gp: int
    gp_width: int
    nr_fixed: int
    fixed_width: int
    leaf_0a: tuple[int, int, int, int]
    perf_capabilities: int
    until_ns: int


class Watched(NamedTuple):
    """A counter that counts while the guest runs, as `vpmu.actors.outside.Watched`.

    Attributes
    ----------
    kind, levels : int
        What it counts; bit 0: in kernel mode, bit 1: in user mode.
    left : int
        Events to the next PMI, 0 if it raises none.
    """

    kind: int
    levels: int
    left: int


class Grant(NamedTuple):
    """The guest may run from `now_ns` to `limit_ns`; `given` says what else this brings.

    Attributes
    ----------
    now_ns, limit_ns : int
        Virtual time, ns.
    value, cost_ns : int
        What the last access read, and how long it took.
    given : int
        `Given` bits.
    lvtpc : int
        The LVTPC word under which an interrupt is delivered.
    watched : tuple of Watched
        What counts meanwhile.
    """

    now_ns: int
    limit_ns: int
    value: int = 0
    cost_ns: int = 0
    given: int = 0
    lvtpc: int = 0
    watched: tuple[Watched, ...] = ()


class CpuidIs(NamedTuple):
    """What CPUID answers."""

    eax: int
    ebx: int
    ecx: int
    edx: int


class End(NamedTuple):
    """There is nothing more to do: the guest left, or the run is over."""

    at_ns: int
    why: int


class Refused(NamedTuple):
    """The host does not go on with this peer."""

    reason: str


Request = Hello | Start | Report | Cpuid | Bye
Answer = Welcome | Grant | CpuidIs | End | Refused
