"""Events: what a program retires, what EVENTSEL asks for, and which counters may count it.

A *kind* is the index of something the model has a rate for. EVENTSEL names an event by its event select,
umask, edge, inv and cmask bits; `event_kind` maps these to a kind through a table that `encode_kinds` builds
once per run. Kinds below `KIND_TIME_FIRST` have a rate per core cycle, given by the program; the two
time-based kinds follow the clock; from `KIND_DERIVED_FIRST` on, a run numbers the combinations with edge, inv
or cmask that its scenario uses, and `derive_rate` computes their rates. An event outside the table is of
`KIND_NONE`: it counts nothing, as an undefined event does on hardware.

Names and codes: Linux's ``perf list`` and Intel's event list for Broadwell; counter
constraints: A.8.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NamedTuple

import numpy as np

from vpmu.kernels.integers import RATE_ONE, RATE_SHIFT, U0, U1, U2, U8, U32, u64min
from vpmu.kernels.jit import U64, Arena, kernel

# -- kinds --

KIND_CYCLES = U64(0)
KIND_INSTRUCTIONS = U64(1)
KIND_BRANCHES = U64(2)
KIND_BRANCH_MISSES = U64(3)
KIND_CACHE_REFERENCES = U64(4)
KIND_CACHE_MISSES = U64(5)
KIND_L1D_LOADS = U64(6)
KIND_L1D_STORES = U64(7)
KIND_L1D_MISSES = U64(8)
KIND_L1I_MISSES = U64(9)
KIND_DTLB_LOAD_MISSES = U64(10)
KIND_DTLB_STORE_MISSES = U64(11)
KIND_ITLB_MISSES = U64(12)
KIND_L1D_PENDING = U64(13)
KIND_STALL_L1D = U64(14)
KIND_MEM_LOADS_RETIRED_L3_MISS = U64(15)
KIND_TIME_FIRST = U64(16)
KIND_REF_CYCLES = U64(16)
KIND_BUS_CYCLES = U64(17)
KIND_DERIVED_FIRST = U64(18)
KINDS_MAX = U64(32)
KIND_NONE = U64(63)

FIXED_KIND = (KIND_INSTRUCTIONS, KIND_CYCLES, KIND_REF_CYCLES)
"""What fixed counter 0, 1 and 2 count (0x309, 0x30A, 0x30B)."""

# -- EVENTSEL --

EVENTSEL_EVENT = U64(0xFF)
EVENTSEL_UMASK = U64(0xFF00)
EVENTSEL_EDGE = U64(1 << 18)
EVENTSEL_INV = U64(1 << 23)
EVENTSEL_CMASK = U64(0xFF000000)
EVENTSEL_IN_TX = U64(1 << 32)
EVENTSEL_IN_TXCP = U64(1 << 33)

_CODE_MASK = EVENTSEL_EVENT | EVENTSEL_UMASK
_KEY_MASK = _CODE_MASK | EVENTSEL_EDGE | EVENTSEL_INV | EVENTSEL_CMASK
_KEY_WITHOUT_INV = _KEY_MASK & ~EVENTSEL_INV
_CMASK_SHIFT = 24
_STALL_CMASK = 12

KIND_CONFIG = (
    0x003C,
    0x00C0,
    0x00C4,
    0x00C5,
    0x4F2E,
    0x412E,
    0x81D0,
    0x82D0,
    0x0151,
    0x0280,
    0x0108,
    0x0149,
    0x0185,
    0x0148,
    0x0CA3 | _STALL_CMASK << _CMASK_SHIFT,
    0x20D1,
    0x0300,
    0x013C,
)
"""The config (low half of EVENTSEL) that each kind below `KIND_DERIVED_FIRST` answers to.

