"""A cluster of three machines over TLS and CURVE; the cable of one is pulled, for a while or for good."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.links import Namespace, namespaces
from tests.chaos.runs import FLEET, files_of
from vpmu.cli import main

pytestmark = pytest.mark.chaos

WORKERS = 3
UNTIL = ["--until", os.environ.get("VPMU_CHAOS_UNTIL", "8 s")]


def arguments(out: Path) -> list[str]:
    return ["run", str(FLEET), "--design", "optimized", *UNTIL, "--quiet", "--out", str(out)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("expected") / "out"
    assert main(arguments(out)) == 0
    return files_of(out)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[list[Namespace]]:
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    keys = str(tmp_path / "keys")
    assert main(["cluster", "keys", keys]) == 0
    with namespaces(WORKERS + 1) as made:
        made[0].start("cluster", "scheduler", "--keys", keys, "--bind", "eth0")
        for each in made[1:]:
            each.start("cluster", "worker", scheduler(made), "--keys", keys, "--bind", "eth0")
        asked = ["cluster", "status", scheduler(made), "--keys", keys, "--at-least", str(WORKERS)]
        until(lambda: made[0].start(*asked).wait() == 0)
        yield made


def scheduler(machines: list[Namespace]) -> str:
    return f"tls://{machines[0].address}:8786"


def until(condition: Callable[[], bool], within_s: float = 120) -> None:
    """Wait for something outside: real processes on a real clock."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def wait_s(seconds: float) -> None:
    begin = time.monotonic()
    until(lambda: time.monotonic() > begin + seconds)


@pytest.mark.parametrize("seconds", [5, None], ids=["for 5 s", "for good"])
def test_a_cut_link_changes_no_byte(
    seconds: float | None, machines: list[Namespace], expected: dict[str, bytes], tmp_path: Path
):
    out = tmp_path / "out"
    cluster = ["--scheduler", scheduler(machines), "--keys", str(tmp_path / "keys"), "--bind", "eth0"]
    process = machines[0].start(*arguments(out), *cluster, "--workers", str(WORKERS), "--checkpoint", "1")
    design = out / "checkpoint" / "optimized"
    until(lambda: (design / "checkpoint-00000001.json").exists())
    machines[2].plug(False)
    if seconds is not None:
        wait_s(seconds)
        machines[2].plug(True)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert ("its process was lost" in said) == (seconds is None), said
    assert files_of(out) == expected
