"""The guest of `guest.c` in Python: `python guest.py ENDPOINT VM` prints the same lines."""

import sys
from contextlib import suppress
from pathlib import Path

import trio

from vpmu.guest import Cpu, GeneralProtection, InsidePort, connect

FIXED_CTR0, FIXED_CTR_CTRL, EVENTSEL0 = 0x309, 0x38D, 0x186
GLOBAL_STATUS, GLOBAL_CTRL, GLOBAL_OVF_CTRL, LVTPC = 0x38E, 0x38F, 0x390, 0x834
RDPMC_FIXED = 1 << 30
NMI = 0x400


async def handle_pmi(cpu: Cpu, lvtpc: int) -> None:
    """Acknowledge an overflow, look at the counter and unmask the LVTPC."""
    await cpu.wrmsr(GLOBAL_OVF_CTRL, await cpu.rdmsr(GLOBAL_STATUS))
    await cpu.rdpmc(RDPMC_FIXED)
    await cpu.wrmsr(LVTPC, NMI)


async def demo(where: str | InsidePort, vm: str, key: Path | None = None) -> list[str]:
    """Program counters, retire, take an interrupt, read and halt; return each answer in hex."""
    async with connect(where, vm=vm, on_pmi=handle_pmi, key=key, keep_answers=True) as cpu:
        await cpu.query_cpuid(0xA)
        await cpu.wrmsr(LVTPC, NMI)
        await cpu.wrmsr(FIXED_CTR0, (1 << 48) - 1_000_000)
        await cpu.wrmsr(FIXED_CTR_CTRL, 0xB)
        await cpu.wrmsr(EVENTSEL0, 0x4100C4)
        await cpu.wrmsr(GLOBAL_CTRL, 1 << 32 | 1)
        await cpu.retire(instructions=2_400_000, branches=310_001, cycles=1_500_000)
        await cpu.rdpmc(RDPMC_FIXED)
        await cpu.rdpmc(0)
        with suppress(GeneralProtection):
            await cpu.rdpmc(9)
        await cpu.halt(cpu.now_ns + 1_000_000)
    return [answer.hex() for answer in cpu.answers]


if __name__ == "__main__":
    print("\n".join(trio.run(demo, *sys.argv[1:3])))
