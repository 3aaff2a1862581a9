"""Ctrl-C ends every command, also one that comes where Python drops the exception that it raises."""

from __future__ import annotations

import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import pytest
import trio

from tests.cluster.test_launcher import ENTRIES, ThreadWorkers
from tests.guests.assemble import code_of, elf_of
from vpmu import sigint
from vpmu.cli import main
from vpmu.cluster.errors import GangError
from vpmu.cluster.launcher import _first, run_gang
from vpmu.errors import Interrupted

EXAMPLES = Path(__file__).parents[2] / "examples"
PAUSES = str(EXAMPLES / "designs" / "pauses.toml")
RECORD = str(EXAMPLES / "ftest" / "record.toml")


class Thing:
    """What can be referred to weakly."""


class Presses:
    """What presses Ctrl-C when it goes."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def press_in_a_callback() -> None:
    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
    del thing
    assert reference() is None


def press_in_del() -> None:
    Presses()


IN_WHAT_IS_DROPPED = pytest.mark.parametrize("press", [press_in_a_callback, press_in_del])


@contextmanager
def pressed_at(function: str, press: Callable[[], None]) -> Iterator[None]:
    """Press where the main thread first calls a function of that name, if it does."""

    def look(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_qualname == function:
            sys.setprofile(None)
            press()

    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(None)


# -- while trio runs --


@IN_WHAT_IS_DROPPED
def test_one_that_python_drops_comes_at_the_next_checkpoint(press: Callable[[], None]):
    came_to = []

    async def command() -> None:
        press()
        came_to.append("the checkpoint")
        await trio.lowlevel.checkpoint()
        came_to.append("what follows")

    with sigint.kept(), pytest.raises(KeyboardInterrupt):
        sigint.run(command)
    assert came_to == ["the checkpoint"]


def test_synchronous_code_ends_at_once_and_its_error_is_the_commands():
    async def command() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
            pytest.fail("went on")
        except KeyboardInterrupt:
            raise Interrupted(None, "with what is complete") from None

    with pytest.raises(Interrupted, match="with what is complete"):
        sigint.run(command)


def test_another_task_is_as_good():
    async def press() -> None:
        press_in_a_callback()

    async def command() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(press)
            await trio.sleep_forever()

    with sigint.kept(), pytest.raises(BaseExceptionGroup) as caught:
        sigint.run(command)
    assert caught.group_contains(KeyboardInterrupt)


def test_one_after_the_last_checkpoint_still_comes():
    async def command() -> None:
        press_in_a_callback()

    with sigint.kept(), pytest.raises(KeyboardInterrupt):
        sigint.run(command)


def test_a_command_returns_and_leaves_the_signal_as_it_was():
    async def command(one: int, two: int) -> int:
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        await trio.lowlevel.checkpoint()
        return one + two

    assert sigint.run(command, 1, 2) == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None])
def test_a_signal_that_is_ignored_or_somebody_elses_stays_so(handler: signal.Handlers):
    async def command() -> str:
        signal.raise_signal(signal.SIGINT)
        await trio.lowlevel.checkpoint()
        return "its end"

    before = signal.signal(signal.SIGINT, handler)
    try:
        assert sigint.run(command) == "its end"
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_runs_a_command_without_hearing():
    async def command() -> None:
        found.append(signal.getsignal(signal.SIGINT))

    found: list[object] = []
    thread = threading.Thread(target=sigint.run, args=(command,))
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


def test_workers_are_closed_before_one_that_is_due_comes():
    closed = []

    class Watched(ThreadWorkers):
        def close(self) -> None:
            super().close()
            closed.append(True)

    with sigint.kept(), pytest.raises(KeyboardInterrupt), pressed_at("Hub.close", press_in_a_callback):
        sigint.run(partial(run_gang, 1, ENTRIES + "echo", b"", open_workers=Watched))
    assert closed == [True]


def test_ctrl_c_goes_before_the_loss_of_a_process_which_would_be_tried_again():
    group = BaseExceptionGroup("", [GangError("killed", 1, lost=True), KeyboardInterrupt()])
    assert isinstance(_first(group), KeyboardInterrupt)


# -- elsewhere --


@IN_WHAT_IS_DROPPED
def test_one_before_trio_runs_is_kept_until_it_does(press: Callable[[], None]):
    async def command() -> None:
        pytest.fail("ran")

    with sigint.kept():
        press()
        with pytest.raises(KeyboardInterrupt):
            sigint.run(command)


@IN_WHAT_IS_DROPPED
def test_one_that_nobody_has_asked_for_comes_at_the_end(press: Callable[[], None]):
    with pytest.raises(KeyboardInterrupt), sigint.kept():
        press()
    sigint.check()


def test_other_errors_that_python_drops_are_told_as_ever(monkeypatch: pytest.MonkeyPatch):
    told = []

    def tell(unraisable: sys.UnraisableHookArgs) -> None:
        told.append(unraisable.exc_type)

    monkeypatch.setattr(sys, "unraisablehook", tell)
    thing = Thing()
    reference = weakref.ref(thing, hash)  # a reference to what is gone, and was never hashed, has no hash
    with sigint.kept():
        del thing
    assert reference() is None
    assert told == [TypeError]
    assert sys.unraisablehook is tell


# -- the commands --


def image(folder: Path) -> str:
    path = folder / "stat.elf"
    path.write_bytes(elf_of(code_of("stat")))
    return str(path)


COMMANDS = {
    "run": ("drain_log", "run", PAUSES, "--design", "optimized"),
    "run, while it is built": ("build", "run", PAUSES, "--design", "optimized"),
    "run, while it is collected": ("collect", "run", PAUSES, "--design", "optimized"),
    "run --workers": ("Coordinator._on_ready", "run", PAUSES, "--design", "optimized", "--workers", "2"),
    "serve": ("Desk.ask", "serve", str(EXAMPLES / "remote" / "remote.toml"), "--wait", "0.2", "--quiet"),
}
PLAIN_COMMANDS = {
    "guest": ("MachineGuests.step", "guest", "IMAGE", "--memory", "64"),
    "paper": ("drain_log", "paper", "--seeds", "1"),
    "precision": ("drain_log", "precision", RECORD, "--seeds", "2", "--design", "optimized"),
    "replay": ("drain_log", "replay", str(EXAMPLES / "replay" / "stat.trace"), "--design", "optimized"),
    "run, before it begins": ("load_scenario", "run", PAUSES),
}


@IN_WHAT_IS_DROPPED
@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_ends_and_says_what_is_missing(
    command: str, press: Callable[[], None], capsys: pytest.CaptureFixture[str]
):
    function, *arguments = COMMANDS[command]
    with pressed_at(function, press):
        assert main(arguments) == 130
    assert capsys.readouterr() == ("", "interrupted: Ctrl-C; missing: optimized\n")


@IN_WHAT_IS_DROPPED
@pytest.mark.parametrize("command", PLAIN_COMMANDS)
def test_a_command_ends(
    command: str, press: Callable[[], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    function, *arguments = PLAIN_COMMANDS[command]
    with pressed_at(function, press):
        assert main([image(tmp_path) if each == "IMAGE" else each for each in arguments]) == 130
    assert capsys.readouterr().out == ""
