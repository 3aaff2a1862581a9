"""Programs against a twin that walks every segment in Python's integers."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, SupportsInt

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numba import types

from vpmu.kernels import program as kernels
from vpmu.kernels.events import (
    KIND_BRANCHES,
    KIND_CYCLES,
    KIND_DERIVED_FIRST,
    KIND_INSTRUCTIONS,
    KIND_REF_CYCLES,
)
from vpmu.kernels.integers import NEVER
from vpmu.kernels.jit import U64
from vpmu.kernels.program import (
    CURSOR_COLUMNS,
    Phase,
    Segment,
    encode_program,
    program_chain,
    program_count,
    program_cycles_until,
    program_function,
    program_function_cycles,
    program_ip,
    program_seek,
    program_start,
)

INSTRUCTIONS = int(KIND_INSTRUCTIONS)
BRANCHES = int(KIND_BRANCHES)
CURSOR = U64(3)
PROGRAM = U64(3 + CURSOR_COLUMNS + 5)


class Runner:
    """A program in an arena of its own and one cursor on it."""

    def __init__(self, phases: Sequence[Phase], derived: Sequence[int] = ()) -> None:
        image = encode_program(phases, derived)
        self.s = np.full(int(PROGRAM) + len(image), 2**64 - 1, dtype=np.uint64)
        self.s[int(PROGRAM) :] = image
        self.start()

    def start(self):
        program_start(self.s, PROGRAM, CURSOR)
        return self

    def seek(self, cycles: int):
        program_seek(self.s, PROGRAM, CURSOR, U64(cycles))
        return self

    def count(self, kind: SupportsInt):
        return int(program_count(self.s, PROGRAM, CURSOR, U64(kind)))

    def cycles_until(self, kind: SupportsInt, n: int):
        return int(program_cycles_until(self.s, PROGRAM, CURSOR, U64(kind), U64(n)))

    def function_cycles(self, function: int):
        return int(program_function_cycles(self.s, PROGRAM, CURSOR, U64(function)))

    def where(self):
        look_ups = (program_function, program_chain, program_ip)
        return tuple(int(look_up(self.s, PROGRAM, CURSOR)) for look_up in look_ups)

    def cursor(self):
        return self.s[int(CURSOR) : int(CURSOR) + CURSOR_COLUMNS].tolist()

    def count_at(self, position: int, kind: SupportsInt):
        return self.start().seek(position).count(kind)


class Twin:
    """The documented formula, segment by segment."""

    def __init__(self, phases: Sequence[Phase]) -> None:
        self.phases = phases
        self.cycles = sum(p.iterations * sum(s.cycles for s in p.segments) for p in phases)

    def total(self, kind: int):
        return sum(segment.events.get(kind, 0) for phase in self.phases for segment in phase.segments)

    def place(self, position: int):
        """Repetition, phase, iteration, segment (as indices) and the offset in it."""
        repetition, left = divmod(position, self.cycles)
        for phase_index, phase in enumerate(self.phases):
            body = sum(segment.cycles for segment in phase.segments)
            if left >= body * phase.iterations:
                left -= body * phase.iterations
                continue
            iteration, left = divmod(left, body)
            for index, segment in enumerate(phase.segments):
                if left < segment.cycles:
                    return repetition, phase_index, iteration, index, left
                left -= segment.cycles
        raise AssertionError("unreachable")

    def count(self, position: int, kind: int):
        repetition, phase_index, iteration, index, offset = self.place(position)
        events = sum(s.events.get(kind, 0) for p in self.phases[:phase_index] for s in p.segments)
        phase = self.phases[phase_index]
        sums = [0]
        for segment in phase.segments:
            sums.append(sums[-1] + segment.events.get(kind, 0))
        bases = [(total << 20) // phase.iterations for total in sums]
        rate = ((bases[index + 1] - bases[index]) << 8) // phase.segments[index].cycles
        in_phase = iteration * bases[-1] + bases[index] + (offset * rate >> 8)
        return repetition * self.total(kind) + events + (in_phase >> 20)

    def function_cycles(self, position: int, function: int):
        repetition, phase_index, iteration, index, offset = self.place(position)
        of = [sum(s.cycles for s in p.segments if s.function == function) for p in self.phases]
        whole = [cycles * phase.iterations for cycles, phase in zip(of, self.phases, strict=True)]
        segments = self.phases[phase_index].segments
        cycles = repetition * sum(whole) + sum(whole[:phase_index]) + iteration * of[phase_index]
        cycles += sum(s.cycles for s in segments[:index] if s.function == function)
        return cycles + (offset if segments[index].function == function else 0)


@st.composite
def segments(draw: st.DrawFn, iterations: int, most_cycles: int):
    cycles = draw(st.integers(1, most_cycles))
    most = min(2**34, 64 * cycles) * iterations - 1
    events = st.dictionaries(st.integers(1, 4), st.integers(0, most) | st.integers(0, min(most, 3)))
    ids = st.integers(0, 4)
    return Segment(cycles, draw(ids), draw(ids), draw(st.integers(0, 2**64 - 1)), draw(events))


@st.composite
def phases(draw: st.DrawFn):
    iterations = draw(st.integers(1, 5) | st.integers(1, 10**6))
    most_cycles = draw(st.sampled_from([3, 1000, 10**6]))
    body = draw(st.lists(segments(iterations, most_cycles), min_size=1, max_size=9))
    return Phase(iterations, body)


programs = st.lists(phases(), min_size=1, max_size=4)


def positions(data: st.DataObject, program: Sequence[Phase]):
    cycles = Twin(program).cycles
    return data.draw(
        st.integers(0, 3 * cycles) | st.integers(0, 2**20) | st.sampled_from([cycles, cycles - 1])
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("program_count", 3),
        ("program_cycles_until", 4),
        ("program_function", 2),
        ("program_chain", 2),
        ("program_ip", 2),
        ("program_function_cycles", 3),
    ],
)
def test_kernels_return_words(name: str, words: int):
    kernel: Any = getattr(kernels, name)
    kernel.compile((types.uint64[::1],) + (types.uint64,) * words)
    assert {signature.return_type for signature in kernel.nopython_signatures} == {types.uint64}


@given(programs, st.data())
def test_every_count_is_the_twins(program: Sequence[Phase], data: st.DataObject):
    runner, twin = Runner(program), Twin(program)
    position = positions(data, program)
    runner.seek(position)
    assert [runner.count(kind) for kind in range(1, 6)] == [
        twin.count(position, kind) for kind in range(1, 6)
    ]
    assert runner.count(KIND_CYCLES) == position
    for function in range(6):
        assert runner.function_cycles(function) == twin.function_cycles(position, function)
    _, phase, _, segment, _ = twin.place(position)
    _, function, chain, ip, _ = program[phase].segments[segment]
    assert runner.where() == (function, chain, ip)


@given(programs, st.data())
def test_a_cursor_does_not_depend_on_how_time_is_sliced(program: Sequence[Phase], data: st.DataObject):
    whole, sliced = Runner(program), Runner(program)
    position = positions(data, program)
    cuts = sorted(data.draw(st.lists(st.integers(0, position), max_size=8)))
    for begin, end in zip([0, *cuts], [*cuts, position], strict=True):
        sliced.seek(end - begin)
    assert sliced.cursor() == whole.seek(position).cursor()


@given(programs, st.data())
def test_cycles_until_is_the_least_that_suffices(program: Sequence[Phase], data: st.DataObject):
    runner = Runner(program)
    position = positions(data, program)
    kind = data.draw(st.integers(1, 4))
    n = data.draw(st.integers(1, 5) | st.integers(1, 2**34))
    total = Twin(program).total(kind)
    # The position must stay below 2**63, as `program_seek` demands.
    assume(total == 0 or (n // total + 2) * Twin(program).cycles + position < 2**63)
    before = runner.seek(position).count(kind)
    cycles = runner.cycles_until(kind, n)
    if total == 0:
        assert cycles == NEVER
        return
    assert runner.count_at(position + cycles, kind) - before >= n
    assert runner.count_at(position + cycles - 1, kind) - before < n


@given(programs, st.data())
def test_counts_never_decrease_and_end_exactly_at_the_totals(program: Sequence[Phase], data: st.DataObject):
    runner, twin = Runner(program), Twin(program)
    marks = sorted(data.draw(st.lists(st.integers(0, 2 * twin.cycles), max_size=8)))
    for kind in range(1, 5):
        counts = [runner.count_at(mark, kind) for mark in marks]
        assert counts == sorted(counts)
        assert runner.count_at(3 * twin.cycles, kind) == 3 * twin.total(kind)


@given(programs, st.data())
def test_the_lag_is_within_what_is_documented(program: Sequence[Phase], data: st.DataObject):
    runner, twin = Runner(program), Twin(program)
    position = positions(data, program)
    for kind in range(1, 5):
        repetition, phase_index, iteration, index, offset = twin.place(position)
        phase = program[phase_index]
        segment = phase.segments[index]
        exact = Fraction(repetition * twin.total(kind))
        exact += sum(s.events.get(kind, 0) for p in program[:phase_index] for s in p.segments)
        per_phase = sum(s.events.get(kind, 0) for s in phase.segments) * iteration
        per_phase += sum(s.events.get(kind, 0) for s in phase.segments[:index])
        exact += Fraction(per_phase, phase.iterations)
        exact += Fraction(segment.events.get(kind, 0) * offset, segment.cycles * phase.iterations)
        lag = exact - runner.count_at(position, kind)
        bound = 1 + Fraction(phase.iterations + 1, 2**20) + Fraction(segment.cycles, 2**28)
        assert -Fraction(1, 2**20) < lag < bound


def test_a_trillion_events_are_counted_to_the_event():
    # 25 million iterations of 40,000 cycles with one branch a cycle, and one branch more: an iteration's part
    # of it, 1 / 25e6, is less than 2**-20 and rounded away, so it counts at the phase's end.
    events = {BRANCHES: 10**12 + 1}
    program = [Phase(25 * 10**6, [Segment(40_000, 1, 0, 0, events)])]
    runner, twin = Runner(program), Twin(program)
    assert twin.cycles == 10**12
    assert runner.count_at(twin.cycles - 1, BRANCHES) == 10**12 - 1
    assert runner.count_at(twin.cycles, BRANCHES) == 10**12 + 1
    assert runner.count_at(10**6 * twin.cycles, BRANCHES) == 10**6 * (10**12 + 1)
    assert runner.start().cycles_until(BRANCHES, 2**34) == 2**34


def test_an_event_that_never_comes():
    runner = Runner([Phase(3, [Segment(10, 0, 0, 0, {INSTRUCTIONS: 3})])])
    assert runner.cycles_until(BRANCHES, 1) == NEVER
    assert runner.cycles_until(BRANCHES, 0) == 0
    assert runner.cycles_until(KIND_CYCLES, 123) == 123
    # One instruction per iteration of 10 cycles: the third one is complete when the phase is.
    assert [runner.cycles_until(INSTRUCTIONS, n) for n in (1, 2, 3, 4)] == [10, 20, 30, 40]


def test_a_derived_event_follows_each_segments_rate():
    # cmask=2 holds in the share r - 1 of the cycles: r = 1.5 gives a half, r = 0.5 nothing. Two iterations of
    # 100 cycles at 1.5 and 100 at 0.5.
    config = 0x0200_00C0
    fast, slow = Segment(100, 0, 0, 0, {INSTRUCTIONS: 300}), Segment(100, 1, 0, 0, {INSTRUCTIONS: 100})
    program = [Phase(2, [fast, slow])]
    runner = Runner(program, [config])
    counts = [runner.count_at(position, KIND_DERIVED_FIRST) for position in (0, 50, 100, 200, 250, 400)]
    assert counts == [0, 25, 50, 50, 75, 100]


def test_a_condition_on_cycles_is_derived_from_one_per_cycle():
    inverted_cycles = 0x0180_003C  # cycles with fewer than one cycle: none
    runner = Runner([Phase(1, [Segment(100, 0, 0, 0, {})])], [inverted_cycles])
    assert runner.count_at(1000, KIND_DERIVED_FIRST) == 0


ONE = Segment(10, 0, 0, 0, {})


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ([], "at least one phase"),
        ([Phase(0, [ONE])], "phase 0 has 0 iterations"),
        ([Phase(1, [])], "of 0 segments"),
        ([Phase(1, [ONE]), Phase(1, [ONE, ONE._replace(cycles=0)])], "phase 1, segment 1: 0 cycles"),
        ([Phase(1, [ONE._replace(events={0: 10})])], "event kind 0; 1 to 15"),
        ([Phase(1, [ONE._replace(events={int(KIND_REF_CYCLES): 10})])], "event kind 16"),
        ([Phase(1, [ONE._replace(events={BRANCHES: 640})])], "fewer than 64 per cycle"),
        ([Phase(1, [ONE._replace(events={BRANCHES: -1})])], "-1 events of kind 2"),
        ([Phase(1, [ONE._replace(ip=2**64)])], "not an unsigned 64-bit"),
        ([Phase(2**40, [ONE])], r"10995116277760 events of kind 0; fewer than 2\*\*43"),
        ([Phase(1, [Segment(2**40, 0, 0, 0, {BRANCHES: 2**34})])], "in one pass"),
    ],
)
def test_a_number_out_of_range_is_named(program: Sequence[Phase], message: str):
    with pytest.raises(ValueError, match=message):
        encode_program(program)
