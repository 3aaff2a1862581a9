"""The frames of remote guests: bytes to messages and back, and nothing else.

A frame is a 16-byte header and a body of a fixed layout, perhaps with entries of 16 bytes behind it, all
little-endian. `docs/protocol.md` gives the byte layouts; this module is their one implementation.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from enum import IntEnum, IntFlag
from typing import Any, Final, NamedTuple, TypeVar

from vpmu.cluster.errors import LocalProtocolError, RemoteProtocolError

MAGIC: Final = b"vPMG"
VERSION: Final = 1
NEVER: Final = 2**63 - 1
"""A time that does not come, ns."""
MAX_NAME_BYTES: Final = 255
MAX_REASON_BYTES: Final = 1024
FIRST_TIME_KIND: Final = 16
"""Reference and bus cycles, kinds 16 and 17, follow the clock: the host counts them for a guest."""
NR_TIME_KINDS: Final = 2
NR_KINDS: Final = 32
MAX_ENTRIES: Final = 2 * NR_KINDS
"""A grant, or a report, has at most so many entries."""

HEADER: Final = struct.Struct("<4sHHQ")
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


class Kind(IntEnum):
    """What a frame is: the guest's below 0x80, the host's answers from there."""

    HELLO = 0x01
    START = 0x02
    REPORT = 0x03
    CPUID = 0x04
    BYE = 0x05
    WELCOME = 0x81
    GRANT = 0x82
    CPUID_IS = 0x83
    END = 0x84
    REFUSED = 0x85


class Reason(IntEnum):
    """Why a guest ends its stretch; the numbers are those of the kernels' GUEST_ constants."""

    ACCESS = 1
    HALT = 3
    OVERFLOW = 4
    LIMIT = 5
    DONE = 6


class Operation(IntEnum):
    """What a guest executes that the host has to carry out; as the kernels' ACCESS_ constants."""

    NONE = 0
    RDMSR = 1
    WRMSR = 2
    RDPMC = 3
    EMULATED = 4


class Level(IntEnum):
    """A privilege level: CPL 0, or CPL 1 to 3."""

    NONE = 0
    KERNEL = 1
    USER = 2


class Given(IntFlag):
    """What a grant brings: the result of an access, that it was #GP, a performance interrupt."""

    RESULT = 1
    FAULT = 2
    PMI = 4


class EndReason(IntEnum):
    """Why there is nothing more for a guest to do."""

    LEFT = 0
    RUN_OVER = 1


class Hello(NamedTuple):
    """A process wants to be a vCPU, by the name of its VM and its number in it."""

    vm: str
    vcpu: int = 0


class Start(NamedTuple):
    """The guest is ready for its first grant."""


class Retired(NamedTuple):
    """Events of one kind that retired at one privilege level since the grant."""

    kind: int
    level: int
    events: int


class Report(NamedTuple):
    """What a guest did with a grant, and why it stops; the fields are `vpmu.actors.outside.Report`'s."""

    end_ns: int
    reason: int
    retired: tuple[Retired, ...] = ()
    operation: int = 0
    register: int = 0
    value: int = 0
    level: int = 0
    timer_at_ns: int = NEVER


class Cpuid(NamedTuple):
    """The guest executes CPUID."""

    leaf: int
    subleaf: int = 0


class Bye(NamedTuple):
    """The guest leaves where its last grant began."""


class Welcome(NamedTuple):
    """The guest is a vCPU now; what it has to know about it.

    Attributes
    ----------
    vcpu : int
        Its number in its VM.
    intercepts : int
        1 if its accesses exit: then what it accesses with retires in the host, or not at all.
    core_khz, tsc_khz : int
        Frequencies.
    version, nr_gp, gp_width, nr_fixed, fixed_width : int
        The PMU that it is offered.
    leaf_0a : tuple of int
        EAX, EBX, ECX and EDX of CPUID leaf 0xA.
    perf_capabilities : int
        What IA32_PERF_CAPABILITIES reads, 0 if there is none.
    until_ns : int
        Virtual end of the run.
    """

    vcpu: int
    intercepts: int
    core_khz: int
    tsc_khz: int
    version: int
    nr_gp: int
    gp_width: int
    nr_fixed: int
    fixed_width: int
    leaf_0a: tuple[int, int, int, int]
    perf_capabilities: int
    until_ns: int


class Watched(NamedTuple):
    """A counter that counts while the guest runs; `left` events to the next PMI, 0 if it raises none."""

    kind: int
    levels: int
    left: int


class Grant(NamedTuple):
    """The guest may run from `now_ns` to `limit_ns`; `given` says what else this brings.

    Attributes
    ----------
    now_ns, limit_ns : int
        Virtual time, ns.
    value, cost_ns : int
        What the last access read, and how long it took.
    given : int
        `Given` bits.
    lvtpc : int
        The LVTPC word under which an interrupt is delivered.
    watched : tuple of Watched
        What counts meanwhile.
    """

    now_ns: int
    limit_ns: int
    value: int = 0
    cost_ns: int = 0
    given: int = 0
    lvtpc: int = 0
    watched: tuple[Watched, ...] = ()


class CpuidIs(NamedTuple):
    """What CPUID answers."""

    eax: int
    ebx: int
    ecx: int
    edx: int


class End(NamedTuple):
    """There is nothing more to do: the guest left, or the run is over."""

    at_ns: int
    why: int


class Refused(NamedTuple):
    """The host does not go on with this peer."""

    reason: str


Request = Hello | Start | Report | Cpuid | Bye
Answer = Welcome | Grant | CpuidIs | End | Refused
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
    magic, version, kind, sequence = HEADER.unpack_from(frame)
    if magic != MAGIC:
        raise RemoteProtocolError(f"bad magic {magic!r}, expected {MAGIC!r}")
    if version != VERSION:
        raise RemoteProtocolError(f"protocol version {version}, expected {VERSION}")
    decoder = decoders.get(kind)
    if decoder is None:
        raise RemoteProtocolError(f"unknown kind {kind:#x}")
    return sequence, decoder(frame)


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
    due = HEADER.size + layout.size
    if len(frame) < due:
        raise RemoteProtocolError(f"frame of {len(frame)} bytes, expected at least {due}")
    return layout.unpack_from(frame, HEADER.size)


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
    if reason == Reason.ACCESS:
        if not Operation.RDMSR <= operation <= Operation.EMULATED or level not in (1, 2):
            raise RemoteProtocolError(f"access of operation {operation} at level {level}")
    elif operation or register or value or level:
        raise RemoteProtocolError(f"an access in a report of reason {Reason(reason).name}")
    if timer_at_ns != NEVER and (reason != Reason.HALT or timer_at_ns > NEVER):
        raise RemoteProtocolError(f"timer at {timer_at_ns} in a report of reason {Reason(reason).name}")
    entries = _entries(frame, count) if count else ()
    return Report(end_ns, reason, _retired(entries), operation, register, value, level, timer_at_ns)


_REASONS: Final = frozenset(map(int, Reason))


def _retired(entries: Sequence[tuple[int, int, int]]) -> tuple[Retired, ...]:
    """Return what retired: kinds that a guest may report, in increasing order, none twice."""
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
