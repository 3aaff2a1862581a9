"""The benchmarks' C twin and the kernels, over the same recorded accesses, end in the same state."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.accesses import Twin, play_both, twin_state, warmed_machine
from benchmarks.streams import recorded_stream
from vpmu.kernels import columns as col
from vpmu.kernels.msr import GLOBAL_CTRL

COMPILER = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
ACCESSES = 60_000


@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
def test_twin_arrives_at_the_hash_and_registers_of_the_kernels(tmp_path: Path):
    stream = recorded_stream(ACCESSES)
    registers = {int(word) >> 8 for word in stream[:, 0]}
    # The mix of pmu-facts C: switches (0x38D, 0x186, RDPMC), PMIs (0x38E, 0x390), ticks, LVTPC.
    assert registers >= {0x38D, 0x38E, 0x38F, 0x390, 0x186, 0x187, 0xC1, 0xC2, 0x30A, 0x834, 0, 1}
    machine = warmed_machine(stream)
    twin = Twin(tmp_path, COMPILER or "cc")
    guest = machine.vcpus[0].guest
    before = int(machine.arena[guest + int(col.G_ACCESSES)])
    # An access takes about 1,000 ns; play_both() compares the states, hash included.
    play_both(machine, twin, stream, 20_000_000)
    assert int(machine.arena[guest + int(col.G_ACCESSES)]) - before > 15_000
    assert int(machine.arena[guest + int(col.T_WRONG)]) == 0

    # One word written otherwise gives another hash.
    state = twin_state(machine)
    other = state.copy()
    at = int(np.flatnonzero(stream[:, 0] == (int(GLOBAL_CTRL) << 8 | 2))[0])
    changed = stream[at : at + 1].copy()
    changed[0, 1] ^= np.uint64(1)
    for words, record in ((state, stream[at : at + 1]), (other, changed)):
        assert twin.play(words, machine, np.ascontiguousarray(record), int(state[0]) + 1) == 1
    assert int(state[2]) != int(other[2])
