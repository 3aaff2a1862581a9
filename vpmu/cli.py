"""The command line, ``vpmu``.

Note: nothing heavy is imported at the top, so that ``vpmu --help`` answers at once; each command imports what
it needs.  A user's mistake is one line on standard error and exit status 2, Ctrl-C is 130.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, cast

import typer

from vpmu import __version__, sigint
from vpmu.cluster.errors import GangError
from vpmu.errors import Interrupted, Stopped, UserError

EXIT_DIFFERENT = 1
EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

# Note: typer may carry its own copy of click, so click's base of all usage errors is found through typer.
_CLICK_ERROR = cast(type[Exception], typer.BadParameter.__mro__[2])

_MESSAGE_WORKERS = 3
"""Processes of message mode: physical CPUs, host perf, vCPUs."""

app = typer.Typer(
    name="vpmu",
    help="Emulate PMU virtualization: what perf costs in a guest, and what it gets, design by design.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
program_app = typer.Typer(rich_markup_mode=None, help="Programs that guests execute.")
scenario_app = typer.Typer(rich_markup_mode=None, help="Scenario files.")
app.add_typer(program_app, name="program")
app.add_typer(scenario_app, name="scenario")
cluster_app = typer.Typer(rich_markup_mode=None, help="Processes of other machines.")
app.add_typer(cluster_app, name="cluster")

Keys = Annotated[
    Path | None,
    typer.Option("--keys", metavar="DIR", envvar="VPMU_KEYS", help="What `vpmu cluster keys` made."),
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Do without TLS and CURVE.")]
Bind = Annotated[
    str,
    typer.Option(
        "--bind",
        metavar="ADDRESS",
        help="Where others reach this machine: address or interface; default: loopback.",
    ),
]

Scheduler = Annotated[
    str,
    typer.Option(
        metavar="tls://HOST:PORT", envvar="VPMU_SCHEDULER", help="Run on the workers of this Dask cluster."
    ),
]
SchedulerArgument = Annotated[str, typer.Argument(metavar="tls://HOST:PORT", envvar="VPMU_SCHEDULER")]
Place = Annotated[
    str, typer.Option(metavar="packed|spread|split:HOST|random:SEED", help="What goes into which process.")
]
Tls = Annotated[
    tuple[str, str, str],
    typer.Option("--tls", metavar="CA CERT KEY", help="PEM files, instead of --keys or Dask's settings."),
]
WaitWorkers = Annotated[
    float, typer.Option(metavar="SECONDS", min=0, help="How long workers may take to come.")
]
Metrics = Annotated[
    str, typer.Option(metavar="[ADDRESS:]PORT", help="Tell Prometheus there what each process does.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print no tables and no progress.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print summary.json instead of tables.")]
ShowProgress = Annotated[
    bool | None, typer.Option("--progress/--no-progress", help="Progress bar; default: on a terminal.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key, e.g. vm.guest.vcpus=2; may be repeated."),
]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Parameters
    ----------
    arguments : list of str, optional
        Without the program's name; ``sys.argv[1:]`` by default.
    """
    try:
        with sigint.kept():
            status = app(arguments, standalone_mode=False)
    except UserError as error:
        return _fail(str(error), EXIT_USER_ERROR)
    except _CLICK_ERROR as error:
        return _fail(_usage_line(error), EXIT_USER_ERROR)
    except (GangError, Stopped) as error:
        return _fail(str(error), EXIT_FAILED)
    except (KeyboardInterrupt, Interrupted, typer.Abort):
        return _fail("interrupted", EXIT_INTERRUPTED)
    return status if isinstance(status, int) else 0


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"vpmu {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(EXIT_USER_ERROR)


@app.command("run")
def run(
    scenario: Annotated[str, typer.Argument(metavar="SCENARIO.toml", help="The scenario file.")],
    design: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="Designs to compare: names of `vpmu designs`, or FILE.py."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The seed, instead of the scenario's.")] = None,
    overrides: Overrides = None,
    until: Annotated[str | None, typer.Option(metavar="DURATION", help='Virtual end, e.g. "2 s".')] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; 1, or 3 with --messages, if not given.")
    ] = None,
    place: Place = "packed",
    messages: Annotated[bool, typer.Option("--messages", help="Make every access a message.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write results there.")] = None,
    keep: Annotated[
        str, typer.Option(help="Records to write: samples,accesses,switches,pmis, or all, none.")
    ] = "samples",
    perf_data: Annotated[
        bool,
        typer.Option("--perf-data", help="Write the guests' perf sessions as perf's own files; needs --out."),
    ] = False,
    checkpoint: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0,
            help="Write checkpoints at most so far apart; needs --out. See `resume`.",
        ),
    ] = None,
    scheduler: Scheduler = "",
    keys: Keys = None,
    tls: Tls = ("", "", ""),
    bind: Bind = "",
    insecure: Insecure = False,
    wait_workers: WaitWorkers = 60.0,
    metrics: Metrics = "",
    quiet: Quiet = False,
    as_json: AsJson = False,
    progress: ShowProgress = None,
) -> int:
    """Run a scenario under one or more designs."""
    from vpmu.command_cluster import where_of
    from vpmu.command_run import Output, run_command

    where = where_of(
        scheduler=scheduler,
        bind=bind,
        insecure=insecure,
        keys=keys,
        tls=tls,
        wait_s=wait_workers,
        metrics=metrics,
    )
    changes = list(overrides or [])
    if seed is not None:
        changes.append(f"seed={seed}")
    if until is not None:
        changes.append(f"until={until}")
    output = Output(quiet=quiet, as_json=as_json, progress=progress)
    return run_command(
        scenario,
        overrides=changes,
        designs=design,
        workers=workers or (_MESSAGE_WORKERS if messages else 1),
        place=place,
        messages=messages,
        out=out,
        keep=keep,
        perf_data=perf_data,
        checkpoint=checkpoint,
        where=where,
        output=output,
    )


