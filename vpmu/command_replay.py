"""``vpmu replay``: from a trace's file to the tables and files that say what each design makes of it."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vpmu.errors import UserError
from vpmu.trace.accesses import Picked, pick_accesses
from vpmu.trace.reader import OTHER, LostEvents, Trace, read_trace

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from vpmu.replay import Latency, Replayed

REPLAY_VERSION: Final = 1
REPLAY: Final = "replay.json"
STDIN: Final = "-"
REAL_HOST: Final = "real host"
_MOST_NAMED: Final = 8


def replay_command(
    file: str,
    *,
    designs: str,
    profile: str | None,
    cpus: int | None,
    overrides: list[str],
    out: Path | None,
    quiet: bool = False,
    as_json: bool = False,
) -> None:
    """Read a trace, replay it under each design, write and print what came out.

    Raises
    ------
    UserError
        For a malformed line of the trace, an option, or a trace without an access to the PMU.
    """
    trace = load_trace(file)
    picked = pick_accesses(trace)
    from vpmu.command_run import choose_designs
    from vpmu.execution import register_designs
    from vpmu.results import RunResult, check_out_directory, json_bytes, write_results
    from vpmu.trace.scenario import replay_scenario

    scenario = replay_scenario(picked, file=trace.file, profile=profile, cpus=cpus, overrides=overrides)
    chosen = choose_designs(scenario, designs, file)
    if out is not None:
        check_out_directory(out)
    names = register_designs(chosen)
    # Only now: what follows loads the engine, with the designs that are known by then.
    from vpmu.build import load_programs
    from vpmu.replay import replay

    programs = load_programs(scenario)
    replayed = {name: replay(picked, scenario, name, programs) for name in names}
    report = json_bytes(report_of(trace, picked, scenario.seed, replayed))
    if out is not None:
        title = f"replay of {trace.file}"
        write_results(out, RunResult.of(title, scenario.seed, [each.result for each in replayed.values()]))
        (out / REPLAY).write_bytes(report)
    if as_json:
        sys.stdout.write(report.decode())
    elif not quiet:
        from vpmu.console import output_console

        print_replay(trace, picked, replayed, output_console())


def load_trace(file: str) -> Trace:
    """Read a trace from a file, or from standard input.

    Raises
    ------
    UserError
        If it cannot be read, or a line is malformed.
    """
    if file == STDIN:
        return read_trace(sys.stdin, "standard input")
    try:
        # A task's name may be any bytes; none of them concerns a replay.
        with Path(file).open(encoding="utf-8", errors="replace") as lines:
            return read_trace(lines, file)
    except OSError as error:
        raise UserError(f"cannot read: {error.strerror or error}", file=file) from None


def report_of(trace: Trace, picked: Picked, seed: int, replayed: dict[str, Replayed]) -> dict[str, Any]:
    """Return ``replay.json``: all that is printed, durations in ns."""
    from vpmu.replay import host_latencies

    return {
        "version": REPLAY_VERSION,
        "trace": {
            "file": trace.file,
            "lines": trace.lines,
            "span_ns": picked.end_ns - picked.start_ns,
            "lost": _lost(trace.gaps, trace.overwritten),
        },
        "skipped": {
            "lines": dict(sorted(trace.unknown.items())),
            "msrs": {f"0x{msr:x}": count for msr, count in sorted(picked.other_msrs.items())},
            "exits": dict(sorted(picked.other_exits.items())),
            "vcpus": picked.idle_vcpus,
        },
        "vcpus": [
            {"thread": vcpu.name, "vcpu": vcpu.number, "accesses": len(vcpu.accesses)}
            for vcpu in picked.vcpus
        ],
        "assumed": {"rdpmc": _assumed(picked), "halted_ns": picked.halted_ns},
        "seed": seed,
        "real_host": {"faults": _faults(picked), "actions": [asdict(row) for row in host_latencies(picked)]},
        "designs": {name: _design(each) for name, each in replayed.items()},
    }


def _design(each: Replayed) -> dict[str, Any]:
    return {
        "digest": each.result.digest,
        "end_ns": each.result.end_ns,
        "actions": [asdict(row) for row in each.latencies],
        "faults": each.faults,
        "faults_differ": dict(sorted(each.faults_differ.items())),
        "reads_compared": each.reads_compared,
        "reads_differ": each.reads_differ,
        "pmis": each.pmis,
    }


def _lost(gaps: list[LostEvents], overwritten: int) -> dict[str, int]:
    counts = [gap.count for gap in gaps if gap.count is not None]
    return {
        "events": sum(counts),
        "gaps": len(gaps),
        "gaps_of_unknown_size": len(gaps) - len(counts),
        "overwritten": overwritten,
    }


def _assumed(picked: Picked) -> int:
    return sum(access.operation == "rdpmc" for access in picked.all())


def _faults(picked: Picked) -> int:
    return sum(bool(access.fault) for access in picked.all())


def print_replay(trace: Trace, picked: Picked, replayed: dict[str, Replayed], console: Console) -> None:
    """Print the trace's vCPUs, every action's latency beside the real host's, and what else to know."""
    from rich.text import Text

    from vpmu.replay import host_latencies

    console.print(_vcpu_table(picked))
    columns = {REAL_HOST: host_latencies(picked)} | {name: each.latencies for name, each in replayed.items()}
    console.print(_latency_table(columns))
    console.print(_outcome_table(picked, replayed))
    for line in notes(trace, picked, replayed):
        console.print(Text(line))


