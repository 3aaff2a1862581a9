"""Results as tables for people: one set per design, one across designs, one for a comparison of two runs.

Tables are rich's; printed to something that is no terminal they are plain text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from rich import box
from rich.table import Table
from rich.text import Text

from vpmu.precision import precision_of
from vpmu.results import ActionRow, Comparison, DesignResult, Difference, RunResult, ThreadRow
from vpmu.units import format_count, format_ns

if TYPE_CHECKING:
    from rich.console import Console

ACTIONS: Final = (
    "enable global_ctrl",
    "disable global_ctrl",
    "rd/wr fixed_ctrl",
    "rd/wr eventsel",
    "rdpmc",
    "rd/wr counter",
    "global_status, ovf_ctrl",
    "lvtpc",
    "x86_pmu.handle_irq",
    "sched_in",
    "sched_out",
)
"""Guest actions in the order of the tables, which is `vpmu.kernels.stats.ACTION_NAMES`; any other follows."""
_Row = TypeVar("_Row")
REFERENCE_DESIGN: Final = "native"
_MOST_ROWS: Final = 40
_MOST_FUNCTIONS: Final = 20
_WORST: Final = 10


def print_run(result: RunResult, console: Console) -> None:
    """Print every table of a run: each design's, then the comparison if there is something to compare."""
    for design in result.designs.values():
        for table in design_tables(design):
            console.print(table)
            console.print()
        for line in design_notes(design):
            console.print(Text(line))
    if len(result.designs) > 1:
        console.print(comparison_table(result))
        console.print()
    if not result.complete:
        console.print(Text(f"incomplete: {result.reason}"))
    console.print(Text(f"digest {result.digest}"))


def design_tables(design: DesignResult) -> Iterator[Table]:
    """Yield a design's tables, leaving out those without a row."""
    builders = (
        action_table,
        thread_table,
        counter_table,
        profile_table,
        precision_table,
        stood_still_table,
        account_table,
    )
    for build in builders:
        table = build(design)
        if table.row_count:
            yield table


def design_notes(design: DesignResult) -> Iterator[str]:
    """Yield lines on what a table has no place for: threads that did not finish."""
    if design.unfinished:
        yield f"{design.design}: not finished by {format_ns(design.until_ns)}: {', '.join(design.unfinished)}"
    for machine in design.machines:
        retired = f"{machine.instructions:,} instructions, {machine.pmis} PMIs"
        yield f"{design.design}: {machine.vm}: {machine.end}; {retired}"
    for guest in design.cut_off:
        where = f"{guest.vm}, vCPU {guest.vcpu}"
        yield f"{design.design}: {where} was cut off at {guest.at_ns} ns: {guest.reason}"


def action_table(design: DesignResult) -> Table:
    """Return the latency of each guest action."""
    table = plain_table(
        f"{design.design}: latency of guest actions",
        ("action",),
        ("calls", "median", "99 %", "maximum", "total"),
    )
    for row in ordered_actions(design.actions):
        durations = (row.median_ns, row.p99_ns, row.max_ns, row.total_ns)
        table.add_row(row.action, format_count(row.calls), *map(format_ns, durations))
    return table


def thread_table(design: DesignResult) -> Table:
    """Return the run time of each thread against what the same work takes when nobody measures."""
    figures = ("run time", "CPU time", "unmeasured", "share", "switches")
    table = plain_table(f"{design.design}: threads", ("thread", "finished"), figures)
    for row in _most(design.threads, table):
        table.add_row(
            f"{row.vm}/{row.thread}",
            "yes" if row.finished else "no",
            format_ns(row.run_ns),
            format_ns(row.cpu_ns),
            format_ns(row.unmeasured_ns),
            _percent(row.unmeasured_ns, row.run_ns),
            format_count(row.switches),
        )
    return table


def counter_table(design: DesignResult) -> Table:
    """Return the counts of ``perf stat`` sessions against the truth."""
    figures = ("count", "truth", "difference", "running")
    table = plain_table(f"{design.design}: counts against truth", ("session", "event"), figures)
    for row in _most(design.counters, table):
        table.add_row(
            f"{row.vm}/{row.session}",
            row.event,
            format_count(row.count),
            format_count(row.truth),
            _difference(row.count, row.truth),
            _percent(row.running_ns, row.enabled_ns),
        )
    return table


