"""The callbacks that Unicorn makes at each block, at intercepted instructions, TLB misses and exceptions.

They are compiled by numba, so that a block costs some nanoseconds and no C compiler is needed. A callback
only counts, translates an address or stops the processor; what a stop means is Python's
(`vpmu.machine.processor`).
"""

from typing import Any, NamedTuple

import numpy as np
from unicorn import x86_const
from unicorn.unicorn_const import UC_MEM_FETCH, UC_MEM_WRITE

from vpmu.kernels.events import KIND_BRANCHES, KIND_INSTRUCTIONS, KIND_L1D_LOADS, KIND_L1D_STORES
from vpmu.machine import layout as at
from vpmu.machine.compiled import callback, carray, emu_stop, inlined, part, reg_read, reg_write, types
from vpmu.machine.misses import count_misses, draw, penalty
from vpmu.machine.paging import FAULT, FETCH, READ, WRITE, walk

U64 = np.uint64
_MACHINE_WORDS = 1 << 40
"""More than any machine has: callbacks are not checked for bounds."""


_U0, _U1, _U2, _U3, _U6, _U12, _U16, _U32, _U48 = (U64(n) for n in (0, 1, 2, 3, 6, 12, 16, 32, 48))
_BYTE8 = U64(8)
_CANONICAL = U64(0xFFFF800000000000)
_MEM_WRITE, _MEM_FETCH = UC_MEM_WRITE, UC_MEM_FETCH
_ADDRESS_MASK = U64(0xFFFFFFFF)
_COUNT16 = U64(0xFFFF)
_PAGE = U64(0xFFF)
_RAM = U64(at.RAM)

_STOP_MISS, _STOP_DUE, _STOP_LIMIT, _STOP_WINDOW = (
    U64(n) for n in (at.STOP_MISS, at.STOP_DUE, at.STOP_LIMIT, at.STOP_WINDOW)
)
_STOP_CODE, _STOP_FAULT, _STOP_DEVICE, _STOP_VECTOR = (
    U64(n) for n in (at.STOP_CODE, at.STOP_FAULT, at.STOP_DEVICE, at.STOP_VECTOR)
)
_STOP_STEPPED = U64(at.STOP_STEPPED)
_FAR, _STI, _ENABLES, _IRET = (U64(n) for n in (at.FLAG_FAR, at.FLAG_STI, at.FLAG_ENABLES, at.FLAG_IRET))
_LOOP, _SPIN = U64(at.FLAG_LOOP), U64(at.FLAG_SPIN)

_PAGES, _PAGE_MASK = U64(at.PAGES), U64(at.PAGE_SLOTS - 1)
_TABLE, _SLOT_SHIFT = U64(at.TABLE), U64(64 - at.SLOT_BITS)
_KINDS = at.KINDS

_I, _B = int(KIND_INSTRUCTIONS), int(KIND_BRANCHES)
_LD, _ST = int(KIND_L1D_LOADS), int(KIND_L1D_STORES)
_GOLDEN = U64(at.GOLDEN)
_REG_CS, _REG_RCX = x86_const.UC_X86_REG_CS, x86_const.UC_X86_REG_RCX
_REG_CR0, _REG_CR3 = x86_const.UC_X86_REG_CR0, x86_const.UC_X86_REG_CR3
_REG_GDTR = x86_const.UC_X86_REG_GDTR
_UNITS = U64(at.UNITS)


@inlined
def _is_due(s: Any) -> bool:
    """Say whether one of the alarms has gone off."""
    i = U64(at.ALARMS)
    end = i + s[at.ARMED] * U64(at.ALARM_WORDS)
    while i < end:
        if s[s[i]] + s[s[i + _U1]] >= s[i + _U2]:
            return True
        i += U64(at.ALARM_WORDS)
    return s[at.CLOCK] >= s[at.SOFT]


@inlined
def _find(s: Any, address: U64, size: U64) -> U64:
    """Return the word at which the table describes this block as it stands in RAM now, or 0."""
    page = _PAGES + ((address >> _U12) & _PAGE_MASK) * _U2
    if s[page] != (address | _PAGE):
        return _U0
    place = s[page + _U1] | (address & _PAGE)
    entry = _TABLE + (((address << _BYTE8 | size) * _GOLDEN) >> _SLOT_SHIFT) * U64(at.BLOCK_WORDS)
    if s[entry] != address + _U1 or s[entry + U64(at.BLOCK_PLACE)] != (place << _U16 | size):
        return _U0
    if s[_RAM + (place >> _U3)] != s[entry + U64(at.BLOCK_HEAD)]:
        return _U0
    tail = s[entry + U64(at.BLOCK_FLAGS)] >> _U16
    if s[_RAM + (tail >> _U3)] != s[entry + U64(at.BLOCK_TAIL)]:
        return _U0
    return entry


