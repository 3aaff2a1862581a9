"""The kernel decorator: how every function of this room is compiled, and where the result is kept.

This is the only module that touches numba's configuration. A kernel is compiled on its first call and found
in the cache by every later process; see `vpmu.kernels.jit_cache` for the directory.
"""

import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from numba.core import callconv
from numba.core import config as numba_config
from numba.core.compiler import Compiler
from numba.core.cpu import CPUContext
from numba.core.registry import cpu_target
from numba.cpython.unsafe import numbers as bits

from vpmu.kernels import jit_cache

U64 = np.uint64
"""The one scalar type of kernels. Constants are written ``U64(1)``: ``u64 + 1`` is int64 in numba."""

Arena = npt.NDArray[np.uint64]
"""uint64[n]: all state of a process in one flat array."""

_config: Any = numba_config  # its attributes are made at import, out of the environment
_calls: Any = callconv.CPUCallConv  # untyped in numba
_cpu: Any = CPUContext
_excinfo: Any = callconv.excinfo_ptr_t

_FLAGS: Any = {"nogil": True, "boundscheck": False, "error_model": "numpy", "no_cfunc_wrapper": True}
_FLAGS["_nrt"] = False  # no kernel makes an array, so none has to count references to those it is given
_typing_context: Any = cpu_target.typing_context
_entries: list[tuple[Any, Any]] = []

_P = ParamSpec("_P")
_R = TypeVar("_R")
_extra_sources: tuple[Path, ...] = ()


def _leading_zeros(x: np.uint64) -> np.uint64:
    """Return how many bits stand above a word's highest set bit, 64 if there is none: one LZCNT."""
    return U64(64 - int(x).bit_length())


leading_zeros: Callable[[np.uint64], np.uint64] = (
    _leading_zeros if _config.DISABLE_JIT else cast("Any", bits.leading_zeros)
)


