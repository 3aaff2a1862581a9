"""The mailbox registry of a process: who lives here, and how a message reaches anyone.

A sender names an address. If the actor lives in this process the message goes into its mailbox in
memory; otherwise it goes to `outbound`, which knows the wire. The sender cannot tell which.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from vpmu.actors.messages import Address, Message

Outbound = Callable[[Address, Message], None]


class UnknownAddress(LookupError):
    """A message was sent to an actor that lives neither here nor, as far as is known, anywhere."""


class Mailboxes:
    """Owns the sending ends of the mailboxes of the actors that live in this process.

    Takes `(address, message)`; emits the message into one mailbox or to `outbound`, which must
    not wait. It has no task of its own and stops when it is closed, which ends every actor that
    reads one of its mailboxes.

    Parameters
    ----------
    outbound : callable, optional
        Takes what is for another process. Without it, every actor must live here.
    """

    def __init__(self, outbound: Outbound | None = None) -> None:
        self._outbound = outbound
        self._local: dict[Address, trio.MemorySendChannel[Message]] = {}

    def open(self, address: Address, capacity: int) -> trio.MemoryReceiveChannel[Message]:
        """Give `address` a mailbox for up to `capacity` waiting messages; return its reading end.

        Raises
        ------
        ValueError
            If the address has a mailbox already.
        """
        if address in self._local:
            raise ValueError(f"{address} has a mailbox already")
        send, receive = trio.open_memory_channel[Message](capacity)
        self._local[address] = send
        return receive

    def is_local(self, address: Address) -> bool:
        """Return whether the actor lives in this process."""
        return address in self._local

    def send_nowait(self, address: Address, message: Message) -> None:
        """Hand `message` over without waiting.

        Raises
        ------
        trio.WouldBlock
            If the mailbox, or the way to it, is full.
        trio.BrokenResourceError
            If the actor lives here and has ended.
        UnknownAddress
            If it does not live here and there is no way out.
        """
        mailbox = self._local.get(address)
        if mailbox is not None:
            mailbox.send_nowait(message)
        else:
            self._send_out(address, message)

    async def send(self, address: Address, message: Message) -> None:
        """Hand `message` over, waiting while a local mailbox is full; errors as `send_nowait`."""
        mailbox = self._local.get(address)
        if mailbox is not None:
            await mailbox.send(message)
        else:
            await trio.lowlevel.checkpoint()
            self._send_out(address, message)

    def _send_out(self, address: Address, message: Message) -> None:
        if self._outbound is None:
            raise UnknownAddress(f"{address} has no mailbox in this process")
        self._outbound(address, message)

    def close(self, address: Address) -> None:
        """Close the mailbox of `address`: its actor reads what is left and ends."""
        mailbox = self._local.pop(address, None)
        if mailbox is None:
            raise UnknownAddress(f"{address} has no mailbox in this process")
        mailbox.close()

    def close_all(self) -> None:
        """Close every mailbox."""
        for address in list(self._local):
            self.close(address)
