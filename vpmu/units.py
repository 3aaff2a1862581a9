"""Quantities as a user writes them, as exact integers and fractions: durations, rates, decimals.

A duration is an integer count of nanoseconds from the moment it is read; no float ever holds a time.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Final

NS_PER_S: Final = 1_000_000_000
DURATION_UNITS: Final = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": NS_PER_S, "min": 60 * NS_PER_S}
_RATE_UNITS: Final = {"s": 1, "min": 60}
_LONGEST_NS: Final = 2**62
_NUMBER: Final = r"([+-]?\d+(?:_\d+)*(?:\.\d+)?)"
_DURATION: Final = re.compile(rf"\s*{_NUMBER}\s*([^\d\s]*)\s*", re.ASCII)
_RATE: Final = re.compile(rf"\s*{_NUMBER}\s*(?:/\s*([^\d\s]*))?\s*", re.ASCII)


class Duration(int):
    """A duration or a point in virtual time: an ``int`` of nanoseconds."""


class Rate(Fraction):
    """Events per second, exact."""

    @property
    def interval_ns(self) -> int:
        """Mean time between two events, ns, rounded to the nearest and at least 1."""
        return max(1, round(NS_PER_S / self))


def parse_duration(text: object) -> Duration:
    """Read ``"10 s"``, ``"4 ms"``, ``"1.5 us"`` or ``"250 ns"`` as integer nanoseconds.

    Raises
    ------
    ValueError
        If there is no number or no known unit, the value is negative, too large, or not a whole number of ns.
    """
    units = ", ".join(DURATION_UNITS)
    if not isinstance(text, str):
        raise ValueError(
            f'expected a duration with its unit, like "10 ms", found {describe(text)} (units: {units})'
        )
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f'expected a duration like "10 ms", found "{text}" (units: {units})')
    number, unit = match.groups()
    if unit not in DURATION_UNITS:
        problem = f'unknown unit "{unit}" in' if unit else "no unit in"
        raise ValueError(f'{problem} duration "{text}" (units: {units})')
    nanoseconds = Fraction(number) * DURATION_UNITS[unit]
    if nanoseconds < 0:
        raise ValueError(f'a duration is not negative, found "{text}"')
    if nanoseconds.denominator != 1:
        raise ValueError(f'duration "{text}" is not a whole number of nanoseconds')
    if nanoseconds > _LONGEST_NS:
        raise ValueError(f'duration "{text}" is too long (at most 2^62 ns)')
    return Duration(nanoseconds.numerator)


def parse_rate(text: object) -> Rate:
    """Read ``"150/s"`` or ``"30/min"`` as events per second.

    Raises
    ------
    ValueError
        If the unit is missing or unknown, or the rate is not positive or above 10^9 a second.
    """
    units = ", ".join(f"/{unit}" for unit in _RATE_UNITS)
    match = _RATE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f'expected a rate like "150/s", found {describe(text)} (units: {units})')
    number, unit = match.groups()
    if unit not in _RATE_UNITS:
        problem = f'unknown unit "/{unit}" in' if unit else "no unit in"
        raise ValueError(f'{problem} rate "{text}" (units: {units})')
    rate = Rate(Fraction(number) / _RATE_UNITS[unit])
    if not 0 < rate <= NS_PER_S:
        raise ValueError(f'a rate is above 0/s and at most 1000000000/s, found "{text}"')
    return rate


def parse_exact(number: object) -> Fraction:
    """Read an integer, a TOML decimal or the text of one, as an exact fraction.

    Raises
    ------
    ValueError
        If it is no finite number, or its magnitude is outside 10^-30 to 10^18.
    """
    if isinstance(number, bool) or not isinstance(number, int | float | Decimal | str):
        raise ValueError(f"expected a number, found {describe(number)}")
    try:
        # A float stands for the decimal that Python prints for it: 0.1 means one tenth.
        decimal = Decimal(str(number))
    except InvalidOperation:
        decimal = Decimal("nan")
    if not decimal.is_finite():
        raise ValueError(f"expected a number, found {describe(number)}")
    # Note: the exponent is looked at first, since Fraction("1e999999999") would never return.
    if decimal.adjusted() > 18 or (decimal.adjusted() < -30 and decimal):
        raise ValueError(f"{number} is out of range (at most 10^18, at least 10^-30)")
    return Fraction(decimal)


def format_ns(duration_ns: int | float | None) -> str:
    """Render nanoseconds with three significant digits and the unit that fits, e.g. ``57.1 ms``."""
    if duration_ns is None:
        return "-"
    sign, magnitude = ("-" if duration_ns < 0 else ""), abs(duration_ns)
    for unit in ("s", "ms", "us"):
        scale = DURATION_UNITS[unit]
        # 999.5 us reads better as 1.00 ms than as 1000 us.
        if magnitude >= scale * 0.9995:
            return f"{sign}{_three_digits(magnitude / scale)} {unit}"
    return f"{sign}{magnitude:.0f} ns"


def format_count(count: int | None) -> str:
    """Render a count with thousands separators."""
    return "-" if count is None else f"{count:,}"


def format_duration(duration_ns: int) -> str:
    """Render nanoseconds exactly, in the largest unit that divides them, as a scenario would say it."""
    for unit in ("s", "ms", "us"):
        if duration_ns and duration_ns % DURATION_UNITS[unit] == 0:
            return f"{duration_ns // DURATION_UNITS[unit]} {unit}"
    return f"{duration_ns} ns"


def describe(value: object) -> str:
    """Say what a user wrote, with its type's TOML name when the text alone would mislead."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return "an array"
    if isinstance(value, dict):
        return "a table"
    return str(value)


def _three_digits(value: float) -> str:
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{decimals}f}"
