"""Machines that are network namespaces of this one: an address each, on a bridge that leads nowhere else."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.processes import untraced

NETWORK = "10.79.0"
BRIDGE = "vpmuchaos"


def call(*command: str) -> str:
    """Run a command of the system and return what it prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@dataclass
class Namespace:
    """One such machine, and what was started on it."""

    number: int
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"vpmu-chaos-{self.number}"

    @property
    def address(self) -> str:
        return f"{NETWORK}.{self.number}"

    @property
    def cable(self) -> str:
        return f"{BRIDGE}{self.number}"

    def plug(self, up: bool) -> None:
        """Put the network cable in, or pull it."""
        call("ip", "link", "set", self.cable, "up" if up else "down")

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start ``vpmu`` here."""
        command = ["ip", "netns", "exec", self.name, sys.executable, "-m", "vpmu.cli", *arguments]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=untraced() | {"PYTHONPATH": ":".join(sys.path)},
        )
        self.processes.append(process)
        return process

    def pids(self) -> list[int]:
        """Return the processes that are here."""
        return [int(pid) for pid in call("ip", "netns", "pids", self.name).split()]

    def ranks(self) -> list[int]:
        """Return the processes that ranks run in: those that Dask's nannies started here."""
        return [pid for pid in self.pids() if "spawn_main" in read(f"/proc/{pid}/cmdline")]

    def connect(self, stack: ExitStack) -> None:
        """Make the namespace and its cable; the stack undoes it."""
        call("ip", "netns", "add", self.name)
        stack.callback(call, "ip", "netns", "del", self.name)
        call("ip", "link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        stack.callback(call, "ip", "link", "del", self.cable)
        call("ip", "link", "set", self.cable, "master", BRIDGE, "up")
        call("ip", "-n", self.name, "address", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            call("ip", "-n", self.name, "link", "set", device, "up")
        stack.callback(self.end)

    def end(self) -> None:
        """Kill all that runs here."""
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for pid in self.pids():
            subprocess.run(["kill", "-KILL", str(pid)], check=False, capture_output=True)
        for process in self.processes:
            process.communicate(timeout=30)


def read(path: str) -> str:
    """Return a file of a process, or nothing if the process has ended."""
    try:
        return Path(path).read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@contextmanager
def namespaces(count: int) -> Iterator[list[Namespace]]:
    """Give so many machines; needs root."""
    with ExitStack() as stack:
        call("ip", "link", "add", BRIDGE, "type", "bridge")
        stack.callback(call, "ip", "link", "del", BRIDGE)
        call("ip", "link", "set", BRIDGE, "up")
        made = [Namespace(number) for number in range(1, count + 1)]
        for each in made:
            each.connect(stack)
        yield made
