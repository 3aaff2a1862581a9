"""Machine guests and program guests share a host: each counts its own, whoever the others are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.guests.assemble import code_of, elf_of
from vpmu.errors import UserError
from vpmu.execution import execute
from vpmu.options import RunOptions
from vpmu.results import DesignResult, summary_bytes
from vpmu.scenario.load import parse_scenario

CPUS = 4
MACHINES, PROGRAMS = 8, 100
CONSOLE = b"sum: 60007 instructions, 20002 branches,"
"""What tests/guests/stat.s prints of its first loop: the enabling wrmsr, call, mov, 20,000 times three, ret,
and mov, xor, xor before the disabling one; of these call, 20,000 loops and ret are branches.
"""


def table(image: Path, machines: int, programs: int, ordinary: int = 0) -> dict[str, Any]:
    """Return a scenario; ``ordinary`` VMs of threads take the places of so many machines."""
    code = {
        "name": "code",
        "cycles": 20_000_000,
        "functions": [{"name": "f", "share": 1, "branches": "0.2"}],
    }
    session = {"name": "stat", "tool": "stat", "thread": "t", "events": ["instructions:u", "branches:u"]}
    thread = {"name": "t", "program": "code"}
    vms: list[dict[str, Any]] = [
        {"name": "program", "count": programs, "thread": [thread], "session": [session]}
    ]
    if machines:
        vms.append({"name": "machine", "count": machines, "image": str(image)})
    if ordinary:
        vms.append({"name": "machine", "count": ordinary, "thread": [{"name": "t", "kind": "spin"}]})
    host = {"name": "host", "cpus": CPUS, "kvm": "7.0", "watchdog": True}
    return {"version": 1, "until": "4 s", "host": [host], "program": [code], "vm": vms}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "stat.elf"
    path.write_bytes(elf_of(code_of("stat")))
    return path


async def run(scenario: dict[str, Any], design: str, **choices: Any) -> DesignResult:
    result = await execute(parse_scenario(scenario), RunOptions(designs=(design,), **choices))
    return result.designs[design]


@pytest.mark.parametrize("design", ["legacy", "optimized", "native"])
async def test_eight_machines_among_a_hundred_programs(design: str, image: Path, tmp_path: Path):
    """All programs end, and what they count is the truth, as if the machines were ordinary VMs."""
    shared = await run(table(image, MACHINES, PROGRAMS), design, out=tmp_path / "out", keep=frozenset())
    assert [machine.end for machine in shared.machines] == ["exit 0"] * MACHINES
    for machine in shared.machines:
        text = (tmp_path / "out" / design / f"{machine.vm}.console.txt").read_bytes()
        assert text.startswith(CONSOLE)
    ordinary = await run(table(image, 0, PROGRAMS, ordinary=MACHINES), design)
    for result in (shared, ordinary):
        assert len(result.counters) == 2 * PROGRAMS
        assert [row.count for row in result.counters] == [row.truth for row in result.counters]
        assert result.unfinished == []
    assert [row.count for row in shared.counters] == [row.count for row in ordinary.counters]


async def test_the_same_bytes_twice(image: Path):
    scenario = table(image, 2, 5)
    results = [await execute(parse_scenario(scenario), RunOptions(designs=("optimized",))) for _ in range(2)]
    assert summary_bytes(results[0]) == summary_bytes(results[1])


@pytest.mark.parametrize("choices", [{"workers": 2}, {"messages": True, "workers": 3}])
async def test_it_is_one_process_only(image: Path, choices: dict[str, Any]):
    with pytest.raises(UserError, match=r"executes an image: all of its run is in one process"):
        await run(table(image, 1, 1), "optimized", **choices)
