"""Ctrl-C: no command goes on as though it had not come.

Python drops a KeyboardInterrupt that is raised in a weak reference's callback or in ``__del__``. `run` has
trio raise it again, at the main task's next checkpoint. Where trio does not run, `kept` keeps it for `check`.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from types import FrameType

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")

_dropped = False


@contextmanager
def kept() -> Iterator[None]:
    """Keep a KeyboardInterrupt that Python drops, for the next `check`; at the block's end there is one."""
    global _dropped
    usual = sys.unraisablehook

    def keep(unraisable: sys.UnraisableHookArgs) -> None:
        global _dropped
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            _dropped = True
        else:
            usual(unraisable)

    sys.unraisablehook = keep
    try:
        yield
        check()
    finally:
        sys.unraisablehook, _dropped = usual, False


def check() -> None:
    """Raise the KeyboardInterrupt that was kept, if there is one; for loops without trio."""
    global _dropped
    if _dropped:
        _dropped = False
        raise KeyboardInterrupt


def run(command: Callable[[*Arguments], Awaitable[Result]], *arguments: *Arguments) -> Result:
    """Run a command's async function by `trio.run`; no Ctrl-C is lost.

    Note that a SIGINT that is ignored, as in a shell's background jobs, or handled by somebody else stays so.
    """
    import trio

    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return trio.run(command, *arguments)
    return trio.run(_hear, command, arguments, restrict_keyboard_interrupt_to_checkpoints=True)


async def _hear(command: Callable[[*Arguments], Awaitable[Result]], arguments: tuple[*Arguments]) -> Result:
    """Await a command; SIGINT raises KeyboardInterrupt at once, where trio allows it, and at a checkpoint."""
    global _dropped
    import trio

    check()
    is_due = signal.getsignal(signal.SIGINT)  # trio's own, which raises nothing itself
    assert callable(is_due)

    def interrupt(signum: int, frame: FrameType | None) -> None:
        is_due(signum, frame)
        if not trio.lowlevel.currently_ki_protected():
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        return await command(*arguments)
    except BaseException:
        # Note that trio would raise what is still due instead.
        with suppress(KeyboardInterrupt):
            await trio.lowlevel.checkpoint()
        raise
    finally:
        signal.signal(signal.SIGINT, is_due)
        _dropped = False  # it was due, too
