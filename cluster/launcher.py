"""Starts a gang of ranks on Dask workers and brings their results home, or says which one failed.

Dask places, starts and supervises processes; what it cannot know, that all ranks must run at once,
is `gang`'s. `distributed` is imported only here, and only when a gang starts.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Final, Protocol, cast

import msgspec
import trio

from vpmu.cluster.certificates import security_of, write_certificates
from vpmu.cluster.errors import GangError, RemoteProtocolError
from vpmu.cluster.gang import Coordinator, GangStopped, Member
from vpmu.cluster.hub import Hub, new_run_number
from vpmu.cluster.keys import RankKeys, is_loopback
from vpmu.cluster.link import address_endpoint, local_endpoint
from vpmu.cluster.proto import COORDINATOR
from vpmu.cluster.watch import LOOPBACK
from vpmu.cluster.where import HERE, START_WITHIN_S, Where

Entry = Callable[[Hub, int, bytes], Awaitable[bytes]]
"""What a rank runs: `async def entry(hub, rank, payload) -> bytes`."""

STOP_WITHIN_S: Final = 0.25
"""How long a rank may take to stop once it is told to; then its process is killed."""

LOOK_EVERY_S: Final = 0.5
"""How often the start looks whether a worker's process has ended."""

_DASK_CONFIG: Final = {
    "distributed.scheduler.allowed-failures": 0,
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.admin.system-monitor.gil.enabled": False,
}


def dask_environment(*, require_encryption: bool) -> dict[str, str]:
    """Return the variables by which a Dask process of its own gets the settings that a run needs."""
    settings = _DASK_CONFIG | {"distributed.comm.require-encryption": require_encryption}
    return {
        "DASK_" + name.upper().replace(".", "__").replace("-", "_"): str(value)
        for name, value in settings.items()
    }


class GangSpec(msgspec.Struct, frozen=True):
    """Everything a rank is told when its task starts; sent as MessagePack."""

    run: int
    attempt: int
    coordinator: str
    transport: str
    directory: str
    entry: str
    payload: bytes
    bind: str = ""
    keys: RankKeys | None = None
    insecure: bool = False
    metrics: str = ""
    metrics_port: int | None = None


class RankFailure(msgspec.Struct, frozen=True):
    """How a rank's task says that it failed; sent as MessagePack."""

    reason: str
    traceback_text: str
    stopped: bool


OnDone = Callable[[int, "bytes | BaseException"], None]


class Workers(Protocol):
    """Processes that ranks run in, one each; the seam for other clusters than this machine's.

    `start` and `close` block and are called in a thread. `start` may be abandoned; `close` must
    then still leave nothing behind.

    Attributes
    ----------
    private : bool
        Whether nobody else hears what `submit` is given; keys go out no other way.
    """

    private: bool = True

    def start(self) -> None:
        """Bring all workers up."""
        ...

    def submit(self, rank: int, spec: bytes, on_done: OnDone) -> None:
        """Run `rank_main(spec, rank)` on that rank's worker; call `on_done(rank, result)` in any thread."""
        ...

    def close(self) -> None:
        """End all workers, killing those that are still busy."""
        ...

    def address(self, rank: int) -> str:
        """Return the address that a rank binds, known once `start` is done; empty for this machine's own."""
        return ""


