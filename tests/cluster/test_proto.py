import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpmu.cluster import proto
from vpmu.cluster.errors import LocalProtocolError, RemoteProtocolError
from vpmu.cluster.proto import FIXED_WORDS, KINDS, LEAST_WORDS, Header, Kind

U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))


@st.composite
def frames(draw: st.DrawFn):
    kind = draw(st.sampled_from(list(Kind)))
    words = FIXED_WORDS.get(kind) or draw(st.integers(LEAST_WORDS.get(kind, 1), 12))
    count = draw(st.integers(0, 20))
    flat = draw(st.lists(U64, min_size=count * words, max_size=count * words))
    records = np.array(flat, np.uint64).reshape(count, words)
    u64s, u32s, u16s = ([draw(word) for _ in range(4)] for word in (U64, U32, U16))
    header = Header._make([kind, *u64s[:3], *u32s[:3], *u16s[:2], count, words, u64s[3]])
    return header, records


@given(frames())
def test_a_frame_comes_back_as_it_was(header_and_records: tuple[Header, proto.U64Array]):
    header, records = header_and_records
    body = proto.encode(header, records)
    frame = proto.decode(body)

    assert len(body) == 64 + records.nbytes
    assert frame.header == header
    assert np.array_equal(frame.records, records)
    assert frame.records.dtype == np.uint64
    assert list(frame.record()) == records.reshape(-1).tolist()
    assert frame.records.base is not None
    assert not frame.records.flags.writeable


def test_the_header_lies_as_documented():
    # Offsets from docs/protocol.md; every field has a value of its own.
    header = Header(0x40, 1 << 40, 2 << 40, 3 << 40, 4, 5, 6, 7, 8, 1, 8, 9 << 40)
    body = proto.encode(header, np.arange(8, dtype=np.uint64).reshape(1, 8))
    assert body[:4] == b"vPMU"
    assert struct.unpack_from("<HH", body, 4) == (1, 0x40)
    assert struct.unpack_from("<QQQ", body, 8) == (1 << 40, 2 << 40, 3 << 40)
    assert struct.unpack_from("<III", body, 32) == (4, 5, 6)
    assert struct.unpack_from("<HH", body, 44) == (7, 8)
    assert struct.unpack_from("<IIQ", body, 48) == (1, 8, 9 << 40)
    assert struct.unpack_from("<8Q", body, 64) == tuple(range(8))


def patched(offset: int, layout: str, value: Any):
    header = Header(Kind.ACCESS, 1, 0, 0, 0, 0, 0, 0, 1, 2, 8, 0)
    body = bytearray(proto.encode(header, np.zeros((2, 8), np.uint64)))
    struct.pack_into(layout, body, offset, value)
    return bytes(body)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "frame of 0 bytes is shorter than its header of 64"),
        (b"x" * 63, "frame of 63 bytes is shorter"),
        (patched(0, "<4s", b"vPMX"), "bad magic b'vPMX', expected b'vPMU'"),
        (patched(4, "<H", 2), "protocol version 2, expected 1"),
        (patched(6, "<H", 0x3F), "unknown kind 0x3f"),
        (patched(48, "<I", 3), "frame of 192 bytes, but 3 records of 8 words make 256"),
        (patched(52, "<I", 7), "ACCESS record of 7 words, expected at least 8"),
        (patched(48, "<I", 2**32 - 1), "exceeds the limit of 67108864"),
        (patched(6, "<H", Kind.GRANT)[:52] + bytes(4) + patched(0, "<I", 0)[56:], "2 records of no words"),
    ],
)
def test_a_bad_frame_is_refused_with_its_reason(body: bytes, reason: str):
    with pytest.raises(RemoteProtocolError) as caught:
        proto.decode(body)
    assert reason in str(caught.value)


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_fail_to_decode(body: bytes):
    with pytest.raises(RemoteProtocolError):
        proto.decode(body)


