"""Checkpoints within one process: what they hold, what goes on from them, and which are refused."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.cluster.machines import differences, machine_of, run_here, run_in_threads, scenario_text
from tests.vpmu.test_fleet import FLEET
from vpmu.build import build
from vpmu.cluster import checkpoint, pace
from vpmu.cluster.checkpoint import FileNote, Keeper, Manifest, Note, ranges_of, read_manifest
from vpmu.cluster.errors import GangError, RemoteProtocolError
from vpmu.kernels.columns import R_KEEP
from vpmu.scenario import load_scenario

TEXT = scenario_text(7, "60 ms", [(4, 2, 4), (2, 0, 3)], watchdog=True, tool=True)


def fleet() -> Any:
    machine = build(load_scenario(FLEET, ["until=120 ms"]), "optimized")
    machine.arena[R_KEEP] = 0x7E
    return machine


def small() -> Any:
    return machine_of(TEXT, "legacy")


@cache
def expected(make: Callable[[], Any]):
    machine = make()
    return machine, run_here(machine)


@pytest.fixture
def every_checkpoint(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoint, "KEPT", 1_000_000)
    monkeypatch.setattr(checkpoint, "_PIECE_RECORDS", 7)
    monkeypatch.setattr(pace, "FIRST_NS", 3_300_000)


def manifests_in(directory: Path) -> list[Path]:
    return sorted(directory.glob("checkpoint-*.json"))


def files_in(directory: Path) -> dict[str, int]:
    """Return the sizes of all files but the manifests."""
    return {path.name: path.stat().st_size for path in directory.iterdir() if path.suffix != ".json"}


async def full_run(make: Callable[[], Any], directory: Path, workers: int):
    machine = make()
    return await run_in_threads(machine, workers=workers, keeper=Keeper(directory, machine, 0.0))


@pytest.mark.parametrize("make", [fleet, small])
@pytest.mark.parametrize(("workers", "then"), [(1, 2), (2, 3), (3, 1)])
async def test_a_run_goes_on_from_any_checkpoint_on_any_number_of_workers(
    make: Callable[[], Any], workers: int, then: int, tmp_path: Path, every_checkpoint: None
):
    there, records = expected(make)
    outcome, found = await full_run(make, tmp_path, workers)
    assert differences(there, outcome) == []
    assert np.array_equal(found, records)
    manifests = manifests_in(tmp_path)
    assert len(manifests) > 8
    for manifest in manifests[len(manifests) // (then + 1) :]:
        manifest.unlink()
    machine = make()
    outcome, found = await run_in_threads(machine, workers=then, keeper=Keeper(tmp_path, machine, 1e9))
    assert differences(there, outcome) == []
    assert np.array_equal(found, records)


async def test_two_checkpoints_are_kept_and_nothing_that_belongs_to_none(tmp_path: Path):
    await full_run(small, tmp_path, 2)
    manifests = [read_manifest(path) for path in manifests_in(tmp_path)]
    assert len(manifests) == 2
    named = {note.name for each in manifests for note in [*each.states, *each.journals]}
    assert files_in(tmp_path).keys() == named
    keeper = Keeper(tmp_path, small(), 1e9)
    start = keeper.begin()
    assert (start.writing.at_ns, start.writing.attempt) == (manifests[-1].at_ns, 1)
    assert {each.name: each.size for each in manifests[-1].journals}.items() <= files_in(tmp_path).items()


def last(directory: Path, pattern: str) -> Path:
    """Return the file that was made last."""
    return max(directory.glob(pattern), key=lambda path: int(path.stem.rpartition("-")[2]))


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def flip_manifest(directory: Path) -> Path:
    path = last(directory, "checkpoint-*")
    flip(path, path.read_bytes().index(b"at_ns") + 8)
    return path


def flip_state(directory: Path) -> Path:
    path = last(directory, "state-0-1-*")
    flip(path)
    return path


def cut_state(directory: Path) -> Path:
    path = last(directory, "state-0-0-*")
    path.write_bytes(path.read_bytes()[:-8])
    return path


def remove_state(directory: Path) -> Path:
    path = last(directory, "state-0-0-*")
    path.unlink()
    return path


def other_format(directory: Path) -> Path:
    path = last(directory, "checkpoint-*")
    path.write_bytes(path.read_bytes().replace(b'{"format":1', b'{"format":9'))
    return path


@pytest.mark.parametrize(
    ("damage", "how"),
    [
        (flip_manifest, "its SHA-256 is another"),
        (flip_state, "its SHA-256 is another"),
        (cut_state, "8 bytes short"),
        (remove_state, "is missing"),
        (other_format, "has format 9, this is 1"),
    ],
)
async def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_used(
    damage: Callable[[Path], Path], how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    there, records = expected(small)
    await full_run(small, tmp_path, 2)
    before = read_manifest(manifests_in(tmp_path)[0])
    damaged = damage(tmp_path)
    machine = small()
    keeper = Keeper(tmp_path, machine, 1e9)
    assert keeper.begin().writing.at_ns == before.at_ns
    assert f"refused: {damaged}" in caplog.text
    assert how in caplog.text
    outcome, found = await run_in_threads(machine, workers=2, keeper=keeper)
    assert differences(there, outcome) == []
    assert np.array_equal(found, records)


async def test_when_none_is_whole_the_run_begins_anew(tmp_path: Path):
    there, records = expected(small)
    await full_run(small, tmp_path, 2)
    for name in files_in(tmp_path):
        if name.startswith("journal-"):
            flip(tmp_path / name, 0)
    machine = small()
    outcome, found = await run_in_threads(machine, workers=2, keeper=Keeper(tmp_path, machine, 1e9))
    assert differences(there, outcome) == []
    assert np.array_equal(found, records)


async def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path):
    await full_run(small, tmp_path, 1)
    other = machine_of(TEXT.replace("seed = 7", "seed = 8"), "legacy")
    with pytest.raises(GangError, match="is of another run: the scenario, its programs or vpmu itself"):
        Keeper(tmp_path, other, 1e9).begin()


async def test_workers_that_do_not_see_the_directory_say_so(tmp_path: Path):
    machine = small()
    keeper = Keeper(tmp_path / "there", machine, 0.0)
    begin = keeper.begin

    def elsewhere():
        start = begin()
        start.writing = msgspec.structs.replace(start.writing, directory=str(tmp_path / "elsewhere"))
        return start

    keeper.begin = elsewhere  # type: ignore[method-assign]
    with pytest.raises(GangError, match="elsewhere is not there: checkpoints need a directory that every"):
        await run_in_threads(machine, workers=2, keeper=keeper)


def note(number: int = 1, rank: int = 0, **choices: Any) -> bytes:
    state, journal = FileNote(f"state-0-{rank}-{number}", 8, ""), FileNote(f"journal-0-{rank}", 0, "")
    made = Note(number, 5, 2, state, journal, [])
    return msgspec.msgpack.encode(msgspec.structs.replace(made, **choices))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"nonsense", "bad note"),
        (note(state=FileNote("../../etc/passwd", 1, "")), "another's files"),
        (note(rank=1), "another's files"),
        (note(at_ns=6), "does not fit"),
        (note(due=[(1, 2, "leaves", False, 0)]), "does not fit"),
    ],
)
def test_a_note_that_makes_no_sense_is_refused(data: bytes, why: str, tmp_path: Path):
    keeper = Keeper(tmp_path, small(), 0.0)
    keeper.begin()
    keeper.take(1, note(rank=1))
    with pytest.raises(RemoteProtocolError, match=why):
        keeper.take(0, data)
    assert list(tmp_path.glob("checkpoint-*")) == []
    keeper.take(0, note())
    assert [read_manifest(path).number for path in tmp_path.glob("checkpoint-*")] == [1]


def test_ranges_are_sorted_and_neighbours_one():
    assert ranges_of([(10, 2), (0, 4), (4, 6), (20, 1), (30, 0)]).tolist() == [[0, 12], [20, 1]]
    assert ranges_of([]).tolist() == []


def test_a_manifest_is_written_at_once_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "checkpoint-00000001.json"
    manifest = Manifest(1, 5, 0, "", [], [], [(1, 2, "leaves", False, 0)])
    checkpoint.write_manifest(path, manifest)
    assert read_manifest(path) == manifest
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="the disk is full"):
        checkpoint.write_manifest(path, msgspec.structs.replace(manifest, number=2))
    assert read_manifest(path) == manifest


def fail(descriptor: int) -> None:
    raise OSError("the disk is full")
