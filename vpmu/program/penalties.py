"""What Callgrind cannot know: cycles, page walks and calls as branches, from stated per-event penalties.

Callgrind counts instructions, simulates two levels of cache and predicts branches; it has no notion of time
and no TLB.  ``penalties.toml`` states every number that fills the gap, with its source.  The arithmetic is
exact: fractions, rounded once per function.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Final

from msgspec import Struct

from vpmu.errors import UserError
from vpmu.program.callgrind import EVENTS, Cost
from vpmu.schema import convert, read_toml

PENALTIES_VERSION: Final = 1
DEFAULT_PENALTIES: Final = Path(__file__).with_name("penalties.toml")


class Penalty(Struct, frozen=True, forbid_unknown_fields=True):
    """One number and where it is from."""

    value: Fraction
    source: str


class Penalties(Struct, frozen=True, forbid_unknown_fields=True):
    """All of them; the names say the unit."""

    version: int
    name: str
    cycles_per_instruction: Penalty
    cycles_per_call: Penalty
    cycles_per_branch_miss: Penalty
    cycles_per_l1i_miss: Penalty
    cycles_per_l1d_load_miss: Penalty
    cycles_per_l1d_store_miss: Penalty
    cycles_per_ll_load_miss: Penalty
    cycles_per_ll_store_miss: Penalty
    cycles_per_tlb_walk: Penalty
    branches_per_call: Penalty
    dtlb_load_misses_per_l1d_load_miss: Penalty
    dtlb_load_misses_per_ll_load_miss: Penalty
    dtlb_store_misses_per_l1d_store_miss: Penalty
    dtlb_store_misses_per_ll_store_miss: Penalty
    itlb_misses_per_l1i_miss: Penalty
    pending_per_l1d_load_miss: Penalty
    pending_per_ll_load_miss: Penalty


@cache
def load_penalties(path: Path = DEFAULT_PENALTIES) -> Penalties:
    """Read a penalty file.

    Raises
    ------
    UserError
        The file is malformed, of another version, or holds a negative value or one without a source.
    """
    penalties = convert(read_toml(path), Penalties, str(path))
    if penalties.version != PENALTIES_VERSION:
        raise UserError(
            f"expected {PENALTIES_VERSION}, found {penalties.version}", file=str(path), key="version"
        )
    for name in Penalties.__struct_fields__[2:]:
        penalty: Penalty = getattr(penalties, name)
        if penalty.value < 0:
            raise UserError(
                f"must not be negative, found {penalty.value}", file=str(path), key=f"{name}.value"
            )
        if not penalty.source:
            raise UserError("must say where the value is from", file=str(path), key=f"{name}.source")
    if penalties.cycles_per_instruction.value == 0:
        raise UserError("must be above 0", file=str(path), key="cycles_per_instruction.value")
    return penalties


def estimate(cost: Cost, penalties: Penalties, *, calls: int = 0, is_plt: bool = False) -> dict[str, int]:
    """Return cycles and events of a Callgrind cost, by the program's names.

    Parameters
    ----------
    cost
        A function's own cost.
    penalties
        What fills the gaps.
    calls
        Calls that the function makes.
    is_plt
        It makes them by a jump, as a PLT stub does, which Callgrind has counted as an indirect branch.

    Returns
    -------
    dict
        ``cycles`` and every event of `vpmu.program.model.EVENT_KINDS`; what Callgrind counts is kept exactly.
    """
    n = dict(zip(EVENTS, cost, strict=True))
    branches = 0 if is_plt else round(calls * penalties.branches_per_call.value)
    events = {
        "instructions": n["Ir"],
        "branches": n["Bc"] + n["Bi"] + branches,
        "branch_misses": n["Bcm"] + n["Bim"],
        "cache_references": n["I1mr"] + n["D1mr"] + n["D1mw"],
        "cache_misses": n["ILmr"] + n["DLmr"] + n["DLmw"],
        "l1_dcache_loads": n["Dr"],
        "l1_dcache_stores": n["Dw"],
        "l1_dcache_load_misses": n["D1mr"]
        + n["D1mw"],  # perf's name, but L1D.REPLACEMENT counts stores' lines, too
        "l1_icache_load_misses": n["I1mr"],
        "l3_load_misses": n["DLmr"],
    }
    events |= _page_walks(n, penalties)
    walks = sum(_page_walks(n, penalties).values())
    stalls = n["D1mr"] * penalties.cycles_per_l1d_load_miss.value
    stalls += n["DLmr"] * penalties.cycles_per_ll_load_miss.value
    pending = n["D1mr"] * penalties.pending_per_l1d_load_miss.value
    pending += n["DLmr"] * penalties.pending_per_ll_load_miss.value
    cycles = (
        n["Ir"] * penalties.cycles_per_instruction.value
        + calls * penalties.cycles_per_call.value
        + events["branch_misses"] * penalties.cycles_per_branch_miss.value
        + n["I1mr"] * penalties.cycles_per_l1i_miss.value
        + n["D1mw"] * penalties.cycles_per_l1d_store_miss.value
        + n["ILmr"] * penalties.cycles_per_ll_load_miss.value
        + n["DLmw"] * penalties.cycles_per_ll_store_miss.value
        + walks * penalties.cycles_per_tlb_walk.value
        + stalls
    )
    at_least = 1 if any(cost) or calls else 0
    return (
        {"cycles": max(at_least, round(cycles))}
        | events
        | {"l1d_stalls": round(stalls), "l1d_pending": round(pending)}
    )


def _page_walks(n: dict[str, int], penalties: Penalties) -> dict[str, int]:
    loads = n["D1mr"] * penalties.dtlb_load_misses_per_l1d_load_miss.value
    loads += n["DLmr"] * penalties.dtlb_load_misses_per_ll_load_miss.value
    stores = n["D1mw"] * penalties.dtlb_store_misses_per_l1d_store_miss.value
    stores += n["DLmw"] * penalties.dtlb_store_misses_per_ll_store_miss.value
    fetches = n["I1mr"] * penalties.itlb_misses_per_l1i_miss.value
    return {
        "dtlb_load_misses": round(loads),
        "dtlb_store_misses": round(stores),
        "itlb_load_misses": round(fetches),
    }
