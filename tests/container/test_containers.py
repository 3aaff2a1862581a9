"""The real image as a cluster of machines: a scheduler, four workers and the run, each with an address."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.container.machines import ROOT, Builder, Container, Image, containers, cpu_seconds
from vpmu.cli import main

pytestmark = pytest.mark.container

SCENARIO = "/usr/share/vpmu/examples/scale/record-200.toml"
FLEET = "/usr/share/vpmu/examples/fleet/fleet.toml"
SCHEDULER, WORKERS, RUN = 1, range(2, 6), 6
NR_WORKERS = 4
UNTIL = os.environ.get("VPMU_CONTAINER_UNTIL", "60 s")


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    missing = [tool for tool in ("buildah", "debootstrap", "ip", "unshare") if shutil.which(tool) is None]
    assert missing == [], "the tests of containers need them"
    assert os.geteuid() == 0, "the tests of containers need root"
    return Builder(tmp_path_factory.mktemp("image")).build()


@pytest.fixture
def machines(image: Image, tmp_path: Path) -> Iterator[dict[int, Container]]:
    out = tmp_path / "out"
    out.mkdir()
    os.chown(out, 1000, 1000)
    with containers(image, range(1, RUN + 1), tmp_path / "layers", tmp_path / "keys", out) as made:
        (tmp_path / "keys").mkdir()
        os.chown(tmp_path / "keys", 1000, 1000)
        status, said = made[RUN].run("cluster", "keys", "/keys")
        assert status == 0, said
        yield made


@pytest.fixture
def cluster(machines: dict[int, Container]) -> dict[int, Container]:
    machines[SCHEDULER].start("cluster", "scheduler", "--bind", "eth0")
    for number in WORKERS:
        machines[number].start("cluster", "worker", scheduler(machines), "--bind", "eth0")
    until(
        lambda: (
            machines[RUN].run("cluster", "status", scheduler(machines), "--at-least", str(NR_WORKERS))[0] == 0
        )
    )
    return machines


def scheduler(machines: dict[int, Container]) -> str:
    return f"tls://{machines[SCHEDULER].address}:8786"


def until(condition: Callable[[], Any], within_s: float = 120) -> None:
    """Wait for something outside: real processes on a real clock."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def where(machines: dict[int, Container]) -> list[str]:
    return ["--scheduler", scheduler(machines), "--bind", "eth0", "--workers", str(NR_WORKERS)]


def arguments(machines: dict[int, Container], name: str) -> list[str]:
    return [
        "run",
        SCENARIO,
        "--until",
        UNTIL,
        "--design",
        "legacy",
        *where(machines),
        "--out",
        f"/out/{name}",
        "--quiet",
    ]


def digest(machines: dict[int, Container], name: str) -> str:
    summary = json.loads((machines[RUN].out / name / "summary.json").read_text())
    assert isinstance(summary["digest"], str)
    return summary["digest"]


@pytest.fixture(scope="session")
def expected(image: Image, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of one process in one container, without a network."""
    top = tmp_path_factory.mktemp("alone")
    for name in ("keys", "out"):
        (top / name).mkdir()
        os.chown(top / name, 1000, 1000)
    with containers(image, range(RUN, RUN + 1), top / "layers", top / "keys", top / "out") as made:
        command = ["run", SCENARIO, "--until", UNTIL, "--design", "legacy", "--out", "/out/alone", "--quiet"]
        status, said = made[RUN].run(*command)
        assert status == 0, said
        return digest(made, "alone")


def test_the_image_is_not_roots_and_says_how_it_is(image: Image):
    assert image.user == "vpmu"
    assert "vpmu cluster status" in image.health[-1]
    assert {"NUMBA_CPU_NAME=generic", "NUMBA_CPU_FEATURES="} <= set(image.environment)


def test_a_process_finds_every_kernel_in_the_images_cache(machines: dict[int, Container]):
    find = "find /var/cache/vpmu -name '*.nb[ic]'"
    count = f"{find} | sort | xargs sha256sum | sha256sum; {find} | wc -l"
    script = (
        f"{count}; vpmu compile; vpmu run {SCENARIO} --until '10 ms' --workers 2 --messages --quiet; {count}"
    )
    status, said = machines[RUN].run("sh", "-c", script, entry=False)
    assert status == 0, said
    lines = said.splitlines()
    assert lines[:2] == lines[2:], "something was compiled anew"
    assert int(lines[1]) >= 3


def test_four_machines_give_the_bytes_of_one(cluster: dict[int, Container], expected: str):
    status, said = cluster[RUN].run(*arguments(cluster, "four"))
    assert (status, said) == (0, "")
    assert digest(cluster, "four") == expected


def test_a_fleet_on_four_machines_gives_the_bytes_of_one_outside(
    cluster: dict[int, Container], tmp_path: Path
):
    """Both designs, migrations, tools; kernels compiled for this machine against the image's own."""
    alone = tmp_path / "alone"
    fleet = ["--design", "optimized", "--quiet"]
    assert main(["run", str(ROOT / "examples/fleet/fleet.toml"), *fleet, "--out", str(alone)]) == 0
    expected = json.loads((alone / "summary.json").read_text())["digest"]
    placed = [*where(cluster), "--place", "random:4"]
    for name, more in (("one", []), ("many", where(cluster)), ("anywhere", placed)):
        status, said = cluster[RUN].run("run", FLEET, *fleet, "--out", f"/out/{name}", *more)
        assert (status, said) == (0, "")
        assert digest(cluster, name) == expected


def test_nobody_gets_in_without_the_keys(cluster: dict[int, Container]):
    status, said = cluster[RUN].run(
        "sh",
        "-c",
        f"vpmu cluster keys /tmp/k >/dev/null; vpmu cluster status {scheduler(cluster)} --keys /tmp/k",
        entry=False,
    )
    assert status == 1
    assert "CERTIFICATE_VERIFY_FAILED" in said


def start_and_wait(
    cluster: dict[int, Container], name: str, victim: Container, more: Sequence[str] = ()
) -> Any:
    """Start a run; return once the victim's rank has work behind it."""
    before = {pid: cpu_seconds(pid) for pid in victim.worker_processes()}
    process = cluster[RUN].start(*arguments(cluster, name), *more)
    until(
        lambda: (
            any(cpu_seconds(pid) > before.get(pid, 0.0) + 1.5 for pid in victim.worker_processes())
            or process.poll() is not None
        )
    )
    assert process.poll() is None, process.communicate()[0]
    return process


@pytest.mark.parametrize(
    ("loss", "more"), [("kill", []), ("kill", ["--checkpoint", "2"]), ("cut", ["--checkpoint", "2"])]
)
def test_a_lost_worker_changes_no_byte(
    loss: str, more: list[str], cluster: dict[int, Container], expected: str
):
    victim = cluster[WORKERS[1]]
    process = start_and_wait(cluster, loss, victim, more)
    if loss == "kill":
        os.kill(victim.worker_processes()[0], 9)
    else:
        victim.plug(False)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert "its process was lost" in said
    assert digest(cluster, loss) == expected


def test_a_cable_that_is_out_for_some_seconds_changes_nothing(cluster: dict[int, Container], expected: str):
    victim = cluster[WORKERS[0]]
    process = start_and_wait(cluster, "blink", victim)
    victim.plug(False)
    out_since = time.monotonic()
    until(lambda: time.monotonic() > out_since + 5)
    victim.plug(True)
    said, _ = process.communicate(timeout=300)
    assert (process.returncode, said) == (0, "")
    assert digest(cluster, "blink") == expected
