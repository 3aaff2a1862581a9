"""Addresses of actors and the base of the messages that they hand to each other.

An address says who, never where: which process an actor lives in is known to the mailbox
registry and the hub alone.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Final

import msgspec

INDEX_BITS: Final = 28
NR_INDICES: Final = 1 << INDEX_BITS


class ActorKind(IntEnum):
    """What an actor is; the top four bits of its number on the wire."""

    HOST_PERF = 1
    PHYSICAL_CPU = 2
    VCPU = 3
    VM = 4
    OBSERVER = 5


class Address(int):
    """Names one actor of a run: an unsigned 32-bit number, as frames carry it; never 0.

    Parameters
    ----------
    kind : ActorKind
        What it is.
    index : int
        Which one, counted over the whole run; below 2**28.

    Raises
    ------
    ValueError
        If the index does not fit.
    """

    __slots__ = ()

    def __new__(cls, kind: ActorKind, index: int) -> Address:
        """Return the address of an actor."""
        if not 0 <= index < NR_INDICES:
            raise ValueError(f"actor index {index} is not below 2**{INDEX_BITS}")
        return int.__new__(cls, kind << INDEX_BITS | index)

    def __reduce__(self) -> tuple[Callable[[int], Address], tuple[int]]:
        return Address.from_number, (int(self),)

    def __str__(self) -> str:
        return f"{self.kind.name.lower()} {self.index}"

    def __repr__(self) -> str:
        return f"Address({self})"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    @property
    def kind(self) -> ActorKind:
        """What it is."""
        return ActorKind(self >> INDEX_BITS)

    @property
    def index(self) -> int:
        """Which one, counted over the whole run."""
        return self & (NR_INDICES - 1)

    @property
    def number(self) -> int:
        """The address as a plain number."""
        return int(self)

    @classmethod
    def from_number(cls, number: int) -> Address:
        """Return the address that `number` stands for; ValueError if there is no such kind."""
        return cls(ActorKind(number >> INDEX_BITS), number & (NR_INDICES - 1))


def host_perf(index: int) -> Address:
    """Return the address of a host's perf subsystem."""
    return Address(ActorKind.HOST_PERF, index)


def physical_cpu(index: int) -> Address:
    """Return the address of a physical CPU."""
    return Address(ActorKind.PHYSICAL_CPU, index)


def vcpu(index: int) -> Address:
    """Return the address of a guest's vCPU."""
    return Address(ActorKind.VCPU, index)


def vm(index: int) -> Address:
    """Return the address of a VM, the nursery of its vCPUs."""
    return Address(ActorKind.VM, index)


def observer(index: int) -> Address:
    """Return the address of an observer."""
    return Address(ActorKind.OBSERVER, index)


class Message(msgspec.Struct, frozen=True):
    """What one actor tells another; subclasses add what they carry.

    Parameters
    ----------
    source : Address
        Who says it.
    at_ns : int
        Virtual time of the event, nanoseconds.
    """

    source: Address
    at_ns: int