Note: 0x0300 is perf's pseudo code for fixed counter 2, and STALLS_L1D_MISS is defined with cmask 12 only.
"""


class PerfEvent(NamedTuple):
    """An event that perf knows by name: its config and its kind."""

    config: int
    kind: int


_NAMED_KINDS = {
    "cpu-cycles": KIND_CYCLES,
    "cycles": KIND_CYCLES,
    "instructions": KIND_INSTRUCTIONS,
    "branches": KIND_BRANCHES,
    "branch-instructions": KIND_BRANCHES,
    "branch-loads": KIND_BRANCHES,
    "branch-misses": KIND_BRANCH_MISSES,
    "branch-load-misses": KIND_BRANCH_MISSES,
    "cache-references": KIND_CACHE_REFERENCES,
    "cache-misses": KIND_CACHE_MISSES,
    "ref-cycles": KIND_REF_CYCLES,
    "bus-cycles": KIND_BUS_CYCLES,
    "L1-dcache-loads": KIND_L1D_LOADS,
    "L1-dcache-load-misses": KIND_L1D_MISSES,
    "L1-dcache-stores": KIND_L1D_STORES,
    "L1-icache-load-misses": KIND_L1I_MISSES,
    "dTLB-loads": KIND_L1D_LOADS,
    "dTLB-load-misses": KIND_DTLB_LOAD_MISSES,
    "dTLB-stores": KIND_L1D_STORES,
    "dTLB-store-misses": KIND_DTLB_STORE_MISSES,
    "iTLB-load-misses": KIND_ITLB_MISSES,
    "l1d_pend_miss.pending": KIND_L1D_PENDING,
    "cycle_activity.stalls_l1d_miss": KIND_STALL_L1D,
    "mem_load_uops_retired.l3_miss": KIND_MEM_LOADS_RETIRED_L3_MISS,
}

EVENTS = {name: PerfEvent(KIND_CONFIG[int(kind)], int(kind)) for name, kind in _NAMED_KINDS.items()}
"""Events by perf's name for them."""

_NOT_MODELLED = ("iTLB-loads", "LLC-loads", "LLC-load-misses", "LLC-stores", "LLC-store-misses", "node-loads",
                 "node-load-misses", "node-stores", "node-store-misses")  # fmt: skip

_KIND_OF_CONFIG = {config: kind for kind, config in enumerate(KIND_CONFIG)}


def normalize_config(config: int) -> int:
    """Return the bits of an EVENTSEL that choose what is counted: event, umask, edge, inv and cmask.

    INV has a meaning only with a cmask (SDM 18.2.1.1), so it is dropped without one.
    """
    if config & int(EVENTSEL_CMASK) == 0:
        return config & int(_KEY_WITHOUT_INV)
    return config & int(_KEY_MASK)


# -- derived kinds --


class Derivation(NamedTuple):
    """How a config's rate follows from a kind's: `derive_rate` takes the last three."""

    kind: int
    cmask: int
    inv: int
    edge: int


def derivation(config: int) -> Derivation:
    """Return what a config is derived from; cmask, inv and edge are 0 for a kind's own config.

    Parameters
    ----------
    config
        An EVENTSEL, or a config in its layout; what does not choose the event is ignored.

    Raises
    ------
    ValueError
        The model has no rate for the event.
    """
    config = normalize_config(config)
    if config in _KIND_OF_CONFIG:
        return Derivation(_KIND_OF_CONFIG[config], 0, 0, 0)
    code, cmask = config & int(_CODE_MASK), config >> _CMASK_SHIFT
    inv, edge = int(config & int(EVENTSEL_INV) != 0), int(config & int(EVENTSEL_EDGE) != 0)
    stall = code | cmask << _CMASK_SHIFT
    if _KIND_OF_CONFIG.get(stall) == KIND_STALL_L1D:
        return Derivation(int(KIND_STALL_L1D), 1, inv, edge)
    kind = _KIND_OF_CONFIG.get(code)
    if kind is None:
        raise ValueError(f"the model has no rate for event {code & 0xFF:#04x} with umask {code >> 8:#04x}")
    if kind >= KIND_TIME_FIRST:
        raise ValueError(f"the model has no rate for event {code:#06x} with edge, inv or cmask")
    return Derivation(kind, cmask, inv, edge)


