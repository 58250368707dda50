"""One page of a list after another.

The rule: a page begins where the one before ended, by the value of what it is sorted by, and not by a number of rows:
it costs the same however far down it is, and what is added or removed meanwhile neither repeats nor skips a row. Where
the next page begins is opaque to whoever asks for it, and is checked when it comes back.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Generic, TypeVar

from appliance.clock import format_utc, parse_utc
from appliance.errors import StrongroomError

Item = TypeVar("Item")
Key = tuple[str | int | datetime, ...]

LIMIT: Final = 50
LIMIT_MAX: Final = 500
_CHARACTERS_MAX: Final = 8192
_PARTS_MAX: Final = 4
_INTEGER_MAX: Final = 1 << 63


class PageRefused(StrongroomError):
    """What was given as the next page of a list is none of this list."""

    exit_code = 2

    def __init__(self) -> None:
        super().__init__("there is no such page of this list", hint="Begin at the first page again.")


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """`next`: what to ask the next page by; None: this is the last one. `total`: of all pages; None: it was not worth
    counting."""

    items: tuple[Item, ...]
    next: str | None = None
    total: int | None = None


def checked_limit(limit: int) -> int:
    """At least 1 and at most LIMIT_MAX: no page is larger, whatever is asked for."""
    return max(1, min(limit, LIMIT_MAX))


def write_key(order: str, key: Key) -> str:
    """`order` names the list's order: a page of another one is refused."""
    parts = [{"t": format_utc(part)} if isinstance(part, datetime) else part for part in key]
    text = json.dumps([order, *parts], ensure_ascii=True, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_key(order: str, text: str, kinds: Sequence[type]) -> Key:
    """The reverse. PageRefused for anything that `write_key` did not make of this order and these kinds of values."""
    if len(text) > _CHARACTERS_MAX:
        raise PageRefused
    try:
        found = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        raise PageRefused from None
    if (
        not isinstance(found, list)
        or not found
        or found[0] != order
        or len(found) - 1 != len(kinds)
        or len(found) > _PARTS_MAX + 1
    ):
        raise PageRefused
    return tuple(_read_part(part, kind) for part, kind in zip(found[1:], kinds, strict=True))


def _read_part(part: object, kind: type) -> str | int | datetime:
    if kind is datetime and isinstance(part, dict) and isinstance(part.get("t"), str):
        try:
            return parse_utc(part["t"])
        except (ValueError, OverflowError):
            raise PageRefused from None
    if kind is str and isinstance(part, str) and "\0" not in part:
        return _plain(part)
    if kind is int and isinstance(part, int) and not isinstance(part, bool) and -_INTEGER_MAX <= part < _INTEGER_MAX:
        return part
    raise PageRefused


def _plain(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character: no database takes it
        raise PageRefused from None
    return text


def page_of(
    items: Sequence[Item],
    key: Callable[[Item], Key],
    order: str,
    kinds: Sequence[type],
    after: str | None,
    limit: int,
    *,
    falling: bool = False,
) -> Page[Item]:
    """A page of a list that is all here, in any order; it is sorted by `key`, which no two items share. PageRefused."""
    limit = checked_limit(limit)
    keyed = sorted(((key(item), item) for item in items), key=lambda each: each[0], reverse=falling)
    start = 0
    if after is not None:
        begins = read_key(order, after, kinds)
        passed = (number for number, (at, _) in enumerate(keyed) if (at < begins if falling else at > begins))
        start = next(passed, len(keyed))
    shown = keyed[start : start + limit]
    more = start + limit < len(keyed)
    return Page(tuple(item for _, item in shown), write_key(order, shown[-1][0]) if more else None, len(keyed))
