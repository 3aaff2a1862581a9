"""``vpmu cluster``: certificates, and the scheduler and workers that `vpmu run --scheduler` uses."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from vpmu.cluster.certificates import ROLES, certificate_files, write_certificates
from vpmu.cluster.errors import GangError
from vpmu.cluster.guests.keys import write_guest_keys
from vpmu.cluster.keys import is_loopback
from vpmu.cluster.watch import LOOPBACK
from vpmu.cluster.where import Where
from vpmu.errors import UserError

SCHEDULER_PORT: Final = 8786
DASHBOARD: Final = "127.0.0.1:8787"
_INSECURE: Final = "nobody is kept out: whoever reaches these ports can command the cluster"


def keys_command(directory: Path, days: int) -> str:
    """Make certificates in `directory`; return what to say."""
    try:
        files = [*write_certificates(directory, days=days), *write_guest_keys(directory)]
    except FileExistsError as error:
        raise UserError("there are certificates already", file=str(error.filename)) from None
    names = " ".join(file.name for file in files)
    return f"{directory}: {names}; valid for {days} days. Whoever has these files can command the cluster."


def scheduler_command(keys: Path | None, bind: str, port: int, dashboard: str, *, insecure: bool) -> None:
    """Become a Dask scheduler; does not return."""
    bind = Where.address(bind)
    options = ["--host", bind, "--port", str(port), "--dashboard-address", dashboard]
    _become("scheduler", options, keys, bind, insecure=insecure)


def worker_command(scheduler: str, keys: Path | None, bind: str, workers: int, *, insecure: bool) -> None:
    """Become a Dask worker, of several processes with one rank each; does not return."""
    bind = Where.address(bind)
    options = ["--host", bind, "--nworkers", str(workers), "--nthreads", "1", "--no-dashboard"]
    options += ["--dashboard-address", f"{bind}:0", "--memory-limit", "0"]
    _become("worker", [*options, scheduler], keys, bind, insecure=insecure)


def _become(role: str, options: list[str], keys: Path | None, bind: str, *, insecure: bool) -> None:
    """Go on as Dask's own command, under the settings that a run needs."""
    where = Where(bind=bind)
    try:
        where.check()
    except ValueError as error:
        raise UserError(str(error), file="--bind") from None
    if keys is None and where.leaves and not insecure:
        raise UserError("needs --keys DIR, from `vpmu cluster keys`, or --insecure", file=f"--bind {bind}")
    secure = keys is not None
    if not secure and not is_loopback(bind):
        print(f"--insecure: {_INSECURE}", file=sys.stderr)
    options = ["--protocol", "tls" if secure else "tcp", *(tls_options(keys, role) if keys else []), *options]
    from vpmu.cluster.launcher import dask_environment

    environment = os.environ | dask_environment(require_encryption=secure)
    command = [sys.executable, "-m", f"distributed.cli.dask_{role}", *options]
    os.execve(sys.executable, command, environment)


def tls_options(keys: Path, role: str) -> list[str]:
    """Return the options of Dask's commands for the certificates of a role.

    Raises
    ------
    UserError
        If a file is missing.
    """
    try:
        authority, certificate, key = certificate_files(keys, role)
    except FileNotFoundError as error:
        raise UserError(f"{error} is missing; `vpmu cluster keys DIR` makes it", file="--keys") from None
    return ["--tls-ca-file", str(authority), "--tls-cert", str(certificate), "--tls-key", str(key)]


def where_of(
    *,
    scheduler: str,
    bind: str,
    insecure: bool,
    keys: Path | None,
    tls: tuple[str, str, str] = ("", "", ""),
    wait_s: float,
    metrics: str = "",
) -> Where:
    """Return where a run's ranks live, from the options of the command line.

    Raises
    ------
    UserError
        If the options do not go together.
    """
    metrics_address, metrics_port = metrics_of(metrics)
    files = tls
    if keys is not None and scheduler.startswith("tls://"):
        options = tls_options(keys, ROLES[-1])
        files = (options[1], options[3], options[5])
    where = Where(
        scheduler=scheduler,
        bind=Where.address(bind),
        insecure=insecure,
        tls_ca_file=files[0],
        tls_cert=files[1],
        tls_key=files[2],
        start_within_s=wait_s,
        metrics=metrics_address,
        metrics_port=metrics_port,
    )
    try:
        where.check()
    except ValueError as error:
        raise UserError(str(error), file="--scheduler" if scheduler else "--bind") from None
    if insecure:
        print(
            "--insecure: links between processes run without CURVE; whoever reaches them can read and forge "
            "what they say",
            file=sys.stderr,
        )
    return where


def metrics_of(text: str) -> tuple[str, int | None]:
    """Return the address and port of `[ADDRESS:]PORT`; loopback without an address, no port if it is empty.

    Raises
    ------
    UserError
        If it has another form.
    """
    address, _, port = text.rpartition(":")
    if not text:
        return LOOPBACK, None
    if not port.isdecimal() or int(port) > 65535:
        raise UserError("expected [ADDRESS:]PORT", file="--metrics", found=text)
    return Where.address(address.strip("[]")) if address else LOOPBACK, int(port)


def status_command(where: Where, at_least: int) -> str:
    """Return in one line who is in a cluster; GangError if it does not answer or is too small."""
    import distributed

    from vpmu.cluster.dask_workers import client_of, workers_of

    client: distributed.Client = client_of(where, where.start_within_s)
    with client:
        workers = sorted(workers_of(client))
    line = f"{where.scheduler}: {len(workers)} workers: {', '.join(workers) or 'none'}"
    if len(workers) < at_least:
        raise GangError(f"{line}; {at_least} are needed")
    return line


def plan_command(
    file: str, overrides: list[str], design: str | None, workers: int, policy: str, *, as_json: bool
) -> str:
    """Return what would go where, in lines or as JSON, for each design that would run.

    Raises
    ------
    UserError
        For a mistake in the scenario or the choices.
    """
    import json

    from vpmu.command_run import choose_designs, choose_place
    from vpmu.execution import register_designs
    from vpmu.plan import make_plan, plan_lines
    from vpmu.scenario import load_scenario

    scenario = load_scenario(file, overrides)
    names = register_designs(choose_designs(scenario, design, file))
    place = choose_place(scenario, policy)
    plans = [make_plan(scenario, name, workers, place) for name in names]
    if as_json:
        return json.dumps({plan.design: plan.as_json() for plan in plans}, indent=2)
    return "\n".join(line for plan in plans for line in plan_lines(plan))
