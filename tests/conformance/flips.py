"""What can be flipped in the kernels of registers and counters, and what a flip makes of their code."""

from __future__ import annotations

import ast
import copy
import importlib
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
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
BOOKKEEPING: Final = {"still", "book_grants", "granted", "vcpu_cost"}
"""Functions about time that is lost and time that is spent, which no register shows."""
_ACCOUNTS: Final = ("cost(", "COST_", "P_CAUSES", "P_EXITS", "exits_ns", "ns +", "+= ns", "P_TICKED")
"""What makes an expression one of those."""
_TAGS: Final = (
    "REGISTER_",
    "STOP_",
    "OUT",
    "ON",
    "_REQUESTS",
    "_SLOTS",
    "_CROSSED",
    "_BUMPED",
    "_WRITTEN",
    "_SERVED",
)
"""Constants that are names, sizes or columns, not words of a register."""

_COMPARISONS: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
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
_PURE: Final = {
    *(
        "U64",
        "bool",
        "min",
        "len",
        "range",
        "slots_of",
        "lowest_bit",
        "sign_extend32",
        "slot_bit",
        "fixed_field",
    ),
    *("has_event", "locally_enabled", "globally_enabled", "fully_enabled", "interrupts"),
    *("perf_config",),
    *("_hw_slot", "filter_allows", "filter_allows_fixed", "_matches", "_of_p6", "_counts_emulated"),
    *("global_valid", "hw_interrupts", "event_kind", "constraint_mask", "changed_fields", "rdpmc_value"),
}
"""Functions that change nothing: others are not called a second time to see what a flip would give."""
_PROBE, _REACHED, _VALUE = "_conformance_probe", "_conformance_reached", "_conformance_value"
_WHOLE: Final[dict[type[ast.AST], str]] = {
    ast.If: "test",
    ast.While: "test",
    ast.For: "iter",
    **dict.fromkeys((ast.Return, ast.Assign, ast.AugAssign, ast.Expr), "value"),
}
"""Statements, and which of their expressions may use a constant."""


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
    at : int
        Which of the module's flips; -1 for a constant.
    value : int
        A constant's other value.
    """

    module: str
    function: str
    kind: str
    change: str
    number: int
    at: int = -1
    value: int = 0

    @property
    def name(self) -> str:
        """What it is called in the report and in `mutants.toml`."""
        again = f" #{self.number}" if self.number else ""
        return f"{self.module}.{self.function}: {self.change}{again}"


class Flip(NamedTuple):
    """A node of a module's tree, and what is to stand in its place."""

    function: str
    kind: str
    change: str
    old: ast.AST
    new: ast.AST


def _node_flips(function: str, node: ast.AST) -> Iterator[Flip]:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARISONS:
        new: ast.AST = ast.Compare(node.left, [_COMPARISONS[type(node.ops[0])]()], node.comparators)
        yield _flip(function, "comparison", node, new)
    elif isinstance(node, ast.BinOp):
        new_operation = _other_operation(node)
        if new_operation is not None:
            yield _flip(function, new_operation[0], node, new_operation[1])
    elif isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield _flip(function, "comparison", node, ast.BoolOp(other, node.values))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield _flip(function, "comparison", node, node.operand)
    elif isinstance(node, ast.Assign | ast.AugAssign) and _updates_state(node):
        yield Flip(function, "update", f"drop {ast.unparse(node)}", node, ast.Pass())


def _flip(function: str, kind: str, old: ast.AST, new: ast.AST) -> Flip:
    return Flip(function, kind, f"{ast.unparse(old)} -> {ast.unparse(new)}", old, new)


def _other_operation(node: ast.BinOp) -> tuple[str, ast.AST] | None:
    if isinstance(node.op, ast.BitAnd):
        if isinstance(node.right, ast.UnaryOp) and isinstance(node.right.op, ast.Invert):
            return "mask", ast.BinOp(node.left, ast.BitAnd(), node.right.operand)
        return "mask", node.left
    if isinstance(node.op, ast.BitOr):
        return "mask", node.left
    if isinstance(node.op, ast.BitXor):
        return "mask", ast.BinOp(node.left, ast.BitOr(), node.right)
    if type(node.op) in _SHIFTS:
        return "width", ast.BinOp(node.left, _SHIFTS[type(node.op)](), node.right)
    if isinstance(node.op, ast.Add | ast.Sub) and not isinstance(node.left, ast.Name):
        return "width", node.left
    return None


def _updates_state(node: ast.Assign | ast.AugAssign) -> bool:
    target = node.target if isinstance(node, ast.AugAssign) else node.targets[0]
    return isinstance(target, ast.Subscript) and ast.unparse(target.value) == "s"


def _column_offsets(node: ast.AST) -> set[int]:
    """Return the nodes that only say where in the arena a word is: ``v + V_EVENTSEL + slot``."""
    return {
        id(inner)
        for each in ast.walk(node)
        if isinstance(each, ast.Subscript) and ast.unparse(each.value) == "s"
        for inner in ast.walk(each.slice)
    }


