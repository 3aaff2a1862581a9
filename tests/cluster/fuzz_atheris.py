"""Coverage-guided bytes for the wire's decoder: `make fuzz-atheris`, which needs the package atheris.

Each input is taken as a frame under a rank's name, and as the payload of the due frame of some kind: it has
to be named, or taken; nothing else may come of it.
"""

import sys
from types import FunctionType

import atheris

from tests.cluster.fuzz import ATTEMPT, GOOD, RUN, Target
from vpmu.cluster import letters, proto
from vpmu.cluster.errors import RemoteProtocolError
from vpmu.cluster.gang import _decode_peers
from vpmu.cluster.proto import KINDS, Frame, Header

# Note that whole modules cannot be instrumented at their import: numba could not compile kernels any more.
for module in (proto, letters, letters.Reader):
    for function in list(vars(module).values()):
        if isinstance(function, FunctionType):
            atheris.instrument_func(function)

TARGET = Target()


def one_input(data: bytes) -> None:
    """Take an input as a frame, and as a payload."""
    try:
        TARGET.hub._verify(GOOD, data)
        raise AssertionError("taken")
    except RemoteProtocolError:
        pass
    if len(data) < 24:
        return
    kind = list(KINDS)[data[0] % len(KINDS)]
    actors = [0, *TARGET.actors]
    source, to = actors[data[1] % len(actors)], actors[data[2] % len(actors)]
    words = proto.FIXED_WORDS.get(kind, max(1, proto.LEAST_WORDS.get(kind, 0), (len(data) - 16) // 8))
    count = (len(data) - 16) // (8 * words)
    request = data[3]
    header = Header(
        kind, RUN, 0, int.from_bytes(data[8:16], "little"), ATTEMPT, source, to, 1, 0, count, words, request
    )
    body = proto.HEADER.pack(proto.MAGIC, proto.VERSION, *header) + data[16 : 16 + count * words * 8]
    for take in (TARGET.hub._dispatch, _decode_peers):
        try:
            take(Frame(header, body))
        except RemoteProtocolError:
            continue


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
