"""Figures of one run, by the names that ``source.toml`` gives them (`from`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vpmu.results import ActionRow, DesignResult, ThreadRow

KERNEL: Final = "[kernel]"


def action(result: DesignResult, name: str) -> ActionRow:
    """Return a guest action's row; of one that never happened, zeros."""
    for row in result.actions:
        if row.action == name:
            return row
    return ActionRow(action=name, calls=0, median_ns=0, p99_ns=0, max_ns=0, total_ns=0)


def program_thread(result: DesignResult) -> ThreadRow:
    """Return the thread that is measured."""
    return next(row for row in result.threads if row.kind == "program")


def shares(result: DesignResult) -> dict[str, float]:
    """Return each function's share of the samples."""
    profile = result.profiles[0]
    return {row.name: row.samples / profile.samples for row in profile.functions} if profile.samples else {}


def basic_costs(result: DesignResult) -> dict[str, float]:
    """Return the mean cost, in ns, of host perf's basic operations in a run, out of its account."""
    account, host = result.accounting, result.host

    def mean(cause: str, count: str) -> float:
        return account.get(cause, 0) / host[count] if host.get(count) else 0.0

    create, release = mean("create", "creates"), mean("release", "releases")
    return {
        "create": create,
        "release": release,
        "first create": create + mean("reservation", "reservations"),
        "last release": release + mean("last release", "last releases"),
    }


def figure(origin: str, design: str, by_design: Mapping[str, DesignResult], named: frozenset[str]) -> float:
    """Return a figure of one seed's runs.

    Parameters
    ----------
    origin : str
        ``max:ACTION``, ``calls:ACTION``, ``ratio:ACTION`` (calls under legacy to those under optimized),
        ``samples``, ``share:FUNCTION``, ``share:other``, or ``cost:OPERATION``.
    design : str
    by_design : mapping
        The runs of one experiment and seed.
    named : frozenset of str
        Functions that have rows of their own.
    """
    kind, _, name = origin.partition(":")
    if kind == "ratio":
        return action(by_design["legacy"], name).calls / max(action(by_design["optimized"], name).calls, 1)
    result = by_design[design]
    if kind == "max":
        return action(result, name).max_ns
    if kind == "calls":
        return action(result, name).calls
    if kind == "samples":
        return result.profiles[0].samples
    if kind == "cost":
        return basic_costs(result)[name]
    found = shares(result)
    if name == "other":
        return sum(share for function, share in found.items() if function not in named | {KERNEL})
    return found.get(name, 0.0)
