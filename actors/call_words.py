"""What the words of a call to host perf can be: the registers, and the call that is open to a physical CPU.

They come from other processes. Kernels trust what they are given, so a word that no registers hold, or a call
that no physical CPU can make as things stand, is refused before it is in the arena.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import Final

import numpy as np

from vpmu.actors.actor import UnexpectedMessage
from vpmu.actors.messages import Address
from vpmu.kernels import columns as col
from vpmu.kernels.engine import STAGE_RELEASED
from vpmu.kernels.events import KIND_NONE
from vpmu.kernels.host import perf
from vpmu.kernels.jit import Arena
from vpmu.kernels.msr import DEBUGCTL_RESERVED, EVENTSEL_RESERVED_V3, LVT_RESERVED, LVT_STATUS

CALL_FIRST: Final = int(col.P_TRAVELS)
CALL_END: Final = int(col.P_TRAVELS_END)
"""Words of a physical CPU's row that travel with a call."""
MOST_NS: Final = 1 << 40
"""How long one call may take, and how far a physical CPU may be behind a window's end: some 18 minutes."""

_ANY: Final = (1 << 64) - 1
_SLOTS: Final = (1 << col.SLOTS) - 1
_FIXED_BITS: Final = 7 << 32
_STATUS_OTHERS: Final = 1 << 55 | 7 << 61
_COUNTER: Final = (1 << 48) - 1
_KIND: Final = int(KIND_NONE)
_FLAGS: Final = int(col.FLAG_HELD)

_BITS: Final = (
    (col.P_CALL_SLOT, 1, 0xFF),
    (col.P_CALL_VALUE, 1, _COUNTER | (_COUNTER + 1)),
    (col.P_CALL_FLAGS, 1, _FLAGS),
    (col.P_CALL_COST, 1, MOST_NS - 1),
    (col.P_CALL_STAGE, 1, int(STAGE_RELEASED)),
    (col.P_GRANT, col.SLOTS, 0xFF),
    (col.HW_EVENTSEL, 8, _ANY & ~int(EVENTSEL_RESERVED_V3)),
    (col.HW_FIXED_CTRL, 1, 0xFFF),
    (col.HW_DEBUGCTL, 1, _ANY & ~int(DEBUGCTL_RESERVED)),
    (col.HW_LVTPC, 1, _ANY & ~int(LVT_RESERVED | LVT_STATUS)),
    (col.HW_COUNTER, col.SLOTS, _COUNTER),
    (col.HW_KIND, col.SLOTS, _KIND),
    (col.HW_CPL, col.SLOTS, 3),
    (col.HW_ARMED, 1, _SLOTS),
    (col.HW_ACTIVE, 1, _SLOTS),
    (col.HW_HOST_SLOTS, 1, _SLOTS),
    (col.HW_PMI, 1, 1),
)
"""Columns, how many words, and the bits that they may have; of the others, all."""
_GLOBALS: Final = (col.HW_GLOBAL_CTRL, col.HW_GLOBAL_STATUS, col.HW_HOST_CTRL, col.HW_GUEST_CTRL)
"""Columns with a bit for each counter that there is."""
_FIXED: Final = (col.HW_NR_GP, col.HW_NR_FIXED, col.HW_MASK, col.HW_MASKED)
"""What no call changes."""
_ASKED: Final = (col.P_NOW, col.P_CALL, col.P_CALL_VCPU, col.P_CALL_SLOT, col.P_CALL_CONFIG, col.P_CALL_FLAGS)
"""What an answer says as the question did."""


@cache
def _forbidden(nr_gp: int) -> Arena:
    """Return the bits that no word has on a CPU with so many general-purpose counters."""
    bits = np.zeros(CALL_END - CALL_FIRST, dtype=np.uint64)
    for column, words, allowed in _BITS:
        at = int(column) - CALL_FIRST
        bits[at : at + words] = np.uint64(_ANY & ~allowed)
    for column in _GLOBALS:
        others = _STATUS_OTHERS if column == col.HW_GLOBAL_STATUS else 0
        allowed = _FIXED_BITS | ((1 << nr_gp) - 1) | others
        bits[int(column) - CALL_FIRST] = np.uint64(_ANY & ~allowed)
    return bits


def _indices(columns: tuple[np.uint64, ...]) -> list[int]:
    return [int(column) - CALL_FIRST for column in columns]


_SAME, _SAME_ASKED = _indices(_FIXED), _indices((*_FIXED, *_ASKED))
_VCPU_CALLS: Final = tuple(
    int(call)
    for call in (perf.CALL_CREATE, perf.CALL_RELEASE, perf.CALL_READ, perf.CALL_UPDATE, perf.CALL_PERIOD)
)
_CREATED: Final = tuple(int(state) for state in (col.EVENT_INACTIVE, col.EVENT_ACTIVE, col.EVENT_ERROR))


