"""A ``perf record`` session's file, written as its records come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from vpmu.kernels.log import RECORD_SAMPLE
from vpmu.perfdata import features, records
from vpmu.perfdata.attr import Sampling, encode_attr
from vpmu.perfdata.encode import Tables, caller_tables, encode
from vpmu.perfdata.layout import FINISHED_ROUND, PerfFile, Words
from vpmu.perfdata.records import Stamp
from vpmu.perfdata.spool import Spool, merged
from vpmu.perfdata.symbols import KERNEL_ADDRESS, KERNEL_BYTES, KERNEL_DSO

if TYPE_CHECKING:
    from vpmu.perfdata.elf import Image
    from vpmu.perfdata.features import System
    from vpmu.perfdata.plan import PlannedSession, Task
    from vpmu.perfdata.symbols import Object
    from vpmu.program import Program

ROUND: Final = 8192
"""Records between two FINISHED_ROUND: what perf has to sort at once."""
_TIME: Final = 1


class RecordFile:
    """The ``perf.data`` file of a session, in the making.

    Parameters
    ----------
    directory : Path
        Where the file goes.
    session : PlannedSession
        Whose it is; its tool is ``record``.
    system : System
        What the header says of the guest.
    programs : mapping of str to Program
        What its threads execute.
    objects : mapping of str to sequences of Object
        The images of each program.
    kernel : Image
        The guest's vmlinux.
    until_ns : int
        When the run ends, at the latest.
    buffered : int
        Records of each vCPU that are kept in memory, at most `ROUND`.
    """

    def __init__(
        self,
        directory: Path,
        session: PlannedSession,
        system: System,
        programs: Mapping[str, Program],
        objects: Mapping[str, Sequence[Object]],
        kernel: Image,
        until_ns: int,
        buffered: int = ROUND,
    ) -> None:
        self.session = session
        self.samples = 0
        self.end_ns = until_ns if session.stop_ns is None else min(session.stop_ns, until_ns)
        self._system, self._objects, self._kernel = system, objects, kernel
        self._tables = make_tables(session, programs)
        self._ids = self._tables.ids.tolist()
        self._attrs = self._encode_attrs()
        self._first_ns = self._last_ns = 0
        self._buffers = [_Buffer(buffered) for _ in session.places]
        self._file = PerfFile(directory / f"{session.file_stem}.data", self._attrs, self._ids)
        self._spools = [
            Spool(directory / f".{session.file_stem}.{number}.part") for number in range(len(session.places))
        ]
        self._later = self._begin()

    def add(self, place: int, batch: Words) -> None:
        """Take records of the session on one of its vCPUs, in order.

        Parameters
        ----------
        place : int
            Index of the vCPU among the session's.
        batch : uint64[n, 8]
            Samples, throttles, exits and losses; free to be overwritten afterwards.
        """
        for chunk in self._buffers[place].take(batch):
            self._store(place, chunk)

    def close(self) -> None:
        """Write what is buffered, put the vCPUs' records in order, complete the file."""
        for place, buffer in enumerate(self._buffers):
            self._store(place, buffer.rest())
        if len(self._spools) > 1:
            for batch, places in merged(self._spools, ROUND):
                self._write(batch, places)
            for spool in self._spools:
                spool.discard()
        self._file.write(*(blob for _, blob in self._later))
        self._file.close(self._features())

    def discard(self) -> None:
        """Remove what was written."""
        self._file.discard()
        for spool in self._spools:
            spool.discard()

    def _store(self, place: int, batch: Words) -> None:
        if not len(batch):
            return
        if len(self._spools) > 1:
            self._spools[place].append(batch)
        else:
            self._write(batch, place)

    def _write(self, batch: Words, places: Words | int) -> None:
        """Write a batch in the order of time, with what starts meanwhile, as one round."""
        self._count(batch)
        if not self._later or self._later[0][0] > int(batch[-1, _TIME]):
            self._file.write(encode(batch, places, self._tables), FINISHED_ROUND)
            return
        due = [at for at, _ in self._later if at <= int(batch[-1, _TIME])]
        cuts = [0, *np.searchsorted(batch[:, _TIME], due).tolist(), len(batch)]
        where = np.broadcast_to(np.asarray(places, dtype=np.uint64), len(batch))
        chunks: list[bytes | Words] = []
        for (first, last), blob in zip(
            pairwise(cuts), [*(blob for _, blob in self._later[: len(due)]), FINISHED_ROUND], strict=True
        ):
            if last > first:
                chunks.append(encode(batch[first:last], where[first:last], self._tables))
            chunks.append(blob)
        del self._later[: len(due)]
        self._file.write(*chunks)

    def _count(self, batch: Words) -> None:
        sampled = np.flatnonzero((batch[:, 0] & np.uint64(0xFF)) == RECORD_SAMPLE)
        if not len(sampled):
            return
        if not self.samples:
            self._first_ns = int(batch[sampled[0], _TIME])
        self._last_ns = int(batch[sampled[-1], _TIME])
        self.samples += len(sampled)

    def _encode_attrs(self) -> list[bytes]:
        spec = self.session.spec
        frequency = 0 if spec.period else spec.frequency or 0
        sampling = Sampling(self._tables.sample_type, frequency, spec.period or 0)
        return [
            encode_attr(
                event,
                user_only=spec.user_only,
                of_task=bool(spec.thread),
                first=number == 0,
                sampling=sampling,
            )
            for number, event in enumerate(self.session.events)
        ]

    def _begin(self) -> list[tuple[int, bytes]]:
        """Write what perf notes at its start; return what begins later, with its time, in order."""
        nobody = self._stamp(0, 0)
        begin = records.kernel_mmap(nobody, KERNEL_ADDRESS, KERNEL_BYTES)
        begin += records.comm(self._stamp(records.INIT_PID, records.INIT_PID), "init", is_exec=False)
        later = []
        for task in self.session.measured:
            noted = self._note_task(task)
            if task.start_ns <= self.session.start_ns:
                begin += noted
            elif task.start_ns < self.end_ns:
                later.append((task.start_ns, noted))
        self._file.write(begin, FINISHED_ROUND)
        return sorted(later, key=lambda item: item[0])

    def _note_task(self, task: Task) -> bytes:
        """Return what perf notes when a thread begins; its process has mapped its images before it runs."""
        begun = task.start_ns > self.session.start_ns
        stamp = self._stamp(task.pid, task.tid, task.start_ns if begun else 0)
        is_process = task.pid == task.tid
        noted = records.fork(stamp, records.INIT_PID if is_process else task.pid)
        noted += records.comm(stamp, task.name, is_exec=begun and is_process)
        if not is_process:
            return noted
        for each in self._objects[task.program]:
            for mapping in each.image.mappings:
                place = (mapping.address, mapping.size, mapping.file_offset)
                noted += records.mmap2(stamp, *place, each.inode, each.path)
        return noted

    def _stamp(self, pid: int, tid: int, at_ns: int = 0) -> Stamp:
        cpu = self.session.places[0].cpu
        return Stamp(pid, tid, at_ns, cpu, self._ids[0][0] if self._tables.has_ids else None)

    def _features(self) -> dict[int, bytes]:
        found = features.system_features(self._system, self.session.command())
        names = [event.name for event in self.session.events]
        found[features.EVENT_DESC] = features.event_desc(self._attrs, names, self._ids)
        found[features.BUILD_ID] = features.build_ids(self._images())
        if self.samples:
            found[features.SAMPLE_TIME] = features.sample_time(self._first_ns, self._last_ns)
        return found

    def _images(self) -> list[tuple[str, bytes, bool]]:
        programs = dict.fromkeys(task.program for task in self.session.measured)
        images = [(KERNEL_DSO, self._kernel.build_id, True)]
        images += [(o.path, o.image.build_id, False) for name in programs for o in self._objects[name]]
        return images


