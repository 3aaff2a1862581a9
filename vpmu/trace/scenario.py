"""The scenario of a replay: a host, and a guest for each vCPU of the trace, and the code that guests run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from vpmu.errors import UserError
from vpmu.profile import load_profile
from vpmu.scenario import parse_scenario
from vpmu.scenario.model import DEFAULT_PROFILE
from vpmu.units import NS_PER_S

if TYPE_CHECKING:
    from vpmu.scenario import Scenario
    from vpmu.trace.accesses import Picked

HOST: Final = "host"
PROGRAM: Final = "code"
_UNTIL: Final = "1000000 s"
_LONGEST_NS: Final = 500_000 * NS_PER_S
"""Longest trace: a design may make twice as much of it."""
_FROM_TRACE: Final = ("vm", "fleet", "template", "event", "until")
"""Keys of a scenario that a replay does not leave open."""
CODE: Final = {
    "name": "user",
    "share": 1,
    "ipc": 1,
    "branches": "0.2",
    "branch_misses": "0.004",
    "cache_references": "0.01",
    "cache_misses": "0.001",
    "l1_dcache_loads": "0.25",
    "l1_dcache_stores": "0.1",
    "l1_dcache_load_misses": "0.02",
    "dtlb_load_misses": "0.001",
}
"""What guests run between their accesses: a trace does not say what the real ones ran."""


def replay_scenario(
    picked: Picked, *, file: str, profile: str | None, cpus: int | None, overrides: list[str]
) -> Scenario:
    """Return the scenario of a replay: a host, and a VM for each vCPU of the trace.

    Parameters
    ----------
    picked : Picked
        What the trace holds.
    file : str
        The trace's name, for messages.
    profile : str, optional
        Cost profile, as a scenario's host names it.
    cpus : int, optional
        Physical CPUs, which the vCPUs are pinned to in turn; by default one for each, as far as the
        profile's machine has any.
    overrides : list of str
        As for a scenario, e.g. ``host.host.watchdog=true``.

    Raises
    ------
    UserError
        If the trace touches no PMU, or is too long; for a mistake in the options.
    """
    if not picked.vcpus:
        raise UserError("no access to a PMU in it: were kvm_msr and kvm_exit traced?", file=file)
    if picked.end_ns - picked.start_ns > _LONGEST_NS:
        raise UserError("longer than 500000 s from the first event to the last", file=file)
    for override in overrides:
        if override.partition("=")[0].strip().partition(".")[0] in _FROM_TRACE:
            raise UserError("is the trace's; change host, tool or program", file="--set", found=override)
    if cpus is None:
        cpus = min(len(picked.vcpus), _possible_cpus(profile))
    host: dict[str, Any] = {"name": HOST, "cpus": cpus}
    if profile is not None:
        host["profile"] = profile
    vms = [
        {
            "name": f"vcpu{number}",
            "host": HOST,
            "cpus": [number % cpus],
            "thread": [{"name": "replay", "program": PROGRAM}],
        }
        for number in range(len(picked.vcpus))
    ]
    program = {"name": PROGRAM, "cycles": 1 << 40, "functions": [dict(CODE)]}
    table = {"version": 1, "until": _UNTIL, "host": [host], "program": [program], "vm": vms}
    try:
        return parse_scenario(table, file=f"replay of {file}", overrides=overrides)
    except UserError as error:
        raise (error.at(file="--cpus", key="") if error.key == "host[0].cpus" else error) from None


def _possible_cpus(profile: str | None) -> int:
    """Return how many CPUs the machine of a profile has."""
    try:
        return load_profile(profile or DEFAULT_PROFILE).cpu.possible_cpus
    except UserError as error:
        raise (error if error.file else error.at(file="--profile")) from None
