"""All benchmarks: ``python -m benchmarks [--only NAME] [--out FILE]`` prints a table, writes ``bench.json``.

Each figure is a name, a value with its unit, a baseline and the ratio of the two, measured in this run.
What a ratio has to be says `LIMITS`; the exit status is 1 if one is not.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any, Final

MODULES: Final = ("accesses", "fleet", "hub", "machine", "memory", "perfdata", "remote", "startup")
LIMITS: Final[dict[str, tuple[str, float]]] = {
    "msr_accesses": ("at least", 1.0),
    "msr_accesses_c_twin": ("at least", 0.5),
    "record_200_optimized": ("at least", 1.0),
    "record_200_legacy": ("at least", 1.0),
    "hub_32k_frames": ("at least", 0.6),
    "idle_vcpu": ("at most", 1.0),
    "perfdata": ("at least", 1.0),
    "perfdata_memory": ("at most", 1.0),
    "perfdata_two_cpus": ("at least", 1.0),
    "perfdata_two_cpus_memory": ("at most", 1.0),
    "remote_accesses": ("at least", 0.3),
    "remote_accesses_wanted": ("at least", 1.0),
    "start_help": ("at most", 1.0),
    "machine_guest": ("at least", 1.0),
}
"""What a ratio has to be."""


def verdict(figure: dict[str, Any]) -> str:
    """Return whether a figure is what it has to be: ``ok``, ``missed``, or nothing if no limit is set."""
    if figure["name"] not in LIMITS:
        return ""
    side, limit = LIMITS[figure["name"]]
    met = figure["ratio"] >= limit if side == "at least" else figure["ratio"] <= limit
    return "ok" if met else "missed"


def table(figures: list[dict[str, Any]]) -> str:
    """Return the figures as lines of text."""
    rows = [("figure", "value", "unit", "baseline", "ratio", "wanted", "")]
    for figure in figures:
        side, limit = LIMITS.get(figure["name"], ("", ""))
        numbers = (
            f"{figure['value']:,}",
            figure["unit"],
            f"{figure['baseline']:,}",
            f"{figure['ratio']:.3f}",
        )
        rows.append((figure["name"], *numbers, f"{side} {limit}".strip(), verdict(figure)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks and return the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks", description="Measure speed and memory.")
    parser.add_argument("--only", action="append", choices=MODULES, help="run this one; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    options = parser.parse_args(arguments)
    figures: list[dict[str, Any]] = []
    for name in options.only or MODULES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        figures += importlib.import_module(f"benchmarks.{name}").measure()
    options.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(table(figures))
    return int(any(verdict(figure) == "missed" for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
