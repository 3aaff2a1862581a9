"""What a case runs on: a setup (design, rule set, CPUID), the steps of a guest, and what it sees of them."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

RDMSR: Final = 1
WRMSR: Final = 2
RDPMC: Final = 3
EMULATE: Final = 4
"""An instruction that KVM emulates; bit 0 of the register: an instruction, bit 1: also a branch. The value is
its level: 1 for CPL 0, 2 for CPL 3.
"""
USER: Final = 5
"""So many cycles of code at CPL 3."""
KERNEL: Final = 6
"""So many cycles of code at CPL 0."""
CPUID: Final = 7
"""A register of leaf 0xA: 0 EAX, 1 EBX, 2 ECX, 3 EDX."""
WORK: Final = 8
"""No guest's step: how many events host perf has created (bits 31:16) and released for the vCPU. The value is
what is right, unless the twin keeps count itself.
"""
HOST_READ: Final = 9
"""A read by the host, as for a migration (KVM_GET_MSRS)."""
HOST_WRITE: Final = 10
"""A write by the host (KVM_SET_MSRS)."""
SWITCH: Final = 11
"""So many cycles of code at CPL 3, before which the vCPU is switched out and in again."""
INSIDE: Final = 12
"""No guest's step: a look at a register of the physical CPU while the guest runs. The value is what is
right.
"""
OUTSIDE: Final = 13
"""The same while the host runs, the vCPU kicked out of its guest."""
AWAY: Final = 14
"""The same between vCPUs: this one is switched out, and in again after the look."""
LOOKS: Final = {INSIDE: "in the guest", OUTSIDE: "in the host", AWAY: "between vCPUs"}

NAMES: Final = {
    RDMSR: "RDMSR",
    WRMSR: "WRMSR",
    RDPMC: "RDPMC",
    EMULATE: "emulated",
    USER: "user cycles",
    KERNEL: "kernel cycles",
    SWITCH: "user cycles after a vCPU switch",
}

# Events of one core cycle of user code. Whole numbers, so that every count is exact.
RATES: Final = {
    0x003C: 1,
    0x00C0: 2,
    0x00C4: 4,
    0x00C5: 8,
    0x4F2E: 3,
    0x412E: 6,
    0x0108: 5,
    0x81D0: 63,
}
"""By event and unit mask: cycles, instructions, branches, branch misses, LLC references and misses, dTLB load
misses, L1 loads.
"""
HALF: Final = 0x0280
"""The event that every other cycle has, L1I misses; with the edge bit each of them is an edge."""
CORE_KHZ: Final = 2_000_000
TSC_KHZ: Final = 2_200_000
BUS_KHZ: Final = 100_000

_FIXED_TAKEN: dict[str, object] = {
    "name": "fixed",
    "kind": "stat",
    "events": ["cpu-cycles"],
    "pinned": True,
    "exclude_guest": False,
}
_HOST_TAKEN = {**_FIXED_TAKEN, "exclude_guest": True}
_HOST_SAMPLES = {**_HOST_TAKEN, "kind": "record", "period": 50_000}
_GP_TAKEN = {**_FIXED_TAKEN, "name": "gp", "events": ["branches"] * 4}
TAKEN: Final[dict[str, list[dict[str, object]]]] = {
    "": [],
    "cycles": [_FIXED_TAKEN],
    "host cycles": [_HOST_TAKEN],
    "host samples": [_HOST_SAMPLES],
    "all": [_GP_TAKEN, _FIXED_TAKEN],
}
"""Host tools that hold the fixed counter of cycles, some for the host alone, or all general-purpose, too."""
_CMASKED: Final[dict[str, object]] = {
    "name": "kinds",
    "kind": "stat",
    "start": "900000 s",
    "events": [
        "cpu/event=0xc4,cmask=2/",
        "cpu/event=0xc4,cmask=5/",
        "cpu/event=0xc4,cmask=5,inv/",
        "cpu/event=0x80,umask=2,edge/",
    ],
}
"""Never started: a scenario names the events with a counter mask for which the model is to have rates."""


class Filter(NamedTuple):
    """An event filter (KVM_SET_PMU_EVENT_FILTER)."""

    action: str
    events: tuple[int, ...] = ()
    fixed: int = 0
    masked: bool = False

    def __str__(self) -> str:
        events = " ".join(f"{event:x}" for event in self.events)
        return f"{self.action}{' masked' if self.masked else ''} [{events}] fixed {self.fixed:03b}"


class Setup(NamedTuple):
    """What stands around a guest's access.

    Parameters
    ----------
    design : str
        `native` is hardware of version 3, the others guests.
    kvm : str
        Rule set; of no matter to `native`.
    version : int
        Of the architectural PMU that CPUID gives the guest.
    nr_gp, nr_fixed : int
        Counters; 4 with hyper-threading, else 8. A guest may have fewer.
    taken : str
        What host tools hold: a key of `TAKEN`.
    hidden : tuple of str
        Architectural events that CPUID calls unavailable.
    filter : Filter, optional
    life : int, optional
        Time slices that an unused event of `optimized` lives, if not the default.
    """

    design: str
    kvm: str = "5.0"
    version: int = 2
    nr_gp: int = 4
    nr_fixed: int = 3
    taken: str = ""
    hidden: tuple[str, ...] = ()
    filter: Filter | None = None
    life: int | None = None

    def __str__(self) -> str:
        parts = [self.design]
        if self.design != "native":
            parts += [f"kvm {self.kvm}", f"v{self.version}"]
        parts += [f"{self.nr_gp}+{self.nr_fixed} counters"] if (self.nr_gp, self.nr_fixed) != (4, 3) else []
        parts += [f"{self.taken} taken"] if self.taken else []
        parts += [f"without {', '.join(self.hidden)}"] if self.hidden else []
        parts += [str(self.filter)] if self.filter else []
        parts += [f"life {self.life}"] if self.life is not None else []
        return " ".join(parts)

    @property
    def family(self) -> str:
        """The column of the document that this setup belongs to."""
        return "native" if self.design == "native" else f"{self.design} {self.kvm}"

    def table(self) -> dict[str, Any]:
        """Return the scenario: one vCPU on one quiet CPU."""
        host: dict[str, Any] = {
            "name": "host",
            "noise": False,
            "core_khz": CORE_KHZ,
            "hyperthreading": self.nr_gp <= 4,
        }
        vm: dict[str, Any] = {"name": "vm", "cpus": [0], "thread": [{"name": "code", "program": "code"}]}
        if self.kvm != "5.0":
            host["kvm"] = self.kvm
        if self.life is not None:
            host |= {"design": self.design, "parameters": {"life": self.life}}
        if self.design != "native" and self.version != 2:
            vm["pmu_version"] = self.version
        if self.hidden:
            vm["hide_events"] = list(self.hidden)
        if self.filter:
            vm["event_filter"] = {
                "action": self.filter.action,
                "events": list(self.filter.events),
                "fixed_counter_bitmap": self.filter.fixed,
                "masked": self.filter.masked,
            }
        # Two instructions a cycle; the others by instruction.
        names: tuple[str, ...] = (
            "branches",
            "branch_misses",
            "cache_references",
            "cache_misses",
            "dtlb_load_misses",
        )
        names += ("l1_dcache_loads",)
        rates = {"l1_icache_load_misses": 0.25} | {
            name: RATES[event] / 2 for name, event in zip(names, list(RATES)[2:], strict=True)
        }
        code = {"name": "all", "share": 1, "ipc": 2, **rates}
        tools = [dict(each, host="host") for each in [*TAKEN[self.taken], _CMASKED]]
        return {
            "version": 1,
            "until": "1000000 s",
            "host": [host],
            "program": [{"name": "code", "cycles": 1 << 30, "functions": [code]}],
            "vm": [vm],
            "tool": tools,
        }


class Step(NamedTuple):
    """One thing that a guest does: an access, an emulated instruction, or code."""

    kind: int
    register: int = 0
    value: int = 0

    def __str__(self) -> str:
        if self.kind in (WRMSR, HOST_WRITE):
            return f"{'host ' if self.kind == HOST_WRITE else ''}W {self.register:x}={self.value:x}"
        if self.kind == HOST_READ:
            return f"host R {self.register:x}"
        if self.kind in (RDMSR, RDPMC):
            return f"{'R' if self.kind == RDMSR else 'P'} {self.register:x}"
        if self.kind == CPUID:
            return f"CPUID 0A {('EAX', 'EBX', 'ECX', 'EDX')[self.register]}"
        if self.kind == WORK:
            return "host work"
        if self.kind in LOOKS:
            return f"{self.register:x} {LOOKS[self.kind]}"
        if self.kind == EMULATE:
            level = "user" if self.value == 2 else "kernel"
            return f"emulated {level} {'branch' if self.register & 2 else 'instruction'}"
        return f"{self.value} {NAMES[self.kind]}"


class Seen(NamedTuple):
    """What came of a step: 1 for #GP, the word read or written, and the PMIs that came with it or in it."""

    fault: int
    value: int
    pmis: int = 0

    def __str__(self) -> str:
        what = "#GP" if self.fault else f"{self.value:x}"
        return f"{what} +{self.pmis} PMI" if self.pmis else what