class LocalWorkers(Workers):
    """Worker processes on this machine, under Dask's `LocalCluster`: loopback only, TLS, no dashboard.

    Parameters
    ----------
    nr_ranks : int
        Processes to start; each runs one task at a time.
    directory : Path
        For Dask's scratch files.
    """

    def __init__(self, nr_ranks: int, directory: Path) -> None:
        self._nr_ranks = nr_ranks
        self._directory = directory
        self._cluster: Any = None
        self._client: Any = None
        self._lock = threading.Lock()
        self._closed = False

    def start(self) -> None:
        """Bring all workers up; they have SIGINT blocked, so that Ctrl-C is the parent's alone."""
        import dask
        import distributed  # half a second: not under the lock, so that `close` need not wait for it

        with self._lock:
            if self._closed:
                return
            self._open(dask, distributed)
        until = time.monotonic() + START_WITHIN_S
        while not self._are_up():
            if time.monotonic() > until:
                raise GangError(f"{self._nr_ranks} workers did not start within {START_WITHIN_S} s")

    def _are_up(self) -> bool:
        """Wait for the workers a while; return whether all are there."""
        with suppress(TimeoutError):
            self._client.wait_for_workers(self._nr_ranks, timeout=LOOK_EVERY_S)
            return True
        # Note that a nanny does not start a process anew that ends before it is up.
        if any(nanny.status.name == "failed" for nanny in list(self._cluster._created)):
            raise GangError("a worker's process was lost before it was up", lost=True)
        return False

    def _open(self, dask: Any, distributed: Any) -> None:
        tls = self._directory / "tls"
        write_certificates(tls)
        resource_tracker.ensure_running()  # Note: it unblocks SIGINT in the thread that starts it
        with _sigint_blocked(), dask.config.set(_DASK_CONFIG):
            self._cluster = distributed.LocalCluster(
                n_workers=0,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                silence_logs=logging.CRITICAL,
                memory_limit=0,
                protocol="tls://",
                security=security_of(tls),
                local_directory=str(self._directory),
                scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
            )
            self._client = distributed.Client(self._cluster, set_as_default=False)
            self._cluster.scale(self._nr_ranks)

    def submit(self, rank: int, spec: bytes, on_done: OnDone) -> None:
        """Run the rank on the worker of its number, and nowhere else."""
        address = self._cluster.scheduler.aliases.get(rank)
        if address is None:
            on_done(rank, ConnectionError("it ended before its rank began"))
            return
        future = self._client.submit(
            rank_main, spec, rank, workers=[address], allow_other_workers=False, pure=False
        )
        future.add_done_callback(lambda done: on_done(rank, outcome_of(done)))

    def close(self) -> None:
        """End client, workers and scheduler; a worker that is busy, or still starting, is killed."""
        with self._lock:
            self._closed = True
            if self._client is not None:
                self._client.close(timeout=1)
            if self._cluster is not None:
                self._cluster.sync(self._close_cluster)
                self._cluster.close()  # the loop and its thread

    async def _close_cluster(self) -> None:
        closing = asyncio.ensure_future(self._cluster._close())
        kill_at = asyncio.get_running_loop().time() + STOP_WITHIN_S
        while not closing.done():
            self._kill_workers(only_starting=asyncio.get_running_loop().time() < kill_at)
            await asyncio.wait([closing], timeout=STOP_WITHIN_S / 5)
        await closing

    def _kill_workers(self, *, only_starting: bool) -> None:
        # Note that a nanny waits until its process is up before it ends it, and then for seconds.
        for nanny in list(self._cluster._created):
            process = nanny.process
            if process is None or process.pid is None:
                continue
            if process.status.name == "starting" or not only_starting:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)


def outcome_of(future: Any) -> bytes | BaseException:
    """Return what a future of Dask came to."""
    error = future.exception()
    return cast(bytes, future.result()) if error is None else cast(BaseException, error)


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Block SIGINT in this thread, and so in every thread and process that it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def load_entry(entry: str) -> Entry:
    """Return the function that `module:function` names; ValueError if the form is another."""
    module, separator, function = entry.partition(":")
    if not (module and separator and function):
        raise ValueError(f"entry {entry!r} is not of the form module:function")
    return cast(Entry, getattr(importlib.import_module(module), function))


def rank_main(spec: bytes, rank: int) -> bytes:
    """Run one rank to its end in this thread; return b'' or a packed `RankFailure`."""
    try:
        trio.run(run_rank, msgspec.msgpack.decode(spec, type=GangSpec), rank)
    except BaseException as error:
        return msgspec.msgpack.encode(_failure(error))
    return b""


def _failure(error: BaseException) -> RankFailure:
    leaves = list(_leaves(error))
    # What the operating system refuses, a full disk for one, is nobody's mistake here.
    refused = all(isinstance(leaf, OSError) for leaf in leaves)
    return RankFailure(
        reason="; ".join("".join(traceback.format_exception_only(leaf)).strip() for leaf in leaves),
        traceback_text="" if refused else "".join(traceback.format_exception(error)),
        stopped=all(isinstance(leaf, GangStopped) for leaf in leaves),
    )


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


