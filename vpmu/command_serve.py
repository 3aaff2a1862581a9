"""``vpmu serve``: a host that waits for remote guests, beside ordinary ones."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vpmu.command_run import Output, carry_out, choose_designs
from vpmu.errors import Stopped, UserError
from vpmu.options import RunOptions
from vpmu.records import parse_keep
from vpmu.results import CutOffRow, check_out_directory
from vpmu.scenario import Scenario, load_scenario

if TYPE_CHECKING:
    from collections.abc import Iterator

    import zmq

    from vpmu.actors.machine import Machine
    from vpmu.cluster.guests.desk import Desk
    from vpmu.cluster.guests.ports import Gate, RouterPort
    from vpmu.cluster.guests.serve import Patience
    from vpmu.kernels.jit import Arena

DESIGN: Final = "optimized"
"""The design if neither the command line nor the hosts name one: guests come once, so there is only one."""
_INSECURE: Final = "--insecure: whoever reaches this port can be a guest, and read and forge what guests say"
_NOT_RESUMED: Final = "this run cannot be resumed: its guests are elsewhere, so it writes no checkpoints"


@dataclass(frozen=True)
class Door:
    """Where guests come in, and who may.

    Attributes
    ----------
    bind, port : str and int
        Address of this machine, empty for loopback; port, 0 for a free one.
    ipc : Path, optional
        A socket file, instead.
    keys : Path, optional
        What `vpmu cluster keys` made.
    insecure : bool
        Let whoever reaches the port in.
    """

    bind: str = ""
    port: int = 0
    ipc: Path | None = None
    keys: Path | None = None
    insecure: bool = False

    def endpoint(self) -> str:
        """Return what to bind.

        Raises
        ------
        UserError
            If it cannot be had, or would let anybody in who reaches this machine.
        """
        from vpmu.cluster.guests.ports import ipc_endpoint
        from vpmu.cluster.keys import needs_keys
        from vpmu.cluster.link import address_endpoint
        from vpmu.cluster.where import Where

        if self.ipc is not None:
            if self.bind or self.port or self.keys:
                raise UserError("goes without --bind, --port and --keys", file="--ipc")
            return _told("--ipc", lambda: ipc_endpoint(self.ipc or Path()))
        address = Where.address(self.bind) or "127.0.0.1"
        endpoint = _told("--bind", lambda: address_endpoint(address)).replace("*", str(self.port or "*"))
        if needs_keys(endpoint) and self.keys is None and not self.insecure:
            raise UserError(
                "needs --keys DIR, from `vpmu cluster keys`, or --insecure", file=f"--bind {self.bind}"
            )
        return endpoint

    def gate(self, on_refused: Callable[[str], None]) -> Callable[[zmq.Socket[bytes]], Gate] | None:
        """Return what makes a ROUTER CURVE's, None without keys."""
        if self.keys is None:
            return None
        from vpmu.cluster.guests.keys import SERVE_KEY, read_serve_key
        from vpmu.cluster.keys import RankKeys
        from vpmu.cluster.zap import Authenticator

        file = self.keys / SERVE_KEY
        try:
            key = read_serve_key(file)
        except ValueError as error:
            raise UserError(str(error), file="--keys") from None
        except OSError as error:
            problem = f"{file}: {error.strerror}; `vpmu cluster keys DIR` makes it"
            raise UserError(problem, file="--keys") from None
        pair = RankKeys(key.public.encode(), key.secret.encode(), {0: key.guest.encode()})
        return lambda router: Authenticator(router, pair, on_refused, watches=False)


def serve_command(
    file: str,
    *,
    overrides: list[str],
    design: str | None,
    door: Door,
    stall_s: float,
    wait_s: float | None,
    out: Path | None,
    keep: str,
    perf_data: bool,
    output: Output,
) -> int:
    """Check everything, wait for guests, run, write and print; return the exit status."""
    from vpmu.cluster.guests.serve import Patience

    scenario = load_scenario(file, overrides)
    if not any(vm.remote for vm in scenario.vms):
        raise UserError("no VM has remote = true: nobody could come", file=file)
    if perf_data and out is None:
        raise UserError("needs --out DIR, where its files go", file="--perf-data")
    patience = Patience(stall_s, float("inf") if wait_s is None else wait_s)
    options = RunOptions(
        designs=(_choose_design(scenario, design, file),),
        out=None if out is None else check_out_directory(out),
        keep=parse_keep(keep),
        perf_data=perf_data,
        drive=Reception(door, patience, quiet=output.quiet).drive,
    )
    return carry_out(scenario, options, output)


def _choose_design(scenario: Scenario, design: str | None, file: str) -> str:
    """Return the one design: guests come once."""
    own = all(host.design for host in scenario.hosts)
    names = choose_designs(scenario, design or (None if own else DESIGN), file)
    if len(names) > 1:
        raise UserError("guests come once, so it takes one design", file="--design", found=design)
    return names[0]


class Reception:
    """Lets guests in and runs the machine with them, as `RunOptions.drive`.

    Parameters
    ----------
    door : Door
    patience : Patience
        How long to wait for them.
    quiet : bool
        Say nothing but what is a warning.
    """

    def __init__(self, door: Door, patience: Patience, *, quiet: bool = False) -> None:
        self._door = door
        self._patience = patience
        self._quiet = quiet
        self._endpoint = door.endpoint()
        if door.insecure:
            print(_INSECURE, file=sys.stderr)
        door.gate(lambda _: None)

    async def drive(
        self, scenario: Scenario, machine: Machine, on_records: Callable[[Arena], None]
    ) -> list[CutOffRow]:
        """Run a machine with its guests; return who was cut off."""
        from vpmu.actors.outside import Outside
        from vpmu.cluster.guests.serve import serve
        from vpmu.serving import desk_of, rows_of

        outside = Outside(machine)
        desk = desk_of(scenario, machine, outside)
        with self._bound(desk) as port:
            names = ", ".join(seat.name for seat in desk.seats)
            self._say(f"{port.endpoint} waits for guests: {names}; {_NOT_RESUMED}")
            # What is there now stays: collecting garbage among it would only hold guests up.
            gc.freeze()
            await serve(outside, desk, port, self._patience, on_records)
        if desk.nr_refused:
            self._say(f"{desk.nr_refused} messages or connections were refused")
        return rows_of(desk)

    @contextmanager
    def _bound(self, desk: Desk) -> Iterator[RouterPort]:
        import zmq

        from vpmu.cluster.guests.ports import RouterPort

        try:
            port = RouterPort(self._endpoint, self._door.gate(desk.note_refused))
        except zmq.ZMQError as error:
            raise Stopped(f"{self._endpoint}: {error.strerror}") from None
        try:
            yield port
        finally:
            port.close()

    def _say(self, line: str) -> None:
        if not self._quiet:
            print(line, file=sys.stderr, flush=True)


def _told(option: str, make: Callable[[], str]) -> str:
    """Return what `make` returns; what is wrong with the option is a user's mistake."""
    try:
        return make()
    except ValueError as error:
        raise UserError(str(error), file=option) from None
