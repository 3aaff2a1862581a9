"""A guest's ``perf record`` sessions as perf.data: the real perf shows what the run's results say."""

import re
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.vpmu.perfdata.reader import PerfData, read_elf, read_perf_data
from tests.vpmu.perfdata.runs import FLEET, MIX, Run, Sampled, run, shares
from tests.vpmu.perfdata.tool import needs_perf, perf_says

DESIGNS = ("legacy", "optimized", "native")
FILES = [(vm, session) for vm in ("guest.0", "guest.1") for session in ("all", "one", "late")]
EVENTS = {
    "all": ("cpu-cycles", "branches", "instructions:u"),
    "one": ("cpu-cycles",),
    "late": ("cpu-cycles",),
}

THROTTLED = (
    """
version = 1
seed = 1
until = "60 ms"
"""
    + MIX
    + """
[[host]]
name = "server"
[[vm]]
name = "guest"
[[vm.thread]]
name = "mix"
work = 2
[[vm.session]]
name = "fast"
tool = "record"
thread = "mix"
period = 10000
events = ["cpu-cycles", "branches"]
"""
)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("fleet"), FLEET, *DESIGNS)


@pytest.fixture(scope="module")
def throttled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("throttled"), THROTTLED, "native")


def report_rows(text: str) -> dict[str, list[tuple[str, ...]]]:
    """Return the rows of ``perf report -t '|'`` by event, fields stripped."""
    rows: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    event = ""
    for line in text.splitlines():
        if found := re.match(r"# Samples: .* of event '(.*)'", line):
            event = found[1]
        elif line and not line.startswith("#"):
            rows[event].append(tuple(field.strip() for field in line.split("|")))
    return rows


def percentages(rows: list[Sampled], event: str) -> list[tuple[str, ...]]:
    """Return what ``perf report`` has to print: share of the periods, samples, period, comm, dso, symbol."""
    found = shares(rows, event)
    total = sum(period for _, period in found.values())
    return sorted(
        (
            f"{100.0 * period / total:.2f}%",
            str(count),
            str(period),
            comm,
            dso,
            f"[{'k' if dso.startswith('[kernel') else '.'}] {symbol}",
        )
        for (comm, dso, symbol), (count, period) in found.items()
    )


@needs_perf
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize(("vm", "session"), FILES)
def test_perf_report_prints_our_shares(fleet: Run, design: str, vm: str, session: str):
    where = fleet.perf_directory(design)
    arguments = ("--stdio", "--no-children", "-g", "none", "-i", f"{vm}.{session}.data", "--symfs", "symfs")
    fields = ("-F", "overhead,sample,period,comm,dso,sym", "-t", "|", "--percent-limit", "0")
    printed = report_rows(perf_says("report", *arguments, *fields, cwd=where))
    rows = fleet.samples(design, vm, session)
    assert len(rows) == sum(
        p.samples for p in fleet.results[design].profiles if (p.vm, p.session) == (vm, session)
    )
    for event in EVENTS[session]:
        assert sorted(printed[event]) == percentages(rows, event)


@needs_perf
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("vm", ["guest.0", "guest.1"])
def test_the_plain_report_prints_our_shares(fleet: Run, design: str, vm: str):
    where = fleet.perf_directory(design)
    command = ("report", "-q", "--stdio", "--no-children", "-g", "none", "-i", f"{vm}.all.data")
    text = perf_says(*command, "--symfs", "symfs", "--sort", "comm,dso,sym", cwd=where)
    lines = [tuple(re.split(r"\s{2,}", line.strip())) for line in text.splitlines() if line.strip()]
    rows = fleet.samples(design, vm, "all")
    wanted = [row for event in EVENTS["all"] for row in percentages(rows, event)]
    assert sorted(lines) == sorted((share, comm, dso, symbol) for share, _, _, comm, dso, symbol in wanted)


@needs_perf
@pytest.mark.parametrize(("vm", "session"), FILES)
def test_perf_script_prints_every_sample(fleet: Run, vm: str, session: str):
    where = fleet.perf_directory("optimized")
    fields = "comm,cpu,time,event,period,ip,sym,dso"
    arguments = ("-i", f"{vm}.{session}.data", "--symfs", "symfs", "--ns", "-G", "-F", fields)
    printed = []
    for line in perf_says("script", *arguments, cwd=where).splitlines():
        found = re.fullmatch(
            r"\s*(\S+) +\[(\d+)\] +(\d+)\.(\d{9}): +(\d+) +(\S+?): "
            r"+[0-9a-f]+ (.*?)(?:\+0x[0-9a-f]+)? \((.*)\)",
            line,
        )
        assert found, line
        comm, cpu, seconds, ns, period, event, symbol, dso = found.groups()
        at_ns = int(seconds) * 10**9 + int(ns)
        printed.append((at_ns, int(cpu), comm, event, dso.rpartition("/")[2], symbol, int(period)))
    rows = fleet.samples("optimized", vm, session)
    assert sorted(printed) == sorted(
        (row.at_ns, row.cpu, row.comm, row.event, row.dso, row.symbol, row.period) for row in rows
    )
    assert [row[0] for row in printed] == sorted(row.at_ns for row in rows)


