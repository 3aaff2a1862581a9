"""Runs of the command line whose processes are killed, stopped or starved from outside."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.processes import untraced

FLEET = Path(__file__).parents[2] / "examples" / "fleet" / "fleet.toml"


@dataclass
class Run:
    """A run that is under way.

    Parameters
    ----------
    arguments : sequence of str
        Of ``vpmu``.
    most_bytes : int, optional
        What no file of it may outgrow: a full disk, for whoever writes.
    """

    arguments: Sequence[str]
    most_bytes: int | None = None
    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vpmu.cli", *self.arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=untraced() | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        if self.most_bytes is not None:
            limits = (self.most_bytes, self.most_bytes)
            psutil.Process(self.process.pid).rlimit(psutil.RLIMIT_FSIZE, limits)

    def workers(self) -> list[psutil.Process]:
        """Return its worker processes that live."""
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
            return [each for each in children if "spawn_main" in " ".join(each.cmdline())]
        except psutil.NoSuchProcess:
            return []

    def wait_for(self, condition: Callable[[], bool], within_s: float = 60) -> bool:
        """Wait for something outside, on a real clock; return whether it came before the run's end."""
        end = time.monotonic() + within_s
        while self.process.poll() is None:
            if condition():
                return True
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.002)
        return False

    def kill(self, number: int = 0, how: signal.Signals = signal.SIGKILL) -> bool:
        """Send a worker a signal; return whether there was one."""
        workers = self.workers()
        if not workers:
            return False
        try:
            workers[number % len(workers)].send_signal(how)
        except psutil.NoSuchProcess:
            return False
        return True

    def end(self, within_s: float = 120) -> tuple[int, str]:
        """Wait for its end; return its status and what it said on stderr. No process is left behind."""
        left = (
            psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        )
        _, said = self.process.communicate(timeout=within_s)
        _, alive = psutil.wait_procs(left, timeout=10)
        assert alive == []
        return self.process.returncode, said


def files_of(out: Path) -> dict[str, bytes]:
    """Return every file of a results directory, apart from the figures of the wall clock."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "timing.json"
    }
