"""The frames of remote guests: every message there and back, and every frame that is none."""

import struct
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.remote.exchange import exchange
from vpmu.cluster.errors import LocalProtocolError, RemoteProtocolError
from vpmu.cluster.guests import messages as say
from vpmu.cluster.guests import wire
from vpmu.guest import Event
from vpmu.kernels import columns as col
from vpmu.kernels import events
from vpmu.kernels.guest import step
from vpmu.kernels.integers import NEVER
from vpmu.kernels.perf import interrupt

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
LEAF = st.tuples(U32, U32, U32, U32)
TIME = st.integers(0, say.NEVER)
KIND = st.integers(0, 31).filter(lambda kind: kind not in (16, 17))
RETIRED = st.dictionaries(st.tuples(KIND, st.sampled_from((1, 2))), TIME, max_size=12).map(
    lambda found: tuple(say.Retired(kind, level, count) for (kind, level), count in sorted(found.items()))
)
WATCHED = st.lists(st.builds(say.Watched, U32, U32, U64), max_size=64).map(tuple)
TEXT = st.text(max_size=80).filter(lambda text: len(text.encode()) <= 255)

REPORTS = st.one_of(
    st.builds(
        say.Report,
        U64,
        st.just(1),
        RETIRED,
        st.integers(1, 4),
        U32,
        U64,
        st.sampled_from((1, 2)),
        st.just(say.NEVER),
    ),
    st.tuples(U64, st.sampled_from((4, 5, 6)), RETIRED).map(lambda fields: say.Report(*fields)),
    st.tuples(U64, RETIRED, TIME).map(
        lambda fields: say.Report(fields[0], 3, fields[1], timer_at_ns=fields[2])
    ),
)
REQUESTS = st.one_of(
    st.builds(say.Hello, TEXT, U32),
    st.just(say.Start()),
    st.just(say.Bye()),
    st.builds(say.Cpuid, U32, U32),
    REPORTS,
)
ANSWERS = st.one_of(
    st.builds(
        say.Welcome, U32, U32, U64, U64, U32, U32, U32, U32, U32, st.tuples(U32, U32, U32, U32), U64, U64
    ),
    st.builds(say.Grant, U64, U64, U64, U64, st.integers(0, 7), U32, WATCHED),
    st.builds(say.CpuidIs, U32, U32, U32, U32),
    st.builds(say.End, U64, st.sampled_from((0, 1))),
    st.builds(say.Refused, TEXT),
)


@given(U64, REQUESTS)
def test_what_a_guest_says_comes_back(sequence: int, message: say.Request):
    assert wire.decode_request(wire.encode(sequence, message)) == (sequence, message)


@given(U64, ANSWERS)
def test_what_a_host_says_comes_back(sequence: int, message: say.Answer):
    assert wire.decode_answer(wire.encode(sequence, message)) == (sequence, message)


@given(U64, st.one_of(REQUESTS, ANSWERS), st.data())
def test_a_frame_cut_short_or_drawn_out_is_refused(sequence: int, message: say.Request, data: st.DataObject):
    frame = wire.encode(sequence, message)
    decode = wire.decode_request if frame[6] < 0x80 else wire.decode_answer
    cut = data.draw(st.integers(0, len(frame) - 1))
    for wrong in (frame[:cut], frame + b"\0"):
        with pytest.raises(RemoteProtocolError, match="bytes"):
            decode(wrong)


@given(st.binary(max_size=200), st.sampled_from((1, 2, 3, 4, 5, 0x81, 0x82, 0x83, 0x84, 0x85)))
def test_noise_is_refused_or_is_what_it_says(body: bytes, kind: int):
    frame = wire.HEADER.pack(wire.MAGIC, wire.VERSION, kind, 7) + body
    for decode in (wire.decode_request, wire.decode_answer):
        with suppress(RemoteProtocolError):
            sequence, message = decode(frame)
            # A layout has one encoding of each message: what is accepted is what would have been sent.
            assert wire.encode(sequence, message) == frame


HELLO = wire.HEADER.pack(wire.MAGIC, wire.VERSION, say.Kind.HELLO, 0)
REPORT = say.Report(5, 1, (say.Retired(1, 2, 9),), 1, 0x38E, 0, 1)


def changed(offset: int, layout: str, value: int) -> bytes:
    frame = bytearray(wire.encode(0, REPORT))
    struct.pack_into(layout, frame, offset, value)
    return bytes(frame)


