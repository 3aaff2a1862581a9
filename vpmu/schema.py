"""From a parsed TOML table to a frozen struct, with every mistake told as a `UserError` at its key.

Owns the words of structural mistakes (unknown, missing, wrong type); what a value must be is its owner's to
check.
"""

from __future__ import annotations

import re
import tomllib
import types
import typing
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from vpmu.errors import UserError
from vpmu.units import Duration, Rate, describe, parse_duration, parse_exact, parse_rate

S = TypeVar("S", bound=msgspec.Struct)
Table = dict[str, Any]

_READERS = {Duration: parse_duration, Rate: parse_rate, Fraction: parse_exact}
_TOML_NAMES = {
    "int": "an integer",
    "str": "a string",
    "bool": "true or false",
    "array": "an array",
    "object": "a table",
    "float": "a number",
    "null": "nothing",
}
_PLACE = re.compile(r"^(?P<problem>.*?)(?: - at `\$?(?P<path>[^`]*)`)?$", re.DOTALL)


def read_toml(path: Path) -> Table:
    """Parse a TOML file, keeping decimals exact (`decimal.Decimal`).

    Raises
    ------
    UserError
        If the file cannot be read, is not UTF-8 or is not TOML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read: {error.strerror or error}", file=str(path)) from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text (byte {error.start})", file=str(path)) from None
    try:
        return tomllib.loads(text, parse_float=Decimal)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise UserError(f"not valid TOML: {error}", file=str(path)) from None


def convert(raw: Table, kind: type[S], file: str) -> S:
    """Turn a table into a struct of type `kind`.

    Raises
    ------
    UserError
        At the first unknown key, missing key or value of a wrong type, by its key path.
    """
    _check_keys(raw, kind, "", file)
    try:
        return msgspec.convert(raw, kind, dec_hook=_read)
    except msgspec.ValidationError as error:
        raise _translate(error, raw, kind, file) from None


def join(path: str, key: str | int) -> str:
    """Extend a key path: `host` and 0 give ``host[0]``, ``host[0]`` and `cpus` give ``host[0].cpus``."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def keys_of(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the keys a table of type `kind` may have, with their types, in the order of the struct."""
    return {item.encode_name: item.type for item in msgspec.structs.fields(kind)}


def _read(kind: type, value: object) -> object:
    return _READERS[kind](value)


def _check_keys(raw: object, kind: Any, path: str, file: str) -> None:
    """Refuse unknown and missing keys, in this table and those inside it."""
    if _is_struct(kind):
        if not isinstance(raw, dict):
            raise UserError(f"expected a table, found {describe(raw)}", file=file, key=path)
        known = keys_of(kind)
        for key in raw:
            if key not in known:
                raise UserError("unknown key", file=file, key=join(path, key), found=key, allowed=known)
        for item in msgspec.structs.fields(kind):
            if item.required and item.encode_name not in raw:
                raise UserError("missing", file=file, key=join(path, item.encode_name))
        for key, value in raw.items():
            _check_keys(value, known[key], join(path, key), file)
    elif typing.get_origin(kind) is tuple and _is_struct(typing.get_args(kind)[0]):
        if not isinstance(raw, list):
            raise UserError(f"expected an array of tables, found {describe(raw)}", file=file, key=path)
        for index, value in enumerate(raw):
            _check_keys(value, typing.get_args(kind)[0], join(path, index), file)
    elif typing.get_origin(kind) is dict and isinstance(raw, dict):
        for key, value in raw.items():
            _check_keys(value, typing.get_args(kind)[1], join(path, key), file)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _translate(
    error: msgspec.ValidationError, raw: Table, kind: type[msgspec.Struct], file: str
) -> UserError:
    match = _PLACE.match(str(error))
    assert match is not None  # the pattern matches any text
    steps = re.findall(r"\[(\d+|\.\.\.)\]|\.?([^.\[\]]+)", match["path"] or "")
    path, value, at = "", typing.cast(Any, raw), typing.cast(Any, kind)
    for index, name in steps:
        step: str | int = name or (index if index == "..." else int(index))
        if step == "...":
            step = _first_misfit(value, typing.get_args(at)[1])
        path, value, at = join(path, step), value[step], _type_below(at, step)
    return _explain(match["problem"], path, value, at, file)


def _first_misfit(table: Table, kind: Any) -> str:
    """Return the key of the first value that is not of type `kind` (msgspec names the table only)."""
    for key, value in table.items():
        try:
            msgspec.convert(value, kind, dec_hook=_read)
        except msgspec.ValidationError:
            return key
    raise AssertionError("msgspec refused a table whose values all fit")


def _type_below(kind: Any, step: str | int) -> Any:
    if _is_struct(kind):
        return keys_of(kind)[str(step)]
    for part in typing.get_args(kind) if _is_union(kind) else (kind,):
        if typing.get_origin(part) is tuple and isinstance(step, int):
            return typing.get_args(part)[0]
        if typing.get_origin(part) is dict:
            return typing.get_args(part)[1]
    return None


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _literals(kind: Any) -> tuple[str, ...]:
    if typing.get_origin(kind) is typing.Literal:
        return tuple(str(value) for value in typing.get_args(kind))
    if _is_union(kind):
        return tuple(name for part in typing.get_args(kind) for name in _literals(part))
    return ()


def _explain(problem: str, path: str, value: object, kind: Any, file: str) -> UserError:
    if problem.startswith("Invalid enum value"):
        return UserError("unknown value", file=file, key=path, found=str(value), allowed=_literals(kind))
    expected = re.match(r"Expected `([^`]*)`, got", problem)
    if expected is not None:
        names = [_TOML_NAMES.get(name, name) for name in expected[1].split(" | ") if name != "null"]
        problem = f"expected {' or '.join(names)}, found {describe(value)}"
    return UserError(problem, file=file, key=path)
