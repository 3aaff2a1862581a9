"""Counter assignment of host perf: the slow path of ``x86_schedule_events``, as Linux 5.0 solves it.

`perf_assign_events` places a list of events on counters, each with its constraint mask (see
`vpmu.kernels.events.constraint_mask`): events by increasing weight (how many counters the mask has), within
a weight in list order; each takes the lowest free fixed counter of its mask, else the lowest free GP counter.

Linux keeps states to go back to for constraints marked as overlapping. Broadwell's table marks none, and none
is needed: its masks without a choice of fixed counter are nested ({GP2} in GP0-3 in all GP) or one fixed
counter alone, so serving the smaller one first never takes what only a later event could use. An event that
may have its fixed counter or any GP counter comes last and prefers the one that no other GP event wants. The
greedy pass therefore fails only where no assignment exists.
"""

from vpmu.kernels.integers import MASK32, U0, U1, U32, WORD_BITS, lowest_bit, popcount
from vpmu.kernels.jit import U64, Arena, kernel

_NO_COUNTER = WORD_BITS


@kernel
def perf_assign_events(s: Arena, masks: U64, n: U64, gpmax_nr_gp: U64, out: U64) -> U64:
    """Assign counters to a list of events.

    Parameters
    ----------
    s : uint64[arena]
        The arena; words ``out..out+n`` are written.
    masks : uint64
        Offset of `n` constraint masks: bit i is GP counter i, bit 32+i is fixed counter i.
    n : uint64
        How many events.
    gpmax_nr_gp : uint64
        How many GP counters may be taken in all: as many as there are.
    out : uint64
        Offset of `n` counter indices: i for GP counter i, 32+i for fixed counter i. The region must not
        overlap `masks`. Words of events that got no counter keep what they held.

    Returns
    -------
    uint64
        How many events got a counter: `n` on success. The first event that finds no counter ends the pass,
        so others may lack one only because they come after it.
    """
    used = U0
    nr_gp = U0
    assigned = U0
    weight = _lightest(s, masks, n)
    while assigned < n:
        next_weight = WORD_BITS
        for i in range(n):
            mask = s[masks + i]
            mask_weight = popcount(mask)
            if mask_weight == weight:
                counter = _find_counter(mask & ~used)
                if counter < U32:
                    nr_gp += U1
                if counter == _NO_COUNTER or nr_gp > gpmax_nr_gp:
                    return assigned
                used |= U1 << counter
                s[out + i] = counter
                assigned += U1
            elif mask_weight > weight and mask_weight < next_weight:
                next_weight = mask_weight
        weight = next_weight
    return assigned


@kernel
def _lightest(s: Arena, masks: U64, n: U64) -> U64:
    """Return the least weight of `n` constraint masks."""
    weight = WORD_BITS
    for i in range(n):
        mask_weight = popcount(s[masks + i])
        if mask_weight < weight:
            weight = mask_weight
    return weight


@kernel
def _find_counter(free: U64) -> U64:
    """Return the lowest fixed counter of a set of free ones, else the lowest GP counter, else 64."""
    fixed = free >> U32
    if fixed != U0:
        return U32 + lowest_bit(fixed)
    return lowest_bit(free & MASK32)
