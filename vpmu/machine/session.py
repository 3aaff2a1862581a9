"""Machine guests in a run: every VM of a scenario that has an image, in lock-step with all the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vpmu import sigint
from vpmu.actors.cpuid import leaf_0a
from vpmu.actors.outside import Outside, OutsideVcpu
from vpmu.collect import SampleCounter
from vpmu.errors import UserError
from vpmu.kernels.guest.step import GUEST_HALT
from vpmu.machine.clock import Rates
from vpmu.machine.image import Image, load_image
from vpmu.machine.machine import Machine, MachineConfig

if TYPE_CHECKING:
    from vpmu.actors.machine import Machine as Rows
    from vpmu.kernels.jit import Arena
    from vpmu.scenario import Scenario

_HALT = int(GUEST_HALT)


@dataclass(slots=True)
class Driven:
    """A machine guest and its vCPU."""

    vcpu: OutsideVcpu
    machine: Machine
    console: bytearray = field(default_factory=bytearray)
    halted: bool = False
    """Its last word was that it halts, without a timer to wake it."""


@dataclass(slots=True, frozen=True)
class GuestOptions:
    """What all machine guests of a run have in common.

    Parameters
    ----------
    memory
        Bytes of RAM.
    arguments
        The guests' command line, behind the image's name.
    forced_emulation
        Whether the prefix is there.
    """

    memory: int = 512 << 20
    arguments: tuple[str, ...] = ()
    forced_emulation: bool = True


class MachineGuests:
    """All machine guests of a run in this process.

    Parameters
    ----------
    scenario, rows
        The scenario, and what `vpmu.build.build` has made of it.
    options
        What its machine guests have in common.
    console
        Takes what guest number n writes to its serial port, besides what is kept.
    """

    def __init__(
        self,
        scenario: Scenario,
        rows: Rows,
        options: GuestOptions,
        console: Callable[[int, bytes], None] | None = None,
    ) -> None:
        self._console = console
        images = {name: vm.image for vm in scenario.vms if vm.image for name in vm.copies()}
        hidden = {name: vm.hide_events for vm in scenario.vms for name in vm.copies()}
        kvm = {host.name: host.kvm for host in scenario.hosts}
        rules = {name: kvm[vm.host] for vm in scenario.vms for name in vm.copies()}
        loaded = {path: load_image(Path(path), options.memory) for path in images.values()}
        self.outside = Outside(rows, frozenset(images))
        self.samples = SampleCounter()
        self.guests: list[Driven] = []
        for number, vcpu in enumerate(v for v in self.outside.vcpus if v.vm in images):
            if vcpu.vcpu:
                raise UserError(f"vm {vcpu.vm}: a machine guest has one vCPU")
            config = _config(vcpu, hidden[vcpu.vm], rules[vcpu.vm], options, scenario.seed)
            self.guests.append(self._guest(number, vcpu, loaded[images[vcpu.vm]], config))

    def _guest(self, number: int, vcpu: OutsideVcpu, image: Image, config: MachineConfig) -> Driven:
        text = bytearray()

        def write(data: bytes) -> None:
            text.extend(data)
            if self._console is not None:
                self._console(number, data)

        return Driven(vcpu, Machine(image, config, write), text)

    @property
    def over(self) -> bool:
        """Whether every machine guest has come to its end."""
        return all(guest.machine.is_over for guest in self.guests)

    def run(self, *, until_over: bool = True) -> None:
        """Advance the run to its end, or until every machine guest has come to its own."""
        while not self.outside.finished and not (until_over and self.over):
            self.samples.add(self.step())
            sigint.check()

    def step(self) -> Arena:
        """Go on until guests are asked, and let them answer; return the records of it, ``uint64[n, 8]``."""
        records = self.outside.advance()
        for guest in self.guests:
            self._serve(guest)
        return records

    @staticmethod
    def _serve(guest: Driven) -> None:
        grant = guest.vcpu.ask()
        if grant is None:
            return
        report = guest.machine.go(grant)
        guest.halted = report.reason == _HALT and report.timer_at_ns >= 1 << 62
        guest.vcpu.answer(report)


def _config(
    vcpu: OutsideVcpu, hidden: tuple[str, ...], kvm: str, options: GuestOptions, seed: int
) -> MachineConfig:
    version, nr_gp, nr_fixed, capabilities = vcpu.pmu
    return MachineConfig(
        Rates(vcpu.core_rate, vcpu.tsc_rate, vcpu.bus_rate),
        leaf_0a(version, nr_gp, nr_fixed, hidden=hidden, anythread_deprecated=kvm == "7.0"),
        intercepts=vcpu.intercepts,
        perf_capabilities=capabilities != 0,
        forced_emulation=options.forced_emulation,
        memory=options.memory,
        seed=seed + vcpu.index,
        arguments=options.arguments,
    )
