"""The page in docs/ is what the rules and cases make of it, and the image's tests add up."""

from __future__ import annotations

import pytest

from tests.conformance import image, report
from tests.conformance.table import FAMILIES, cases, rules


def test_the_page_is_up_to_date():
    assert report.PATH.read_text() == report.text(), "run `make conformance`"


def test_each_rule_has_a_row_and_each_cell_its_cases():
    lines = report.text().splitlines()
    found: dict[str, set[str]] = {}
    for case in cases():
        for number in case.rules:
            found.setdefault(number, set()).add(case.setup.family)
    for number, rule in rules().items():
        assert sum(line.startswith(f"| {number} |") for line in lines) == 1, number
        for family in FAMILIES:
            claims = report.cell(rule, family) != "-"
            assert not claims or family in found[number], f"{number} says something of {family}"


@pytest.mark.parametrize(
    ("run", "tests", "skipped", "failures"),
    [
        # 2 * (4 + 24 + 3 + 14 + 1 + 20 + 1 + 2) + 4 + 1
        (image.Run("legacy", "7.0"), 143, 14, 0),
        (image.Run("optimized", "7.0", ref_cycles=True), 151, 14, 0),
        (image.Run("optimized", "7.0", prefix=False), 135, 14, 0),
        # One pass; four tests of emulated instructions, five of instructions behind an emulated WRMSR, three
        # fixed counters, one status bit.
        (image.Run("legacy", "5.0"), 70, 0, 13),
        (image.Run("optimized", "5.0"), 70, 0, 12),
        (image.Run("optimized", "5.0", prefix=False), 66, 0, 8),
    ],
    ids=lambda value: value.key if isinstance(value, image.Run) else str(value),
)
def test_the_image(run: image.Run, tests: int, skipped: int, failures: int):
    assert (image.tests(run), image.skipped(run)) == (tests, skipped)
    assert sum(image.failures(run).values()) == failures
    assert set(image.measured()) <= {each.key for each in image.RUNS}


@pytest.mark.parametrize("run", image.RUNS, ids=lambda run: run.key)
def test_the_image_says_what_was_derived(run: image.Run):
    failures, skipped = sum(image.failures(run).values()), image.skipped(run)
    said = [f"{image.tests(run)} tests"]
    said += [f"{failures} unexpected failures"] if failures else []
    said += [f"{skipped} skipped"] if skipped else []
    assert image.measured()[run.key] == ", ".join(said)
