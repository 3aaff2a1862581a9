"""One fleet, one result: 20 hosts, 400 CPUs, 2,000 VMs, both designs, migrations, tools; run everywhere."""

import json
from pathlib import Path

import pytest

from tests.chaos.runs import FLEET, files_of
from vpmu.cli import main

pytestmark = pytest.mark.chaos


def run(out: Path, workers: int, place: str) -> dict[str, bytes]:
    choices = ["--workers", str(workers), "--place", place, "--keep", "samples,pmis,switches", "--quiet"]
    status = main(["run", str(FLEET), "--design", "optimized", "--out", str(out), *choices])
    assert status == 0
    return files_of(out)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return run(tmp_path_factory.mktemp("alone") / "out", 1, "packed")


@pytest.mark.parametrize(
    ("workers", "place"),
    [
        (2, "packed"),
        (3, "packed"),
        (4, "packed"),
        (2, "split:old.3"),
        (2, "random:1"),
        (3, "random:2"),
        (4, "random:3"),
    ],
)
def test_wherever_it_runs_every_file_is_the_same(
    alone: dict[str, bytes], workers: int, place: str, tmp_path: Path
):
    found = run(tmp_path / "out", workers, place)
    digest = json.loads(found["summary.json"])["digest"]
    print(f"{workers} workers, {place}: {digest}")  # for pytest -rP
    assert found == alone