def _vcpu_table(picked: Picked) -> Table:
    from vpmu.tables import plain_table
    from vpmu.units import format_count

    table = plain_table("vCPUs of the trace", ("thread", "vCPU"), ("accesses", "#GP"))
    for vcpu in picked.vcpus:
        faults = sum(bool(access.fault) for access in vcpu.accesses)
        number = "-" if vcpu.number is None else str(vcpu.number)
        table.add_row(vcpu.name, number, format_count(len(vcpu.accesses)), format_count(faults))
    return table


def _latency_table(columns: dict[str, list[Latency]]) -> Table:
    """Return a row for each action and figure, a column for the real host and each design."""
    from vpmu.tables import plain_table
    from vpmu.trace.accesses import ACTIONS
    from vpmu.units import format_count, format_ns

    table = plain_table("latency of guest actions", ("action", "figure"), tuple(columns))
    rows = {name: {row.action: row for row in latencies} for name, latencies in columns.items()}
    for action in ACTIONS:
        found = [each.get(action) for each in rows.values()]
        if not any(found):
            continue
        table.add_row(action, "calls", *(format_count(row.calls if row else None) for row in found))
        table.add_row("", "median", *(format_ns(row.median_ns if row else None) for row in found))
        table.add_row("", "maximum", *(format_ns(row.max_ns if row else None) for row in found))
        table.add_row("", "total", *(format_ns(row.total_ns if row else None) for row in found))
    return table


def _outcome_table(picked: Picked, replayed: dict[str, Replayed]) -> Table:
    from vpmu.tables import plain_table
    from vpmu.units import format_count, format_ns

    table = plain_table("outcome", ("what",), (REAL_HOST, *replayed))
    all_of = list(replayed.values())
    span = picked.end_ns - picked.start_ns
    table.add_row("#GP", format_count(_faults(picked)), *(format_count(each.faults) for each in all_of))
    table.add_row(
        "accesses whose #GP differs", "", *(format_count(sum(each.faults_differ.values())) for each in all_of)
    )
    table.add_row(
        "control registers read back otherwise",
        "",
        *(f"{each.reads_differ:,} of {each.reads_compared:,}" for each in all_of),
    )
    table.add_row("PMIs", "-", *(format_count(each.pmis) for each in all_of))
    table.add_row("span", format_ns(span), *(format_ns(each.result.end_ns) for each in all_of))
    return table


def notes(trace: Trace, picked: Picked, replayed: dict[str, Replayed]) -> list[str]:
    """Return what was lost, skipped and assumed, a line each."""
    from vpmu.units import format_ns

    lines = _lost_notes(trace)
    lines += _skipped_notes(trace, picked)
    assumed = _assumed(picked)
    if assumed:
        lines.append(
            f"assumed: RDPMC, {assumed:,}: each of the counter that its vCPU wrote last; traces do not say"
        )
    if picked.halted_ns:
        lines.append(f"assumed: {format_ns(picked.halted_ns)} in HLT, in sum, are run as code")
    if not any(access.host_ns is not None for access in picked.all()):
        lines.append(
            "no kvm_exit with its kvm_entry: no latency of the real host, and its handling is in the spacing"
        )
    for name, each in replayed.items():
        lines += [f"{name}: {what}: {count:,}" for what, count in sorted(each.faults_differ.items())]
    return lines


def _lost_notes(trace: Trace) -> list[str]:
    lost = _lost(trace.gaps, trace.overwritten)
    lines = []
    if lost["gaps"]:
        unknown = lost["gaps_of_unknown_size"]
        more = f", {unknown} of them of unknown size" if unknown else ""
        lines.append(f"lost: events {lost['events']:,}, gaps {lost['gaps']}{more}; no latency spans a gap")
    if lost["overwritten"]:
        lines.append(f"lost: events {lost['overwritten']:,}, overwritten in the ring buffer before the first")
    return lines


def _skipped_notes(trace: Trace, picked: Picked) -> list[str]:
    msrs = Counter({f"0x{msr:x}": count for msr, count in picked.other_msrs.items()})
    kinds: list[tuple[str, Counter[str]]] = [
        ("MSRs that are not the PMU's", msrs),
        ("exits for other reasons", picked.other_exits),
        ("other events", Counter({k: n for k, n in trace.unknown.items() if k != OTHER})),
    ]
    lines = [f"skipped: {what}, {counts.total():,}: {_most(counts)}" for what, counts in kinds if counts]
    if trace.unknown[OTHER]:
        lines.append(f"skipped: lines that are no event, {trace.unknown[OTHER]:,}")
    if picked.idle_vcpus:
        lines.append(f"skipped: vCPUs that never touch their PMU, {picked.idle_vcpus:,}")
    return lines


def _most(counts: Counter[str]) -> str:
    """Name the most frequent, with their numbers."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{name} ({count:,})" for name, count in ordered[:_MOST_NAMED])
    more = len(ordered) - _MOST_NAMED
    return f"{named}, and {more} more" if more > 0 else named
