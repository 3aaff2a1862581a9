"""The seats of a run: what the guest of each remote vCPU is told about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from vpmu.actors.cpuid import leaf_0a
from vpmu.actors.outside import OutsideVcpu
from vpmu.cluster.guests.desk import CpuidLeaf, Seat
from vpmu.cluster.guests.messages import Welcome
from vpmu.cluster.guests.stretch import Stretches, khz_of

WIDTH: Final = 48
"""Of all counters, bits."""
_HIGHEST: Final = 0xA
_VENDOR: Final = (0x756E6547, 0x6C65746E, 0x49656E69)
"""GenuineIntel, in EBX, ECX and EDX."""
_SIGNATURE: Final = 0x000406F1
"""Family 6, model 0x4F: the Broadwell that the events and constraints are of."""
_PDCM: Final = 1 << 15
_HYPERVISOR: Final = 1 << 31


def seat_of(vcpu: OutsideVcpu, until_ns: int, *, hidden: Iterable[str], anythread_deprecated: bool) -> Seat:
    """Return the seat of a remote vCPU.

    Parameters
    ----------
    vcpu : OutsideVcpu
    until_ns : int
        Virtual end of the run.
    hidden, anythread_deprecated
        See `leaf_0a`.
    """
    version, nr_gp, nr_fixed, capabilities = vcpu.pmu
    leaf = leaf_0a(
        version, nr_gp, nr_fixed, hidden=hidden, width=WIDTH, anythread_deprecated=anythread_deprecated
    )
    welcome = Welcome(
        vcpu=vcpu.vcpu,
        intercepts=int(vcpu.intercepts),
        core_khz=khz_of(vcpu.core_rate),
        tsc_khz=khz_of(vcpu.tsc_rate),
        version=version,
        nr_gp=nr_gp,
        gp_width=WIDTH,
        nr_fixed=nr_fixed,
        fixed_width=WIDTH if nr_fixed else 0,
        leaf_0a=leaf,
        perf_capabilities=capabilities,
        until_ns=until_ns,
    )
    return Seat(vcpu.vm, vcpu, welcome, _cpuid(welcome), Stretches(vcpu))


def _cpuid(welcome: Welcome) -> Callable[[int, int], CpuidLeaf]:
    """Return what answers CPUID: the leaves that concern a PMU; the highest stands for those above it."""
    features = (_PDCM if welcome.perf_capabilities else 0) | (_HYPERVISOR if welcome.intercepts else 0)
    leaves: dict[int, CpuidLeaf] = {
        0: (_HIGHEST, _VENDOR[0], _VENDOR[1], _VENDOR[2]),
        1: (_SIGNATURE, 0, features, 0),
        _HIGHEST: welcome.leaf_0a,
    }

    def cpuid(leaf: int, subleaf: int) -> CpuidLeaf:
        return leaves.get(min(leaf, _HIGHEST), (0, 0, 0, 0))

    return cpuid
