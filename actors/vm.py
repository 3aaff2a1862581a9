"""A virtual machine: the nursery of its vCPUs, each of which starts when it is first spoken to."""

import trio

from vpmu.actors.actor import Effects, live
from vpmu.actors.machine import Machine, VcpuEntry
from vpmu.actors.mailbox import Mailboxes
from vpmu.actors.messages import Address, Message, vcpu
from vpmu.actors.rows import RowMap
from vpmu.actors.vcpu import VCpu

MAILBOX = 4
"""Messages that wait for a vCPU; its physical CPU sends one and waits for the answer."""


class Vm:
    """Owns the vCPUs of a virtual machine that live in this process.

    Takes what is for one of them and hands it on; emits what they emit. It stops when their mailboxes are
    closed.

    Parameters
    ----------
    machine : Machine
        Of this process.
    name : str
        The VM's.
    vcpus : list of VcpuEntry
        Its vCPUs that live here.
    rows : RowMap
        Of the machine.
    """

    def __init__(self, machine: Machine, name: str, vcpus: list[VcpuEntry], rows: RowMap) -> None:
        self.name = name
        self._machine = machine
        self._rows = rows
        self._entries = {vcpu(entry.index): entry for entry in vcpus}
        self.vcpus: dict[Address, VCpu] = {}

    def handle(self, to: Address, message: Message) -> Effects:
        """Hand a message to one of the vCPUs."""
        return self.vcpu(to).handle(to, message)

    def vcpu(self, address: Address) -> VCpu:
        """Return a vCPU, started if it was not yet."""
        found = self.vcpus.get(address)
        if found is None:
            found = self.vcpus[address] = VCpu(self._machine, self._entries[address], self._rows)
        return found

    def addresses(self) -> list[Address]:
        """Return the vCPUs' addresses."""
        return list(self._entries)

    async def run(
        self, mailboxes: Mailboxes, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Let every vCPU live in this nursery, until its mailbox is closed; started once all have one."""
        async with trio.open_nursery() as nursery:
            for address in self._entries:
                nursery.start_soon(live, self, address, mailboxes.open(address, MAILBOX), mailboxes)
            task_status.started()