@needs_perf
def test_perf_script_prints_the_call_chains(fleet: Run):
    where = fleet.perf_directory("optimized")
    text = perf_says(
        "script", "-i", "guest.0.one.data", "--symfs", "symfs", "-F", "time,ip,sym", "--ns", cwd=where
    )
    blocks = text.strip().split("\n\n")
    chains = [tuple(line.split(None, 1)[1] for line in block.splitlines()[1:]) for block in blocks]
    rows = fleet.samples("optimized", "guest.0", "one")
    assert chains == [row.chain for row in rows]
    assert max(map(len, chains)) > 3


@needs_perf
@pytest.mark.parametrize("design", DESIGNS)
def test_perf_reads_the_header(fleet: Run, design: str):
    where = fleet.perf_directory(design)
    text = perf_says("report", "--header-only", "-i", "guest.1.all.data", cwd=where)
    for line in (
        "# hostname : guest.1",
        "# arch : x86_64",
        "# nrcpus online : 2",
        "# cpudesc : Intel(R) Xeon(R) CPU E5-2699 v4 @ 2.20GHz",
        "# cmdline : perf record -e cpu-cycles -e branches -e instructions:u -c 40000 -a ",
    ):
        assert line in text
    events = re.findall(r"# event : name = (.*?), , id = \{ (.*?) \}", text)
    assert events == [("cpu-cycles", "1, 2"), ("branches", "3, 4"), ("instructions:u", "5, 6")]


@needs_perf
@pytest.mark.parametrize(("vm", "session"), FILES)
def test_perf_accepts_every_record(fleet: Run, vm: str, session: str):
    # Raw records, statistics and tasks: nothing is out of order or unknown.
    where = fleet.perf_directory("native")
    found = perf_says("report", "--stats", "-i", f"{vm}.{session}.data", cwd=where)
    mine = read_perf_data(where / f"{vm}.{session}.data")
    for name in ("SAMPLE", "COMM", "MMAP2", "FORK", "EXIT"):
        events = re.search(rf"^ +{name} events: +(\d+)", found, re.MULTILINE)
        assert int(events[1] if events else 0) == len(mine.of(name.lower()))


@needs_perf
def test_build_ids_are_those_of_the_images(fleet: Run):
    where = fleet.perf_directory("optimized")
    lines = perf_says("buildid-list", "-i", "guest.0.one.data", cwd=where).splitlines()
    listed = {name: build_id for build_id, name in (line.split(" ", 1) for line in lines)}
    assert set(listed) == {
        "[kernel.kallsyms]",
        *(f"/{path.relative_to(where / 'symfs')}" for path in (where / "symfs/opt/ftest").iterdir()),
    }
    for name, build_id in listed.items():
        path = where / "symfs" / ("vmlinux" if name.startswith("[") else name[1:])
        assert read_elf(path).build_id.hex() == build_id


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize(("vm", "session"), FILES)
def test_the_file_holds_the_samples_of_the_results(fleet: Run, design: str, vm: str, session: str):
    found = read_perf_data(fleet.perf_directory(design) / f"{vm}.{session}.data")
    event_of = {number: index for index, attr in enumerate(found.attrs) for number in attr.ids}
    comms = {0: "swapper"} | {each["tid"]: each["comm"] for each in found.of("comm")}
    mine = [
        (
            s["time"],
            s["cpu"],
            s["ip"],
            s["period"],
            EVENTS[session][event_of[s.get("id", 1)]],
            comms[s["tid"]],
        )
        for s in found.of("sample")
    ]
    rows = fleet.samples(design, vm, session)
    assert mine == [(r.at_ns, r.cpu, r.ip, r.period, r.event, r.comm) for r in rows]
    assert [1 if s["misc"] == 1 else 0 for s in found.of("sample")] == [
        int(r.symbol == "[kernel]") for r in rows
    ]


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize(("vm", "session"), FILES)
def test_records_are_in_order_and_known_before_they_are_needed(
    fleet: Run, design: str, vm: str, session: str
):
    found = read_perf_data(fleet.perf_directory(design) / f"{vm}.{session}.data")
    known, mapped, forked, last, flushed = {0}, set(), set(), 0, 0
    for each in found.records:
        if each["name"] == "round":
            flushed = last
            continue
        assert each["time"] >= flushed
        last = max(last, each["time"])
        if each["name"] == "fork":
            forked.add(each["tid"])
        elif each["name"] == "comm":
            known.add(each["tid"])
        elif each["name"] == "mmap2":
            mapped.add(each["pid"])
        elif each["name"] == "sample":
            assert each["tid"] in known
            assert each["tid"] == 0 or each["pid"] in mapped
    assert forked == known - {0, 1}


