"""Remote guests over real sockets: Python and C, tcp and ipc, with keys and without."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio
import zmq

from tests.remote.hosts import DESIGNS, alone, limit, remote, scenario
from vpmu.actors.outside import Outside
from vpmu.build import build
from vpmu.cluster.guests import messages as say
from vpmu.cluster.guests import wire
from vpmu.cluster.guests.desk import Desk
from vpmu.cluster.guests.keys import GUEST_KEY, SERVE_KEY, read_guest_key, read_serve_key, write_guest_keys
from vpmu.cluster.guests.ports import RouterPort, ipc_endpoint
from vpmu.cluster.guests.serve import Patience, serve
from vpmu.cluster.guests.wire import MAX_FRAME_BYTES
from vpmu.command_serve import Door
from vpmu.guest import connect
from vpmu.scenario import Scenario, load_scenario
from vpmu.serving import desk_of, hosting

EXAMPLE = Path(__file__).parents[2] / "examples" / "remote"
LOOPBACK = "tcp://127.0.0.1:*"
PATIENT = Patience(stall_s=20, wait_s=20)
OPEN = Door()

_LIBRARY = (
    subprocess.run(
        ["cc", "-x", "c", "-", "-o", "/dev/null", "-lzmq"],
        input=b"#include <zmq.h>\nint main(void) { return zmq_errno(); }\n",
        capture_output=True,
        check=False,
    )
    if shutil.which("cc")
    else None
)
needs_c = pytest.mark.skipif(
    _LIBRARY is None or _LIBRARY.returncode != 0,
    reason="a C compiler and libzmq's header are not installed (Debian: gcc libzmq3-dev)",
)


class Served:
    """A host in a thread of its own.

    Attributes
    ----------
    endpoint : str
        Where guests connect.
    desk : Desk
        Who is which vCPU.
    """

    def __init__(self, of: Scenario, design: str, endpoint: str, patience: Patience, door: Door) -> None:
        machine = build(of, design)
        self._outside = Outside(machine)
        self.desk: Desk = desk_of(of, machine, self._outside)
        self.port = RouterPort(endpoint, door.gate(self.desk.note_refused))
        self.endpoint = self.port.endpoint
        self._patience = patience
        self.errors: list[BaseException] = []

    def run(self) -> None:
        """Run the host to its end."""
        try:
            trio.run(serve, self._outside, self.desk, self.port, self._patience)
        except BaseException as error:
            self.errors.append(error)
        finally:
            self.port.close()


@contextmanager
def served(
    of: Scenario,
    design: str = "optimized",
    endpoint: str = LOOPBACK,
    patience: Patience = PATIENT,
    door: Door = OPEN,
) -> Iterator[Served]:
    """Run a host in a thread; at the block's end, wait for the run's."""
    host = Served(of, design, endpoint, patience, door)
    thread = threading.Thread(target=host.run)
    thread.start()
    yield host
    thread.join(30)
    assert not thread.is_alive()
    assert host.errors == []


def example() -> ModuleType:
    spec = spec_from_file_location("remote_guest", EXAMPLE / "guest.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def c_guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("c")
    subprocess.run(["make", "-s", "-C", str(EXAMPLE), f"OUT={out}"], check=True)
    return out / "guest"


def endpoints(folder: Path) -> list[str]:
    """Return where to bind: over tcp, and in a folder that only its owner may enter."""
    folder.chmod(0o700)
    return [LOOPBACK, ipc_endpoint(folder / "socket")]


def run_c(guest: Path, endpoint: str, *more: str) -> list[str]:
    done = subprocess.run(
        [guest, endpoint, "g0", *more], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.splitlines()


@needs_c
@pytest.mark.parametrize("design", DESIGNS)
def test_the_clients_get_the_same_bytes_over_tcp_and_ipc_and_in_process(
    design: str, c_guest: Path, tmp_path: Path
):
    demo = example().demo
    of = load_scenario(EXAMPLE / "remote.toml")

    async def inside() -> list[str]:
        async with hosting(of, design) as host:
            answers: list[str] = await demo(host.port, "g0")
        return answers

    expected = trio.run(inside)
    # WELCOME, CPUID_IS, grants of which one brings an interrupt and one a #GP, END.
    kinds = [wire.decode_answer(bytes.fromhex(line))[1] for line in expected]
    given = [answer.given for answer in kinds if isinstance(answer, say.Grant)]
    assert any(each & say.Given.PMI for each in given)
    assert any(each & say.Given.FAULT for each in given)
    assert isinstance(kinds[-1], say.End)
    for endpoint in endpoints(tmp_path):
        with served(of, design, endpoint) as host:
            assert run_c(c_guest, host.endpoint) == expected
        with served(of, design, endpoint) as host:
            assert trio.run(demo, host.endpoint, "g0") == expected


@needs_c
def test_the_client_in_c_is_short_and_says_why_it_was_refused(c_guest: Path):
    assert len((EXAMPLE / "guest.c").read_text().splitlines()) <= 200
    with served(alone(), patience=Patience(wait_s=3)) as host:
        done = subprocess.run(
            [c_guest, host.endpoint, "nobody"], capture_output=True, text=True, timeout=30, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "refused: no remote vCPU 0 in a VM 'nobody'\n"


@contextmanager
def dealer(endpoint: str, secure: Callable[[zmq.Socket[Any]], None] | None = None):
    """Speak past every rule of ours; yields the socket."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as raw:
        raw.linger = 0
        raw.rcvtimeo = 5_000
        if secure is not None:
            secure(raw)
        raw.connect(endpoint)
        yield raw


