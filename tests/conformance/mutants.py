"""The mutation run: one mask, width, comparison or update of the kernels is flipped; the suite has to notice.

The kernels run uncompiled (``NUMBA_DISABLE_JIT=1``), so that a mutant costs no compilation: a process that
has loaded everything forks, and the child puts the mutant's code into the function that is there.

First the cases are run once with a probe at every flip, which says whether the flip would give anything else
there. A mutant then runs the cases in which it would, until one fails; one that never makes a difference
survives. ``python -m tests.conformance.mutants`` prints a line for each mutant; ``--only TEXT`` chooses some
and ``--list`` shows them.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from tomllib import loads
from typing import Any, Final, NamedTuple

from tests.conformance.flips import MODULES, ROOT, Mutant, apply, instrument, mutants

__all__ = ["ROOT", "equivalents", "main", "mutants"]

RULES: Final = 80
CASES: Final = 2
"""Of how many rules, and of each how many cases are remembered in which a flip makes a difference."""
BUILT_CASES: Final = 150
"""What else runs if a flip makes a difference while a machine is built: the first cases."""
DESIGNS_OF: Final = {
    "designs.common": ("legacy", "optimized"),
    "designs.filter": ("legacy", "optimized"),
    "designs.legacy": ("legacy",),
    "designs.optimized": ("optimized",),
    "designs.native": ("native",),
}
"""Whose cases run code of a module; of the others, all."""
CASE_SECONDS = 20
"""After which a case hangs."""
LONG_SECONDS: Final = 600


class Verdict(NamedTuple):
    """What became of a mutant: the rule whose case failed and which case that was, or nothing."""

    rule: str
    case: int
    how: str
    seconds: float


class _Late(BaseException):
    """A case took too long."""


def _too_late(*_: object) -> None:
    raise _Late


def order(most: int) -> list[int]:
    """Return indexes of cases: the first of each rule and family, then the second, and so on.

    Parameters
    ----------
    most : int
        How many of a rule and a family; 0 for all.
    """
    from tests.conformance.table import cases

    ranked: list[tuple[bool, int, int]] = []
    seen: Counter[tuple[str, str]] = Counter()
    for index, case in enumerate(cases()):
        key = (case.rules[0], case.setup.family)
        # Setups of their own (filters, few counters) are built when they are first needed: later.
        special = case.setup.filter is not None or case.setup.nr_fixed != 3
        if seen[key] < most or not most:
            ranked.append((case.long, seen[key] + 3 * special, index))
        seen[key] += 1
    return [index for *_, index in sorted(ranked)]


class _Runner:
    """Carries single cases out in this process, with a limit on each."""

    def __init__(self) -> None:
        from tests.conformance.setup import Setup
        from tests.conformance.ways import InKernels

        self._make = InKernels
        self._ways: dict[Setup, InKernels] = {}
        signal.signal(signal.SIGALRM, _too_late)

    def builds(self, index: int) -> str:
        """Build what a case needs; return how that fails, nothing if it does not."""
        from tests.conformance.table import cases

        setup = cases()[index].setup
        signal.alarm(CASE_SECONDS)
        try:
            if setup not in self._ways:
                self._ways[setup] = self._make(setup)
        except _Late:
            return "hangs"
        except Exception as error:
            return type(error).__name__
        finally:
            signal.alarm(0)
        return ""

    def fails(self, index: int) -> str:
        """Return how a case fails, nothing if it does not; what it needs is there."""
        from tests.conformance.suite import all_expected, check
        from tests.conformance.table import cases

        case = cases()[index]
        signal.alarm(LONG_SECONDS if case.long else CASE_SECONDS)
        try:
            return "" if check(self._ways[case.setup], case, all_expected()[index]) is None else "differs"
        except _Late:
            return "hangs"
        except Exception as error:
            return type(error).__name__
        finally:
            signal.alarm(0)


def run_until_caught(indexes: Iterable[int]) -> Verdict:
    """Run cases until one fails."""
    import numpy as np

    from tests.conformance.table import cases

    begun, runner = time.monotonic(), _Runner()
    with np.errstate(all="ignore"):
        for index in indexes:
            how = runner.builds(index) or runner.fails(index)
            if how:
                return Verdict(cases()[index].rules[0], index, how, time.monotonic() - begun)
    return Verdict("", -1, "", time.monotonic() - begun)


def _reached(indexes: list[int]) -> dict[int, list[int]]:
    """Run cases with probes; return by mutant in which of them it would make a difference."""
    import numpy as np

    from tests.conformance.table import cases

    found: defaultdict[tuple[int, int], dict[str, list[int]]] = defaultdict(dict)
    now = -1

    def note(number: int, site: int) -> None:
        by_rule = found[number, site]
        # Another rule's case is more likely to show what this one did not.
        rule = cases()[now].rules[0] if now >= 0 else ""
        known = by_rule.setdefault(rule, [])
        if len(by_rule) <= RULES and now not in known:
            # The first of a rule are plain, the last have everything on.
            known[CASES:] = [*known[CASES:], now][-CASES:] if len(known) >= CASES else []
            known += [now] if len(known) < CASES else []

    runner = _Runner()
    instrument(note)
    with np.errstate(all="ignore"):
        for index in indexes:
            now = -1
            runner.builds(index)
            now = index
            assert not runner.fails(index), f"case {index} fails without a mutant: {cases()[index]}"
    merged: defaultdict[int, list[int]] = defaultdict(list)
    for (number, _), by_rule in found.items():
        merged[number] += [index for known in by_rule.values() for index in known]
    return dict(merged)


# -- processes --


def _in_child(work: Callable[[], Any]) -> tuple[int, int]:
    """Do something in a child process; return its id and the pipe that the answer comes by."""
    out, into = os.pipe()
    pid = os.fork()
    if pid:
        os.close(into)
        return pid, out
    os.close(out)
    try:
        answer = work()
    except BaseException as error:
        answer = ["", -1, f"broken: {error!r}", 0]
    with os.fdopen(into, "wb") as pipe:
        pipe.write(json.dumps(answer).encode())
    os._exit(0)


def _answer(pid: int, pipe: int) -> Any:
    with os.fdopen(pipe, "rb") as answers:
        text = answers.read()
    os.waitpid(pid, 0)
    return json.loads(text or b'["", -1, "died", 0]')


def all_reached(indexes: list[int], jobs: int) -> dict[int, list[int]]:
    """Return by mutant the cases in which it would make a difference; processes share the work."""
    shares = [indexes[job::jobs] for job in range(jobs)]
    children = [_in_child(partial(_reached, share)) for share in shares]
    found: defaultdict[int, list[int]] = defaultdict(list)
    for child in children:
        answer = _answer(*child)
        assert isinstance(answer, dict), answer
        for number, reached in answer.items():
            found[int(number)] += reached
    return dict(found)


def run(chosen: list[Mutant], jobs: int, most: int = 0) -> Iterator[tuple[Mutant, Verdict]]:
    """Run mutants, some at a time; yield each with its verdict, in the order in which they end."""
    everything, some = order(most), order(1)[:BUILT_CASES]
    reached = all_reached([index for index in everything if not _is_long(index)], jobs)
    numbers = {mutant: number for number, mutant in enumerate(mutants())}
    long = [index for index in everything if _is_long(index)]
    known, of_design = equivalents(), {module: _of_designs(everything, module) for module in MODULES}
    rank = {index: place for place, index in enumerate(everything)}
    catchers = Counter[int]()
    waiting = chosen[::-1]
    running: dict[int, tuple[int, Mutant]] = {}
    gc.freeze()
    with DefaultSelector() as selector:
        while waiting or running:
            while waiting and len(running) < jobs:
                mutant = waiting.pop()
                mine = sorted(set(reached.get(numbers[mutant], [])), key=lambda index: rank.get(index, -1))
                if -1 in mine:
                    mine = [*mine[1:], *some]
                if mine and _is_about_periods(mutant):
                    mine = [*mine, *long]
                if mine and mutant.name not in known:
                    mine = [*mine, *of_design[mutant.module]]
                first = [index for index, _ in catchers.most_common(200) if index in set(mine)]
                pid, pipe = _in_child(partial(_run_one, mutant, [*first, *mine]))
                running[pipe] = (pid, mutant)
                selector.register(pipe, EVENT_READ)
            for key, _ in selector.select():
                pid, mutant = running.pop(key.fd)
                selector.unregister(key.fd)
                verdict = Verdict(*_answer(pid, key.fd))
                if verdict.rule:
                    catchers[verdict.case] += 1
                yield mutant, verdict


def _of_designs(indexes: list[int], module: str) -> list[int]:
    """Return the cases that run code of a module, but for the long ones."""
    from tests.conformance.table import cases

    designs = DESIGNS_OF.get(module)
    return [i for i in indexes if not cases()[i].long and (not designs or cases()[i].setup.design in designs)]


def _is_about_periods(mutant: Mutant) -> bool:
    """Return whether a mutant may change when a counter that starts from 0 overflows: that takes its time."""
    return mutant.module == "designs.legacy" and mutant.function in ("_period", "perf_arguments")


def _is_long(index: int) -> bool:
    from tests.conformance.table import cases

    return cases()[index].long


def _run_one(mutant: Mutant, indexes: list[int]) -> Verdict:
    apply(mutant)
    return run_until_caught(indexes)


# -- report --


def equivalents() -> dict[str, str]:
    """Return the mutants that change nothing a guest could see, and why."""
    table = loads(Path(__file__).with_name("mutants.toml").read_text())
    return {name: each["why"] for each in table.get("equivalent", []) for name in each["names"]}


def undecided() -> list[str]:
    """Return the mutants that nobody has caught or shown to be equivalent."""
    table = loads(Path(__file__).with_name("mutants.toml").read_text())
    return list(table.get("undecided", []))


def line(mutant: Mutant, verdict: Verdict, known: dict[str, str]) -> str:
    """Return a mutant's line of the report."""
    if verdict.rule:
        end = f"caught by {verdict.rule} ({verdict.how})"
    elif mutant.name in known:
        end = f"equivalent: {known[mutant.name]}"
    else:
        end = f"SURVIVED {verdict.how}".rstrip()
    return f"{mutant.kind:<11}{mutant.name}  {end}  {verdict.seconds:.1f} s"


