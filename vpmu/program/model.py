"""The program: functions, call chains, and phases of segments, as files and scenarios hold it.

What the numbers mean to a guest is the kernels' (`vpmu.kernels.program`); this module checks them and hands
them on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from msgspec import Struct, field

from vpmu.errors import UserError
from vpmu.kernels import events as kinds
from vpmu.kernels.jit import Arena
from vpmu.kernels.program_layout import Phase as KernelPhase
from vpmu.kernels.program_layout import Segment as KernelSegment
from vpmu.kernels.program_layout import encode_program

if TYPE_CHECKING:
    from vpmu.program.written import FunctionRates

PROGRAM_VERSION: Final = 1

EVENT_KINDS: Final = {
    "instructions": int(kinds.KIND_INSTRUCTIONS),
    "branches": int(kinds.KIND_BRANCHES),
    "branch_misses": int(kinds.KIND_BRANCH_MISSES),
    "cache_references": int(kinds.KIND_CACHE_REFERENCES),
    "cache_misses": int(kinds.KIND_CACHE_MISSES),
    "l1_dcache_loads": int(kinds.KIND_L1D_LOADS),
    "l1_dcache_stores": int(kinds.KIND_L1D_STORES),
    "l1_dcache_load_misses": int(kinds.KIND_L1D_MISSES),
    "l1_icache_load_misses": int(kinds.KIND_L1I_MISSES),
    "dtlb_load_misses": int(kinds.KIND_DTLB_LOAD_MISSES),
    "dtlb_store_misses": int(kinds.KIND_DTLB_STORE_MISSES),
    "itlb_load_misses": int(kinds.KIND_ITLB_MISSES),
    "l1d_pending": int(kinds.KIND_L1D_PENDING),
    "l1d_stalls": int(kinds.KIND_STALL_L1D),
    "l3_load_misses": int(kinds.KIND_MEM_LOADS_RETIRED_L3_MISS),
}
"""A program's events, by perf's names where perf has one, and the kernels' kind of each."""


class ProgramError(UserError):
    """A profile or program file that cannot be used: file, line or key, what was found, what is expected."""


class Function(Struct, frozen=True, forbid_unknown_fields=True):
    """A function's symbol; its id is its index in the program.

    `address` is a guest virtual address and `size` is in bytes.  Profiles without addresses get synthetic
    ones.
    """

    name: str
    address: int
    size: int
    object: str = ""


class Segment(Struct, frozen=True, forbid_unknown_fields=True):
    """A run of cycles in one function.

    `cycles` are of one pass, `events` of all the phase's iterations together; `function` and `chain` are
    indices.
    """

    cycles: int
    function: int
    chain: int
    ip: int
    events: dict[str, int] = field(default_factory=dict)


class Phase(Struct, frozen=True, forbid_unknown_fields=True):
    """A loop body and how often it is repeated."""

    name: str
    iterations: int
    segments: tuple[Segment, ...]

    @property
    def cycles(self) -> int:
        """Core cycles of all iterations."""
        return self.iterations * sum(segment.cycles for segment in self.segments)


class Program(Struct, frozen=True, forbid_unknown_fields=True):
    """A program: the phases are executed in order, then again from the first, for ever.

    `chains` are call chains of function ids, outermost first; the last one is the function that executes.
    `source` says where the numbers are from.
    """

    version: int
    name: str
    source: str
    functions: tuple[Function, ...]
    chains: tuple[tuple[int, ...], ...]
    phases: tuple[Phase, ...]

    @property
    def cycles(self) -> int:
        """Core cycles of one repetition."""
        return sum(phase.cycles for phase in self.phases)

    def totals(self) -> dict[str, int]:
        """Events of one repetition, by name; the cycles as ``cycles``."""
        totals = {"cycles": self.cycles} | dict.fromkeys(EVENT_KINDS, 0)
        for _, segment in self._segments():
            for name, events in segment.events.items():
                totals[name] += events
        return totals

    def function_totals(self) -> tuple[dict[str, int], ...]:
        """Cycles and events that each function retires itself in one repetition, by function id."""
        totals = tuple({"cycles": 0} | dict.fromkeys(EVENT_KINDS, 0) for _ in self.functions)
        for phase, segment in self._segments():
            own = totals[segment.function]
            own["cycles"] += segment.cycles * phase.iterations
            for name, events in segment.events.items():
                own[name] += events
        return totals

    def find_symbol(self, ip: int) -> Function | None:
        """Return the function whose code holds an address, or None."""
        return next((f for f in self.functions if f.address <= ip < f.address + f.size), None)

    def encode(self, derived: Sequence[int] = ()) -> Arena:
        """Return the program's region of the arena.

        Parameters
        ----------
        derived : sequence of int
            The run's events with edge, inv or cmask, as `vpmu.kernels.events.derived_configs` returns them.
        """
        return encode_program(self.kernel_phases(), derived)

    def kernel_phases(self) -> list[KernelPhase]:
        """Return the phases as the kernels' encoder takes them."""
        return [
            KernelPhase(phase.iterations, [_to_kernel(s) for s in phase.segments]) for phase in self.phases
        ]

    @staticmethod
    def from_functions(name: str, functions: Iterable[FunctionRates], cycles: int) -> Program:
        """Make a program of functions with rates, as a scenario writes them; see `vpmu.program.written`."""
        from vpmu.program.written import from_functions

        return from_functions(name, functions, cycles)

    def _segments(self) -> Iterator[tuple[Phase, Segment]]:
        for phase in self.phases:
            for segment in phase.segments:
                yield phase, segment


def _to_kernel(segment: Segment) -> KernelSegment:
    counts = {EVENT_KINDS[name]: events for name, events in segment.events.items()}
    return KernelSegment(segment.cycles, segment.function, segment.chain, segment.ip, counts)
