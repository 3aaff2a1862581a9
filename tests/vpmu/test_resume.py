"""Runs that are stopped from outside go on to the same files: by themselves, or by ``vpmu resume``."""

import signal
from pathlib import Path

import pytest

from tests.chaos.runs import FLEET, Run, files_of
from vpmu.cli import main
from vpmu.errors import UserError
from vpmu.results import check_out_directory
from vpmu.resume import can_resume, read_note

UNTIL = ["--set", "until=700 ms"]


def arguments(out: Path, *more: str) -> list[str]:
    return ["run", str(FLEET), "--design", "legacy,optimized", *UNTIL, "--out", str(out), "--quiet", *more]


def manifests(out: Path, design: str = "optimized") -> list[Path]:
    return list((out / "checkpoint" / design).glob("checkpoint-*"))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("expected") / "out"
    assert main(arguments(out)) == 0
    return files_of(out)


def test_a_killed_worker_costs_nothing_but_time(expected: dict[str, bytes], tmp_path: Path):
    out = tmp_path / "out"
    run = Run(arguments(out, "--workers", "2", "--checkpoint", "0.2"))
    assert run.wait_for(lambda: bool(manifests(out)) and run.kill(1))
    status, said = run.end()
    assert status == 0, said
    assert "its process was lost: killed; the run goes on from its last checkpoint" in said
    assert files_of(out) == expected


def test_without_checkpoints_a_run_that_lost_a_worker_begins_anew(expected: dict[str, bytes], tmp_path: Path):
    out = tmp_path / "out"
    run = Run(arguments(out, "--workers", "2"))
    assert run.wait_for(lambda: len(run.workers()) == 2 and run.kill())
    status, said = run.end()
    assert status == 0, said
    assert "the run goes on from its start" in said
    assert files_of(out) == expected


def test_a_run_goes_on_after_ctrl_c_on_another_number_of_workers(expected: dict[str, bytes], tmp_path: Path):
    out = tmp_path / "out"
    run = Run(arguments(out, "--workers", "2", "--checkpoint", "0.2"))
    assert run.wait_for(lambda: len(manifests(out)) == 2)
    run.process.send_signal(signal.SIGINT)
    status, said = run.end()
    assert status == 130
    assert said == f'interrupted: Ctrl-C; missing: optimized; go on with "vpmu resume {out}"\n'
    with pytest.raises(UserError, match="holds a run that was stopped: go on with"):
        check_out_directory(out)
    assert read_note(out).workers == 2
    assert main(["resume", str(out), "--workers", "1", "--quiet"]) == 0
    assert files_of(out) == expected
    assert not can_resume(out)


def test_a_full_disk_stops_a_run_with_the_reason_and_it_goes_on_later(
    expected: dict[str, bytes], tmp_path: Path
):
    out = tmp_path / "out"
    run = Run(arguments(out, "--workers", "2", "--checkpoint", "0.2"), most_bytes=1 << 20)
    status, said = run.end()
    assert status == 1
    assert "File too large" in said
    assert f'go on with "vpmu resume {out}"' in said
    assert "Traceback" not in said
    assert main(["resume", str(out), "--quiet"]) == 0
    assert files_of(out) == expected


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--checkpoint", "1"], "--checkpoint: needs --out DIR"),
        (["--checkpoint", "1", "--messages", "--out", "OUT"], "--messages: a checkpoint needs whole hosts"),
        (["--checkpoint", "1", "--place", "spread", "--out", "OUT"], "--place: a checkpoint needs whole"),
    ],
)
def test_what_cannot_be_had_together(
    more: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = str(tmp_path / "out")
    assert main(["run", str(FLEET), *(out if each == "OUT" else each for each in more)]) == 2
    assert why in capsys.readouterr().err


def test_a_directory_without_a_run_to_go_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["resume", str(tmp_path)]) == 2
    assert "no run to go on with: No such file" in capsys.readouterr().err
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "run.json").write_text("{")
    assert main(["resume", str(tmp_path)]) == 2
    assert "run.json: damaged" in capsys.readouterr().err
