"""Exact integer arithmetic for kernels: fixed-point rates, bit operations, typed constants.

Note: in a kernel ``u64 + 1`` is int64 and ``min(u64, i64)`` is float64 (numba's rules), so every operand
is a ``np.uint64``, and small numbers are written ``U1``, ``U2``, ...

A rate has `RATE_SHIFT` fractional bits: core cycles per nanosecond, TSC ticks per nanosecond, events per
cycle. What a span holds is the difference of two totals, ``rate_at(end) - rate_at(start)``, so that a span
cut in two counts exactly what the whole counts.
"""

from vpmu.kernels.jit import U64, kernel, leading_zeros

U0 = U64(0)
U1 = U64(1)
U2 = U64(2)
U3 = U64(3)
U4 = U64(4)
U5 = U64(5)
U6 = U64(6)
U7 = U64(7)
U8 = U64(8)
U16 = U64(16)
U32 = U64(32)
U63 = U64(63)
WORD_BITS = U64(64)

NEVER = U64(2**63 - 1)
"""A time, or a number of ticks, that never comes."""
MASK32 = U64(2**32 - 1)
MASK48 = U64(2**48 - 1)

RATE_SHIFT = U64(28)
"""Fractional bits of a rate: `RATE_ONE` is one cycle per nanosecond, or one event per cycle."""
RATE_ONE = U64(1 << 28)
RATE_MASK = U64((1 << 28) - 1)
RATE_LIMIT = U64(1 << 34)
"""Rates are below this: 64 per nanosecond or cycle."""

_SIGN32 = U64(1 << 31)
_PAIRS = U64(0x5555555555555555)
_NIBBLE_PAIRS = U64(0x3333333333333333)
_NIBBLES = U64(0x0F0F0F0F0F0F0F0F)
_BYTES = U64(0x0101010101010101)
_TOP_BYTE = U64(56)


@kernel
def rate_at(t: U64, rate: U64) -> U64:
    """Return how many ticks of a rate lie before a point: ``floor(t * rate / 2**28)``, exactly.

    Parameters
    ----------
    t : uint64, ns or cycles
        Below 2**58 (nine years of nanoseconds), so that the result is below 2**64.
    rate : uint64, 1/2**28
        Ticks per unit of `t`, below `RATE_LIMIT`.

    Returns
    -------
    uint64, ticks
    """
    return (t >> RATE_SHIFT) * rate + (((t & RATE_MASK) * rate) >> RATE_SHIFT)


@kernel
def ticks_until(t: U64, rate: U64, n: U64) -> U64:
    """Return the least `d` with ``rate_at(t + d, rate) - rate_at(t, rate) >= n``.

    Parameters
    ----------
    t : uint64, ns or cycles
        Where counting begins; below 2**58.
    rate : uint64, 1/2**28
        Ticks per unit of `t`, below `RATE_LIMIT`.
    n : uint64, ticks
        Below 2**34.

    Returns
    -------
    uint64, unit of `t`
        At most 2**62; 0 if `n` is 0, otherwise `NEVER` if the rate is 0.
    """
    if n == U0:
        return U0
    if rate == U0:
        return NEVER
    # With r the fraction already gathered at t, the n-th tick falls where r + d * rate reaches n * 2**28. The
    # product may wrap: only its low bits are kept.
    gathered = (t * rate) & RATE_MASK
    return ((n << RATE_SHIFT) - gathered + (rate - U1)) // rate


@kernel
def sign_extend32(value: U64, mask: U64) -> U64:
    """Return the low 32 bits, extended from bit 31 to a counter's width.

    This is what a WRMSR to IA32_PMCx stores (SDM 18.2.1.1; without full-width writes).

    Parameters
    ----------
    value : uint64
        The word written; its upper half is dropped.
    mask : uint64
        All ones up to the counter's width, `MASK48` on Broadwell.
    """
    return (((value & MASK32) ^ _SIGN32) - _SIGN32) & mask


@kernel
def popcount(x: U64) -> U64:
    """Return how many bits of a word are set (LLVM makes one POPCNT of it)."""
    x = x - ((x >> U1) & _PAIRS)
    x = (x & _NIBBLE_PAIRS) + ((x >> U2) & _NIBBLE_PAIRS)
    x = (x + (x >> U4)) & _NIBBLES
    return (x * _BYTES) >> _TOP_BYTE


@kernel
def lowest_bit(x: U64) -> U64:
    """Return the index of the lowest set bit, 64 if there is none (LLVM makes one TZCNT of it)."""
    return popcount(~x & (x - U1))


@kernel
def bit_length(x: U64) -> U64:
    """Return the index of the highest set bit plus one, 0 if there is none."""
    return WORD_BITS - leading_zeros(x)


@kernel
def u64min(a: U64, b: U64) -> U64:
    """Return the lesser of two words, as a word."""
    if a < b:
        return a
    return b


@kernel
def u64max(a: U64, b: U64) -> U64:
    """Return the greater of two words, as a word."""
    if a > b:
        return a
    return b
