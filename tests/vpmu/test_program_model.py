"""Programs: from profile to phases without losing an event, written in a scenario, and as files."""

import json
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vpmu.errors import UserError
from vpmu.kernels.events import KIND_BRANCHES, KIND_CYCLES
from vpmu.kernels.jit import U64
from vpmu.kernels.program import (
    CURSOR_COLUMNS,
    program_count,
    program_function,
    program_function_cycles,
    program_seek,
    program_start,
)
from vpmu.program import EVENT_KINDS, Program, ProgramError, import_callgrind, load_program, save_program
from vpmu.program.callgrind import EVENTS, Arc, FunctionKey, Profile, read_callgrind
from vpmu.program.cli import import_command, show_command
from vpmu.program.context import CallGraph, context_tree, loop_body
from vpmu.program.importer import UNATTRIBUTED
from vpmu.program.layout import BODY_SEGMENTS, apportion, short_segments
from vpmu.program.model import Segment
from vpmu.program.penalties import DEFAULT_PENALTIES, estimate, load_penalties

FTEST = Path(__file__).parents[2] / "examples" / "ftest" / "callgrind.out.ftest"
COST = dict(zip(EVENTS, range(len(EVENTS)), strict=True))


def write_profile(path: Path, profile: Profile):
    """Write a profile as Callgrind does, without compression."""
    lines = [
        "# callgrind format",
        "version: 1",
        "cmd: ./made",
        "positions: line",
        "events: " + " ".join(EVENTS),
    ]
    for caller, cost in profile.self_cost.items():
        lines += [f"ob={caller.object}", f"fn={caller.name}", "1 " + " ".join(map(str, cost))]
        for (origin, callee), arc in profile.arcs.items():
            if origin == caller:
                lines += [f"cob={callee.object}", f"cfn={callee.name}", f"calls={arc.calls} 1"]
                lines.append("1 " + " ".join(map(str, arc.cost)))
    lines.append("totals: " + " ".join(map(str, profile.totals())))
    path.write_text("\n".join(lines) + "\n")


def exact_totals(profile: Profile):
    """What Callgrind counts, by the program's names; branches without those of calls."""
    n = dict(zip(EVENTS, profile.summary or profile.totals(), strict=True))
    return {
        "instructions": n["Ir"],
        "branch_misses": n["Bcm"] + n["Bim"],
        "cache_references": n["I1mr"] + n["D1mr"] + n["D1mw"],
        "cache_misses": n["ILmr"] + n["DLmr"] + n["DLmw"],
        "l1_dcache_loads": n["Dr"],
        "l1_dcache_stores": n["Dw"],
        "l1_dcache_load_misses": n["D1mr"] + n["D1mw"],
        "l1_icache_load_misses": n["I1mr"],
        "l3_load_misses": n["DLmr"],
    }


class Runner:
    """An encoded program and a cursor on it."""

    def __init__(self, program: Program) -> None:
        self.prog, self.cur = U64(CURSOR_COLUMNS), U64(0)
        self.s = np.concatenate([np.zeros(CURSOR_COLUMNS, dtype=np.uint64), program.encode()])
        program_start(self.s, self.prog, self.cur)

    def seek(self, cycles: int):
        program_seek(self.s, self.prog, self.cur, U64(cycles))

    def counts(self):
        kinds = {"cycles": int(KIND_CYCLES)} | EVENT_KINDS
        return {
            name: int(program_count(self.s, self.prog, self.cur, U64(kind))) for name, kind in kinds.items()
        }


# -- the recorded profile ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ftest():
    return import_callgrind(FTEST)


def test_the_programs_totals_are_the_profiles(ftest: Program):
    profile = read_callgrind(FTEST)
    totals = ftest.totals()
    expected = exact_totals(profile)
    assert {name: totals[name] for name in expected} == expected
    n = dict(zip(EVENTS, profile.summary or (), strict=True))
    calls = sum(arc.calls for (caller, _), arc in profile.arcs.items() if "[PLT]" not in caller.name)
    assert totals["branches"] == n["Bc"] + n["Bi"] + calls


