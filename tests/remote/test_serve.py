"""`vpmu serve` as users call it: processes, results, and mistakes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.processes import untraced
from vpmu.cli import main
from vpmu.cluster.guests.keys import GUEST_KEY
from vpmu.results import read_results

EXAMPLE = Path(__file__).parents[2] / "examples" / "remote"
SCENARIO = EXAMPLE / "remote.toml"
VPMU = (sys.executable, "-m", "vpmu.cli")
FAILING = """
import os, sys, trio
from vpmu.guest import connect

async def guest(where):
    async with connect(where, vm="g0") as cpu:
        await cpu.retire(instructions=1_000_000)
        await cpu.wrmsr(0x38F, 0)
        sys.stdout.write(str(cpu.now_ns))
        sys.stdout.flush()
        os._exit(3)

trio.run(guest, sys.argv[1])
"""


@contextmanager
def serving(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `vpmu serve` on the example; yield the process, and where guests connect."""
    process = subprocess.Popen(
        [*VPMU, "serve", str(SCENARIO), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=untraced(),
    )
    with process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.match(r"(\S+) waits for guests: g0, vCPU 0; this run cannot be resumed", line)
            assert found, line + process.stderr.read()
            yield process, found[1]
        finally:
            process.kill()


def guest(where: str, *program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(program or [str(EXAMPLE / "guest.py")]), where]
    if not program:
        command.append("g0")
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=untraced())


def test_a_run_with_a_guest_gives_the_ordinary_result(tmp_path: Path):
    digests = set()
    for name, options in (("tcp", ["--port", "0"]), ("ipc", ["--ipc", str(tmp_path / "run" / "socket")])):
        out = tmp_path / name
        with serving("--json", "--out", str(out), "--keep", "all", *options) as (process, where):
            assert where.startswith("tcp://127.0.0.1:" if name == "tcp" else "ipc://")
            done = guest(where)
            assert done.returncode == 0, done.stderr
            stdout, stderr = process.communicate(timeout=60)
        assert stderr == ""
        summary = json.loads(stdout)
        digests.add(summary["digest"])
        (design,) = summary["designs"].values()
        assert "cut_off" not in design
        assert {row["vm"] for row in design["counters"]} == {"apart"}
        assert read_results(out).digest == summary["digest"]
    assert len(digests) == 1


def test_a_guest_that_dies_is_named_in_the_result_and_on_the_terminal(tmp_path: Path):
    out = tmp_path / "out"
    with serving("--design", "legacy", "--out", str(out)) as (process, where):
        done = guest(where, "-c", FAILING)
        assert done.returncode == 3, done.stderr
        stdout, stderr = process.communicate(timeout=60)
    line = f"g0, vCPU 0 was cut off at {done.stdout} ns: its connection is gone"
    assert line in stderr
    assert f"legacy: {line}" in stdout
    (row,) = read_results(out).designs["legacy"].cut_off
    assert (row.vm, row.vcpu, row.at_ns, row.reason) == ("g0", 0, int(done.stdout), "its connection is gone")


def test_nobody_comes(tmp_path: Path):
    with serving("--wait", "0.2", "--json") as (process, _):
        stdout, stderr = process.communicate(timeout=60)
    (design,) = json.loads(stdout)["designs"].values()
    assert [row["reason"] for row in design["cut_off"]] == ["nobody came within 0.2 s"]
    assert "nobody came" in stderr


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_scenario_with_remote_guests_needs_serve(capsys: pytest.CaptureFixture[str]):
    line = mistake(capsys, "run", str(SCENARIO))
    assert line == 'scenario: key vm.g0.remote: VM "g0" is remote: `vpmu serve` runs such a scenario'


def test_a_scenario_without_remote_guests_needs_no_serve(capsys: pytest.CaptureFixture[str]):
    line = mistake(capsys, "serve", str(EXAMPLE.parent / "ftest" / "stat.toml"))
    assert "no VM has remote = true: nobody could come" in line


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--design", "legacy,optimized"], 'guests come once, so it takes one design "legacy,optimized"'),
        (["--design", "legasy"], 'did you mean "legacy"?'),
        (
            ["--bind", "192.0.2.1"],
            "--bind 192.0.2.1: needs --keys DIR, from `vpmu cluster keys`, or --insecure",
        ),
        (["--bind", "somewhere"], "--bind:"),
        (["--ipc", "x", "--port", "5555"], "--ipc: goes without --bind, --port and --keys"),
        (["--checkpoint", "5"], "No such option: --checkpoint"),
        (["--perf-data"], "--perf-data: needs --out DIR"),
        (
            ["--keys", "nowhere"],
            "nowhere/serve.key: No such file or directory; `vpmu cluster keys DIR` makes it",
        ),
    ],
)
def test_a_mistake_is_one_line(options: list[str], found: str, capsys: pytest.CaptureFixture[str]):
    assert found in mistake(capsys, "serve", str(SCENARIO), *options)


def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tmp_path.chmod(0o755)
    line = mistake(capsys, "serve", str(SCENARIO), "--ipc", str(tmp_path / "socket"))
    assert "others may enter" in line


def test_insecure_says_so_first(capsys: pytest.CaptureFixture[str]):
    # 192.0.2.1 is nobody's (RFC 5737): binding it fails after that is said.
    assert main(["serve", str(SCENARIO), "--bind", "192.0.2.1", "--insecure"]) == 1
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("--insecure: whoever reaches this port can be a guest")
    assert last.startswith("tcp://192.0.2.1:*: Cannot assign requested address")


def test_cluster_keys_makes_the_guests_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["cluster", "keys", str(tmp_path / "keys")]) == 0
    assert GUEST_KEY in capsys.readouterr().out
    with serving("--keys", str(tmp_path / "keys"), "--json") as (process, where):
        program = (
            "import sys, trio\n"
            "from pathlib import Path\n"
            "from vpmu.guest import connect\n"
            "async def guest(where, key):\n"
            "    async with connect(where, vm='g0', key=Path(key)) as cpu:\n"
            "        await cpu.retire(instructions=5)\n"
            f"trio.run(guest, sys.argv[1], {str(tmp_path / 'keys' / GUEST_KEY)!r})\n"
        )
        done = guest(where, "-c", program)
        assert done.returncode == 0, done.stderr
        stdout, _ = process.communicate(timeout=60)
    (design,) = json.loads(stdout)["designs"].values()
    assert "cut_off" not in design


def test_a_guest_needs_no_numba():
    command = "import sys, vpmu.guest; sys.exit('numba' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False, env=untraced()).returncode == 0
