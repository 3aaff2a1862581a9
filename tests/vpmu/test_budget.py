"""A kernel call's budget: it is kept to the step, and cutting a run into single steps changes nothing."""

from pathlib import Path

import pytest

from vpmu.actors.local import drain_log
from vpmu.build import build
from vpmu.collect import SampleCounter, collect
from vpmu.kernels.advance import advance
from vpmu.kernels.columns import R_ACCESSES
from vpmu.kernels.engine import STOP_BUDGET, STOP_LOG, STOP_WINDOW
from vpmu.kernels.jit import U64
from vpmu.scenario import load_scenario

PAUSES = Path(__file__).parents[2] / "examples" / "designs" / "pauses.toml"
DESIGNS = ["legacy", "optimized", "native"]


def run(design: str, steps: int) -> tuple[str, list[int]]:
    """Run the example with a budget; return its digest and how many accesses each call carried out."""
    machine = build(load_scenario(PAUSES, ["until=250 ms"]), design)
    accesses, stop, before = [], int(STOP_BUDGET), 0
    while stop in (int(STOP_BUDGET), int(STOP_LOG)):
        stop = int(advance(machine.arena, machine.log, U64(machine.until_ns), U64(steps)))
        drain_log(machine)
        accesses.append(int(machine.arena[R_ACCESSES]) - before)
        before += accesses[-1]
    assert stop == int(STOP_WINDOW)
    return collect(machine, SampleCounter()).digest, accesses


@pytest.mark.parametrize("design", DESIGNS)
def test_a_run_cut_into_single_steps_is_the_same_run(design: str):
    whole, accesses = run(design, 10**6)
    assert len(accesses) == 1
    assert sum(accesses) > 10
    cut, single = run(design, 1)
    assert cut == whole
    assert sum(single) == sum(accesses)
    # A step may complete one access and carry the next one out.
    assert max(single) <= 2