@app.command()
def serve(
    scenario: Annotated[
        str, typer.Argument(metavar="SCENARIO.toml", help="A scenario with VMs that have remote = true.")
    ],
    design: Annotated[
        str | None, typer.Option(metavar="NAME", help="The design; default: the hosts' own, or optimized.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The seed, instead of the scenario's.")] = None,
    overrides: Overrides = None,
    until: Annotated[str | None, typer.Option(metavar="DURATION", help='Virtual end, e.g. "2 s".')] = None,
    bind: Bind = "",
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; default: a free one.")] = 0,
    ipc: Annotated[Path | None, typer.Option(metavar="PATH", help="A socket file instead of TCP.")] = None,
    keys: Keys = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Do without CURVE.")] = False,
    stall: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.001, help="Cut off who says nothing for so long.")
    ] = 10.0,
    wait: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0, help="Go on without who has not come by then.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write results there.")] = None,
    keep: Annotated[
        str, typer.Option(help="Records to write: samples,accesses,switches,pmis, or all, none.")
    ] = "samples",
    perf_data: Annotated[
        bool,
        typer.Option("--perf-data", help="Write the guests' perf sessions as perf's own files; needs --out."),
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    progress: ShowProgress = None,
) -> int:
    """Run a host whose remote VMs are other processes that connect to it."""
    from vpmu.command_run import Output
    from vpmu.command_serve import Door, serve_command

    changes = list(overrides or [])
    if seed is not None:
        changes.append(f"seed={seed}")
    if until is not None:
        changes.append(f"until={until}")
    return serve_command(
        scenario,
        overrides=changes,
        design=design,
        door=Door(bind=bind, port=port, ipc=ipc, keys=keys, insecure=insecure),
        stall_s=stall,
        wait_s=wait,
        out=out,
        keep=keep,
        perf_data=perf_data,
        output=Output(quiet=quiet, as_json=as_json, progress=progress),
    )


@app.command("guest")
def guest(
    image: Annotated[str, typer.Argument(metavar="IMAGE.elf", help="A 64-bit ELF image, multiboot or not.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARGUMENT...]", help="The guest's command line.")
    ] = None,
    design: Annotated[
        str, typer.Option(metavar="NAME", help="A name of `vpmu designs`, or FILE.py.")
    ] = "optimized",
    profile: Annotated[str | None, typer.Option(metavar="NAME", help="The host's cost profile.")] = None,
    cpus: Annotated[int, typer.Option(help="Processors of the machine: 1.")] = 1,
    kvm: Annotated[str | None, typer.Option(metavar="5.0|7.0", help="Rules of KVM.")] = None,
    pmu_version: Annotated[int, typer.Option(help="PMU version that the guest is told.")] = 2,
    hide_event: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="An architectural event that CPUID denies; repeatable."),
    ] = None,
    scenario: Annotated[
        str | None, typer.Option(metavar="FILE", help="Share the host and the load of this scenario.")
    ] = None,
    limit: Annotated[str, typer.Option(metavar="DURATION", help="Virtual time to stop it at.")] = "10 s",
    seed: Annotated[int | None, typer.Option(help="Seed of the run.")] = None,
    memory: Annotated[int, typer.Option(metavar="MIB", help="RAM.")] = 512,
    forced_emulation: Annotated[
        bool, typer.Option(help="Offer the forced-emulation prefix (ud2 and `kvm`).")
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON at the end; the console goes to stderr.")
    ] = False,
) -> int:
    """Boot an image of x86-64 code as a guest; needs the extra vpmu[machine]."""
    from vpmu.machine.command import GuestCommand, guest_command

    if cpus != 1:
        raise UserError("the machine has one processor", file="--cpus", found=str(cpus), allowed=["1"])
    return guest_command(
        GuestCommand(
            image=image,
            design=design,
            profile=profile,
            kvm=kvm,
            pmu_version=pmu_version,
            hide_events=tuple(hide_event or ()),
            scenario=scenario,
            limit=limit,
            seed=seed,
            memory=memory,
            forced_emulation=forced_emulation,
            arguments=tuple(arguments or ()),
            as_json=as_json,
        )
    )


