"""What processes say of themselves: to Prometheus, in the progress, and at the end."""

import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.cluster.machines import differences, run_here
from tests.cluster.test_launcher import ThreadWorkers
from tests.cluster.test_workers import small
from vpmu.cli import main
from vpmu.cluster.node import run_machine_on_workers
from vpmu.cluster.watch import Waits, Watch, serving
from vpmu.cluster.where import Where
from vpmu.command_cluster import metrics_of
from vpmu.console import waits_text, work_text
from vpmu.errors import UserError

ROOT = Path(__file__).parents[2]


def scrape(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    samples = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def three_ports() -> int:
    """Return a port that is free, as are the two after it."""
    for first in range(20_000, 60_000, 7):
        try:
            for port in range(first, first + 3):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first
    raise AssertionError("no port is free")


def test_figures_are_told_on_loopback_while_the_run_goes_on():
    watch = Watch(lambda: 2_500_000_000, vcpus=7, labels={"rank": "3"})
    watch.begin()
    watch.stops = 11
    with serving(watch, "127.0.0.1", 0) as port:
        found = scrape(port)
    assert found['vpmu_virtual_seconds{rank="3"}'] == 2.5
    assert found['vpmu_vcpus{rank="3"}'] == 7
    assert found['vpmu_stops_total{rank="3"}'] == 11
    assert found['vpmu_speed{rank="3"}'] > 0
    assert found["process_resident_memory_bytes"] > 1 << 20
    with pytest.raises(urllib.error.URLError):
        scrape(port)


def test_nothing_is_told_unasked():
    with serving(Watch(), "127.0.0.1", None) as port:
        assert port == 0


def test_time_is_work_or_waiting():
    watch = Watch()
    watch.begin()
    wall, busy, queue = watch._began
    while watch.waits().busy_s < 0.05:
        pass
    waits = watch.waits()
    assert waits.busy_s >= 0.05
    assert waits.peers_s < waits.busy_s
    watch._began = (wall - 10, busy, queue)  # as if nothing had been done for ten seconds
    assert watch.waits().peers_s == pytest.approx(10, abs=0.5)
    assert Waits.of_words(*Waits(1.5, 0.25, 0.25, 7, 2).words()) == Waits(1.5, 0.25, 0.25, 7, 2)
    assert Waits(1.5, 0.25, 0.25, 7, 2).stops_per_s == 3.5
    assert Waits(1.5, 0.25, 0.25).peers_share == 0.125
    assert Waits().peers_share == 0


async def test_every_process_of_a_run_tells_its_figures():
    expected = small("one host", "optimized")
    run_here(expected)
    first, seen = three_ports(), list[dict[str, float]]()

    def look(waits: list[Waits]) -> None:
        if not seen:
            seen.extend(scrape(first + process) for process in range(3))

    outcome = await run_machine_on_workers(
        small("one host", "optimized"),
        workers=2,
        on_waits=look,
        open_workers=ThreadWorkers,
        where=Where(metrics_port=first),
    )
    assert differences(expected, outcome) == []
    assert len(outcome.waits) == 2
    assert all(each.busy_s > 0 for each in outcome.waits)
    coordinator, *ranks = seen
    assert coordinator['vpmu_vcpus{rank="coordinator"}'] == 8
    assert sum(found[f'vpmu_vcpus{{rank="{rank}"}}'] for rank, found in enumerate(ranks)) == 8
    for rank, found in enumerate(ranks):
        assert found[f'vpmu_stops_total{{rank="{rank}"}}'] > 0
        assert found[f'vpmu_frames_sent_total{{rank="{rank}"}}'] > 0
        assert found[f'vpmu_refused_total{{rank="{rank}"}}'] == 0
        assert f'vpmu_wait_seconds_total{{rank="{rank}"}}' in found


def test_waits_in_a_line():
    assert waits_text([]) == ""
    assert waits_text([Waits(3, 0, 1), Waits(1, 0, 1)]) == "waits 25 % 50 %"
    assert waits_text([Waits(1, 0, 1)]) == ""
    assert work_text([Waits(1, 0, 1, 10, 600), Waits(1, 1, 2, 20, 600)]) == "1,200 vCPUs, 10 stops/s"
    assert waits_text([Waits(1, 0, 0)] * 8 + [Waits(1, 0, 3)]) == "9 workers wait 0 to 75 %"


def test_where_figures_are_told():
    assert metrics_of("") == ("127.0.0.1", None)
    assert metrics_of("9100") == ("127.0.0.1", 9100)
    assert metrics_of("[::1]:9100") == ("::1", 9100)
    assert metrics_of("lo:9100")[0] == "127.0.0.1"
    for wrong in ("here", "9100:", "70000"):
        with pytest.raises(UserError, match="expected"):
            metrics_of(wrong)


def test_a_run_says_where_its_time_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = [
        "run",
        str(ROOT / "examples/scale/record-200.toml"),
        "--until",
        "5 ms",
        "--design",
        "optimized",
    ]
    assert main([*command, "--workers", "2", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "optimized, worker 0: worked " in said
    assert "optimized, worker 1: worked " in said
    timing = yaml.safe_load((tmp_path / "out" / "timing.json").read_text())
    assert {"optimized.worker_0.busy_s", "optimized.worker_1.peers_s"} <= set(timing)
