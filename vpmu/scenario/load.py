"""From a scenario file to a checked, complete `Scenario`.

Three steps: the file's tables with the overrides applied; defaults that depend on other keys filled in;
structs made and their meaning checked.  Nothing has run, and nothing is written, when a mistake is found.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from vpmu.errors import UserError
from vpmu.profile import Profile, load_profile
from vpmu.scenario.check import check_scenario
from vpmu.scenario.fleet import expand
from vpmu.scenario.model import DEFAULT_PROFILE, DEFAULT_RECORD_FREQUENCY, SCENARIO_VERSION, Scenario
from vpmu.scenario.overrides import apply_overrides, find_value
from vpmu.schema import convert, join, read_toml
from vpmu.units import describe, format_duration

Table = dict[str, Any]

_BALANCE = "64 ms"
_SCHED_BASES_NS = {
    "sched_latency": 6_000_000,
    "min_granularity": 750_000,
    "wakeup_granularity": 1_000_000,
}


def load_scenario(path: str | Path, overrides: list[str] | None = None) -> Scenario:
    """Read, complete and check a scenario file.

    Parameters
    ----------
    path : str or Path
        The file; names of programs' files in it are relative to its directory.
    overrides : list of str, optional
        Texts ``key=value``, applied in order before anything is checked.

    Raises
    ------
    UserError
        At the first mistake, by file and key.
    """
    path = Path(path)
    return parse_scenario(read_toml(path), file=str(path), directory=path.parent, overrides=overrides)


def parse_scenario(
    raw: Table,
    *,
    file: str = "scenario",
    directory: Path | None = None,
    overrides: list[str] | None = None,
) -> Scenario:
    """Make a `Scenario` of a table as `tomllib` gives it (which is not changed).

    Parameters
    ----------
    raw : dict
        Keys and values as in a scenario file.
    file : str
        What to call the table in messages.
    directory : Path, optional
        What relative file names are relative to; the current directory by default.
    overrides : list of str, optional
        As in `load_scenario`.
    """
    raw = copy.deepcopy(raw)
    apply_overrides(raw, overrides or [])
    _check_version(raw, file)
    _fill_defaults(raw, directory or Path(), file)
    scenario = convert(raw, Scenario, file)
    check_scenario(scenario, file)
    _check_calibration(raw, scenario, file)
    return expand(scenario)


def _check_version(raw: Table, file: str) -> None:
    """Refuse another version first: its keys would only give misleading messages."""
    version = raw.get("version")
    if version is None:
        raise UserError(f"missing (this is version {SCENARIO_VERSION})", file=file, key="version")
    if version is True or version != SCENARIO_VERSION:
        problem = f"scenario version {describe(version)} is not supported (known: {SCENARIO_VERSION})"
        raise UserError(problem, file=file, key="version")


def _check_calibration(raw: Table, scenario: Scenario, file: str) -> None:
    """Refuse a declaration of a value that is not there."""
    for path in scenario.calibration:
        try:
            find_value(raw, path)
        except UserError as error:
            raise error.at(file=file, key=join("calibration", f'"{path}"')) from None


def _fill_defaults(raw: Table, directory: Path, file: str) -> None:
    """Fill in what has a default that depends on other keys; `convert` will name what is malformed."""
    for program in _tables(raw, "program"):
        if isinstance(program.get("file"), str) and program["file"]:
            program["file"] = str(directory / program["file"])
    for index, host in enumerate(_tables(raw, "host")):
        _fill_host(host, directory, join("host", index), file)
    only_host = _only_name(raw, "host")
    only_program = _only_name(raw, "program")
    for vm in _tables(raw, "vm"):
        if only_host is not None:
            vm.setdefault("host", only_host)
        _fill_guest(vm, only_program)
        if isinstance(vm.get("image"), str) and vm["image"]:
            vm["image"] = str(directory / vm["image"])
    for template in _tables(raw, "template"):
        _fill_guest(template, only_program)
    for fleet in _tables(raw, "fleet"):
        if only_host is not None:
            fleet.setdefault("hosts", [only_host])
    for number, event in enumerate(_tables(raw, "event")):
        for index, session in enumerate(_tables(event, "session")):
            session.setdefault("name", f"storm{number}-{index}")
            _fill_sampling(session, session.get("tool"), index)
    for index, tool in enumerate(_tables(raw, "tool")):
        if only_host is not None:
            tool.setdefault("host", only_host)
        if "vm" not in tool:
            tool.setdefault("cpus", "all")
        _fill_sampling(tool, tool.get("kind"), index)


def _fill_guest(vm: Table, only_program: str | None) -> None:
    """Fill in what VMs and templates share."""
    _fill_sched(vm, vm.get("vcpus", 1))
    for thread in _tables(vm, "thread"):
        if only_program is not None and thread.get("kind", "program") == "program":
            thread.setdefault("program", only_program)
    for index, session in enumerate(_tables(vm, "session")):
        _fill_sampling(session, session.get("tool"), index)


def _fill_host(host: Table, directory: Path, key: str, file: str) -> None:
    name = host.setdefault("profile", DEFAULT_PROFILE)
    if not isinstance(name, str):
        raise UserError(f"expected a string, found {describe(name)}", file=file, key=f"{key}.profile")
    if "/" in name or name.endswith(".toml"):
        name = host["profile"] = str(directory / name)
    profile = _load_profile(name, f"{key}.profile", file)
    host.setdefault("possible_cpus", profile.cpu.possible_cpus)
    host.setdefault("core_khz", profile.cpu.core_khz)
    host.setdefault("hz", profile.host.hz)
    host.setdefault("balance", _BALANCE)
    _fill_sched(host, profile.cpu.possible_cpus)


def _load_profile(name: str, key: str, file: str) -> Profile:
    try:
        return load_profile(name)
    except UserError as error:
        # A mistake inside a profile's file names that file; an unknown name is a mistake of the scenario.
        raise (error if error.file else error.at(file=file, key=key)) from None


def _fill_sched(table: Table, cpus: object) -> None:
    """Scale the scheduler's base values by 1 + log2(CPUs, at most 8), as Linux's fair scheduler does."""
    factor = min(cpus, 8).bit_length() if isinstance(cpus, int) and cpus > 0 else 1
    for key, base_ns in _SCHED_BASES_NS.items():
        table.setdefault(key, format_duration(base_ns * factor))


def _fill_sampling(table: Table, tool: object, index: int) -> None:
    table.setdefault("name", f"{tool}{index}")
    if tool == "record":
        table.setdefault("events", ["cpu-cycles"])
        if "period" not in table:
            table.setdefault("frequency", DEFAULT_RECORD_FREQUENCY)


def _tables(raw: Table, key: str) -> list[Table]:
    entries = raw.get(key)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _only_name(raw: Table, key: str) -> str | None:
    """Name of the only entry of a list; empty if it is malformed, None if it is not the only one."""
    tables = _tables(raw, key)
    if len(tables) != 1:
        return None
    name = tables[0].get("name")
    return name if isinstance(name, str) else ""
