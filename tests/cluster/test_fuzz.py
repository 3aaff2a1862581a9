"""Bad frames, a few; `make fuzz` sends a million."""

from collections.abc import Iterator

import numpy as np
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.cluster.fuzz import ATTEMPT, GOOD, RUN, Target, fuzz
from vpmu.cluster import proto
from vpmu.cluster.errors import RemoteProtocolError
from vpmu.cluster.proto import HEADER, Frame, Kind


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    made = Target()
    yield made
    made.close()


async def test_twenty_thousand_bad_frames_change_nothing():
    with trio.fail_after(60):
        report = await fuzz(20_000)
    assert report.refused >= report.sent["strangers'"] >= 14_000
    assert report.good > 5
    assert report.kib[-1] - report.kib[0] < 4096


@given(st.binary(max_size=300))
def test_any_bytes_under_a_ranks_name_are_named(target: Target, body: bytes):
    before = target.state()
    with pytest.raises(RemoteProtocolError, match="rank 1: "):
        target.hub._verify(GOOD, body)
    assert target.state() == before


WORDS = st.integers(0, 2**64 - 1) | st.integers(0, 40)


@given(st.sampled_from(list(Kind)), WORDS, WORDS, st.data(), st.lists(WORDS, min_size=8, max_size=40))
def test_any_payload_is_taken_or_named(
    target: Target, kind: Kind, at_ns: int, request: int, data: st.DataObject, words: list[int]
):
    source, to = (data.draw(st.sampled_from([0, *target.actors])) for _ in range(2))
    size = proto.FIXED_WORDS.get(kind, len(words))
    count = len(words) // size
    header = proto.Header(kind, RUN, 0, at_ns, ATTEMPT, source, to, 1, 0, count, size, request)
    records = np.array(words[: count * size], np.uint64).reshape(count, size)
    try:
        target.hub._dispatch(Frame(header, proto.encode(header, records)))
    except RemoteProtocolError:
        return


@given(st.binary(min_size=HEADER.size, max_size=200))
def test_a_frame_that_is_read_is_what_was_written(body: bytes):
    try:
        frame = proto.decode(proto.MAGIC + b"\1\0" + body[6:])
    except RemoteProtocolError:
        return
    assert proto.encode(frame.header, frame.records)[6:] == body[6:]