CALLED_OFF_EVERY_S: Final = 1.0
"""How often a rank asks Dask whether anybody still waits for it."""


async def _watch_task() -> None:
    """Stop the rank if Dask has given its task up: whoever started the run is gone, or wants it no more."""
    called_off = _called_off()
    while True:
        await trio.sleep(CALLED_OFF_EVERY_S)
        if called_off():
            raise GangStopped("nobody waits for this rank any more")


def _called_off() -> Callable[[], bool]:
    """Return what says whether the Dask task of this thread was given up; without Dask none is."""
    try:
        import distributed

        worker = distributed.get_worker()
        tasks, key = worker.state.tasks, worker.get_current_task()
    except ValueError:
        return lambda: False
    return lambda: key not in tasks or tasks[key].state != "executing"


async def run_rank(spec: GangSpec, rank: int) -> None:
    """Run one rank: join the gang, run the entry, hand in its result, end when all have."""
    entry = load_entry(spec.entry)
    if spec.bind:
        endpoint = address_endpoint(spec.bind)
    else:
        endpoint = local_endpoint(spec.transport, Path(spec.directory))
    fence = {"run": spec.run, "attempt": spec.attempt, "rank": rank}
    with Hub(endpoint, **fence, keys=spec.keys, insecure=spec.insecure) as hub:
        hub.metrics = spec.metrics, spec.metrics_port
        member = Member(hub, spec.coordinator)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hub.run)
            nursery.start_soon(_watch_task)
            await member.join()
            await member.leave(await entry(hub, rank, spec.payload))
            nursery.cancel_scope.cancel()


class _Gang:
    """One attempt: the coordinator's hub, the workers, and the first failure of any rank."""

    def __init__(self, hub: Hub, workers: Workers, nr_ranks: int) -> None:
        self.hub = hub
        self._workers = workers
        self._nr_ranks = nr_ranks
        self._coordinator = Coordinator(hub, nr_ranks)
        self._token = trio.lowlevel.current_trio_token()
        self._failed = trio.Event()
        self._failure: GangError | None = None
        self._tasks_done = 0
        self._all_done = trio.Event()

    async def run(self, spec: GangSpec, keys: dict[int, RankKeys], start_within_s: float) -> list[bytes]:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.hub.run)
                nursery.start_soon(self._raise_failure)
                for rank in range(self._nr_ranks):
                    own = self._own(spec, rank, keys)
                    self._workers.submit(rank, msgspec.msgpack.encode(own), self._on_done)
                await self._coordinator.wait_started(start_within_s)
                results = await self._coordinator.results()
                with trio.move_on_after(STOP_WITHIN_S):
                    await self._all_done.wait()
                nursery.cancel_scope.cancel()
            return results
        except BaseException:
            self._coordinator.stop("another rank failed, or the run was stopped")
            raise

    def _own(self, spec: GangSpec, rank: int, keys: dict[int, RankKeys]) -> GangSpec:
        """Return what one rank is told: where it is, and its keys."""
        bind = self._workers.address(rank) or spec.bind
        # On loopback unless asked for: what a process tells Prometheus, it tells everybody.
        metrics = bind if spec.metrics and not is_loopback(spec.metrics) else LOOPBACK
        port = None if spec.metrics_port is None else spec.metrics_port + 1 + rank
        return msgspec.structs.replace(
            spec, bind=bind, keys=keys.get(rank), metrics=metrics or LOOPBACK, metrics_port=port
        )

    def _on_done(self, rank: int, outcome: bytes | BaseException) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._note_done, rank, outcome)

    def _note_done(self, rank: int, outcome: bytes | BaseException) -> None:
        self._tasks_done += 1
        if self._tasks_done == self._nr_ranks:
            self._all_done.set()
        if self._failure is not None or outcome == b"":
            return
        self._failure = _rank_error(rank, outcome)
        if self._failure is not None:
            self._failed.set()

    async def _raise_failure(self) -> None:
        await self._failed.wait()
        assert self._failure is not None
        raise self._failure


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one error to report: Ctrl-C first, then a rank's failure, a cancellation last."""
    leaves = list(_leaves(group))
    pressed = [leaf for leaf in leaves if isinstance(leaf, KeyboardInterrupt)]
    named = [leaf for leaf in leaves if isinstance(leaf, GangError)]
    wrong = [
        GangError(leaf.reason, leaf.rank)
        for leaf in leaves
        if isinstance(leaf, RemoteProtocolError) and leaf.rank is not None
    ]
    causes = [leaf for leaf in leaves if not isinstance(leaf, trio.Cancelled)]
    return (pressed or named or wrong or causes or leaves)[0]


