"""The mutation run, and that what it leaves alone is what the list says."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conformance.mutants import ROOT, equivalents, mutants


def test_every_mutant_has_a_name_of_its_own_and_the_equivalent_ones_exist():
    names = [mutant.name for mutant in mutants()]
    assert len(names) == len(set(names)) >= 100
    assert equivalents().keys() <= set(names)
    assert any("LVTPC] |= s[v + V_MASKED]" in name for name in names), "LVTPC auto-mask"


@pytest.mark.mutants
def test_every_mutant_is_caught_or_equivalent():
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-m", "tests.conformance.mutants"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-2_000:]
