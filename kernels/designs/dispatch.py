"""The way from the engine to a host's design: one kernel per design function, switching on its number.

Functions passed to a kernel, or kept in a table, never hit numba's disk cache in a new process; a chain of
comparisons over module-level names does. The chain depends on which designs there are, so it is written to a
module in the cache directory.
"""

import hashlib
import importlib.util
import os
import sys
from types import ModuleType

from vpmu.kernels import jit
from vpmu.kernels.designs.registry import FUNCTIONS, design_names, load_design

_HEADER = '''"""Generated: calls the design whose number is in the physical CPU's row."""

import numpy as np

from vpmu.kernels.columns import P_DESIGN
from vpmu.kernels.designs.access import access_kernel
from vpmu.kernels.jit import U64, Arena, inlined, kernel

Result = tuple[np.uint64, np.uint64, np.uint64, np.uint64]

'''
_ACCESS = ("set_msr", "get_msr", "rdpmc", "trigger_event", "vm_entry", "vm_exit")
"""What an access is made of, in the order of `access_kernel`'s parameters."""
_PARAMETERS = "s, v, p, index, value, now"
_ANNOTATED = "s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64"


def source(names: list[str]) -> str:
    """Return the text of the dispatch module for these designs."""
    lines = [_HEADER]
    for name in names:
        module = load_design(name).__name__
        imports = [f"{function} as {name}_{function}" for function in (*FUNCTIONS, "INTERCEPTS")]
        lines.append(f"from {module} import {', '.join(imports)}")
    for name in names:
        parts = ", ".join(f"{name}_{function}" for function in _ACCESS)
        lines.append(f"{name}_access = access_kernel({parts}, intercepts={name}_INTERCEPTS)")
    lines += _switch("access", names, "s: Arena, p: np.uint64, v: np.uint64, g: np.uint64", "s, p, v, g")
    for function in FUNCTIONS:
        lines += _switch(function, names, _ANNOTATED, _PARAMETERS)
    return "\n".join(lines) + "\n"


def _switch(function: str, names: list[str], annotated: str, parameters: str) -> list[str]:
    """Return the lines of the kernel that calls one function of the host's design."""
    lines = [
        "",
        "",
        "@kernel",
        f"def {function}({annotated}) -> Result:",
        '    """Call the host\'s design."""',
        "    design = s[p + P_DESIGN]",
    ]
    for number, name in enumerate(names[:-1]):
        lines.append(f"    if design == U64({number}):")
        lines.append(f"        return {name}_{function}({parameters})")
    return [*lines, f"    return {names[-1]}_{function}({parameters})"]


def _load() -> ModuleType:
    text = source(design_names())
    name = f"vpmu_dispatch_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    path = jit.cache_directory() / f"{name}.py"
    if not path.exists() or path.read_text() != text:
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.write_text(text)
        scratch.replace(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_module = _load()
access = _module.access
set_msr = _module.set_msr
get_msr = _module.get_msr
rdpmc = _module.rdpmc
trigger_event = _module.trigger_event
deliver_pmi = _module.deliver_pmi
perf_arguments = _module.perf_arguments
perf_done = _module.perf_done
sched_in = _module.sched_in
sched_out = _module.sched_out
vm_entry = _module.vm_entry
vm_exit = _module.vm_exit
destroy = _module.destroy
