"""The kernel decorator: how every function of this room is compiled, and where the result is kept.

This is the only module that touches numba's configuration. A kernel is compiled on its first call and found
in the cache by every later process; see `vpmu.kernels.jit_cache` for the directory.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numba
import numpy as np
import numpy.typing as npt
from numba.core import config as numba_config

from vpmu.kernels import jit_cache

U64 = np.uint64
"""The one scalar type of kernels. Constants are written ``U64(1)``: ``u64 + 1`` is int64 in numba."""

Arena = npt.NDArray[np.uint64]
"""uint64[n]: all state of a process in one flat array."""

_config: Any = numba_config  # its attributes are made at import, out of the environment

_INNER_LEVEL = 1
_ENTRY_LEVEL = 3

_P = ParamSpec("_P")
_R = TypeVar("_R")
_extra_sources: tuple[Path, ...] = ()


def kernel(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile a function as all kernels are: cached on disk, without the GIL, without bounds checks.

    Parameters
    ----------
    function
        An annotated module-level function.

    Returns
    -------
    Callable
        The dispatcher (with ``py_func``, ``signatures`` and ``stats``), typed as the function itself.
    """
    return _compiled(function, _INNER_LEVEL)


def entry(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile a kernel that Python calls in earnest: as `kernel`, with all that it calls optimized in full."""
    return _compiled(function, _ENTRY_LEVEL)


def _compiled(function: Callable[_P, _R], level: int) -> Callable[_P, _R]:
    outside = _config.CACHE_DIR
    # numba reads the directory while it decorates; then the process's other users of numba get theirs back.
    _config.CACHE_DIR = str(cache_directory())
    try:
        compiled: Any = numba.njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")(function)
    finally:
        _config.CACHE_DIR = outside
    if not _config.DISABLE_JIT:
        _compile_at(compiled, level)
    return compiled  # type: ignore[no-any-return]


def _compile_at(compiled: Any, level: int) -> None:
    """Give a kernel an optimization level of its own.

    LLVM optimizes a kernel's code again, with all its callees', in every kernel that calls it, however far up, and only the
    last time counts. At full level all the way, the engine takes minutes to compile.
    """
    inner = compiled._compiler.compile

    def compile_at_level(args: Any, return_type: Any) -> Any:
        outside = _config.OPT
        _config.OPT = _config._OptLevel(level)
        try:
            return inner(args, return_type)
        finally:
            _config.OPT = outside

    compiled._compiler.compile = compile_at_level


def cache_directory() -> Path:
    """Return the directory that kernels decorated now are cached in; generated modules belong there, too."""
    return jit_cache.chosen_by_user() or _keyed_directory(_extra_sources)


def add_sources(*paths: Path) -> None:
    """Let the cache key of kernels decorated from now on depend on further files.

    A design outside the package (``--design FILE.py``) is called by kernels whose own files do not change
    with it. Call this before the modules that call it are imported.

    Parameters
    ----------
    *paths
        Existing source files; a repeated one counts once.
    """
    global _extra_sources
    _extra_sources = tuple(sorted({*_extra_sources, *(path.resolve() for path in paths)}))


@cache
def _keyed_directory(extra_sources: tuple[Path, ...]) -> Path:
    sources = [*Path(__file__).parent.rglob("*.py"), *extra_sources]
    key = jit_cache.source_key(sources, numba.__version__, jit_cache.python_version())
    return jit_cache.open_cache(key, jit_cache.cache_root())
