"""Counter-based randomness: what is drawn is a function of (seed, actor, stream, index) and of nothing else.

No generator has a state, so a run draws the same whatever order and whichever process its actors are
advanced in. Distributions are integer tables with linear interpolation, and the tables themselves are built
with integers, so that every machine has the same ones.
"""

from math import isqrt

import numpy as np

from vpmu.kernels.integers import MASK32, RATE_SHIFT, U1, U4, U8, WORD_BITS, bit_length, rate_at
from vpmu.kernels.jit import U64, Arena, kernel

STREAM_COST = U64(1)
STREAM_IRQ_GAP = U64(2)
STREAM_IRQ_COST = U64(3)
STREAM_WAKE = U64(4)
STREAM_BURST = U64(5)
STREAM_SKID = U64(6)
STREAM_BALANCE = U64(7)

INDEX_BITS = U64(56)
"""Indices of a stream are below ``2**56``; the stream's number stands above them."""

_GOLDEN = U64(0x9E3779B97F4A7C15)
_MIX1 = U64(0xBF58476D1CE4E5B9)
_MIX2 = U64(0x94D049BB133111EB)
_U27 = U64(27)
_U29 = U64(29)
_U30 = U64(30)
_U31 = U64(31)
_U32 = U64(32)


@kernel
def draw(seed: U64, actor: U64, stream: U64, index: U64) -> U64:
    """Return 64 random bits, the same for the same four words.

    The key of (seed, actor) and the word of (stream, index) are scrambled apart before they meet, so that no
    actor's sequence is another's shifted; splitmix64's finalizer ends it.

    Parameters
    ----------
    seed : uint64
        The run's.
    actor : uint64
        Which actor draws; unique in the run.
    stream : uint64
        One of the ``STREAM_`` constants, below 256.
    index : uint64
        Which draw of the stream; below 2**56.
    """
    key = (seed ^ _MIX2) + actor * _GOLDEN
    key = (key ^ (key >> _U32)) * _MIX1
    word = (((stream << INDEX_BITS) | index) + _GOLDEN) * _MIX2
    x = (key ^ (key >> _U29)) + (word ^ (word >> _U32))
    x = (x ^ (x >> _U30)) * _MIX1
    x = (x ^ (x >> _U27)) * _MIX2
    return x ^ (x >> _U31)


# -- exponential --

_LN_BITS = 8


