"""The way from the engine to a run's design: one kernel per design function, switching on its number.

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

_HEADER = '''"""Generated: calls the design whose number is in the run's row."""

import numpy as np

from vpmu.kernels.columns import R_DESIGN
from vpmu.kernels.jit import U64, Arena, inlined, kernel

Result = tuple[np.uint64, np.uint64, np.uint64, np.uint64]

'''
_ON_EVERY_ACCESS = ("vm_entry", "vm_exit")
_PARAMETERS = "s, v, p, index, value, now"
_ANNOTATED = "s: Arena, v: np.uint64, p: np.uint64, index: np.uint64, value: np.uint64, now: np.uint64"


def source(names: list[str]) -> str:
    """Return the text of the dispatch module for these designs."""
    lines = [_HEADER]
    for name in names:
        module = load_design(name).__name__
        imports = [f"{function} as {name}_{function}" for function in FUNCTIONS]
        lines.append(f"from {module} import {', '.join(imports)}")
    for function in FUNCTIONS:
        lines += [
            "",
            "",
            "@inlined" if function in _ON_EVERY_ACCESS else "@kernel",
            f"def {function}({_ANNOTATED}) -> Result:",
            '    """Call the run\'s design."""',
        ]
        lines.append("    design = s[R_DESIGN]")
        for number, name in enumerate(names[:-1]):
            lines.append(f"    if design == U64({number}):")
            lines.append(f"        return {name}_{function}({_PARAMETERS})")
        lines.append(f"    return {names[-1]}_{function}({_PARAMETERS})")
    return "\n".join(lines) + "\n"


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
set_msr = _module.set_msr
get_msr = _module.get_msr
rdpmc = _module.rdpmc
deliver_pmi = _module.deliver_pmi
perf_arguments = _module.perf_arguments
perf_done = _module.perf_done
sched_in = _module.sched_in
sched_out = _module.sched_out
vm_entry = _module.vm_entry
vm_exit = _module.vm_exit
destroy = _module.destroy