def test_a_guest_that_runs_it_counts_these_totals(ftest: Program):
    runner = Runner(ftest)
    for repetition in (1, 2):
        runner.seek(ftest.cycles)
        assert runner.counts() == {name: repetition * n for name, n in ftest.totals().items()}
    for function, own in enumerate(ftest.function_totals()):
        cycles = program_function_cycles(runner.s, runner.prog, runner.cur, U64(function))
        assert int(cycles) == 2 * own["cycles"]


def test_each_function_retires_what_the_profile_says_of_it(ftest: Program):
    profile = read_callgrind(FTEST)
    instructions = [own["instructions"] for own in ftest.function_totals()]
    expected = [cost[0] for cost in profile.self_cost.values()] + [profile.unattributed()[0]]
    assert sorted(count for count in instructions if count) == sorted(count for count in expected if count)


def test_its_shares_are_near_the_benchmarks_of_the_rfc(ftest: Program):
    cycles: dict[str, int] = {}
    for function, own in zip(ftest.functions, ftest.function_totals(), strict=True):
        cycles[function.name] = cycles.get(function.name, 0) + own["cycles"]
    # RFC v2, table of perf record, host column.
    rfc = {"qux": 37.87, "foo": 15.78, "bar": 12.14, "main": 13.18, "random": 9.59, "random_r": 9.85}
    for name, share in (rfc | {"random@plt": 1.59}).items():
        assert 100 * cycles[name] / ftest.cycles == pytest.approx(share, abs=1.5)


def test_its_loop_is_of_a_size_that_samples_can_resolve(ftest: Program):
    startup, loop, tail = ftest.phases
    assert [phase.name for phase in ftest.phases] == ["start-up", "loop", "tail"]
    assert len(loop.segments) <= BODY_SEGMENTS
    assert 20_000 <= loop.cycles // loop.iterations <= 60_000
    assert loop.cycles > 0.98 * ftest.cycles
    assert tail.cycles < startup.cycles < 0.02 * ftest.cycles


def test_its_call_chains_show_who_called_random(ftest: Program):
    chains = [tuple(ftest.functions[function].name for function in chain) for chain in ftest.chains]
    below_main = {chain[chain.index("main") :] for chain in chains if "main" in chain}
    # The PLT stub jumps: it is no frame of what it leads to.
    assert {("main", caller, "random", "random_r") for caller in ("foo", "bar", "qux")} <= below_main
    assert ("main", "qux", "random@plt") in below_main
    assert ("main", "qux", "random@plt", "random") not in below_main


def test_every_ip_is_inside_its_function(ftest: Program):
    for phase in ftest.phases:
        for segment in phase.segments:
            assert ftest.find_symbol(segment.ip) is ftest.functions[segment.function]
            assert ftest.chains[segment.chain][-1] == segment.function
    assert ftest.find_symbol(0) is None


# -- other profiles ----------------------------------------------------------------------------------------


