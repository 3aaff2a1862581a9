"""The mutation run: one mask, width, comparison or update of the kernels is flipped; the suite has to notice.

The kernels run uncompiled (``NUMBA_DISABLE_JIT=1``), so that a mutant costs no compilation: a process that
has loaded everything forks, the child puts the mutant's code into the function that is there, and runs cases
until one fails. Cases that caught others come first, then those of every rule in turn.

``python -m tests.conformance.mutants`` prints a line for each mutant; ``--only TEXT`` chooses some, ``--list``
shows them, ``--compiled N`` also has every N-th compiled, in a copy of the sources: it has to end the same way.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from tomllib import loads
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
MODULES: Final = (
    "msr",
    "integers",
    "hardware",
    "designs.common",
    "designs.filter",
    "designs.access",
    "designs.legacy",
    "designs.optimized",
    "designs.native",
)
FUNCTIONS: Final = {"integers": {"sign_extend32", "lowest_bit"}}
"""Of a module that is about more than registers: the functions that are."""
BOOKKEEPING: Final = {"still", "book_grants", "vcpu_cost"}
"""Functions about time that is lost and time that is spent, which no register shows."""
_ACCOUNTS: Final = ("cost(", "P_CAUSES", "P_EXITS", "exits_ns", "ns +", "+= ns", "COST_")
"""What makes an expression one of those."""
_TAGS: Final = ("REGISTER_", "STOP_", "OUT", "ON", "_REQUESTS", "_SLOTS")
"""Constants that are names or sizes, not words of a register."""
DESIGN_OF: Final = {"designs.legacy": "legacy", "designs.optimized": "optimized", "designs.native": "native"}
SECONDS: Final = 300
"""What a mutant may take; one that hangs is noticed by a case's own limit."""
CASE_SECONDS: Final = 10

_FLIPS: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
}
_SHIFTS: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}


class Mutant(NamedTuple):
    """One change of the kernels.

    Parameters
    ----------
    module : str
        Below `vpmu.kernels`.
    function : str
        Name; of a constant, its name.
    kind, change : str
        What is flipped, and how it looks.
    number : int
        Which one of the same look in the function.
    tree : ast.Module, optional
        The module with the change; None for a constant.
    value : int
        A constant's other value.
    """

    module: str
    function: str
    kind: str
    change: str
    number: int
    tree: ast.Module | None = None
    value: int = 0

    @property
    def name(self) -> str:
        """What it is called in the report and in `mutants.toml`."""
        again = f" #{self.number}" if self.number else ""
        return f"{self.module}.{self.function}: {self.change}{again}"


# -- what can be flipped --


class _Flip(NamedTuple):
    kind: str
    change: str
    old: ast.AST
    new: ast.AST


def _flips(node: ast.AST) -> Iterator[_Flip]:
    """Return the flips of one node."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _FLIPS:
        new: ast.AST = ast.Compare(node.left, [_FLIPS[type(node.ops[0])]()], node.comparators)
        yield _of("comparison", node, new)
    elif isinstance(node, ast.BinOp):
        yield from _operator_flips(node)
    elif isinstance(node, ast.BoolOp):
        yield _of("comparison", node, ast.BoolOp(_other(node.op), node.values))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield _of("comparison", node, node.operand)
    elif isinstance(node, ast.Assign | ast.AugAssign) and _updates_state(node):
        yield _Flip("update", f"drop {ast.unparse(node)}", node, ast.Pass())


def _of(kind: str, old: ast.AST, new: ast.AST) -> _Flip:
    return _Flip(kind, f"{ast.unparse(old)} -> {ast.unparse(new)}", old, new)


def _other(op: ast.boolop) -> ast.boolop:
    return ast.Or() if isinstance(op, ast.And) else ast.And()


def _operator_flips(node: ast.BinOp) -> Iterator[_Flip]:
    if isinstance(node.op, ast.BitAnd):
        right = node.right
        negated = isinstance(right, ast.UnaryOp) and isinstance(right.op, ast.Invert)
        yield _of("mask", node, ast.BinOp(node.left, ast.BitAnd(), right.operand) if negated else node.left)  # type: ignore[attr-defined]
    elif isinstance(node.op, ast.BitOr):
        yield _of("mask", node, node.left)
    elif isinstance(node.op, ast.BitXor):
        yield _of("mask", node, ast.BinOp(node.left, ast.BitOr(), node.right))
    elif type(node.op) in _SHIFTS:
        yield _of("width", node, ast.BinOp(node.left, _SHIFTS[type(node.op)](), node.right))
    elif isinstance(node.op, ast.Add | ast.Sub) and not isinstance(node.left, ast.Name):
        yield _of("width", node, node.left)


def _updates_state(node: ast.Assign | ast.AugAssign) -> bool:
    target = node.target if isinstance(node, ast.AugAssign) else node.targets[0]
    return isinstance(target, ast.Subscript) and ast.unparse(target.value) == "s"


class _Replace(ast.NodeTransformer):
    """Puts one node in the place of another, which is found by its identity."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        """Return what stands in a node's place."""
        return ast.copy_location(self.new, node) if node is self.old else super().generic_visit(node)


