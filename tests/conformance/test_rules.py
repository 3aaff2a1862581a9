"""Each rule has a case that goes another way when it alone is inverted; what a twin says, worked by hand."""

from __future__ import annotations

import pytest

from tests.conformance.setup import (
    Filter,
    Seen,
    Setup,
    Step,
    code,
    emulated,
    kernel_code,
    rdpmc,
    read,
    write,
)
from tests.conformance.table import cases, expected, rules

CASES_OF: dict[str, list[int]] = {}
for index, case in enumerate(cases()):
    for number in case.rules:
        CASES_OF.setdefault(number, []).append(index)

FAULT = Seen(1, 0)
START = (write(0x834, 0x400), write(0x38F, 1))
GP_CYCLES = 0x51003C
"""EN, INT, USR, cycles."""


@pytest.mark.parametrize("number", [number for number, rule in rules().items() if not rule.where])
def test_a_rule_inverted_alone_fails_a_case_of_its_own(number: str):
    def differs(index: int) -> bool:
        case = cases()[index]
        return expected(case.setup, case.steps) != expected(case.setup, case.steps, number)

    assert any(differs(index) for index in CASES_OF[number])


OLD, NEW, RFC, HW = Setup("legacy"), Setup("legacy", "7.0"), Setup("optimized"), Setup("native")
TOP = 0xFFFFFFFFFFFF

