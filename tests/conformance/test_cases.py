"""Every case by both ways in, and that there are enough of them."""

from __future__ import annotations

import pytest

from tests.conformance.suite import run
from tests.conformance.table import FAMILIES, cases, is_plain_fault, rules
from tests.conformance.ways import WAYS, Way

SHOWN = 5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_cases(way: type[Way], family: str):
    failures = list(run([case for case in cases() if case.setup.family == family], way))
    shown = "\n".join(map(str, failures[:SHOWN]))
    assert not failures, f"{len(failures)} cases\n{shown}"


def test_there_are_thousands_and_few_are_plain_faults():
    assert len(cases()) == len(set(cases())) >= 2_000
    assert sum(map(is_plain_fault, cases())) <= len(cases()) / 4


def test_each_rule_has_a_case_in_every_family_that_it_is_about():
    found: dict[str, set[str]] = {}
    for case in cases():
        for rule in case.rules:
            found.setdefault(rule, set()).add(case.setup.family)
    missing = {number: rule.families - found.get(number, set()) for number, rule in rules().items()}
    assert {number: families for number, families in missing.items() if families} == {}
    assert found.keys() <= rules().keys()
