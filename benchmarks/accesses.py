"""MSR accesses on the fast path, against a C twin of the access path over the same recorded stream.

The kernels are entered as a run enters them, through `advance`, with costs, truth, action histograms and row
hashes; the twin (`twin/accesses.c`) has registers, the design, costs and the row hash. They take turns in
short blocks, so that a busy machine slows both alike; both begin in the same state, and must end in the same
one, with the same hash.
"""

from __future__ import annotations

import ctypes
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks.streams import recorded_stream, replay_machine, rewind
from vpmu.actors.local import STEPS
from vpmu.kernels import columns as col
from vpmu.kernels import costs, events
from vpmu.kernels.advance import advance
from vpmu.kernels.jit import U64

if TYPE_CHECKING:
    from vpmu.actors.machine import Machine
    from vpmu.kernels.jit import Arena

ACCESSES: Final = 200_000
"""Accesses of one block: long enough to time, short enough for a quiet moment."""
BLOCKS: Final = 60
WARM_UP_NS: Final = 60_000_000
"""Virtual time in which host perf creates the events: the slow path, which the twin does not have."""
SOURCE: Final = Path(__file__).parent / "twin" / "accesses.c"

_G, _V, _P = "guest", "vcpu", "pcpu"
_ACTOR_WORDS: Final[list[tuple[str, np.uint64, int]]] = [
    (_P, col.P_NOW, 1),
    (_P, col.P_IRQ_AT, 1),
    (_G, col.G_HASH, 1),
    (_G, col.G_ACCESSES, 1),
    (_P, col.P_EXITS, 1),
    (_P, col.P_CAUSES + U64(2), 2),
    (_V, col.V_NR_GP, 1),
    (_V, col.V_NR_FIXED, 1),
    (_V, col.V_MASK, 1),
    (_V, col.V_GLOBAL_VALID, 1),
    (_V, col.V_EVENTSEL, 8),
    (_V, col.V_FIXED_CTRL, 1),
    (_V, col.V_GLOBAL_CTRL, 1),
    (_V, col.V_GLOBAL_STATUS, 1),
    (_V, col.V_OVF_CTRL, 1),
    (_V, col.V_COUNTER, col.SLOTS),
    (_V, col.V_LVTPC, 1),
    (_V, col.V_HAS_EVENT, 1),
    (_V, col.V_HW_SLOT, col.SLOTS),
    (_V, col.V_USED, 1),
    (_V, col.V_HW_CTRL, 1),
    (_V, col.V_HW_OWNED, 1),
    (_V, col.V_LOADED, 1),
    (_P, col.HW_EVENTSEL, 8),
    (_P, col.HW_FIXED_CTRL, 1),
    (_P, col.HW_GLOBAL_CTRL, 1),
    (_P, col.HW_GLOBAL_STATUS, 1),
    (_P, col.HW_COUNTER, col.SLOTS),
    (_P, col.HW_KIND, col.SLOTS),
    (_P, col.HW_CPL, col.SLOTS),
    (_P, col.HW_ARMED, 1),
    (_P, col.HW_ACTIVE, 1),
    (_P, col.HW_HOST_CTRL, 1),
    (_P, col.HW_GUEST_CTRL, 1),
]
"""The twin's state, word by word in the order of its struct: row, column, number of words."""
_COSTS: Final = [
    costs.COST_EXIT,
    costs.COST_ENTRY,
    costs.COST_MSR_INTERCEPT,
    costs.COST_RDPMC_INTERCEPT,
    costs.COST_HW_WRMSR,
    costs.COST_HW_RDMSR,
    costs.COST_HW_RDPMC,
]


def twin_state(machine: Machine) -> Arena:
    """Return what the twin has to know of a machine, as the words of its struct."""
    s = machine.arena
    vcpu = machine.vcpus[0]
    rows = {_G: vcpu.guest, _V: vcpu.offset, _P: machine.pcpus[0].offset}
    words = [
        s[rows[row] + int(column) : rows[row] + int(column) + count] for row, column, count in _ACTOR_WORDS
    ]
    table = machine.table("cost")
    return np.concatenate([*words, *(table[int(which)] for which in _COSTS)])


