"""Replaying traces: accesses and their spacing arrive in the emulator, and what becomes of them is told."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.vpmu.traces import Thread, in_time, picked
from vpmu.cli import main
from vpmu.errors import UserError
from vpmu.harness import GeneralProtection, Host
from vpmu.replay import Latency, Replayed, _stream, host_latencies, replay
from vpmu.results import read_results
from vpmu.trace.accesses import Access, Picked
from vpmu.trace.scenario import CODE, replay_scenario

DESIGNS = ["legacy", "optimized", "native"]
EXAMPLE = Path(__file__).parents[2] / "examples" / "replay" / "stat.trace"
KEEP = EXAMPLE.parents[1] / "designs" / "keep.py"
QUIET = ["host.host.noise=false", "host.host.core_khz=2000000"]
CORE_GHZ = 2


def start(thread: Thread) -> list[str]:
    """Return the lines of a driver's start on one counter of branches."""
    lines = []
    for msr, value in ((0x38F, 0), (0xC1, 0), (0x186, 0x5300C4), (0x834, 0x400), (0x38F, 0x70000000F)):
        lines += thread.write(msr, value)
        thread.wait(1_000)
    return lines


def replayed(found: Picked, design: str, *overrides: str, cpus: int | None = None) -> Replayed:
    scenario = replay_scenario(
        found, file="t", profile=None, cpus=cpus, overrides=["seed=3", *QUIET, *overrides]
    )
    return replay(found, scenario, design)


def totals(done: Replayed) -> dict[str, tuple[int, int]]:
    return {row.action: (row.calls, row.total_ns) for row in done.latencies}


@pytest.mark.parametrize("design", DESIGNS)
def test_more_time_between_accesses_is_as_much_more_time(design: str):
    ends = []
    for wait_ns in (1_000_000, 4_000_000):
        thread = Thread()
        lines = thread.write(0x38F, 0)
        thread.wait(wait_ns)
        done = replayed(picked(*lines, *thread.write(0x186, 0)), design)
        ends.append(done.result.end_ns)
    assert ends[1] - ends[0] == 3_000_000


@pytest.mark.parametrize("design", DESIGNS)
async def test_accesses_take_what_they_take_when_they_are_driven_one_by_one(design: str):
    """The harness asks for the same accesses, with as many cycles between them, through another door."""
    thread = Thread()
    lines = start(thread)
    thread.wait(200_000)
    lines += thread.write(0x38F, 0) + thread.rdpmc() + thread.read(0x38E, 0)
    found = picked(*lines)
    host = Host(design, seed=3)
    host._host["core_khz"] = CORE_GHZ * 1_000_000
    rates = {key: str(rate) for key, rate in CODE.items() if key not in ("name", "share", "ipc")}
    vcpu = host.vcpu(rates=rates)
    with trio.fail_after(60):
        for access in found.all():
            await vcpu.run(cycles=access.gap_ns * CORE_GHZ)
            if access.operation == "wrmsr":
                await vcpu.wrmsr(access.register, access.value)
            elif access.operation == "rdmsr":
                await vcpu.rdmsr(access.register)
            else:
                await vcpu.rdpmc(access.register)
    driven: dict[str, tuple[int, int]] = {}
    for access, done in zip(found.all(), vcpu.history, strict=True):
        calls, total_ns = driven.get(access.action, (0, 0))
        driven[access.action] = calls + 1, total_ns + done.cost_ns
    assert totals(replayed(found, design)) == driven


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=30))
def test_rounding_of_gaps_never_adds_up(gaps: list[int]):
    accesses = [Access(0, gap_ns, "rdmsr", 0x38E, 0, False) for gap_ns in gaps]
    rate = (22 << 28) // 10
    cycles = _stream(accesses, rate)[:, 2].cumsum()
    for index, done in enumerate(cycles.tolist(), 1):
        assert 0 <= sum(gaps[:index]) * rate / (1 << 28) - done <= 1


@pytest.mark.parametrize("design", DESIGNS)
def test_pmis_bring_no_accesses_of_their_own(design: str):
    """The real guest's handler is in the trace: the emulated PMI is counted, and that is all."""
    thread = Thread()
    lines = []
    # FIXED_CTR1 counts cycles and wraps after 1,000 of them; the LVTPC is an NMI.
    for msr, value in ((0x834, 0x400), (0x30A, 2**48 - 1000), (0x38D, 0xB0), (0x38F, 1 << 33)):
        lines += thread.write(msr, value)
    thread.wait(1_000_000)
    lines += thread.read(0x38E, 1 << 33) + thread.write(0x390, 1 << 33) + thread.write(0x38F, 0)
    found = picked(*lines)
    done = replayed(found, design)
    assert done.pmis == 1
    assert sum(row.calls for row in done.latencies) == len(list(found.all())) == 7
    assert done.result.host["accesses"] == 7
    masked = replayed(picked(*lines[3:]), design)
    assert masked.pmis == 0


