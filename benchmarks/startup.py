"""How long it takes to start: the command line, the kernels from the cache, the kernels compiled."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, Final

HELP: Final = ["-m", "vpmu.cli", "--help"]
KERNELS: Final = [
    "-c",
    "import vpmu.kernels.advance, vpmu.kernels.boot\n"
    "from vpmu.kernels.jit import compile_entries\n"
    "compile_entries()",
]
"""Imports the kernels and has every entry ready."""
WANTED: Final = 0.4
REPEATS: Final = 7


def seconds(arguments: list[str], **environment: str) -> float:
    """Return how long a new interpreter takes."""
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=os.environ | environment
    )
    return time.perf_counter() - begin


def _figure(name: str, value: float, baseline: float) -> dict[str, Any]:
    return {
        "name": name,
        "value": round(value, 2),
        "unit": "s",
        "baseline": round(baseline, 2),
        "ratio": round(value / baseline, 3),
    }


def measure() -> list[dict[str, Any]]:
    """Return the figures; the baseline of ``--help`` is what is allowed, that of the kernels to compile."""
    seconds(HELP)
    shown = statistics.median(seconds(HELP) for _ in range(REPEATS))
    with tempfile.TemporaryDirectory() as folder:
        cold = seconds(KERNELS, XDG_CACHE_HOME=folder)
        warm = statistics.median(seconds(KERNELS, XDG_CACHE_HOME=folder) for _ in range(REPEATS))
    return [
        _figure("start_help", shown, WANTED),
        _figure("start_kernels_cached", warm, cold),
        _figure("start_kernels_compiled", cold, cold),
    ]