@st.composite
def profiles(draw: st.DrawFn):
    keys = [FunctionKey(f"./object{index % 2}", f"f{index}") for index in range(draw(st.integers(1, 6)))]
    profile = Profile()
    for key in keys:
        instructions = draw(st.integers(1, 100) | st.integers(1, 10**9))
        parts = [draw(st.integers(0, instructions // 4)) for _ in EVENTS[1:]]
        profile.self_cost[key] = (instructions, *parts)
    for caller in keys:
        for callee in draw(st.lists(st.sampled_from(keys), unique=True, max_size=3)):
            cost = (draw(st.integers(0, 10**9)), *(0 for _ in EVENTS[1:]))
            profile.arcs[caller, callee] = Arc(draw(st.integers(1, 1000)), cost)
    return profile


@settings(max_examples=60)
@given(profiles())
def test_any_profile_is_imported_whole(tmp_path_factory: pytest.TempPathFactory, profile: Profile):
    path = tmp_path_factory.getbasetemp() / "callgrind.out.made"
    write_profile(path, profile)
    program = import_callgrind(path)
    expected = exact_totals(profile)
    assert {name: program.totals()[name] for name in expected} == expected
    runner = Runner(program)
    runner.seek(program.cycles)
    assert runner.counts() == program.totals()
    names = [function.name for function in program.functions]
    instructions = [own["instructions"] for own in program.function_totals()]
    of = dict(zip(names, instructions, strict=True))
    assert of == {key.name: cost[0] for key, cost in profile.self_cost.items()}


def test_a_long_segment_is_cut_so_that_one_pass_holds_its_events():
    # 3 * 2**33 + 1 events of one kind take four segments of 2**33 at most; nothing is lost.
    long = Segment(10**10, 0, 0, 64, {"branches": 3 * 2**33 + 1, "instructions": 7})
    parts = short_segments([long], 1)
    assert len(parts) == 4
    assert sum(part.cycles for part in parts) == long.cycles
    for name, count in long.events.items():
        assert sum(part.events.get(name, 0) for part in parts) == count
    assert max(part.events["branches"] for part in parts) <= 2**33
    assert short_segments([long], 4) == [long]


def test_a_callees_cost_is_shared_among_its_callers_by_what_their_calls_cost():
    # main calls a (3/4 of leaf's inclusive cost is from there) and b (1/4); leaf calls itself: that is cut.
    main, a, b, leaf = range(4)
    arcs = {(main, a): 1300, (main, b): 700, (a, leaf): 300, (b, leaf): 100, (leaf, leaf): 999}
    graph = CallGraph([100, 1000, 600, 400], arcs)
    (root,) = context_tree(graph)
    assert {context.chain: context.cycles for context in root.walk()} == {
        (main,): 100,
        (main, a): 1000,
        (main, a, leaf): 300,
        (main, b): 600,
        (main, b, leaf): 100,
    }
    visited = [piece.chain[-1] for piece in loop_body(graph)]
    assert visited == [main, a, leaf, a, main, b, leaf, b, main]


def test_functions_that_call_each_other_are_cut_at_the_second_visit():
    graph = CallGraph([10, 20], {(0, 1): 30, (1, 0): 25})
    # Both are called; the one with the greater own and called cost, 45 against 40, is the root.
    (root,) = context_tree(graph)
    assert [context.chain for context in root.walk()] == [(1,), (1, 0)]
    assert graph.heaviest_chain(0) == (1, 0)


def test_a_profile_of_many_small_functions_has_a_loop_too(tmp_path: Path):
    # 500 functions of 2 instructions in a thousand each: none is hot by itself.
    keys = [FunctionKey("./flat", f"f{index}") for index in range(500)]
    profile = Profile(self_cost={key: (10**6, *(0 for _ in EVENTS[1:])) for key in keys})
    write_profile(tmp_path / "callgrind.out.flat", profile)
    program = import_callgrind(tmp_path / "callgrind.out.flat")
    assert [phase.name for phase in program.phases][:2] == ["start-up", "loop"]
    assert program.totals()["instructions"] == 500 * 10**6


def test_what_no_function_is_charged_with_has_a_name(ftest: Program):
    (function,) = [index for index, f in enumerate(ftest.functions) if f.name == UNATTRIBUTED.name]
    assert ftest.function_totals()[function]["instructions"] == read_callgrind(FTEST).unattributed()[0]


def test_a_profile_without_costs_is_refused(tmp_path: Path):
    write_profile(tmp_path / "empty", Profile(self_cost={FunctionKey("o", "f"): (0,) * len(EVENTS)}))
    with pytest.raises(ProgramError, match="no cost at all"):
        import_callgrind(tmp_path / "empty")


# -- penalties ---------------------------------------------------------------------------------------------


def test_cycles_are_the_sum_of_the_penalties():
    cost = tuple(10_000 * COST[name] for name in EVENTS)
    n = dict(zip(EVENTS, cost, strict=True))
    got = estimate(cost, load_penalties(), calls=7)
    assert got["dtlb_load_misses"] == n["D1mr"] // 100 + n["DLmr"] // 8
    assert got["dtlb_store_misses"] == n["D1mw"] // 100 + n["DLmw"] // 8
    walks = got["dtlb_load_misses"] + got["dtlb_store_misses"] + n["I1mr"] // 50
    stalls = 8 * n["D1mr"] + 120 * n["DLmr"]
    expected = n["Ir"] // 2 + 7 * 3 + 16 * (n["Bcm"] + n["Bim"]) + 10 * n["I1mr"] + n["D1mw"]
    expected += 120 * n["ILmr"] + 30 * n["DLmw"] + 25 * walks + stalls
    assert got["cycles"] == expected
    assert got["l1d_stalls"] == stalls
    assert got["branches"] == n["Bc"] + n["Bi"] + 7
    assert estimate(cost, load_penalties(), calls=7, is_plt=True)["branches"] == n["Bc"] + n["Bi"]
    assert set(got) == {"cycles", *EVENT_KINDS}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("value = 16", "value = -16", "key cycles_per_branch_miss.value: must not be negative, found -16"),
        ("version = 1", "version = 2", "key version: expected 1, found 2"),
        ("[cycles_per_tlb_walk]", "[cycles_per_tlb_wlak]", 'did you mean "cycles_per_tlb_walk"'),
        ('source = "as for loads"', 'source = ""', "must say where the value is from"),
        ("value = 0.5", "value = 0", "key cycles_per_instruction.value: must be above 0"),
    ],
)
def test_a_mistake_in_the_penalties_is_named(tmp_path: Path, old: str, new: str, message: str):
    path = tmp_path / "penalties.toml"
    path.write_text(DEFAULT_PENALTIES.read_text().replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        load_penalties(path)
    assert message in str(caught.value)


# -- written in a scenario ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """What `vpmu.scenario.model.Function` has."""

    name: str
    share: Fraction
    ipc: Fraction = Fraction(1)
    rates: dict[str, Fraction] = field(default_factory=dict)


def test_written_functions_share_the_cycles_and_take_turns():
    # 3/4 and 1/4 of 10 million cycles; 1.5 and 0.5 instructions a cycle; every fifth instruction a branch.
    functions = [
        Written("hot", Fraction(3), Fraction(3, 2), {"branches": Fraction(1, 5)}),
        Written("cold", Fraction(1), Fraction(1, 2)),
    ]
    program = Program.from_functions("p", functions, 10**7)
    hot, cold = program.function_totals()
    assert (hot["cycles"], hot["instructions"], hot["branches"]) == (7_500_000, 11_250_000, 2_250_000)
    assert (cold["cycles"], cold["instructions"], cold["branches"]) == (2_500_000, 1_250_000, 0)
    runner = Runner(program)
    seen = []
    # 32 turns in a body of 40,000 cycles, each 937 or 938 of the one, then 312 or 313 of the other.
    for cycles in (0, 1000, 500, 700):
        runner.seek(cycles)
        seen.append(int(program_function(runner.s, runner.prog, runner.cur)))
    assert seen == [0, 1, 0, 1]
    runner.seek(10**7 - 2200)
    assert runner.counts() == program.totals()


@given(
    st.lists(st.fractions(Fraction(1, 1000), 100, max_denominator=1000), min_size=1, max_size=80),
    st.integers(1, 10**12),
)
def test_written_functions_add_up_to_the_cycles(shares: list[Fraction], cycles: int):
    functions = [Written(f"f{index}", share) for index, share in enumerate(shares)]
    program = Program.from_functions("p", functions, cycles)
    assert program.cycles == cycles
    for own, share in zip(program.function_totals(), shares, strict=True):
        assert abs(own["cycles"] - cycles * share / sum(shares)) < 1


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"itlb_loads": Fraction(1)}, 'key f: the model has no rate for "itlb_loads"'),
        ({"dtlb_loads": Fraction(1), "l1_dcache_loads": Fraction(2)}, "are the same event but differ"),
        ({"branches": Fraction(64)}, "fewer than 64 per cycle"),
    ],
)
def test_rates_that_cannot_be_are_named(rates: dict[str, Fraction], message: str):
    with pytest.raises(UserError, match=message):
        Program.from_functions("p", [Written("f", Fraction(1), rates=rates)], 1000)


