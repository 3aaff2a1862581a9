"""Where a design's perf files go: takes the run's records, and its result at the end."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from vpmu.collect import KERNEL_NAME
from vpmu.errors import UserError
from vpmu.kernels.log import RECORD_EXIT, RECORD_SAMPLE, RECORD_THROTTLE
from vpmu.perfdata.encode import LOST
from vpmu.perfdata.features import System
from vpmu.perfdata.layout import Words
from vpmu.perfdata.plan import PlannedSession, plan_sessions
from vpmu.perfdata.stat_file import write_stat_session
from vpmu.perfdata.stat_rows import Index
from vpmu.perfdata.symbols import kernel_image, program_objects, write_tree
from vpmu.perfdata.writer import ROUND, RecordFile
from vpmu.profile import load_profile
from vpmu.results import PERF_DIRECTORY, remove_perf_files

if TYPE_CHECKING:
    from vpmu.actors.machine import Machine
    from vpmu.program import Program
    from vpmu.results import DesignResult
    from vpmu.scenario import Scenario

SYMFS: Final = "symfs"
KINDS: Final = (int(RECORD_SAMPLE), int(RECORD_THROTTLE), int(RECORD_EXIT))
"""Kinds of records that have to be logged for these files."""
GUEST_RELEASE: Final = "5.0.0"
_BUFFERED: Final = 1 << 19
"""Records in memory, all sessions together: 32 MB."""
_LEAST_BUFFERED: Final = 128
_KIND: Final = np.uint64(0xFF)


class PerfOutput:
    """Writes a design's perf files to ``DIRECTORY/DESIGN/perf``.

    They are made in a directory of a temporary name, which `complete` renames: it replaces what an earlier
    run left there.

    Parameters
    ----------
    directory : Path
        The results' directory.
    machine : Machine
        As built, not yet run.
    scenario : Scenario
        What it was built from.
    programs : mapping of str to Program
        What `vpmu.build.load_programs` returned.

    Raises
    ------
    UserError
        If a file cannot be written.
    """

    def __init__(
        self, directory: Path, machine: Machine, scenario: Scenario, programs: Mapping[str, Program]
    ) -> None:
        self.directory = directory / machine.design / PERF_DIRECTORY
        self._part = self.directory.with_name(f".{PERF_DIRECTORY}.part")
        shutil.rmtree(self._part, ignore_errors=True)
        self._cpus = {host.name: load_profile(host.profile).cpu for host in scenario.hosts}
        self._sessions = plan_sessions(machine, scenario)
        self._kernel = kernel_image(KERNEL_NAME)
        self._objects = program_objects(
            {name: programs[name] for v in machine.vcpus for name in (t.program for t in v.threads)}
        )
        write_tree(self._part / SYMFS, self._kernel, [each for its in self._objects.values() for each in its])
        self._until_ns = int(machine.until_ns)
        wanted = [session for session in self._sessions if session.spec.tool == "record"]
        places = sum(len(session.places) for session in wanted)
        buffered = min(ROUND, max(_LEAST_BUFFERED, _BUFFERED // max(places, 1)))
        self.files = [self._open(session, programs, buffered) for session in wanted]
        self._routes: dict[int, list[tuple[int, RecordFile, int, Words]]] = {}
        for file in self.files:
            self._add_routes(file)
        self._kinds = np.zeros(256, dtype=bool)
        self._kinds[[*KINDS, int(LOST)]] = True

    def take(self, records: Words) -> None:
        """Take records, ``uint64[n, 8]``, of any kinds; the array may be overwritten afterwards."""
        chosen = self._kinds[records[:, 0] & _KIND]
        mine = records if chosen.all() else records[chosen]
        if not len(mine):
            return
        actors = mine[:, 2]
        if (actors == actors[0]).all():
            self._route(int(actors[0]), mine)
            return
        mine = mine[np.argsort(actors, kind="stable")]
        cuts = np.flatnonzero(np.diff(mine[:, 2])) + 1
        for group in np.split(mine, cuts):
            self._route(int(group[0, 2]), group)

    def complete(self, result: DesignResult) -> None:
        """Complete all files, those of perf stat from the run's result, and give the directory its name."""
        for file in self.files:
            file.close()
        index = Index(result)
        for session in self._sessions:
            if session.spec.tool == "stat":
                write_stat_session(self._part, session, self._system(session), index)
        remove_perf_files(self.directory.parent)
        try:
            self._part.replace(self.directory)
        except OSError as error:
            raise UserError(f"cannot write: {error.strerror or error}", file=str(self.directory)) from None

    def discard(self) -> None:
        """Remove what was written, if it is not complete."""
        shutil.rmtree(self._part, ignore_errors=True)

    def _open(self, session: PlannedSession, programs: Mapping[str, Program], buffered: int) -> RecordFile:
        system = self._system(session)
        return RecordFile(
            self._part, session, system, programs, self._objects, self._kernel, self._until_ns, buffered
        )

    def _system(self, session: PlannedSession) -> System:
        """Return what the files say of a session's VM; a guest sees its host's CPU."""
        cpu = self._cpus[session.machine_spec.host]
        cpu_id = f"GenuineIntel,{cpu.family},{cpu.model_number},1"
        return System(session.vm, GUEST_RELEASE, session.machine_spec.vcpus, cpu.model, cpu_id)

    def _add_routes(self, file: RecordFile) -> None:
        for number, place in enumerate(file.session.places):
            threads = [task.number for task in file.session.measured if place.measures(task)]
            route = (place.index, file, number, np.array(threads, dtype=np.uint64))
            self._routes.setdefault(place.actor, []).append(route)

    def _route(self, actor: int, records: Words) -> None:
        """Hand one guest's records to the sessions they are of; an exit is of all that know the thread."""
        routes = self._routes.get(actor, ())
        if not routes:
            return
        kinds = records[:, 0] & _KIND
        is_exit = kinds == RECORD_EXIT
        sampled = kinds == RECORD_SAMPLE
        owner = np.where(sampled, records[:, 7] >> np.uint64(24), records[:, 4] >> np.uint64(8))
        index = owner & np.uint64(0xFFFF)
        for session, file, place, threads in routes:
            here = (index == session) & ~is_exit
            if is_exit.any():
                watching = (records[:, 1] >= file.session.start_ns) & (records[:, 1] <= file.end_ns)
                here |= is_exit & watching & np.isin(records[:, 4], threads)
            if here.any():
                file.add(place, records if here.all() else records[here])
