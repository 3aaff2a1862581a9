"""The table of cases: rule, setup, state before, accesses, and what to look at afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from tomllib import loads
from typing import Final, NamedTuple

from tests.conformance.counting import Twin
from tests.conformance.setup import WRMSR, Seen, Setup, Step

FAMILIES: Final = ("legacy 5.0", "legacy 7.0", "optimized 5.0", "optimized 7.0", "native")


class Rule(NamedTuple):
    """One rule of the reference.

    Parameters
    ----------
    number, text, source : str
        As `rules.toml` has them.
    only : tuple of str
        Families that it concerns.
    differs : dict
        By family: why it deviates there.
    absent : bool
        Whether it is about what is not offered.
    where : str
        Why no case here is about it: what else is.
    """

    number: str
    text: str
    source: str
    only: tuple[str, ...] = FAMILIES
    differs: dict[str, str] = {}
    absent: bool = False
    where: str = ""

    @property
    def families(self) -> set[str]:
        """The families of which some case has to be about this rule."""
        return set() if self.where else {*self.only, *self.differs}


class Case(NamedTuple):
    """Accesses of a guest, after some steps, and the reads that show the state they leave.

    Parameters
    ----------
    rules : tuple of str
        Numbers; the first is what the case is about.
    setup : Setup
    before, accesses, after : tuple of Step
    long : bool
        Whether its code runs for so long that it is carried out inside the kernels only.
    """

    rules: tuple[str, ...]
    setup: Setup
    before: tuple[Step, ...]
    accesses: tuple[Step, ...]
    after: tuple[Step, ...] = ()
    long: bool = False

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps in order."""
        return self.before + self.accesses + self.after

    def __str__(self) -> str:
        before = f"after {'; '.join(map(str, self.before))}: " if self.before else ""
        return f"{self.rules[0]} {self.setup}: {before}{'; '.join(map(str, (*self.accesses, *self.after)))}"


class Expected(NamedTuple):
    """What a twin expects of a step: what the guest sees, and by how much a word may be off."""

    seen: Seen
    slack: int = 0

    def fits(self, found: Seen) -> bool:
        """Return whether this is it."""
        if not self.slack or found.fault:
            return found == self.seen
        return found._replace(value=0) == self.seen._replace(value=0) and (
            abs(found.value - self.seen.value) <= self.slack
        )


@cache
def rules() -> dict[str, Rule]:
    """Return all rules by number."""
    table = loads(Path(__file__).with_name("rules.toml").read_text())["rule"]
    made = [Rule(**{**each, **({"only": tuple(each["only"])} if "only" in each else {})}) for each in table]
    found = {rule.number: rule for rule in made}
    assert len(found) == len(made), "a rule's number appears twice"
    return found


def expected(setup: Setup, steps: Iterable[Step], inverted: str = "") -> list[Expected]:
    """Return what the twin of a setup expects of steps, with one rule inverted or none."""
    twin = Twin(setup, inverted)
    return [Expected(twin.step(step), twin.slack(step)) for step in steps]


def is_plain_fault(case: Case) -> bool:
    """Return whether a case is about WRMSRs that all give #GP, for a reserved bit or a register not there."""
    results = expected(case.setup, case.before + case.accesses)[len(case.before) :]
    writes = all(step.kind == WRMSR for step in case.accesses)
    return writes and all(each.seen.fault for each in results)


@cache
def cases() -> tuple[Case, ...]:
    """Return all cases, those of a setup together."""
    from tests.conformance.cases import counting, filters, registers, switching

    found = [*registers.cases(), *counting.cases(), *filters.cases(), *switching.cases()]
    setups = list(dict.fromkeys(case.setup for case in found))
    return tuple(sorted(found, key=lambda case: setups.index(case.setup)))
