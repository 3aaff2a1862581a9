"""What a process of a run is doing: its figures, and Prometheus' view of them.

Nothing here is part of a result. The figures cost a run nothing: Linux counts the time that a thread computes
and the time that it waits for a processor; what is left of the wall clock, it waited for its peers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from prometheus_client import Metric

    from vpmu.cluster.hub import Hub

NS_PER_S: Final = 1e9
LOOPBACK: Final = "127.0.0.1"
_NOTHING: Final = 0


class Waits(msgspec.Struct, frozen=True):
    """Where the wall time of a rank went, seconds: it computed, waited for a processor, or for peers.

    And how often its kernels came back, how many vCPUs began there, and for how much of the time, and how
    often, it stood still to write a checkpoint.
    """

    busy_s: float = 0.0
    queue_s: float = 0.0
    peers_s: float = 0.0
    stops: int = 0
    vcpus: int = 0
    saving_s: float = 0.0
    saves: int = 0

    @property
    def stops_per_s(self) -> float:
        """Stops in a second of the wall clock."""
        total = self.busy_s + self.queue_s + self.peers_s
        return self.stops / total if total else 0.0

    @property
    def peers_share(self) -> float:
        """The part of the time that it waited for its peers, 0 to 1."""
        total = self.busy_s + self.queue_s + self.peers_s
        return self.peers_s / total if total else 0.0

    def words(self) -> tuple[int, ...]:
        """Return all, the times in whole nanoseconds, as a frame carries them."""
        times = (int(seconds * NS_PER_S) for seconds in (self.busy_s, self.queue_s, self.peers_s))
        return *times, self.stops, self.vcpus, int(self.saving_s * NS_PER_S), self.saves

    @classmethod
    def of_words(cls, *words: int) -> Waits:
        """Return what `words` was asked of."""
        busy_ns, queue_ns, peers_ns, stops, vcpus, saving_ns, saves = words
        times = (busy_ns / NS_PER_S, queue_ns / NS_PER_S, peers_ns / NS_PER_S)
        return cls(*times, stops, vcpus, saving_ns / NS_PER_S, saves)


@dataclass(eq=False)
class Watch:
    """The figures of one process, read by whoever asks: the progress, the end of a run, Prometheus.

    Attributes
    ----------
    clock_ns : callable
        How far its virtual time is.
    vcpus : int
        vCPUs that began here.
    stops : int
        How often the kernels came back, and what they came back for.
    saving_s : float
        Wall time that checkpoints took from the run.
    saves : int
        How many there were.
    """

    clock_ns: Callable[[], int] = lambda: _NOTHING
    vcpus: int = 0
    stops: int = 0
    saving_s: float = 0.0
    saves: int = 0
    hub: Hub | None = None
    labels: dict[str, str] = field(default_factory=dict)
    _thread: Path = Path()
    _began: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def begin(self) -> None:
        """Measure from now on, and this thread."""
        import threading

        self._thread = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        self._began = self._times()

    def _times(self) -> tuple[float, float, float]:
        """Return the wall clock, and how long the thread computed and waited for a processor, seconds."""
        now = time.perf_counter()
        try:
            busy, queue, _ = map(int, self._thread.read_text().split())
        except (OSError, ValueError):  # a kernel without CONFIG_SCHED_INFO, or the thread has ended
            return now, self._began[1], self._began[2]
        return now, busy / NS_PER_S, queue / NS_PER_S

    def waits(self) -> Waits:
        """Return where the time since `begin` went."""
        wall, busy, queue = (now - then for now, then in zip(self._times(), self._began, strict=True))
        peers = max(wall - busy - queue, 0.0)
        return Waits(busy, queue, peers, self.stops, self.vcpus, self.saving_s, self.saves)

    def collect(self) -> Iterator[Metric]:
        """Yield the figures as Prometheus' metrics; called at each scrape, in another thread."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        waits, virtual_s = self.waits(), self.clock_ns() / NS_PER_S
        wall_s = time.perf_counter() - self._began[0]
        gauges = {
            "virtual_seconds": (virtual_s, "Virtual time of the slowest physical CPU here"),
            "speed": (
                virtual_s / wall_s if wall_s > 0 else 0.0,
                "Virtual seconds in a second since the start",
            ),
            "vcpus": (self.vcpus, "vCPUs that began here"),
        }
        counters = {
            "stops": (self.stops, "How often the kernels came back, and what they came back for"),
            "busy_seconds": (waits.busy_s, "Time that this process computed"),
            "queue_seconds": (waits.queue_s, "Time that it waited for a processor"),
            "wait_seconds": (waits.peers_s, "Time that it waited for its peers"),
        }
        if self.hub is not None:
            statistics = self.hub.statistics()
            counters["refused"] = (statistics.refused, "Peers and messages refused")
            counters["frames_sent"] = (sum(statistics.frames_sent.values()), "Frames sent")
            counters["frames_received"] = (sum(statistics.frames_received.values()), "Frames received")
        names, values = list(self.labels), list(self.labels.values())
        for name, (value, text) in gauges.items():
            gauge = GaugeMetricFamily(f"vpmu_{name}", text, labels=names)
            gauge.add_metric(values, value)
            yield gauge
        for name, (value, text) in counters.items():
            counter = CounterMetricFamily(f"vpmu_{name}", text, labels=names)
            counter.add_metric(values, value)
            yield counter


@contextmanager
def serving(watch: Watch, address: str, port: int | None) -> Iterator[int]:
    """Tell a process's figures to Prometheus, as text under `http://ADDRESS:PORT/metrics`.

    Parameters
    ----------
    watch : Watch
        The figures.
    address : str
        Where to listen.
    port : int or None
        0 for any; None tells nothing.

    Yields
    ------
    int
        The port.

    Raises
    ------
    OSError
        If it cannot listen there.
    """
    if port is None:
        yield 0
        return
    import prometheus_client

    registry: Any = prometheus_client.CollectorRegistry()
    registry.register(watch)
    prometheus_client.ProcessCollector(registry=registry)
    server, thread = prometheus_client.start_http_server(port, address, registry)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