def main() -> int:
    """Run the mutants; return 1 if one survives that is not said to be equivalent, or the other way."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.mutants")
    parser.add_argument("--only", default="", help="text in the names of the mutants to run")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--list", action="store_true", help="print the mutants and run none")
    parser.add_argument("--most", type=int, default=0, help="cases of a rule and a family; 0 for all")
    parser.add_argument("--every", type=int, default=1, help="run every so many-th mutant")
    chosen = parser.parse_args()
    if os.environ.get("NUMBA_DISABLE_JIT") != "1":
        os.environ["NUMBA_DISABLE_JIT"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "tests.conformance.mutants", *sys.argv[1:]])
    import tests.conformance.ways  # noqa: F401 - the kernels are loaded once, before the first fork
    from tests.conformance.suite import all_expected

    found = [mutant for mutant in mutants() if chosen.only in mutant.name][:: chosen.every]
    if chosen.list:
        print("\n".join(f"{mutant.kind:<11}{mutant.name}" for mutant in found))
        return 0
    begun = time.monotonic()
    all_expected()
    known, wrong = equivalents(), []
    caught = spared = 0
    for mutant, verdict in run(found, chosen.jobs, chosen.most):
        print(line(mutant, verdict, known), flush=True)
        if bool(verdict.rule) == (mutant.name in known):
            wrong.append(mutant.name)
        caught += bool(verdict.rule)
        spared += not verdict.rule and mutant.name in known
    seconds = time.monotonic() - begun
    print(
        f"{len(found)} mutants in {seconds:.0f} s: {caught} caught, {spared} equivalent, {len(wrong)} wrong"
    )
    for name in wrong:
        print(f"{'said to be equivalent, but caught' if name in known else 'survived'}: {name}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