EXAMPLES: dict[str, tuple[Setup, list[tuple[Step, Seen]]]] = {
    # -100 + 80 is -20; 30 more make +10 with one overflow, whose PMI masks the LVT, and 2^48 - 300 the next.
    "manual": (
        HW,
        [
            (write(0xC1, 0xFFFFFF9C), Seen(0, 0xFFFFFF9C)),
            (write(0x186, GP_CYCLES), Seen(0, GP_CYCLES)),
            (code(80), Seen(0, 80)),
            (rdpmc(0), Seen(0, TOP - 19)),
            (code(30), Seen(0, 30, 1)),
            (read(0xC1), Seen(0, 10)),
            (read(0x38E), Seen(0, 1)),
            (read(0x834), Seen(0, 0x10400)),
            (write(0x390, 1), Seen(0, 1)),
            (read(0x38E), Seen(0, 0)),
        ],
    ),
    # The LVT stays open (5.4), a second overflow raises a second PMI.
    "LVTPC of 5.0": (
        OLD,
        [
            (write(0xC1, 0xFFFFFFF6), Seen(0, 0xFFFFFFF6)),
            (write(0x186, GP_CYCLES), Seen(0, GP_CYCLES)),
            (code(15), Seen(0, 15, 1)),
            (read(0x834), Seen(0, 0x400)),
            (write(0x186, 0), Seen(0, 0)),
            (write(0xC1, 0xFFFFFFF6), Seen(0, 0xFFFFFFF6)),
            (write(0x186, GP_CYCLES), Seen(0, GP_CYCLES)),
            (code(15), Seen(0, 15, 1)),
        ],
    ),
    # Armed for 100 events at -100; written to -5 after 10, it wraps 5 later and nobody notices before the 90.
    "a running counter written": (
        OLD,
        [
            (write(0xC1, 0xFFFFFF9C), Seen(0, 0xFFFFFF9C)),
            (write(0x186, GP_CYCLES), Seen(0, GP_CYCLES)),
            (code(10), Seen(0, 10)),
            (write(0xC1, 0xFFFFFFFB), Seen(0, 0xFFFFFFFB)),
            (code(50), Seen(0, 50)),
            (rdpmc(0), Seen(0, 45)),
            (read(0x38E), Seen(0, 0)),
            (code(40), Seen(0, 40, 1)),
            (read(0x38E), Seen(0, 1)),
        ],
    ),
    "a running counter written, 7.0": (
        NEW,
        [
            (write(0xC1, 0xFFFFFF9C), Seen(0, 0xFFFFFF9C)),
            (write(0x186, GP_CYCLES), Seen(0, GP_CYCLES)),
            (code(10), Seen(0, 10)),
            (write(0xC1, 0xFFFFFFFB), Seen(0, 0xFFFFFFFB)),
            (code(50), Seen(0, 50, 1)),
            (read(0x38E), Seen(0, 1)),
        ],
    ),
    # Branches, 4 a cycle, at CPL 3 only; sign extension; #GP above the width and without PERF_CAPABILITIES.
    "widths": (
        NEW,
        [
            (write(0xC2, 0x180000001), Seen(0, 0x180000001)),
            (read(0xC2), Seen(0, 0xFFFF80000001)),
            (write(0x4C2, 0x180000001), Seen(0, 0x180000001)),
            (read(0xC2), Seen(0, 0x180000001)),
            (write(0x4C2, 1 << 48), Seen(1, 1 << 48)),
            (write(0x309, 0x80000001), Seen(0, 0x80000001)),
            (rdpmc(0x40000000), Seen(0, 0x80000001)),
            (rdpmc(0x80000000), FAULT),
            (read(0x345), Seen(0, 0x2000)),
        ],
    ),
    "widths of 5.0": (
        OLD,
        [
            (write(0x4C2, 1), Seen(1, 1)),
            (write(0x309, 0x80000001), Seen(0, 0x80000001)),
            (rdpmc(0x40000000), Seen(0, 0xFFFF80000001)),
            (rdpmc(0xC0000000), Seen(0, 0x80000001)),
            (read(0x345), FAULT),
            (read(0x390), Seen(0, 0)),
        ],
    ),
    # Fixed counter 0 at CPL 3 counts two instructions a cycle, 1 at CPL 0 the kernel's cycles.
    "levels": (
        RFC,
        [
            (write(0x38D, 0x12), Seen(0, 0x12)),
            (write(0x38F, 0x300000000), Seen(0, 0x300000000)),
            (code(50), Seen(0, 50)),
            (kernel_code(30), Seen(0, 30)),
            (rdpmc(0x40000000), Seen(0, 100)),
            (rdpmc(0x40000001), Seen(0, 30)),
        ],
    ),
    # The write of EVENTSEL counts, two emulated instructions at CPL 0, two reads; one that faults does not.
    "emulated": (
        NEW,
        [
            (write(0x186, 0x4200C0), Seen(0, 0x4200C0)),
            (emulated(), Seen(0, 0)),
            (emulated(branch=True), Seen(0, 0)),
            (emulated(user=True), Seen(0, 0)),
            (read(0xC1), Seen(0, 3)),
            (read(0xC1), Seen(0, 4)),
            (read(0x391), FAULT),
            (rdpmc(0), Seen(0, 5)),
        ],
    ),
    "emulated by 5.0": (
        OLD,
        [
            (write(0x186, 0x4200C0), Seen(0, 0x4200C0)),
            (emulated(), Seen(0, 0)),
            (read(0xC1), Seen(0, 0)),
        ],
    ),
    "version 1": (
        Setup("optimized", version=1),
        [
            (write(0x186, 0x41003C), Seen(0, 0x41003C)),
            (code(7), Seen(0, 7)),
            (rdpmc(0), Seen(0, 7)),
            (read(0x38F), FAULT),
            (read(0x309), FAULT),
            (rdpmc(0x40000000), FAULT),
        ],
    ),
    "a filter": (
        Setup("optimized", filter=Filter("deny", (0x00C4,), 1)),
        [
            (write(0x186, 0x4100C4), Seen(0, 0x4100C4)),
            (write(0x187, 0x41003C), Seen(0, 0x41003C)),
            (write(0x38D, 0x22), Seen(0, 0x22)),
            (write(0x38F, 0x700000003), Seen(0, 0x700000003)),
            (code(7), Seen(0, 7)),
            (rdpmc(0), Seen(0, 0)),
            (rdpmc(1), Seen(0, 7)),
            (rdpmc(0x40000000), Seen(0, 0)),
            (rdpmc(0x40000001), Seen(0, 7)),
        ],
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_twin_says_what_was_worked_out_by_hand(name: str):
    setup, steps = EXAMPLES[name]
    first = START if setup.version > 1 else ()
    found = expected(setup, [*first, *(step for step, _ in steps)])[len(first) :]
    assert [each.seen for each in found] == [seen for _, seen in steps]
