"""One rank of a run: the actors that live in this process, between the hub and the kernels."""

from __future__ import annotations

import math
import time
from collections import deque

import msgspec
import numpy as np
import trio

from vpmu.actors.actor import Actor, Effects, UnexpectedMessage
from vpmu.actors.host_perf import HostPerf
from vpmu.actors.local import drain_log
from vpmu.actors.machine import Machine
from vpmu.actors.messages import Address, host_perf, physical_cpu, vcpu
from vpmu.actors.physical_cpu import Guests, PhysicalCpus
from vpmu.actors.rows import RowMap, Slices
from vpmu.actors.vm import Vm
from vpmu.cluster import proto
from vpmu.cluster.barrier import FLEET_ROWS, Barrier
from vpmu.cluster.checkpoint import FileNote, RankCheckpoints, Writing, Written, ranges_of
from vpmu.cluster.errors import RemoteProtocolError
from vpmu.cluster.hub import Hub
from vpmu.cluster.letters import KINDS, Reader, send
from vpmu.cluster.pace import Pace
from vpmu.cluster.proto import COORDINATOR, Frame, Kind
from vpmu.cluster.roles import Roles, pcpus_by_host, vms_of
from vpmu.cluster.watch import Watch
from vpmu.kernels.columns import (
    H_REMOTE,
    HOST_COLUMNS,
    P_NOW,
    P_STOP,
    R_LOG_CAPACITY,
    R_LOG_COUNT,
)
from vpmu.kernels.engine import STOP_AWAY
from vpmu.kernels.jit import U64, Arena

TELL_EVERY_S = 0.1
"""How often a rank says how far it has come."""
RECORDS_PER_FRAME = 1 << 12
LETTERS_PER_TURN = 256
"""Letters answered in the hub's task before `run` has a turn: to send records, to say how far we are."""


