"""Message mode in memory: every actor of a machine with a mailbox, in one nursery, without a socket."""

import trio

from vpmu.actors.actor import Effects, live, post
from vpmu.actors.host_perf import HostPerf
from vpmu.actors.machine import Machine
from vpmu.actors.mailbox import Mailboxes
from vpmu.actors.messages import Address, Message, physical_cpu
from vpmu.actors.physical_cpu import Guests, PhysicalCpus
from vpmu.actors.rows import RowMap
from vpmu.actors.vm import Vm
from vpmu.kernels.columns import H_REMOTE
from vpmu.kernels.jit import U64


class _Turning:
    """Physical CPUs that go on after every message; they close all mailboxes once they are at the end."""

    def __init__(self, cpus: PhysicalCpus, mailboxes: Mailboxes) -> None:
        self._cpus = cpus
        self._mailboxes = mailboxes

    def handle(self, to: Address, message: Message) -> Effects:
        return self._cpus.handle(to, message) + self.advance()

    def advance(self) -> Effects:
        effects, more = self._cpus.turn()
        while more:
            further, more = self._cpus.turn()
            effects += further
        if self._cpus.finished:
            self._mailboxes.close_all()
            return []
        return effects


async def run_by_messages(machine: Machine) -> None:
    """Run a machine to its end, every access, call and PMI handed over in memory.

    The log has to hold all records that the machine keeps.
    """
    rows = RowMap(machine)
    shares = {}
    for host in machine.hosts:
        machine.arena[host.offset + int(H_REMOTE)] = U64(1)
        pcpus = [pcpu for pcpu in machine.pcpus if pcpu.host == host.index]
        shares[host.index] = {physical_cpu(pcpus[0].index): pcpus}
    everybody = {address: pcpus for each in shares.values() for address, pcpus in each.items()}
    here = {pcpu.offset for pcpu in machine.pcpus}
    cpus = PhysicalCpus(machine, everybody, rows, Guests.ANSWER)
    perfs = [HostPerf(machine, host, shares[host.index], here, rows) for host in machine.hosts]
    mailboxes = Mailboxes()
    turning = _Turning(cpus, mailboxes)
    capacity = len(machine.pcpus) + len(machine.vcpus)
    async with trio.open_nursery() as nursery:
        for name in dict.fromkeys(each.vm for each in machine.vcpus):
            vcpus = [each for each in machine.vcpus if each.vm == name]
            await nursery.start(Vm(machine, name, vcpus, rows).run, mailboxes)
        for perf in perfs:
            inbox = mailboxes.open(perf.address, capacity)
            nursery.start_soon(live, perf, perf.address, inbox, mailboxes)
        for pcpu in machine.pcpus:
            address = physical_cpu(pcpu.index)
            nursery.start_soon(live, turning, address, mailboxes.open(address, capacity), mailboxes)
        await post(turning.advance(), mailboxes)
    cpus.finish()
    for perf in perfs:
        perf.finish()
