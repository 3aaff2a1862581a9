"""Ranks on the workers of a Dask cluster that runs already, on this machine or on others.

Dask's workers outlive a run, so nothing here ends them: ranks are told to stop, and a worker whose rank does
not is restarted by its nanny.
"""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from vpmu.cluster.errors import GangError
from vpmu.cluster.keys import host_of, is_loopback
from vpmu.cluster.launcher import LocalWorkers, OnDone, Workers, outcome_of, rank_main
from vpmu.cluster.where import Where

CONNECT_S: Final = 2.0
"""How long one attempt to reach the scheduler lasts; Ctrl-C waits for no more."""
WATCH_EVERY_S: Final = 1.0
MOST_SILENT: Final = 3
"""How often in a row the scheduler may not answer before its cluster counts as lost."""
ANSWER_S: Final = 10.0
"""How long it may take to say who its workers are."""
STOP_WITHIN_S: Final = 3.0
RESTART_WITHIN_S: Final = 20.0
_ROOMS: Final = ("kernels", "actors", "cluster")
_LOG = logging.getLogger(__name__)


class RemoteWorkers(Workers):
    """A gang's seats on a running Dask cluster, one worker for each rank.

    Owns a client of the cluster; emits what each rank's task came to, and the loss of a worker, since Dask
    would wait for ever for one of its address to come back. `close` lets the cluster go on as it was.

    Parameters
    ----------
    nr_ranks : int
        Workers that are needed.
    where : Where
        The scheduler, its TLS, and the address that ranks reach this process by.
    """

    def __init__(self, nr_ranks: int, where: Where) -> None:
        self._nr_ranks = nr_ranks
        self._where = where
        self._client: Any = None
        self._addresses: list[str] = []
        self._futures: dict[int, Any] = {}
        self._waiting: dict[int, OnDone] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def start(self) -> None:
        """Reach the scheduler, choose the workers, and let one process of each machine compile.

        Raises
        ------
        GangError
            If the scheduler or workers do not come, do not run what we run, or cannot reach each other.
        """
        until = time.monotonic() + self._where.start_within_s
        self._connect(until)
        self._addresses = choose(self._wait_workers(until), self._nr_ranks)
        self.private = all(
            address.startswith("tls://") for address in [*self._addresses, self._where.scheduler]
        )
        check_reach(self._addresses, self._where)
        self._prepare()
        threading.Thread(target=self._watch, daemon=True, name="vpmu-watch").start()

    def _connect(self, until: float) -> None:
        while True:
            with self._lock:
                if self._closed.is_set():
                    raise GangError("closed before the cluster was reached")
                try:
                    self._client = client_of(self._where, CONNECT_S)
                    return
                except GangError:
                    if time.monotonic() > until:
                        raise
            self._closed.wait(CONNECT_S / 4)

    def _wait_workers(self, until: float) -> list[str]:
        while True:
            found = self._workers()
            if len(found) >= self._nr_ranks:
                return found
            if time.monotonic() > until or self._closed.is_set():
                raise GangError(
                    f"{self._nr_ranks} workers are needed, {len(found)} came to {self._where.scheduler} "
                    f"within {self._where.start_within_s:g} s: {', '.join(sorted(found)) or 'none'}"
                )
            self._closed.wait(0.2)

    def _workers(self) -> list[str]:
        return workers_of(self._client)

    def _prepare(self) -> None:
        """Compile on one worker of each machine; its other processes find the kernels in the cache."""
        first = {host_of(address): address for address in reversed(self._addresses)}
        digests = self._each(source_digest, self._addresses)
        wrong = sorted(address for address, digest in digests.items() if digest != source_digest())
        if wrong:
            raise GangError(f"another version of vpmu runs on {', '.join(wrong)}")
        failed = {
            where: text for where, text in self._each(compile_apart, list(first.values())).items() if text
        }
        for address, text in failed.items():
            raise GangError(f"{address} cannot compile: {text}")

    def _each(self, call: Any, addresses: list[str]) -> Mapping[str, Any]:
        """Call a function on workers, all at once; return what each returned."""
        futures = {
            address: self._client.submit(
                call, workers=[address], allow_other_workers=False, pure=False, retries=0
            )
            for address in addresses
        }
        pending = dict(futures)
        while pending and not self._closed.is_set():
            lost = sorted(set(pending) - set(self._workers()))
            if lost:
                raise GangError(f"lost before the start: {', '.join(lost)}")
            pending = {address: future for address, future in pending.items() if not future.done()}
            self._closed.wait(0.05)
        answers = {}
        for address, future in futures.items():
            outcome = outcome_of(future)
            if isinstance(outcome, BaseException):
                raise GangError(f"{address}: {outcome}") from None
            answers[address] = outcome
        return answers

    def address(self, rank: int) -> str:
        """Return the address of a rank's worker: there its peers reach it, too."""
        return host_of(self._addresses[rank])

    def submit(self, rank: int, spec: bytes, on_done: OnDone) -> None:
        """Run the rank on its worker and nowhere else."""
        self._waiting[rank] = on_done
        future = self._client.submit(
            rank_main,
            spec,
            rank,
            workers=[self._addresses[rank]],
            allow_other_workers=False,
            pure=False,
            retries=0,
        )
        self._futures[rank] = future
        future.add_done_callback(lambda done: self._report(rank, outcome_of(done)))

    def _report(self, rank: int, outcome: bytes | BaseException) -> None:
        """Say once what a rank came to."""
        with self._lock:
            on_done = self._waiting.pop(rank, None)
        if on_done is not None:
            on_done(rank, outcome)

    def _watch(self) -> None:
        """Look for lost workers until closed."""
        silent = 0
        while not self._closed.wait(WATCH_EVERY_S):
            try:
                there = set(self._workers())
                silent = 0
            except GangError as error:
                silent += 1
                if silent < MOST_SILENT:
                    continue
                for rank in list(self._waiting):
                    self._report(rank, ConnectionError(error.line))
                return
            for rank in list(self._waiting):
                if self._addresses[rank] not in there:
                    self._report(rank, ConnectionError(f"{self._addresses[rank]} left the cluster"))

    def close(self) -> None:
        """Let the workers go; one whose rank goes on is restarted."""
        self._closed.set()
        with self._lock:
            client = self._client
            self._waiting.clear()
        if client is None:
            return
        try:
            self._stop_ranks(client)
        finally:
            client.close(timeout=2)

    def _stop_ranks(self, client: Any) -> None:
        until = time.monotonic() + STOP_WITHIN_S
        while time.monotonic() < until and not all(each.done() for each in self._futures.values()):
            time.sleep(0.05)
        busy = [self._addresses[rank] for rank, future in self._futures.items() if not future.done()]
        if not busy:
            return
        try:
            there = set(self._workers())
            busy = [address for address in busy if address in there]
            client.restart_workers(busy, timeout=RESTART_WITHIN_S, raise_for_error=False)
        except (GangError, ValueError, OSError, TimeoutError) as error:
            _LOG.warning("%s may still be busy with this run: %s", ", ".join(busy), error)


