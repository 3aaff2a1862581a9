"""Has some mutants compiled, in a copy of the sources, and sees that they end as they do uncompiled.

``python -m tests.conformance.compiled TEXT...`` takes the first mutant whose name holds each text. One takes
about a minute, nearly all of it compilation.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.conformance.flips import ROOT, Mutant, flipped, mutants
from tests.conformance.mutants import Verdict, order

ROOMS: Final = ("kernels", "actors", "cluster", "vpmu", "tests", "examples")
MOST: Final = 3
"""Cases of a rule and a family."""
SECONDS: Final = 1200

_RUN: Final = """
import json, sys
from tests.conformance import flips, mutants
mutants.CASE_SECONDS = 300  # the first case compiles
if sys.argv[1]:
    flips.apply(next(each for each in flips.mutants() if each.name == sys.argv[1]))
print(json.dumps(mutants.run_until_caught(json.loads(sys.argv[2]))))
"""


def verdict(root: Path, name: str, indexes: list[int], **environment: str) -> Verdict:
    """Run cases in another process, on the sources of a folder, with a mutant put in or none."""
    command = [sys.executable, "-c", _RUN, name, json.dumps(indexes)]
    variables = {**os.environ, "PYTHONPATH": str(root), **environment}
    try:
        done = subprocess.run(
            command, cwd=root, env=variables, stdout=subprocess.PIPE, check=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return Verdict("", -1, "hangs", SECONDS)
    return Verdict(*json.loads(done.stdout))


def compiled(mutant: Mutant, indexes: list[int]) -> Verdict:
    """Return what becomes of a mutant that is compiled."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for room in ROOMS:
            shutil.copytree(ROOT / room, root / room, symlinks=True)
        source = Path(root, "kernels", *mutant.module.split(".")).with_suffix(".py")
        source.write_text(ast.unparse(flipped(mutant)))
        return verdict(root, "", indexes, VPMU_CACHE_DIR=str(root / "cache"))


def main() -> int:
    """Compare; return 1 if one ends another way."""
    indexes, differ = order(MOST), 0
    for text in sys.argv[1:]:
        mutant = next(each for each in mutants() if text in each.name and each.at >= 0)
        one = verdict(ROOT, mutant.name, indexes, NUMBA_DISABLE_JIT="1")
        other = compiled(mutant, indexes)
        same = (one.rule, one.case) == (other.rule, other.case)
        differ += not same
        print(
            f"{'same' if same else 'DIFFERENT'}: {mutant.name}: {one.rule or 'survived'} {one.how},", end=" "
        )
        print(f"compiled {other.rule or 'survived'} {other.how} {other.seconds:.0f} s", flush=True)
    return int(bool(differ))


if __name__ == "__main__":
    sys.exit(main())