def kernel(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile a function as all kernels are: without GIL and bounds checks, as part of what calls it.

    Parameters
    ----------
    function
        An annotated module-level function.

    Returns
    -------
    Callable
        The dispatcher (with ``py_func``, ``signatures`` and ``stats``), typed as the function itself. Python
        can call it, too: it is then compiled for that, in every process anew. What a run calls from Python is
        an `entry`.
    """
    compiled = _compiled(function, cache=False)
    return cast("Callable[_P, _R]", compiled if _config.DISABLE_JIT else _as_part(compiled))


def inlined(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile a kernel into each of its callers: one on the way of every access, its rare part elsewhere."""
    compiled = _compiled(function, cache=False, forceinline=True)
    return cast("Callable[_P, _R]", compiled if _config.DISABLE_JIT else _as_part(compiled))


def entry(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile a kernel that Python calls: as `kernel`, cached on disk together with all that it calls."""
    compiled = _compiled(function, cache=True)
    _entries.append((compiled, function))
    return cast("Callable[_P, _R]", compiled)


def compile_entries() -> int:
    """Compile every entry of the modules imported so far, or find it in the cache; return their number."""
    array = numba.types.Array(numba.types.uint64, 1, "C")
    for compiled, function in _entries:
        parameters = inspect.signature(function).parameters.values()
        compiled.compile(tuple(array if p.annotation is Arena else numba.types.uint64 for p in parameters))
    return len(_entries)


def _compiled(function: Any, *, cache: bool, forceinline: bool = False) -> Any:
    outside = _config.CACHE_DIR
    # numba reads the directory while it decorates; then the process's other users of numba get theirs back.
    _config.CACHE_DIR = str(cache_directory())
    try:
        return numba.njit(cache=cache, forceinline=forceinline, pipeline_class=_Pipeline, **_FLAGS)(function)
    finally:
        _config.CACHE_DIR = outside


def _as_part(compiled: Any) -> Any:
    """Keep a kernel that another one calls from being made into machine code of its own.

    numba would optimize it, with all its callees, emit it and wrap it for Python, and then do the same again
    in every kernel that calls it, however far up; only the last time counts. Without that the engine compiles
    in a third of the time.
    """
    compiler, add, compile_signature = compiled._compiler, compiled.add_overload, compiled.compile
    compile_core, customize = compiler._compile_core, compiler._customize_flags

    def customize_flags(flags: Any) -> Any:
        flags = customize(flags)
        if _as_callee():
            flags.no_compile = flags.no_cpython_wrapper = True
        return flags

    def compile_at_level(args: Any, return_type: Any) -> Any:
        outside = _config.OPT
        _config.OPT = _config._OptLevel(0 if _as_callee() else 3)
        try:
            return compile_core(args, return_type)
        finally:
            _config.OPT = outside

    def add_overload(result: Any) -> None:
        if result.entry_point is None:
            part = _Part()
            _only_link(result.library)
            cpu_target.target_context.insert_user_function(part, result.fndesc, [result.library])
            compiled.overloads[tuple(result.signature.args)] = result._replace(entry_point=part)
        else:
            add(result)

    def compile_for(signature: Any) -> Any:
        made = compiled.overloads.get(signature) if isinstance(signature, tuple) else None
        if made is not None and isinstance(made.entry_point, _Part) and not _as_callee():
            del compiled.overloads[signature]
        return compile_signature(signature)

    compiler._customize_flags = customize_flags
    compiler._compile_core = compile_at_level
    compiled.add_overload = add_overload
    compiled.compile = compile_for
    return compiled


class _Pipeline(Compiler):
    """numba's pipeline, for programs that are closed: nobody else calls what they are made of."""

    def _compile_core(self) -> Any:
        state = self.state
        if state.library is None and not state.flags.no_compile:
            state.library = state.targetctx.codegen().create_library(state.func_id.func_qualname)
            state.library.enable_object_caching()
            _close(state.library)
        run: Any = super()._compile_core  # untyped in numba
        # The context is a copy for this one compilation.
        state.targetctx.__class__ = _LeanTarget
        return run()


class _LeanCalls(_calls):  # type: ignore[misc]
    """numba's way to call a kernel, without clearing the places of result and exception first.

    A kernel sets its result, and none raises.

    LLVM cannot take the clearing back where only a rare branch makes the call.
    """

    def call_function(
        self, builder: Any, callee: Any, resty: Any, argtys: Any, args: Any, attrs: Any = None
    ) -> Any:
        with builder.goto_entry_block():
            result = builder.alloca(self.get_return_type(resty).pointee)
            excinfo = builder.alloca(_excinfo)
        packed = self._get_arg_packer(argtys).as_arguments(builder, args)
        code = builder.call(callee, [result, excinfo, *packed], attrs=attrs or ())
        status = self._get_return_status(builder, code, builder.load(excinfo))
        return status, self.context.get_returned_value(builder, resty, builder.load(result))


class _LeanTarget(_cpu):  # type: ignore[misc]
    """numba's CPU, with calls as `_LeanCalls` makes them."""

    @property
    def call_conv(self) -> Any:
        return _LeanCalls(self)


def _close(library: Any) -> None:
    """Tell LLVM that the parts linked into a library are called from nowhere else.

    It may then inline what is called once, drop parameters that nobody uses (an array is passed as seven) and
    find that no kernel raises anything: an access takes a third of the time.
    """
    optimize = library._optimize_final_module

    def optimize_final_module() -> None:
        for function in library._final_module.functions:
            if function.linkage.name == "linkonce_odr" and not function.name.startswith("NRT"):
                function.linkage = "internal"
        optimize()

    library._optimize_final_module = optimize_final_module


class _Part:
    """In place of a kernel's entry point: it is compiled as part of others only."""


def _only_link(library: Any) -> None:
    """Make a part's library ready to be linked into others, and for nothing else."""

    def finalize_final_module() -> None:
        library._finalize_dynamic_globals()
        library._finalized = True

    library._optimize_final_module = lambda: None
    library._finalize_final_module = finalize_final_module


def _as_callee() -> bool:
    """Return whether numba is compiling a kernel because another one that is being compiled calls it."""
    return len(_typing_context.callstack) > 0


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