class Seat:
    """A rank: owns its copy of the arena, the actors with rows in it, and the order in which both are served.

    Takes frames from the hub's task and answers them there at once; long work is done in turns by `run`. It
    ends when every physical CPU of the run is at the end.

    Parameters
    ----------
    hub : Hub
        Of this process.
    rank : int
        Its number.
    machine : Machine
        Built as in every rank.
    roles : Roles
        Who lives where.
    writing : Writing, optional
        For a run with checkpoints: then records go to a journal.
    """

    def __init__(
        self, hub: Hub, rank: int, machine: Machine, roles: Roles, writing: Writing | None = None
    ) -> None:
        self._hub = hub
        self._rank = rank
        self._machine = machine
        self._roles = roles
        self._rows = RowMap(machine)
        self._whole = set(roles.whole_hosts(rank))
        self._advances = rank in roles.cpu_ranks()
        self._company = sorted(set(roles.rank_of.values()))
        """Ranks with an actor."""
        self._shares = roles.local_shares(rank)
        self._here = {pcpu.offset for pcpus in self._shares.values() for pcpu in pcpus}
        self._words = machine.arena.data
        self._reader = Reader(machine.arena.size)
        self._kick = trio.Event()
        self._over = trio.Event()
        self._done: set[int] = set()
        self._log: deque[Arena] = deque()
        self._told_at = 0.0
        self._nr_letters = 0
        self._mark_hosts()
        self._pcpus_of = pcpus_by_host(machine)
        self._checkpoints = None if writing is None else RankCheckpoints(writing, rank, machine)
        self.cpus = PhysicalCpus(machine, self._shares, self._rows, roles.guests)
        self._barrier = Barrier(
            machine,
            self._rows,
            rank,
            lambda cpu: roles.rank_of[physical_cpu(cpu)],
            roles.rank_of_state,
            self._moving,
            None if writing is None else Pace(writing.every_s, writing.at_ns),
            None if writing is None else writing.due,
        )
        self._of_whole = ranges_of(())
        self._written, self._unsynced = trio.open_memory_channel[Written](math.inf)
        self._later: deque[Frame] = deque()
        """Letters from ranks that are a window ahead."""
        self.perfs = self._host_perfs()
        self.vms = self._own_vms()
        self._actors: dict[Address, Actor] = {address: vm for vm in self.vms for address in vm.addresses()}
        self._actors.update(self.perfs)
        self._actors.update(dict.fromkeys(self.cpus.addresses(), self.cpus))
        self.watch = Watch(self.clock_ns, self._nr_vcpus(), hub=hub, labels={"rank": str(rank)})
        self._log_half = int(machine.arena[R_LOG_CAPACITY]) // 2
        self._begin_window()
        for kind in KINDS:
            hub.on_kind(kind, self._on_letter)
        hub.on_kind(Kind.WINDOW, self._on_window)

    def _mark_hosts(self) -> None:
        """Tell the kernel which hosts and physical CPUs it advances."""
        s = self._machine.arena
        for host in self._machine.hosts:
            if host.index not in self._whole:
                s[host.offset + int(H_REMOTE)] = U64(1)
        for pcpu in self._machine.pcpus:
            if pcpu.host not in self._whole and pcpu.offset not in self._here:
                s[pcpu.offset + int(P_STOP)] = STOP_AWAY

    def _host_perfs(self) -> dict[Address, HostPerf]:
        return {
            host_perf(host): HostPerf(
                self._machine, self._machine.hosts[host], shares, self._here, self._rows
            )
            for host, shares in self._roles.shares.items()
            if self._roles.rank_of[host_perf(host)] == self._rank
        }

    def _own_vms(self) -> list[Vm]:
        if self._roles.guests is Guests.HERE:
            return []
        mine = [v for v in self._machine.vcpus if self._roles.rank_of[vcpu(v.index)] == self._rank]
        return [Vm(self._machine, name, vcpus, self._rows) for name, vcpus in vms_of(mine).items()]

    def _moving(self, v: int) -> Slices:
        """Return what of a vCPU goes with it to the physical CPU of another host."""
        return self._rows.thread(v) + self.cpus.moving_slices(v)

    def _begin_window(self) -> None:
        until_ns = self._barrier.next_ns
        self.cpus.go_on(until_ns)
        for perf in self.perfs.values():
            perf.go_on(until_ns)
        if not self._advances and until_ns < self._machine.until_ns:
            self._barrier.reach(0)

    def _on_fleet(self, frame: Frame) -> None:
        """Take what a rank says at the end of a window; go on once all have spoken."""
        rank = frame.header.source_rank
        if rank not in self._roles.cpu_ranks():
            raise RemoteProtocolError("speaks of a fleet, but has no physical CPU")
        self._barrier.take(rank, frame.records)
        self._pass_barrier()

    def _pass_barrier(self) -> None:
        """Begin the next window if everybody is at the end of this one."""
        if not self._barrier.waits or self._barrier.told_by != self._roles.cpu_ranks():
            return
        if self._barrier.pass_on():
            self._write_checkpoint()
        self._begin_window()
        self._kick.set()
        later, self._later = self._later, deque()
        for frame in later:
            self._on_letter(frame)

    def _write_checkpoint(self) -> None:
        """Write this rank's rows and records, all being at the end of a window."""
        if self._checkpoints is None:
            raise RemoteProtocolError("wants a checkpoint, but nobody asked for any")
        began = time.perf_counter()
        self._drain_log()
        for perf in self.perfs.values():
            perf.settle()
        if self._barrier.changed:
            self._barrier.changed = False
            self._of_whole = ranges_of(self._owned_whole())
        ranges = np.concatenate([self._of_whole, ranges_of(self._owned_shared())])
        nr_ranks = len(self._roles.cpu_ranks())
        at_ns, pending = self._barrier.at_ns, self._barrier.pending
        self._written.send_nowait(self._checkpoints.write(at_ns, ranges, nr_ranks, pending))
        self.watch.saving_s += time.perf_counter() - began
        self.watch.saves += 1

    async def _tell_checkpoints(self) -> None:
        """Tell the coordinator of each checkpoint once the disk has it."""
        async for each in self._unsynced:
            await trio.to_thread.run_sync(each.sync)
            data = proto.pack_bytes(msgspec.msgpack.encode(each.note))
            await self._hub.send(Kind.CHECKPOINT, COORDINATOR, data)

    def close_journal(self) -> FileNote | None:
        """Complete the records' file of a run with checkpoints; return it as it is."""
        return None if self._checkpoints is None else self._checkpoints.journal.close()

    def _nr_vcpus(self) -> int:
        here = self._roles.rank_of
        return sum(here.get(vcpu(each.index)) == self._rank for each in self._machine.vcpus)

    def _on_letter(self, frame: Frame) -> None:
        if self._barrier.waits and frame.header.source_rank in self._barrier.told_by:
            self._later.append(frame)
            return
        if frame.header.kind == Kind.ROWS and frame.header.request == FLEET_ROWS:
            self._on_fleet(frame)
            return
        message = self._reader.read(frame)
        if message is None:
            return
        to = self._reader.address(frame.header.destination_actor)
        if self._roles.rank_of.get(message.source) != frame.header.source_rank:
            raise RemoteProtocolError(f"speaks for {message.source}, which does not live there")
        actor = self._actors.get(to)
        try:
            if actor is None:
                raise UnexpectedMessage(f"a {type(message).__name__} for {to}, which is not here")
            self._send(actor.handle(to, message))
        except UnexpectedMessage as error:
            raise RemoteProtocolError(str(error)) from None
        if actor is self.cpus:
            self._turn()
        self._note_letter()

    def _send(self, effects: Effects) -> None:
        for to, message in effects:
            rank = self._roles.rank_of.get(to)
            if rank is None:
                raise UnexpectedMessage(f"a {type(message).__name__} is to go to {to}, which is nowhere")
            send(self._hub, rank, to, message)

    def _turn(self) -> bool:
        """Advance once; what is left to do is left to `run`."""
        effects, more = self.cpus.turn()
        self.watch.stops += 1 + len(effects)
        self._send(effects)
        if more or self.cpus.finished:
            self._kick.set()
        return more

    def _note_letter(self) -> None:
        """Keep the log from filling up, and let `run` have its turn now and then."""
        if self._words[R_LOG_COUNT] > self._log_half:
            self._drain_log()
            self._kick.set()
        self._nr_letters += 1
        if self._nr_letters % LETTERS_PER_TURN == 0:
            self._kick.set()

    def _drain_log(self) -> None:
        if self._checkpoints is not None:
            self._checkpoints.journal.append(drain_log(self._machine))
            return
        records = drain_log(self._machine).copy()
        for first in range(0, len(records), RECORDS_PER_FRAME):
            self._log.append(records[first : first + RECORDS_PER_FRAME])

    def _on_window(self, frame: Frame) -> None:
        if frame.header.destination_actor:
            self._on_letter(frame)
            return
        rank = frame.header.source_rank
        if rank in self._done or rank not in self._roles.cpu_ranks():
            raise RemoteProtocolError("says out of turn that it is done")
        self._done.add(rank)
        if self._done == self._roles.cpu_ranks():
            self._over.set()

    async def run(self) -> None:
        """Take part until every physical CPU of the run is at the end."""
        await self._hub.wait_go()
        self.watch.begin()
        async with trio.open_nursery() as nursery, self._written:
            nursery.start_soon(self._tell_checkpoints)
            async with trio.open_nursery() as turns:
                turns.start_soon(self._take_turns)
                await self._over.wait()
                turns.cancel_scope.cancel()
        await self._send_log()
        self.cpus.finish()
        for perf in self.perfs.values():
            perf.finish()

    async def _take_turns(self) -> None:
        advances = self._advances
        while True:
            while advances and self._turn():
                await self._send_log()
                await self._tell()
            if advances and self.cpus.finished and self._barrier.next_ns < self._machine.until_ns:
                if not self._barrier.waits:
                    await self._reach_barrier()
                    continue
            elif advances and self.cpus.finished and not self._barrier.waits:
                advances = False
                for rank in range(self._roles.nr_ranks):
                    self._hub.send_record_nowait(Kind.WINDOW, rank, (0,), at_ns=self._machine.until_ns)
            await self._send_log()
            await self._tell()
            await self._kick.wait()
            self._kick = trio.Event()

    async def _reach_barrier(self) -> None:
        """Tell every rank with an actor that this one is at the end of a window."""
        frames = self._barrier.reach(self._roles.nr_ranks)
        for rank in self._company:
            await self._hub.send(Kind.ROWS, rank, frames[rank], request=FLEET_ROWS)

    async def _tell(self) -> None:
        """Say how far this rank has come."""
        await trio.lowlevel.checkpoint()
        now = trio.current_time()
        if now >= self._told_at + TELL_EVERY_S and self._advances:
            self._told_at = now
            clock = np.array([[self.clock_ns(), *self.watch.waits().words()]], dtype=np.uint64)
            # Behind many records there may be no room for it at once.
            await self._hub.send(Kind.WINDOW, COORDINATOR, clock)

    def clock_ns(self) -> int:
        """Return how far the slowest physical CPU of this rank has come."""
        clocks = [self._words[p.offset + int(P_NOW)] for p in self._machine.pcpus if p.host in self._whole]
        return min([self.cpus.clock_ns(), *clocks])

    async def _send_log(self) -> None:
        """Send the records so far to whoever started the run.

        Note that it may be cancelled while it waits for room: what is not sent then stays for the next call.
        """
        self._drain_log()
        while self._log:
            await self._hub.send(Kind.RECORDS, COORDINATOR, self._log[0])
            self._log.popleft()

    def owned(self) -> Slices:
        """Return what of the arena this rank has the true copy of, at the end of a run."""
        return self._owned_whole() + self._owned_shared()

    def _owned_whole(self) -> Slices:
        """Return the rows of hosts that live here as a whole, and of vCPUs that have left them."""
        rows = self._rows
        slices: Slices = []
        for host in sorted(self._whole):
            slices.append((self._machine.hosts[host].offset, HOST_COLUMNS))
            for p in (pcpu.offset for pcpu in self._pcpus_of[host]):
                slices += rows.pcpu(p) + rows.pcpu_perf(p)
                for v in rows.queued(p):
                    slices += rows.thread(v) + rows.state(v) + rows.task(v) + rows.guest(v)
        for v in self._barrier.gone():
            slices += rows.thread(v) + self.cpus.kept_slices(v)
        return slices

    def _owned_shared(self) -> Slices:
        """Return what this rank owns of hosts that live in several."""
        slices = self._owned_by_cpus() + self._owned_by_perfs()
        for vm in self.vms:
            for address in vm.addresses():
                v = self._machine.vcpus[address.index].offset
                if self._roles.guests is Guests.ANSWER:
                    slices += self._rows.guest(v)
                elif vm.vcpu(address).at_home:
                    slices += self._rows.state(v) + self._rows.guest(v)
        return slices

    def _owned_by_cpus(self) -> Slices:
        rows = self._rows
        slices: Slices = []
        for p in sorted(self._here):
            slices += rows.pcpu(p)
            if self._roles.guests is not Guests.ANSWER:
                slices += rows.pcpu_perf(p)
        for v in self.cpus.residents():
            slices += rows.thread(v) + self.cpus.kept_slices(v)
        for v in self.cpus.visitors:
            slices += rows.state(v) + rows.guest(v)
        return slices

    def _owned_by_perfs(self) -> Slices:
        slices: Slices = []
        for address in self.perfs:
            host = self._machine.hosts[address.index]
            slices.append((host.offset, HOST_COLUMNS))
            if self._roles.guests is Guests.ANSWER:
                for pcpu in self._machine.pcpus:
                    if pcpu.host == host.index:
                        slices += self._rows.pcpu_perf(pcpu.offset)
                for each in self._machine.vcpus:
                    if each.host == host.index:
                        slices += self._rows.task(each.offset)
        return slices
