"""What a run gives: the tables of every design, written as ``summary.json``, read back and compared.

``docs/results.md`` documents the schema.  The bytes of ``summary.json`` are a function of scenario and seed:
nothing of the wall clock, of the machine or of the number of processes is in it; that is in ``timing.json``.
"""

from __future__ import annotations

import hashlib
import operator
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from vpmu.errors import UserError
from vpmu.records import FILES, RecordWriter

RESULTS_VERSION: Final = 1
SUMMARY: Final = "summary.json"
TIMING: Final = "timing.json"
PERF_DIRECTORY: Final = "perf"
"""Holds a design's files for perf, if they were asked for."""


class ActionRow(Struct, kw_only=True):
    """One guest action: how often it was called and how long it took, ns of virtual time."""

    action: str
    calls: int
    median_ns: int
    p99_ns: int
    max_ns: int
    total_ns: int


class ThreadRow(Struct, kw_only=True):
    """One guest thread: when it ran and what it lost.

    `run_ns` is wall time in the guest from start to end (or to the run's end), `cpu_ns` what the guest's
    scheduler gave it, `unmeasured_ns` how long the same work takes
    when nobody measures: its cycles at the core's frequency.
    """

    vm: str
    vcpu: int
    thread: str
    kind: str
    finished: bool
    start_ns: int
    end_ns: int
    run_ns: int
    cpu_ns: int
    unmeasured_ns: int = 0
    switches: int = 0


class IntervalRow(Struct, kw_only=True):
    """One line of ``perf stat -I``: what was counted since the line before."""

    at_ns: int
    count: int
    enabled_ns: int
    running_ns: int


class CounterRow(Struct, kw_only=True):
    """One event of a ``stat`` session: what the guest read, and what really happened."""

    vm: str
    vcpu: int
    session: str
    event: str
    count: int
    enabled_ns: int
    running_ns: int
    truth: int
    intervals: list[IntervalRow] = field(default_factory=list)

    @property
    def scaled(self) -> int:
        """The count scaled to the enabled time, as perf prints it when events were multiplexed."""
        if not self.running_ns or self.running_ns >= self.enabled_ns:
            return self.count
        return self.count * self.enabled_ns // self.running_ns


class FunctionRow(Struct, kw_only=True):
    """One function of a ``record`` session: its samples, and the cycles it really took."""

    name: str
    samples: int
    truth_cycles: int


class SampledEventRow(Struct, kw_only=True):
    """One event of a ``record`` session: what it had to see, and what became of it, in events.

    Whatever retired at its privilege levels while its session was on and its thread ran is `due`, and that is
    ``throttled + waiting + masked + stalled + sampled + merged + rest`` to the event.

    Attributes
    ----------
    due : int
        All of it, by the account of the truth.
    throttled : int
        perf had stopped the event until the next tick.
    waiting : int
        It had no counter of the guest's: others had their turn, or it had failed.
    masked : int
        It had one, but perf held the PMU off (GLOBAL_CTRL or the selector), as in its handlers.
    stalled : int
        The counter was on for the guest and did not count: no hardware stood behind it.
    sampled : int
        Sum of the samples' periods.
    merged : int
        Of periods that ended without a sample of their own, one PMI standing for several.
    rest : int
        Counted since the last sample, or dropped when frequency mode began a period anew.
    period : int
        Events that a sample was to stand for; in frequency mode those that give the frequency asked for over
        its enabled time.
    samples, skid, skid_max : int
        Samples; events from the period's end to the handler's look at the counter, their sum and the most.
    """

    event: str
    due: int
    throttled: int
    waiting: int
    masked: int
    stalled: int
    sampled: int
    merged: int
    rest: int
    period: int
    samples: int
    skid: int
    skid_max: int

    def lost_samples(self) -> dict[str, float]:
        """Return how many samples each cause has cost: its events over `period`."""
        causes = ("stalled", "throttled", "merged", "masked", "waiting")
        return {cause: getattr(self, cause) / self.period if self.period else 0.0 for cause in causes}


class ProfileRow(Struct, kw_only=True):
    """One ``record`` session."""

    vm: str
    vcpu: int
    session: str
    samples: int
    lost: int = 0
    throttled: int = 0
    functions: list[FunctionRow] = field(default_factory=list)
    events: list[SampledEventRow] = field(default_factory=list)


class StoodStillRow(Struct, kw_only=True):
    """One vPMC that had no hardware counter though the guest had enabled it, and what it missed."""

    vm: str
    vcpu: int
    pmc: str
    ns: int
    events: int


