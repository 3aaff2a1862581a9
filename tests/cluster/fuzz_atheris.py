"""Coverage-guided bytes for the wire's decoder: `make fuzz-atheris`, which needs the package atheris.

Each input is taken as a frame under a rank's name, and as the payload of the due frame of some kind: it has
to be named, or taken; nothing else may come of it.
"""

import sys
from types import FunctionType

import atheris

from tests.cluster.fuzz import ATTEMPT, GOOD, RUN, Target
from vpmu.actors.call_words import CALL_END, CALL_FIRST
from vpmu.cluster import letters, proto
from vpmu.cluster.errors import RemoteProtocolError
from vpmu.cluster.gang import _decode_peers
from vpmu.cluster.proto import KINDS, Frame, Header, Kind

# Note that whole modules cannot be instrumented at their import: numba could not compile kernels any more.
for module in (proto, letters, letters.Reader):
    for function in list(vars(module).values()):
        if isinstance(function, FunctionType):
            atheris.instrument_func(function)

TARGETS = (Target(), Target(rank=1))


def payload(kind: int, target: Target, data: bytes) -> tuple[int, int, bytes]:
    """Return how many records of how many words, and their bytes; a call to host perf is one, changed."""
    if kind in (Kind.PERF_REQUEST, Kind.PERF_REPLY):
        p = target.machine.pcpus[0].offset
        right = target.machine.arena[p + CALL_FIRST : p + CALL_END].tobytes()
        right = (b"" if kind == Kind.PERF_REQUEST else bytes(8)) + right
        changed = data[: len(right)].ljust(len(right), b"\0")
        words = bytes(a ^ b for a, b in zip(right, changed, strict=True))
        return 1, len(words) // 8, words
    size = proto.FIXED_WORDS.get(kind, max(1, proto.LEAST_WORDS.get(kind, 0), len(data) // 8))
    count = len(data) // (8 * size)
    return count, size, data[: count * size * 8]


def one_input(data: bytes) -> None:
    """Take an input as a frame, and as a payload."""
    try:
        TARGETS[0].hub._verify(GOOD, data)
        raise AssertionError("taken")
    except RemoteProtocolError:
        pass
    if len(data) < 24:
        return
    rank = data[4] & 1
    target = TARGETS[rank]
    kind = list(KINDS)[data[0] % len(KINDS)]
    actors = [0, *target.actors]
    source, to = actors[data[1] % len(actors)], actors[data[2] % len(actors)]
    count, words, body = payload(kind, target, data[16:])
    at_ns = int.from_bytes(data[8:16], "little")
    header = Header(kind, RUN, 0, at_ns, ATTEMPT, source, to, 1 - rank, rank, count, words, data[3])
    frame = Frame(header, proto.HEADER.pack(proto.MAGIC, proto.VERSION, *header) + body)
    for take in (target.hub._dispatch, _decode_peers):
        try:
            take(frame)
        except RemoteProtocolError:
            continue


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
