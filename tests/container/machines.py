"""Containers without a container engine: the image's file system, and a network namespace for each.

What an engine would do, in the order of its steps: build the image, unpack it, and run a command in it with
mounts, processes, network and address of its own, as the image's user and in its environment.
"""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = "ca-certificates,python3,python3-venv,python-is-python3"
BASE, IMAGE = "localhost/vpmu-test-base", "localhost/vpmu-test"
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
NETWORK = "10.78.0"
USER = "1000:1000"

# Binds what an image needs of the machine, then becomes the command as the image's user.
_ENTER = """
set -e
mount -t overlay overlay -o lowerdir="$LOWER",upperdir="$UPPER",workdir="$WORK" "$TOP"
mount -t proc proc "$TOP/proc"
mount --rbind /dev "$TOP/dev"
mount -t tmpfs tmpfs "$TOP/tmp"
mkdir -p "$TOP/keys" "$TOP/out"
mount --bind "$KEYS" "$TOP/keys"
mount --bind "$OUT" "$TOP/out"
exec chroot --userspec="$USERSPEC" "$TOP" /usr/bin/env -i "$@"
"""


def call(*command: str | Path, **options: Any) -> str:
    """Run a command of the machine and return what it prints; its errors are shown."""
    words = [str(word) for word in command]
    output: str = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, **options).stdout
    return output.strip()


