"""The pytest plugin: vCPUs that a test drives, on the real engine, and its assertions."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.processes import untraced
from vpmu.harness import DriveError, GeneralProtection, Host, Vcpu
from vpmu.testing import assert_counts, assert_latency, assert_pmis, run_scenario

ROOT = Path(__file__).parents[2]
PMC0, EVENTSEL0, FIXED_CTR0, FIXED_CTR_CTRL = 0xC1, 0x186, 0x309, 0x38D
GLOBAL_STATUS, GLOBAL_CTRL, GLOBAL_OVF_CTRL, LVTPC = 0x38E, 0x38F, 0x390, 0x834
INSTRUCTIONS, CYCLES, BRANCHES = 0x5300C0, 0x53003C, 0x5300C4
FIXED_0 = 1 << 32
NMI = 0x400
DESIGNS = ["legacy", "optimized", "native"]

MakeHost = Callable[..., Host]

PAUSES = ROOT / "examples" / "designs" / "pauses.toml"


async def count(vcpu: Vcpu, event: int = INSTRUCTIONS) -> None:
    await vcpu.wrmsr(EVENTSEL0, event)
    await vcpu.wrmsr(GLOBAL_CTRL, 1)


def user_pytest(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest as a user does, without this project's configuration."""
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "-p", "no:cacheprovider", "-q", *arguments]
    return subprocess.run(
        command, cwd=directory, env=untraced(), check=False, capture_output=True, text=True, timeout=600
    )


def test_the_example_runs_as_a_user_runs_it():
    done = user_pytest(ROOT / "examples" / "testing", ".")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 passed" in done.stdout


def test_the_plugin_loads_nothing_of_the_engine():
    command = "import sys, vpmu.testing; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", command], check=True, capture_output=True, text=True)
    assert {"vpmu.testing"} <= set(done.stdout.split())
    assert not {"numba", "numpy", "vpmu.harness"} & set(done.stdout.split())


@pytest.mark.parametrize("design", DESIGNS)
async def test_a_counter_counts_what_ran(vpmu_host: MakeHost, design: str):
    vcpu = vpmu_host(design).vcpu()
    await count(vcpu)
    await vcpu.run(instructions=12_345)
    assert await vcpu.rdpmc(0) == await vcpu.rdmsr(PMC0) == 12_345
    assert vcpu.reads == 2
    assert_counts(vcpu)


async def test_instructions_take_cycles_by_the_ipc(vpmu_host: MakeHost):
    vcpu = vpmu_host().vcpu(ipc=0.5)
    await count(vcpu, CYCLES)
    await vcpu.run(instructions=1_000)
    assert await vcpu.rdpmc(0) == 2_000


async def test_a_fixed_counter_counts_user_mode(vpmu_vcpu: Vcpu):
    await vpmu_vcpu.wrmsr(FIXED_CTR_CTRL, 0x2)
    await vpmu_vcpu.wrmsr(GLOBAL_CTRL, FIXED_0)
    await vpmu_vcpu.run(cycles=777)
    assert await vpmu_vcpu.rdmsr(FIXED_CTR0) == 777


@pytest.mark.parametrize("design", DESIGNS)
async def test_a_pmi_comes_where_the_counter_wraps(vpmu_host: MakeHost, design: str):
    seen: list[int] = []

    async def on_pmi(vcpu: Vcpu) -> None:
        seen.append(await vcpu.rdmsr(GLOBAL_STATUS))
        await vcpu.wrmsr(GLOBAL_OVF_CTRL, seen[-1])

    vcpu = vpmu_host(design).vcpu(on_pmi=on_pmi)
    await vcpu.wrmsr(LVTPC, NMI)
    await vcpu.wrmsr(PMC0, -500 & 0xFFFFFFFF)
    await count(vcpu)
    await vcpu.run(instructions=499)
    assert_pmis(vcpu, 0)
    await vcpu.run(instructions=1)
    assert seen == [1]
    assert_pmis(vcpu, 1)
    assert await vcpu.rdmsr(GLOBAL_STATUS) == 0


async def test_without_a_handler_pmis_are_counted(vpmu_vcpu: Vcpu):
    await vpmu_vcpu.wrmsr(LVTPC, NMI)
    await vpmu_vcpu.wrmsr(PMC0, -10 & 0xFFFFFFFF)
    await count(vpmu_vcpu)
    await vpmu_vcpu.run(instructions=100)
    assert_pmis(vpmu_vcpu, 1)
    assert await vpmu_vcpu.rdpmc(0) == 90


