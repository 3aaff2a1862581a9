"""Links with CURVE, over real sockets: loopback, with CURVE switched on as if it were not."""

import socket
import stat
import threading
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
import zmq
from zmq.utils import z85

from tests.cluster.test_launcher import ENTRIES, ThreadWorkers, hops
from vpmu.cluster import proto
from vpmu.cluster.errors import GangError, LocalProtocolError, RemoteProtocolError
from vpmu.cluster.gang import Coordinator
from vpmu.cluster.hub import Hub
from vpmu.cluster.keys import RankKeys, draw_keys, is_loopback, needs_keys
from vpmu.cluster.launcher import run_gang
from vpmu.cluster.link import address_endpoint
from vpmu.cluster.proto import COORDINATOR, Frame, Header, Kind
from vpmu.cluster.where import Where
from vpmu.cluster.zap import Authenticator

RUN, ATTEMPT = 77, 2
LOOPBACK = "tcp://127.0.0.1:*"


@pytest.fixture(scope="module")
def keys() -> dict[int, RankKeys]:
    return draw_keys(3)


def access(sequence: int = 0, *, rank: int = 1) -> bytes:
    header = Header(Kind.ACCESS, RUN, sequence, 0, ATTEMPT, 0, 0, rank, 0, 1, 8, 0)
    return proto.encode(header, np.full((1, 8), sequence, np.uint64))


@asynccontextmanager
async def listening(keys: dict[int, RankKeys]):
    """Run the hub of rank 0, which knows rank 1 and 2; yield it and what it took."""
    taken: list[Frame] = []
    with Hub(LOOPBACK, run=RUN, attempt=ATTEMPT, rank=0, keys=keys[0]) as hub, trio.fail_after(20):
        hub.on_kind(Kind.ACCESS, taken.append)
        hub.admit(1)
        hub.admit(2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hub.run)
            yield hub, taken
            nursery.cancel_scope.cancel()


