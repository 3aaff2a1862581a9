"""The suite: cases carried out by a way in, held against the twin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from itertools import groupby
from typing import NamedTuple

from tests.conformance.setup import Seen
from tests.conformance.table import Case, Expected, cases, expected
from tests.conformance.ways import InKernels, StuckError, Way, quiet


class Failure(NamedTuple):
    """A case that did not go as its rules say: the first step at which it went another way."""

    case: Case
    way: str
    step: int
    wanted: Seen
    found: Seen | str

    def __str__(self) -> str:
        at = f"step {self.step} ({self.case.steps[self.step]})"
        return f"{self.case}\n  {self.way}, {at}: wanted {self.wanted}, found {self.found}"


@cache
def all_expected() -> list[list[Expected]]:
    """Return what is expected of every case, in the table's order."""
    return [expected(case.setup, case.steps) for case in cases()]


def check(way: Way, case: Case, wants: list[Expected] | None = None) -> Failure | None:
    """Carry a case out; return how it failed, None if it did not."""
    wants = expected(case.setup, case.steps) if wants is None else wants
    way.reset()
    for number, (step, want) in enumerate(zip(case.steps, wants, strict=True)):
        try:
            found = way.step(step)
        except StuckError as error:
            return Failure(case, way.name, number, want.seen, str(error))
        if not want.fits(found):
            return Failure(case, way.name, number, want.seen, found)
    return None


def run(chosen: Iterable[Case], kind: type[Way] = InKernels) -> Iterator[Failure]:
    """Carry cases out, one way built for each setup; yield those that fail."""
    with quiet():
        for setup, group in groupby(chosen, key=lambda case: case.setup):
            way = kind(setup)
            for case in group:
                failure = check(way, case) if way.can_do(case) else None
                if failure is not None:
                    yield failure
