"""The Python client, in process: what it retires, where it stops, which interrupts it takes."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.remote.hosts import (
    BRANCHES_USR,
    DESIGNS,
    EVENTSEL0,
    FIXED_CTR0,
    FIXED_CTR2,
    FIXED_CTR_CTRL,
    GLOBAL_CTRL,
    GLOBAL_OVF_CTRL,
    GLOBAL_STATUS,
    INSTRUCTIONS_USR,
    LVTPC,
    NMI,
    PMC0,
    PMI,
    RDPMC_FIXED,
    alone,
    hashes,
    program,
    remote,
    scenario,
)
from vpmu.cluster.errors import LocalProtocolError
from vpmu.guest import Cpu, CutOff, Event, GeneralProtection, Level, RunOver, connect
from vpmu.guest.split import Clock, Code
from vpmu.kernels import columns as col
from vpmu.serving import Hosted, hosting

TOTALS = st.dictionaries(st.integers(0, 5), st.integers(0, 10**12), max_size=6)


@given(TOTALS, st.data())
def test_code_cut_anywhere_retires_what_the_whole_retires(totals: dict[int, int], data: st.DataObject):
    code = Code(totals)
    retired = dict.fromkeys(totals, 0)
    for step in sorted(data.draw(st.lists(st.integers(0, code.steps), max_size=5))):
        for kind, events in code.advance(step).items():
            assert events >= 0
            retired[kind] += events
    for kind, events in code.advance(code.steps).items() if code.steps else ():
        retired[kind] += events
    assert retired == totals


@given(TOTALS.filter(lambda totals: any(totals.values())), st.data())
def test_a_step_of_code_is_the_exact_one(totals: dict[int, int], data: st.DataObject):
    code = Code(totals)
    code.advance(data.draw(st.integers(0, code.steps)))
    kind = data.draw(st.sampled_from(sorted(totals)))
    count = data.draw(st.integers(1, 10**12))
    step = code.step_of(kind, count)
    if step > code.steps:
        assert code.total(kind, code.steps) - code.total(kind, code.done) < count
    else:
        assert code.total(kind, step) - code.total(kind, code.done) == count
        assert code.total(kind, step - 1) - code.total(kind, code.done) == count - 1
    last = code.last_step_within(kind, count)
    assert code.total(kind, last) - code.total(kind, code.done) <= count
    assert last == code.steps or code.total(kind, last + 1) - code.total(kind, code.done) > count


@given(
    st.integers(100_000, 10_000_000), st.lists(st.tuples(st.booleans(), st.integers(0, 10**6)), max_size=20)
)
def test_a_clock_loses_no_cycle(khz: int, uses: list[tuple[bool, int]]):
    clock = Clock(khz)
    cycles = elapsed_ns = 0
    for by_cycles, amount in uses:
        spent = amount if by_cycles else clock.cycles_within(amount)
        ns = clock.ns_for(amount) if by_cycles else amount
        clock.spend(spent, ns)
        cycles, elapsed_ns = cycles + spent, elapsed_ns + ns
        # A rate of khz makes elapsed * khz / 10**6 cycles; less than one, or than those of 1 ns, is left.
        left = Fraction(elapsed_ns * khz, 10**6) - cycles
        assert 0 <= left < max(Fraction(1), Fraction(khz, 10**6))


async def count_instructions(cpu: Cpu, left: int) -> None:
    """Let counter 0 count instructions in user mode, with an interrupt after so many."""
    await cpu.wrmsr(LVTPC, NMI)
    await cpu.wrmsr(PMC0, (1 << 48) - left)
    await cpu.wrmsr(EVENTSEL0, INSTRUCTIONS_USR | PMI)
    await cpu.wrmsr(GLOBAL_CTRL, 1)


class Handler:
    """An interrupt handler: notes what it finds, acknowledges and unmasks."""

    def __init__(self) -> None:
        self.found: list[tuple[int, int, int]] = []

    async def __call__(self, cpu: Cpu, lvtpc: int) -> None:
        self.found.append((lvtpc, await cpu.rdmsr(GLOBAL_STATUS), await cpu.rdpmc(0)))
        await cpu.wrmsr(GLOBAL_OVF_CTRL, 1)
        await cpu.wrmsr(LVTPC, NMI)


@pytest.mark.parametrize("design", DESIGNS)
async def test_an_overflow_comes_at_the_exact_event(design: str, autojump_clock: trio.testing.MockClock):
    handler = Handler()
    with trio.fail_after(60):
        async with hosting(alone(), design) as host, connect(host.port, vm="g0", on_pmi=handler) as cpu:
            await count_instructions(cpu, 123_457)
            await cpu.retire(instructions=1_000_003, branches=77_777, cycles=3_000_001)
            # At the overflow the counter is 0: not one event more has retired in user mode.
            assert handler.found == [(NMI, 1, 0)]
            assert await cpu.rdpmc(0) == 1_000_003 - 123_457
            assert cpu.pmis == 1
    assert host.result().cut_off == []
    guest = host.machine.vcpus[0].guest
    assert host.machine.arena[guest + int(col.T_WRONG)] == 0


@pytest.mark.parametrize("design", DESIGNS)
async def test_two_counters_and_two_levels(design: str, autojump_clock: trio.testing.MockClock):
    async with hosting(alone(), design) as host, connect(host.port, vm="g0") as cpu:
        await cpu.wrmsr(FIXED_CTR_CTRL, 0x1)
        await cpu.wrmsr(EVENTSEL0, BRANCHES_USR)
        await cpu.wrmsr(GLOBAL_CTRL, 1 << 32 | 1)
        await cpu.retire(instructions=5_000, branches=700, level=Level.USER)
        await cpu.retire(instructions=3_000, branches=600, level=Level.KERNEL)
        assert await cpu.rdpmc(0) == 700
        # On bare hardware the WRMSR that enables counts, and so does RDPMC at the last look; else they exit.
        own = 0 if cpu.welcome.intercepts else 2
        assert await cpu.rdpmc(RDPMC_FIXED) == 3_000 + own


async def test_a_million_cycles_take_their_time(autojump_clock: trio.testing.MockClock):
    async with hosting(alone(noise=False), "optimized") as host, connect(host.port, vm="g0") as cpu:
        begin_ns = cpu.now_ns
        await cpu.retire(instructions=1, cycles=700_000)
        # 2.8 GHz: 2.8 cycles a ns.
        assert cpu.now_ns - begin_ns == 250_000
        assert cpu.welcome.core_khz == 2_800_000


async def test_reference_cycles_overflow_by_the_clock(autojump_clock: trio.testing.MockClock):
    taken: list[int] = []

    async def handler(cpu: Cpu, _: int) -> None:
        taken.append(await cpu.rdmsr(GLOBAL_STATUS))
        await cpu.wrmsr(GLOBAL_OVF_CTRL, 1 << 34)

    of = alone(noise=False)
    async with hosting(of, "native") as host, connect(host.port, vm="g0", on_pmi=handler) as cpu:
        await cpu.wrmsr(LVTPC, NMI)
        await cpu.wrmsr(FIXED_CTR2, (1 << 48) - 220_000)
        await cpu.wrmsr(FIXED_CTR_CTRL, 0xB00)
        await cpu.wrmsr(GLOBAL_CTRL, 1 << 34)
        begin_ns = cpu.now_ns
        await cpu.retire(instructions=1_000, cycles=10_000_000)
        assert taken == [1 << 34]
        counted = await cpu.rdmsr(FIXED_CTR2)
        # 2.2 GHz, in user mode and in the handler; the host takes some time of it (its watchdog, its tick).
        passed = (cpu.now_ns - begin_ns) * 2_200_000 // 1_000_000 - 220_000
        assert 0 <= passed - counted < 20_000
    assert host.result().cut_off == []
    assert host.machine.arena[host.machine.vcpus[0].guest + int(col.T_WRONG)] == 0


async def test_a_fault_is_raised_and_costs(autojump_clock: trio.testing.MockClock):
    async with hosting(alone(), "legacy") as host, connect(host.port, vm="g0") as cpu:
        with pytest.raises(GeneralProtection, match="#GP at RDPMC 0x9"):
            await cpu.rdpmc(9)
        assert cpu.last_cost_ns > 0
        with pytest.raises(GeneralProtection, match="#GP at WRMSR 0x38f of 0x8000000000000000"):
            await cpu.wrmsr(GLOBAL_CTRL, 1 << 63)
        await cpu.wrmsr(FIXED_CTR0, 5)
        assert await cpu.rdmsr(FIXED_CTR0) == 5


async def test_halt_ends_at_its_time_or_at_an_interrupt(autojump_clock: trio.testing.MockClock):
    handler = Handler()
    of = alone(noise=False)
    async with hosting(of, "optimized") as host, connect(host.port, vm="g0", on_pmi=handler) as cpu:
        until_ns = cpu.now_ns + 3_000_000
        await cpu.halt(until_ns)
        assert until_ns <= cpu.now_ns < until_ns + 100_000
        assert cpu.pmis == 0
        # With an interrupt on its way, HLT ends at once: the overflow is the last thing before it.
        await count_instructions(cpu, 1_000)
        halted_ns = cpu.now_ns
        await cpu.retire(instructions=1_000)
        await cpu.halt(halted_ns + 5_000_000)
        assert len(handler.found) == 1


async def test_emulated_instructions_count_with_the_rules_of_kvm_7_0(autojump_clock: trio.testing.MockClock):
    counts = {}
    for kvm in ("5.0", "7.0"):
        async with hosting(alone(kvm=kvm), "optimized") as host, connect(host.port, vm="g0") as cpu:
            assert cpu.welcome.perf_capabilities == (0x2000 if kvm == "7.0" else 0)
            await cpu.wrmsr(EVENTSEL0, INSTRUCTIONS_USR | 1 << 17)
            await cpu.wrmsr(EVENTSEL0 + 1, 0x4300C4)
            await cpu.wrmsr(GLOBAL_CTRL, 3)
            before = await cpu.rdpmc(0)
            await cpu.emulated(branch=True)
            await cpu.emulated()
            counts[kvm] = await cpu.rdpmc(0) - before, await cpu.rdpmc(1)
    # Rules of 5.0: nothing that the hypervisor executes counts. Rules of 7.0: two instructions and the RDPMC
    # that reads `before`, one branch.
    assert counts == {"5.0": (0, 0), "7.0": (3, 1)}


async def test_cpuid(autojump_clock: trio.testing.MockClock):
    of = scenario(remote("g0", 0, hide_events=["ref-cycles"], pmu_version=1))
    async with hosting(of, "optimized") as host, connect(host.port, vm="g0") as cpu:
        before_ns = cpu.now_ns
        assert cpu.cpuid(0xA) == await cpu.query_cpuid(0xA) == (0x07300401, 1 << 2, 0, 0)
        assert (cpu.welcome.version, cpu.welcome.nr_gp, cpu.welcome.nr_fixed) == (1, 4, 0)
        assert (await cpu.query_cpuid(0))[0] == 0xA
        assert await cpu.query_cpuid(0x1234) == cpu.cpuid(0xA)
        assert await cpu.query_cpuid(7) == (0, 0, 0, 0)
        assert cpu.now_ns == before_ns
        with pytest.raises(LocalProtocolError, match="leaf 0x1"):
            cpu.cpuid(1)


async def test_the_run_may_end_first(autojump_clock: trio.testing.MockClock):
    with pytest.raises(BaseExceptionGroup) as caught:
        async with hosting(alone(), "optimized") as host, connect(host.port, vm="g0") as cpu:
            await cpu.retire(instructions=10**12)
    (error,) = caught.value.exceptions
    assert isinstance(error, RunOver)
    assert error.at_ns == 40_000_000


async def test_a_guest_that_fails_is_cut_off(autojump_clock: trio.testing.MockClock):
    async with hosting(alone(), "optimized") as host:
        with suppress(RuntimeError):
            async with connect(host.port, vm="g0") as cpu:
                await cpu.retire(instructions=5)
                raise RuntimeError("its own")
        with pytest.raises(LocalProtocolError, match="over"):
            await cpu.rdpmc(0)
    (row,) = host.result().cut_off
    assert row.reason == "its connection is gone"


async def test_a_refusal_is_raised(autojump_clock: trio.testing.MockClock):
    async with hosting(alone(), "optimized") as host:
        with pytest.raises(CutOff, match="no remote vCPU 0 in a VM 'nobody'"):
            async with connect(host.port, vm="nobody"):
                raise AssertionError("nobody is there")
        async with connect(host.port, vm="g0"):
            pass


@pytest.mark.parametrize(
    "wrong", [{"instructions": -1}, {"cycles": -1}, {"events": {Event.CACHE_MISSES: -1}}]
)
async def test_nothing_retires_backwards(wrong: dict[str, int], autojump_clock: trio.testing.MockClock):
    async with hosting(alone(), "optimized") as host, connect(host.port, vm="g0") as cpu:
        with pytest.raises(LocalProtocolError, match="cannot retire"):
            await cpu.retire(**wrong)  # type: ignore[arg-type]


async def measure(host: Hosted, vm: str, seed: int, pause_s: float) -> list[bytes]:
    """Be a guest that counts and takes interrupts; its own work takes wall time. Return what it was told."""
    handler = Handler()
    async with connect(host.port, vm=vm, on_pmi=handler, keep_answers=True) as cpu:
        await count_instructions(cpu, 300_000 + seed)
        for _ in range(4):
            await trio.sleep(pause_s)
            await cpu.retire(instructions=400_000 + seed, branches=1_000, cycles=600_000)
            await cpu.rdpmc(0)
            await cpu.halt(cpu.now_ns + 200_000)
    assert handler.found
    return cpu.answers


@pytest.mark.parametrize("design", DESIGNS)
async def test_several_guests_give_the_same_bytes_however_the_wall_clock_runs(
    design: str, autojump_clock: trio.testing.MockClock
):
    of = scenario(
        remote("a", 0), remote("b", 0), remote("c", 1), program("d", 1), program("e", 2), noise=True
    )
    runs = []
    for pauses in ({"a": 0, "b": 0, "c": 0}, {"a": 0.9, "b": 0, "c": 0.2}, {"c": 0.5, "b": 0.7, "a": 0}):
        told: dict[str, list[bytes]] = {}

        async def guest(host: Hosted, vm: str, pause_s: float, told: dict[str, list[bytes]] = told) -> None:
            told[vm] = await measure(host, vm, ord(vm), pause_s)

        with trio.fail_after(60):
            async with hosting(of, design) as host, trio.open_nursery() as nursery:
                for vm, pause_s in pauses.items():
                    nursery.start_soon(guest, host, vm, pause_s)
        runs.append((host.result().digest, hashes(host), sorted(told.items())))
        assert host.result().cut_off == []
    assert runs[0] == runs[1] == runs[2]
