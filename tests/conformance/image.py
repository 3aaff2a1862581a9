"""How many tests the public kvm-unit-tests image ``x86/pmu`` has, and which the rules let fail: derived.

The image is built elsewhere. Only the names and numbers of its tests are used here.
"""

from __future__ import annotations

from pathlib import Path
from tomllib import loads
from typing import Final, NamedTuple

EVENTS: Final = 7
"""Architectural events; without reference cycles one fewer."""
NR_GP: Final = 4
NR_FIXED: Final = 3
MEASURED: Final = Path(__file__).with_name("image.toml")


class Run(NamedTuple):
    """One way to run the image: the design, its rules, and what the guest is offered."""

    design: str
    kvm: str
    ref_cycles: bool = False
    prefix: bool = True
    """Whether there is a forced-emulation prefix."""

    @property
    def full_width(self) -> bool:
        """Whether the image goes through its tests once more, with full-width counters."""
        return self.kvm == "7.0"

    @property
    def key(self) -> str:
        """Its name in `image.toml`."""
        parts = [
            self.design,
            self.kvm,
            "ref-cycles" if self.ref_cycles else "",
            "" if self.prefix else "no-prefix",
        ]
        return " ".join(part for part in parts if part)


RUNS: Final = tuple(
    Run(design, kvm, ref_cycles, prefix)
    for kvm in ("7.0", "5.0")
    for design in ("legacy", "optimized")
    for ref_cycles, prefix in ((False, True), (True, True), (False, False))
)


def one_pass(run: Run) -> dict[str, int]:
    """Return the tests of one pass, by group."""
    events = EVENTS if run.ref_cycles else EVENTS - 1
    return {
        "emulated instructions: two counts, two overflows": 4 if run.prefix else 0,
        "each event on each general-purpose counter": events * NR_GP,
        "each fixed counter": NR_FIXED,
        "RDPMC, and its fast form, of each counter": 2 * (NR_GP + NR_FIXED),
        "all counters at once": 1,
        "overflow of each general-purpose and one fixed counter: count, status, status cleared, interrupt": (
            4 * (NR_GP + 1)
        ),
        "counter mask": 1,
        "running counter written: count, status": 2,
    }


def tests(run: Run) -> int:
    """Return how many tests there are: RDPMC(64), the passes, and the widths of full-width writes."""
    passes, widths = (2, NR_GP) if run.full_width else (1, 0)
    return 1 + passes * sum(one_pass(run).values()) + widths


def skipped(run: Run) -> int:
    """Return how many are skipped: the fast form of RDPMC, where it gives #GP (A5.5)."""
    return 2 * (NR_GP + NR_FIXED) if run.kvm == "7.0" else 0


def failures(run: Run) -> dict[str, int]:
    """Return how many tests fail, by rule; nobody else holds a counter."""
    if run.kvm == "7.0":
        return {}
    emulated = 4 if run.prefix else 0
    enabling = NR_GP + 1
    found = {"D5.3": emulated + enabling, "D3.10": NR_FIXED}
    if run.design == "legacy":
        found["D5.5, D5.6"] = 1
    return {rule: count for rule, count in found.items() if count}


WHY: Final = {
    "D5.3": "emulated instruction: both counts, both overflows: nothing that is emulated is counted;"
    " instructions on each general-purpose counter, and all counters at once: the WRMSR that enables them is"
    " emulated, too, so that 10,000,016 are counted and the image expects 10,000,017",
    "D3.10": "rdpmc: fixed cntr-0 to 2: 0xff0123456789 is cut to 32 bits and sign-extended",
    "D5.5, D5.6": "running counter wrmsr: status msr bit: the counter was enabled at 0, so its event has no"
    " period, and the write of -1 gives it none",
}


def measured() -> dict[str, str]:
    """Return what runs of the image printed, by key; empty where nobody has run it."""
    table = loads(MEASURED.read_text()) if MEASURED.exists() else {}
    return {key: str(value) for key, value in table.get("measured", {}).items()}
