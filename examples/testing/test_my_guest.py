"""Tests of a guest's PMU driver, on the emulator: no PMU, no KVM, no root."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vpmu.testing import (
    GeneralProtection,
    Host,
    Vcpu,
    assert_counts,
    assert_latency,
    assert_pmis,
    run_scenario,
)

pytestmark = pytest.mark.trio

IA32_PMC0 = 0x0C1
IA32_PERFEVTSEL0 = 0x186
IA32_PERF_GLOBAL_STATUS = 0x38E
IA32_PERF_GLOBAL_CTRL = 0x38F
IA32_PERF_GLOBAL_OVF_CTRL = 0x390
X2APIC_LVTPC = 0x834

BRANCHES = 0x5300C4  # br_inst_retired.all_branches, in the kernel and in user mode, interrupts on, enabled
NMI = 0x400
MakeHost = Callable[..., Host]
STAT = Path(__file__).parents[1] / "ftest" / "stat.toml"


class BranchSampler:
    """The code under test: a driver that samples every `period` branches on counter 0."""

    def __init__(self, period: int) -> None:
        self.period = period
        self.samples = 0

    async def start(self, vcpu: Vcpu) -> None:
        await vcpu.wrmsr(X2APIC_LVTPC, NMI)
        await vcpu.wrmsr(IA32_PMC0, -self.period & 0xFFFFFFFF)
        await vcpu.wrmsr(IA32_PERFEVTSEL0, BRANCHES)
        await vcpu.wrmsr(IA32_PERF_GLOBAL_CTRL, 1)

    async def on_pmi(self, vcpu: Vcpu) -> None:
        await vcpu.wrmsr(IA32_PERF_GLOBAL_CTRL, 0)
        status = await vcpu.rdmsr(IA32_PERF_GLOBAL_STATUS)
        if status & 1:
            self.samples += 1
            await vcpu.wrmsr(IA32_PERF_GLOBAL_OVF_CTRL, status)
            await vcpu.wrmsr(IA32_PMC0, -self.period & 0xFFFFFFFF)
        await vcpu.wrmsr(IA32_PERF_GLOBAL_CTRL, 1)
        await vcpu.wrmsr(X2APIC_LVTPC, NMI)


@pytest.mark.parametrize("design", ["legacy", "optimized", "native"])
async def test_each_period_gives_one_sample(vpmu_host: MakeHost, design: str):
    driver = BranchSampler(period=1_000)
    vcpu = vpmu_host(design).vcpu(rates={"branches": 0.2}, on_pmi=driver.on_pmi)
    await driver.start(vcpu)
    # 50,100 instructions are 10,020 branches: ten periods of 1,000.
    await vcpu.run(instructions=50_100)
    assert driver.samples == 10
    assert_pmis(vcpu, 10)


async def test_a_counter_reads_the_truth_though_the_watchdog_has_one(vpmu_host: MakeHost):
    vcpu = vpmu_host("optimized", watchdog=True, noise=True).vcpu(rates={"branches": 0.2})
    await vcpu.wrmsr(IA32_PERFEVTSEL0, BRANCHES)
    await vcpu.wrmsr(IA32_PERF_GLOBAL_CTRL, 1)
    await vcpu.run(cycles=10_000_000)
    count = await vcpu.rdpmc(0)
    assert 1_999_990 <= count <= 2_000_010
    assert_counts(vcpu)


async def test_reading_a_counter_is_cheap_under_the_optimized_design(vpmu_host: MakeHost):
    longest = {"legacy": 10_000, "optimized": 1_000}
    for design, max_ns in longest.items():
        vcpu = vpmu_host(design).vcpu()
        await vcpu.wrmsr(IA32_PERFEVTSEL0, BRANCHES)
        await vcpu.wrmsr(IA32_PERF_GLOBAL_CTRL, 1)
        await vcpu.rdpmc(0)
        assert_latency(vcpu, "rdpmc", max_ns=max_ns)


async def test_a_reserved_bit_faults(vpmu_vcpu: Vcpu):
    with pytest.raises(GeneralProtection, match="wrmsr 0x38f"):
        await vpmu_vcpu.wrmsr(IA32_PERF_GLOBAL_CTRL, 1 << 60)


async def test_perf_stat_counts_every_branch():
    result = await run_scenario(STAT, design="optimized", overrides=["vm.guest.thread.ftest.work=0.0025"])
    assert_counts(result)
    assert_latency(result, "rdpmc", median_ns=1_000)
