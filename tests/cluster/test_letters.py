"""Messages as frames: what is sent is what is read, and what is no message is refused."""

from typing import Any

import numpy as np
import pytest
import trio

from vpmu.actors.call_words import CALL_END, CALL_FIRST
from vpmu.actors.host_perf import Passed, PerfReply, PerfRequest, Request, Waiting
from vpmu.actors.messages import Address, Message, host_perf, physical_cpu, vcpu
from vpmu.actors.physical_cpu import VcpuComes
from vpmu.actors.vcpu import Access, Go, Resume, Retired, WantRows, watch_bytes
from vpmu.cluster.errors import RemoteProtocolError
from vpmu.cluster.hub import Hub
from vpmu.cluster.letters import KINDS, Reader, send
from vpmu.cluster.link import local_endpoint
from vpmu.cluster.proto import Frame, Header, Kind, decode, encode
from vpmu.kernels.guest.step import GUEST_ACCESS, GUEST_HALT

CPU, GUEST, PERF = physical_cpu(3), vcpu(5), host_perf(1)
ACCESS, HALT = int(GUEST_ACCESS), int(GUEST_HALT)
ARENA_WORDS = 100
CALL = CALL_END - CALL_FIRST
STILL = (5).to_bytes(8, "little")
WATCH = STILL + (2).to_bytes(8, "little") + bytes(range(watch_bytes(2) - 16))
"""A watch list: which counters stand still, how many entries, and two of them."""
WORDS = tuple(int.from_bytes(WATCH[first : first + 8], "little") for first in range(0, len(WATCH), 8))


def frame(kind: Kind, records: Any, *, source: Address = CPU, request: int = 0) -> Frame:
    words = np.array(records, np.uint64)
    count, width = words.shape
    header = Header(kind, 0, 0, 7, 0, source.number, GUEST.number, 0, 0, count, width, request)
    return decode(encode(header, words))


async def through_a_socket(to: Address, message: Message) -> tuple[Any, int]:
    """Send a message to this process itself; return the messages that its frames make."""
    reader = Reader(ARENA_WORDS)
    read: list[Message] = []
    frames = 0

    def take(each: Frame) -> None:
        nonlocal frames
        frames += 1
        found = reader.read(each)
        if found is not None:
            read.append(found)

    with trio.fail_after(10), Hub(local_endpoint("tcp"), run=1, attempt=0, rank=0) as hub:
        hub.connect(0, hub.endpoint)
        for kind in (*KINDS, Kind.WINDOW):
            hub.on_kind(kind, take)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hub.run)
            send(hub, 0, to, message)
            while not read:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    (message,) = read
    return message, frames


@pytest.mark.parametrize(
    ("to", "message", "frames"),
    [
        (GUEST, Resume(CPU, 9, 1, 2, 0xC1, 1, 77, 0), 1),
        (GUEST, Resume(CPU, 9, 1, 2, 0xC1, 0, 2**64 - 1, 1), 2),
        (GUEST, Resume(CPU, 9, 0, 0, 0, 0, 0, 1), 1),
        (GUEST, Resume(CPU, 9, 0, 0, 0, 0, 0, 0), 1),
        (GUEST, Resume(CPU, 9, 1, 2, 0xC1, 1, 77, 0, 5000, WATCH), 1),
        (GUEST, Resume(CPU, 9, 1, 2, 0xC1, 0, 77, 1, 5000, WATCH), 2),
        (GUEST, Resume(CPU, 9, 0, 0, 0, 0, 0, 1, 5000, WATCH), 1),
        (GUEST, Resume(CPU, 9, 0, 0, 0, 0, 0, 0, 5000, WATCH), 1),
        (GUEST, Go(CPU, 9, 5000, WATCH), 1),
        (GUEST, WantRows(CPU, 9), 1),
        (CPU, Retired(GUEST, 9, HALT, 44, b"", None), 1),
        (CPU, Retired(GUEST, 9, HALT, 44, WATCH, None), 1),
        (CPU, Retired(GUEST, 9, ACCESS, 44, b"", Access(GUEST, 9, 1, 0x38F, 15)), 1),
        (CPU, Retired(GUEST, 9, ACCESS, 44, WATCH, Access(GUEST, 9, 0, 0xC1, 0)), 1),
        (PERF, PerfRequest(CPU, 9, bytes(8 * CALL)), 1),
        (CPU, PerfReply(PERF, 9, bytes(8 * CALL), 2**64 - 1), 1),
        (PERF, Waiting(CPU, 9, Request(9, 3, 1), ()), 1),
        (PERF, Waiting(CPU, 9, None, (2, 0, 5)), 1),
        (CPU, Passed(PERF, 9, 12, 1, ((5, physical_cpu(6)), (7, CPU))), 1),
        (CPU, Passed(PERF, 9, 12, 0, ()), 1),
    ],
)
async def test_a_message_comes_as_it_went(to: Address, message: Message, frames: int):
    assert await through_a_socket(to, message) == (message, frames)


