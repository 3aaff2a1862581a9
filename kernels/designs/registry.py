"""Which designs there are: the modules of this folder, and files that a user names.

A design outside the package must be added before the engine is imported; kernels are then cached apart from
those without it.
"""

import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

from vpmu.kernels import jit

FUNCTIONS = (
    "set_msr",
    "get_msr",
    "rdpmc",
    "trigger_event",
    "deliver_pmi",
    "perf_arguments",
    "perf_done",
    "sched_in",
    "sched_out",
    "vm_entry",
    "vm_exit",
    "destroy",
)
"""The kernels that every design defines."""

_NOT_DESIGNS = {"__init__", "access", "common", "dispatch", "filter", "registry"}
_extra: dict[str, Path] = {}


def add_design(path: Path) -> str:
    """Make a design of one file available under the file's name; return the name.

    Parameters
    ----------
    path : Path
        A Python file that defines the functions of a design.

    Raises
    ------
    ValueError
        If the file is missing, its name is taken or no identifier, a function is missing, or the engine is
        loaded already.
    """
    name = path.stem
    if not path.is_file():
        raise ValueError(f"no design file {path}")
    if not name.isidentifier() or name in built_in_names():
        raise ValueError(f"{path}: a design file needs a name of its own that is a Python identifier")
    if "vpmu.kernels.designs.dispatch" in sys.modules and _extra.get(name) != path.resolve():
        raise ValueError(f"{path}: designs must be named before the first run of a process")
    _extra[name] = path.resolve()
    jit.add_sources(path)
    return name


@cache
def built_in_names() -> tuple[str, ...]:
    """Return the names of the designs in this folder."""
    names = (file.stem for file in Path(__file__).parent.glob("*.py"))
    return tuple(sorted(name for name in names if name not in _NOT_DESIGNS))


def design_names() -> list[str]:
    """Return all designs' names; the index in this list is the design's number."""
    return [*built_in_names(), *sorted(_extra)]


def design_path(name: str) -> Path | None:
    """Return the file of a design that is not built in, else None."""
    return _extra.get(name)


def load_design(name: str) -> ModuleType:
    """Import a design's module and check that it is whole.

    Raises
    ------
    ValueError
        If there is no such design, or a function is missing.
    """
    if name in _extra:
        module = _load_file(name, _extra[name])
    elif name in built_in_names():
        module = importlib.import_module(f"vpmu.kernels.designs.{name}")
    else:
        raise ValueError(f"unknown design {name!r}; known: {', '.join(design_names())}")
    missing = [function for function in FUNCTIONS if not hasattr(module, function)]
    if missing:
        raise ValueError(f"design {name!r} does not define {', '.join(missing)}")
    return module


def _load_file(name: str, path: Path) -> ModuleType:
    qualified = f"vpmu_design_{name}"
    if qualified in sys.modules:
        return sys.modules[qualified]
    spec = importlib.util.spec_from_file_location(qualified, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[qualified] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[qualified]
        raise
    return module
