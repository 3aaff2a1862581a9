"""docs/add-a-design.md, followed to the letter: a design given as one file takes part in everything."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.processes import untraced

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "add-a-design.md"
PAUSES = ROOT / "examples" / "designs" / "pauses.toml"
DESIGNS = ["optimized", "keep", "native"]
Summary = dict[str, Any]


def design_of_the_guide() -> str:
    """The guide's first block of Python."""
    found = re.search(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def vpmu(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vpmu.cli", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=untraced(), check=False, capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with nothing but the guide's design."""
    path = tmp_path_factory.mktemp("design")
    (path / "keep.py").write_text(design_of_the_guide())
    return path


@pytest.fixture(scope="module")
def run(directory: Path) -> tuple[str, Summary]:
    """What `vpmu run` printed, and its summary.json."""
    designs = "optimized,keep.py,native"
    done = vpmu("run", str(PAUSES), "--design", designs, "--out", "results", cwd=directory)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((directory / "results" / "summary.json").read_text())


def test_the_guide_shows_the_example():
    assert design_of_the_guide() == (ROOT / "examples" / "designs" / "keep.py").read_text()


def test_it_has_every_table_that_the_built_in_designs_have(run: tuple[str, Summary]):
    printed, _ = run
    titles = {
        name: re.findall(rf"^\s*{name}: (.*?)\s*$", printed, re.MULTILINE) for name in ("optimized", "keep")
    }
    assert titles["keep"] == titles["optimized"]
    assert titles["keep"]
    comparison = printed[printed.index("designs compared") :]
    assert re.search(r"^\s*what\s+optimized\s+keep\s+native\s*$", comparison, re.MULTILINE)


def test_it_is_in_the_results_like_any_other(run: tuple[str, Summary]):
    _, summary = run
    assert list(summary["designs"]) == DESIGNS
    assert len({result["digest"] for result in summary["designs"].values()}) == 3
    for result in summary["designs"].values():
        assert all(row["count"] == row["truth"] > 0 for row in result["counters"])


def test_it_runs_over_two_processes(run: tuple[str, Summary], directory: Path):
    _, summary = run
    workers = ["--workers", "2", "--place", "spread"]
    done = vpmu("run", str(PAUSES), "--design", "keep.py", *workers, "--out", "spread", cwd=directory)
    assert done.returncode == 0, done.stderr
    spread = json.loads((directory / "spread" / "summary.json").read_text())
    assert spread["designs"]["keep"]["digest"] == summary["designs"]["keep"]["digest"]


def test_it_does_what_the_guide_says(run: tuple[str, Summary]):
    _, summary = run
    reservations = [summary["designs"][name]["host"]["reservations"] for name in DESIGNS]
    # A session begins twice; what is released in between is reserved anew. On bare hardware nobody asks.
    assert reservations == [2, 1, 0]


def test_a_file_that_is_no_design_is_named(tmp_path: Path):
    (tmp_path / "half.py").write_text("def set_msr(): ...\n")
    done = vpmu("run", str(PAUSES), "--design", "half.py", cwd=tmp_path)
    assert done.returncode == 2
    assert "half.py: not a design, it lacks get_msr" in done.stderr
    assert "Traceback" not in done.stderr
