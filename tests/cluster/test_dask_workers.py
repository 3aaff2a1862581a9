"""Ranks on a running Dask cluster: a scheduler and two workers, as `vpmu cluster` starts them, with TLS."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.cluster.machines import differences, run_here
from tests.cluster.test_launcher import ENTRIES, hops
from tests.cluster.test_workers import small
from tests.processes import untraced
from vpmu.cli import main
from vpmu.cluster.certificates import write_certificates
from vpmu.cluster.dask_workers import check_reach, choose, client_of, opener, workers_of
from vpmu.cluster.errors import GangError
from vpmu.cluster.launcher import LocalWorkers, run_gang
from vpmu.cluster.node import run_machine_on_workers
from vpmu.cluster.where import HERE, Where

ROOT = Path(__file__).parents[2]


@contextmanager
def command(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run `vpmu cluster ...` until the end of the test, with all that it starts."""
    with subprocess.Popen(
        [sys.executable, "-m", "vpmu.cli", "cluster", *arguments],
        cwd=ROOT,
        env=untraced(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.communicate(timeout=30)


@dataclass
class Cluster:
    """A cluster that runs, and how to reach it; CURVE is on as if it were on other machines."""

    where: Where
    keys: Path


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ExitStack() as stack:
        keys = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "keys"
        write_certificates(keys)
        scheduler = stack.enter_context(
            command("scheduler", "--keys", str(keys), "--port", "0", "--dashboard", "127.0.0.1:0")
        )
        assert scheduler.stderr is not None
        address = next(
            line.split()[-1] for line in scheduler.stderr if "Scheduler at:" in line and "tls://" in line
        )
        stack.enter_context(command("worker", address, "--keys", str(keys), "--workers", "2"))
        files = {"tls_ca_file": "ca.pem", "tls_cert": "client.pem", "tls_key": "client-key.pem"}
        tls: dict[str, Any] = {name: str(keys / file) for name, file in files.items()}
        yield Cluster(Where(scheduler=address, curve=True, start_within_s=30, **tls), keys)


async def gang(where: Where, nr_ranks: int, entry: str, payload: bytes = b"") -> list[bytes]:
    with trio.fail_after(60):
        return await run_gang(nr_ranks, ENTRIES + entry, payload, where=where, open_workers=opener(where))


async def test_a_ring_with_keys_again_and_again(cluster: Cluster):
    for _ in range(2):
        results = await gang(cluster.where, 2, "ring", bytes([2, 20]))
        assert results == [hops(rank, 2, 20) for rank in range(2)]


async def test_a_run_gives_the_same_bytes(cluster: Cluster):
    expected = small("one host", "optimized")
    run_here(expected)
    outcome = await run_machine_on_workers(
        small("one host", "optimized"), workers=2, where=cluster.where, open_workers=opener(cluster.where)
    )
    assert differences(expected, outcome) == []
    assert outcome.refused == []


async def test_too_few_workers_are_counted_and_named(cluster: Cluster):
    where = replace(cluster.where, start_within_s=0.5)
    with pytest.raises(GangError, match=r"3 workers are needed, 2 came to tls://.* within 0\.5 s: tls://"):
        await gang(where, 3, "ring", bytes([3, 9]))


async def test_a_stranger_does_not_get_in(cluster: Cluster, tmp_path: Path):
    write_certificates(tmp_path / "other")
    where = replace(
        cluster.where,
        tls_ca_file=str(tmp_path / "other/ca.pem"),
        tls_cert=str(tmp_path / "other/client.pem"),
        tls_key=str(tmp_path / "other/client-key.pem"),
        start_within_s=0.5,
    )
    with pytest.raises(GangError, match=r"no scheduler at tls://.*CERTIFICATE_VERIFY_FAILED"):
        await gang(where, 1, "ring", bytes([1, 9]))


async def test_a_rank_whose_run_was_killed_ends(cluster: Cluster):
    where = cluster.where
    program = (
        "import trio\nfrom functools import partial\nfrom vpmu.cluster.launcher import run_gang\n"
        "from vpmu.cluster.dask_workers import opener\nfrom vpmu.cluster.where import Where\n"
        f"where = {where!r}\nprint('starts', flush=True)\n"
        f"trio.run(partial(run_gang, 2, '{ENTRIES}forever', b'', where=where, open_workers=opener(where)))"
    )
    with client_of(where, 10) as client, trio.fail_after(60):
        process = await trio.lowlevel.open_process([sys.executable, "-c", program], cwd=ROOT, env=untraced())
        while not await busy(client):
            assert process.poll() is None
        process.kill()
        await process.wait()
        while await busy(client):
            pass
    await gang(where, 2, "ring", bytes([2, 9]))


async def busy(client: Any) -> bool:
    """Return whether a worker has a rank."""
    running = await trio.to_thread.run_sync(client.processing)
    return any("rank_main" in str(key) for keys in running.values() for key in keys)


async def test_a_worker_that_is_lost_ends_the_gang_by_name(cluster: Cluster):
    with pytest.raises(GangError, match=r"rank 1 failed: its process was lost") as caught:
        await gang(cluster.where, 2, "rank_1_dies")
    assert caught.value.rank == 1
    # Its nanny brings another one; the other rank, which came back to trio no more, was restarted.
    assert await gang(cluster.where, 2, "ring", bytes([2, 9])) == [hops(rank, 2, 9) for rank in range(2)]


def test_status(cluster: Cluster, capsys: pytest.CaptureFixture[str]):
    address = cluster.where.scheduler
    assert main(["cluster", "status", address, "--keys", str(cluster.keys)]) == 0
    assert f"{address}: 2 workers: tls://127.0.0.1:" in capsys.readouterr().out


def test_ranks_fill_one_machine_after_the_other():
    addresses = ["tls://10.0.0.2:1", "tls://10.0.0.1:5", "tls://10.0.0.2:3", "tls://10.0.0.2:2"]
    assert choose(addresses, 3) == ["tls://10.0.0.2:1", "tls://10.0.0.2:2", "tls://10.0.0.2:3"]
    assert choose(addresses, 4)[3] == "tls://10.0.0.1:5"


@pytest.mark.parametrize(
    ("addresses", "bind", "reason"),
    [
        (["tls://10.0.0.2:1"], "", "cannot reach this process on loopback: give --bind"),
        (["tls://127.0.0.1:1"], "10.0.0.1", "on loopback: start the workers with --bind"),
        (["tls://10.0.0.2:1", "tls://127.0.0.1:1"], "10.0.0.1", "on loopback, where tls://10.0.0.2:1 cannot"),
    ],
)
def test_who_cannot_hear_whom_is_said_before_the_start(addresses: list[str], bind: str, reason: str):
    with pytest.raises(GangError, match=reason):
        check_reach(addresses, Where(bind=bind))
    check_reach(["tls://10.0.0.2:1"], Where(bind="10.0.0.1"))
    check_reach(["tls://127.0.0.1:1"], HERE)


def test_without_a_scheduler_processes_start_here():
    assert opener(HERE) is LocalWorkers


def test_tls_without_files_says_what_is_missing():
    with pytest.raises(GangError, match="missing: ca-file, client-cert, client-key; give --keys DIR"):
        client_of(Where(scheduler="tls://127.0.0.1:9"), 1)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["scheduler", "--bind", "10.0.0.1"], "--bind 10.0.0.1: needs --keys DIR"),
        (["scheduler", "--bind", "0.0.0.0"], "not an address by which others reach this machine"),
        (
            ["worker", "tls://10.0.0.1:8786", "--keys", "nowhere"],
            "ca.pem is missing; `vpmu cluster keys DIR`",
        ),
        (["status", "tcp://10.0.0.1:8786"], "has no TLS: anybody may command its workers"),
    ],
)
def test_mistakes_are_named(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]):
    assert main(["cluster", *arguments]) == 2
    assert reason in capsys.readouterr().err