class CutOffRow(Struct, kw_only=True):
    """A remote guest that the host did not go on with: when it halted for ever, and why."""

    vm: str
    vcpu: int
    at_ns: int
    reason: str


class MachineRow(Struct, kw_only=True):
    """A machine guest: how it ended, what it retired, how late it noticed overflows, its console's hash."""

    vm: str
    end: str
    instructions: int
    branches: int
    pmis: int
    overflows: int
    late_most: int
    console_sha256: str


class DesignResult(Struct, kw_only=True):
    """A run of one design."""

    design: str
    digest: str
    until_ns: int
    end_ns: int
    actions: list[ActionRow] = field(default_factory=list)
    threads: list[ThreadRow] = field(default_factory=list)
    counters: list[CounterRow] = field(default_factory=list)
    profiles: list[ProfileRow] = field(default_factory=list)
    stood_still: list[StoodStillRow] = field(default_factory=list)
    accounting: dict[str, int] = field(default_factory=dict)
    host: dict[str, int] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)
    cut_off: list[CutOffRow] = field(default_factory=list)
    machines: list[MachineRow] = field(default_factory=list)
    """Both are in ``summary.json`` of runs that have any."""
    frames: dict[str, int] = field(default_factory=dict)
    """Frames between processes by kind; they depend on where the run was, and are not in ``summary.json``."""


class RunResult(Struct, kw_only=True):
    """A whole run: one `DesignResult` per design, by name in the order they were asked for."""

    version: int = RESULTS_VERSION
    digest: str
    seed: int
    scenario: str
    complete: bool = True
    reason: str = ""
    designs: dict[str, DesignResult]

    @classmethod
    def of(
        cls, scenario: str, seed: int, designs: list[DesignResult], *, complete: bool = True, reason: str = ""
    ) -> RunResult:
        """Put the designs' results together; the run's digest follows from theirs."""
        by_name = {result.design: result for result in designs}
        digest = combined_digest({name: result.digest for name, result in by_name.items()})
        return cls(
            digest=digest, seed=seed, scenario=scenario, complete=complete, reason=reason, designs=by_name
        )


def combined_digest(digests: Mapping[str, str]) -> str:
    """Return a run's digest: its only design's, else SHA-256 over the designs' (bytes) in name order."""
    if len(digests) == 1:
        return next(iter(digests.values()))
    return hashlib.sha256(b"".join(bytes.fromhex(digests[name]) for name in sorted(digests))).hexdigest()


def check_out_directory(directory: str | Path) -> Path:
    """Return the directory if results may be written to it: absent, empty or holding earlier results.

    Raises
    ------
    UserError
        If it is a file, or holds something else or a run that can go on, which is then left alone.
    """
    path = Path(directory)
    if path.exists() and not path.is_dir():
        raise UserError("not a directory", file="--out", found=str(path))
    if (path / "checkpoint" / "run.json").exists():
        problem = 'holds a run that was stopped: go on with "vpmu resume DIR", or remove DIR/checkpoint'
        raise UserError(problem, file="--out", found=str(path))
    if path.is_dir() and any(path.iterdir()) and not (path / SUMMARY).exists():
        raise UserError(f"holds files but no {SUMMARY}, so it is left alone", file="--out", found=str(path))
    return path


def write_results(
    directory: str | Path,
    result: RunResult,
    records: Mapping[str, RecordWriter] | None = None,
    timing: Mapping[str, float | int | str] | None = None,
) -> None:
    """Close the records' files and write ``summary.json``, last, under its name at once or not at all.

    Parameters
    ----------
    directory : str or Path
        Made if absent; record files of designs that are not in `result`, left by an earlier run, are removed.
    result : RunResult
        With `complete` False and a `reason` if the run was cut short.
    records : mapping of design to RecordWriter, optional
        Writers of the run's records for this same directory, if they are still open.
    timing : mapping, optional
        Figures of the wall clock, for ``timing.json``.
    """
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    for writer in (records or {}).values():
        writer.close()
    for file in _record_files(path):
        if file.parent.name not in result.designs:
            file.unlink()
    for perf in path.glob(f"*/{PERF_DIRECTORY}"):
        if perf.parent.name not in result.designs:
            remove_perf_files(perf.parent)
    if timing is not None:
        _write(path / TIMING, json_bytes(dict(timing)))
    _write(path / SUMMARY, summary_bytes(result))


def remove_perf_files(directory: Path) -> None:
    """Remove the files for perf from a design's directory, if an earlier run left some."""
    shutil.rmtree(directory / PERF_DIRECTORY, ignore_errors=True)


