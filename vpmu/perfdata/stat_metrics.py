"""What perf stat prints behind a ``#``: ratios of two events of a session, as perf 6.1 works them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Ratio:
    """A metric of an event: over which other one, in what unit and how it is printed."""

    over: tuple[str, ...]
    unit: str
    factor: int = 100
    form: str = "{:7.2f}%"
    needs_total: bool = False


_BRANCHES: Final = ("branches", "branch-instructions")
_CYCLES: Final = ("cpu-cycles", "cycles")
RATIOS: Final = {
    "instructions": Ratio(_CYCLES, "insn per cycle", 1, "{:7.2f} ", needs_total=True),
    "branch-misses": Ratio(_BRANCHES, "of all branches"),
    "cache-misses": Ratio(("cache-references",), "of all cache refs", form="{:8.3f} %"),
    "L1-dcache-load-misses": Ratio(("L1-dcache-loads",), "of all L1-dcache accesses"),
    "L1-icache-load-misses": Ratio(("L1-icache-loads",), "of all L1-icache accesses"),
    "dTLB-load-misses": Ratio(("dTLB-loads",), "of all dTLB cache accesses"),
    "iTLB-load-misses": Ratio(("iTLB-loads",), "of all iTLB cache accesses"),
}
_NO_RATIO: Final = dict.fromkeys(_CYCLES, "Ghz")
"""Without a clock among the events perf cannot say this; its JSON names the unit all the same."""
NO_METRIC: Final = "(null)"
"""What perf 6.1 names the unit in JSON where an event has no metric."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric as it is printed; without a value it is only a unit."""

    unit: str
    value: float | None = None
    form: str = ""

    @property
    def text(self) -> str:
        """The value as text and CSV have it."""
        return "" if self.value is None else self.form.format(self.value)


def metric(events: Sequence[str], scaled: Sequence[int], index: int) -> Metric:
    """Return the metric of an event.

    Parameters
    ----------
    events : sequence of str
        The session's events, as they were given.
    scaled : sequence of int
        Their counts; 0 for what was not counted.
    index : int
        Which of them.
    """
    name, _, modifiers = events[index].partition(":")
    if name not in RATIOS:
        return Metric(_NO_RATIO.get(name, NO_METRIC))
    ratio = RATIOS[name]
    # Events that count at other privilege levels are not compared.
    totals = [
        count
        for event, count in zip(events, scaled, strict=True)
        if event.partition(":")[0] in ratio.over and _levels(event) == _level_set(modifiers)
    ]
    if not totals or (ratio.needs_total and not sum(totals)):
        return Metric(ratio.unit)
    total = sum(totals) / len(totals)
    value = scaled[index] / total if ratio.factor == 1 else scaled[index] / total * 100.0 if total else 0.0
    return Metric(ratio.unit, value, ratio.form)


def _levels(event: str) -> frozenset[str]:
    return _level_set(event.partition(":")[2])


def _level_set(modifiers: str) -> frozenset[str]:
    return frozenset(modifiers or "uk")