def _source(module: str) -> str:
    return Path(ROOT, "kernels", *module.split(".")).with_suffix(".py").read_text()


def _functions(module: str, tree: ast.Module) -> Iterator[ast.FunctionDef]:
    wanted = FUNCTIONS.get(module)
    for node in tree.body:
        chosen = isinstance(node, ast.FunctionDef) and (wanted is None or node.name in wanted)
        if chosen and node.name not in BOOKKEEPING:
            yield node


def _column_offsets(node: ast.AST) -> set[int]:
    """Return the nodes that only say where in the arena a word is: ``v + V_EVENTSEL + slot``."""
    return {
        id(inner)
        for each in ast.walk(node)
        if isinstance(each, ast.Subscript) and ast.unparse(each.value) == "s"
        for inner in ast.walk(each.slice)
    }


def _function_mutants(module: str) -> Iterator[Mutant]:
    tree = ast.parse(_source(module))
    for function in _functions(module, tree):
        seen: Counter[str] = Counter()
        skipped = _column_offsets(function)
        for node in ast.walk(function):
            for flip in () if id(node) in skipped else _flips(node):
                if any(each in flip.change for each in _ACCOUNTS):
                    continue
                memo: dict[int, Any] = {id(flip.old): flip.old}
                changed = _Replace(flip.old, flip.new).visit(copy.deepcopy(tree, memo))
                yield Mutant(module, function.name, flip.kind, flip.change, seen[flip.change], changed)
                seen[flip.change] += 1


def _names_used() -> set[str]:
    """Return every name that a function of the modules to be flipped uses."""
    trees = (ast.parse(_source(module)) for module in MODULES)
    functions = (each for tree in trees for each in tree.body if isinstance(each, ast.FunctionDef))
    return {node.id for each in functions for node in ast.walk(each) if isinstance(node, ast.Name)}


def _constant_mutants(module: str) -> Iterator[Mutant]:
    """Flip the lowest and the highest bit of each constant, and set the bit above it."""
    import numpy as np

    if module == "integers":
        return
    loaded = importlib.import_module(f"vpmu.kernels.{module}")
    tree = ast.parse(Path(str(loaded.__file__)).read_text())
    used = _names_used()
    for node in tree.body:
        if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)):
            continue
        name = node.targets[0].id
        value = getattr(loaded, name)
        if not isinstance(value, np.uint64) or "U64(" not in ast.unparse(node.value):
            continue
        if name.startswith(_TAGS) or name not in used:
            continue
        word = int(value)
        bits = {word & -word, 1 << max(word.bit_length() - 1, 0), 1 << min(word.bit_length(), 63)}
        for bit in sorted(bits - {0}):
            yield Mutant(module, name, "mask", f"{word:#x} -> {word ^ bit:#x}", 0, None, word ^ bit)