def ask(raw: zmq.Socket[bytes], sequence: int, request: say.Request) -> say.Answer:
    raw.send(wire.encode(sequence, request))
    return wire.decode_answer(raw.recv())[1]


def begin(raw: zmq.Socket[bytes]) -> say.Grant:
    assert isinstance(ask(raw, 0, say.Hello("g0")), say.Welcome)
    grant = ask(raw, 1, say.Start())
    assert isinstance(grant, say.Grant)
    return grant


@pytest.mark.parametrize("way", [0, 1], ids=["tcp", "ipc"])
def test_who_vanishes_is_noticed_at_once(way: int, tmp_path: Path):
    endpoint = endpoints(tmp_path)[way]
    with served(alone(), endpoint=endpoint, patience=Patience(stall_s=1000)) as host:  # noqa: SIM117
        with dealer(host.endpoint) as raw:
            grant = begin(raw)
    (row,) = host.desk.cut_off
    assert (row.at_ns, row.reason) == (grant.now_ns, "its connection is gone")


def test_who_stalls_is_cut_off_though_its_connection_stands():
    with served(alone(), patience=Patience(stall_s=0.3)) as host, dealer(host.endpoint) as raw:
        grant = begin(raw)
        answer = wire.decode_answer(raw.recv())[1]
    (row,) = host.desk.cut_off
    assert (row.at_ns, row.reason) == (grant.now_ns, "said nothing for 0.3 s")
    assert answer == say.Refused(row.reason)


def test_who_stalls_is_cut_off_however_much_others_talk():
    of = scenario(remote("g0", 0), remote("g1", 1))
    with (
        served(of, patience=Patience(stall_s=0.5)) as host,
        dealer(host.endpoint) as quiet,
        dealer(host.endpoint) as talks,
        dealer(host.endpoint) as stranger,
    ):
        # Neither has an answer to START before the other one is there, too.
        for raw, vm in ((quiet, "g0"), (talks, "g1")):
            assert isinstance(ask(raw, 0, say.Hello(vm)), say.Welcome)
            raw.send(wire.encode(1, say.Start()))
        assert isinstance(wire.decode_answer(quiet.recv())[1], say.Grant)
        assert isinstance(wire.decode_answer(talks.recv())[1], say.Grant)
        nr_asked = 0
        while len(host.desk.cut_off) < 2:
            ask(stranger, 0, say.Start())
            if isinstance(ask(talks, 2 + nr_asked, say.Cpuid(0)), say.CpuidIs):
                nr_asked += 1
    # CPUID costs no virtual time, and gives none on the wall clock: who only asks for it stalls, too.
    assert {row.reason for row in host.desk.cut_off} == {"said nothing for 0.5 s"}
    assert nr_asked > 64


