"""Event lists as perf's ``-e`` takes them: names, commas, groups, modifiers; and what they demand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache

import numpy as np

from vpmu.errors import UserError
from vpmu.kernels.events import EVENTS, EventSpec, constraint_mask, parse_event

NR_FIXED_COUNTERS = 3


@cache
def event_groups(events: tuple[str, ...]) -> tuple[tuple[EventSpec, ...], ...]:
    """Parse the `events` of a session or a tool into groups; an event outside braces is a group of its own.

    A modifier after a group's brace goes to each member that has none.

    Raises
    ------
    UserError
        For an event that does not exist or has no rate in the model; the caller knows the key.
    """
    return tuple(group for text in events for group in _parse_entry(text))


def check_groups(events: tuple[str, ...], gp_counters: int) -> None:
    """Refuse what no counter assignment could ever count, whoever else is measuring.

    Events that do not fit side by side multiplex, which is no mistake; a group that does not fit never
    counts.

    Raises
    ------
    UserError
        Naming the event or the group, without a key.
    """
    for group in event_groups(events):
        masks = [_counters(event, gp_counters) for event in group]
        for event, mask in zip(group, masks, strict=True):
            if mask == 0:
                raise UserError(f'no counter can count event "{event.name}"')
        if not fits(masks):
            names = ",".join(event.name for event in group)
            have = f"{gp_counters} general-purpose and {NR_FIXED_COUNTERS} fixed"
            raise UserError(f'group "{{{names}}}" never fits on the counters ({have})')


def fits(masks: list[int]) -> bool:
    """Whether events with these constraint masks can all count at once.

    Broadwell's masks without a fixed counter are nested, so taking the narrowest first, and a fixed counter
    before a general-purpose one, finds a place whenever there is one (the greedy pass of
    ``perf_assign_events``).
    """
    free = ~0
    for mask in sorted(masks, key=int.bit_count):
        open_to = mask & free
        if not open_to:
            return False
        choice = (open_to >> 32) << 32 or open_to
        free &= ~(choice & -choice)
    return True


def _parse_entry(text: str) -> Iterator[tuple[EventSpec, ...]]:
    for part in _split(text):
        if part.startswith("{"):
            inner, brace, modifiers = part[1:].partition("}")
            if not brace or (modifiers and not modifiers.startswith(":")):
                raise UserError("not a group of events", found=part)
            yield tuple(_parse(_with_modifiers(name, modifiers)) for name in _split(inner))
        else:
            yield (_parse(part),)


def _with_modifiers(name: str, modifiers: str) -> str:
    has_own = ":" in name or ("/" in name and not name.endswith("/"))
    return name if has_own else name + modifiers


def _split(text: str) -> Iterable[str]:
    """Split at the commas that are neither inside braces nor between the slashes of ``cpu/.../``."""
    parts, braces, slashed = [""], 0, False
    for char in text:
        if char == "," and not braces and not slashed:
            parts.append("")
            continue
        braces += (char == "{") - (char == "}")
        slashed ^= char == "/"
        parts[-1] += char
    return [part.strip() for part in parts]


def _parse(text: str) -> EventSpec:
    try:
        return parse_event(text)
    except ValueError as error:
        if str(error).startswith("unknown event"):
            raise UserError("unknown event", found=text.partition(":")[0], allowed=EVENTS) from None
        raise UserError(str(error).replace("'", '"')) from None


def _counters(event: EventSpec, gp_counters: int) -> int:
    config, gp, fixed = (np.uint64(word) for word in (event.config, gp_counters, NR_FIXED_COUNTERS))
    return int(constraint_mask(config, gp, fixed))