def derived_configs(configs: Iterable[int]) -> list[int]:
    """Return those of some configs that need a derived kind: normalized, each once, in increasing order.

    The i-th is of kind ``KIND_DERIVED_FIRST + i`` in a run whose table `encode_kinds` builds from this list.

    Raises
    ------
    ValueError
        The model has no rate for one of them, or a run cannot have so many.
    """
    derived = sorted({normalize_config(config) for config in configs} - set(KIND_CONFIG))
    for config in derived:
        derivation(config)
    room = int(KINDS_MAX - KIND_DERIVED_FIRST)
    if len(derived) > room:
        raise ValueError(f"{len(derived)} events with edge, inv or cmask: a run can have {room}")
    return derived


@kernel
def derive_rate(rate: U64, cmask: U64, inv: U64, edge: U64) -> U64:
    """Return the rate that edge, inv and cmask make of an event's rate (SDM 18.2.1.1).

    Events are taken as evenly spread: with a rate of r a cycle has floor(r) or ceil(r) of them. The condition
    ``count >= cmask`` then holds in a share of clamp(r - (cmask - 1), 0, 1) of the cycles, and with INV in
    the others. With EDGE its rising edges are counted: cycles in and out of the condition are evenly spread,
    too, so the rarer of the two always stands alone and there are min(x, 1 - x) edges per cycle.

    Parameters
    ----------
    rate : uint64, 1/2**28 events per cycle
        Below `RATE_LIMIT`.
    cmask : uint64
        0..255. With 0 the events themselves are counted, unless `edge` asks for a condition: then it is as 1.
    inv : uint64
        0 or 1; without effect if `cmask` is 0.
    edge : uint64
        0 or 1.

    Returns
    -------
    uint64, 1/2**28 events per cycle
    """
    if cmask == U0:
        if edge == U0:
            return rate
        share = u64min(rate, RATE_ONE)
    else:
        below = (cmask - U1) << RATE_SHIFT
        share = U0
        if rate > below:
            share = u64min(rate - below, RATE_ONE)
        if inv != U0:
            share = RATE_ONE - share
    if edge != U0:
        share = u64min(share, RATE_ONE - share)
    return share


# -- from EVENTSEL to kind --

_SLOT_BITS = 7
_SLOT_SHIFT = U64(64 - _SLOT_BITS)
KINDS_WORDS = U64(1 + (1 << _SLOT_BITS))
"""Words of a kind table: a multiplier and the slots."""
_EMPTY_SLOT = 0xFFFFFFFF << 8 | int(KIND_NONE)
_KIND_MASK = U64(0xFF)
_MULTIPLIER_STEP = 0x9E3779B97F4A7C15


@kernel
def event_kind(s: Arena, kinds: U64, eventsel: U64) -> U64:
    """Return the kind that an EVENTSEL counts.

    USR, OS, pin control, INT, AnyThread, EN and everything above bit 31 play no part.

    Parameters
    ----------
    s : uint64[arena]
        The arena.
    kinds : uint64
        Offset of a table from `encode_kinds`.
    eventsel : uint64
        IA32_PERFEVTSELx, or a perf event's config.

    Returns
    -------
    uint64
        One of the ``KIND_`` constants, or `KIND_NONE`.
    """
    key = eventsel & _KEY_MASK
    if eventsel & EVENTSEL_CMASK == U0:
        key = eventsel & _KEY_WITHOUT_INV
    word = s[kinds + U1 + ((key * s[kinds]) >> _SLOT_SHIFT)]
    if word >> U8 == key:
        return word & _KIND_MASK
    return KIND_NONE