async def test_rows_come_with_their_offsets():
    words = [(10, np.array([1, 2], np.uint64)), (90, np.array([3], np.uint64))]
    read, _ = await through_a_socket(CPU, VcpuComes(PERF, 9, words))
    assert [(offset, values.tolist()) for offset, values in read.words] == [(10, [1, 2]), (90, [3])]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (frame(Kind.ACCESS, np.zeros((2, 8)), source=GUEST), "ACCESS of 2 records of 8 words"),
        (frame(Kind.ACCESS, [[0] * 9], source=GUEST), "ACCESS of 1 records of 9 words"),
        (
            frame(Kind.ACCESS, [[0] * 8 + [0, 12, *range(48)]], source=GUEST),
            "ACCESS of 1 records of 58 words",
        ),
        (frame(Kind.ACCESS_DONE, [[1, 9, 0, 0, 0, 0, 0, 2]]), "ACCESS_DONE with flags 0x2"),
        (
            frame(Kind.ACCESS_DONE, [[1, 9, 0, 0, 0, 0, 7, 0]]),
            "ACCESS_DONE of a run to 7 ns with a watch list",
        ),
        (frame(Kind.PMI, [[2, 9, 0, 0, 0, 0, 0, 0, *WORDS]]), "PMI of a run to 0 ns with a watch list of 80"),
        (frame(Kind.GRANT, [[9, 0]]), "GRANT of unknown sense 9"),
        (frame(Kind.GRANT, [[2, 0]]), "GRANT of unknown sense 2"),
        (frame(Kind.GRANT, [[3, 7, *WORDS]]), "GRANT of unknown sense 3"),
        (frame(Kind.GRANT, [[1]]), "GRANT of 1 records of 1 words"),
        (frame(Kind.GRANT, [[1, 2, 3]]), "GRANT of 1 records of 3 words"),
        (frame(Kind.RETIRED, [[0, 0]]), "RETIRED for unknown reason 0"),
        (frame(Kind.RETIRED, [[ACCESS, 0]]), "RETIRED for unknown reason 1"),
        (frame(Kind.RETIRED, [[7, 0]]), "RETIRED for unknown reason 7"),
        (frame(Kind.PERF_REQUEST, np.zeros((1, 5))), "PERF_REQUEST of 1 records of 5 words"),
        (frame(Kind.PERF_REQUEST, np.zeros((CALL, 1))), f"PERF_REQUEST of {CALL} records of 1 words"),
        (frame(Kind.PERF_REPLY, np.zeros((1, CALL))), f"PERF_REPLY of 1 records of {CALL} words"),
        (frame(Kind.RESERVE, [[1, 2, 3]]), "RESERVE of 1 records of 3 words"),
        (frame(Kind.RESERVED, [[1, 2]]), "RESERVED of 1 records of 2 words"),
        (frame(Kind.WINDOW, [[2, 1, 0, 5]], source=PERF), "WINDOW of unknown sense 2 from host_perf 1"),
        (frame(Kind.WINDOW, [[3]]), "WINDOW of unknown sense 3 from physical_cpu 3"),
        (frame(Kind.ROWS, [[99], [2], [0], [0]], request=1), r"slice 99\+2 is outside an arena of 100 words"),
        (frame(Kind.ROWS, [[9], [0]], request=8), "ROWS of unknown purpose 8"),
    ],
)
def test_what_is_no_message_is_refused(bad: Frame, reason: str):
    with pytest.raises(RemoteProtocolError, match=reason):
        Reader(ARENA_WORDS).read(bad)


def test_a_result_waits_for_its_pmi():
    reader = Reader(ARENA_WORDS)
    done = frame(Kind.ACCESS_DONE, [[1, 9, 0, 0, 0, 0, 0, 1]])
    assert reader.read(done) is None
    with pytest.raises(RemoteProtocolError, match="before the PMI of the last one"):
        reader.read(done)


def test_an_unknown_kind_of_actor_is_refused():
    with pytest.raises(RemoteProtocolError, match="bad actor number 0xf0000000"):
        Reader(ARENA_WORDS).address(0xF0000000)
