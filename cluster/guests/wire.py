"""The frames of remote guests: bytes to messages and back, and nothing else.

A frame is a 16-byte header and a body of a fixed layout, perhaps with entries of 16 bytes behind it, all
little-endian. `docs/protocol.md` gives the byte layouts; this module is their one implementation.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from vpmu.cluster.errors import LocalProtocolError, RemoteProtocolError
from vpmu.cluster.guests.messages import (
    FIRST_TIME_KIND,
    NEVER,
    NR_KINDS,
    NR_TIME_KINDS,
    Answer,
    Bye,
    Cpuid,
    CpuidIs,
    End,
    EndReason,
    Grant,
    Hello,
    Kind,
    Operation,
    Reason,
    Refused,
    Report,
    Request,
    Retired,
    Start,
    Watched,
    Welcome,
)

MAGIC: Final = b"vPMG"
VERSION: Final = 1
MAX_NAME_BYTES: Final = 255
MAX_REASON_BYTES: Final = 1024
MAX_ENTRIES: Final = 2 * NR_KINDS
"""A grant, or a report, has at most so many entries."""

HEADER: Final = struct.Struct("<4sHHQ")
_PREFIX: Final = struct.pack("<4sH", MAGIC, VERSION)
_FIELDS: Final = struct.Struct("<6xHQ")
"""A header without its prefix."""
ENTRY: Final = struct.Struct("<IIQ")
_HELLO: Final = struct.Struct("<III")
_CPUID: Final = struct.Struct("<II")
_REPORT: Final = struct.Struct("<QQQIIIIII")
_WELCOME: Final = struct.Struct("<IIQQIIIIIIIIIIQQ")
_GRANT: Final = struct.Struct("<QQQQIIII")
_CPUID_IS: Final = struct.Struct("<IIII")
_END: Final = struct.Struct("<QII")
_REFUSED: Final = struct.Struct("<I")
assert (HEADER.size, ENTRY.size) == (16, 16)
assert HEADER.size + _REPORT.size == HEADER.size + _GRANT.size == 64
assert HEADER.size + _WELCOME.size == 96
assert (_HELLO.size, _CPUID.size, _CPUID_IS.size, _END.size, _REFUSED.size) == (12, 8, 16, 16, 4)
MAX_FRAME_BYTES: Final = max(64 + MAX_ENTRIES * ENTRY.size, 20 + MAX_REASON_BYTES)


_Message = TypeVar("_Message")


def encode(sequence: int, message: Request | Answer) -> bytes:
    """Return a message as one frame.

    Raises
    ------
    LocalProtocolError
        If a field does not fit its place.
    """
    kind, body = _ENCODERS[type(message)]
    try:
        return HEADER.pack(MAGIC, VERSION, kind, sequence) + body(message)
    except struct.error as error:
        raise LocalProtocolError(f"{message}: {error}") from None


def decode_request(frame: bytes) -> tuple[int, Request]:
    """Return the sequence number and the message of a guest's frame.

    Raises
    ------
    RemoteProtocolError
        If it is not exactly one well-formed frame; says what was found and what was due.
    """
    return _decode(frame, _REQUESTS)


def decode_answer(frame: bytes) -> tuple[int, Answer]:
    """Return the sequence number and the message of a host's frame; else as `decode_request`."""
    return _decode(frame, _ANSWERS)


def _decode(frame: bytes, decoders: dict[int, Callable[[bytes], _Message]]) -> tuple[int, _Message]:
    if len(frame) < HEADER.size:
        raise RemoteProtocolError(f"frame of {len(frame)} bytes is shorter than its header of {HEADER.size}")
    if not frame.startswith(_PREFIX):
        raise RemoteProtocolError(_prefix_fault(frame))
    kind, sequence = _FIELDS.unpack_from(frame)
    decoder = decoders.get(kind)
    if decoder is None:
        raise RemoteProtocolError(f"unknown kind {kind:#x}")
    return sequence, decoder(frame)


def _prefix_fault(frame: bytes) -> str:
    magic, version, _, _ = HEADER.unpack_from(frame)
    if magic != MAGIC:
        return f"bad magic {magic!r}, expected {MAGIC!r}"
    return f"protocol version {version}, expected {VERSION}"