def write(register: int, value: int) -> Step:
    """Return a WRMSR."""
    return Step(WRMSR, register, value)


def read(register: int) -> Step:
    """Return a RDMSR."""
    return Step(RDMSR, register)


def host_write(register: int, value: int) -> Step:
    """Return a write by the host."""
    return Step(HOST_WRITE, register, value)


def host_read(register: int) -> Step:
    """Return a read by the host."""
    return Step(HOST_READ, register)


def rdpmc(index: int) -> Step:
    """Return a RDPMC."""
    return Step(RDPMC, index)


def code(cycles: int) -> Step:
    """Return user-mode code."""
    return Step(USER, 0, cycles)


def kernel_code(cycles: int) -> Step:
    """Return kernel-mode code."""
    return Step(KERNEL, 0, cycles)


def cpuid(register: int) -> Step:
    """Return a look at one register of CPUID leaf 0xA."""
    return Step(CPUID, register)


def switched(cycles: int) -> Step:
    """Return a switch of vCPUs, there and back, and user-mode code."""
    return Step(SWITCH, 0, cycles)


def work(created: int, released: int) -> Step:
    """Return a look at how many events host perf has created and released by now."""
    return Step(WORK, 0, created << 16 | released)


def inside(register: int, value: int) -> Step:
    """Return a look at a register of the physical CPU while the guest runs."""
    return Step(INSIDE, register, value)


def outside(register: int, value: int) -> Step:
    """Return a look at a register of the physical CPU while the host runs."""
    return Step(OUTSIDE, register, value)


def away(register: int, value: int) -> Step:
    """Return a look at a register of the physical CPU between two vCPUs."""
    return Step(AWAY, register, value)


def emulated(*, branch: bool = False, user: bool = False) -> Step:
    """Return an instruction, perhaps a branch, that KVM emulates."""
    return Step(EMULATE, 3 if branch else 1, 2 if user else 1)