def test_keys_are_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["cluster", "keys", str(tmp_path / "k")]) == 0
    assert "ca.pem" in capsys.readouterr().out
    assert main(["cluster", "keys", str(tmp_path / "k")]) == 2
    assert "certificates already" in capsys.readouterr().err


def test_insecure_is_said_first(capsys: pytest.CaptureFixture[str]):
    assert main(["run", "nowhere.toml", "--insecure"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("--insecure: links between processes run without CURVE")
    assert "nowhere.toml" in lines[1]


@contextmanager
def in_this_process(nr_workers: int) -> Iterator[Any]:
    """Give a client of a scheduler and workers that are threads of this process."""
    import distributed

    quiet: Any = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
    with (
        distributed.LocalCluster(
            n_workers=nr_workers,
            threads_per_worker=1,
            processes=False,
            protocol="tcp://",
            host="127.0.0.1",
            scheduler_kwargs=quiet,
            worker_dashboard_address=None,
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


def test_every_worker_of_a_large_cluster_is_known_at_any_time():
    """Dask's own client names five of them, and none for a moment every two seconds."""
    with in_this_process(7) as client:
        for _ in range(20):
            client.sync(client._update_scheduler_info)
            assert len(workers_of(client)) == 7


def test_a_scheduler_that_is_gone_is_named():
    with in_this_process(0) as client:
        client.close()
        with pytest.raises(GangError, match="the scheduler does not answer"):
            workers_of(client)