@contextmanager
def dealer(endpoint: str, own: RankKeys | None, server: bytes = b"", *, rank: int = 1):
    """Speak as a rank past every rule of ours, with the keys given."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as raw:
        raw.linger = 0
        raw.routing_id = proto.routing_id(RUN, ATTEMPT, rank)
        if own is not None:
            raw.curve_publickey, raw.curve_secretkey, raw.curve_serverkey = own.public, own.secret, server
        raw.connect(endpoint)
        yield raw


async def until_refused(hub: Hub, reason: str) -> None:
    while not any(reason in refusal.reason for refusal in hub.refused):
        await trio.lowlevel.checkpoint()


async def good_frame_still_passes(hub: Hub, taken: list[Frame], keys: dict[int, RankKeys]) -> None:
    """Whatever else happened: rank 1 is heard, and its frame is the first."""
    with dealer(hub.endpoint, keys[1], keys[0].public) as raw:
        raw.send(access())
        while not taken:
            await trio.lowlevel.checkpoint()
    assert [frame.header.sequence for frame in taken] == [0]
    assert hub.statistics().frames_received == {Kind.ACCESS: 1}


NULL_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
"""How ZMTP 3.0 begins for a peer without security: signature, version, mechanism, as-server and filler."""


async def test_a_peer_without_a_key_gets_nowhere(keys: dict[int, RankKeys]):
    async with listening(keys) as (hub, taken):
        # Note that libzmq's own client may hang up before the hub has seen why; this one waits.
        with dealer(hub.endpoint, None) as raw, socket.create_connection(address_of(hub)) as patient:
            raw.send(access())
            patient.sendall(NULL_GREETING)
            await until_refused(hub, "it speaks without CURVE")
        assert taken == []
        await good_frame_still_passes(hub, taken, keys)


def address_of(hub: Hub) -> tuple[str, int]:
    host, port = hub.endpoint.removeprefix("tcp://").split(":")
    return host, int(port)


async def test_a_peer_with_a_key_of_its_own_gets_nowhere(keys: dict[int, RankKeys]):
    own = draw_keys(1)[0]
    async with listening(keys) as (hub, taken):
        with dealer(hub.endpoint, own, keys[0].public) as raw:
            raw.send(access())
            await until_refused(hub, "no key of this run, from 127.0.0.1")
        await good_frame_still_passes(hub, taken, keys)


async def test_a_peer_that_looks_for_another_server_gets_nowhere(keys: dict[int, RankKeys]):
    async with listening(keys) as (hub, taken):
        with dealer(hub.endpoint, keys[1], keys[2].public) as raw:
            raw.send(access())
            await until_refused(hub, "its handshake failed")
        await good_frame_still_passes(hub, taken, keys)


async def test_a_rank_may_not_speak_for_another(keys: dict[int, RankKeys]):
    async with listening(keys) as (hub, taken):
        with dealer(hub.endpoint, keys[2], keys[0].public, rank=1) as raw:
            raw.send(access())
            await until_refused(hub, "rank 1, under the key of rank 2")
        await good_frame_still_passes(hub, taken, keys)


async def test_a_replayed_frame_is_refused_and_fails_the_attempt_by_name(keys: dict[int, RankKeys]):
    taken: list[Frame] = []
    with Hub(LOOPBACK, run=RUN, attempt=ATTEMPT, rank=0, keys=keys[0]) as hub:
        hub.on_kind(Kind.ACCESS, taken.append)
        hub.admit(1)
        with dealer(hub.endpoint, keys[1], keys[0].public) as raw, trio.fail_after(20):
            for sequence in (0, 1, 0):
                raw.send(access(sequence))
            with pytest.RaisesGroup(
                pytest.RaisesExc(RemoteProtocolError, match="frame number 0 on this link, expected 2")
            ):
                await hub.run()
    assert [frame.header.sequence for frame in taken] == [0, 1]


def record(listener: socket.socket, target: tuple[str, int], recorded: bytearray) -> None:
    """Stand between a peer and a hub for one connection; keep what the peer says."""
    near, _ = listener.accept()
    with near, socket.create_connection(target) as far:
        back = threading.Thread(target=pump, args=(far, near, bytearray()))
        back.start()
        pump(near, far, recorded)
        back.join()


def pump(source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
    try:
        while chunk := source.recv(65536):
            kept += chunk
            sink.sendall(chunk)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return  # the other direction has closed both


async def test_a_recorded_connection_played_again_gets_nowhere(keys: dict[int, RankKeys]):
    recorded = bytearray()
    async with listening(keys) as (hub, taken):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            between = threading.Thread(target=record, args=(listener, address_of(hub), recorded))
            between.start()
            own_port = listener.getsockname()[1]
            with dealer(f"tcp://127.0.0.1:{own_port}", keys[1], keys[0].public) as raw:
                raw.send(access())
                while not taken:
                    await trio.lowlevel.checkpoint()
            await trio.to_thread.run_sync(between.join)
        assert len(recorded) > len(access())
        with socket.create_connection(address_of(hub)) as again:
            again.sendall(recorded)
            await until_refused(hub, "its handshake failed")
        assert len(taken) == 1


def question(key: bytes, *, domain: bytes = b"vpmu", mechanism: bytes = b"CURVE") -> list[bytes]:
    return [b"1.0", b"9", domain, b"10.0.0.7", b"", mechanism, key]


async def test_zap_names_the_rank_and_refuses_everything_else(keys: dict[int, RankKeys]):
    refused: list[str] = []
    key = z85.decode(keys[2].public)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        zap = Authenticator(router, keys[0], refused.append)
        assert zap.answer(question(key)) == [b"1.0", b"9", b"200", b"", b"2", b""]
        wrong = [
            question(bytes(32)),
            question(key, domain=b"x"),
            question(key, mechanism=b"NULL"),
            question(key)[:6],
            [],
        ]
        assert {zap.answer(each)[2] for each in wrong} == {b"400"}
        context.destroy(linger=0)
    assert refused == ["no key of this run, from 10.0.0.7"] * 4 + ["no key of this run, from nowhere"]


def test_a_secret_is_not_printed(keys: dict[int, RankKeys]):
    assert keys[0].secret.decode() not in repr(keys[0])
    assert sorted(keys[0].allowed) == [0, 1, 2, COORDINATOR]
    assert len({each.secret for each in keys.values()}) == 4


@pytest.mark.parametrize(
    ("endpoint", "leaves"),
    [
        ("tcp://127.0.0.1:5", False),
        ("tcp://127.9.9.9:*", False),
        ("tcp://[::1]:5", False),
        ("tcp://localhost:5", False),
        ("ipc:///somewhere", False),
        ("tcp://10.0.0.1:5", True),
        ("tcp://0.0.0.0:5", True),
        ("tcp://*:5", True),
        ("tcp://[fe80::1]:5", True),
        ("tcp://localhost.example:5", True),
    ],
)
def test_what_leaves_this_machine(endpoint: str, leaves: bool):
    assert needs_keys(endpoint) is leaves
    assert is_loopback("127.0.0.1")


def test_nothing_leaves_this_machine_without_keys(keys: dict[int, RankKeys]):
    fence: dict[str, Any] = {"run": RUN, "attempt": ATTEMPT, "rank": 0}
    with pytest.raises(LocalProtocolError, match="heard on other machines, and this run has no keys"):
        Hub("tcp://0.0.0.0:*", **fence)
    with Hub(LOOPBACK, **fence) as hub:
        with pytest.raises(LocalProtocolError, match="heard on other machines"):
            hub.connect(1, "tcp://192.0.2.1:5")
        with pytest.raises(LocalProtocolError, match="'nonsense' is no way to rank 1"):
            hub.connect(1, "nonsense")
    with Hub("tcp://0.0.0.0:*", **fence, insecure=True) as hub:
        hub.connect(1, "tcp://192.0.2.1:5")
    with (
        Hub(LOOPBACK, **fence, keys=keys[0]) as hub,
        pytest.raises(LocalProtocolError, match="no way to rank 9"),
    ):
        hub.connect(9, "tcp://192.0.2.1:5")


async def test_an_endpoint_that_is_none_is_the_peers_mistake():
    with Hub(LOOPBACK, run=RUN, attempt=ATTEMPT, rank=COORDINATOR) as hub:
        Coordinator(hub, 1)
        with zmq.Context() as context, context.socket(zmq.DEALER) as raw, trio.fail_after(20):
            raw.linger = 0
            raw.routing_id = proto.routing_id(RUN, ATTEMPT, 0)
            raw.connect(hub.endpoint)
            payload = proto.pack_bytes(b"tcp://192.0.2.1:5")
            header = Header(Kind.HELLO, RUN, 0, 0, ATTEMPT, 0, 0, 0, COORDINATOR, len(payload), 1, 0)
            raw.send(proto.encode(header, payload))
            with pytest.RaisesGroup(pytest.RaisesExc(RemoteProtocolError, match="rank 0: .* no keys")):
                await hub.run()


@pytest.mark.parametrize("nr_ranks", [1, 3])
async def test_a_gang_with_keys(nr_ranks: int):
    with trio.fail_after(30):
        results = await run_gang(
            nr_ranks,
            ENTRIES + "ring",
            bytes([nr_ranks, 30]),
            where=Where(curve=True),
            open_workers=ThreadWorkers,
        )
    assert results == [hops(rank, nr_ranks, 30) for rank in range(nr_ranks)]


class OverheardWorkers(ThreadWorkers):
    """Workers that are reached over a wire that others may hear."""

    private = False


async def test_keys_are_not_handed_out_where_others_hear_them():
    gang = (1, ENTRIES + "echo", b"")
    with pytest.raises(GangError, match="keys are handed out over TLS only"):
        await run_gang(*gang, where=Where(curve=True), open_workers=OverheardWorkers)
    with trio.fail_after(30):
        await run_gang(*gang, where=Where(curve=True, insecure=True), open_workers=OverheardWorkers)


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        (Where(scheduler="10.0.0.1:8786"), "a scheduler is tls://HOST:PORT or tcp://HOST:PORT"),
        (Where(scheduler="tls://10.0.0.1"), "a scheduler is tls://HOST:PORT"),
        (Where(scheduler="tcp://10.0.0.1:8786"), "has no TLS: anybody may command its workers"),
        (Where(bind="0.0.0.0"), "not an address by which others reach this machine"),
        (Where(bind="here"), "does not appear to be an IPv4 or IPv6 address"),
    ],
)
async def test_choices_that_cannot_be_had_are_named_before_anything_starts(where: Where, reason: str):
    with pytest.raises(ValueError, match=reason):
        await run_gang(1, ENTRIES + "echo", b"", where=where, open_workers=ThreadWorkers)


def test_the_address_of_another_family():
    assert address_endpoint("fd00::1") == "tcp://[fd00::1]:*"


def test_certificates_are_the_owners_alone_and_never_overwritten(tmp_path: Path):
    from vpmu.cluster.certificates import certificate_files, write_certificates

    files = write_certificates(tmp_path / "keys")
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert len(files) == 7  # the authority's key is in none of them
    with pytest.raises(FileExistsError):
        write_certificates(tmp_path / "keys")
    files[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"scheduler\.pem"):
        certificate_files(tmp_path / "keys", "scheduler")