def test_two_names_of_one_event_are_one_event():
    rates = {"dtlb_loads": Fraction(1, 4), "dtlb_stores": Fraction(1, 8)}
    totals = Program.from_functions("p", [Written("f", Fraction(1), rates=rates)], 800).totals()
    assert (totals["l1_dcache_loads"], totals["l1_dcache_stores"]) == (200, 100)


@given(st.integers(0, 10**12), st.lists(st.integers(1, 10**6), min_size=1, max_size=50))
def test_apportioned_parts_add_up_and_are_off_by_less_than_one(total: int, weights: list[int]):
    parts = apportion(total, weights)
    assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - Fraction(total * weight, sum(weights))) < 1


# -- files and the command ---------------------------------------------------------------------------------


def test_a_saved_program_is_loaded_as_it_was(tmp_path: Path, ftest: Program):
    path = tmp_path / "ftest.program.json"
    save_program(ftest, path)
    assert load_program(path) == ftest
    lines = path.read_text().splitlines()
    assert any(line.strip().startswith('{"name": "qux", ') for line in lines)
    assert max(map(len, lines)) < 1000
    assert (load_program(path).encode() == ftest.encode()).all()


def test_a_callgrind_profile_is_loaded_as_what_it_is(ftest: Program):
    assert load_program(FTEST) == ftest


