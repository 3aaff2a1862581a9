"""Where a run's processes are, and what may leave this machine: the choices that change no result."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vpmu.cluster.errors import GangError
from vpmu.cluster.keys import RankKeys, draw_keys, host_of, is_loopback
from vpmu.cluster.link import address_endpoint, local_endpoint

START_WITHIN_S: Final = 60.0
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
_ENVIRONMENT: Final = "DASK_DISTRIBUTED__COMM__TLS__"


@dataclass(frozen=True, slots=True)
class Where:
    """Where the ranks of a run live, and who may hear them.

    Attributes
    ----------
    scheduler : str
        A running Dask cluster, `tls://HOST:PORT` or `tcp://HOST:PORT`; empty starts processes here.
    bind : str
        The address of this machine that ranks elsewhere reach it by; empty for loopback.
    insecure : bool
        Do without CURVE, and without TLS on Dask.
    curve : bool
        Use CURVE on loopback, too.
    tls_ca_file, tls_cert, tls_key : str
        For a scheduler with TLS; what is empty is taken from Dask's own configuration.
    start_within_s : float
        Longest time until enough workers are there, and again until all ranks are ready.
    metrics : str
        The address where figures are told; if it is not loopback, ranks tell theirs where they are bound.
    metrics_port : int or None
        The port of this process; rank 0 takes the next one, and so on. None tells nothing.
    """

    scheduler: str = ""
    bind: str = ""
    insecure: bool = False
    curve: bool = False
    tls_ca_file: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    start_within_s: float = START_WITHIN_S
    metrics: str = "127.0.0.1"
    metrics_port: int | None = None

    @staticmethod
    def address(name: str) -> str:
        """Return the address of a network interface of this machine, or `name` if it is none."""
        import psutil

        found = [entry.address for entry in psutil.net_if_addrs().get(name, ()) if entry.family in _FAMILIES]
        return found[0] if found else name

    def check(self) -> None:
        """Raise ValueError, with what to do, if the choices cannot be had together."""
        if self.bind:
            address_endpoint(self.bind)
        if not self.scheduler:
            return
        scheme, _, rest = self.scheduler.partition("://")
        if scheme not in ("tcp", "tls") or not rest.rpartition(":")[2].isdecimal():
            raise ValueError(f"a scheduler is tls://HOST:PORT or tcp://HOST:PORT, not {self.scheduler!r}")
        if scheme == "tcp" and not is_loopback(host_of(self.scheduler)) and not self.insecure:
            raise ValueError(
                f"{self.scheduler} has no TLS: anybody may command its workers; use tls:// or --insecure"
            )

    @property
    def leaves(self) -> bool:
        """Whether links between ranks leave this machine."""
        return bool(self.bind) and not is_loopback(self.bind)

    def endpoint(self, transport: str, directory: Path) -> str:
        """Return where the coordinator binds."""
        if self.bind:
            return address_endpoint(self.bind)
        return local_endpoint("tcp" if self.scheduler else transport, directory)

    def keys(self, nr_ranks: int, *, private: bool) -> dict[int, RankKeys]:
        """Return the keys of a new attempt, or none where no link needs any.

        Parameters
        ----------
        nr_ranks : int
            Ranks of the run.
        private : bool
            Whether they can be handed out unheard.

        Raises
        ------
        GangError
            If keys are needed and cannot be handed out.
        """
        if self.insecure or not (self.leaves or self.curve):
            return {}
        if not private:
            raise GangError("keys are handed out over TLS only: start Dask with tls://, or use --insecure")
        return draw_keys(nr_ranks)

    def security(self) -> Any:
        """Return Dask's TLS settings for the scheduler, or None for one without."""
        if not self.scheduler.startswith("tls://"):
            return None
        import distributed

        given = {
            "tls_ca_file": self.tls_ca_file,
            "tls_client_cert": self.tls_cert,
            "tls_client_key": self.tls_key,
        }
        make: Any = distributed.Security
        security = make(require_encryption=True, **{name: file for name, file in given.items() if file})
        missing = [name for name in given if getattr(security, name) is None]
        if missing:
            names = ", ".join(name.removeprefix("tls_").replace("_", "-") for name in missing)
            raise GangError(
                f"{self.scheduler} needs TLS files, these are missing: {names}; give --keys DIR, --tls, "
                f"or Dask's configuration, {_ENVIRONMENT}CA_FILE ..."
            )
        return security


HERE: Final = Where()
"""Processes of this machine, that nobody else hears."""
