"""A guest that does nothing but what a test tells it: user code, register accesses, and a PMI handler of
three accesses.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.truth.machines import LOOPS, RECORD_ACCESS, Table, machine, scenario, word
from vpmu.actors.local import drain_log
from vpmu.kernels import columns as col
from vpmu.kernels.advance import advance
from vpmu.kernels.engine import STOP_WAIT
from vpmu.kernels.guest.threads import THREAD_REPLAY
from vpmu.kernels.integers import NEVER
from vpmu.kernels.jit import U64

READ, WRITE, RDPMC = 1, 2, 3
GLOBAL_STATUS, GLOBAL_OVF_CTRL, LVTPC = 0x38E, 0x390, 0x834
NMI = 0x400


class Access(NamedTuple):
    """One access, after so many cycles of user code."""

    cycles: int
    operation: int
    register: int
    value: int = 0


class Seen(NamedTuple):
    """What came of an access: 0 or 1 (#GP), and the word read or written."""

    operation: int
    register: int
    outcome: int
    value: int


class RawGuest:
    """One vCPU on one CPU whose accesses come from the test, one at a time.

    A PMI is handled by reading GLOBAL_STATUS, clearing what it said, and reading and opening LVTPC;
    GLOBAL_CTRL stays as it is.
    """

    def __init__(self, design: str, tools: list[Table] | None = None, program: Table = LOOPS) -> None:
        thread = {"name": "raw", "program": program["name"]}
        vm = {"name": "vm", "cpus": [0], "hz": 1, "thread": [thread]}
        table = scenario(until="10000 s", program=[program], vm=[vm], tool=tools or [])
        self.machine = machine(table, design, keep=1 << RECORD_ACCESS)
        vcpu = self.machine.vcpus[0]
        self.guest, self.pcpu, self.vcpu = vcpu.guest, self.machine.pcpus[0].offset, vcpu.offset
        self.thread = vcpu.threads[0].offset
        self._set(self.thread, col.TH_TYPE, int(THREAD_REPLAY))
        self._set(self.thread, col.TH_END, 0)
        self._set(self.guest, col.G_STREAM_OPEN, 1)
        self._set(self.guest, col.G_TICK_AT, int(NEVER))
        self.seen: list[Seen] = []

    def _set(self, offset: int, column: Any, value: int) -> None:
        self.machine.arena[offset + int(column)] = U64(value)

    def _wait(self) -> None:
        """Advance until the guest has nothing to go on with; note what its access gave."""
        while word(self.machine, self.pcpu, col.P_STOP) != STOP_WAIT:
            advance(self.machine.arena, self.machine.log, U64(self.machine.until_ns), U64(1_000_000))
            for head, _, _, _, register, value, _, _ in drain_log(self.machine).tolist():
                if head & 0xFF == RECORD_ACCESS:
                    self.seen.append(Seen(head >> 16, register, head >> 8 & 0xFF, value))

    def _give(self, access: Access) -> None:
        record = self.guest + int(col.G_STREAM_RECORD)
        self.machine.arena[record] = U64(access.operation | access.register << 8)
        self.machine.arena[record + 1] = U64(access.value)
        self.machine.arena[record + 2] = U64(access.cycles)
        self._set(self.guest, col.G_STREAM, record)
        self._set(self.guest, col.G_STREAM_LEFT, 1)
        self._set(self.guest, col.G_KEPT, 0)
        self._set(self.pcpu, col.P_STOP, 0)
        self._wait()

    def _handle_pmis(self) -> None:
        """Handle the PMI that has come, and one that came meanwhile."""
        while word(self.machine, self.guest, col.G_IN_PMI):
            self._give(Access(0, READ, GLOBAL_STATUS))
            self._give(Access(0, WRITE, GLOBAL_OVF_CTRL, self.seen[-1].value))
            self._give(Access(0, READ, LVTPC))
            self._give(Access(0, WRITE, LVTPC, NMI))
            if word(self.machine, self.guest, col.G_NMI_PENDING):
                self._set(self.guest, col.G_NMI_PENDING, 0)
            else:
                self._set(self.guest, col.G_IN_PMI, 0)

    def run(self, program: list[Access]) -> list[Seen]:
        """Execute a program; return what came of every access, the handler's included."""
        self._wait()
        for access in program:
            self._run_code(access.cycles)
            self._give(access._replace(cycles=0))
        return self.seen

    def _run_code(self, cycles: int) -> None:
        """Let user code run, PMIs in between: the guest waits when it is done."""
        end = word(self.machine, self.thread, col.TH_END) + cycles
        self._set(self.thread, col.TH_END, end)
        while True:
            self._set(self.pcpu, col.P_STOP, 0)
            self._wait()
            if not word(self.machine, self.guest, col.G_IN_PMI):
                return
            self._handle_pmis()