class CallWords:
    """Judges the words of calls against a machine's rows.

    Parameters
    ----------
    arena : uint64[n]
        Of the machine.
    """

    def __init__(self, arena: Arena) -> None:
        self._s = arena
        self._words = arena.data

    def check_request(
        self,
        source: Address,
        p: int,
        words: bytes,
        at_ns: int,
        until_ns: int,
        vcpus: Collection[int],
        tools: Collection[int],
    ) -> None:
        """Refuse what a physical CPU cannot ask of host perf.

        Parameters
        ----------
        source : Address
            The physical CPU.
        p : int
            Offset of its row.
        words : bytes
            Those that travel.
        at_ns, until_ns : int
            When it asks, by the message; the window's end.
        vcpus, tools : collection of int
            Offsets of the vCPUs that its host may have, and of its own tools.

        Raises
        ------
        UnexpectedMessage
            Saying what is wrong.
        """
        found = self._registers(source, p, words, _SAME)
        now, call = int(found[int(col.P_NOW) - CALL_FIRST]), int(found[int(col.P_CALL) - CALL_FIRST])
        caller, slot = (
            int(found[int(col.P_CALL_VCPU) - CALL_FIRST]),
            int(found[int(col.P_CALL_SLOT) - CALL_FIRST]),
        )
        if now != at_ns or not self._words[p + int(col.P_NOW)] <= now <= until_ns + MOST_NS:
            raise UnexpectedMessage(f"{source} calls at {now} ns, in a message of {at_ns} ns")
        if not self._is_open(p, call, caller, slot, vcpus, tools):
            raise UnexpectedMessage(f"{source} calls {call} for {caller}, slot {slot}: there is none")

    def _is_open(
        self, p: int, call: int, caller: int, slot: int, vcpus: Collection[int], tools: Collection[int]
    ) -> bool:
        """Return whether a call is one that can be made as things stand."""
        task = self._words[p + int(col.P_CPU_HW + col.U_TASK_CONTEXT)]
        if call in _VCPU_CALLS:
            return caller in vcpus and self._is_call_of_event(call, caller, slot)
        if call == perf.CALL_TASK_IN:
            return caller in vcpus and task == 0
        if call == perf.CALL_TASK_OUT:
            return caller in vcpus and task == self._words[caller + int(col.V_CONTEXT)]
        if call in (perf.CALL_TOOL_OPEN, perf.CALL_TOOL_CLOSE):
            opens = call == perf.CALL_TOOL_OPEN
            return caller in tools and self._words[caller + int(col.TO_STATE)] == (0 if opens else 1)
        return call in (perf.CALL_PMI, perf.CALL_TICK, perf.CALL_ROTATE) and (caller == 0 or caller in vcpus)

    def _is_call_of_event(self, call: int, v: int, slot: int) -> bool:
        """Return whether a vPMC has, or has not, the event that a call is about."""
        nr_gp, fixed = self._words[v + int(col.V_NR_GP)], slot - int(col.FIXED_SLOT)
        if slot >= nr_gp and not 0 <= fixed < self._words[v + int(col.V_NR_FIXED)]:
            return False
        number = slot if slot < nr_gp else nr_gp + fixed
        e = self._words[v + int(col.V_EVENTS)] + number * int(col.EVENT_COLUMNS)
        created = self._words[e + int(col.E_STATE)] in _CREATED
        return created == (call != perf.CALL_CREATE)

    def check_reply(self, source: Address, p: int, words: bytes) -> None:
        """Refuse what is no answer to the call in a physical CPU's row; `UnexpectedMessage` says why."""
        found = self._registers(source, p, words, _SAME_ASKED)
        grants = found[int(col.P_GRANT) - CALL_FIRST :][: col.SLOTS]
        if ((grants >= col.SLOTS) & (grants != col.NO_SLOT)).any():
            raise UnexpectedMessage(f"{source} grants counters that there are not: {grants.tolist()}")

    def _registers(self, source: Address, p: int, words: bytes, same: list[int]) -> Arena:
        """Return words as an array; refuse bits that no register has, and what must be as in the row."""
        found = np.frombuffer(words, dtype=np.uint64)
        wrong = (found & _forbidden(self._words[p + int(col.HW_NR_GP)])).nonzero()[0]
        if wrong.size:
            at = int(wrong[0])
            raise UnexpectedMessage(f"{source} says that word {at} of a call is {int(found[at]):#x}")
        mine = self._s[p + CALL_FIRST : p + CALL_END]
        if (found[same] != mine[same]).any():
            raise UnexpectedMessage(f"{source} speaks of another call, or another CPU")
        return found