def _bookkeeping(node: ast.AST) -> set[int]:
    """Return the nodes that only say what is booked as lost or spent: a bookkeeping function's arguments."""
    return {
        id(inner)
        for each in ast.walk(node)
        if isinstance(each, ast.Call) and isinstance(each.func, ast.Name) and each.func.id in BOOKKEEPING
        for inner in ast.walk(each)
    }


@cache
def _source(module: str) -> str:
    return Path(str(importlib.import_module(f"vpmu.kernels.{module}").__file__)).read_text()


def flips(module: str) -> tuple[ast.Module, list[Flip]]:
    """Return a module's tree and its flips, in an order that never changes."""
    tree = ast.parse(_source(module))
    wanted, found = FUNCTIONS.get(module), []
    for each in tree.body:
        if not isinstance(each, ast.FunctionDef) or each.name in BOOKKEEPING:
            continue
        if wanted is None or each.name in wanted:
            skipped = _column_offsets(each) | _bookkeeping(each)
            nodes = [node for node in ast.walk(each) if id(node) not in skipped]
            found += [flip for node in nodes for flip in _node_flips(each.name, node)]
    return tree, [flip for flip in found if not any(account in flip.change for account in _ACCOUNTS)]


def _function_mutants(module: str) -> Iterator[Mutant]:
    seen: Counter[tuple[str, str]] = Counter()
    for at, flip in enumerate(flips(module)[1]):
        look = (flip.function, flip.change)
        yield Mutant(module, flip.function, flip.kind, flip.change, seen[look], at)
        seen[look] += 1


@cache
def _names_used(module: str) -> set[str]:
    """Return every name that a function of a module uses."""
    functions = [each for each in ast.parse(_source(module)).body if isinstance(each, ast.FunctionDef)]
    return {node.id for each in functions for node in ast.walk(each) if isinstance(node, ast.Name)}


def _is_used(module: str, name: str) -> bool:
    """Return whether a constant is used, a private one in its own module."""
    return any(name in _names_used(each) for each in ((module,) if name.startswith("_") else MODULES))


def _constant_mutants(module: str) -> Iterator[Mutant]:
    """Flip the lowest bit of each constant, and the bit above its highest."""
    for node in ast.parse(_source(module)).body:
        if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)):
            continue
        name = node.targets[0].id
        if not ast.unparse(node.value).startswith("U64(") or module == "integers":
            continue
        if name.startswith(_TAGS) or not _is_used(module, name):
            continue
        word = int(getattr(importlib.import_module(f"vpmu.kernels.{module}"), name))
        for bit in sorted({word & -word, 1 << min(word.bit_length(), 63)} - {0}):
            yield Mutant(module, name, "mask", f"{word:#x} -> {word ^ bit:#x}", 0, -1, word ^ bit)


@cache
def mutants() -> tuple[Mutant, ...]:
    """Return all mutants in the order of the sources."""
    return tuple(
        mutant for module in MODULES for mutant in (*_constant_mutants(module), *_function_mutants(module))
    )


# -- putting code in --


_sites = itertools.count()


class _Replace(ast.NodeTransformer):
    """Puts one node in the place of another, which is found by its identity."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        """Return what stands in a node's place."""
        return ast.copy_location(self.new, node) if node is self.old else super().generic_visit(node)


def flipped(mutant: Mutant) -> ast.Module:
    """Return the tree of a mutant's module with its flip."""
    tree, found = flips(mutant.module)
    flip = found[mutant.at]
    changed: ast.Module = _Replace(flip.old, flip.new).visit(tree)
    return ast.fix_missing_locations(changed)


def _is_pure(node: ast.AST) -> bool:
    calls = [each.func for each in ast.walk(node) if isinstance(each, ast.Call)]
    return all(isinstance(each, ast.Name) and each.id in _PURE for each in calls)


class _Substitute(ast.NodeTransformer):
    """Puts another name in the place of one."""

    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = old, new

    def visit_Name(self, node: ast.Name) -> ast.Name:
        """Return the other name, if it is the one."""
        return ast.Name(self.new, node.ctx) if node.id == self.old else node


def _probe(number: int, value: Any, other: Any) -> ast.Call:
    """Return the call that compares an expression with another, which is not evaluated if it does things."""
    nothing = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
    second = ast.Lambda(nothing, copy.deepcopy(other)) if _is_pure(other) else ast.Constant(None)
    where = [ast.Constant(number), ast.Constant(next(_sites))]
    return ast.Call(ast.Name(_PROBE, ast.Load()), [*where, value, second], [])


