"""A guest's ``perf stat`` sessions: our text, CSV and JSON are what ``perf stat report`` prints."""

import json
import os
import re
from pathlib import Path

import pytest

from tests.vpmu.perfdata.runs import MIX, Run, run
from tests.vpmu.perfdata.tool import needs_perf, needs_perf_6_1, perf
from vpmu.perfdata.stat_rows import Reading

STATS = (
    """
version = 1
seed = 1
until = "500 ms"
"""
    + MIX
    + """
[[host]]
name = "server"
cpus = 6
[[vm]]
name = "cpus"
vcpus = 2
cpus = [0, 1]
thread = [{ name = "mix", count = 2 }]
[[vm.session]]
name = "all"
tool = "stat"
cpu = true
events = [
    "cpu-cycles", "instructions", "branches", "branch-misses", "cache-references", "cache-misses",
    "ref-cycles", "branch-misses:u", "branches:u", "cycles", "instructions:k",
]
[[vm]]
name = "threads"
vcpus = 2
cpus = [2, 3]
thread = [{ name = "mix", count = 2 }]
[[vm.session]]
name = "caches"
tool = "stat"
thread = "mix"
events = [
    "L1-dcache-loads", "L1-dcache-load-misses", "L1-dcache-stores", "L1-icache-load-misses", "dTLB-loads",
    "dTLB-load-misses", "dTLB-stores", "dTLB-store-misses", "iTLB-load-misses", "branch-loads",
]
[[vm]]
name = "lines"
vcpus = 2
cpus = [4, 5]
thread = [{ name = "mix", count = 2, work = 5 }]
[[vm.session]]
name = "cpu"
tool = "stat"
cpu = true
interval = "4 ms"
events = [
    "instructions", "instructions:u", "cycles", "branches:k", "branches:u", "branch-misses:u", "bus-cycles",
]
[[vm.session]]
name = "thread"
tool = "stat"
thread = "mix"
interval = "20 ms"
user_only = true
events = ["r00c4", "cpu/event=0xc4,umask=0,cmask=2,inv,edge/"]
[[vm]]
name = "never"
cpus = [0]
thread = [{ name = "mix", start = "600 ms" }]
[[vm.session]]
name = "counted"
tool = "stat"
thread = "mix"
events = ["instructions", "branch-misses", "branches"]
"""
)
SESSIONS = ("cpus.all", "threads.caches", "lines.cpu", "lines.thread", "never.counted")
PER_CPU = ("cpus.all", "lines.cpu")
STALLED = "/sys/bus/event_source/devices/cpu/events/stalled-cycles-frontend"
"""Where it exists, perf 6.1 has a second line behind instructions, with no number."""


@pytest.fixture(scope="module")
def stats(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("stats"), STATS, "legacy", "optimized")


def reported(where: Path, session: str, form: str, per_cpu: bool) -> str:
    """Return what ``perf stat report`` prints, which it does on standard error."""
    options = {"txt": (), "csv": ("-x", ","), "json": ("-j",)}[form]
    no_aggregation = ("-A",) if per_cpu else ()
    done = perf("stat", *options, "report", *no_aggregation, "-i", f"{session}.data", cwd=where)
    assert (done.returncode, done.stdout) == (0, "")
    return done.stderr


def without_title(text: str) -> str:
    """Drop the command, which perf stat report prints whole, and perf stat only from the program on."""
    return re.sub(r"stats for '.*'", "stats for", text)


def without_ratios(text: str) -> str:
    """Drop metrics: over intervals perf stat report averages them, where perf stat begins anew."""
    text = re.sub(r" #.*?(?=  \(|$)", lambda found: " " * len(found[0]), text, flags=re.MULTILINE)
    text = re.sub(r'"metric-value" : [0-9.]+', "", text)
    return re.sub(r"(,\d+\.00),[0-9.]*,.*", r"\1,,", text)


@needs_perf_6_1
@pytest.mark.skipif(os.path.exists(STALLED), reason="perf prints another line for this machine's PMU")
@pytest.mark.parametrize("design", ["legacy", "optimized"])
@pytest.mark.parametrize("form", ["txt", "csv", "json"])
@pytest.mark.parametrize(
    ("session", "per_cpu"), [*((s, False) for s in SESSIONS), *((s, True) for s in PER_CPU)]
)
def test_we_print_what_perf_prints(stats: Run, design: str, form: str, session: str, per_cpu: bool):
    where = stats.perf_directory(design)
    ours = without_title((where / f"{session}{'.per-cpu' if per_cpu else ''}.{form}").read_text())
    theirs = without_title(reported(where, session, form, per_cpu))
    if session.startswith("lines"):
        ours, theirs = without_ratios(ours), without_ratios(theirs)
    assert ours == theirs