def _rank_error(rank: int, outcome: bytes | BaseException) -> GangError | None:
    if isinstance(outcome, BaseException):
        # What Dask says about a killed worker is long and no help here.
        killed = type(outcome).__name__ == "KilledWorker"
        reason = "killed" if killed else "".join(traceback.format_exception_only(outcome)).strip()
        return GangError(f"its process was lost: {reason}", rank, lost=True)
    failure = msgspec.msgpack.decode(outcome, type=RankFailure)
    return None if failure.stopped else GangError(failure.reason, rank, failure.traceback_text)


async def _close(workers: Workers) -> None:
    """Close workers in any case: a Ctrl-C that is due comes before that, not instead of it."""
    with trio.CancelScope(shield=True):
        try:
            await trio.lowlevel.checkpoint()
        finally:
            await trio.to_thread.run_sync(partial(workers.close))


async def run_gang(
    nr_ranks: int,
    entry: str,
    payload: bytes,
    *,
    attempt: int = 0,
    transport: str = "tcp",
    where: Where = HERE,
    open_workers: Callable[[int, Path], Workers] = LocalWorkers,
    register: Callable[[Hub], None] | None = None,
) -> list[bytes]:
    """Run `entry` once in each of `nr_ranks` processes that can send each other frames.

    Parameters
    ----------
    nr_ranks : int
        Processes; at least 1.
    entry : str
        `module:function`, importable in the workers: `async def f(hub, rank, payload) -> bytes`.
        It registers its handlers, calls `hub.wait_go()` once, and returns its result.
    payload : bytes
        Given to every rank.
    attempt : int
        Which start of the run this is; frames of another are refused.
    transport : str
        `tcp` or `ipc`, for links that do not leave this machine.
    where : Where
        Where the ranks are, who may hear them, and how long they may take to come.
    open_workers : callable
        Makes the workers from their number and a scratch directory.
    register : callable, optional
        Registers handlers for what ranks send to `proto.COORDINATOR`.

    Returns
    -------
    list of bytes
        What each rank's entry returned, in rank order.

    Raises
    ------
    GangError
        If a rank fails, its process is lost or it does not come: named, with its traceback's text.
        All other ranks are stopped and no process is left.
    ValueError
        If `nr_ranks`, `entry` or `where` makes no sense.
    """
    where.check()
    if not 1 <= nr_ranks < COORDINATOR:
        raise ValueError(f"nr_ranks is {nr_ranks}, expected 1 to {COORDINATOR - 1}")
    load_entry(entry)
    run = new_run_number()
    with tempfile.TemporaryDirectory(prefix="vpmu-", ignore_cleanup_errors=True) as name:
        workers = open_workers(nr_ranks, Path(name))
        endpoint = where.endpoint(transport, Path(name))
        try:
            await trio.to_thread.run_sync(workers.start, abandon_on_cancel=True)
            keys = where.keys(nr_ranks, private=workers.private)
            fence = {"run": run, "attempt": attempt, "rank": COORDINATOR}
            with Hub(endpoint, **fence, keys=keys.get(COORDINATOR), insecure=where.insecure) as hub:
                if register is not None:
                    register(hub)
                spec = GangSpec(run, attempt, hub.endpoint, transport, name, entry, payload, where.bind)
                spec = msgspec.structs.replace(
                    spec, insecure=where.insecure, metrics=where.metrics, metrics_port=where.metrics_port
                )
                try:
                    return await _Gang(hub, workers, nr_ranks).run(spec, keys, where.start_within_s)
                except BaseExceptionGroup as group:
                    raise _first(group) from None
        finally:
            await _close(workers)