@pytest.mark.parametrize(
    ("frame", "found"),
    [
        (b"", "frame of 0 bytes is shorter than its header of 16"),
        (b"vPMU" + bytes(12), r"bad magic b'vPMU', expected b'vPMG'"),
        (wire.HEADER.pack(b"vPMG", 2, 2, 0), "protocol version 2, expected 1"),
        (wire.HEADER.pack(b"vPMG", 1, 9, 0), "unknown kind 0x9"),
        (wire.encode(0, say.End(0, 0)), "unknown kind 0x84"),
        (changed(44, "<I", 2), r"reason 2, expected one of \[1, 3, 4, 5, 6\]"),
        (changed(44, "<I", 5), "an access in a report of reason LIMIT"),
        (changed(48, "<I", 5), "access of operation 5 at level 1"),
        (changed(48, "<I", 0), "access of operation 0 at level 1"),
        (changed(52, "<I", 0), "access of operation 1 at level 0"),
        (changed(24, "<Q", 9), "timer at 9 in a report of reason ACCESS"),
        (changed(56, "<I", 65), "65 entries, at most 64 are allowed"),
        (changed(56, "<I", 2), "frame of 80 bytes, expected 96"),
        (changed(60, "<I", 1), "0x1 where 0 is due"),
        (changed(64, "<I", 16), "retired kind 16, which is not a guest's to report"),
        (changed(64, "<I", 32), "retired kind 32, which is not a guest's to report"),
        (changed(68, "<I", 3), "retired kind 1 at level 3 out of order, or no level"),
        (changed(72, "<Q", 1 << 63), "9223372036854775808 events of kind 1 in one report"),
        (
            wire.HEADER.pack(b"vPMG", 1, 1, 0) + struct.pack("<III", 0, 256, 0) + bytes(256),
            "name of 256 bytes",
        ),
        (wire.HEADER.pack(b"vPMG", 1, 1, 0) + struct.pack("<III", 0, 1, 0) + b"\xff", "name is not UTF-8"),
    ],
)
def test_a_malformed_frame_is_named(frame: bytes, found: str):
    with pytest.raises(RemoteProtocolError, match=found):
        wire.decode_request(frame)


@pytest.mark.parametrize("second", [say.Retired(1, 2, 1), say.Retired(1, 1, 1), say.Retired(0, 2, 1)])
def test_what_retired_is_in_order_and_not_told_twice(second: say.Retired):
    frame = wire.encode(0, say.Report(5, 5, (say.Retired(1, 2, 9), second)))
    with pytest.raises(RemoteProtocolError, match="out of order"):
        wire.decode_request(frame)


def test_a_field_that_does_not_fit_is_our_mistake():
    with pytest.raises(LocalProtocolError, match="Cpuid"):
        wire.encode(0, say.Cpuid(1 << 32))
    with pytest.raises(LocalProtocolError, match="name of 256 bytes"):
        wire.encode(0, say.Hello("x" * 256))


def test_a_long_reason_is_cut_between_characters():
    _, refused = wire.decode_answer(wire.encode(0, say.Refused("é" * 700)))
    assert refused == say.Refused("é" * 512)


def test_the_numbers_are_the_kernels():
    assert [int(each) for each in say.Reason] == [
        int(each)
        for each in (
            step.GUEST_ACCESS,
            step.GUEST_HALT,
            step.GUEST_OVERFLOW,
            step.GUEST_LIMIT,
            step.GUEST_DONE,
        )
    ]
    assert [int(each) for each in say.Operation][1:] == [
        int(getattr(interrupt, f"ACCESS_{name}")) for name in ("READ", "WRITE", "RDPMC", "EMULATE")
    ]
    assert (int(events.KIND_TIME_FIRST), col.TOTALS) == (say.FIRST_TIME_KIND, say.NR_KINDS)
    assert int(events.KIND_DERIVED_FIRST) == say.FIRST_TIME_KIND + say.NR_TIME_KINDS
    assert int(NEVER) == say.NEVER
    names = {"STALLS_L1D": "STALL_L1D", "MEM_LOADS_L3_MISS": "MEM_LOADS_RETIRED_L3_MISS"}
    for event in Event:
        assert int(event) == int(getattr(events, f"KIND_{names.get(event.name, event.name)}"))


def test_the_exchange_in_the_documentation_is_what_really_is_said():
    page = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    shown = page.split("python -m tests.remote.exchange\n")[1].split("```")[0].rstrip()
    assert shown == trio.run(exchange)
