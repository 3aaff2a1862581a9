"""From a call graph to call chains: who calls whom with which part of the whole.

A call graph does not say which of a function's cycles belong to which of its callers.  As gprof does, a
callee's cost is distributed over its callers in proportion to the inclusive cost of their calls (Graham,
Kessler, McKusick: "gprof: a Call Graph Execution Profiler", 1982).  A chain that would enter a function a
second time is cut there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final

from vpmu.program.layout import Piece

SMALLEST_PART: Final = Fraction(1, 1000)
"""Chains below this part of the program's cycles, callees included, are not told apart."""
HOT_PART: Final = Fraction(1, 200)
"""A context with this part of the program's cycles is in the hot loop, if there is room."""
LOOP_PART: Final = Fraction(9, 10)
"""Where these do not make up this part of the program's cycles, smaller ones are in the loop, too."""
MOST_CONTEXTS: Final = 32
"""A body that visits this many contexts, callers before and after each callee, has at most 63 segments."""


@dataclass
class CallGraph:
    """Own cycles of each function, by id, and inclusive cycles of each call arc (caller, callee)."""

    self_cycles: list[int]
    arcs: dict[tuple[int, int], int]
    callees: dict[int, list[int]] = field(init=False, default_factory=dict)
    callers: dict[int, list[int]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for caller, callee in self.arcs:
            if caller != callee:
                self.callees.setdefault(caller, []).append(callee)
                self.callers.setdefault(callee, []).append(caller)

    def roots(self) -> list[int]:
        """Return the functions that nobody calls; if there are none, the one with the greatest cost."""
        functions = range(len(self.self_cycles))
        found = [function for function in functions if function not in self.callers]
        return found or [max(functions, key=self.inclusive)]

    def inclusive(self, function: int) -> int:
        """Return a function's own cycles and those of its calls."""
        return self.self_cycles[function] + sum(
            self.arcs[function, g] for g in self.callees.get(function, ())
        )

    def received(self, function: int) -> int:
        """Return the inclusive cycles of all calls to a function, its calls to itself excluded."""
        return sum(self.arcs[caller, function] for caller in self.callers.get(function, ()))

    def order(self) -> list[int]:
        """Return all functions in the order in which a walk down the calls meets them."""
        met: dict[int, None] = {}
        for start in [*self.roots(), *range(len(self.self_cycles))]:
            stack = [start]
            while stack:
                function = stack.pop()
                if function not in met:
                    met[function] = None
                    stack += reversed(self.callees.get(function, []))
        return list(met)

    def heaviest_chain(self, function: int) -> tuple[int, ...]:
        """Return the chain to a function through the caller with the greatest cost, again and again."""
        chain = [function]
        while callers := [caller for caller in self.callers.get(chain[-1], ()) if caller not in chain]:
            chain.append(max(callers, key=lambda caller: self.arcs[caller, chain[-1]]))
        return tuple(reversed(chain))


@dataclass
class Context:
    """A function in one call chain, outermost first, with its part of the function's own cycles."""

    chain: tuple[int, ...]
    cycles: Fraction
    callees: list[Context] = field(default_factory=list)

    def walk(self) -> Iterator[Context]:
        """Yield this context and all below it, callers first."""
        yield self
        for callee in self.callees:
            yield from callee.walk()


def context_tree(graph: CallGraph) -> list[Context]:
    """Return the contexts of the roots, with those below them that are worth telling apart."""
    least = sum(graph.self_cycles) * SMALLEST_PART
    return [_expand(graph, (root,), Fraction(1), least) for root in graph.roots()]


def _expand(graph: CallGraph, chain: tuple[int, ...], part: Fraction, least: Fraction) -> Context:
    function = chain[-1]
    context = Context(chain, part * graph.self_cycles[function])
    for callee in graph.callees.get(function, ()):
        cycles = part * graph.arcs[function, callee]
        if cycles >= least and cycles and callee not in chain:
            share = part * Fraction(graph.arcs[function, callee], graph.received(callee))
            context.callees.append(_expand(graph, (*chain, callee), share, least))
    return context


def loop_body(graph: CallGraph) -> list[Piece]:
    """Return one visit of the hot loop: a caller, its callee, the caller again, and so on down the tree."""
    tree = context_tree(graph)
    chosen = _hot_contexts(tree, sum(graph.self_cycles))
    return [piece for root in tree for piece in _visit(root, chosen)]


def _hot_contexts(tree: list[Context], total: int) -> set[tuple[int, ...]]:
    found = [context for root in tree for context in root.walk() if context.cycles]
    found.sort(key=lambda context: -context.cycles)
    covered = Fraction(0)
    chosen = set()
    for context in found[:MOST_CONTEXTS]:
        if context.cycles < total * HOT_PART and covered >= total * LOOP_PART:
            break
        chosen.add(context.chain)
        covered += context.cycles
    return chosen


def _visit(context: Context, chosen: set[tuple[int, ...]]) -> list[Piece]:
    below = [pieces for callee in context.callees if (pieces := _visit(callee, chosen))]
    if context.chain not in chosen:
        return [piece for pieces in below for piece in pieces]
    own = Piece(context.chain[-1], context.chain, context.cycles / (len(below) + 1))
    body = [own]
    for pieces in below:
        body += [*pieces, own]
    return body
