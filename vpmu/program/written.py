"""Programs that a scenario writes: functions with shares and rates instead of a recorded profile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Protocol

from vpmu.errors import UserError
from vpmu.program.importer import FUNCTION_BYTES, PROGRAM_BASE
from vpmu.program.layout import ChainTable, Costs, Piece, apportion, lay_out, visits
from vpmu.program.model import EVENT_KINDS, PROGRAM_VERSION, Function, Phase, Program

SAME_EVENT = {"dtlb_loads": "l1_dcache_loads", "dtlb_stores": "l1_dcache_stores"}
"""On Broadwell perf counts both names of a pair by the same event (0x81D0, 0x82D0)."""


class FunctionRates(Protocol):
    """A function as a scenario gives it: `vpmu.scenario.model.Function` is one."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def share(self) -> Fraction:
        """Its part of the program's cycles, relative to the other functions' shares."""

    @property
    def ipc(self) -> Fraction:
        """Instructions per core cycle."""

    @property
    def rates(self) -> Mapping[str, Fraction]:
        """Events per instruction, by the names of `EVENT_KINDS`."""


def from_functions(name: str, functions: Iterable[FunctionRates], cycles: int) -> Program:
    """Make a program of functions that share its cycles and take turns in a loop.

    Parameters
    ----------
    name
        The program's name.
    functions
        At least one; shares are relative to their sum.
    cycles
        Core cycles of one repetition.

    Raises
    ------
    UserError
        A rate is of no known event, two names of one event disagree, or a number is out of range.
    """
    rates = list(functions)
    shares = apportion(cycles, [function.share for function in rates])
    costs = [_costs(function, part) for function, part in zip(rates, shares, strict=True)]
    symbols = tuple(
        Function(function.name, PROGRAM_BASE + index * FUNCTION_BYTES, FUNCTION_BYTES, name)
        for index, function in enumerate(rates)
    )
    order = [Piece(index, (index,), Fraction(1)) for index, part in enumerate(shares) if part]
    chains = ChainTable()
    iterations, body, tail = lay_out(visits(order), costs, symbols, chains)
    phases = [Phase("loop", iterations, tuple(body)), Phase("tail", 1, tuple(tail))]
    program = Program(
        PROGRAM_VERSION,
        name,
        "functions written in the scenario",
        symbols,
        tuple(chains.chains),
        tuple(phase for phase in phases if phase.segments),
    )
    try:
        program.encode()
    except ValueError as error:
        raise UserError(f"program {name}: {error}") from None
    return program


def _costs(function: FunctionRates, cycles: int) -> Costs:
    instructions = int(cycles * function.ipc)
    costs = {"cycles": cycles, "instructions": instructions}
    costs |= {event: int(instructions * rate) for event, rate in _rates(function).items()}
    return costs


def _rates(function: FunctionRates) -> dict[str, Fraction]:
    """Return the rates by the program's names for events."""
    given = {event: rate for event, rate in function.rates.items() if rate}
    rates: dict[str, Fraction] = {}
    for event, rate in given.items():
        own = SAME_EVENT.get(event, event)
        if own not in EVENT_KINDS or own == "instructions":
            raise UserError("the model has no rate for", key=function.name, found=event, allowed=EVENT_KINDS)
        if rates.setdefault(own, rate) != rate:
            raise UserError(f"{event} and {own} are the same event but differ", key=function.name)
    return rates