def apt_mirror() -> tuple[str, str]:
    """Return the mirror that this machine's own packages come from, and its release."""
    release = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.MULTILINE)
    assert release
    files = [*Path("/etc/apt").glob("sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    for text in map(Path.read_text, sorted(files)):
        for stanza in text.split("\n\n"):
            uri = re.search(r"^URIs:\s*(\S+)", stanza, re.MULTILINE)
            if uri and re.search(rf"^Suites:.*\b{release[1]}(\s|$)", stanza, re.MULTILINE):
                return uri[1], release[1]
        line = re.search(rf"^deb\s+(?:\[.*?\]\s+)?(\S+)\s+{release[1]}\s", text, re.MULTILINE)
        if line:
            return line[1], release[1]
    raise AssertionError(f"no apt source for {release[1]} to take a base from")


@dataclass
class Image:
    """The image as built from the Dockerfile, unpacked."""

    top: Path
    environment: list[str]
    entry: list[str]
    user: str
    health: list[str]


class Builder:
    """Buildah with a storage of its own."""

    def __init__(self, directory: Path) -> None:
        self._options = ["--root", str(directory / "storage"), "--runroot", str(directory / "runroot")]
        self._options += ["--storage-driver", "vfs"]
        self._directory = directory

    def buildah(self, *arguments: str | Path) -> str:
        return call("buildah", *self._options, *arguments)

    def build(self) -> Image:
        """Make a base by debootstrap, the image by the Dockerfile, and unpack it."""
        self._make_base()
        self.buildah("build", "--quiet", "--format", "docker", "--isolation", "chroot", "--build-arg",
                     f"BASE={BASE}", "--tag", IMAGE, ROOT)  # fmt: skip
        container = self.buildah("from", IMAGE)
        config = json.loads(self.buildah("inspect", "--type", "image", IMAGE))["Docker"]["config"]
        return Image(
            Path(self.buildah("mount", container)),
            config["Env"],
            config["Entrypoint"],
            config["User"],
            config["Healthcheck"]["Test"],
        )

    def _make_base(self) -> None:
        tree = Path(
            os.environ.get("VPMU_CONTAINER_BASE", self._directory / "base")
        )  # one made before, or new
        if not tree.exists():
            mirror, release = apt_mirror()
            call("debootstrap", "--variant=minbase", f"--include={PACKAGES}", release, tree, mirror)
        # Whoever stands between this machine and the package index is trusted by the base as by the machine.
        (tree / AUTHORITIES.relative_to("/")).write_bytes(AUTHORITIES.read_bytes())
        container = self.buildah("from", "scratch")
        self.buildah("add", "--quiet", container, tree, "/")
        self.buildah("commit", "--quiet", "--rm", container, BASE)


@dataclass
class Container:
    """A machine of its own: an address, a layer over the image's file system, and what runs in it."""

    number: int
    image: Image
    directory: Path
    keys: Path
    out: Path
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"vpmu-test-{self.number}"

    @property
    def address(self) -> str:
        return f"{NETWORK}.{self.number}"

    @property
    def cable(self) -> str:
        return f"vpmutest{self.number}"

    def plug(self, up: bool) -> None:
        """Put the network cable in, or pull it."""
        call("ip", "link", "set", self.cable, "up" if up else "down")

    def start(
        self, *arguments: str, environment: dict[str, str] | None = None, entry: bool = True
    ) -> subprocess.Popen[str]:
        """Start a command in here; its process ends with all that it started."""
        layer = self.directory / f"{self.name}-{len(self.processes)}"
        folders = {name: layer / name.lower() for name in ("UPPER", "WORK", "TOP")}
        for folder in folders.values():
            folder.mkdir(parents=True)
        variables = os.environ | {name: str(folder) for name, folder in folders.items()}
        variables |= {
            "LOWER": str(self.image.top),
            "USERSPEC": USER,
            "KEYS": str(self.keys),
            "OUT": str(self.out),
        }
        own = [f"{name}={value}" for name, value in (environment or {}).items()]
        apart = ["unshare", "--mount", "--pid", "--fork", "sh", "-c", _ENTER, "sh"]
        command = ["ip", "netns", "exec", self.name, *apart]
        command += [*self.image.environment, "VPMU_KEYS=/keys", "HOME=/tmp", *own]
        command += [*(self.image.entry if entry else []), *arguments]
        process = subprocess.Popen(
            command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.processes.append(process)
        return process

    def run(self, *arguments: str, **options: Any) -> tuple[int, str]:
        """Run a command to its end; return its exit status and what it printed."""
        process = self.start(*arguments, **options)
        output, _ = process.communicate(timeout=600)
        return process.returncode, output

    def worker_processes(self) -> list[int]:
        """Return the processes that ranks run in: those that Dask's nannies started here."""
        pids = map(int, call("ip", "netns", "pids", self.name).split())
        return [pid for pid in pids if "spawn_main" in _read(f"/proc/{pid}/cmdline")]

    def end(self) -> None:
        """Kill all that runs here; with the first process of a namespace go its others."""
        for pid in call("ip", "netns", "pids", self.name).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        for process in self.processes:
            process.communicate(timeout=30)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has had."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


@contextmanager
def containers(
    image: Image, numbers: range, directory: Path, keys: Path, out: Path
) -> Iterator[dict[int, Container]]:
    """Give each number a network namespace with an address, all on one bridge that leads nowhere else."""
    with ExitStack() as stack:
        call("ip", "link", "add", "vpmutest", "type", "bridge")
        stack.callback(call, "ip", "link", "del", "vpmutest")
        call("ip", "link", "set", "vpmutest", "up")
        made = {}
        for number in numbers:
            each = made[number] = Container(number, image, directory, keys, out)
            call("ip", "netns", "add", each.name)
            stack.callback(call, "ip", "netns", "del", each.name)
            call("ip", "link", "add", each.cable, "type", "veth", "peer", "name", "eth0", "netns", each.name)
            stack.callback(call, "ip", "link", "del", each.cable)
            call("ip", "link", "set", each.cable, "master", "vpmutest", "up")
            call("ip", "-n", each.name, "address", "add", f"{each.address}/24", "dev", "eth0")
            call("ip", "-n", each.name, "link", "set", "eth0", "up")
            call("ip", "-n", each.name, "link", "set", "lo", "up")
            stack.callback(each.end)
        yield made