def encode_kinds(derived: Sequence[int]) -> Arena:
    """Return the table that `event_kind` looks events up in, for a run with these derived events.

    It is a perfect hash: the first multiplier of a fixed sequence that gives each event a slot of its own, so
    a look-up reads one slot and never probes.

    Parameters
    ----------
    derived
        As `derived_configs` returns it; the i-th becomes kind ``KIND_DERIVED_FIRST + i``.

    Returns
    -------
    uint64[KINDS_WORDS]

    Raises
    ------
    ValueError
        The list is not what `derived_configs` makes of it.
    """
    if list(derived) != derived_configs(derived):
        raise ValueError(f"not what derived_configs() returns: {[hex(config) for config in derived]}")
    keys = [*KIND_CONFIG, *derived]
    multiplier = _MULTIPLIER_STEP
    while len({_slot(key, multiplier) for key in keys}) < len(keys):
        multiplier = (multiplier * _MULTIPLIER_STEP + 2) % 2**64
    table = np.full(int(KINDS_WORDS), _EMPTY_SLOT, dtype=np.uint64)
    table[0] = multiplier
    for kind, key in enumerate(keys):
        table[1 + _slot(key, multiplier)] = key << 8 | kind
    return table


def _slot(key: int, multiplier: int) -> int:
    return (key * multiplier) % 2**64 >> int(_SLOT_SHIFT)


# -- constraints --

_FIXED_FLAGS = EVENTSEL_EDGE | EVENTSEL_INV | EVENTSEL_CMASK | EVENTSEL_IN_TX | EVENTSEL_IN_TXCP
_FIXED0 = U64(1 << 32)
_FIXED1 = U64(1 << 33)
_FIXED2 = U64(1 << 34)
_GP2 = U64(1 << 2)
_GP0_TO_3 = U64(0xF)
_INSTRUCTIONS = U64(0x00C0)
_CYCLES = U64(0x003C)
_REF_CYCLES = U64(0x0300)
_L1D_PEND_MISS = U64(0x0148)
_CYCLE_ACTIVITY_MASK = U64(0x08FF)
_CYCLE_ACTIVITY_L1D = U64(0x08A3)
_MEM_UOPS_RETIRED = U64(0xD0)  # and its neighbours 0xD1, MEM_LOAD_UOPS_RETIRED, and 0xD2, .._L3_HIT_RETIRED
_MEM_TRANS_RETIRED = U64(0xCD)


@kernel
def constraint_mask(eventsel: U64, nr_gp: U64, nr_fixed: U64) -> U64:
    """Return the counters that host perf lets an event use: intel_bdw_event_constraints, first hit.

    Parameters
    ----------
    eventsel : uint64
        A perf event's config in EVENTSEL's layout, IN_TX and IN_TXCP included.
    nr_gp, nr_fixed : uint64
        How many counters there are; at most 32 and 3. The table is cut to them.

    Returns
    -------
    uint64
        Bit i is GP counter i, bit 32+i is fixed counter i; 0 if no counter can count the event.
    """
    gp = (U1 << nr_gp) - U1
    fixed = ((U1 << nr_fixed) - U1) << U32
    code = eventsel & _CODE_MASK
    event = eventsel & EVENTSEL_EVENT
    if eventsel & _FIXED_FLAGS == U0:
        if code == _INSTRUCTIONS:
            return gp | (fixed & _FIXED0)
        if code == _CYCLES:
            return gp | (fixed & _FIXED1)
        if code == _REF_CYCLES:
            return fixed & _FIXED2
    mask = gp
    if code == _L1D_PEND_MISS or eventsel & _CYCLE_ACTIVITY_MASK == _CYCLE_ACTIVITY_L1D:
        mask = gp & _GP2
    elif event - _MEM_UOPS_RETIRED <= U2 or event == _MEM_TRANS_RETIRED:
        mask = gp & _GP0_TO_3
    if eventsel & EVENTSEL_IN_TXCP != U0:
        mask &= _GP2
    return mask


# -- perf's event syntax --


