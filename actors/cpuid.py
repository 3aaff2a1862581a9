"""CPUID leaf 0xA, architectural performance monitoring, as KVM offers it to a guest (SDM 18.2)."""

from collections.abc import Iterable
from typing import Final

ARCHITECTURAL_EVENTS: Final = (
    "cycles",
    "instructions",
    "ref-cycles",
    "llc-references",
    "llc-misses",
    "branches",
    "branch-misses",
)
"""The architectural events, in the order of their bits in EBX."""

_ANYTHREAD_DEPRECATED: Final = 1 << 15


def leaf_0a(
    version: int,
    nr_gp: int,
    nr_fixed: int,
    *,
    hidden: Iterable[str] = (),
    width: int = 48,
    anythread_deprecated: bool = False,
) -> tuple[int, int, int, int]:
    """Return what CPUID leaf 0xA tells.

    Parameters
    ----------
    version : int
        Of architectural performance monitoring; version 1 has no fixed counters to tell of.
    nr_gp, nr_fixed : int
        Counters.
    hidden : iterable of str
        Names of ARCHITECTURAL_EVENTS that are told not to be available.
    width : int
        Of all counters, bits.
    anythread_deprecated : bool
        EDX bit 15: KVM 7.0 sets it.

    Returns
    -------
    (eax, ebx, ecx, edx) : int
    """
    eax = version | nr_gp << 8 | width << 16 | len(ARCHITECTURAL_EVENTS) << 24
    ebx = sum(1 << ARCHITECTURAL_EVENTS.index(name) for name in set(hidden))
    edx = nr_fixed | width << 5 if version > 1 else 0
    return eax, ebx, 0, edx | (_ANYTHREAD_DEPRECATED if anythread_deprecated else 0)
