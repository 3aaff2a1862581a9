import itertools
from collections import Counter
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vpmu.actors.messages import host_perf, vcpu
from vpmu.cluster import proto
from vpmu.cluster.errors import LocalProtocolError, RemoteProtocolError
from vpmu.cluster.hub import BATCH_FRAMES, MAX_REFUSED, Hub
from vpmu.cluster.link import local_endpoint
from vpmu.cluster.proto import Frame, Header, Kind

RUN = 0x1234_5678_9ABC_DEF0
ATTEMPT = 3


def open_hub(rank: int, transport: str = "tcp", directory: Path | None = None, **bounds: Any):
    return Hub(local_endpoint(transport, directory), run=RUN, attempt=ATTEMPT, rank=rank, **bounds)


@asynccontextmanager
async def running(*hubs: Hub):
    """Connect all hubs with each other, run them, and close them in the end."""
    for hub, peer in itertools.product(hubs, hubs):
        hub.connect(peer.rank, peer.endpoint)
    with ExitStack() as stack, trio.fail_after(20):
        for hub in hubs:
            stack.enter_context(hub)
        async with trio.open_nursery() as nursery:
            for hub in hubs:
                nursery.start_soon(hub.run)
            yield
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def raw_dealer(hub: Hub, identity: bytes):
    """Speak to a hub past every rule of ours."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        if identity:
            dealer.setsockopt(zmq.ROUTING_ID, identity)
        dealer.connect(hub.endpoint)
        yield dealer


def header(**changes: int):
    fields = Header(Kind.ACCESS, RUN, 0, 0, ATTEMPT, 0, 0, 1, 0, 1, 8, 0)
    return fields._replace(**changes)


@pytest.fixture
def private_dir(tmp_path: Path):
    tmp_path.chmod(0o700)
    return tmp_path


def access(**changes: int):
    return proto.encode(header(**changes), np.ones((1, 8), np.uint64))


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
async def test_frames_arrive_complete_and_in_order(transport: str, private_dir: Path):
    one, two = (open_hub(rank, transport, private_dir) for rank in (0, 1))
    sent = [np.full((number % 7, 8), number, np.uint64) for number in range(1000)]
    arrived, all_arrived = [], trio.Event()

    def collect(frame: Frame):
        arrived.append(frame)
        if len(arrived) == len(sent):
            all_arrived.set()

    two.on_actor(vcpu(5), collect)
    async with running(one, two):
        for number, records in enumerate(sent):
            actors = {"to": vcpu(5).number, "source": host_perf(0).number}
            await one.send(Kind.RECORDS, 1, records, **actors, at_ns=number, request=7)
        await all_arrived.wait()

    for number, frame in enumerate(arrived):
        assert frame.header.sequence == frame.header.at_ns == number
        assert (frame.header.source_actor, frame.header.request) == (host_perf(0).number, 7)
        assert np.array_equal(frame.records, sent[number])
    nr_records = sum(len(records) for records in sent)
    assert one.statistics().frames_sent == two.statistics().frames_received == {Kind.RECORDS: 1000}
    assert one.statistics().records_sent == two.statistics().records_received == {Kind.RECORDS: nr_records}
    assert two.statistics().refused == 0


@pytest.mark.parametrize("nr_hubs", [1, 2])
async def test_a_handler_answers_at_once_also_over_the_own_socket(nr_hubs: int):
    hubs = [open_hub(rank) for rank in range(nr_hubs)]
    asking, answering = hubs[0], hubs[-1]
    answers, done = [], trio.Event()

    def answer(frame: Frame):
        answering.send_record_nowait(
            Kind.ACCESS_DONE, 0, frame.record(), to=frame.header.source_actor, request=frame.header.request
        )

    def hear(frame: Frame):
        answers.append((frame.header.request, frame.record()))
        if len(answers) < 50:
            ask(len(answers))
        else:
            done.set()

    def ask(number: int):
        asking.send_record_nowait(
            Kind.ACCESS, answering.rank, (number,) * 8, source=vcpu(1).number, request=number
        )

    answering.on_kind(Kind.ACCESS, answer)
    asking.on_actor(vcpu(1), hear)
    async with running(*hubs):
        ask(0)
        await done.wait()
    assert answers == [(number, (number,) * 8) for number in range(50)]


@pytest.mark.parametrize(
    ("identity", "reason"),
    [
        (b"nobody in particular", "unknown routing id"),
        (b"", "unknown routing id"),
        (proto.routing_id(RUN + 1, ATTEMPT, 1), f"rank 1 of another run, {RUN + 1:#x}"),
        (proto.routing_id(RUN, ATTEMPT - 1, 1), "rank 1 of attempt 2, this is attempt 3"),
        (proto.routing_id(RUN, ATTEMPT, 9), "rank 9 is not in this gang"),
    ],
)
async def test_a_stranger_is_refused_and_named_and_changes_nothing(identity: bytes, reason: str):
    one, two = open_hub(0), open_hub(1)
    taken = trio.open_memory_channel[Frame](10)
    one.on_kind(Kind.ACCESS, taken[0].send)
    async with running(one, two), raw_dealer(one, identity) as stranger:
        # A frame that would be right from rank 1, bytes that are no frame, and a message of parts.
        for message in ([access()], [b"\xff" * 100], [access(), b"more", b""]):
            stranger.send_multipart(message)
        while one.statistics().refused < 3:
            await trio.lowlevel.checkpoint()
        two.send_record_nowait(Kind.ACCESS, 0, (2,) * 8)
        frame = await taken[1].receive()

    assert frame.record() == (2,) * 8
    assert one.statistics().frames_received == {Kind.ACCESS: 1}
    assert [refusal.reason for refusal in one.refused] == [reason] * 3
    if identity:
        assert {refusal.identity for refusal in one.refused} == {identity}


async def test_many_strangers_do_not_fill_the_memory():
    one = open_hub(0)
    async with running(one), raw_dealer(one, b"stranger") as stranger:
        for _ in range(MAX_REFUSED + 50):
            stranger.send(b"?")
        while one.statistics().refused < MAX_REFUSED + 50:
            await trio.lowlevel.checkpoint()
    assert len(one.refused) == MAX_REFUSED


async def failure_of_rank_1(*messages: list[bytes]):
    """Send raw messages as rank 1; return what the hub of rank 0 fails with, and what it took."""
    one = open_hub(0)
    taken: list[Frame] = []
    one.on_kind(Kind.ACCESS, taken.append)
    one.on_kind(Kind.PMI, lambda frame: proto.unpack_bytes(frame.records))
    one.admit(1)
    with one:
        async with raw_dealer(one, proto.routing_id(RUN, ATTEMPT, 1)) as dealer:
            for message in messages:
                dealer.send_multipart(message)
            with trio.fail_after(20), pytest.RaisesGroup(RemoteProtocolError) as caught:
                await one.run()
    return str(caught.value.exceptions[0]), taken


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([[b"\xff" * 100]], "bad magic b'\\xff\\xff\\xff\\xff', expected b'vPMU'"),
        ([[access(), b""]], "message is not of one part"),
        ([[access()[:-1]]], "frame of 127 bytes, but 1 records of 8 words make 128"),
        ([[access(sequence=1)]], "frame number 1 on this link, expected 0"),
        ([[access()], [access()]], "frame number 0 on this link, expected 1"),
        ([[access()], [access(sequence=2)]], "frame number 2 on this link, expected 1"),
        ([[access(run=5)]], "frame of run 0x5 attempt 3, expected run 0x123456789abcdef0 attempt 3"),
        ([[access(attempt=2)]], "attempt 2, expected"),
        ([[access(source_rank=2)]], "frame from rank 2 to rank 0, expected from 1 to 0"),
        ([[access(destination_rank=4)]], "frame from rank 1 to rank 4, expected from 1 to 0"),
        ([[access(kind=Kind.ACCESS_DONE)]], "ACCESS_DONE frame, which nobody takes here"),
        ([[access(kind=Kind.RECORDS, destination_actor=vcpu(4).number)]], "RECORDS frame for vcpu 4"),
        (
            [[access(kind=Kind.RECORDS, destination_actor=3)]],
            "RECORDS frame for actor 0x3, which is not here",
        ),
        ([[access(kind=Kind.PMI)]], "1 bytes in a payload of 8 words"),
    ],
)
async def test_a_rank_that_breaks_the_rules_fails_the_attempt_by_name(
    messages: list[list[bytes]], reason: str
):
    failure, taken = await failure_of_rank_1(*messages)
    assert failure.startswith("rank 1: ")
    assert reason in failure
    assert len(taken) == len(messages) - 1


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=150), st.data())
async def test_no_bytes_from_a_rank_do_more_than_fail_the_attempt(noise: bytes, data: st.DataObject):
    body = bytearray(access())
    body[: len(noise)] = noise
    cut = data.draw(st.integers(0, len(body)))
    if bytes(body[:cut]) == access():
        return
    failure, taken = await failure_of_rank_1([bytes(body[:cut])])
    assert failure.startswith("rank 1: ")
    assert taken == []


async def test_an_error_of_our_own_handler_is_not_the_peers():
    one = open_hub(0)
    one.on_kind(Kind.ACCESS, lambda frame: frame.records[99])
    with one:
        one.connect(0, one.endpoint)
        one.send_record_nowait(Kind.ACCESS, 0, (0,) * 8)
        with trio.fail_after(20), pytest.RaisesGroup(IndexError):
            await one.run()


async def test_a_full_way_holds_the_sender_back_and_loses_nothing():
    # 64 kB frames; ZeroMQ holds 4 at either end, the hub two more, and TCP a few megabytes.
    one = open_hub(0, high_water_frames=4, backlog_bytes=128 << 10)
    two = open_hub(1, high_water_frames=4)
    records = np.zeros((1024, 8), np.uint64)
    arrived, all_arrived = [], trio.Event()

    def collect(frame: Frame):
        arrived.append(frame.header.request)
        if len(arrived) == nr_taken + 100:
            all_arrived.set()

    two.on_kind(Kind.RECORDS, collect)
    two.admit(0)
    one.connect(1, two.endpoint)
    with trio.fail_after(20), one, two:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.run)
            nr_taken = await fill(one, records)
            assert nr_taken < 1000
            assert one.statistics().frames_sent == {Kind.RECORDS: nr_taken}

            for _ in range(100):
                nursery.start_soon(one.send, Kind.RECORDS, 1, records)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert one.statistics().frames_sent[Kind.RECORDS] < nr_taken + 100
            nursery.start_soon(two.run)
            await all_arrived.wait()
            nursery.cancel_scope.cancel()
    assert arrived[:nr_taken] == list(range(1, nr_taken + 1))


async def fill(hub: Hub, records: proto.U64Array):
    """Send until nothing is taken for a while any more; return how many were."""
    nr_taken = nr_refused = 0
    while nr_refused < 200:
        try:
            hub.send_nowait(Kind.RECORDS, 1, records, request=nr_taken + 1)
            nr_taken, nr_refused = nr_taken + 1, 0
        except trio.WouldBlock:
            nr_refused += 1
        await trio.lowlevel.checkpoint()
    return nr_taken


async def test_an_inbox_that_is_full_holds_the_hub_back_and_keeps_the_order():
    one = open_hub(0)
    to_inbox, inbox = trio.open_memory_channel(0)
    one.on_kind(Kind.ACCESS, to_inbox.send)
    async with running(one):
        for number in range(20):
            one.send_record_nowait(Kind.ACCESS, 0, (number,) * 8)
        heard = [(await inbox.receive()).record()[0] for _ in range(20)]
    assert heard == list(range(20))


async def test_one_loud_peer_starves_neither_the_others_nor_the_process():
    listener, loud, quiet = (open_hub(rank) for rank in range(3))
    heard_quiet = trio.Event()
    listener.on_kind(Kind.BENCH, lambda frame: None)
    listener.on_kind(Kind.PMI, lambda frame: heard_quiet.set())

    async def shout():
        while True:
            await loud.send(Kind.BENCH, 0, np.zeros((8, 8), np.uint64))

    async with running(listener, loud, quiet), trio.open_nursery() as nursery:
        nursery.start_soon(shout)
        while listener.statistics().frames_received.get(Kind.BENCH, 0) < 1000:
            await trio.lowlevel.checkpoint()
        quiet.send_record_nowait(Kind.PMI, 0, (1,) * 8)
        await heard_quiet.wait()
        nursery.cancel_scope.cancel()


async def test_no_more_than_two_batches_are_dispatched_between_turns_of_another_task():
    one = open_hub(0, high_water_frames=5000)
    turns = 0
    turn_of_frame: list[int] = []
    one.on_kind(Kind.ACCESS, lambda frame: turn_of_frame.append(turns))

    async def other_task():
        nonlocal turns
        while len(turn_of_frame) < 5000:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with running(one):
        for _ in range(5000):
            one.send_record_nowait(Kind.ACCESS, 0, (0,) * 8)
        await other_task()
    # Two, since trio may run the hub last in one round of its tasks and first in the next.
    assert max(Counter(turn_of_frame).values()) <= 2 * BATCH_FRAMES


async def test_our_own_mistakes_are_local():
    one = open_hub(0)
    with one:
        with pytest.raises(LocalProtocolError, match="rank 1 is not connected"):
            one.send_record_nowait(Kind.ACCESS, 1, (0,) * 8)
        with pytest.raises(LocalProtocolError, match="rank 1 is not connected"):
            await one.send(Kind.ACCESS, 1, np.zeros((1, 8), np.uint64))
        one.connect(0, one.endpoint)
        with pytest.raises(LocalProtocolError, match="rank 0 is connected already"):
            one.connect(0, one.endpoint)
        with pytest.raises(LocalProtocolError, match="ACCESS record of 7 words"):
            one.send_record_nowait(Kind.ACCESS, 0, (0,) * 7)
        one.close()  # twice is fine


async def test_an_actor_that_left_is_not_here():
    one = open_hub(0)
    one.on_actor(vcpu(1), lambda frame: None)
    one.forget_actor(vcpu(1))
    with one:
        one.connect(0, one.endpoint)
        one.send_record_nowait(Kind.ACCESS, 0, (0,) * 8, to=vcpu(1).number)
        with trio.fail_after(20), pytest.RaisesGroup(pytest.RaisesExc(RemoteProtocolError, match="vcpu 1")):
            await one.run()


async def test_a_hub_without_a_gang_goes_at_once():
    with open_hub(0) as one:
        await one.wait_go()


def test_endpoints_of_this_machine(tmp_path: Path):
    tmp_path.chmod(0o700)
    assert local_endpoint("ipc", tmp_path).startswith(f"ipc://{tmp_path}/")
    tmp_path.chmod(0o750)
    with pytest.raises(ValueError, match="closed to others"):
        local_endpoint("ipc", tmp_path)
    with pytest.raises(ValueError, match="closed to others"):
        local_endpoint("ipc")
    with pytest.raises(ValueError, match="'udp' is neither tcp nor ipc"):
        local_endpoint("udp")


def test_an_endpoint_that_cannot_be_bound_leaves_nothing_open():
    with open_hub(0) as one, pytest.raises(zmq.ZMQError):
        Hub(one.endpoint, run=RUN, attempt=ATTEMPT, rank=1)
