"""Micro-operations: MSR accesses, and what has to happen between them, in a ring of a row.

An operation is two words: code | argument << 8, and a value (for most: the offset of a perf event).
"""

import numpy as np

from vpmu.kernels.columns import Q_COUNT, Q_CUT, Q_HEAD, Q_OPS, QUEUE_SIZE
from vpmu.kernels.jit import U64, Arena, kernel

OP_NONE = U64(0)
OP_WRMSR = U64(1)
"""Write the value to MSR ``argument``."""
OP_WRITE_COUNTER = U64(2)
"""Set the event's period and write it to counter slot ``argument``."""
OP_READ_FIXED_CTRL = U64(3)
"""First half of a read-modify-write of FIXED_CTR_CTRL; ``value`` is kept for the second."""
OP_WRITE_FIXED_CTRL = U64(4)
"""Second half: set slot ``argument``'s field to ``value``."""
OP_RDPMC = U64(5)
"""Read counter slot ``argument`` and account to the event."""
OP_READ_STATUS = U64(6)
OP_LVTPC = U64(7)
OP_LAST_ACCESS = U64(15)
OP_OVERFLOW = U64(16)
"""Deal with the event's overflow, if set_period() found one. No access."""
OP_ADJUST = U64(17)
"""Adapt the event's period at a tick. No access."""
OP_KERNEL = U64(18)
"""Run kernel code for ``value`` ns. Guests only."""
OP_CALL = U64(19)
"""Continue the guest kernel's path ``argument``. Guests only."""

_RING = U64(QUEUE_SIZE - 1)
_ONE = U64(1)
_EIGHT = U64(8)
_CODE = U64(0xFF)


@kernel
def emit(s: Arena, q: np.uint64, code: np.uint64, argument: np.uint64, value: np.uint64) -> None:
    """Append a micro-operation.

    Note that a full ring overwrites its oldest entry; the longest sequence (a rotation of all eleven
    counters) needs 60.

    Parameters
    ----------
    s : uint64[n]
        The arena.
    q : uint64
        Offset of the queue.
    code, argument, value : uint64
        The operation.
    """
    at = q + Q_OPS + (((s[q + Q_HEAD] + s[q + Q_COUNT]) & (_RING - s[q + Q_CUT])) << _ONE)
    s[at] = code | (argument << _EIGHT)
    s[at + _ONE] = value
    s[q + Q_COUNT] += _ONE


@kernel
def pop(s: Arena, q: np.uint64) -> tuple[np.uint64, np.uint64, np.uint64]:
    """Take the oldest micro-operation: its code, argument and value. The queue must not be empty."""
    head = s[q + Q_HEAD]
    at = q + Q_OPS + (head << _ONE)
    word = s[at]
    s[q + Q_HEAD] = (head + _ONE) & (_RING - s[q + Q_CUT])
    s[q + Q_COUNT] -= _ONE
    return word & _CODE, word >> _EIGHT, s[at + _ONE]