class _Buffer:
    """Records of one vCPU, handed on so many at a time."""

    def __init__(self, size: int) -> None:
        self._words: Words = np.empty((size, 8), dtype=np.uint64)
        self._used = 0

    def take(self, batch: Words) -> list[Words]:
        """Add records; return whole buffers, each good until the next one is taken."""
        size = len(self._words)
        if self._used == 0 and len(batch) == size:
            return [batch]
        full = []
        done = 0
        while done < len(batch):
            step = min(len(batch) - done, size - self._used)
            self._words[self._used : self._used + step] = batch[done : done + step]
            self._used += step
            done += step
            if self._used == size:
                full.append(self._words.copy() if done < len(batch) else self._words)
                self._used = 0
        return full

    def rest(self) -> Words:
        """Return what is left."""
        return self._words[: self._used]


def make_tables(session: PlannedSession, programs: Mapping[str, Program]) -> Tables:
    """Return what the numbers in a session's records mean."""
    places = session.places
    most = max((task.number for task in session.tasks), default=0)
    tasks = np.zeros((len(places), most + 1), dtype=np.uint64)
    chain_of = np.zeros_like(tasks)
    names = dict.fromkeys(task.program for task in session.measured)
    first, callers, depths = caller_tables({name: return_addresses(programs[name]) for name in names})
    for index, place in enumerate(places):
        for task in session.tasks:
            if task.cpu == place.cpu:
                tasks[index, task.number] = task.pid | task.tid << 32
                chain_of[index, task.number] = first.get(task.program, 0)
    events = len(session.events)
    ids = np.arange(1, events * len(places) + 1, dtype=np.uint64).reshape(events, len(places))
    cpus = np.array([place.cpu for place in session.places], dtype=np.uint64)
    return Tables(tasks, cpus, ids, chain_of, callers, depths)


def return_addresses(program: Program) -> list[list[int]]:
    """Return the return addresses of each chain of a program, the innermost first.

    The model knows no call sites: a caller is hit in its middle.
    """
    middles = [function.address + function.size // 2 for function in program.functions]
    return [[middles[function] for function in reversed(chain[:-1])] for chain in program.chains]
