"""The CURVE keys of a run: a pair for each rank, and who may speak with which.

The coordinator draws all of them when a run starts, and hands each rank its own pair and everybody's public
key. They are good for this attempt of this run; nothing writes them to a disk.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

import msgspec
import zmq

from vpmu.cluster.proto import COORDINATOR


class RankKeys(msgspec.Struct, frozen=True):
    """What one rank knows: its own pair, and the public key of every rank; keys are 40 characters of Z85.

    Attributes
    ----------
    public, secret : bytes
        The rank's own pair.
    allowed : dict of int to bytes
        The public key of each rank of the run, of the coordinator, too.
    """

    public: bytes
    secret: bytes
    allowed: dict[int, bytes]

    def __repr__(self) -> str:
        """Leave the secret out: this may stand in a traceback."""
        return f"RankKeys(public={self.public!r}, {len(self.allowed)} allowed)"


def draw_keys(nr_ranks: int) -> dict[int, RankKeys]:
    """Return the keys of every rank and of the coordinator, drawn by libzmq from the system's randomness."""
    pairs = {rank: zmq.curve_keypair() for rank in all_ranks(nr_ranks)}
    allowed = {rank: public for rank, (public, _) in pairs.items()}
    return {rank: RankKeys(public, secret, allowed) for rank, (public, secret) in pairs.items()}


def all_ranks(nr_ranks: int) -> Iterable[int]:
    """Return the numbers of the ranks of a run, the coordinator's last."""
    return (*range(nr_ranks), COORDINATOR)


def host_of(endpoint: str) -> str:
    """Return the host of `tcp://HOST:PORT` without brackets; empty for what is not tcp."""
    scheme, _, rest = endpoint.partition("://")
    return rest.rpartition(":")[0].strip("[]") if scheme in ("tcp", "tls") else ""


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine and is heard nowhere else; a name that is no address is not."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def needs_keys(endpoint: str) -> bool:
    """Return whether a link to or from `endpoint` leaves this machine."""
    return endpoint.startswith("tcp://") and not is_loopback(host_of(endpoint))