def _ln_table() -> tuple[int, Arena]:
    """Return ln 2 and ``ln(1 + i/256)`` for i in 0..256, in 1/2**28."""
    precision = 96
    logarithms = [0]
    for n in range(1 << _LN_BITS, 2 << _LN_BITS):
        # ln((n + 1) / n) = 2 artanh(1 / (2n + 1))
        x = 2 * n + 1
        logarithms.append(logarithms[-1] + sum((2 << precision) // (x**k * k) for k in range(1, 16, 2)))
    rounded = [(value + (1 << 67)) >> (precision - 28) for value in logarithms]
    return rounded[-1], np.array(rounded, dtype=np.uint64)


_ln2, _LN_TABLE = _ln_table()
_LN2 = U64(_ln2)
_LN_INDEX_SHIFT = U64(55)
_LN_INDEX_MASK = U64((1 << _LN_BITS) - 1)
_LN_FRACTION_SHIFT = U64(27)
_LN_FRACTION_MASK = U64(2**28 - 1)


@kernel
def exponential(bits: U64, mean_ns: U64) -> U64:
    """Return an exponentially distributed time, from 64 random bits.

    It is ``-ln(bits / 2**64) * mean_ns``, rounded to the nearest nanosecond; at most 44.4 means.

    Parameters
    ----------
    bits : uint64
        A draw.
    mean_ns : uint64, ns
        Below 2**57.

    Returns
    -------
    uint64, ns
    """
    u = bits | U1
    zeros = WORD_BITS - bit_length(u)
    mantissa = u << zeros
    i = (mantissa >> _LN_INDEX_SHIFT) & _LN_INDEX_MASK
    fraction = (mantissa >> _LN_FRACTION_SHIFT) & _LN_FRACTION_MASK
    low = _LN_TABLE[i]
    logarithm = low + (((_LN_TABLE[i + U1] - low) * fraction) >> RATE_SHIFT)
    return (rate_at(mean_ns << U1, (zeros + U1) * _LN2 - logarithm) + U1) >> U1


# -- normal --

# The upper tail's probability p = (63 bits) / 2**64 is looked up in 512 even steps. The last 16 of them,
# where the quantile bends, have a second table: 16 steps to every halving of p, down to 2**-40.
_CENTRE_BITS = 9
_TAIL_STEPS = 16
_TAIL_FLOOR = 24
"""Tails below ``2**(_TAIL_FLOOR - 64)`` are cut there: |z| is at most 7.05."""
_TAIL_TOP = 58
_PRECISION = 160
_PANEL_BITS = 7


def _exp_negative(numerator: int, denominator: int) -> int:
    """Return ``exp(-numerator / denominator)`` for a small fraction, in 1/2**160."""
    term = total = 1 << _PRECISION
    for k in range(1, 40):
        term = -term * numerator // (denominator * k)
        total += term
    return total


def _upper_tail() -> tuple[list[int], list[int]]:
    """Return the normal density and the probability above z, at z = k/128 up to 9, in 1/2**160.

    The density follows from a recurrence (each step multiplies by ``exp`` of a linear function), its integral
    from Simpson's rule, with the sum scaled so that half of the probability lies above 0.
    """
    half_steps = 2 * 9 << _PANEL_BITS
    squared = 1 << (2 * _PANEL_BITS + 2)
    bell, ratio, decay = 1 << _PRECISION, _exp_negative(1, 2 * squared), _exp_negative(1, squared)
    bells = []
    for _ in range(half_steps + 1):
        bells.append(bell)
        bell = bell * ratio >> _PRECISION
        ratio = ratio * decay >> _PRECISION
    above = [0]
    for k in range(half_steps - 2, -1, -2):
        above.append(above[-1] + (bells[k] + 4 * bells[k + 1] + bells[k + 2]))
    above.reverse()
    whole = 2 * above[0]
    # A panel is 1/128 wide and Simpson's rule divides by 6.
    density = [(bell << _PRECISION) * (6 << _PANEL_BITS) // whole for bell in bells[::2]]
    return density, [(part << _PRECISION) // whole for part in above]


def _quantile(p: int, density: list[int], above: list[int], k: int) -> tuple[int, int]:
    """Return z (in 1/2**24) with probability `p` above it, and its panel; `k` is a panel at or before it."""
    while above[k + 1] > p:
        k += 1
    # z = z0 + t + z0 t**2 / 2 + (1 + 2 z0**2) t**3 / 6, with t the missing probability over the density.
    t = ((above[k] - p) << _PRECISION) // density[k]
    z0 = k << (_PRECISION - _PANEL_BITS)
    square = t * t >> _PRECISION
    cube = square * t >> _PRECISION
    bend = (1 << _PRECISION) + (2 * z0 * z0 >> _PRECISION)
    z = z0 + t + (z0 * square >> (_PRECISION + 1)) + (bend * cube >> _PRECISION) // 6
    return (z + (1 << (_PRECISION - 25))) >> (_PRECISION - 24), k


def _normal_tables() -> tuple[Arena, Arena]:
    """Return the quantiles of the centre (513 words) and of the tail, in 1/2**24; see `normal_q24`."""
    density, above = _upper_tail()
    steps = 1 << _CENTRE_BITS
    centre, k = [0], 0
    for i in range(steps - 1, 0, -1):
        z, k = _quantile((i << _PRECISION) // (2 * steps), density, above, k)
        centre.append(z)
    centre.append(centre[-1])  # p = 0 is never looked up: the tail's table answers there
    tail, k = [], 0
    for i in range((_TAIL_TOP - _TAIL_FLOOR) * _TAIL_STEPS, -1, -1):
        octave, step = divmod(i, _TAIL_STEPS)
        p = (_TAIL_STEPS + step) << (_PRECISION - 64 + _TAIL_FLOOR + octave - 4)
        z, k = _quantile(p, density, above, k)
        tail.append(z)
    return np.array(centre[::-1], dtype=np.uint64), np.array(tail[::-1], dtype=np.uint64)


_CENTRE_TABLE, _TAIL_TABLE = _normal_tables()
_MASK63 = U64(2**63 - 1)
_CENTRE_SHIFT = U64(54)
_CENTRE_FIRST = U64(16)
_FRACTION_SHIFT = U64(22)
_TAIL_LEAST = U64(1 << _TAIL_FLOOR)
_TAIL_BASE = U64((_TAIL_FLOOR + 1) * 16)
_TAIL_INDEX_SHIFT = U64(59)
_TAIL_INDEX_MASK = U64(_TAIL_STEPS - 1)
_TAIL_FRACTION_SHIFT = U64(27)


@kernel
def _tail_q24(p: U64) -> U64:
    """Return the quantile of a tail of ``p / 2**64``, p below 2**58, in 1/2**24."""
    if p < _TAIL_LEAST:
        p = _TAIL_LEAST
    length = bit_length(p)
    mantissa = p << (WORD_BITS - length)
    i = (length << U4) - _TAIL_BASE + ((mantissa >> _TAIL_INDEX_SHIFT) & _TAIL_INDEX_MASK)
    fraction = (mantissa >> _TAIL_FRACTION_SHIFT) & MASK32
    high = _TAIL_TABLE[i]
    return high - (((high - _TAIL_TABLE[i + U1]) * fraction) >> _U32)


@kernel
def normal_q24(bits: U64) -> U64:
    """Return the magnitude of a standard normal, from 64 random bits; bit 63 is its sign.

    Parameters
    ----------
    bits : uint64
        A draw. The sign (negative if bit 63 is set) is the caller's to apply.

    Returns
    -------
    uint64, 1/2**24
        ``|z|`` with a probability of ``(bits mod 2**63) / 2**64`` above it; at most 7.05, and off by
        less than 0.0002.
    """
    p = bits & _MASK63
    i = p >> _CENTRE_SHIFT
    if i < _CENTRE_FIRST:
        return _tail_q24(p)
    fraction = (p >> _FRACTION_SHIFT) & MASK32
    high = _CENTRE_TABLE[i]
    return high - (((high - _CENTRE_TABLE[i + U1]) * fraction) >> _U32)


# -- powers of two --


def _exp2_table() -> Arena:
    """Return ``2**(i/256)`` for i in 0..256, in 1/2**30."""
    root = 2 << _PRECISION
    for _ in range(8):
        root = isqrt(root << _PRECISION)
    powers = [1 << _PRECISION]
    for _ in range(256):
        powers.append(powers[-1] * root >> _PRECISION)
    return np.array([(power + (1 << (_PRECISION - 31))) >> (_PRECISION - 30) for power in powers], np.uint64)


_EXP2_TABLE = _exp2_table()
_BYTE = U64(0xFF)
_U24 = U64(24)


@kernel
def exp2_q30(fraction: U64) -> U64:
    """Return ``2**(fraction / 2**32)`` in 1/2**30, for a fraction below 2**32; off by less than 2e-6."""
    i = (fraction >> _U24) & _BYTE
    low = _EXP2_TABLE[i]
    return low + (((_EXP2_TABLE[i + U1] - low) * ((fraction << U8) & MASK32)) >> _U32)