def opener(where: Where) -> Callable[[int, Path], Workers]:
    """Return what makes the workers of a run: processes of this machine, or seats on a running cluster."""
    if not where.scheduler:
        return LocalWorkers
    return lambda nr_ranks, _: RemoteWorkers(nr_ranks, where)


GRACE_S: Final = 10.0
"""How long a run that lost a worker waits for a new one before it goes on with fewer."""


def wait_workers(where: Where, wanted: int) -> int:
    """Wait until a cluster has so many workers, or some time for those that come; return how many there are.

    Raises
    ------
    GangError
        If none is left.
    """
    client = client_of(where, CONNECT_S)
    try:
        with suppress(TimeoutError):
            client.wait_for_workers(wanted, timeout=GRACE_S)
        found = len(workers_of(client))
    finally:
        client.close(timeout=2)
    if not found:
        raise GangError(f"no worker is left at {where.scheduler}")
    return min(found, wanted)


def workers_of(client: Any) -> list[str]:
    """Return the addresses of all workers of a cluster, as its scheduler has them now.

    Note that `Client.scheduler_info` names five workers at most, and sometimes none: another task of the
    client asks for none every few seconds, and both leave what they get in one place.

    Raises
    ------
    GangError
        If the scheduler does not answer.
    """
    try:
        identity = client.sync(client.scheduler.identity, n_workers=-1, callback_timeout=ANSWER_S)
    except (
        OSError,
        TimeoutError,
        AttributeError,
    ) as error:  # AttributeError: it was never there, or is closed
        raise GangError(f"the scheduler does not answer: {error}") from None
    return list(identity["workers"])


def client_of(where: Where, timeout_s: float) -> Any:
    """Return a client of the cluster; GangError if its scheduler does not answer, or not to us."""
    import distributed

    make: Any = distributed.Client
    try:
        return make(where.scheduler, security=where.security(), timeout=timeout_s, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise GangError(f"no scheduler at {where.scheduler}: {reason}") from None


def choose(addresses: list[str], nr_ranks: int) -> list[str]:
    """Return the workers of ranks 0, 1 and so on; neighbours, which talk most, on one machine if they fit."""
    by_host: dict[str, list[str]] = {}
    for address in sorted(addresses):
        by_host.setdefault(host_of(address), []).append(address)
    # Machines with many workers first: then fewer are needed.
    hosts = sorted(by_host, key=lambda host: (-len(by_host[host]), host))
    return [address for host in hosts for address in by_host[host]][:nr_ranks]


def check_reach(addresses: list[str], where: Where) -> None:
    """Raise GangError if ranks on these workers and this process could not hear each other."""
    local = [address for address in addresses if is_loopback(host_of(address))]
    if local and len(local) < len(addresses):
        other = next(address for address in addresses if address not in local)
        raise GangError(f"{local[0]} is on loopback, where {other} cannot reach it: start it with --bind")
    if not local and not where.leaves:
        raise GangError(
            f"the rank at {addresses[0]} cannot reach this process on loopback: give --bind ADDRESS, "
            "an address of this machine"
        )
    if local and where.leaves:
        raise GangError(f"{local[0]} is on loopback: start the workers with --bind, or leave it out here")


def source_digest() -> str:
    """Return the SHA-256 of what ranks execute; the same on every worker, or results would not be."""
    digest = hashlib.sha256()
    top = Path(__file__).parents[1]
    for room in _ROOMS:
        for file in sorted((top / room).rglob("*.py")):
            digest.update(str(file.relative_to(top)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def compile_apart() -> str:
    """Compile all kernels into this machine's cache; return what went wrong, or nothing.

    In a process of its own: a worker that has the engine loaded could not be given another design any more.
    """
    done = subprocess.run(
        [sys.executable, "-m", "vpmu.cli", "compile"], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else (done.stderr.strip() or f"exit status {done.returncode}")
