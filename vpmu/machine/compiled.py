"""How the callbacks of this room are compiled, and how they call Unicorn."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar, cast

import llvmlite.binding as llvm
import numba
import unicorn

_P = ParamSpec("_P")
_R = TypeVar("_R")
_numba: Any = numba  # part of it is untyped
types = _numba.types
carray = _numba.carray


class Callback(Protocol):
    """A compiled function that C can call."""

    address: int


def part(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile a function that a callback calls."""
    return cast("Callable[_P, _R]", numba.njit(nogil=True)(function))


def inlined(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile a function into the callback: without that, a block costs twice as much."""
    return cast("Callable[_P, _R]", numba.njit(nogil=True, forceinline=True)(function))


def callback(*signature: Any) -> Callable[[Callable[..., Any]], Callback]:
    """Compile a function for C, of a result type and those of its parameters."""
    result, *parameters = signature

    def compile_it(function: Callable[..., Any]) -> Callback:
        return cast("Callback", numba.cfunc(result(*parameters))(function))

    return compile_it


def _load_unicorn() -> None:
    """Let compiled code find Unicorn's functions by name."""
    folder = Path(unicorn.__file__).parent / "lib"
    names = {"darwin": "*.dylib*", "win32": "*.dll"}
    for library in sorted(folder.glob(names.get(sys.platform, "libunicorn.so*"))):
        llvm.load_library_permanently(str(library))


_load_unicorn()
emu_stop: Any = types.ExternalFunction("uc_emu_stop", types.int32(types.voidptr))
reg_read: Any = types.ExternalFunction("uc_reg_read", types.int32(types.voidptr, types.int32, types.uintp))
reg_write: Any = types.ExternalFunction("uc_reg_write", types.int32(types.voidptr, types.int32, types.uintp))