def mutants() -> list[Mutant]:
    """Return all mutants in the order of the sources."""
    return [
        mutant for module in MODULES for mutant in (*_constant_mutants(module), *_function_mutants(module))
    ]


# -- putting one in --


def _code_of(code: CodeType, path: tuple[str, ...]) -> CodeType:
    """Return the code object of a function, by the names of what it stands in."""
    if not path:
        return code
    (found,) = [each for each in code.co_consts if isinstance(each, CodeType) and each.co_name == path[0]]
    return _code_of(found, path[1:])


def _functions_named(module: ModuleType, name: str) -> Iterator[tuple[FunctionType, tuple[str, ...]]]:
    """Return the function objects made by a definition, with the way to their code."""
    function = getattr(module, name)
    yield function, (name,)
    for made in list(sys.modules.values()):
        for value in list(vars(made).values()) if made else ():
            inner = isinstance(value, FunctionType) and value.__qualname__.startswith(f"{name}.<locals>.")
            if inner and value.__module__ == module.__name__:
                yield value, (name, value.__name__)


def apply(mutant: Mutant) -> None:
    """Put a mutant into the kernels that this process has loaded, for good."""
    import numpy as np

    module = importlib.import_module(f"vpmu.kernels.{mutant.module}")
    if mutant.tree is None:
        old = getattr(module, mutant.function)
        for each in list(sys.modules.values()):
            if (getattr(each, "__name__", None) or "").startswith(("vpmu.kernels", "vpmu_dispatch")):
                for name, value in list(vars(each).items()):
                    if value is old:
                        setattr(each, name, np.uint64(mutant.value))
        return
    tree = ast.fix_missing_locations(mutant.tree)
    code = compile(tree, str(module.__file__), "exec")
    for function, path in _functions_named(module, mutant.function):
        function.__code__ = _code_of(code, path)


# -- running one --


class Verdict(NamedTuple):
    """What became of a mutant: the rule whose case failed and which case that was, or nothing."""

    rule: str
    case: int
    how: str
    seconds: float


class _Late(BaseException):
    """A case, or all of them, took too long."""


def _too_late(*_: object) -> None:
    raise _Late


def order(design: str | None) -> list[int]:
    """Return indexes of a design's cases: the first of each rule, then the second, and so on."""
    from tests.conformance.table import cases

    ranked: list[tuple[bool, int, int]] = []
    seen: Counter[tuple[str, str]] = Counter()
    for index, case in enumerate(cases()):
        if design in (None, case.setup.design):
            key = (case.rules[0], case.setup.family)
            # Setups of their own (filters, few counters) are built when they are first needed: later.
            special = case.setup.filter is not None or case.setup.nr_fixed != 3
            ranked.append((case.long, seen[key] + 3 * special, index))
            seen[key] += 1
    return [index for *_, index in sorted(ranked)]


def run_until_caught(indexes: Iterable[int]) -> Verdict:
    """Run cases until one fails."""
    import numpy as np

    from tests.conformance.setup import Setup
    from tests.conformance.suite import check
    from tests.conformance.table import cases
    from tests.conformance.ways import InKernels

    begun = time.monotonic()
    ways: dict[Setup, InKernels] = {}
    signal.signal(signal.SIGALRM, _too_late)
    with np.errstate(all="ignore"):
        for index in indexes:
            case = cases()[index]
            signal.alarm(CASE_SECONDS * (30 if case.long else 1))
            try:
                if case.setup not in ways:
                    ways[case.setup] = InKernels(case.setup)
                how = "" if check(ways[case.setup], case) is None else "differs"
            except _Late:
                how = "hangs"
            except Exception as error:
                how = type(error).__name__
            signal.alarm(0)
            if how:
                return Verdict(case.rules[0], index, how, time.monotonic() - begun)
            if time.monotonic() - begun > SECONDS:
                return Verdict("", -1, "out of time", time.monotonic() - begun)
    return Verdict("", -1, "", time.monotonic() - begun)