def test_a_connection_that_takes_anothers_number_is_not_mistaken_for_it(tmp_path: Path):
    with served(alone(), endpoint=endpoints(tmp_path)[1]) as host:
        # Connections come and go, each under the file descriptor of the one before.
        for _ in range(20):
            with dealer(host.endpoint) as raw:
                assert isinstance(ask(raw, 0, say.Cpuid(0)), say.Refused)
        with dealer(host.endpoint) as raw:
            grant = begin(raw)
            for sequence in range(2, 6):
                answer = ask(raw, sequence, limit(grant))
                assert isinstance(answer, say.Grant)
                grant = answer
            ask(raw, 6, say.Bye())
    assert host.desk.cut_off == []
    assert host.desk.nr_refused == 20


def test_a_message_of_many_parts_or_too_long_ends_a_guest():
    for parts, reason in (
        ([b"a", b"b", b"c"], "frame of 0 bytes is shorter than its header of 16"),
        ([bytes(MAX_FRAME_BYTES + 1)], "its connection is gone"),
    ):
        with served(alone()) as host, dealer(host.endpoint) as raw:
            begin(raw)
            raw.send_multipart(parts)
            raw.poll(2_000)
        (row,) = host.desk.cut_off
        assert row.reason == reason


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    write_guest_keys(folder)
    return folder


def test_with_keys_only_who_has_the_guests_key_comes_in(keys: Path, tmp_path: Path):
    write_guest_keys(tmp_path)
    strangers = [None, read_guest_key(tmp_path / GUEST_KEY).secure]
    own = read_guest_key(keys / GUEST_KEY)
    # The right host's key, but a pair that nobody let in.
    public, secret = zmq.curve_keypair()
    forged = type(own)(public.decode(), secret.decode(), own.host)

    async def guest(endpoint: str) -> int:
        async with connect(endpoint, vm="g0", key=keys / GUEST_KEY) as cpu:
            await cpu.retire(instructions=1_000)
            return cpu.now_ns

    with served(alone(), door=Door(keys=keys)) as host:
        for secure in (*strangers, forged.secure):
            with dealer(host.endpoint, secure) as raw:
                raw.send(wire.encode(0, say.Hello("g0")))
                assert raw.poll(300) == 0
        assert trio.run(guest, host.endpoint) > 0
    assert host.desk.nr_refused >= 2
    assert any("no key of this run" in reason for reason in host.desk.refused)
    assert host.desk.cut_off == []


def test_keys_are_files_that_only_their_owner_reads(keys: Path):
    for name in (SERVE_KEY, GUEST_KEY):
        assert (keys / name).stat().st_mode & 0o777 == 0o600
    serve_key, guest_key = read_serve_key(keys / SERVE_KEY), read_guest_key(keys / GUEST_KEY)
    assert (serve_key.guest, serve_key.public) == (guest_key.public, guest_key.host)
    assert serve_key.secret not in repr(serve_key)
    assert guest_key.secret not in repr(guest_key)
    with pytest.raises(FileExistsError):
        write_guest_keys(keys)


@pytest.mark.parametrize("text", ["", "x", 'public = "1"', 'public = "1"\nsecret = "2"\nhost = "3"\n', "\0"])
def test_a_file_that_is_no_key_is_named(text: str, tmp_path: Path):
    file = tmp_path / GUEST_KEY
    file.write_text(text)
    with pytest.raises(ValueError, match=r"guest.key is no key of `vpmu cluster keys`"):
        read_guest_key(file)


def test_a_socket_file_is_in_a_folder_of_its_owner(tmp_path: Path):
    assert ipc_endpoint(tmp_path / "new" / "socket") == f"ipc://{tmp_path}/new/socket"
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    (tmp_path / "new").chmod(0o750)
    with pytest.raises(ValueError, match="others may enter"):
        ipc_endpoint(tmp_path / "new" / "socket")
    with pytest.raises(ValueError, match="longer than a socket's name"):
        ipc_endpoint(tmp_path / "own" / ("x" * 120))
