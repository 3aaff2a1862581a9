"""``vpmu run --perf-data``: what it needs, what it leaves behind."""

import shutil
from pathlib import Path

import pytest
import trio

from tests.vpmu.perfdata.runs import MIX
from vpmu.cli import main
from vpmu.errors import Interrupted, UserError
from vpmu.execution import execute
from vpmu.options import RunOptions
from vpmu.scenario import load_scenario

SCENARIO = (
    """
version = 1
seed = 1
until = "20 ms"
"""
    + MIX
    + """
[[host]]
name = "server"
[[vm]]
name = "guest"
[[vm.thread]]
name = "mix"
[[vm.session]]
tool = "record"
thread = "mix"
[[vm.session]]
tool = "stat"
thread = "mix"
events = ["branches"]
"""
)


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    path = tmp_path / "s.toml"
    path.write_text(SCENARIO)
    return str(path)


def command(scenario: str, out: Path, *more: str) -> int:
    return main(["run", scenario, "--design", "optimized", "--quiet", "--out", str(out), *more])


def test_it_writes_one_file_for_each_session(scenario: str, tmp_path: Path):
    assert command(scenario, tmp_path / "out", "--perf-data", "--keep", "none") == 0
    assert sorted(path.name for path in (tmp_path / "out" / "optimized").iterdir()) == [
        "perf",
        "truth.parquet",
    ]
    assert sorted(path.name for path in (tmp_path / "out" / "optimized" / "perf").iterdir()) == [
        "guest.record0.data",
        "guest.stat1.csv",
        "guest.stat1.data",
        "guest.stat1.json",
        "guest.stat1.txt",
        "symfs",
    ]


def test_it_needs_a_directory(scenario: str, capsys: pytest.CaptureFixture[str]):
    assert main(["run", scenario, "--perf-data"]) == 2
    assert capsys.readouterr() == ("", "--perf-data: needs --out DIR, where its files go\n")


def test_a_later_run_leaves_no_file_of_an_earlier_one(scenario: str, tmp_path: Path):
    out = tmp_path / "out"
    assert command(scenario, out, "--perf-data") == 0
    assert command(scenario, out, "--perf-data", "--set", "vm.guest.session.0.name=other") == 0
    assert [path.name for path in (out / "optimized" / "perf").glob("*.data")] in (
        [["guest.other.data", "guest.stat1.data"], ["guest.stat1.data", "guest.other.data"]]
    )
    assert command(scenario, out) == 0
    assert not (out / "optimized" / "perf").exists()
    assert command(scenario, out, "--perf-data") == 0
    assert main(["run", scenario, "--design", "native", "--quiet", "--out", str(out)]) == 0
    assert not (out / "optimized" / "perf").exists()


def test_what_cannot_be_written_is_one_line(
    scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert command(scenario, out) == 0
    for path in (out / "optimized").iterdir():
        path.unlink()
    (out / "optimized").rmdir()
    (out / "optimized").write_text("in the way")
    assert command(scenario, out, "--perf-data") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "cannot write: " in lines[0]


def test_a_design_that_is_interrupted_leaves_no_file(scenario: str, tmp_path: Path):
    out = tmp_path / "out"

    def stop_in_the_second(design: str, at_ns: int) -> None:
        if design == "native":
            raise KeyboardInterrupt

    options = RunOptions(designs=("optimized", "native"), out=out, perf_data=True)
    with pytest.raises(Interrupted, match="missing: native"):
        trio.run(execute, load_scenario(scenario, []), options, stop_in_the_second)
    assert (out / "optimized" / "perf" / "guest.record0.data").exists()
    assert [path for path in (out / "native").iterdir() if "perf" in path.name] == []


def test_a_directory_that_goes_away_is_one_error(scenario: str, tmp_path: Path):
    out = tmp_path / "out"

    def take_away(design: str, at_ns: int) -> None:
        shutil.rmtree(out / "native" / ".perf.part", ignore_errors=True)

    options = RunOptions(designs=("native",), out=out, perf_data=True)
    with pytest.raises(UserError, match=r"guest\.record0\.data: cannot write: No such file or directory"):
        trio.run(execute, load_scenario(scenario, []), options, take_away)