@app.command()
def resume(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where the run writes its results.")],
    workers: Annotated[int | None, typer.Option(min=1, help="Processes, instead of the run's.")] = None,
    scheduler: Scheduler = "",
    keys: Keys = None,
    tls: Tls = ("", "", ""),
    bind: Bind = "",
    insecure: Insecure = False,
    wait_workers: WaitWorkers = 60.0,
    metrics: Metrics = "",
    quiet: Quiet = False,
    as_json: AsJson = False,
    progress: ShowProgress = None,
) -> int:
    """Go on with a run that was stopped, from its last checkpoint."""
    from vpmu.command_cluster import where_of
    from vpmu.command_run import Output, resume_command

    where = where_of(
        scheduler=scheduler,
        bind=bind,
        insecure=insecure,
        keys=keys,
        tls=tls,
        wait_s=wait_workers,
        metrics=metrics,
    )
    output = Output(quiet=quiet, as_json=as_json, progress=progress)
    return resume_command(directory, workers=workers, where=where, output=output)


@app.command()
def designs() -> None:
    """List the vPMU designs."""
    from vpmu.console import print_rows
    from vpmu.designs import list_designs

    rows = [(design.name, design.summary) for design in list_designs()]
    print_rows(("design", "summary"), rows)


@app.command()
def profiles(
    name: Annotated[
        str | None, typer.Argument(help="Show this profile's costs and where they are from.")
    ] = None,
) -> None:
    """List the cost profiles, or show one."""
    from vpmu.console import print_rows
    from vpmu.profile import list_profiles, load_profile

    if name is None:
        rows = [(item, load_profile(item).description) for item in list_profiles()]
        print_rows(("profile", "description"), rows)
        return
    print_rows(("cost", "duration", "origin"), list(load_profile(name).cost_rows()))


@scenario_app.command("check")
def scenario_check(
    file: Annotated[str, typer.Argument(metavar="SCENARIO.toml")], overrides: Overrides = None
) -> None:
    """Check a scenario file and what it names; run nothing."""
    from vpmu.command_run import check_command

    typer.echo(check_command(file, overrides or []))


@app.command()
def compare(
    left: Annotated[Path, typer.Argument(metavar="DIR")],
    right: Annotated[Path, typer.Argument(metavar="DIR")],
) -> int:
    """Compare two results; exit status 1 if they differ."""
    from vpmu.console import output_console
    from vpmu.results import compare as compare_results
    from vpmu.tables import difference_table

    comparison = compare_results(left, right)
    if comparison.same:
        typer.echo(f"same results, digest {comparison.left_digest}")
        return 0
    output_console().print(difference_table(comparison))
    typer.echo(f"digests {comparison.left_digest} and {comparison.right_digest}")
    return EXIT_DIFFERENT


@app.command()
def paper(
    seeds: Annotated[int, typer.Option(metavar="N", help="Seeds 1 to N.")] = 10,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
    ablations: Annotated[
        bool, typer.Option("--ablations", help="Take one mechanism away at a time; show which rows move.")
    ] = False,
    experiments: Annotated[
        bool, typer.Option("--experiments", help="Change one condition at a time; show the telling rows.")
    ] = False,
    examples: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where stat.toml and record.toml are.")
    ] = None,
) -> None:
    """Set the figures of the 2019 RFC beside those that the emulator gives."""
    from vpmu.paper.command import paper_command

    paper_command(
        seeds=seeds,
        overrides=overrides or [],
        as_json=as_json,
        folder=examples,
        progress=sys.stderr.isatty(),
        ablations=ablations,
        experiments=experiments,
    )