async def test_a_masked_lvtpc_delivers_none(vpmu_vcpu: Vcpu):
    await vpmu_vcpu.wrmsr(LVTPC, NMI | 1 << 16)
    await vpmu_vcpu.wrmsr(PMC0, -10 & 0xFFFFFFFF)
    await count(vpmu_vcpu)
    await vpmu_vcpu.run(instructions=100)
    assert_pmis(vpmu_vcpu, 0)
    assert await vpmu_vcpu.rdmsr(GLOBAL_STATUS) == 1


async def test_a_fault_is_raised_with_its_access(vpmu_vcpu: Vcpu):
    with pytest.raises(GeneralProtection) as raised:
        await vpmu_vcpu.rdpmc(4)
    access = raised.value.access
    assert (access.operation, access.register, access.fault) == ("rdpmc", 4, True)
    assert vpmu_vcpu.history == [access]
    assert vpmu_vcpu.last_cost_ns == access.cost_ns > 0


async def test_a_latency_is_the_time_that_passed(vpmu_vcpu: Vcpu):
    await vpmu_vcpu.rdmsr(GLOBAL_CTRL)
    before = vpmu_vcpu.now_ns
    await vpmu_vcpu.rdmsr(GLOBAL_CTRL)
    assert vpmu_vcpu.last_cost_ns == vpmu_vcpu.now_ns - before


async def test_two_vcpus_on_one_cpu_take_turns(vpmu_host: MakeHost):
    host = vpmu_host()
    first, second = host.vcpu(), host.vcpu()
    for vcpu, instructions in ((first, 1_000), (second, 500), (first, 10), (second, 1)):
        await count(vcpu)
        await vcpu.run(instructions=instructions)
    assert [await first.rdpmc(0), await second.rdpmc(0)] == [1_010, 501]
    assert_counts(first)
    assert_counts(second)


async def test_a_vcpu_left_alone_does_not_hold_up_another_cpu(vpmu_host: MakeHost):
    host = vpmu_host("legacy", cpus=2)
    first, second = host.vcpu(0), host.vcpu(1)
    await first.rdmsr(GLOBAL_CTRL)
    # The second one needs the host's hardware reservation, for which everybody has to have come as far.
    await count(second)
    await count(first)
    assert first.now_ns > second.history[-1].at_ns


async def test_two_tasks_drive_two_vcpus(vpmu_host: MakeHost):
    host = vpmu_host()
    vcpus = [host.vcpu(), host.vcpu()]

    async def drive(vcpu: Vcpu) -> None:
        await count(vcpu)
        await vcpu.run(cycles=100_000_000)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for vcpu in vcpus:
                nursery.start_soon(drive, vcpu)
    for vcpu in vcpus:
        assert await vcpu.rdpmc(0) == 100_000_000
        assert_counts(vcpu)


async def test_a_counter_that_nobody_can_have_stands_still(vpmu_host: MakeHost):
    tool = {"name": "all", "kind": "stat", "events": ["branches"] * 4, "cpus": "all", "pinned": True}
    vcpu = vpmu_host(tools=[{**tool, "exclude_guest": False}]).vcpu()
    await count(vcpu, BRANCHES)
    await vcpu.run(cycles=10_000)
    assert vcpu.stood_still_ns > 0
    assert await vcpu.rdpmc(0) == 0


async def test_what_cannot_work_is_refused(vpmu_host: MakeHost):
    host = vpmu_host(cpus=1)
    with pytest.raises(DriveError, match="no vCPU"):
        _ = host.machine
    with pytest.raises(DriveError, match="no CPU 1"):
        host.vcpu(1)
    vcpu = host.vcpu()
    with pytest.raises(DriveError, match="no access yet"):
        _ = vcpu.last_cost_ns
    with pytest.raises(DriveError, match="either cycles or instructions"):
        await vcpu.run()
    with pytest.raises(DriveError, match="backwards"):
        await vcpu.run(cycles=-1)
    await vcpu.rdmsr(GLOBAL_CTRL)
    with pytest.raises(DriveError, match="first"):
        host.vcpu()
    with pytest.raises(DriveError, match="unknown design 'optimised'"):
        vpmu_host("optimised")


async def test_two_tasks_cannot_drive_one_vcpu(vpmu_vcpu: Vcpu):
    async def drive() -> None:
        await vpmu_vcpu.run(cycles=10_000_000)

    async def drive_twice() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drive)
            nursery.start_soon(drive)

    with pytest.raises(ExceptionGroup) as raised:
        await drive_twice()
    assert raised.group_contains(DriveError, match="one task drives a vCPU")


async def test_a_handler_runs_no_user_code(vpmu_host: MakeHost):
    async def on_pmi(vcpu: Vcpu) -> None:
        await vcpu.run(cycles=1)

    vcpu = vpmu_host().vcpu(on_pmi=on_pmi)
    await vcpu.wrmsr(LVTPC, NMI)
    await vcpu.wrmsr(PMC0, -10 & 0xFFFFFFFF)
    await count(vcpu)
    with pytest.raises(DriveError, match="PMI handler"):
        await vcpu.run(instructions=100)