class Twin:
    """The C twin, compiled for this machine.

    Parameters
    ----------
    folder : Path
        Where the library is built.
    compiler : str
        Name of a C compiler.
    """

    def __init__(self, folder: Path, compiler: str = "cc") -> None:
        library = folder / "twin.so"
        names = {
            "KEY_MASK": int(events._KEY_MASK),
            "KEY_WITHOUT_INV": int(events._KEY_WITHOUT_INV),
            "KIND_SHIFT": int(events._SLOT_SHIFT),
            "KIND_NONE": int(events.KIND_NONE),
        }
        command = [compiler, "-O3", "-march=native", "-std=gnu11", "-Wall", "-Werror", "-shared", "-fPIC"]
        command += [f"-D{name}={value}u" for name, value in names.items()]
        subprocess.run([*command, "-o", str(library), str(SOURCE)], check=True)
        self._play = ctypes.CDLL(str(library)).play
        self._play.restype = ctypes.c_int64
        word = ctypes.POINTER(ctypes.c_uint64)
        self._play.argtypes = [word, word, word, ctypes.c_uint64, ctypes.c_uint64]

    def play(self, state: Arena, machine: Machine, stream: Arena, until_ns: int) -> int:
        """Play a stream until a virtual time, and change the state; return the number of accesses."""
        word = ctypes.POINTER(ctypes.c_uint64)
        kinds = machine.table("kind")
        pointers = [array.ctypes.data_as(word) for array in (state, kinds, stream)]
        done = int(self._play(*pointers, len(stream), until_ns))
        assert done >= 0, "the twin gave up"
        return done


def advance_to(machine: Machine, until_ns: int) -> None:
    """Advance a machine as a run does."""
    s = machine.arena
    while int(s[machine.pcpus[0].offset + int(col.P_NOW)]) < until_ns:
        advance(s, machine.log, U64(until_ns), U64(STEPS))


def warmed_machine(stream: Arena) -> Machine:
    """Return a machine whose host perf events for the stream exist, its guest back at the stream's start."""
    machine = replay_machine(stream)
    advance_to(machine, WARM_UP_NS)
    assert int(machine.arena[machine.vcpus[0].guest + int(col.G_STREAM_LEFT)]), "the stream is too short"
    rewind(machine, stream)
    return machine


def play_both(machine: Machine, twin: Twin, stream: Arena, span_ns: int) -> tuple[float, float]:
    """Play a stream for a span of virtual time in the kernels and in the twin; return ns per access of each.

    Raises
    ------
    AssertionError
        The two do not end in the same state, hash included.
    """
    rewind(machine, stream)
    s = machine.arena
    guest = machine.vcpus[0].guest
    _skip_access(machine)
    state = twin_state(machine)
    at = (int(s[guest + int(col.G_STREAM)]) - (s.size - stream.size)) // stream.shape[1]
    # The guest has asked for the record before; the twin carries it out itself.
    left = stream[at - 1 :]
    until = int(state[0]) + span_ns
    begin = time.perf_counter()
    advance_to(machine, until)
    middle = time.perf_counter()
    done = twin.play(state, machine, left, until)
    end = time.perf_counter()
    assert np.array_equal(twin_state(machine), state), "kernels and twin differ"
    return (middle - begin) / done * 1e9, (end - middle) / done * 1e9


def _skip_access(machine: Machine) -> None:
    """Let the access that was asked for before the rewinding pass."""
    advance_to(machine, int(machine.arena[machine.pcpus[0].offset + int(col.P_NOW)]) + 1)


def measure() -> list[dict[str, Any]]:
    """Return the figures: name, value, unit, baseline and ratio."""
    stream = recorded_stream(ACCESSES)
    machine = warmed_machine(stream)
    with tempfile.TemporaryDirectory() as folder:
        twin = Twin(Path(folder))
        span = int(ACCESSES * 0.9) * 1000
        pairs = [play_both(machine, twin, stream, span) for _ in range(BLOCKS)]
    ours = min(our for our, _ in pairs)
    theirs = min(its for _, its in pairs)
    ratio = statistics.median(its / our for our, its in pairs)
    return [
        {
            "name": "msr_accesses",
            "value": round(1e3 / ours, 1),
            "unit": "M/s",
            "baseline": 30,
            "ratio": round(1e3 / ours / 30, 3),
        },
        {
            "name": "msr_accesses_c_twin",
            "value": round(1e3 / ours, 1),
            "unit": "M/s",
            "baseline": round(1e3 / theirs, 1),
            "ratio": round(ratio, 3),
        },
    ]