def summary_bytes(result: RunResult) -> bytes:
    """Return a result as ``summary.json`` holds it: without what depends on where it was computed."""
    content = msgspec.to_builtins(result, enc_hook=_plain)
    for design in content["designs"].values():
        del design["frames"]
        for rows in ("cut_off", "machines"):
            if not design[rows]:
                del design[rows]
    return json_bytes(content)


def read_results(directory: str | Path) -> RunResult:
    """Read ``summary.json`` of a results directory.

    Raises
    ------
    UserError
        If there is none, or it is damaged or of another version.
    """
    path = Path(directory) / SUMMARY
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read: {error.strerror or error}", file=str(path)) from None
    try:
        version = msgspec.json.decode(content, type=dict[str, Any]).get("version")
        if version != RESULTS_VERSION:
            problem = f"results version {version} is not supported (known: {RESULTS_VERSION})"
            raise UserError(problem, file=str(path), key="version")
        return msgspec.json.decode(content, type=RunResult)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"damaged: {error}", file=str(path)) from None


class Difference(Struct, kw_only=True):
    """One figure that two results do not share; None where a result has no such row."""

    design: str
    table: str
    row: str
    figure: str
    left: int | str | bool | None
    right: int | str | bool | None


class Comparison(Struct, kw_only=True):
    """What two results have in common and where they differ."""

    left: str
    right: str
    left_digest: str
    right_digest: str
    differences: list[Difference]

    @property
    def same(self) -> bool:
        """Whether both runs did the same, to the byte."""
        return self.left_digest == self.right_digest and not self.differences


def compare(left: str | Path, right: str | Path) -> Comparison:
    """Compare two results directories, figure by figure.

    Raises
    ------
    UserError
        If one of them cannot be read.
    """
    one, two = read_results(left), read_results(right)
    figures = [dict(_figures(result)) for result in (one, two)]
    keys = dict.fromkeys([*figures[0], *figures[1]])
    differences = [
        Difference(design=key[0], table=key[1], row=key[2], figure=key[3], left=values[0], right=values[1])
        for key in keys
        if (values := (figures[0].get(key), figures[1].get(key)))[0] != values[1]
    ]
    return Comparison(
        left=str(left),
        right=str(right),
        left_digest=one.digest,
        right_digest=two.digest,
        differences=differences,
    )


_Key = tuple[str, str, str, str]
_ROW_KEYS: Final = {
    "actions": ("action",),
    "threads": ("vm", "vcpu", "thread"),
    "counters": ("vm", "vcpu", "session", "event"),
    "profiles": ("vm", "vcpu", "session"),
    "stood_still": ("vm", "vcpu", "pmc"),
    "functions": ("name",),
    "intervals": ("at_ns",),
    "events": ("event",),
}


def _figures(result: RunResult) -> Iterator[tuple[_Key, int | str | bool]]:
    """Every figure of a result, by design, table, row and name."""
    yield ("", "run", "", "seed"), result.seed
    yield ("", "run", "", "scenario"), result.scenario
    yield ("", "run", "", "complete"), result.complete
    for name, design in result.designs.items():
        yield (name, "run", "", "digest"), design.digest
        for table, content in msgspec.to_builtins(design).items():
            if isinstance(content, int):
                yield (name, "run", "", table), content
            elif isinstance(content, dict):
                yield from (((name, table, "", key), value) for key, value in content.items())
            elif table in _ROW_KEYS:
                yield from _row_figures(name, table, "", content)
        yield from (((name, "unfinished", thread, "unfinished"), True) for thread in design.unfinished)


def _row_figures(
    design: str, table: str, within: str, rows: list[dict[str, Any]]
) -> Iterator[tuple[_Key, int | str | bool]]:
    keys = _ROW_KEYS[table]
    for row in rows:
        label = " ".join([within, *(str(row[key]) for key in keys)]).strip()
        for figure, value in row.items():
            if isinstance(value, list):
                yield from _row_figures(design, figure, label, value)
            elif figure not in keys:
                yield (design, table, label, figure), value


def _record_files(directory: Path) -> Iterator[Path]:
    for name in (*FILES.values(), "truth"):
        yield from directory.glob(f"*/{name}.parquet")


def json_bytes(content: object) -> bytes:
    """Return what is to be read by people and programs, durations as the integers they are."""
    return msgspec.json.format(msgspec.json.encode(content, enc_hook=_plain), indent=2) + b"\n"


def _plain(value: object) -> int:
    """Encode an integer of a type of its own (`vpmu.units.Duration`, NumPy's) as the integer it is."""
    return operator.index(value)  # type: ignore[arg-type] # anything else is a TypeError, as it should be


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    part.replace(path)
