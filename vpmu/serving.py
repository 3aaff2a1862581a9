"""A host for remote guests: the desk of a scenario, and a whole run whose guests are tasks of this process.

from vpmu.guest import connect
from vpmu.scenario import load_scenario
from vpmu.serving import hosting

async with hosting(load_scenario("remote.toml"), "optimized") as host:
async with connect(host.port, vm="g0") as cpu:
await cpu.retire(instructions=1_000)
print(host.result().digest)
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from vpmu.actors.machine import Machine
from vpmu.actors.outside import Outside
from vpmu.build import build
from vpmu.cluster.guests.desk import Desk
from vpmu.cluster.guests.ports import InsidePort
from vpmu.cluster.guests.seats import seat_of
from vpmu.cluster.guests.serve import PATIENT, Patience, serve
from vpmu.collect import SampleCounter, collect
from vpmu.results import CutOffRow, DesignResult
from vpmu.scenario import Scenario


@dataclass(eq=False)
class Hosted:
    """A host in this process.

    Attributes
    ----------
    machine : Machine
        All state.
    desk : Desk
        Who is which vCPU.
    port : InsidePort
        Where guests connect.
    """

    machine: Machine
    desk: Desk
    port: InsidePort
    _samples: SampleCounter = field(default_factory=SampleCounter)

    def result(self) -> DesignResult:
        """Return what the run came to, once it is over."""
        result = collect(self.machine, self._samples)
        result.cut_off = rows_of(self.desk)
        return result


@asynccontextmanager
async def hosting(scenario: Scenario, design: str, patience: Patience = PATIENT) -> AsyncIterator[Hosted]:
    """Run a scenario whose remote guests are tasks of this process; at the block's end, wait for the run's.

    Parameters
    ----------
    scenario : Scenario
    design : str
    patience : Patience
        How long to wait for guests, by trio's clock.
    """
    machine = build(scenario, design)
    outside = Outside(machine)
    host = Hosted(machine, desk_of(scenario, machine, outside), InsidePort())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, outside, host.desk, host.port, patience, host._samples.add)
        yield host


def desk_of(scenario: Scenario, machine: Machine, outside: Outside) -> Desk:
    """Return the desk with a seat for each remote vCPU of a machine."""
    vms = {name: vm for vm in scenario.vms if vm.remote for name in vm.copies()}
    kvm = {host.name: host.kvm for host in scenario.hosts}
    return Desk(
        [
            seat_of(
                vcpu,
                machine.until_ns,
                hidden=vms[vcpu.vm].hide_events,
                anythread_deprecated=vcpu.intercepts and kvm[vms[vcpu.vm].host] == "7.0",
            )
            for vcpu in outside.vcpus
            if vcpu.vm in vms
        ]
    )


def rows_of(desk: Desk) -> list[CutOffRow]:
    """Return who was cut off, by time."""
    rows = [
        CutOffRow(vm=each.vm, vcpu=each.vcpu, at_ns=each.at_ns, reason=each.reason) for each in desk.cut_off
    ]
    return sorted(rows, key=lambda row: (row.at_ns, row.vm, row.vcpu))