@given(frames(), st.data())
def test_a_mutated_frame_decodes_or_fails_and_nothing_else(
    header_and_records: tuple[Header, proto.U64Array], data: st.DataObject
):
    body = bytearray(proto.encode(*header_and_records))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, min(63, len(body) - 1)))] = data.draw(st.integers(0, 255))
    length = data.draw(st.integers(0, len(body)) | st.just(len(body)))
    mutated = bytes(body[:length])
    try:
        frame = proto.decode(mutated)
    except RemoteProtocolError:
        return
    # What decodes is a well-formed frame of exactly these bytes.
    assert proto.encode(frame.header, frame.records) == mutated


def test_what_we_may_not_send_is_our_own_error():
    header = Header(Kind.ACCESS, 0, 0, 0, 0, 0, 0, 0, 0, 1, 8, 0)
    with pytest.raises(LocalProtocolError, match="header says \\(1, 8\\)"):
        proto.encode(header, np.zeros((2, 8), np.uint64))
    with pytest.raises(LocalProtocolError, match="must be uint64"):
        proto.encode(header, np.zeros((1, 8), np.int64))
    with pytest.raises(LocalProtocolError, match="ACCESS record of 7 words"):
        proto.encode(header._replace(words=7), np.zeros((1, 7), np.uint64))


def test_records_of_any_layout_are_sent_in_order():
    table = np.arange(64, dtype=np.uint64).reshape(8, 8)
    header = Header(Kind.GRANT, 0, 0, 0, 0, 0, 0, 0, 0, 4, 8, 0)
    assert np.array_equal(proto.decode(proto.encode(header, table[::2])).records, table[::2])


def test_kinds_of_the_base_lie_below_the_others():
    assert all((kind < 0x40) == (kind <= Kind.BENCH) for kind in KINDS.values())


@given(st.binary(max_size=100))
def test_bytes_come_back(data: bytes):
    assert proto.unpack_bytes(proto.pack_bytes(data)) == data


@given(st.lists(U64, max_size=6))
def test_words_that_are_no_bytes_are_refused(words: list[int]):
    records = np.array(words, np.uint64).reshape(-1, 1)
    try:
        data = proto.unpack_bytes(records)
    except RemoteProtocolError:
        return
    assert np.array_equal(proto.pack_bytes(data), records)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10)), max_size=5))
def test_rows_arrive_at_their_offsets(slices: list[tuple[int, int]]):
    source = np.arange(1, 51, dtype=np.uint64)
    target = np.zeros(50, np.uint64)
    proto.install_rows(target, proto.pack_rows(source, slices))
    moved = {index for offset, length in slices for index in range(offset, offset + length)}
    assert [int(word) for word in target] == [index + 1 if index in moved else 0 for index in range(50)]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([0], "inside a slice's header"),
        ([0, 3, 1, 2], "slice of 3 words, 2 are left"),
        ([0, 1, 7, 9, 2, 1, 2], "slice 9\\+2 is outside an arena of 10 words"),
        ([2**64 - 1, 1, 5], "outside an arena"),
        ([0, 2**64 - 1, 5], "words, 1 are left"),
    ],
)
def test_bad_rows_change_nothing(words: list[int], reason: str):
    arena = np.zeros(10, np.uint64)
    with pytest.raises(RemoteProtocolError, match=reason):
        proto.install_rows(arena, np.array(words, np.uint64).reshape(-1, 1))
    assert not arena.any()


def test_rows_outside_the_arena_are_our_own_error():
    with pytest.raises(LocalProtocolError, match="outside an arena of 4 words"):
        proto.pack_rows(np.zeros(4, np.uint64), [(3, 2)])


@given(U64, U32, U16)
def test_routing_ids_come_back_and_never_begin_with_zero(run: int, attempt: int, rank: int):
    identity = proto.routing_id(run, attempt, rank)
    assert proto.parse_routing_id(identity) == (run, attempt, rank)
    assert identity[0] != 0


@given(st.binary(max_size=30))
def test_other_routing_ids_are_not_ours(identity: bytes):
    assert proto.parse_routing_id(identity) is None
