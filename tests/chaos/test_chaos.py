"""Whatever dies: processes killed at any time, stopped, starved of disk; the files are the same bytes."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.chaos.runs import FLEET, Run, files_of
from vpmu.cli import main

pytestmark = pytest.mark.chaos

DESIGN = "optimized"
UNTIL = ["--set", f"until={os.environ.get('VPMU_CHAOS_UNTIL', '4 s')}"]


def arguments(out: Path, *more: str) -> list[str]:
    kept = ["--keep", "samples,pmis,switches", "--perf-data", "--quiet"]
    return ["run", str(FLEET), "--design", DESIGN, *UNTIL, "--out", str(out), *kept, *more]


def start(out: Path) -> Run:
    return Run(arguments(out, "--workers", "2", "--checkpoint", "0.5"))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("expected") / "out"
    assert main(arguments(out)) == 0
    return files_of(out)


def names(out: Path) -> set[str]:
    try:
        return {path.name for path in (out / "checkpoint" / DESIGN).iterdir()}
    except FileNotFoundError:
        return set()


def while_starting(run: Run, out: Path, draw: random.Random) -> bool:
    """A moment before the ranks begin: some worker is up, or will be in a moment."""
    wait_s = draw.uniform(0, 1.2)
    return run.wait_for(lambda: bool(run.workers())) and run.wait_for(elapsed(wait_s))


def between_checkpoints(run: Run, out: Path, draw: random.Random) -> bool:
    """A moment of a window in the middle of the run."""
    wait_s = draw.uniform(0, 1.5)
    return run.wait_for(lambda: "checkpoint-00000001.json" in names(out)) and run.wait_for(elapsed(wait_s))


def while_writing(run: Run, out: Path, draw: random.Random) -> bool:
    """A moment when a state file is there, but not its manifest."""
    number = draw.randrange(2, 5)
    return run.wait_for(
        lambda: any(name.startswith("state-") and name.endswith(f"-{number}") for name in names(out))
    )


def at_the_end(run: Run, out: Path, draw: random.Random) -> bool:
    """A moment when the last checkpoints have been written, or the results are."""
    wait_s = draw.uniform(0, 1)
    return run.wait_for(lambda: far(out)) and run.wait_for(elapsed(wait_s))


def far(out: Path) -> bool:
    return max(checkpoints(out), default="") >= "checkpoint-00000007"


def newer(out: Path) -> Callable[[], bool]:
    """Return what says whether a checkpoint is complete that is not there now."""
    before = max(checkpoints(out), default="")
    return lambda: max(checkpoints(out), default="") > before


def checkpoints(out: Path) -> list[str]:
    return [name for name in names(out) if name.startswith("checkpoint-")]


def elapsed(wait_s: float) -> Callable[[], bool]:
    until = time.monotonic() + wait_s
    return lambda: time.monotonic() >= until


MOMENTS = [while_starting, between_checkpoints, while_writing, at_the_end]


@pytest.mark.parametrize("seed", range(20))
def test_a_kill_at_any_time_changes_no_byte(seed: int, expected: dict[str, bytes], tmp_path: Path):
    draw = random.Random(seed)
    moment = MOMENTS[seed % len(MOMENTS)]
    run = start(tmp_path / "out")
    killed = moment(run, tmp_path / "out", draw) and run.kill(draw.randrange(2))
    status, said = run.end()
    print(f"{moment.__name__}, killed: {killed}; the run said: {said}")  # for pytest -rP
    assert status == 0, said
    assert killed or moment is at_the_end
    # Who is killed before he has a rank is started anew, and who has handed in his part is not missed.
    assert ("lost" in said) == killed or moment in (while_starting, at_the_end), said
    assert files_of(tmp_path / "out") == expected


def test_five_kills_change_no_byte(expected: dict[str, bytes], tmp_path: Path):
    draw = random.Random(5)
    run = start(tmp_path / "out")
    for number in range(5):
        assert run.wait_for(elapsed(draw.uniform(0.2, 1.2)))
        assert run.wait_for(lambda: bool(run.workers()))
        assert run.kill(number)
    status, said = run.end()
    assert (status, said.count("the run goes on")) == (0, 5), said
    assert files_of(tmp_path / "out") == expected


def test_a_worker_that_is_stopped_for_ten_seconds_changes_no_byte(expected: dict[str, bytes], tmp_path: Path):
    out = tmp_path / "out"
    run = start(out)
    assert between_checkpoints(run, out, random.Random(0))
    victim = run.workers()[0]
    victim.send_signal(signal.SIGSTOP)
    assert run.wait_for(elapsed(10))
    victim.send_signal(signal.SIGCONT)
    assert run.end() == (0, "")
    assert files_of(out) == expected


def test_a_run_whose_own_process_is_killed_goes_on_when_asked_to(expected: dict[str, bytes], tmp_path: Path):
    out = tmp_path / "out"
    run = start(out)
    assert between_checkpoints(run, out, random.Random(1))
    workers = run.workers()
    run.process.kill()
    run.process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == []
    assert Run(["resume", str(out), "--quiet"]).end() == (0, "")
    assert files_of(out) == expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that is soon full; as big as is needed once it is mounted again."""
    if os.geteuid():
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_stops_the_run_and_it_goes_on_with_a_larger_one(
    expected: dict[str, bytes], small_disk: Path
):
    out = small_disk / "out"
    status, said = start(out).end()
    assert status == 1
    assert "No space left on device" in said
    assert said.endswith(f'go on with "vpmu resume {out}"\n')
    subprocess.run(["mount", "-o", "remount,size=2g", small_disk], check=True)
    assert main(["resume", str(out), "--quiet", "--workers", "3"]) == 0
    assert files_of(out) == expected


def test_ctrl_c_again_and_again(expected: dict[str, bytes], tmp_path: Path):
    out = tmp_path / "out"
    run = start(out)
    for workers in (1, 3, 2):
        assert run.wait_for(newer(out))
        run.process.send_signal(signal.SIGINT)
        assert run.end()[0] == 130
        run = Run(["resume", str(out), "--quiet", "--workers", str(workers)])
    assert run.end() == (0, "")
    assert files_of(out) == expected