def _fixed(frame: bytes, layout: struct.Struct) -> tuple[Any, ...]:
    """Return the fields of a body that has nothing behind it."""
    _due(frame, layout.size)
    return layout.unpack_from(frame, HEADER.size)


def _due(frame: bytes, body_bytes: int) -> None:
    due = HEADER.size + body_bytes
    if len(frame) != due:
        raise RemoteProtocolError(f"frame of {len(frame)} bytes, expected {due}")


def _at_least(frame: bytes, layout: struct.Struct) -> tuple[Any, ...]:
    """Return the fields of a body that says how much is behind it."""
    try:
        return layout.unpack_from(frame, HEADER.size)
    except struct.error:
        due = HEADER.size + layout.size
        raise RemoteProtocolError(f"frame of {len(frame)} bytes, expected at least {due}") from None


def _text(frame: bytes, offset: int, length: int, most: int, what: str) -> str:
    """Return the UTF-8 text that ends a frame."""
    if length > most:
        raise RemoteProtocolError(f"{what} of {length} bytes, at most {most} are allowed")
    _due(frame, offset - HEADER.size + length)
    try:
        return frame[offset:].decode()
    except UnicodeDecodeError:
        raise RemoteProtocolError(f"{what} is not UTF-8") from None


def _entries(frame: bytes, count: int) -> list[tuple[int, int, int]]:
    """Return the entries behind the 64 bytes of a grant or report."""
    if count > MAX_ENTRIES:
        raise RemoteProtocolError(f"{count} entries, at most {MAX_ENTRIES} are allowed")
    _due(frame, 48 + count * ENTRY.size)
    if not count:
        return []
    return [ENTRY.unpack_from(frame, at) for at in range(64, len(frame), ENTRY.size)]


def _pack_entries(entries: Sequence[tuple[int, int, int]]) -> bytes:
    return b"".join([ENTRY.pack(*entry) for entry in entries])


def _encode_hello(message: Hello) -> bytes:
    name = message.vm.encode()
    if len(name) > MAX_NAME_BYTES:
        raise LocalProtocolError(f"name of {len(name)} bytes, at most {MAX_NAME_BYTES} are allowed")
    return _HELLO.pack(message.vcpu, len(name), 0) + name


def _decode_hello(frame: bytes) -> Hello:
    vcpu, length, zero = _at_least(frame, _HELLO)
    _zero(zero)
    return Hello(_text(frame, HEADER.size + _HELLO.size, length, MAX_NAME_BYTES, "name"), vcpu)


def _encode_report(message: Report) -> bytes:
    end_ns, reason, retired, operation, register, value, level, timer_at_ns = message
    head = _REPORT.pack(end_ns, timer_at_ns, value, register, reason, operation, level, len(retired), 0)
    return head + _pack_entries(retired)


def _decode_report(frame: bytes) -> Report:
    end_ns, timer_at_ns, value, register, reason, operation, level, count, zero = _at_least(frame, _REPORT)
    _zero(zero)
    if reason not in _REASONS:
        raise RemoteProtocolError(f"reason {reason}, expected one of {sorted(_REASONS)}")
    if reason == _ACCESS:
        if not 1 <= operation <= _LAST_OPERATION or level not in (1, 2):
            raise RemoteProtocolError(f"access of operation {operation} at level {level}")
    elif operation or register or value or level:
        raise RemoteProtocolError(f"an access in a report of reason {Reason(reason).name}")
    if timer_at_ns != NEVER and (reason != _HALT or timer_at_ns > NEVER):
        raise RemoteProtocolError(f"timer at {timer_at_ns} in a report of reason {Reason(reason).name}")
    retired = _retired(_entries(frame, count))
    return Report(end_ns, reason, retired, operation, register, value, level, timer_at_ns)


_REASONS: Final = frozenset(map(int, Reason))
_ACCESS, _HALT = int(Reason.ACCESS), int(Reason.HALT)
_LAST_OPERATION: Final = int(Operation.EMULATED)