@dataclass(frozen=True)
class EventSpec:
    """One event as ``perf stat -e`` names it.

    Attributes
    ----------
    name
        The event's text, as it was given.
    config
        Event, umask, edge, inv and cmask, in EVENTSEL's layout.
    exclude_user, exclude_kernel
        What the modifiers leave out.
    """

    name: str
    config: int
    exclude_user: bool = False
    exclude_kernel: bool = False


_TERM_SHIFT = {"event": (0, 8), "umask": (8, 8), "edge": (18, 1), "inv": (23, 1), "cmask": (24, 8)}
_EXCLUDES = {"": (False, False), "u": (False, True), "k": (True, False), "uk": (False, False)}
_PMU_EVENT = re.compile(r"cpu/(?P<terms>[^/]*)/:?(?P<modifiers>.*)")
_RAW_EVENT = re.compile(r"r(?P<config>[0-9a-fA-F]+)")


def parse_event(text: str) -> EventSpec:
    """Return the event that a text in perf's syntax names.

    Allowed are perf's names (``branches``), raw configs (``r01c4``), and
    ``cpu/event=0xc4,umask=1,cmask=2,inv,edge/``, each with the modifiers ``:u`` (user only) and ``:k``
    (kernel only).

    Raises
    ------
    ValueError
        The text names no event, with the nearest name that does; or an event that the model has no rate for.
    """
    pmu_event = _PMU_EVENT.fullmatch(text)
    if pmu_event:
        config, modifiers = _parse_terms(text, pmu_event["terms"]), pmu_event["modifiers"]
    else:
        name, _, modifiers = text.partition(":")
        raw_event = _RAW_EVENT.fullmatch(name)
        config = int(raw_event["config"], 16) if raw_event else _named_config(name)
    excludes = _EXCLUDES.get("".join(sorted(modifiers, reverse=True)))
    if excludes is None:
        raise ValueError(f"event {text!r}: unknown modifier {modifiers!r}, allowed are u, k and uk")
    unknown = config & ~int(_KEY_MASK)
    if unknown:
        raise ValueError(f"event {text!r}: {unknown:#x} is not of event, umask, edge, inv and cmask")
    try:
        derivation(config)
    except ValueError as error:
        raise ValueError(f"event {text!r}: {error}") from None
    return EventSpec(text, normalize_config(config), *excludes)


def _named_config(name: str) -> int:
    """Return the config of an event that perf has a name for."""
    if name in EVENTS:
        return EVENTS[name].config
    if name in _NOT_MODELLED:
        raise ValueError(f"event {name!r}: the model has no rate for it")
    close = get_close_matches(name, EVENTS, n=1, cutoff=0.4)
    nearest = f"did you mean {close[0]!r}?" if close else f"allowed are {', '.join(EVENTS)}, rUUEE, cpu/.../"
    raise ValueError(f"unknown event {name!r}, {nearest}")


def _parse_terms(text: str, terms: str) -> int:
    """Return the config that the terms between the slashes of ``cpu/.../`` describe."""
    config, seen = 0, set()
    for term in terms.split(","):
        key, equals, value = term.partition("=")
        if key not in _TERM_SHIFT:
            close = get_close_matches(key, _TERM_SHIFT, n=1, cutoff=0)
            raise ValueError(f"event {text!r}: unknown term {key!r}, did you mean {close[0]!r}?")
        if key in seen:
            raise ValueError(f"event {text!r}: {key!r} appears twice")
        seen.add(key)
        config |= _term_value(text, key, value if equals else "1")
    if "event" not in seen:
        raise ValueError(f"event {text!r}: the term 'event' is missing")
    return config


def _term_value(text: str, key: str, value: str) -> int:
    shift, bits = _TERM_SHIFT[key]
    try:
        number = int(value, 0)
    except ValueError:
        raise ValueError(f"event {text!r}: {value!r} is no number") from None
    if not 0 <= number < 1 << bits:
        raise ValueError(f"event {text!r}: {key} is {value}, it must be below {1 << bits:#x}")
    return number << shift
