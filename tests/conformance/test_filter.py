"""Filters that KVM_SET_PMU_EVENT_FILTER refuses are refused, by name (E4.10)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.setup import Filter, Setup
from vpmu.errors import UserError
from vpmu.scenario.load import parse_scenario


def table(**changes: Any) -> dict[str, Any]:
    """Return a scenario with an event filter that is changed."""
    made = Setup("legacy", filter=Filter("deny", (0x00C4,))).table()
    made["vm"][0]["event_filter"] |= changes
    return made


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"action": "refuse"}, "action"),
        ({"events": [0xC4] * 301}, "at most 300, found 301"),
        ({"events": [-1]}, r"events\[0\]"),
        ({"events": [0xC4, 1 << 16], "masked": True}, r"events\[1\].*found 0x10000"),
        ({"events": [1 << 32], "masked": True}, "found 0x100000000"),
        ({"fixed_counter_bitmap": 1 << 32}, "fixed_counter_bitmap"),
        ({"flags": 1}, "flags"),
    ],
)
def test_a_filter_that_is_none_is_named(changes: dict[str, Any], reason: str):
    with pytest.raises(UserError, match=reason):
        parse_scenario(table(**changes), file="host")


@pytest.mark.parametrize(
    "changes",
    [
        {"events": [0xC4] * 300},
        {"events": [1 << 40]},  # bits of a plain entry that mean nothing make it match nothing
        {"events": [0xC4 | 0xFF << 56 | 1 << 55], "masked": True},
        {"fixed_counter_bitmap": 0xFF},  # of counters that are not there
    ],
)
def test_a_filter_that_is_odd_is_taken(changes: dict[str, Any]):
    parse_scenario(table(**changes), file="host")
