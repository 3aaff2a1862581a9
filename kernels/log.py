"""The log of a process, its row hashes, and the layout of a record.

A record is eight words: kind | outcome << 8 | operation << 16, time, actor, sequence, register, value, cost,
extra. An actor's rolling hash is updated by every access, PMI, switch and sample, logged or not: the digest
of a run is made of these.
"""

import numpy as np

from vpmu.kernels.columns import R_KEEP, R_LOG_COUNT
from vpmu.kernels.integers import U0, U1, U8, U16, U32
from vpmu.kernels.jit import U64, Arena, kernel

RECORD_WORDS = 8

RECORD_ACCESS = U64(1)
RECORD_PMI = U64(2)
RECORD_SWITCH = U64(3)
RECORD_SAMPLE = U64(4)
RECORD_REQUEST = U64(5)
RECORD_THROTTLE = U64(6)
"""Operation 1: an event of a guest was throttled, 0: it goes on; register: E_OWNER, value: current thread."""
RECORD_INTERVAL = U64(7)
"""Of ``perf stat -I``; always logged."""
RECORD_EXIT = U64(8)
"""A guest's thread has ended; register: TH_ID."""

_K1 = U64(0x9E3779B97F4A7C15)
_K2 = U64(0xC2B2AE3D27D4EB4F)
_K3 = U64(0x165667B19E3779F9)
_K4 = U64(0xFF51AFD7ED558CCD)
_SHIFT = U64(29)


@kernel
def mix(state: np.uint64, at_ns: np.uint64, what: np.uint64, value: np.uint64) -> np.uint64:
    """Return a row's rolling hash after one more thing that happened.

    Parameters
    ----------
    state : uint64
        The hash so far.
    at_ns : uint64, ns
        When it happened.
    what : uint64
        What it was: register, kind, outcome.
    value : uint64
        The word written, read or sampled.
    """
    x = (at_ns * _K1) ^ (what * _K2) ^ (value * _K3)
    x = (state ^ x ^ (x >> U32)) * _K4
    return x ^ (x >> _SHIFT)


@kernel
def keeps(s: Arena, kind: np.uint64) -> bool:
    """Return whether records of a kind are logged."""
    return (s[R_KEEP] >> kind) & U1 != U0


@kernel
def log_record(
    s: Arena,
    log: Arena,
    head: np.uint64,
    at_ns: np.uint64,
    actor: np.uint64,
    sequence: np.uint64,
    register: np.uint64,
    value: np.uint64,
) -> np.uint64:
    """Append a record; the caller fills words 6 and 7 at the offset returned.

    Note that the engine stops before the log can be full: it needs no check here.

    Parameters
    ----------
    s, log : uint64[n]
        The arena and the log, ``RECORD_WORDS`` words a record.
    head, at_ns, actor, sequence, register, value : uint64
        Words 0 to 5.
    """
    at = s[R_LOG_COUNT] * U8
    s[R_LOG_COUNT] += U1
    log[at] = head
    log[at + U1] = at_ns
    log[at + U64(2)] = actor
    log[at + U64(3)] = sequence
    log[at + U64(4)] = register
    log[at + U64(5)] = value
    log[at + U64(6)] = U0
    log[at + U64(7)] = U0
    return at


@kernel
def head_word(kind: np.uint64, outcome: np.uint64, operation: np.uint64) -> np.uint64:
    """Return a record's first word."""
    return kind | (outcome << U8) | (operation << U16)