def test_a_program_may_be_written_as_toml(tmp_path: Path):
    path = tmp_path / "p.toml"
    path.write_text("""
        version = 1
        name = "p"
        source = "by hand"
        functions = [{name = "f", address = 0x1000, size = 16}]
        chains = [[0]]
        [[phases]]
        name = "loop"
        iterations = 3
        segments = [{cycles = 10, function = 0, chain = 0, ip = 0x1004, events = {branches = 7}}]
    """)
    program = load_program(path)
    assert program.totals()["branches"] == 7
    assert program.cycles == 30
    assert int(KIND_BRANCHES) == EVENT_KINDS["branches"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "key version: expected 1, found 2"),
        ({"version": None}, "key version: expected 1, found null"),
        ({"nmae": "x"}, 'key nmae: unknown key "nmae"; did you mean "name"?'),
        ({"chains": [[1]]}, "key chains[0]: expected an index from 0 to 0, found 1"),
        ({"phases": []}, "key phases: a program needs at least one phase"),
        ({"functions": 3}, "key functions: expected an array"),
    ],
)
def test_a_mistake_in_a_program_file_is_named(tmp_path: Path, change: dict[str, object], message: str):
    path = tmp_path / "p.program.json"
    save_program(Program.from_functions("p", [Written("f", Fraction(1))], 1000), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ProgramError) as caught:
        load_program(path)
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"function": 1}, "key phases[0].segments[0].function: expected an index from 0 to 0, found 1"),
        ({"chain": -1}, "key phases[0].segments[0].chain: expected an index from 0 to 0, found -1"),
        ({"events": {"branchez": 1}}, 'unknown event "branchez"; did you mean "branches"?'),
        ({"cycles": 0}, "key phases: phase 0, segment 0: 0 cycles; at least 1 is needed"),
        ({"cycles": "many"}, 'key phases[0].segments[0].cycles: expected an integer, found "many"'),
        ({"events": {"branches": 10**18}}, "key phases: phase 0, segment 0: 1000000000000000000 events"),
    ],
)
def test_a_mistake_in_a_segment_is_named(tmp_path: Path, change: dict[str, object], message: str):
    path = tmp_path / "p.program.json"
    save_program(Program.from_functions("p", [Written("f", Fraction(1))], 1000), path)
    raw = json.loads(path.read_text())
    raw["phases"][0]["segments"][0] |= change
    path.write_text(json.dumps(raw))
    with pytest.raises(ProgramError) as caught:
        load_program(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("{}", "key version: expected 1")])
def test_what_is_no_program_is_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(ProgramError, match=message):
        load_program(path)


def test_the_command_writes_a_program_and_sums_it_up(tmp_path: Path, ftest: Program):
    output = tmp_path / "out.json"
    line = import_command(FTEST, output)
    assert line.startswith(f"{output}: {len(ftest.functions)} functions, {ftest.cycles:,} cycles, ")
    assert load_program(output) == ftest
    table = show_command(output)
    assert next(row for row in table.splitlines() if " % " in row).split()[1] == "qux"


def test_the_command_writes_nothing_when_the_profile_is_bad(tmp_path: Path):
    (tmp_path / "cut").write_bytes(FTEST.read_bytes()[:5000])
    with pytest.raises(ProgramError, match="truncated"):
        import_command(tmp_path / "cut", tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()
    with pytest.raises(UserError, match="cannot write: No such file"):
        import_command(FTEST, tmp_path / "absent" / "out.json")
