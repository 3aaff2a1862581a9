"""Streams of guest accesses, recorded from a run and made ready to be played again.

The recorded guest counts three events in one thread and samples cycles in another, and the two take turns:
its accesses are those of switches out and in, of PMIs and of ticks, in the order of Linux's driver.
"""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Final

import numpy as np

from vpmu.actors.local import run_machine
from vpmu.build import build
from vpmu.kernels import columns as col
from vpmu.kernels.guest.step import REPLAY_WORDS
from vpmu.kernels.guest.threads import THREAD_REPLAY
from vpmu.kernels.integers import NEVER
from vpmu.kernels.jit import U64
from vpmu.kernels.log import RECORD_ACCESS
from vpmu.scenario import parse_scenario

if TYPE_CHECKING:
    from vpmu.actors.machine import Machine
    from vpmu.kernels.jit import Arena

_HEAD: Final = """
version = 1
seed = 1
until = "3600 s"
[[program]]
name = "work"
cycles = 2_800_000_000
[[program.functions]]
name = "main"
share = 1
ipc = "1.5"
branches = "0.2"
dtlb_load_misses = "0.001"
[[host]]
name = "host"
noise = false
[[vm]]
name = "guest"
host = "host"
cpus = [0]
"""
_THREAD: Final = """
[[vm.thread]]
name = "{name}"
program = "work"
work = 100
"""
_SLEEPER: Final = """
[[vm.thread]]
name = "background"
kind = "sleeper"
wakeups = "2000/s"
burst = "20 us"
"""
_STAT: Final = """
[[vm.session]]
name = "stat"
tool = "stat"
thread = "counted"
events = ["branches", "cpu-cycles", "dTLB-load-misses"]
"""
_RECORD: Final = """
[[vm.session]]
name = "record"
tool = "record"
thread = "sampled"
events = ["cpu-cycles"]
frequency = 4000
user_only = true
"""
RECORDED: Final = (
    _HEAD + _THREAD.format(name="counted") + _THREAD.format(name="sampled") + _SLEEPER + _STAT + _RECORD
)
"""A guest that switches and samples a lot."""
REPLAYED: Final = _HEAD + _THREAD.format(name="replay")
"""A guest with nothing to do but to play a stream."""


def recorded_stream(nr_accesses: int, design: str = "optimized") -> Arena:
    """Record the first accesses of a guest: ``uint64[nr_accesses, REPLAY_WORDS]``, back to back."""
    machine = build(parse_scenario(tomllib.loads(RECORDED)), design)
    machine.arena[col.R_KEEP] = U64(1) << RECORD_ACCESS
    found: list[Arena] = []

    def keep(records: Arena) -> None:
        found.append(records.copy())

    until = 0
    while sum(map(len, found)) < nr_accesses:
        until += 1_000_000_000
        run_machine(machine, keep, until)
    log = np.concatenate(found)[:nr_accesses]
    stream = np.zeros((nr_accesses, int(REPLAY_WORDS)), np.uint64)
    stream[:, 0] = (log[:, 0] >> U64(16)) & U64(0xFF) | log[:, 4] << U64(8)
    stream[:, 1] = log[:, 5]
    return stream


def replay_machine(stream: Arena, design: str = "optimized") -> Machine:
    """Return a machine whose one guest plays a stream; `rewind` starts it."""
    machine = build(parse_scenario(tomllib.loads(REPLAYED)), design)
    machine.arena = np.concatenate([machine.arena, stream.reshape(-1)])
    guest = machine.vcpus[0].guest
    thread = machine.vcpus[0].threads[0].offset
    s = machine.arena
    s[thread + int(col.TH_TYPE)] = THREAD_REPLAY
    s[thread + int(col.TH_END)] = 0
    for timer in (col.G_TICK_AT, col.G_TIMER_AT):
        s[guest + int(timer)] = NEVER
    s[guest + int(col.G_TICK_NS)] = NEVER
    rewind(machine, stream)
    return machine


def rewind(machine: Machine, stream: Arena) -> None:
    """Put the guest at the stream's start."""
    guest = machine.vcpus[0].guest
    machine.arena[guest + int(col.G_STREAM)] = machine.arena.size - stream.size
    machine.arena[guest + int(col.G_STREAM_LEFT)] = len(stream)
