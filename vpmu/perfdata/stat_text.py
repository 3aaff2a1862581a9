"""Prints a ``perf stat`` session as perf 6.1 does: text, CSV (``-x,``) and JSON (``-j``), to the byte.

Numbers are those of the C locale: no separators of thousands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from vpmu.perfdata.stat_metrics import Metric, metric
from vpmu.perfdata.stat_rows import Reading, Round, StatSession

FORMATS: Final = ("txt", "csv", "json")
NOT_COUNTED: Final = "<not counted>"
_NS_PER_S: Final = 1_000_000_000
_COUNT_WIDTH, _UNIT_WIDTH, _NAME_WIDTH, _SHORT_NAME_WIDTH, _METRIC_WIDTH = 18, 4, 32, 25, 35
_HEADER_EVERY: Final = 25


@dataclass(frozen=True, slots=True)
class Line:
    """One line: an event's reading, of all places together or of one vCPU; with intervals its time."""

    event: str
    reading: Reading
    metric: Metric
    cpu: int | None
    at_ns: int | None

    @property
    def seconds(self) -> str:
        """When, as perf stat -I has it."""
        assert self.at_ns is not None
        return f"{self.at_ns // _NS_PER_S}.{self.at_ns % _NS_PER_S:09d}"

    @property
    def per_cent(self) -> int:
        """How much of its time the event was on a counter, in whole per cent, as CSV and JSON have it."""
        if self.reading.running_ns == self.reading.enabled_ns:
            return 100
        return 100 * self.reading.running_ns // self.reading.enabled_ns


class _Printer(Protocol):
    def __call__(self, line: Line) -> str: ...


def print_session(session: StatSession, form: str, title: str, *, per_cpu: bool = False) -> str:
    """Return a session as perf prints it.

    Parameters
    ----------
    session : StatSession
    form : str
        One of `FORMATS`.
    title : str
        What was measured, for the text's first line.
    per_cpu : bool
        ``-A``: a line for each vCPU.
    """
    printer: dict[str, _Printer] = {"txt": text_line, "csv": csv_line, "json": json_line}
    lines = []
    for number, each in enumerate(session.printed()):
        if form == "txt" and session.interval_ns and number % _HEADER_EVERY == 0:
            lines.append(_interval_header(per_cpu))
        at_ns = each.at_ns if session.interval_ns else None
        lines += [printer[form](line) for line in _lines(session, each, at_ns, per_cpu)]
    body = "".join(f"{line}\n" for line in lines)
    if form != "txt" or session.interval_ns:
        return body
    elapsed_s = session.rounds[-1].at_ns / _NS_PER_S
    head = f"\n Performance counter stats for '{title}':\n\n"
    return f"{head}{body}\n {elapsed_s:17.9f} seconds time elapsed\n\n"


def _lines(session: StatSession, each: Round, at_ns: int | None, per_cpu: bool) -> Iterator[Line]:
    cpus: Sequence[int | None] = session.cpus if per_cpu else (None,)
    columns = [
        [_of_place(readings, place, per_cpu) for readings in each.readings] for place in range(len(cpus))
    ]
    for index, event in enumerate(session.events):
        for cpu, column in zip(cpus, columns, strict=True):
            scaled = [reading.scaled for reading in column]
            yield Line(event, column[index], metric(session.events, scaled, index), cpu, at_ns)


def _of_place(readings: Sequence[Reading], place: int, per_cpu: bool) -> Reading:
    """Return one vCPU's reading, or what all add up to; perf scales the sum."""
    return readings[place] if per_cpu else sum(readings, Reading())


def _interval_header(per_cpu: bool) -> str:
    where = f"{'CPU':<11}" if per_cpu else ""
    return f"#{'time':>15} {where}{'counts':>18} {'unit':>4} events"


def text_line(line: Line) -> str:
    """Return a line as perf prints it for people."""
    start = f"{line.seconds:>16} " if line.at_ns is not None else ""
    start += f"CPU{line.cpu:<7} " if line.cpu is not None else ""
    reading = line.reading
    if not reading.was_counted:
        body = f"{NOT_COUNTED:>{_COUNT_WIDTH}} {'':{_UNIT_WIDTH}} {line.event:<{_SHORT_NAME_WIDTH}}"
        body += " " * _METRIC_WIDTH
    else:
        body = f"{reading.scaled:>{_COUNT_WIDTH}} {'':{_UNIT_WIDTH}} {line.event:<{_NAME_WIDTH}}"
        found = f" # {line.metric.text} {line.metric.unit}" if line.metric.text else ""
        body += f"{found:<{_METRIC_WIDTH}}"
    if reading.running_ns != reading.enabled_ns:
        body += f"  ({100.0 * reading.running_ns / reading.enabled_ns:.2f}%)"
    return start + body


def csv_line(line: Line) -> str:
    """Return a line of ``perf stat -x,``."""
    start = f"{line.seconds:>16}," if line.at_ns is not None else ""
    start += f"CPU{line.cpu}," if line.cpu is not None else ""
    reading = line.reading
    count = str(reading.scaled) if reading.was_counted else NOT_COUNTED
    value, unit = line.metric.text.strip(" %"), line.metric.unit
    found = f"{value},{unit}" if value and reading.was_counted else ","
    return f"{start}{count},,{line.event},{reading.running_ns},{line.per_cent}.00,{found}"


def json_line(line: Line) -> str:
    """Return a line of ``perf stat -j``."""
    start = f'"interval" : {line.seconds}, ' if line.at_ns is not None else ""
    start += f'"cpu" : "{line.cpu}", ' if line.cpu is not None else ""
    reading = line.reading
    count = f"{reading.scaled}.000000" if reading.was_counted else NOT_COUNTED
    value, unit = line.metric.value or 0.0, line.metric.unit
    if not reading.was_counted:
        value, unit = 0.0, ""
    return (
        f'{{{start}"counter-value" : "{count}", "unit" : "", "event" : "{line.event}", '
        f'"event-runtime" : {reading.running_ns}, "pcnt-running" : {line.per_cent}.00, '
        f'"metric-value" : {value:.6f}, "metric-unit" : "{unit}"}}'
    )
