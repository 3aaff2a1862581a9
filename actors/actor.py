"""What all actors have in common: a message in, effects out, and a loop that moves messages."""

from collections.abc import Iterable
from typing import Protocol

import trio

from vpmu.actors.mailbox import Mailboxes
from vpmu.actors.messages import Address, Message

Effects = list[tuple[Address, Message]]
"""Messages to send, in order."""


class UnexpectedMessage(Exception):
    """An actor was told something that it had not asked for, or that makes no sense where it is."""


class Actor(Protocol):
    """State that changes by messages alone; one object may stand for many addresses of a process."""

    def handle(self, to: Address, message: Message) -> Effects:
        """Take a message for ``to``; return what to send."""
        ...


async def live(
    actor: Actor, address: Address, inbox: trio.MemoryReceiveChannel[Message], mailboxes: Mailboxes
) -> None:
    """Hand an actor what comes to one of its addresses, until the inbox is closed."""
    async for message in inbox:
        await post(actor.handle(address, message), mailboxes)


async def post(effects: Iterable[tuple[Address, Message]], mailboxes: Mailboxes) -> None:
    """Send effects."""
    for to, message in effects:
        await mailboxes.send(to, message)