def test_the_numbers_are_those_of_the_results(stats: Run):
    for design, result in stats.results.items():
        lines = (stats.perf_directory(design) / "threads.caches.json").read_text().splitlines()
        for line in map(json.loads, lines):
            rows = [row for row in result.counters if (row.vm, row.event) == ("threads", line["event"])]
            whole = Reading(
                sum(r.count for r in rows), sum(r.enabled_ns for r in rows), sum(r.running_ns for r in rows)
            )
            assert line["event-runtime"] == whole.running_ns
            assert line["counter-value"] == f"{whole.scaled}.000000"
            assert line["pcnt-running"] == 100 * whole.running_ns // whole.enabled_ns < 100


def test_the_lines_of_intervals_add_up_to_the_counts(stats: Run):
    result = stats.results["optimized"]
    text = (stats.perf_directory("optimized") / "lines.cpu.per-cpu.csv").read_text()
    lines = [line.split(",") for line in text.splitlines()]
    for event in ("instructions", "cycles"):
        both = [r for r in result.counters if (r.vm, r.event) == ("lines", event)]
        for cpu in (0, 1):
            mine = [line for line in lines if line[1] == f"CPU{cpu}" and line[4] == event]
            (row,) = [r for r in result.counters if (r.vm, r.vcpu, r.event) == ("lines", cpu, event)]
            # What ran is exact; a count is scaled line by line, so that each line is good for itself.
            assert sum(int(line[5]) for line in mine) == row.running_ns
            # A vCPU that was read once less than the other has an empty line.
            assert len(mine) == max(len(r.intervals) for r in both) + 1
    times = [line[0] for line in lines]
    assert times == sorted(times)


def test_a_measured_thread_has_its_own_title_and_time(stats: Run):
    where = stats.perf_directory("optimized")
    text = (where / "threads.caches.txt").read_text()
    assert text.startswith("\n Performance counter stats for './mix':\n\n")
    ends = [row.end_ns for row in stats.results["optimized"].threads if row.vm == "threads"]
    assert text.endswith(f" {max(ends) / 1e9:17.9f} seconds time elapsed\n\n")
    assert "for 'system wide'" in (where / "cpus.all.txt").read_text()


def test_what_never_ran_is_not_counted(stats: Run):
    where = stats.perf_directory("optimized")
    assert (where / "never.counted.csv").read_text() == (
        "<not counted>,,instructions,0,100.00,,\n"
        "<not counted>,,branch-misses,0,100.00,,\n"
        "<not counted>,,branches,0,100.00,,\n"
    )


def test_a_ratio_is_over_the_scaled_count(stats: Run):
    lines = (stats.perf_directory("optimized") / "cpus.all.json").read_text().splitlines()
    rows = {row["event"]: row for row in map(json.loads, lines)}
    counts = {event: float(row["counter-value"]) for event, row in rows.items()}
    for event, over, factor, unit in (
        # Of an event that was asked for twice, perf takes the mean.
        ("instructions", ("cpu-cycles", "cycles"), 1, "insn per cycle"),
        ("branch-misses", ("branches",), 100, "of all branches"),
        ("branch-misses:u", ("branches:u",), 100, "of all branches"),
        ("cache-misses", ("cache-references",), 100, "of all cache refs"),
    ):
        assert rows[event]["metric-unit"] == unit
        total = sum(counts[name] for name in over) / len(over)
        assert rows[event]["metric-value"] == pytest.approx(factor * counts[event] / total, abs=1e-6)


def test_an_intervals_ratio_is_of_its_own_counts(stats: Run):
    lines = (stats.perf_directory("optimized") / "lines.cpu.json").read_text().splitlines()
    counts: dict[float, dict[str, dict[str, float | str]]] = {}
    for line in map(json.loads, lines):
        counts.setdefault(line["interval"], {})[line["event"]] = line
    ratios = 0
    for rows in counts.values():
        instructions, cycles = rows["instructions"], rows["cycles"]
        if "<not counted>" in (instructions["counter-value"], cycles["counter-value"]):
            continue
        if float(cycles["counter-value"]):
            ratio = float(instructions["counter-value"]) / float(cycles["counter-value"])
            assert instructions["metric-value"] == pytest.approx(ratio, abs=1e-6)
            ratios += 1
    assert ratios > 10


@needs_perf
def test_perf_reads_the_header_of_a_stat_file(stats: Run):
    done = perf("report", "--header-only", "-i", "cpus.all.data", cwd=stats.perf_directory("optimized"))
    assert done.returncode == 0
    assert "# hostname : cpus" in done.stdout