def _in_child(mutant: Mutant, indexes: list[int]) -> tuple[int, int]:
    """Run a mutant in a child process; return its id and the pipe that its verdict will come by."""
    out, into = os.pipe()
    pid = os.fork()
    if pid:
        os.close(into)
        return pid, out
    os.close(out)
    try:
        apply(mutant)
        answer: object = run_until_caught(indexes)
    except BaseException as error:
        answer = Verdict("", -1, f"broken: {error!r}", 0)
    os.write(into, json.dumps(answer).encode())
    os._exit(0)


def run(chosen: list[Mutant], jobs: int) -> Iterator[tuple[Mutant, Verdict]]:
    """Run mutants, some at a time; yield each with its verdict, in the order in which they end."""
    orders = {design: order(design) for design in (None, *DESIGN_OF.values())}
    catchers: Counter[int] = Counter()
    waiting = chosen[::-1]
    running: dict[int, tuple[int, Mutant]] = {}
    with DefaultSelector() as selector:
        while waiting or running:
            while waiting and len(running) < jobs:
                mutant = waiting.pop()
                all_ = orders[DESIGN_OF.get(mutant.module)]
                first = [index for index, _ in catchers.most_common(60) if index in set(all_)]
                pid, pipe = _in_child(mutant, first + all_)
                running[pipe] = (pid, mutant)
                selector.register(pipe, EVENT_READ)
            for key, _ in selector.select():
                pipe = key.fd
                pid, mutant = running.pop(pipe)
                verdict = Verdict(*json.loads(os.read(pipe, 1 << 16) or b'["", -1, "died", 0]'))
                selector.unregister(pipe)
                os.close(pipe)
                os.waitpid(pid, 0)
                if verdict.rule:
                    catchers[verdict.case] += 1
                yield mutant, verdict


# -- report --


def equivalents() -> dict[str, str]:
    """Return the mutants that change nothing a guest could see, and why."""
    table = loads(Path(__file__).with_name("mutants.toml").read_text())
    return {each["name"]: each["why"] for each in table.get("equivalent", [])}


def line(mutant: Mutant, verdict: Verdict, known: dict[str, str]) -> str:
    """Return a mutant's line of the report."""
    if verdict.rule:
        end = f"caught by {verdict.rule} ({verdict.how})"
    elif mutant.name in known:
        end = f"equivalent: {known[mutant.name]}"
    else:
        end = f"SURVIVED {verdict.how}".rstrip()
    return f"{mutant.kind:<11}{mutant.name}  {end}  {verdict.seconds:.1f} s"


def main(arguments: list[str] | None = None) -> int:
    """Run the mutants; return 1 if one survives that is not said to be equivalent, or the other way round."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.mutants")
    parser.add_argument("--only", default="", help="text in the names of the mutants to run")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--list", action="store_true", help="print the mutants and run none")
    parser.add_argument("--every", type=int, default=1, help="run every so many-th")
    chosen = parser.parse_args(arguments)
    if os.environ.get("NUMBA_DISABLE_JIT") != "1":
        os.environ["NUMBA_DISABLE_JIT"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "tests.conformance.mutants", *sys.argv[1:]])
    import tests.conformance.ways  # noqa: F401 - the kernels are loaded once, before the first fork

    found = [mutant for mutant in mutants() if chosen.only in mutant.name][:: chosen.every]
    if chosen.list:
        print("\n".join(f"{mutant.kind:<11}{mutant.name}" for mutant in found))
        return 0
    known = equivalents()
    caught, spared, wrong = 0, 0, []
    begun = time.monotonic()
    for mutant, verdict in run(found, chosen.jobs):
        print(line(mutant, verdict, known), flush=True)
        if bool(verdict.rule) == (mutant.name in known):
            wrong.append(mutant.name)
        caught += bool(verdict.rule)
        spared += not verdict.rule and mutant.name in known
    print(f"{len(found)} mutants in {time.monotonic() - begun:.0f} s: {caught} caught, {spared} equivalent")
    for name in wrong:
        print(f"{'said to be equivalent, but caught' if name in known else 'survived'}: {name}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
