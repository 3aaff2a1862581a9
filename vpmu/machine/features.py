"""CPUID of the machine, and the model-specific registers that are not the PMU's."""

from dataclasses import dataclass

from vpmu.machine import layout as at
from vpmu.machine.processor import GuestFault, Processor

Leaf = tuple[int, int, int, int]

_VENDOR = (0x756E6547, 0x6C65746E, 0x49656E69)  # EBX, ECX, EDX: "Genu", "ntel", "ineI"
_SIGNATURE = 0x406F1  # Broadwell-EP
_BRAND = b"vpmu machine guest, Broadwell-EP".ljust(48, b"\0")
_FEATURES_EDX = sum(1 << bit for bit in (0, 3, 4, 5, 6, 8, 9, 11, 13, 15, 16, 19, 23, 24, 25, 26))
_X2APIC, _PDCM = 1 << 21, 1 << 15
_FEATURES_ECX = 1 << 0 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | _X2APIC | 1 << 23
_SPEC_CTRL = 1 << 26
_EXTENDED_EDX = 1 << 11 | 1 << 20 | 1 << 27 | 1 << 29
_CLFLUSH_SIZE = 8 << 8
_ADDRESS_BITS = 48 << 8 | 39
_MAX_BASIC, _MAX_EXTENDED = 0xD, 0x80000008


def cpuid(leaf: int, subleaf: int, pmu: Leaf, *, has_perf_capabilities: bool, apic_id: int) -> Leaf:
    """Return EAX, EBX, ECX and EDX of CPUID.

    Parameters
    ----------
    leaf, subleaf
        EAX and ECX.
    pmu
        Leaf 0xA.
    has_perf_capabilities
        There is IA32_PERF_CAPABILITIES (PDCM).
    apic_id
        Initial APIC identity.
    """
    if leaf == 0:
        return (_MAX_BASIC, *_VENDOR)
    if leaf == 1:
        ecx = _FEATURES_ECX | (_PDCM if has_perf_capabilities else 0)
        return (_SIGNATURE, _CLFLUSH_SIZE | 1 << 16 | apic_id << 24, ecx, _FEATURES_EDX)
    if leaf == 7:
        return (0, 0, 0, _SPEC_CTRL) if subleaf == 0 else (0, 0, 0, 0)
    if leaf == 0xA:
        return pmu
    if leaf == 0x80000000:
        return (_MAX_EXTENDED, 0, 0, 0)
    if leaf == 0x80000001:
        return (0, 0, 1, _EXTENDED_EDX)
    if 0x80000002 <= leaf <= 0x80000004:
        text = _BRAND[(leaf - 0x80000002) * 16 :]
        words = [int.from_bytes(text[i : i + 4], "little") for i in (0, 4, 8, 12)]
        return (words[0], words[1], words[2], words[3])
    if leaf == 0x80000008:
        return (_ADDRESS_BITS, 0, 0, 0)
    return (0, 0, 0, 0)


TSC_AUX = 0xC0000103
TSC, APIC_BASE, FEATURE_CONTROL, SPEC_CTRL, PRED_CMD = 0x10, 0x1B, 0x3A, 0x48, 0x49
MICROCODE, MTRR_CAP, MISC_ENABLE, DEBUGCTL, PAT, MTRR_TYPE = 0x8B, 0xFE, 0x1A0, 0x1D9, 0x277, 0x2FF
EFER = 0xC0000080
X2APIC_FIRST, X2APIC_LAST = 0x800, 0x8FF
LVTPC = 0x834

_KEPT_BY_UNICORN = frozenset(
    [0x174, 0x175, 0x176, PAT, *range(0xC0000081, 0xC0000085), *range(0xC0000100, 0xC0000103)]
)
_BASES = frozenset([0xC0000100, 0xC0000101, 0xC0000102])
_PLAIN = frozenset([FEATURE_CONTROL, SPEC_CTRL, PRED_CMD, MICROCODE, MISC_ENABLE, MTRR_TYPE, TSC_AUX])
_EFER_BITS = 1 << 0 | 1 << 8 | 1 << 10 | 1 << 11
_EFER_LMA = 1 << 10
_PERFMON_AVAILABLE = 1 << 7
_BTS_PEBS_UNAVAILABLE = 3 << 11
_DEBUGCTL_IGNORED = 3

DIRECT = frozenset([SPEC_CTRL, PRED_CMD, *_BASES])
"""Registers that a guest of KVM writes without an exit."""

PMU = frozenset(
    [*range(0xC1, 0xC9), *range(0x186, 0x18E), *range(0x309, 0x30D), 0x345, *range(0x38D, 0x393),
     *range(0x4C1, 0x4C9), 0x3F1, 0x3F6, 0x600, LVTPC]
)  # fmt: skip
"""Registers that the host answers for."""


@dataclass(slots=True)
class Msrs:
    """Model-specific registers of one processor, without the PMU's, the APIC's and the clock."""

    processor: Processor
    values: dict[int, int]

    @classmethod
    def of(cls, processor: Processor) -> "Msrs":
        """Return the registers as they are after reset."""
        values = dict.fromkeys(_PLAIN, 0)
        values[MISC_ENABLE] = 1 | _PERFMON_AVAILABLE | _BTS_PEBS_UNAVAILABLE
        return cls(processor, values)

    def read(self, number: int) -> int:
        """Return a register; raises `GuestFault` if there is none."""
        if number == EFER:
            return int(self.processor.words[at.EFER])
        if number in _KEPT_BY_UNICORN:
            return self.processor.msr(number)
        if number in self.values:
            return self.values[number]
        if number in (MTRR_CAP, DEBUGCTL):
            return 0
        raise GuestFault(13, 0)

    def write(self, number: int, value: int) -> None:
        """Write a register; raises `GuestFault` if there is none or it does not take the value."""
        if number == EFER:
            self._write_efer(value)
        elif number in _KEPT_BY_UNICORN:
            if number in _BASES and value + (1 << 47) & (1 << 64) - 1 >= 1 << 48:
                raise GuestFault(13, 0)
            self.processor.set_msr(number, value)
        elif number in self.values:
            self.values[number] = value
        elif number != DEBUGCTL or value & ~_DEBUGCTL_IGNORED:
            raise GuestFault(13, 0)

    def _write_efer(self, value: int) -> None:
        if value & ~_EFER_BITS:
            raise GuestFault(13, 0)
        value |= int(self.processor.words[at.EFER]) & _EFER_LMA
        self.processor.words[at.EFER] = value
        self.processor.set_msr(EFER, value)