def test_threads_begin_and_end_when_they_do(fleet: Run):
    for design, result in fleet.results.items():
        found = read_perf_data(fleet.perf_directory(design) / "guest.0.all.data")
        comms = {each["tid"]: each["comm"] for each in found.of("comm")}
        ends = {comms[each["tid"]]: each["own_time"] for each in found.of("exit")}
        threads = [row for row in result.threads if row.vm == "guest.0"]
        assert ends == {row.thread: row.end_ns for row in threads if row.finished}
        begins = {comms[each["tid"]]: each["own_time"] for each in found.of("fork")}
        assert begins == {row.thread: 30_000_000 if row.thread == "ftest" else 0 for row in threads}
        mixes = [each for each in found.of("fork") if comms[each["tid"]].startswith("mix")]
        assert len({each["pid"] for each in mixes}) == 1
        assert len({each["tid"] for each in mixes}) == 3


def test_a_session_that_stops_samples_and_notes_no_more(fleet: Run):
    found = read_perf_data(fleet.perf_directory("native") / "guest.0.late.data")
    times = [each["time"] for each in found.of("sample")]
    assert len(times) > 20
    assert min(times) >= 5_000_000
    assert max(times) <= 15_000_000
    assert found.of("exit") == []
    assert "ftest" not in {each["comm"] for each in found.of("comm")}


def test_attrs_say_how_it_was_sampled(fleet: Run):
    where = fleet.perf_directory("native")
    cycles, branches, instructions = read_perf_data(where / "guest.0.all.data").attrs
    hardware = [(attr.kind, attr.config, attr.rate) for attr in (cycles, branches, instructions)]
    assert hardware == [(0, 0, 40_000), (0, 4, 40_000), (0, 1, 40_000)]
    exclude_user, exclude_kernel, freq = 1 << 4, 1 << 5, 1 << 10
    assert [attr.flags & (exclude_user | exclude_kernel) for attr in (cycles, branches, instructions)] == [
        0,
        0,
        exclude_kernel,
    ]
    (late,) = read_perf_data(where / "guest.0.late.data").attrs
    assert (late.rate, late.flags & freq, late.flags & exclude_kernel) == (5_000, freq, exclude_kernel)


def throttles_of(found: PerfData) -> list[tuple[int, str, int]]:
    return [(each["own_time"], each["name"], each["event"]) for each in found.of("throttle", "unthrottle")]


def test_throttles_are_those_of_the_results_and_keep_samples_away(throttled: Run):
    found = read_perf_data(throttled.perf_directory("native") / "guest.fast.data")
    events = throttles_of(found)
    rows = pq.read_table(throttled.out / "native" / "throttles.parquet").to_pylist()
    names = ("unthrottle", "throttle")
    assert events == [(r["at_ns"], names[r["op"]], 1 + (r["register"] & 0xFF)) for r in rows]
    assert (
        sum(name == "throttle" for _, name, _ in events) == throttled.results["native"].profiles[0].throttled
    )
    # A tick of 250 Hz, 100,000 samples a second at most: throttled with the 400th sample or soon after.
    for number in (1, 2):
        mine = [(at, name) for at, name, event in events if event == number]
        assert [name for _, name in mine[:4]] in ([], ["throttle", "unthrottle", "throttle", "unthrottle"])
        times = [s["time"] for s in found.of("sample") if s["id"] == number]
        for (begin, _), (end, _) in zip(mine[::2], mine[1::2], strict=False):
            assert not any(begin < at < end for at in times)


@needs_perf
def test_perf_takes_throttles(throttled: Run):
    where = throttled.perf_directory("native")
    text = perf_says("report", "--stats", "-i", "guest.fast.data", cwd=where)
    found = read_perf_data(where / "guest.fast.data")
    for name in ("THROTTLE", "UNTHROTTLE"):
        (events,) = re.findall(rf"^ +{name} events: +(\d+)", text, re.MULTILINE)
        assert int(events) == len(found.of(name.lower())) > 0


def test_files_do_not_depend_on_processes(tmp_path: Path):
    short = FLEET.replace('until = "2 s"', 'until = "20 ms"').replace("30 ms", "8 ms")
    alone = run(tmp_path / "alone", short, "optimized")
    ways: dict[str, dict[str, object]] = {
        "workers": {"workers": 2, "place": "spread"},
        "messages": {"workers": 3, "messages": True},
    }
    for name, options in ways.items():
        other = run(tmp_path / name, short, "optimized", **options)
        assert other.digest == alone.digest
        left, right = alone.perf_directory("optimized"), other.perf_directory("optimized")
        files = sorted(path.relative_to(left) for path in left.rglob("*") if path.is_file())
        assert files == sorted(path.relative_to(right) for path in right.rglob("*") if path.is_file())
        assert [p for p in files if (left / p).read_bytes() != (right / p).read_bytes()] == []


def test_perf_data_changes_no_result(tmp_path: Path, throttled: Run):
    import trio

    from vpmu.execution import execute
    from vpmu.options import RunOptions

    plain = trio.run(execute, throttled.scenario, RunOptions(designs=("native",)), None)
    assert plain.digest == throttled.digest
