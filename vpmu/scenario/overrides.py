"""``--set key=value``: changes to a scenario's tables before they are checked."""

from __future__ import annotations

import tomllib
from decimal import Decimal
from typing import Any

from vpmu.errors import UserError
from vpmu.schema import join

_SOURCE = "--set"


def apply_overrides(raw: dict[str, Any], overrides: list[str]) -> None:
    """Apply ``key=value`` texts to `raw`, in order and in place.

    A key is a dotted path; an entry of an array of tables is named by its index or its ``name``, as in
    ``vm.guest.session.0.frequency=1000``.  A value is TOML, or else a bare string (``until=10 s``).

    Raises
    ------
    UserError
        If a text has no ``=`` or a step of its path leads nowhere.
    """
    for override in overrides:
        path, equals, text = override.partition("=")
        steps = [step.strip() for step in path.split(".")]
        if not equals or not all(steps):
            raise UserError(f'expected key=value, found "{override}"', file=_SOURCE)
        _assign(raw, steps, _parse_value(text.strip()))


def find_value(raw: dict[str, Any], path: str) -> object:
    """Return the value at a dotted path, whose steps are those of `apply_overrides`.

    Raises
    ------
    UserError
        If a step leads nowhere.
    """
    at: Any = raw
    steps: list[str | int] = []
    for step in path.split("."):
        key = _entry(at, step, ".".join(map(str, steps))) if isinstance(at, dict | list) else step
        if not isinstance(at, dict | list) or (isinstance(at, dict) and key not in at):
            known = sorted(at) if isinstance(at, dict) else []
            raise UserError("no such key in the scenario", found=step, allowed=known)
        at = at[key]  # type: ignore[index]
        steps.append(key)
    return at


def _parse_value(text: str) -> object:
    try:
        table = tomllib.loads(f"value = {text}", parse_float=Decimal)
    except ValueError:
        return text
    return table["value"] if set(table) == {"value"} else text


def _assign(raw: dict[str, Any], steps: list[str], value: object) -> None:
    at: Any = raw
    path = ""
    for position, step in enumerate(steps[:-1]):
        key = _entry(at, step, path)
        path = join(path, key)
        if isinstance(at, dict) and key not in at:
            at[key] = {}
        at = at[key]
        if not isinstance(at, dict | list):
            raise UserError(f'has no key "{steps[position + 1]}"', file=_SOURCE, key=path)
    at[_entry(at, steps[-1], path)] = value


def _entry(at: dict[str, Any] | list[Any], step: str, path: str) -> str | int:
    """Turn a step into a table's key, or into the index of an array's entry."""
    if isinstance(at, dict):
        return step
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in at]
    if step.isdecimal() and int(step) < len(at):
        return int(step)
    if step in names:
        return names.index(step)
    known = [str(name) if name else str(index) for index, name in enumerate(names)]
    raise UserError("no entry", file=_SOURCE, key=path, found=step, allowed=known)
