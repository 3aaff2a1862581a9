"""The real perf, and where it is missing, why a test is skipped."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_FOUND = shutil.which("perf")
_VERSION = subprocess.run(["perf", "--version"], capture_output=True, text=True).stdout if _FOUND else ""

needs_perf = pytest.mark.skipif(_FOUND is None, reason="perf is not installed (Debian: linux-perf)")

needs_perf_6_1 = pytest.mark.skipif(
    not _VERSION.startswith("perf version 6.1."),
    reason="perf 6.1 is not installed, whose formats these are (Debian 12: linux-perf)",
)


def perf(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run perf in the C locale, with no configuration of the user's."""
    environment = os.environ | {"LC_ALL": "C", "PERF_CONFIG": "/dev/null", "PAGER": "cat"}
    return subprocess.run(
        ["perf", *map(str, arguments)], capture_output=True, text=True, cwd=cwd, env=environment, check=False
    )


def perf_says(*arguments: object, cwd: Path) -> str:
    """Return perf's standard output; it must succeed and have nothing to complain about."""
    done = perf(*arguments, cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