def _retired(entries: Sequence[tuple[int, int, int]]) -> tuple[Retired, ...]:
    """Return what retired: kinds that a guest may report, in increasing order, none twice."""
    if not entries:
        return ()
    last = (-1, 0)
    for kind, level, count in entries:
        if (kind, level) <= last or level not in (1, 2):
            raise RemoteProtocolError(f"retired kind {kind} at level {level} out of order, or no level")
        if kind >= NR_KINDS or FIRST_TIME_KIND <= kind < FIRST_TIME_KIND + NR_TIME_KINDS:
            raise RemoteProtocolError(f"retired kind {kind}, which is not a guest's to report")
        if count > NEVER:
            raise RemoteProtocolError(f"{count} events of kind {kind} in one report")
        last = (kind, level)
    return tuple([Retired(*entry) for entry in entries])


def _encode_welcome(message: Welcome) -> bytes:
    head = message[:9]
    return _WELCOME.pack(*head, 0, *message.leaf_0a, message.perf_capabilities, message.until_ns)


def _decode_welcome(frame: bytes) -> Welcome:
    fields = _fixed(frame, _WELCOME)
    _zero(fields[9])
    return Welcome._make((*fields[:9], fields[10:14], *fields[14:]))


def _encode_grant(message: Grant) -> bytes:
    now_ns, limit_ns, value, cost_ns, given, lvtpc, watched = message
    head = _GRANT.pack(now_ns, limit_ns, value, cost_ns, given, lvtpc, len(watched), 0)
    return head + _pack_entries(watched)


def _decode_grant(frame: bytes) -> Grant:
    now_ns, limit_ns, value, cost_ns, given, lvtpc, count, zero = _at_least(frame, _GRANT)
    _zero(zero)
    if given > 7:
        raise RemoteProtocolError(f"grant brings {given:#x}, expected bits 0 to 2")
    watched = tuple([Watched(*entry) for entry in _entries(frame, count)])
    return Grant(now_ns, limit_ns, value, cost_ns, given, lvtpc, watched)


def _encode_end(message: End) -> bytes:
    return _END.pack(message.at_ns, message.why, 0)


def _decode_end(frame: bytes) -> End:
    at_ns, why, zero = _fixed(frame, _END)
    _zero(zero)
    if why not in (EndReason.LEFT, EndReason.RUN_OVER):
        raise RemoteProtocolError(f"end for reason {why}")
    return End(at_ns, why)


def _encode_refused(message: Refused) -> bytes:
    text = message.reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore").encode()
    return _REFUSED.pack(len(text)) + text


def _decode_refused(frame: bytes) -> Refused:
    (length,) = _at_least(frame, _REFUSED)
    return Refused(_text(frame, HEADER.size + _REFUSED.size, length, MAX_REASON_BYTES, "reason"))


def _zero(value: int) -> None:
    if value:
        raise RemoteProtocolError(f"{value:#x} where 0 is due")


def _decode_start(frame: bytes) -> Start:
    _due(frame, 0)
    return Start()


def _decode_bye(frame: bytes) -> Bye:
    _due(frame, 0)
    return Bye()


_ENCODERS: Final[dict[type, tuple[Kind, Callable[[Any], bytes]]]] = {
    Hello: (Kind.HELLO, _encode_hello),
    Start: (Kind.START, lambda _: b""),
    Report: (Kind.REPORT, _encode_report),
    Cpuid: (Kind.CPUID, lambda message: _CPUID.pack(*message)),
    Bye: (Kind.BYE, lambda _: b""),
    Welcome: (Kind.WELCOME, _encode_welcome),
    Grant: (Kind.GRANT, _encode_grant),
    CpuidIs: (Kind.CPUID_IS, lambda message: _CPUID_IS.pack(*message)),
    End: (Kind.END, _encode_end),
    Refused: (Kind.REFUSED, _encode_refused),
}
_REQUESTS: Final[dict[int, Callable[[bytes], Request]]] = {
    Kind.HELLO: _decode_hello,
    Kind.START: _decode_start,
    Kind.REPORT: _decode_report,
    Kind.CPUID: lambda frame: Cpuid(*_fixed(frame, _CPUID)),
    Kind.BYE: _decode_bye,
}
_ANSWERS: Final[dict[int, Callable[[bytes], Answer]]] = {
    Kind.WELCOME: _decode_welcome,
    Kind.GRANT: _decode_grant,
    Kind.CPUID_IS: lambda frame: CpuidIs(*_fixed(frame, _CPUID_IS)),
    Kind.END: _decode_end,
    Kind.REFUSED: _decode_refused,
}