def profile_table(design: DesignResult) -> Table:
    """Return the samples of ``perf record`` sessions against the cycles that functions really took."""
    figures = ("samples", "share", "truth")
    table = plain_table(f"{design.design}: samples against truth", ("session", "function"), figures)
    for profile in _most(design.profiles, table):
        session = f"{profile.vm}/{profile.session}"
        taken = sum(function.samples for function in profile.functions)
        cycles = sum(function.truth_cycles for function in profile.functions)
        lost = f" ({format_count(profile.lost)} lost, throttled {format_count(profile.throttled)} times)"
        table.add_row(session, "all" + lost, format_count(profile.samples), "", "")
        largest = sorted(profile.functions, key=lambda function: (-function.truth_cycles, function.name))
        for function in largest[:_MOST_FUNCTIONS]:
            shares = _percent(function.samples, taken), _percent(function.truth_cycles, cycles)
            table.add_row("", function.name, format_count(function.samples), *shares)
    return table


def precision_table(design: DesignResult) -> Table:
    """Return how near the profiles come to the truth, over all guests, and the furthest of them by name."""
    figures = ("samples", "distance", "by chance", "excess", "throttled")
    table = plain_table(f"{design.design}: distance of the profiles from the truth", ("profile",), figures)
    if not design.profiles:
        return table
    rows = [(precision_of(profile), profile.throttled) for profile in design.profiles]
    rows.sort(key=lambda row: (-row[0].distance, row[0].vm, row[0].vcpu, row[0].session))
    if len(rows) > 1:
        distances = [row.distance for row, _ in reversed(rows)]
        for name, place in (("median", 50), ("90 %", 90), ("maximum", 100)):
            # The nearest rank.
            value = distances[max(-(-len(distances) * place // 100), 1) - 1]
            table.add_row(f"{name} of {len(rows):,}", "", f"{value:.2%}", "", "", "")
        table.add_section()
    for row, throttled in rows[:_WORST]:
        shares = (f"{row.distance:.2%}", f"{row.chance:.2%}", f"{row.excess:+.2%}")
        table.add_row(f"{row.vm}/{row.session}", format_count(row.samples), *shares, format_count(throttled))
    return table


def stood_still_table(design: DesignResult) -> Table:
    """Return the counters that a guest had enabled and host perf gave no hardware."""
    table = plain_table(
        f"{design.design}: counters that stood still", ("vCPU", "counter"), ("for", "events missed")
    )
    for row in _most(design.stood_still, table):
        table.add_row(f"{row.vm}/{row.vcpu}", row.pmc, format_ns(row.ns), format_count(row.events))
    return table


def account_table(design: DesignResult) -> Table:
    """Return where the time of the guests' physical CPUs went, and what the host did."""
    table = plain_table(f"{design.design}: account", ("what",), ("figure", "share"))
    total_ns = sum(design.accounting.values())
    for cause, duration_ns in design.accounting.items():
        table.add_row(cause, format_ns(duration_ns), _percent(duration_ns, total_ns))
    for title, counts in (("host", design.host), ("frames", design.frames)):
        for name, count in counts.items():
            table.add_row(f"{title}: {name}", format_count(count), "")
    return table


def comparison_table(result: RunResult) -> Table:
    """Return all designs side by side: each action, the programs' time, and what was lost against native."""
    table = plain_table("designs compared", ("what",), tuple(result.designs))
    designs = list(result.designs.values())
    names = dict.fromkeys(row.action for design in designs for row in ordered_actions(design.actions))
    for name in _in_order(names):
        rows = [_action(design, name) for design in designs]
        table.add_row(f"{name}, calls", *(format_count(row.calls if row else None) for row in rows))
        table.add_row(f"{name}, maximum", *(format_ns(row.max_ns if row else None) for row in rows))
        table.add_row(f"{name}, total", *(format_ns(row.total_ns if row else None) for row in rows))
    table.add_section()
    table.add_row("samples", *(format_count(_samples(design)) for design in designs))
    table.add_row(
        "stood still", *(format_ns(sum(row.ns for row in design.stood_still)) for design in designs)
    )
    table.add_row("finished", *(_finished(design) for design in designs))
    table.add_row("programs' run time", *(format_ns(run_time_ns(design)) for design in designs))
    _add_lost_rows(table, result, designs)
    return table


def run_time_ns(design: DesignResult) -> int:
    """Return the run time of all threads that execute programs, together."""
    return sum(row.run_ns for row in _programs(design))


def lost_ns(design: DesignResult, reference: DesignResult) -> int | None:
    """Return how much longer the programs took than under `reference`; None if some did not finish."""
    if not all(row.finished for row in (*_programs(design), *_programs(reference))):
        return None
    return run_time_ns(design) - run_time_ns(reference)


def difference_table(comparison: Comparison) -> Table:
    """Return every figure in which two results differ."""
    places = ("design", "table", "row", "figure")
    table = plain_table(f"{comparison.left} against {comparison.right}", places, ("left", "right"))
    for item in _most(comparison.differences, table):
        table.add_row(item.design, item.table, item.row, item.figure, *_sides(item))
    return table


def ordered_actions(rows: Sequence[ActionRow]) -> list[ActionRow]:
    """Return the rows of actions in the order of `ACTIONS`, unknown ones last."""
    by_name = {row.action: row for row in rows}
    return [by_name[name] for name in _in_order(by_name)]


def _add_lost_rows(table: Table, result: RunResult, designs: list[DesignResult]) -> None:
    reference = result.designs.get(REFERENCE_DESIGN)
    if reference is None:
        return
    lost = {design.design: lost_ns(design, reference) for design in designs if design is not reference}
    table.add_row(f"lost against {REFERENCE_DESIGN}", *(format_ns(lost.get(name)) for name in result.designs))
    shares = (_share(lost.get(name), run_time_ns(reference)) for name in result.designs)
    table.add_row("lost, share of run time", *shares)
    worst = max((value for value in lost.values() if value is not None), default=0)
    table.add_row("lost, of the worst design", *(_share(lost.get(name), worst) for name in result.designs))


def plain_table(title: str, names: Iterable[str], figures: Iterable[str]) -> Table:
    """Return an empty table: columns of names to the left, of figures to the right."""
    table = Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for name in names:
        table.add_column(name, overflow="fold")
    for figure in figures:
        table.add_column(figure, justify="right", no_wrap=True)
    return table


def _most(rows: Sequence[_Row], table: Table) -> Sequence[_Row]:
    """Return as many rows as one can read; the table's caption says how many are left out."""
    if len(rows) > _MOST_ROWS:
        table.caption = Text(f"and {len(rows) - _MOST_ROWS:,} more, all in summary.json")
    return rows[:_MOST_ROWS]


def _in_order(names: Iterable[str]) -> list[str]:
    rank = {name: index for index, name in enumerate(ACTIONS)}
    return sorted(names, key=lambda name: rank.get(name, len(rank)))


def _action(design: DesignResult, name: str) -> ActionRow | None:
    return next((row for row in design.actions if row.action == name), None)


def _programs(design: DesignResult) -> list[ThreadRow]:
    return [row for row in design.threads if row.kind == "program"]


def _samples(design: DesignResult) -> int:
    return sum(profile.samples for profile in design.profiles)


def _finished(design: DesignResult) -> str:
    programs = _programs(design)
    return f"{sum(row.finished for row in programs)} of {len(programs)}"


def _sides(item: Difference) -> tuple[str, str]:
    left, right = (_value(item.figure, value) for value in (item.left, item.right))
    return left, right


def _value(figure: str, value: int | str | bool | None) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        # Exact, unlike elsewhere: two figures that differ must not look the same.
        return f"{value:,} ns" if figure.endswith("ns") else f"{value:,}"
    if value is None:
        return "-"
    return f"{value[:16]}..." if figure == "digest" else value


def _difference(count: int, truth: int) -> str:
    if count == truth:
        return "0"
    share = f" ({(count - truth) / truth:+.2%})" if truth else ""
    return f"{count - truth:+,}{share}"


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "-"


def _share(part: int | None, whole: int) -> str:
    return "-" if part is None else _percent(part, whole)