@app.command()
def truth(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What `vpmu run --out DIR` wrote.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Hold what the guests of a run measured against what really happened."""
    from vpmu.truth import truth_command

    truth_command(directory, as_json=as_json)


@app.command()
def precision(
    scenario: Annotated[str, typer.Argument(metavar="SCENARIO.toml", help="One with a record session.")],
    seeds: Annotated[int, typer.Option(metavar="N", help="Seeds 1 to N.")] = 20,
    design: Annotated[str, typer.Option(metavar="NAME,...", help="Designs.")] = "legacy,optimized,native",
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Say how near the profiles of several designs come to the truth, over seeds."""
    from vpmu.precision import precision_command

    precision_command(scenario, seeds=seeds, designs=design, overrides=overrides or [], as_json=as_json)


@app.command()
def replay(
    trace: Annotated[
        str, typer.Argument(metavar="TRACE", help="Text of trace-cmd, ftrace or perf script; - is stdin.")
    ],
    design: Annotated[
        str, typer.Option(metavar="NAME,...", help="Designs: names of `vpmu designs`, or FILE.py.")
    ] = "legacy,optimized,native",
    profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="Cost profile: of `vpmu profiles`, or a file.")
    ] = None,
    cpus: Annotated[
        int | None, typer.Option(min=1, help="Physical CPUs; default: one for each vCPU of the trace.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The seed.")] = 0,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change the host, e.g. host.host.watchdog=true; may be repeated.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write results there.")] = None,
    quiet: Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print replay.json instead of tables.")] = False,
) -> None:
    """Replay the PMU accesses in a real host's trace as guests; say what each design makes of them."""
    from vpmu.command_replay import replay_command

    replay_command(
        trace,
        designs=design,
        profile=profile,
        cpus=cpus,
        overrides=[*(overrides or []), f"seed={seed}"],
        out=out,
        quiet=quiet,
        as_json=as_json,
    )


@program_app.command("import")
def program_import(
    file: Annotated[Path, typer.Argument(metavar="CALLGRIND.OUT")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: NAME.program.json.")] = None,
) -> None:
    """Turn a Callgrind profile into a program for guests."""
    from vpmu.program.cli import import_command

    typer.echo(import_command(file, out))


@program_app.command("show")
def program_show(file: Annotated[Path, typer.Argument(metavar="FILE")]) -> None:
    """Show a program's functions and their rates."""
    from vpmu.console import output_console
    from vpmu.program.cli import show_table

    output_console().print(show_table(file))


@cluster_app.command("keys")
def cluster_keys(
    directory: Annotated[Path, typer.Argument(metavar="DIR")],
    days: Annotated[int, typer.Option(min=1, help="How long they are valid.")] = 365,
) -> None:
    """Make TLS certificates for a scheduler, its workers and their clients."""
    from vpmu.command_cluster import keys_command

    typer.echo(keys_command(directory, days))


@cluster_app.command("scheduler")
def cluster_scheduler(
    keys: Keys = None,
    bind: Bind = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Where it listens.")] = 8786,
    dashboard: Annotated[
        str, typer.Option(metavar="ADDRESS:PORT", help="Dask's own dashboard.")
    ] = "127.0.0.1:8787",
    insecure: Insecure = False,
) -> None:
    """Be the scheduler of a Dask cluster."""
    from vpmu.command_cluster import scheduler_command

    scheduler_command(keys, bind, port, dashboard, insecure=insecure)


@cluster_app.command("worker")
def cluster_worker(
    scheduler: SchedulerArgument,
    keys: Keys = None,
    bind: Bind = "127.0.0.1",
    workers: Annotated[int, typer.Option(min=1, help="Processes, one rank each.")] = 1,
    insecure: Insecure = False,
) -> None:
    """Be a worker of a Dask cluster, in one or several processes."""
    from vpmu.command_cluster import worker_command

    worker_command(scheduler, keys, bind, workers, insecure=insecure)


@cluster_app.command("status")
def cluster_status(
    scheduler: SchedulerArgument,
    keys: Keys = None,
    insecure: Insecure = False,
    at_least: Annotated[int, typer.Option(min=0, help="Workers that it has to have.")] = 1,
) -> None:
    """Say who is in a Dask cluster; exit status 1 if it has too few workers or does not answer."""
    from vpmu.command_cluster import status_command, where_of

    where = where_of(scheduler=scheduler, bind="", insecure=insecure, keys=keys, wait_s=5)
    typer.echo(status_command(where, at_least))


@cluster_app.command("plan")
def cluster_plan(
    scenario: Annotated[str, typer.Argument(metavar="FLEET.toml", help="The scenario file.")],
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    place: Place = "packed",
    design: Annotated[str | None, typer.Option(metavar="NAME,...", help="As for `vpmu run`.")] = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say what would go into which process, its memory and its estimated speed; run nothing."""
    from vpmu.command_cluster import plan_command

    typer.echo(plan_command(scenario, overrides or [], design, workers, place, as_json=as_json))


@app.command("compile")
def compile_kernels() -> None:
    """Compile all kernels into the cache, for the first run to start at once."""
    from functools import partial

    import trio

    from vpmu.execution import compile_all

    sigint.run(partial(trio.to_thread.run_sync, compile_all, abandon_on_cancel=True))


def _usage_line(error: Exception) -> str:
    """Render a mistake in the use of the command line as one line."""
    message = getattr(error, "format_message", lambda: str(error))()
    return " ".join(f"{message} (see vpmu --help)".split())


def _fail(line: str, status: int) -> int:
    print(line, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
