"""The worked exchange of docs/protocol.md: `python -m tests.remote.exchange` prints it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import trio

from tests.remote.hosts import FIXED_CTR0, FIXED_CTR_CTRL, GLOBAL_CTRL, LVTPC, NMI, write
from vpmu.cluster.guests import messages as say
from vpmu.cluster.guests import wire
from vpmu.cluster.guests.messages import Grant, Level, Operation, Reason, Retired
from vpmu.scenario import load_scenario
from vpmu.serving import hosting

SCENARIO = Path(__file__).parents[2] / "examples" / "remote" / "remote.toml"
LEFT = 1_000
BYTES_A_LINE = 32
Step = tuple[str, say.Request]


def steps(grants: list[Grant]) -> Iterator[Step]:
    """Yield what the guest says, each with what it means; `grants` ends with the last answer to it."""
    yield "I am vCPU 0 of g0", say.Hello("g0")
    yield "I am ready", say.Start()
    yield "WRMSR LVTPC: NMI, not masked", write(grants[-1].now_ns, LVTPC, NMI)
    yield (
        "WRMSR fixed counter 0: 1,000 events to its overflow",
        write(grants[-1].now_ns, FIXED_CTR0, (1 << 48) - LEFT),
    )
    yield (
        "WRMSR FIXED_CTR_CTRL: it counts at each CPL, with an interrupt",
        write(grants[-1].now_ns, FIXED_CTR_CTRL, 0xB),
    )
    yield "WRMSR GLOBAL_CTRL: it is on", write(grants[-1].now_ns, GLOBAL_CTRL, 1 << 32)
    # 2.8 cycles a ns: 1,400 cycles take 500 ns.
    retired = (Retired(0, Level.USER, 1_400), Retired(1, Level.USER, LEFT), Retired(2, Level.USER, 200))
    yield (
        "1,000 instructions have retired, and it has overflowed",
        say.Report(grants[-1].now_ns + 500, Reason.OVERFLOW, retired),
    )
    yield (
        "in the handler: RDPMC of fixed counter 0",
        say.Report(grants[-1].now_ns, Reason.ACCESS, (), Operation.RDPMC, 1 << 30, 0, Level.KERNEL),
    )
    yield (
        "RDPMC of a counter that does not exist",
        say.Report(grants[-1].now_ns, Reason.ACCESS, (), Operation.RDPMC, 9, 0, Level.KERNEL),
    )
    yield "CPUID leaf 0xA", say.Cpuid(0xA)
    yield (
        "HLT, with a timer 100 us on",
        say.Report(grants[-1].now_ns, Reason.HALT, timer_at_ns=grants[-1].now_ns + 100_000),
    )
    yield "I have finished", say.Report(grants[-1].now_ns, Reason.DONE)


async def exchange() -> str:
    """Return the exchange as the documentation shows it."""
    lines: list[str] = []
    grants: list[Grant] = []
    async with hosting(load_scenario(SCENARIO), "optimized") as host:
        transport = host.port.connect()
        for number, (meaning, request) in enumerate(steps(grants)):
            frame = wire.encode(number, request)
            answer = await transport.exchange(frame)
            _, said = wire.decode_answer(answer)
            if isinstance(said, Grant):
                grants.append(said)
            lines += [f"> {say.Kind(frame[6]).name}: {meaning}", *rows(frame)]
            lines += [f"< {say.Kind(answer[6]).name}", *rows(answer)]
    return "\n".join(lines)


def rows(frame: bytes) -> list[str]:
    """Return a frame in hex, so many bytes a line, in groups of eight."""
    parts = [frame[at : at + BYTES_A_LINE] for at in range(0, len(frame), BYTES_A_LINE)]
    return ["  " + part.hex(" ", -8) for part in parts]


if __name__ == "__main__":
    print(trio.run(exchange))
