import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from vpmu.cluster.errors import GangError
from vpmu.cluster.gang import RESULT_CHUNK_BYTES
from vpmu.cluster.launcher import OnDone, Workers, load_entry, rank_main, run_gang
from vpmu.cluster.proto import Kind
from vpmu.cluster.where import Where

ENTRIES = "tests.cluster.gang_entries:"


class ThreadWorkers(Workers):
    """Ranks in threads of this process: all of a gang but the processes."""

    def __init__(self, nr_ranks: int, directory: Path) -> None:
        self._threads: list[threading.Thread] = []

    def start(self):
        """Nothing to bring up."""

    def submit(self, rank: int, spec: bytes, on_done: OnDone):
        thread = threading.Thread(target=lambda: on_done(rank, rank_main(spec, rank)))
        self._threads.append(thread)
        thread.start()

    def close(self):
        for thread in self._threads:
            thread.join(timeout=20)
            assert not thread.is_alive()


async def run_in_threads(nr_ranks: int, entry: str, payload: bytes = b"", **options: Any):
    with trio.fail_after(30):
        return await run_gang(nr_ranks, ENTRIES + entry, payload, open_workers=ThreadWorkers, **options)


async def failure_of(entry: str, payload: bytes = b"", **options: Any):
    with pytest.raises(GangError) as caught:
        await run_in_threads(2, entry, payload, **options)
    return caught.value


def hops(rank: int, nr_ranks: int, nr_hops: int):
    """Hop h is received by rank h modulo the number of ranks."""
    return bytes(hop for hop in range(1, nr_hops + 1) if hop % nr_ranks == rank)


@pytest.mark.parametrize("nr_ranks", [2, 3])
async def test_a_ring_of_processes(nr_ranks: int):
    with trio.fail_after(60):
        results = await run_gang(nr_ranks, ENTRIES + "ring", bytes([nr_ranks, 12]))
    assert results == [hops(rank, nr_ranks, 12) for rank in range(nr_ranks)]
    assert multiprocessing.active_children() == []


async def test_a_process_that_is_lost_ends_the_gang_by_name():
    with trio.fail_after(60), pytest.raises(GangError, match="rank 1 failed: its process was lost") as caught:
        await run_gang(2, ENTRIES + "rank_1_dies", b"")
    assert caught.value.rank == 1
    assert multiprocessing.active_children() == []


async def test_a_cancelled_start_leaves_no_process():
    with trio.move_on_after(0.7) as scope:
        await run_gang(2, ENTRIES + "forever", b"")
    assert scope.cancelled_caught
    assert multiprocessing.active_children() == []


def processes_of_group(group: int):
    """Return the processes of a group, but multiprocessing's tracker, which ends by itself, and the dying.

    Note that a process that is on its way out, and no zombie yet, has no command line any more.
    """
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
            command = stat.with_name("cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(pgrp) == group and state != "Z" and command and "resource_tracker" not in command:
            found.append(int(stat.parent.name))
    return found


@contextmanager
def gang_in_a_process(entry: str):
    """Run a gang from a program, in a process group of its own; yield once all ranks go."""
    start = f"trio.run(run_gang, 2, '{ENTRIES}{entry}', b'')"
    program = f"import trio\nfrom vpmu.cluster.launcher import run_gang\nif __name__ == '__main__': {start}"
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "going\n"
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def test_ctrl_c_ends_everything_and_is_one_error():
    with gang_in_a_process("forever") as process:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to parent and workers alike
        _, errors = process.communicate(timeout=30)
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert errors.count("Traceback (most recent call last)") == 1
    assert process.returncode == -signal.SIGINT
    assert processes_of_group(process.pid) == []


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
@pytest.mark.parametrize("nr_ranks", [1, 2, 5])
async def test_a_ring_of_threads(nr_ranks: int, transport: str):
    results = await run_in_threads(nr_ranks, "ring", bytes([nr_ranks, 30]), transport=transport)
    assert results == [hops(rank, nr_ranks, 30) for rank in range(nr_ranks)]


@pytest.mark.parametrize("nr_bytes", [0, 1, RESULT_CHUNK_BYTES])
async def test_results_of_any_length_come_home(nr_bytes: int):
    payload = bytes(nr_bytes)
    assert await run_in_threads(2, "echo", payload) == [payload * 9] * 2


async def test_a_rank_that_raises_stops_all_and_is_named_with_its_traceback():
    error = await failure_of("rank_1_raises")
    assert error.rank == 1
    assert error.reason == "ArithmeticError: the second rank broke"
    assert str(error).startswith("rank 1 failed: ArithmeticError: the second rank broke\n")
    assert "in rank_1_raises" in error.traceback_text


async def test_a_rank_that_never_comes_is_named():
    error = await failure_of("rank_1_never_comes", where=Where(start_within_s=0.3))
    assert error.reason == "ranks [1] did not come within 0.3 s"


async def test_a_frame_out_of_order_fails_the_attempt_by_name():
    error = await failure_of("rank_1_breaks_the_protocol")
    assert error.rank == 0  # who noticed; the reason says who did it
    assert error.reason.endswith("RemoteProtocolError: rank 1: frame number 7 on this link, expected 0")


async def test_only_the_coordinator_commands():
    error = await failure_of("rank_1_commands")
    assert error.reason.endswith("rank 1: FAIL frame, which only a coordinator sends")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Kind.HELLO, "a second HELLO"), (Kind.READY, "READY out of turn"), (Kind.RESULT, "RESULT out of turn")],
)
async def test_frames_of_the_base_out_of_turn_fail_the_attempt(kind: Kind, reason: str):
    error = await failure_of("rank_1_gets_it_wrong", bytes([kind]))
    assert (error.rank, error.reason) == (1, reason)


async def test_the_barrier_is_passed_once():
    error = await failure_of("wait_go_twice")
    assert "LocalProtocolError: wait_go was called twice" in error.reason


async def test_a_stranger_does_not_disturb_a_gang():
    results = await run_in_threads(2, "rank_1_meets_a_stranger", attempt=4)
    assert results == [b"", b"rank 0 of attempt 5, this is attempt 4"]


async def test_nonsense_is_named_before_anything_starts():
    with pytest.raises(ValueError, match="nr_ranks is 0"):
        await run_gang(0, ENTRIES + "ring", b"")
    with pytest.raises(ValueError, match="not of the form module:function"):
        await run_gang(1, "ring", b"")
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        load_entry("nowhere.at_all:f")
