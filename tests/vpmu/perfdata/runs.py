"""Runs that the tests look at, and what their own results say: every sample with its names."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import trio

from vpmu.build import load_programs
from vpmu.execution import execute
from vpmu.options import RunOptions
from vpmu.results import DesignResult
from vpmu.scenario import Scenario, Vm, load_scenario

FTEST = Path(__file__).parents[3] / "examples" / "ftest" / "callgrind.out.ftest"
KERNEL = 0xFFFFFFFF

MIX = """
[[program]]
name = "mix"
cycles = 56_000_000
[[program.functions]]
name = "foo"
share = 3
ipc = 1.6
branches = 0.2
branch_misses = 0.002
cache_references = 0.01
cache_misses = 0.001
l1_dcache_loads = 0.3
l1_dcache_stores = 0.1
l1_dcache_load_misses = 0.01
l1_icache_load_misses = 0.001
dtlb_load_misses = 0.001
itlb_load_misses = 0.0001
[[program.functions]]
name = "bar"
share = 1
ipc = 0.7
branches = 0.1
dtlb_load_misses = 0.004
"""

FLEET = (
    f"""
version = 1
seed = 3
until = "2 s"
[[program]]
name = "ftest"
file = "{FTEST}"
"""
    + MIX
    + """
[[host]]
name = "server"
cpus = 3
[[vm]]
name = "guest"
count = 2
vcpus = 2
[[vm.thread]]
name = "mix"
program = "mix"
count = 3
[[vm.thread]]
name = "ftest"
program = "ftest"
vcpu = 1
start = "30 ms"
[[vm.thread]]
name = "daemon"
kind = "sleeper"
wakeups = "500/s"
burst = "100 us"
[[vm.session]]
name = "all"
tool = "record"
cpu = true
period = 40000
events = ["cpu-cycles", "branches", "instructions:u"]
[[vm.session]]
name = "one"
tool = "record"
thread = "ftest"
frequency = 9000
[[vm.session]]
name = "late"
tool = "record"
cpu = true
vcpu = 0
frequency = 5000
user_only = true
start = "5 ms"
stop = "15 ms"
"""
)
"""Several VMs, vCPUs, events, threads and sessions; a thread that starts later; with and without calls."""


@dataclass(frozen=True)
class Sampled:
    """A sample as the results' Parquet file has it, with the names that its numbers stand for."""

    at_ns: int
    cpu: int
    comm: str
    event: str
    dso: str
    symbol: str
    period: int
    ip: int
    chain: tuple[str, ...]


@dataclass
class Run:
    """A finished run: the scenario, its results, and where its files are."""

    scenario: Scenario
    results: dict[str, DesignResult]
    out: Path
    digest: str
    cache: dict[str, list[tuple[str, str, Sampled]]] = field(default_factory=dict)

    def perf_directory(self, design: str) -> Path:
        return self.out / design / "perf"

    def samples(self, design: str, vm: str, session: str) -> list[Sampled]:
        """Return a session's samples, those of its vCPUs by time."""
        if design not in self.cache:
            self.cache[design] = list(_read(self.scenario, self.out / design / "samples.parquet"))
        mine = [row for v, s, row in self.cache[design] if (v, s) == (vm, session)]
        return sorted(mine, key=lambda row: (row.at_ns, row.cpu))


def run(tmp: Path, text: str, *designs: str, **options: object) -> Run:
    """Run a scenario with --perf-data."""
    tmp.mkdir(parents=True, exist_ok=True)
    path = tmp / "scenario.toml"
    path.write_text(text)
    scenario = load_scenario(path, [])
    choices = RunOptions(designs=designs, out=tmp / "out", perf_data=True, **options)  # type: ignore[arg-type]
    result = trio.run(execute, scenario, choices, None)
    return Run(scenario, result.designs, tmp / "out", result.digest)


def shares(rows: list[Sampled], event: str) -> dict[tuple[str, str, str], tuple[int, int]]:
    """Return (comm, dso, symbol) -> (samples, sum of periods) of one event."""
    counts: Counter[tuple[str, str, str]] = Counter()
    periods: Counter[tuple[str, str, str]] = Counter()
    for row in rows:
        if row.event == event:
            counts[row.comm, row.dso, row.symbol] += 1
            periods[row.comm, row.dso, row.symbol] += row.period
    return {key: (counts[key], periods[key]) for key in counts}


def threads_of(vm: Vm, vcpu: int) -> list[tuple[str, str]]:
    """Return (name, program) of a vCPU's threads, in the order of their numbers."""
    return [
        (name, thread.program or "[spin]")
        for thread in vm.threads
        for index, name in enumerate(thread.copies())
        if thread.vcpu_of_copy(index, vm.vcpus) == vcpu
    ]


def _read(scenario: Scenario, path: Path):
    programs = load_programs(scenario)
    guests = [(vm, name, vcpu) for vm in scenario.vms for name in vm.copies() for vcpu in range(vm.vcpus)]
    for row in pq.read_table(path).to_pylist():
        vm, name, vcpu = guests[row["actor"]]
        threads = threads_of(vm, vcpu)
        names = {thread for thread, _ in threads}
        here = [s for s in vm.sessions if (s.thread in names if s.thread else s.vcpu in (None, vcpu))]
        if row["session"] >= len(here):
            continue  # the system's own
        session = here[row["session"]]
        comm, program = ("swapper", "") if row["tid"] == 0 else threads[row["tid"] - 1]
        dso, symbol = "[kernel.kallsyms]", "[kernel]"
        chain: tuple[str, ...] = (symbol,)
        if row["function"] != KERNEL:
            functions = programs[program].functions
            function = functions[row["function"]]
            dso, symbol = function.object.strip("[]") or program, function.name
            chain = tuple(functions[f].name for f in reversed(programs[program].chains[row["chain"]]))
        sample = Sampled(
            row["at_ns"],
            vcpu,
            comm,
            session.events[row["event"]],
            dso,
            symbol,
            row["period"],
            row["ip"],
            chain,
        )
        yield name, session.name, sample