@pytest.mark.parametrize("design", DESIGNS)
def test_faults_are_compared_with_the_traces(design: str):
    thread = Thread()
    lines = thread.read(0x1A6, 0, fault=True)  # both: there is no such register
    lines += thread.write(0x38F, 1 << 20)  # here only: a reserved bit that the real host took
    lines += thread.write(0x38F, 0xF, fault=True)  # there only
    lines += thread.write(0x38F, 0x1)
    lines += thread.rdpmc()  # whether it faulted there is not traced
    found = picked(*lines)
    found.vcpus[0].accesses[-1].register = 0x3FFFFFFF
    done = replayed(found, design)
    assert done.faults == 3
    assert done.faults_differ == {"wrmsr 0x38f: #GP here only": 1, "wrmsr 0x38f: #GP in the trace only": 1}


def test_control_registers_are_compared_once_they_were_written():
    thread = Thread()
    lines = thread.read(0x186, 0x1234)  # before any write: unknown
    lines += thread.write(0x186, 0x5300C4) + thread.read(0x186, 0x5300C4)  # as written
    lines += thread.read(0x186, 0x5300C5)  # not as written
    lines += thread.read(0xC1, 77)  # a count: of what the real guest ran
    lines += thread.read(0x186, 0, fault=True)  # the real host gave no value
    lines += thread.write(0x187, 7, fault=True) + thread.read(0x187, 3)  # it did not take this write
    done = replayed(picked(*lines), "optimized")
    assert (done.reads_compared, done.reads_differ) == (2, 1)


def test_latencies_of_the_real_host_are_summed_up_by_action():
    thread = Thread()
    lines = [line for took_ns in (9_000, 1_000, 3_000, 2_000) for line in thread.write(0x38F, 0, took_ns)]
    lines += thread.rdpmc(4_000)
    # Of four, the median is the lower of the two in the middle: 2 us.
    assert host_latencies(picked(*lines)) == [
        Latency("disable global_ctrl", 4, 2_000, 9_000, 15_000),
        Latency("rdpmc", 1, 4_000, 4_000, 4_000),
    ]


def test_vcpus_share_what_cpus_there_are():
    """Two busy guests on one CPU take the time of both; on two, that of one."""
    streams = []
    for number in range(2):
        thread = Thread(pid=100 + number, cpu=number, number=number)
        lines = start(thread)
        thread.wait(200_000_000)
        streams.append([*lines, *thread.write(0x38F, 0)])
    found = picked(*in_time(streams))
    alone = replayed(found, "native").result.end_ns
    shared = replayed(found, "native", cpus=1).result.end_ns
    assert 200_000_000 < alone < 210_000_000
    assert 400_000_000 < shared < 410_000_000


def test_a_trace_of_more_vcpus_than_the_machine_has_cpus_shares_them():
    streams = [Thread(pid=100 + number, cpu=number, number=number).write(0x38F, 0) for number in range(90)]
    done = replayed(picked(*in_time(streams)), "native")
    assert totals(done)["disable global_ctrl"][0] == 90


def test_a_watchdog_takes_a_counter_as_in_any_run():
    thread = Thread()
    lines = []
    for msr, value in ((0x38D, 0xBBB), *((0x186 + i, 0x53003C) for i in range(4)), (0x38F, 0x70000000F)):
        lines += thread.write(msr, value)
    thread.wait(5_000_000)
    found = picked(*lines, *thread.write(0x38F, 0))
    assert not replayed(found, "legacy").result.stood_still
    assert replayed(found, "legacy", "host.host.watchdog=true").result.stood_still


def out_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["replay", *arguments]) == 0
    return capsys.readouterr().out


def test_the_same_trace_gives_the_same_bytes_wherever_other_lines_stand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "t.trace"
    others = [f"    kworker/0:1-17    [009]  5678.{i:06d}: sched_wakeup: comm=x pid={i}" for i in range(60)]
    lines = EXAMPLE.read_text().splitlines()
    outputs = []
    for seed in range(2):
        rng = random.Random(seed)
        mixed = list(lines)
        for line in rng.sample(others, len(others)):
            mixed.insert(rng.randrange(len(mixed) + 1), line)
        path.write_text("\n".join(mixed) + "\n")
        outputs.append(out_of(capsys, str(path), "--json", "--design", "legacy,optimized"))
    assert outputs[0] == outputs[1]
    plain = json.loads(out_of(capsys, str(EXAMPLE), "--json", "--design", "legacy,optimized"))
    report = json.loads(outputs[0])
    assert report["designs"] == plain["designs"]
    assert report["skipped"]["lines"]["sched_wakeup"] == 60


