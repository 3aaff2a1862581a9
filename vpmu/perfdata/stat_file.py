"""A ``perf stat`` session as a file for ``perf stat report``, and as perf prints it: text, CSV, JSON."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vpmu.errors import UserError
from vpmu.perfdata import features
from vpmu.perfdata.attr import encode_attr
from vpmu.perfdata.layout import (
    RECORD_CPU_MAP,
    RECORD_STAT,
    RECORD_STAT_CONFIG,
    RECORD_STAT_ROUND,
    RECORD_THREAD_MAP,
    PerfFile,
    record,
)
from vpmu.perfdata.stat_rows import Index, Reading, StatSession, stat_session
from vpmu.perfdata.stat_text import FORMATS, print_session

if TYPE_CHECKING:
    from vpmu.perfdata.features import System
    from vpmu.perfdata.plan import PlannedSession

_NO_CPU: Final = 0xFFFFFFFF
_AGGR_NONE: Final = 0
_AGGR_GLOBAL: Final = 1
_CONFIG_AGGR, _CONFIG_INTERVAL, _CONFIG_SCALE = 0, 1, 2
_ROUND_INTERVAL, _ROUND_FINAL = 0, 1
_COMM_BYTES: Final = 16
_NS_PER_MS: Final = 1_000_000


def write_stat_session(directory: Path, session: PlannedSession, system: System, result: Index) -> None:
    """Write a session's files: ``.data``, ``.txt``, ``.csv``, ``.json``.

    A session on whole vCPUs has the last three per CPU, too (``perf stat -A``).

    Raises
    ------
    UserError
        If a file cannot be written.
    """
    counted = stat_session(session, result)
    write_stat_data(directory / f"{session.file_stem}.data", session, system, counted)
    title = session.command()[-1] if session.spec.thread else "system wide"
    if not session.spec.thread and session.spec.vcpu is not None:
        title = f"CPU(s) {session.spec.vcpu}"
    for ending in FORMATS:
        stem = session.file_stem
        _write(directory / f"{stem}.{ending}", print_session(counted, ending, title))
        if counted.cpus:
            text = print_session(counted, ending, title, per_cpu=True)
            _write(directory / f"{stem}.per-cpu.{ending}", text)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write: {error.strerror or error}", file=str(path)) from None


def write_stat_data(path: Path, session: PlannedSession, system: System, counted: StatSession) -> None:
    """Write what ``perf stat record`` would have written."""
    attrs = [
        encode_attr(
            event,
            user_only=session.spec.user_only,
            of_task=bool(session.spec.thread),
            first=False,
            sampling=None,
        )
        for event in session.events
    ]
    places = len(counted.cpus) or len(counted.threads)
    ids = [[1 + number * places + place for place in range(places)] for number in range(len(attrs))]
    file = PerfFile(path, attrs, ids)
    file.write(_maps(counted), *(_round(counted, ids, number) for number in range(len(counted.rounds))))
    names = [event.name for event in session.events]
    found = features.system_features(system, session.command())
    found |= {features.EVENT_DESC: features.event_desc(attrs, names, ids), features.STAT: b""}
    file.close(found)


def _maps(counted: StatSession) -> bytes:
    """Return what comes first: threads, CPUs and how perf was called."""
    threads = counted.threads or ((_NO_CPU, ""),)
    body = struct.pack("<Q", len(threads))
    for tid, name in threads:
        body += struct.pack("<Q", tid) + name.encode()[: _COMM_BYTES - 1].ljust(_COMM_BYTES, b"\0")
    cpus = counted.cpus or (0xFFFF,)
    config = {
        _CONFIG_AGGR: _AGGR_GLOBAL,
        _CONFIG_INTERVAL: -(-counted.interval_ns // _NS_PER_MS),
        _CONFIG_SCALE: 1,
    }
    pairs = b"".join(struct.pack("<QQ", *pair) for pair in config.items())
    return (
        record(RECORD_THREAD_MAP, 0, body)
        + record(RECORD_CPU_MAP, 0, struct.pack(f"<HH{len(cpus)}H", 0, len(cpus), *cpus))
        + record(RECORD_STAT_CONFIG, 0, struct.pack("<Q", len(config)) + pairs)
    )


def _round(counted: StatSession, ids: list[list[int]], number: int) -> bytes:
    """Return one round's readings, totals so far, and the record that ends it."""
    at = counted.rounds[number]
    body = b""
    for event, readings in zip(ids, at.readings, strict=True):
        for place, reading in enumerate(readings):
            cpu, thread = (counted.cpus[place], 0) if counted.cpus else (_NO_CPU, place)
            body += _stat(event[place], cpu, thread, reading)
    kind = _ROUND_INTERVAL if counted.interval_ns else _ROUND_FINAL
    return body + record(RECORD_STAT_ROUND, 0, struct.pack("<QQ", kind, at.at_ns))


def _stat(number: int, cpu: int, thread: int, reading: Reading) -> bytes:
    times = (reading.count, reading.enabled_ns, reading.running_ns)
    return record(RECORD_STAT, 0, struct.pack("<QIIQQQ", number, cpu, thread, *times))
