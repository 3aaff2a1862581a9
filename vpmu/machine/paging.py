"""Four-level paging (SDM vol. 3, 4.5), for compiled callbacks and for Python's own accesses to a guest."""

from typing import Any

import numpy as np

from vpmu.machine.compiled import part
from vpmu.machine.layout import RAM, RAM_BYTES

U64 = np.uint64
Words = np.ndarray[Any, np.dtype[np.uint64]]

READ = U64(0)
WRITE = U64(1)
FETCH = U64(2)

FAULT = U64(1)
"""Set in what `walk` returns if there is a page fault; the error code then stands above it."""

_ERROR_PRESENT = U64(1)
_ERROR_WRITE = U64(2)
_ERROR_USER = U64(4)
_ERROR_RESERVED = U64(8)
_ERROR_FETCH = U64(16)

_U0, _U1, _U3, _U9, _U12, _U39 = (U64(n) for n in (0, 1, 3, 9, 12, 39))
_PRESENT, _WRITABLE, _USER, _ACCESSED, _DIRTY, _LARGE = (U64(n) for n in (1, 2, 4, 0x20, 0x40, 0x80))
_NX = U64(1 << 63)
_FRAME = U64(0x000FFFFFFFFFF000)
_INDEX = U64(0x1FF)
_PAGE = U64(0xFFF)
_CR0_PG = U64(1 << 31)
_CR0_WP = U64(1 << 16)
_EFER_NXE = U64(1 << 11)
_RAM = U64(RAM)
_RAM_BYTES = U64(RAM_BYTES)

MAY_WRITE = U64(2)
MAY_EXECUTE = U64(4)

_NOT_PRESENT, _RESERVED = U64(1), U64(2)
_MAY_ALL = U64(7)
_MAY_REACH = U64(1)
"""Besides `MAY_WRITE` and `MAY_EXECUTE`: CPL 3 may access the page."""


@part
def _error(efer: U64, user: U64, access: U64) -> U64:
    """Return an access's error code without the bits that say what was found."""
    error = user * _ERROR_USER
    if access == WRITE:
        error |= _ERROR_WRITE
    if access == FETCH and efer & _EFER_NXE != _U0:
        error |= _ERROR_FETCH
    return error


@part
def _descend(s: Words, cr3: U64, efer: U64, address: U64) -> tuple[U64, U64, U64, U64]:
    """Go down the tables; return what went wrong, the last entry's word, its shift, and what all allow."""
    table = cr3 & _FRAME
    shift = _U39
    may = _MAY_ALL
    while True:
        place = table + (((address >> shift) & _INDEX) << _U3)
        if place >= s[_RAM_BYTES]:
            return _NOT_PRESENT, _U0, shift, may
        word = _RAM + (place >> _U3)
        entry = s[word]
        if entry & _PRESENT == _U0:
            return _NOT_PRESENT, word, shift, may
        if entry & _NX != _U0 and efer & _EFER_NXE == _U0:
            return _RESERVED, word, shift, may
        if entry & _NX != _U0:
            may &= ~MAY_EXECUTE
        if entry & _WRITABLE == _U0:
            may &= ~MAY_WRITE
        if entry & _USER == _U0:
            may &= ~_MAY_REACH
        s[word] = entry | _ACCESSED
        if shift == _U12 or (shift != _U39 and entry & _LARGE != _U0):
            return _U0, word, shift, may
        table = entry & _FRAME
        shift -= _U9


@part
def walk(s: Words, cr0: U64, cr3: U64, efer: U64, user: U64, address: U64, access: U64) -> U64:
    """Translate an address; set accessed and dirty bits as the processor does.

    Parameters
    ----------
    s : uint64[machine]
        The machine's words (`vpmu.machine.layout`).
    cr0, cr3, efer : uint64
        Control registers.
    user : uint64
        1 for an access at CPL 3, otherwise 0.
    address : uint64
        Linear address.
    access : uint64
        READ, WRITE or FETCH.

    Returns
    -------
    uint64
        The physical page, with `MAY_WRITE` and `MAY_EXECUTE` in its low bits; or a page fault's error
        code times 2, plus `FAULT`.
    """
    if cr0 & _CR0_PG == _U0:
        return (address & ~_PAGE) | MAY_WRITE | MAY_EXECUTE
    error = _error(efer, user, access)
    wrong, word, shift, may = _descend(s, cr3, efer, address)
    if wrong == _NOT_PRESENT:
        return (error << _U1) | FAULT
    if wrong == _RESERVED:
        return ((error | _ERROR_PRESENT | _ERROR_RESERVED) << _U1) | FAULT
    if user == _U0 and cr0 & _CR0_WP == _U0:
        may |= MAY_WRITE
    needed = _U0
    if user != _U0:
        needed |= _MAY_REACH
    if access == WRITE:
        needed |= MAY_WRITE
    if access == FETCH:
        needed |= MAY_EXECUTE
    if needed & ~may != _U0:
        return ((error | _ERROR_PRESENT) << _U1) | FAULT
    if access == WRITE:
        s[word] = s[word] | _DIRTY
    if s[word] & _DIRTY == _U0:
        may &= ~MAY_WRITE  # so that the first write comes here and sets it
    inside = (_U1 << shift) - _U1
    page = (s[word] & _FRAME & ~inside) | (address & inside & ~_PAGE)
    return page | (may & ~_MAY_REACH)