def test_the_report_says_what_was_read_skipped_lost_and_assumed(capsys: pytest.CaptureFixture[str]):
    report = json.loads(out_of(capsys, str(EXAMPLE), "--json", "--seed", "7", "--design", "native"))
    # The generator's: 2 vCPUs, each with 2 probes, then 6 times 10 and 9 accesses, 3 of them RDPMC.
    assert [vcpu["accesses"] for vcpu in report["vcpus"]] == [2 + 6 * 19] * 2
    assert report["assumed"] == {"rdpmc": 2 * 6 * 3, "halted_ns": 0}
    assert report["seed"] == 7
    assert report["trace"]["lost"] == {
        "events": 12,
        "gaps": 1,
        "gaps_of_unknown_size": 0,
        "overwritten": 0,
    }
    assert report["skipped"] == {
        "lines": {"kvm_pio": 24, "no event": 1},
        "msrs": {"0x6e0": 24},
        "exits": {"IO_INSTRUCTION": 24, "MSR_WRITE": 24},
        "vcpus": 0,
    }
    enable = next(row for row in report["real_host"]["actions"] if row["action"] == "enable global_ctrl")
    # Microseconds are all that is printed: 60 us, or one less or more.
    assert enable["calls"] == 24
    assert 59_000 <= enable["median_ns"] <= 61_000
    assert report["designs"]["native"]["faults"] == report["real_host"]["faults"] == 2


def test_the_tables_name_every_action_design_and_note(capsys: pytest.CaptureFixture[str]):
    text = out_of(capsys, str(EXAMPLE))
    for part in (
        "CPU 0/KVM-4211",
        "CPU 1/KVM-4212",
        "real host",
        *DESIGNS,
        "enable global_ctrl",
        "rdpmc",
        "lost: events 12",
        "0x6e0 (24)",
        "kvm_pio (24)",
        "assumed: RDPMC, 36",
    ):
        assert part in text


def test_results_are_written_as_those_of_any_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    arguments = [str(EXAMPLE), "--design", "optimized", "--out", str(out)]
    assert out_of(capsys, *arguments, "--quiet") == ""
    report = json.loads((out / "replay.json").read_text())
    assert read_results(out).designs["optimized"].digest == report["designs"]["optimized"]["digest"]
    assert out_of(capsys, *arguments, "--json") == (out / "replay.json").read_text()


def test_a_trace_may_come_from_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with EXAMPLE.open() as lines:
        monkeypatch.setattr("sys.stdin", lines)
        report = json.loads(out_of(capsys, "-", "--json", "--design", "native"))
    assert report["trace"]["file"] == "standard input"
    assert report["trace"]["lines"] == 806


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["absent.trace"], "absent.trace: cannot read: No such file or directory"),
        ([str(EXAMPLE), "--design", "legcy"], 'unknown design "legcy"; did you mean "legacy"?'),
        ([str(EXAMPLE), "--profile", "e5"], '--profile: unknown profile "e5"'),
        ([str(EXAMPLE), "--set", "vm.vcpu0.hz=100"], "--set: is the trace's"),
        ([str(EXAMPLE), "--set", "until=1 s"], "--set: is the trace's"),
        ([str(EXAMPLE), "--set", "host.host.watchdg=true"], "watchdg"),
        ([str(EXAMPLE), "--cpus", "0"], "--cpus"),
        ([str(EXAMPLE), "--cpus", "100000"], "--cpus: must be at most 8192"),
        ([str(EXAMPLE), "--cpus", "800"], "--cpus: "),
        ([str(EXAMPLE), "--out", str(EXAMPLE)], "--out: not a directory"),
    ],
)
def test_mistakes_are_named(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]):
    assert main(["replay", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert expected in captured.err
    assert captured.err.count("\n") == 1


def test_a_malformed_line_ends_the_command_with_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "t.trace"
    path.write_text("cpus=1\n CPU 0/KVM-1 [000] 1.000000: kvm_msr: msr_write 38f = nonsense\n")
    assert main(["replay", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"{path}:2: expected kvm_msr: msr_read|msr_write INDEX = 0xVALUE, perhaps with (#GP); "
        'found "msr_write 38f = nonsense"\n'
    )


def test_a_trace_without_an_access_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "t.trace"
    path.write_text("\n".join(Thread().write(0x6E0, 1)))
    assert main(["replay", str(path)]) == 2
    assert "no access to a PMU in it" in capsys.readouterr().err


def test_a_design_may_be_a_file():
    """Designs have to be known before the engine is loaded: what comes before must not load it."""
    program = f"""
import sys
from vpmu.command_replay import load_trace, pick_accesses
from vpmu.command_run import choose_designs
from vpmu.execution import register_designs
from vpmu.trace.scenario import replay_scenario
picked = pick_accesses(load_trace({str(EXAMPLE)!r}))
scenario = replay_scenario(picked, file="t", profile=None, cpus=None, overrides=[])
print(register_designs(choose_designs(scenario, {str(KEEP)!r}, "t")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "('keep',)\n"


def test_a_trace_longer_than_a_run_is_refused():
    thread = Thread()
    lines = thread.write(0x38F, 0)
    thread.wait(500_001 * 10**9)
    with pytest.raises(UserError, match="longer than 500000 s"):
        replayed(picked(*lines, *thread.write(0x38F, 0)), "native")


def test_driving_reports_a_fault_where_a_replay_does():
    """What `test_faults_are_compared_with_the_traces` takes for #GP is #GP to a guest that is driven."""

    async def drive() -> None:
        vcpu = Host("optimized").vcpu()
        with pytest.raises(GeneralProtection):
            await vcpu.wrmsr(0x38F, 1 << 20)

    trio.run(drive)
