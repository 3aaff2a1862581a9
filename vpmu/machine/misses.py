"""Misses of caches, TLBs and branch prediction, as `vpmu.machine.model` has them: drawn, priced, counted."""

from typing import Any

import numpy as np

from vpmu.kernels.events import (
    KIND_BRANCH_MISSES,
    KIND_CACHE_MISSES,
    KIND_CACHE_REFERENCES,
    KIND_DTLB_LOAD_MISSES,
    KIND_ITLB_MISSES,
    KIND_L1D_MISSES,
    KIND_L1D_PENDING,
    KIND_L1I_MISSES,
    KIND_MEM_LOADS_RETIRED_L3_MISS,
    KIND_STALL_L1D,
)
from vpmu.machine import layout as at
from vpmu.machine import model
from vpmu.machine.compiled import inlined, part

U64 = np.uint64

_U0, _U1, _U2, _U3, _U4, _U5, _U6 = (U64(n) for n in range(7))
_BYTE8, _U20, _U22, _U25, _U35, _U45 = (U64(n) for n in (8, 20, 22, 25, 35, 45))
_PREDICTED = U64(at.FLAG_PREDICTED)
_UNITS = U64(at.UNITS)

_BM, _LR, _LM = int(KIND_BRANCH_MISSES), int(KIND_CACHE_REFERENCES), int(KIND_CACHE_MISSES)
_D1, _I1, _DT, _IT = (
    int(kind) for kind in (KIND_L1D_MISSES, KIND_L1I_MISSES, KIND_DTLB_LOAD_MISSES, KIND_ITLB_MISSES)
)
_PE, _SL, _L3 = int(KIND_L1D_PENDING), int(KIND_STALL_L1D), int(KIND_MEM_LOADS_RETIRED_L3_MISS)

_GOLDEN, _MIX1, _MIX2 = U64(at.GOLDEN), U64(0xBF58476D1CE4E5B9), U64(0x94D049BB133111EB)
_S27, _S30, _S31 = U64(27), U64(30), U64(31)

_C_BRANCH, _C_L2, _C_LLC, _C_MEMORY, _C_WALK = (
    U64(cycles * at.UNITS)
    for cycles in (model.BRANCH_MISS, model.L2_HIT, model.LLC_HIT, model.LLC_MISS, model.TLB_WALK)
)
_M_BRANCH, _M_L1D, _M_LLC, _M_MEMORY, _M_DTLB, _M_L1I, _M_ITLB = (
    U64((1 << bits) - 1)
    for bits in (
        model.BRANCH_MISS_BITS,
        model.L1D_MISS_BITS,
        model.LLC_REFERENCE_BITS,
        model.LLC_MISS_BITS,
        model.DTLB_MISS_BITS,
        model.L1I_MISS_BITS,
        model.ITLB_MISS_BITS,
    )
)
_E_BRANCH, _E_L1D, _E_LLC, _E_MEMORY, _E_DTLB, _E_L1I, _E_ITLB = (U64(1 << n) for n in range(7))


@inlined
def draw(s: Any, flags: U64, accesses: U64) -> U64:
    """Return the misses of the next block, one bit each; they depend on seed and block number only."""
    z = s[at.SEED] + s[at.BLOCKS] * _GOLDEN
    z = (z ^ (z >> _S30)) * _MIX1
    z = (z ^ (z >> _S27)) * _MIX2
    h = z ^ (z >> _S31)
    misses = _U0
    if flags & _PREDICTED != _U0 and h & _M_BRANCH == _U0:
        misses |= _E_BRANCH
    if (h >> _BYTE8) & _M_L1D < accesses:
        misses |= _E_L1D
        if (h >> _U20) & _M_LLC == _U0:
            misses |= _E_LLC
            if (h >> _U22) & _M_MEMORY == _U0:
                misses |= _E_MEMORY
    if (h >> _U25) & _M_DTLB < accesses:
        misses |= _E_DTLB
    if (h >> _U35) & _M_L1I == _U0:
        misses |= _E_L1I
    if (h >> _U45) & _M_ITLB == _U0:
        misses |= _E_ITLB
    return misses


@part
def _pending(misses: U64) -> U64:
    """Return for how many units the first-level data cache waits."""
    pending = _U0
    if misses & _E_L1D != _U0:
        pending += _C_L2
    if misses & _E_LLC != _U0:
        pending += _C_LLC
    if misses & _E_MEMORY != _U0:
        pending += _C_MEMORY
    return pending


@part
def penalty(misses: U64) -> U64:
    """Return what a block's misses cost, in units."""
    cost = _pending(misses)
    if misses & _E_BRANCH != _U0:
        cost += _C_BRANCH
    if misses & _E_DTLB != _U0:
        cost += _C_WALK
    if misses & _E_L1I != _U0:
        cost += _C_L2
    if misses & _E_ITLB != _U0:
        cost += _C_WALK
    return cost


@part
def count_misses(s: Any, count: U64, misses: U64) -> None:
    """Count a block's misses, at the level whose counts begin at `count`."""
    s[count + U64(_BM)] += misses & _U1
    s[count + U64(_D1)] += (misses >> _U1) & _U1
    s[count + U64(_LR)] += (misses >> _U2) & _U1
    s[count + U64(_LM)] += (misses >> _U3) & _U1
    s[count + U64(_L3)] += (misses >> _U3) & _U1
    s[count + U64(_DT)] += (misses >> _U4) & _U1
    s[count + U64(_I1)] += (misses >> _U5) & _U1
    s[count + U64(_IT)] += (misses >> _U6) & _U1
    pending = _pending(misses) // _UNITS
    s[count + U64(_PE)] += pending
    s[count + U64(_SL)] += pending >> _U1