class _Instrument(ast.NodeTransformer):
    """Lets every expression that can be flipped say when its flip would give something else.

    The flip stands in a function of its own, so that it is evaluated only there, and cannot hurt.

    Parameters
    ----------
    found : list of Flip
        Of the module; ``first`` is the number of the first one.
    constants : dict
        Names that constants have in this module, and the numbers of the mutants of each.
    """

    def __init__(self, found: list[Flip], first: int, constants: dict[str, list[int]]) -> None:
        self.at = {id(flip.old): (first + number, flip) for number, flip in enumerate(found)}
        self.constants = constants

    def visit(self, node: ast.AST) -> Any:
        """Return a node with its probes."""
        whole = getattr(node, _WHOLE[type(node)], None) if type(node) in _WHOLE else None
        before = copy.deepcopy(whole)
        made = self._visit(node)
        if before is not None:
            statement, part = made[-1] if isinstance(made, list) else made, _WHOLE[type(node)]
            setattr(statement, part, self._with_constants(before, getattr(node, part)))
        return made

    def _with_constants(self, before: ast.AST, value: Any) -> Any:
        """Return a statement's expression with a probe for each flip of a constant in it."""
        names = {each.id for each in ast.walk(before) if isinstance(each, ast.Name)}
        for name in sorted(names & self.constants.keys()):
            for number in self.constants[name]:
                other = _Substitute(name, f"{_VALUE}_{number}").visit(copy.deepcopy(before))
                value = _probe(number, value, other)
        return value

    def _visit(self, node: ast.AST) -> Any:
        if id(node) not in self.at:
            return super().generic_visit(node)
        number, flip = self.at[id(node)]
        if flip.kind == "update":
            where: list[ast.expr] = [ast.Constant(number), ast.Constant(next(_sites))]
            call = ast.Call(ast.Name(_REACHED, ast.Load()), where, [])
            return [ast.copy_location(ast.Expr(call), node), super().generic_visit(node)]
        return ast.copy_location(_probe(number, super().generic_visit(node), flip.new), node)


def _code_of(code: CodeType, path: tuple[str, ...]) -> CodeType:
    """Return the code object of a function, by the names of what it stands in."""
    if not path:
        return code
    (found,) = [each for each in code.co_consts if isinstance(each, CodeType) and each.co_name == path[0]]
    return _code_of(found, path[1:])


def _functions_named(module: ModuleType, name: str) -> Iterator[tuple[FunctionType, tuple[str, ...]]]:
    """Return the function objects made by a definition, with the way to their code."""
    yield getattr(module, name), (name,)
    for made in list(sys.modules.values()):
        for value in list(getattr(made, "__dict__", {}).values()):
            inner = isinstance(value, FunctionType) and value.__qualname__.startswith(f"{name}.<locals>.")
            if inner and value.__module__ == module.__name__:
                yield value, (name, value.__name__)


def _put(module: ModuleType, tree: ast.Module, functions: set[str]) -> None:
    code = compile(ast.fix_missing_locations(tree), str(module.__file__), "exec")
    for name in functions:
        for function, path in _functions_named(module, name):
            function.__code__ = _code_of(code, path)


def apply(mutant: Mutant) -> None:
    """Put a mutant into the kernels that this process has loaded, for good."""
    import numpy as np

    module = importlib.import_module(f"vpmu.kernels.{mutant.module}")
    if mutant.at >= 0:
        _put(module, flipped(mutant), {mutant.function})
        return
    old = getattr(module, mutant.function)
    for each in list(sys.modules.values()):
        if (getattr(each, "__name__", None) or "").startswith(("vpmu.kernels", "vpmu_dispatch")):
            for name, value in list(vars(each).items()):
                if value is old:
                    setattr(each, name, np.uint64(mutant.value))


def instrument(note: Callable[[int, int], None]) -> None:
    """Put probes into the kernels that this process has loaded, for good.

    Parameters
    ----------
    note : callable
        Is told the index in `mutants` of each mutant that makes a difference, and at which place of the
        sources, each time that it does.
    """

    import numpy as np

    def probe(number: int, site: int, value: Any, other: Callable[[], Any] | None) -> Any:
        try:
            same = other is not None and bool(other() == value)
        except Exception:
            same = False
        if not same:
            note(number, site)
        return value

    constants = [(number, mutant) for number, mutant in enumerate(mutants()) if mutant.at < 0]
    objects = {id(_constant(mutant)): mutant.function for _, mutant in constants}
    for module in [each for name, each in sys.modules.items() if name.startswith("vpmu.kernels.")]:
        name = module.__name__.removeprefix("vpmu.kernels.")
        here = {key for key, value in vars(module).items() if id(value) in objects}
        numbers = {key: [n for n, m in constants if _constant(m) is vars(module)[key]] for key in here}
        tree, found = flips(name) if name in MODULES else (ast.parse(_source(name)), [])
        first = next((n for n, m in enumerate(mutants()) if m.module == name and m.at == 0), 0)
        vars(module).update({_PROBE: probe, _REACHED: note})
        vars(module).update({f"{_VALUE}_{n}": np.uint64(m.value) for n, m in constants})
        functions = {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}
        if found or here:
            _put(module, _Instrument(found, first, numbers).visit(tree), functions)


def _constant(mutant: Mutant) -> Any:
    return getattr(importlib.import_module(f"vpmu.kernels.{mutant.module}"), mutant.function)