async def test_a_run_gives_the_same_accesses_again(vpmu_host: MakeHost):
    histories = []
    for _ in range(2):
        vcpu = vpmu_host("legacy", watchdog=True, noise=True, seed=5).vcpu()
        await count(vcpu)
        for _ in range(20):
            await vcpu.run(cycles=1_000_000)
            await vcpu.rdpmc(0)
        histories.append(vcpu.history)
    assert histories[0] == histories[1]


async def test_assertions_on_a_whole_run():
    result = await run_scenario(PAUSES, design="optimized", overrides=["until=300 ms"])
    counted = next(row for row in result.counters if row.event == "branches" and row.session == "first")
    assert_counts(result, {"cpu-cycles": sum(r.count for r in result.counters if r.event == "cpu-cycles")})
    assert_pmis(result, 0)
    assert_latency(result, "rdpmc", max_ns=10_000, median_ns=10_000)
    with pytest.raises(AssertionError, match=r"at most .* allowed 1 ns"):
        assert_latency(result, "rdpmc", max_ns=1)
    with pytest.raises(AssertionError, match=r"median .* allowed 1 ns"):
        assert_latency(result, "rdpmc", median_ns=1)
    with pytest.raises(ValueError, match="no action 'wrmsr'"):
        assert_latency(result, "wrmsr", max_ns=1)
    with pytest.raises(AssertionError, match="0 PMIs, expected at least 1"):
        assert_pmis(result, at_least=1)
    with pytest.raises(ValueError, match="no session counted 'faults'"):
        assert_counts(result, {"faults": 1})
    counted.count -= 2
    assert_counts(result, within=2)
    with pytest.raises(AssertionError, match="guest/0/first/branches: count"):
        assert_counts(result)


async def test_a_scenario_may_be_a_table():
    table = tomllib.loads(PAUSES.read_text())
    by_table = await run_scenario(table, design="native", overrides=["until=20 ms"])
    by_file = await run_scenario(PAUSES, design="native", overrides=["until=20 ms"])
    assert by_table.digest == by_file.digest


async def test_assertions_on_a_vcpu(vpmu_vcpu: Vcpu):
    await vpmu_vcpu.rdmsr(GLOBAL_CTRL)
    assert_latency(vpmu_vcpu, "rdmsr", max_ns=vpmu_vcpu.last_cost_ns)
    with pytest.raises(AssertionError, match="rdmsr: at most"):
        assert_latency(vpmu_vcpu, "rdmsr", max_ns=vpmu_vcpu.last_cost_ns - 1)
    with pytest.raises(AssertionError, match="0 PMIs, expected 1"):
        assert_pmis(vpmu_vcpu, 1)


def test_a_design_of_one_file_is_for_tests_too(tmp_path: Path):
    design = tmp_path / "throwaway.py"
    design.write_text((ROOT / "examples" / "designs" / "keep.py").read_text())
    test = tmp_path / "test_it.py"
    test.write_text("def test_it(vpmu_host):\n    assert vpmu_host('throwaway').design == 'throwaway'\n")
    done = user_pytest(tmp_path, str(test), "--vpmu-design", str(design))
    assert done.returncode == 0, done.stdout + done.stderr
    done = user_pytest(tmp_path, str(test), "--vpmu-design", "absent.py")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--vpmu-design: no design file absent.py" in done.stderr


@pytest.mark.parametrize("design", ["legacy", "optimized"])
@pytest.mark.parametrize("kvm", ["5.0", "7.0"])
async def test_the_host_writes_what_the_guest_cannot(vpmu_host: MakeHost, design: str, kvm: str):
    """KVM_SET_MSRS: counters take all 48 bits by their old numbers, GLOBAL_STATUS is stored, OVF_CTRL clears
    nothing.
    """  # fmt: skip
    vcpu = vpmu_host(design, kvm=kvm).vcpu()
    count = 0x1234_9ABC_DEF0
    await vcpu.wrmsr(0xC1, count)
    assert await vcpu.rdmsr(0xC1) == 0xFFFF_9ABC_DEF0
    with pytest.raises(GeneralProtection):
        await vcpu.wrmsr(0x38E, 1)
    for counter in (0xC1, 0x309):
        await vcpu.kvm_set_msr(counter, count)
        assert await vcpu.kvm_get_msr(counter) == count
    await vcpu.kvm_set_msr(0x38E, 5)
    await vcpu.kvm_set_msr(0x390, 1)
    assert await vcpu.rdmsr(0x38E) == 5
    await vcpu.wrmsr(0x390, 1)
    assert await vcpu.rdmsr(0x38E) == 4
    assert_counts(vcpu)