@part
def _fold(uc: Any, s: Any, spin: bool, cost: U64) -> U64:
    """Return how many iterations of a one-instruction loop fit before the next alarm, and take them off RCX.

    The last iteration is left: it leaves the loop, or is the one that sets an alarm off.
    """
    count = U64(at.COUNT) + s[at.LEVEL] * U64(_KINDS)
    room = (s[at.HARD] - s[at.CLOCK]) // cost
    room = min(room, (s[at.SOFT] - s[at.CLOCK]) // cost)
    i = U64(at.ALARMS)
    end = i + s[at.ARMED] * U64(at.ALARM_WORDS)
    while i < end:
        left = s[i + _U2] - s[s[i]] - s[s[i + _U1]]
        for k in range(2):
            if s[i + U64(k)] == count:
                room = min(room, left // cost)
            elif s[i + U64(k)] == count + U64(_I) or s[i + U64(k)] == count + U64(_B):
                room = min(room, left)
        i += U64(at.ALARM_WORDS)
    if room < _U2:
        return _U0
    folded = room - _U1
    if not spin:
        reg_read(uc, _REG_RCX, s.ctypes.data + 8 * at.SCRATCH)
        turns = s[at.SCRATCH] - _U1  # 0 stands for 2**64 turns
        folded = min(folded, turns)
        s[at.SCRATCH] -= folded
        reg_write(uc, _REG_RCX, s.ctypes.data + 8 * at.SCRATCH)
    return folded


@inlined
def _count(s: Any, counts: U64, times: U64) -> None:
    """Count a block's instructions, branches and accesses so many times."""
    count = U64(at.COUNT) + s[at.LEVEL] * U64(_KINDS)
    s[count + U64(_I)] += (counts & _COUNT16) * times
    s[count + U64(_B)] += (counts >> _U16 & _COUNT16) * times
    s[count + U64(_LD)] += (counts >> _U32 & _COUNT16) * times
    s[count + U64(_ST)] += (counts >> _U48) * times


@inlined
def _leave(uc: Any, s: Any, address: U64) -> None:
    """Do what the last block has left for when it is through: privilege, NMIs, a string's count."""
    last = s[at.LAST_FLAGS]
    if last & (_FAR | _IRET) != _U0:
        if last & _IRET != _U0:
            s[at.NMI_BLOCKED] = _U0
        reg_read(uc, _REG_CS, s.ctypes.data + 8 * at.SCRATCH)
        s[at.LEVEL] = U64(s[at.SCRATCH] & _U3 != _U0)
        s[at.LAST_FLAGS] = _U0
    if s[at.REP_ADDRESS] != _U0 and s[at.REP_ADDRESS] != address:
        s[U64(at.COUNT) + s[at.LEVEL] * U64(_KINDS) + U64(_I)] += _U1
        s[at.REP_ADDRESS] = _U0


@inlined
def _charge(uc: Any, s: Any, entry: U64) -> bool:
    """Count a block and let its time pass; False, with nothing changed, if the grant is too short."""
    flags = s[entry + U64(at.BLOCK_FLAGS)]
    counts = s[entry + U64(at.BLOCK_INSTRUCTIONS)]
    cost = s[entry + U64(at.BLOCK_COST)]
    count = U64(at.COUNT) + s[at.LEVEL] * U64(_KINDS)
    misses = _U0
    if flags & (_LOOP | _SPIN) == _U0:
        misses = draw(s, flags, (counts >> _U32 & _COUNT16) + (counts >> _U48))
        if misses != _U0:
            cost += penalty(misses)
    elif s[at.CREDIT] == _U0:
        folded = _fold(uc, s, flags & _SPIN != _U0, cost)
        _count(s, counts, folded)
        s[at.CLOCK] += folded * cost
        s[count] += folded * cost
        s[at.FOLDED] += folded
    paid = min(s[at.CREDIT], cost)
    if s[at.CLOCK] + cost - paid > s[at.HARD]:
        return False
    s[at.CREDIT] -= paid
    cost -= paid
    _count(s, counts, _U1)
    if misses != _U0:
        count_misses(s, count, misses)
    s[at.CLOCK] += cost
    s[count] += cost
    s[at.BLOCKS] += _U1
    return True


@inlined
def _enter(s: Any, entry: U64, address: U64, size: U64) -> None:
    """Note the block that is about to be executed."""
    flags = s[entry + U64(at.BLOCK_FLAGS)]
    s[at.LAST] = address
    s[at.LAST_SIZE] = size
    s[at.LAST_FLAGS] = flags
    s[at.REP_ADDRESS] = s[entry + U64(at.BLOCK_REP)]
    if s[at.WINDOW] != _U0:
        s[at.WINDOW] -= _U1
    if flags & (_STI | _ENABLES) != _U0:
        s[at.WINDOW] = _U2 if flags & _STI != _U0 else _U1


@inlined
def _block(uc: Any, s: Any, address: U64, size: U64) -> U64:
    """Count a block that is about to be executed; return why to stop before it, or STOP_NONE."""
    if s[at.STEP] != _U0:
        begun = s[at.STEP] == _U2
        s[at.STEP] = _U2
        return _STOP_STEPPED if begun else _U0
    _leave(uc, s, address)
    if s[at.WINDOW] == _U1 and s[at.PENDING] != _U0:
        return _STOP_WINDOW
    if _is_due(s):
        return _STOP_DUE
    entry = _find(s, address, size)
    if entry == _U0:
        s[at.STOP_ADDRESS] = address
        s[at.STOP_DETAIL] = size
        return _STOP_MISS
    if not _charge(uc, s, entry):
        return _STOP_LIMIT
    _enter(s, entry, address, size)
    return _U0


@callback(types.void, types.voidptr, types.uint64, types.uint32, types.voidptr)
def on_block(uc: Any, address: Any, size: Any, user: Any) -> None:
    """Count a block that is about to be executed, or stop before it."""
    s = carray(user, (_MACHINE_WORDS,), np.uint64)
    stop = _block(uc, s, U64(address), U64(size))
    if stop != _U0:
        s[at.STOP] = stop
        emu_stop(uc)


@callback(types.void, types.voidptr, types.uint64, types.uint32, types.voidptr)
def on_code(uc: Any, address: Any, size: Any, user: Any) -> None:
    """Stop before an instruction that the machine carries out itself."""
    s = carray(user, (_MACHINE_WORDS,), np.uint64)
    if s[at.SKIP] == U64(address):
        s[at.SKIP] = _U0
        return
    s[at.STOP] = _STOP_CODE
    s[at.STOP_ADDRESS] = U64(address)
    emu_stop(uc)


@callback(types.void, types.voidptr, types.uint32, types.voidptr)
def on_vector(uc: Any, vector: Any, user: Any) -> None:
    """Stop at an exception or a software interrupt."""
    s = carray(user, (_MACHINE_WORDS,), np.uint64)
    s[at.STOP] = _STOP_VECTOR
    s[at.STOP_DETAIL] = U64(vector)
    emu_stop(uc)


@part
def _translate(uc: Any, s: Any, page: U64, access: U64) -> U64:
    """Walk the guest's page tables with the processor's registers as they are."""
    scratch = s.ctypes.data + 8 * at.SCRATCH
    s[at.SCRATCH] = _U0
    reg_read(uc, _REG_CS, scratch)
    user = U64(s[at.SCRATCH] & _U3 == _U3)
    reg_read(uc, _REG_CR0, scratch)
    cr0 = s[at.SCRATCH]
    reg_read(uc, _REG_CR3, scratch)
    cr3 = s[at.SCRATCH]
    found = walk(s, cr0, cr3, s[at.EFER], user, page, access)
    if found & FAULT != _U0 and user != _U0 and access == READ:
        reg_read(uc, _REG_GDTR, scratch)
        first = s[at.SCRATCH + 1]
        if page + _PAGE >= first and page <= first + (s[at.SCRATCH + 2] & _ADDRESS_MASK):
            found = walk(s, cr0, cr3, s[at.EFER], _U0, page, access)
    return found


@callback(
    types.boolean, types.voidptr, types.uint64, types.int32, types.CPointer(types.uint64), types.voidptr
)
def on_tlb_miss(uc: Any, page: Any, kind: Any, result: Any, user: Any) -> bool:
    """Fill Unicorn's TLB from the guest's page tables; stop at a page fault and at a device's page."""
    s = carray(user, (_MACHINE_WORDS,), np.uint64)
    out = carray(result, (2,), np.uint64)
    page = U64(page)
    if page == U64(at.TRAMPOLINE_VIRTUAL) and s[at.TRAMPOLINE] != _U0:
        out[0] = U64(at.TRAMPOLINE_PHYSICAL)
        out[1] = U64(7)
        return True
    access = READ
    if kind == _MEM_WRITE:
        access = WRITE
    elif kind == _MEM_FETCH:
        access = FETCH
    sign = page & _CANONICAL
    if sign != _U0 and sign != _CANONICAL:
        s[at.STOP] = _STOP_VECTOR
        s[at.STOP_DETAIL] = U64(13)
        return False
    found = _translate(uc, s, page, access)
    if found & FAULT != _U0:
        s[at.STOP] = _STOP_FAULT
        s[at.STOP_ADDRESS] = page
        s[at.STOP_DETAIL] = found >> _U1
        s[at.STOP_ACCESS] = access
        return False
    physical = found & ~_PAGE
    if physical >= s[at.RAM_BYTES]:
        s[at.STOP] = _STOP_DEVICE
        s[at.STOP_ADDRESS] = page
        s[at.STOP_ACCESS] = access
        return False
    if access == FETCH:
        slot = _PAGES + ((page >> _U12) & _PAGE_MASK) * _U2
        s[slot] = page | _PAGE
        s[slot + _U1] = physical
    out[0] = physical
    out[1] = _U1 | (found & _U6)
    return True


class Callbacks(NamedTuple):
    """A callback's address, for each hook."""

    block: int
    code: int
    vector: int
    tlb: int


CALLBACKS = Callbacks(on_block.address, on_code.address, on_vector.address, on_tlb_miss.address)
