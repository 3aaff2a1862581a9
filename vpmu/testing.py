"""The pytest plugin: a host with vCPUs in a user's own tests, and assertions on counts, PMIs, latencies.

It is loaded by pytest wherever vpmu is installed, so importing it loads nothing of the engine.  Tests that
use it are pytest-trio's::

    async def test_branches(vpmu_host):
        vcpu = vpmu_host("optimized").vcpu(rates={"branches": 0.2})
        await vcpu.wrmsr(0x186, 0x4300C4)

``examples/testing/`` is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from typing_extensions import TypeIs

    from vpmu.harness import Access, DriveError, GeneralProtection, Host, Vcpu
    from vpmu.results import CounterRow, DesignResult, RunResult

    MakeHost = Callable[..., Host]

__all__ = [
    "Access",
    "DriveError",
    "GeneralProtection",
    "Host",
    "Vcpu",
    "assert_counts",
    "assert_latency",
    "assert_pmis",
    "run_scenario",
]

_OF_HARNESS = ("Access", "DriveError", "GeneralProtection", "Host", "Vcpu")

_T = TypeVar("_T")


def __getattr__(name: str) -> object:
    """Load the engine when a test names something of it."""
    if name not in _OF_HARNESS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vpmu import harness

    return getattr(harness, name)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--vpmu-design FILE.py``: a design that is not built in, known by the file's name from then on."""
    group = parser.getgroup("vpmu", "vPMU emulator")
    group.addoption(
        "--vpmu-design", action="append", default=[], metavar="FILE.py", help="add a vPMU design of one file"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Add the designs that the command line names, before a test loads the engine."""
    for file in config.getoption("--vpmu-design"):
        from vpmu.kernels.designs.registry import add_design

        try:
            add_design(Path(file))
        except ValueError as error:
            raise pytest.UsageError(f"--vpmu-design: {error}") from None


@pytest.fixture
def vpmu_host() -> Iterator[MakeHost]:
    """Make hosts: call it as `vpmu.harness.Host`, any number of times.

    When the test is over, their guests are ended, and nothing of theirs may be left on the hardware.
    """
    from vpmu.harness import Host

    hosts: list[Host] = []

    def make(design: str = "optimized", **choices: Any) -> Host:
        hosts.append(Host(design, **choices))
        return hosts[-1]

    yield make
    for host in hosts:
        host.close()


@pytest.fixture
def vpmu_vcpu(vpmu_host: MakeHost) -> Vcpu:
    """Return the only vCPU of a quiet host with one physical CPU under the optimized design."""
    return vpmu_host().vcpu()


async def run_scenario(
    scenario: str | Path | Mapping[str, Any],
    *,
    design: str = "optimized",
    overrides: Sequence[str] = (),
    **choices: Any,
) -> DesignResult:
    """Run a whole scenario under one design and return its result.

    Parameters
    ----------
    scenario : path or mapping
        A scenario's file, or a table as `tomllib` reads one.
    design : str
        Name of a design.
    overrides : sequence of str
        Texts ``key=value``, as ``vpmu run --set`` takes them.
    **choices
        Fields of `vpmu.options.RunOptions`: ``workers``, ``messages`` and so on.

    Raises
    ------
    UserError
        For a mistake in the scenario or the choices.
    """
    from vpmu.execution import execute
    from vpmu.options import RunOptions
    from vpmu.scenario import load_scenario
    from vpmu.scenario.load import parse_scenario

    if isinstance(scenario, Mapping):
        loaded = parse_scenario(dict(scenario), overrides=list(overrides))
    else:
        loaded = load_scenario(scenario, list(overrides))
    result = await execute(loaded, RunOptions(designs=(design,), **choices))
    return next(iter(result.designs.values()))


def assert_counts(
    found: DesignResult | RunResult | Vcpu, expected: Mapping[str, int] | None = None, *, within: int = 0
) -> None:
    """Assert that counters read the truth, and, if given, what they read.

    Parameters
    ----------
    found : DesignResult, RunResult or Vcpu
        Every event of every ``stat`` session, or every counter that a vCPU has read.
    expected : mapping of event to count, optional
        For results: the sum of the event's counts over all sessions.
    within : int
        How many events a count may be off.

    Raises
    ------
    AssertionError
        Naming each count that is off; ValueError if an expected event was not counted at all.
    """
    __tracebackhide__ = True
    if _is_vcpu(found):
        wrong, reads = found.wrong_reads, found.reads
        assert wrong == 0, f"{wrong} of {reads} counter reads differ from the truth"
        return
    rows = [row for design in _designs(found) for row in design.counters]
    off = [row for row in rows if abs(row.count - row.truth) > within]
    assert not off, "; ".join(f"{_place(row)}: count {row.count}, truth {row.truth}" for row in off)
    for event, count in (expected or {}).items():
        counts = [row.count for row in rows if row.event == event]
        if not counts:
            raise ValueError(f"no session counted {event!r}")
        assert abs(sum(counts) - count) <= within, f"{event}: count {sum(counts)}, expected {count}"


def assert_pmis(found: DesignResult | Vcpu, expected: int | None = None, *, at_least: int = 0) -> None:
    """Assert how many PMIs guests got: exactly `expected`, or `at_least` so many.

    Raises
    ------
    AssertionError
        If it was another number.
    """
    __tracebackhide__ = True
    pmis = found.pmis if _is_vcpu(found) else found.host["PMIs"]
    if expected is not None:
        assert pmis == expected, f"{pmis} PMIs, expected {expected}"
    assert pmis >= at_least, f"{pmis} PMIs, expected at least {at_least}"


def assert_latency(
    found: DesignResult | Vcpu, action: str, *, max_ns: int | None = None, median_ns: int | None = None
) -> None:
    """Assert that a guest action takes no longer than `max_ns`, and its median no longer than `median_ns`.

    Parameters
    ----------
    found : DesignResult or Vcpu
        A result, or a vCPU's accesses so far.
    action : str
        An action of the result's table (``rdpmc``, ``enable global_ctrl``), or for a vCPU ``rdmsr``,
        ``wrmsr`` or ``rdpmc``.
    max_ns, median_ns : int, optional
        Limits in ns of virtual time.

    Raises
    ------
    AssertionError
        If it took longer; ValueError if it never happened.
    """
    __tracebackhide__ = True
    longest, median = _latency(found, action)
    if max_ns is not None:
        assert longest <= max_ns, f"{action}: at most {longest} ns, allowed {max_ns} ns"
    if median_ns is not None:
        assert median <= median_ns, f"{action}: median {median} ns, allowed {median_ns} ns"


def _latency(found: DesignResult | Vcpu, action: str) -> tuple[int, int]:
    """Return an action's longest latency and its median."""
    if not _is_vcpu(found):
        row = _known({row.action: row for row in found.actions}, action)
        return row.max_ns, row.median_ns
    by_operation: dict[str, list[int]] = {}
    for access in found.history:
        by_operation.setdefault(access.operation, []).append(access.cost_ns)
    costs = sorted(_known(by_operation, action))
    return costs[-1], costs[(len(costs) - 1) // 2]


def _known(rows: Mapping[str, _T], action: str) -> _T:
    if action not in rows:
        raise ValueError(f"no action {action!r} happened; there were: {', '.join(sorted(rows)) or 'none'}")
    return rows[action]


def _is_vcpu(found: object) -> TypeIs[Vcpu]:
    return hasattr(found, "wrong_reads")


def _designs(found: DesignResult | RunResult) -> list[DesignResult]:
    from vpmu.results import RunResult

    return list(found.designs.values()) if isinstance(found, RunResult) else [found]


def _place(row: CounterRow) -> str:
    return f"{row.vm}/{row.vcpu}/{row.session}/{row.event}"
