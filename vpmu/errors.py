"""What can go wrong at the edge: a user's mistake, and a run that was cut short.

A guest's mistake is data (#GP) and a peer's is a ``RemoteProtocolError``; neither lives here.  A
``UserError`` is raised before anything runs, names where it was found, and prints as one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vpmu.results import RunResult

_MOST_NAMES_SHOWN = 12


class UserError(ValueError):
    """A mistake in a scenario, a profile, a file or an option, told in one line.

    Parameters
    ----------
    problem : str
        What is wrong, in words, without its place.
    file : str, optional
        The file (or option) that holds the mistake.
    key : str, optional
        Path of the key inside it, e.g. ``host[0].profile``.
    found : str, optional
        What was found there; printed in double quotes after the problem.
    allowed : iterable of str, optional
        Every valid choice, in the order to show; the nearest to `found` is proposed.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str = "",
        key: str = "",
        found: str | None = None,
        allowed: Iterable[str] = (),
    ) -> None:
        self.problem = problem
        self.file = file
        self.key = key
        self.found = found
        self.allowed = tuple(allowed)
        self.nearest = nearest_name(found, self.allowed)
        super().__init__(self.line())

    def line(self) -> str:
        """Render the mistake as one line."""
        text = f"{self.file}: " if self.file else ""
        if self.key:
            text += f"key {self.key}: "
        text += self.problem
        if self.found is not None:
            text += f' "{self.found}"'
        if self.nearest is not None:
            text += f'; did you mean "{self.nearest}"?'
        if self.allowed:
            text += f" (known: {_shorten(self.allowed)})"
        return " ".join(text.split())

    def __str__(self) -> str:
        return self.line()

    def at(self, *, file: str | None = None, key: str | None = None) -> UserError:
        """Return the same mistake at another place, for callers that know the place better."""
        return UserError(
            self.problem,
            file=self.file if file is None else file,
            key=self.key if key is None else key,
            found=self.found,
            allowed=self.allowed,
        )


class Interrupted(Exception):
    """Ctrl-C stopped a run; `result` holds what was complete by then (None: nothing)."""

    def __init__(self, result: RunResult | None = None, reason: str = "interrupted") -> None:
        self.result = result
        self.reason = reason
        super().__init__(reason)


class Stopped(Exception):
    """Something outside stopped a run, a full disk or lost processes; says what, and how to go on."""


def nearest_name(found: str | None, allowed: Iterable[str]) -> str | None:
    """Return the name in `allowed` that `found` was probably meant to be, or None."""
    if not found:
        return None
    names = list(allowed)
    lowered = {name.lower(): name for name in reversed(names)}
    close = difflib.get_close_matches(found.lower(), lowered, n=1, cutoff=0.6)
    if close:
        return lowered[close[0]]
    starts = [name for name in names if name.lower().startswith(found.lower())]
    return starts[0] if starts else None


def _shorten(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:_MOST_NAMES_SHOWN])
    more = len(names) - _MOST_NAMES_SHOWN
    return f"{shown}, and {more} more" if more > 0 else shown
