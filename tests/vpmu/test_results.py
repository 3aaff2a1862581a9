"""Results: the summary, the record files, and what a comparison finds."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpmu.errors import UserError
from vpmu.kernels.stats import ACTION_NAMES
from vpmu.records import (
    FILES,
    KIND_ACCESS,
    KIND_PMI,
    KIND_REQUEST,
    KIND_SAMPLE,
    KIND_SWITCH,
    KIND_THROTTLE,
    ROW_GROUP,
    RecordWriter,
    Words,
    columns_of,
    parse_keep,
)
from vpmu.results import (
    ActionRow,
    CounterRow,
    DesignResult,
    FunctionRow,
    IntervalRow,
    ProfileRow,
    RunResult,
    StoodStillRow,
    ThreadRow,
    check_out_directory,
    combined_digest,
    compare,
    read_results,
    summary_bytes,
    write_results,
)
from vpmu.tables import ACTIONS, comparison_table, design_tables, difference_table, lost_ns, print_run

DOCS = Path(__file__).parents[2] / "docs" / "results.md"
LEGACY_DIGEST, OPTIMIZED_DIGEST, NATIVE_DIGEST = "aa" * 32, "0b" * 32, "c1" * 32


def design(
    name: str,
    digest: str,
    *,
    run_ns: int = 10_000_000_000,
    finished: bool = True,
    enable_max_ns: int = 57_000_000,
    count: int = 1_000_000,
):
    return DesignResult(
        design=name,
        digest=digest,
        until_ns=20_000_000_000,
        end_ns=run_ns,
        actions=[
            ActionRow(action="rdpmc", calls=3, median_ns=1_100, p99_ns=1_200, max_ns=1_200, total_ns=3_400),
            ActionRow(
                action="enable global_ctrl",
                calls=74_000,
                median_ns=20_000_000,
                p99_ns=41_000_000,
                max_ns=enable_max_ns,
                total_ns=10**12,
            ),
        ],
        threads=[
            ThreadRow(
                vm="guest",
                vcpu=0,
                thread="ftest",
                kind="program",
                finished=finished,
                start_ns=0,
                end_ns=run_ns,
                run_ns=run_ns,
                cpu_ns=run_ns // 2,
                unmeasured_ns=run_ns // 4,
                switches=12,
            )
        ],
        counters=[
            CounterRow(
                vm="guest",
                vcpu=0,
                session="stat",
                event="branches",
                count=count,
                enabled_ns=400,
                running_ns=100,
                truth=1_000_000,
                intervals=[IntervalRow(at_ns=100, count=7, enabled_ns=100, running_ns=50)],
            )
        ],
        profiles=[
            ProfileRow(
                vm="guest",
                vcpu=0,
                session="record",
                samples=3,
                functions=[
                    FunctionRow(name="foo", samples=1, truth_cycles=25),
                    FunctionRow(name="bar", samples=2, truth_cycles=75),
                ],
            )
        ],
        stood_still=[StoodStillRow(vm="guest", vcpu=0, pmc="fixed1", ns=5_000, events=14_000)],
        accounting={"guest": 3, "host perf": 1},
        host={"exits": 12},
        unfinished=[] if finished else ["guest/ftest"],
    )


def run_of(*designs: DesignResult, **more: Any):
    return RunResult.of("ftest", 7, list(designs), **more)


def rendered(printable: object):
    from rich.console import Console

    console = Console(width=160, highlight=False)
    with console.capture() as capture:
        console.print(printable)
    return capture.get()


# -- digests -----------------------------------------------------------------------------------------------


def test_a_runs_digest_is_its_only_designs_or_the_hash_of_all_in_name_order():
    assert combined_digest({"legacy": LEGACY_DIGEST}) == LEGACY_DIGEST
    both = {"optimized": OPTIMIZED_DIGEST, "legacy": LEGACY_DIGEST}
    expected = hashlib.sha256(b"\xaa" * 32 + b"\x0b" * 32).hexdigest()
    assert combined_digest(both) == expected
    run = run_of(design("optimized", OPTIMIZED_DIGEST), design("legacy", LEGACY_DIGEST))
    assert (run.digest, list(run.designs)) == (expected, ["optimized", "legacy"])


# -- summary.json ------------------------------------------------------------------------------------------


def test_a_summary_is_read_back_as_it_was_written(tmp_path: Path):
    run = run_of(design("legacy", LEGACY_DIGEST), complete=False, reason="interrupted at 1.5 s")
    write_results(tmp_path / "out", run, timing={"wall_s": 1.25})
    assert read_results(tmp_path / "out") == run
    assert json.loads((tmp_path / "out" / "timing.json").read_text()) == {"wall_s": 1.25}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["summary.json", "timing.json"]


def test_a_summary_has_the_documented_head_and_the_same_bytes_again():
    run = run_of(design("legacy", LEGACY_DIGEST))
    summary = json.loads(summary_bytes(run))
    assert (summary["version"], summary["digest"], summary["complete"]) == (1, LEGACY_DIGEST, True)
    assert summary["designs"]["legacy"]["digest"] == LEGACY_DIGEST
    assert summary["designs"]["legacy"]["counters"][0]["count"] == 1_000_000
    assert summary_bytes(run_of(design("legacy", LEGACY_DIGEST))) == summary_bytes(run)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "cannot read: No such file or directory"),
        (b'{"version": 2}', "key version: results version 2 is not supported (known: 1)"),
        (b'{"version": 1', "damaged: Input data was truncated"),
        (b'{"version": 1}', "damaged: Object missing required field `digest`"),
    ],
)
def test_results_that_cannot_be_read_are_named(tmp_path: Path, content: bytes | None, line: str):
    path = tmp_path / "summary.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_results(tmp_path)
    assert str(caught.value) == f"{path}: {line}"


def test_only_a_directory_of_results_is_written_over(tmp_path: Path):
    assert check_out_directory(tmp_path / "new") == tmp_path / "new"
    assert check_out_directory(tmp_path) == tmp_path
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r'^--out: holds files but no summary.json, so it is left alone "'):
        check_out_directory(tmp_path)
    with pytest.raises(UserError, match=r'^--out: not a directory "'):
        check_out_directory(tmp_path / "thesis.tex")
    (tmp_path / "summary.json").write_text("{}")
    assert check_out_directory(tmp_path) == tmp_path


# -- record files ------------------------------------------------------------------------------------------


def records_of(*rows: list[int]):
    return np.array(rows, dtype=np.uint64).reshape(-1, 8)


def test_records_go_to_the_file_of_their_kind(tmp_path: Path):
    access = [KIND_ACCESS | 2 << 8 | 5 << 16, 100, 3, 0, 0x38F, 2**64 - 1, 1_100, 9]
    request = [KIND_REQUEST, 150, 3, 1, 0, 1, 2, 0]
    switch = [KIND_SWITCH, 200, 3, 2, 0, 0, 2_500, 0]
    sample = [KIND_SAMPLE, 300, 3, 3, 0x401000, 700_000, 4 | 6 << 32, 17 | 1 << 16 | 2 << 24 | 3 << 48]
    throttle = [KIND_THROTTLE, 400, 3, 4, 0, 0, 0, 0]
    pmi = [KIND_PMI, 250, 3, 5, 0, 0, 0, 0]
    with RecordWriter(tmp_path, "legacy", {"accesses", "samples", "switches", "pmis"}) as writer:
        writer.append(records_of(access, switch, sample, request, throttle, pmi))
        assert not list(tmp_path.glob("*/*.parquet"))  # nothing has its final name before it is whole
    assert writer.rows == dict.fromkeys(
        ("accesses", "requests", "pmis", "switches", "samples", "throttles"), 1
    )
    assert pq.read_table(tmp_path / "legacy" / "accesses.parquet").to_pylist() == [
        {
            "at_ns": 100,
            "actor": 3,
            "sequence": 0,
            "op": 5,
            "outcome": 2,
            "register": 0x38F,
            "value": 2**64 - 1,
            "cost_ns": 1_100,
            "aux": 9,
        }
    ]
    assert pq.read_table(tmp_path / "legacy" / "samples.parquet").to_pylist() == [
        {
            "at_ns": 300,
            "actor": 3,
            "sequence": 3,
            "ip": 0x401000,
            "period": 700_000,
            "function": 4,
            "chain": 6,
            "tid": 17,
            "session": 2,
            "event": 1,
            "cpl": 3,
        }
    ]


def test_only_what_is_kept_is_written_and_leftovers_go(tmp_path: Path):
    (tmp_path / "legacy").mkdir()
    (tmp_path / "legacy" / "accesses.parquet").write_text("of an earlier run")
    with RecordWriter(tmp_path, "legacy") as writer:
        writer.append(records_of([KIND_ACCESS, 0, 0, 0, 0, 0, 0, 0]))
    assert sorted(path.name for path in (tmp_path / "legacy").iterdir()) == [
        "samples.parquet",
        "throttles.parquet",
    ]
    assert writer.rows["samples"] == 0


def test_files_do_not_depend_on_how_records_arrive(tmp_path: Path):
    rows = np.zeros((2 * ROW_GROUP + 10, 8), dtype=np.uint64)
    rows[:, 0] = KIND_SWITCH
    rows[:, 1] = np.arange(len(rows))
    for name, cuts in (("one", [len(rows)]), ("many", [1, 5_000, ROW_GROUP, len(rows)])):
        with RecordWriter(tmp_path, name, {"switches"}) as writer:
            start = 0
            for cut in cuts:
                writer.append(rows[start:cut])
                start = cut
    one, many = ((tmp_path / name / "switches.parquet") for name in ("one", "many"))
    assert one.read_bytes() == many.read_bytes()
    assert pq.ParquetFile(one).metadata.num_row_groups == 3
    assert pq.read_table(one)["at_ns"].to_pylist() == list(range(len(rows)))


@given(words=st.lists(st.integers(0, 2**64 - 1), min_size=7, max_size=7))
def test_any_word_comes_back(tmp_path_factory: pytest.TempPathFactory, words: list[int]):
    directory = tmp_path_factory.mktemp("records")
    words[1] %= 2**32  # an actor's index
    with RecordWriter(directory, "d", {"accesses"}) as writer:
        writer.append(records_of([KIND_ACCESS, *words]))
    row = pq.read_table(directory / "d" / "accesses.parquet").to_pylist()[0]
    names = ("at_ns", "actor", "sequence", "register", "value", "cost_ns", "aux")
    assert [row[name] for name in names] == words


def _write_and_raise(writer: RecordWriter, rows: Words, error: BaseException) -> None:
    with writer:
        writer.append(rows)
        raise error


def test_a_failure_leaves_no_file_and_ctrl_c_keeps_them(tmp_path: Path):
    row = records_of([KIND_SAMPLE, 0, 0, 0, 0, 0, 0, 0])
    rows = np.repeat(row, ROW_GROUP, axis=0)
    with pytest.raises(RuntimeError):
        _write_and_raise(RecordWriter(tmp_path, "failed"), rows, RuntimeError())
    assert list((tmp_path / "failed").iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        _write_and_raise(RecordWriter(tmp_path, "stopped"), rows, KeyboardInterrupt())
    assert pq.read_metadata(tmp_path / "stopped" / "samples.parquet").num_rows == ROW_GROUP


def test_records_of_no_kind_or_shape_are_refused(tmp_path: Path):
    writer = RecordWriter(tmp_path, "d")
    with pytest.raises(ValueError, match="no record is of kind 9"):
        writer.append(records_of([9, 0, 0, 0, 0, 0, 0, 0]))
    with pytest.raises(ValueError, match=r"must be uint64\[n, 8\]"):
        writer.append(np.zeros(8, dtype=np.uint64))
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.append(records_of([KIND_SAMPLE, 0, 0, 0, 0, 0, 0, 0]))


def test_writing_results_closes_records_and_removes_those_of_other_designs(tmp_path: Path):
    old = RecordWriter(tmp_path, "legacy")
    write_results(tmp_path, run_of(design("legacy", LEGACY_DIGEST)), {"legacy": old})
    new = RecordWriter(tmp_path, "optimized")
    write_results(tmp_path, run_of(design("optimized", OPTIMIZED_DIGEST)), {"optimized": new})
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")) == [
        "optimized/samples.parquet",
        "optimized/throttles.parquet",
    ]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("samples", {"samples"}),
        ("accesses, pmis", {"accesses", "pmis"}),
        ("all", {"samples", "accesses", "switches", "pmis"}),
        ("none", set()),
    ],
)
def test_keep_chooses_kinds(text: str, kept: set[str]):
    assert parse_keep(text) == kept


def test_an_unknown_kind_to_keep_is_named():
    with pytest.raises(UserError) as caught:
        parse_keep("samples,acceses")
    assert str(caught.value) == (
        '--keep: unknown choice "acceses"; did you mean "accesses"?'
        " (known: samples, accesses, switches, pmis, all, none)"
    )


# -- comparison --------------------------------------------------------------------------------------------


def test_equal_results_compare_as_the_same(tmp_path: Path):
    for name in ("a", "b"):
        write_results(tmp_path / name, run_of(design("legacy", LEGACY_DIGEST)), timing={"wall_s": 1.0})
    assert compare(tmp_path / "a", tmp_path / "b").same


def test_a_comparison_finds_every_figure_that_differs(tmp_path: Path):
    write_results(tmp_path / "a", run_of(design("legacy", LEGACY_DIGEST)))
    other = design("legacy", OPTIMIZED_DIGEST, enable_max_ns=1, count=999_999)
    other.profiles[0].functions[0].samples = 5
    other.counters[0].intervals[0].count = 8
    other.stood_still.clear()
    write_results(tmp_path / "b", run_of(other))
    comparison = compare(tmp_path / "a", tmp_path / "b")
    assert not comparison.same
    found = {(d.table, d.row, d.figure): (d.left, d.right) for d in comparison.differences}
    assert found == {
        ("run", "", "digest"): (LEGACY_DIGEST, OPTIMIZED_DIGEST),
        ("actions", "enable global_ctrl", "max_ns"): (57_000_000, 1),
        ("counters", "guest 0 stat branches", "count"): (1_000_000, 999_999),
        ("intervals", "guest 0 stat branches 100", "count"): (7, 8),
        ("functions", "guest 0 record foo", "samples"): (1, 5),
        ("stood_still", "guest 0 fixed1", "ns"): (5_000, None),
        ("stood_still", "guest 0 fixed1", "events"): (14_000, None),
    }
    text = rendered(difference_table(comparison))
    assert "57,000,000 ns" in text
    assert "guest 0 record foo" in text


# -- tables ------------------------------------------------------------------------------------------------


def test_a_designs_tables_show_its_figures_with_units():
    text = "".join(rendered(table) for table in design_tables(design("legacy", LEGACY_DIGEST)))
    lines = text.splitlines()
    enable = next(line for line in lines if line.split()[:2] == ["enable", "global_ctrl"])
    assert enable.split()[2:] == ["74,000", "20.0", "ms", "41.0", "ms", "57.0", "ms", "1,000", "s"]
    # In the order of the tables, not of the result.
    assert text.index("enable global_ctrl") < text.index("rdpmc")
    thread = next(line for line in lines if "guest/ftest" in line)
    assert thread.split() == ["guest/ftest", "yes", "10.0", "s", "5.00", "s", "2.50", "s", "25.00%", "12"]
    counter = next(line for line in lines if "branches" in line)
    assert counter.split() == ["guest/stat", "branches", "1,000,000", "1,000,000", "0", "25.00%"]
    bar = next(line for line in lines if line.split()[:1] == ["bar"])
    assert bar.split() == ["bar", "2", "66.67%", "75.00%"]
    assert next(line for line in lines if "fixed1" in line).split()[1:] == ["fixed1", "5.00", "us", "14,000"]


def test_the_comparison_shows_time_lost_against_native():
    run = run_of(
        design("legacy", LEGACY_DIGEST, run_ns=15_000_000_000),
        design("optimized", OPTIMIZED_DIGEST, run_ns=10_100_000_000),
        design("native", NATIVE_DIGEST, run_ns=10_000_000_000),
    )
    rows = {
        line.strip().rsplit("  ", 3)[0].strip(): line for line in rendered(comparison_table(run)).splitlines()
    }
    lost = next(line for line in rows.values() if "lost against native" in line)
    assert lost.split()[3:] == ["5.00", "s", "100", "ms", "-"]
    share = next(line for line in rows.values() if "lost, share of run time" in line)
    assert share.split()[5:] == ["50.00%", "1.00%", "-"]
    worst = next(line for line in rows.values() if "lost, of the worst design" in line)
    assert worst.split()[5:] == ["100.00%", "2.00%", "-"]


def test_time_lost_is_unknown_where_a_program_did_not_finish():
    native = design("native", NATIVE_DIGEST)
    assert lost_ns(design("legacy", LEGACY_DIGEST, finished=False), native) is None
    assert lost_ns(design("legacy", LEGACY_DIGEST, run_ns=10_000_000_005), native) == 5


def test_a_run_is_printed_with_its_digest_and_what_is_missing(capsys: pytest.CaptureFixture[str]):
    from rich.console import Console

    run = run_of(design("legacy", LEGACY_DIGEST, finished=False), complete=False, reason="interrupted at 3 s")
    print_run(run, Console(width=120, highlight=False))
    text = capsys.readouterr().out
    assert "legacy: not finished by 20.0 s: guest/ftest" in text
    assert "incomplete: interrupted at 3 s" in text
    assert f"digest {LEGACY_DIGEST}" in text
    assert "\x1b" not in text  # plain text where there is no terminal


def test_long_tables_are_cut_and_say_so():
    many = design("legacy", LEGACY_DIGEST)
    many.threads *= 100
    tables = list(design_tables(many))
    assert "and 60 more, all in summary.json" in rendered(tables[1])


def test_the_tables_know_every_action_that_the_kernels_measure():
    assert ACTIONS == ACTION_NAMES


# -- documentation -----------------------------------------------------------------------------------------


def structs_below(kind: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    yield kind
    for item in msgspec.structs.fields(kind):
        for part in getattr(item.type, "__args__", ()):
            if isinstance(part, type) and issubclass(part, msgspec.Struct):
                yield from structs_below(part)


def test_every_key_and_column_is_documented():
    documented = DOCS.read_text()
    structs = list(structs_below(RunResult))
    assert len(structs) == 12
    for struct in structs:
        for key in struct.__struct_fields__:
            assert f"`{key}`" in documented, f"{struct.__name__}: {key}"
    for kind in FILES:
        assert f"`{FILES[kind]}.parquet`" in documented
        for name, *_ in columns_of(kind):
            assert f"`{name}`" in documented
    for action in ACTIONS:
        assert f"`{action}`" in documented
