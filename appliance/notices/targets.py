"""Where notices go, and what an admin may write for it.

The rule: the URL of a target holds its password or token, so it is a secret as a whole: nothing here shows one, neither
in an error nor as text of the value. A target is known by its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", re.ASCII)
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9]{1,30}://\S{1,2000}", re.ASCII)
_CLOCK_TIME: Final = re.compile(r"|([01]\d|2[0-3]):[0-5]\d", re.ASCII)
_TARGETS_MAX: Final = 20


@dataclass(frozen=True, slots=True)
class NoticeTarget:
    name: str
    url: str = field(repr=False)

    @property
    def kind(self) -> str:
        """What sort of place it is: "mailtos", "slack"."""
        return self.url.partition("://")[0].lower()


def read_targets(value: object) -> tuple[NoticeTarget, ...]:
    """From a table, name = URL, or from text, as in the environment: NAME=URL, one after the other. ValueError."""
    pairs: list[tuple[str, object]]
    if isinstance(value, str):
        words = [word.partition("=") for word in value.split()]
        pairs = [(name, url) for name, _, url in words]
    elif isinstance(value, Mapping):
        pairs = [(str(name), url) for name, url in value.items()]
    else:
        raise ValueError("it must be a table with a URL for each name")
    found = []
    for number, (name, url) in enumerate(pairs, 1):
        if _NAME.fullmatch(name) is None:
            raise ValueError(f"the name of target {number} must be 1 to 32 letters, digits, '_' and '-'")
        if not isinstance(url, str) or not url.isascii() or not url.isprintable() or _URL.fullmatch(url) is None:
            raise ValueError(f"the URL of {name} must be KIND://... without spaces, as apprise reads it")
        found.append(NoticeTarget(name, url))
    if len(found) > _TARGETS_MAX or len({each.name for each in found}) != len(found):
        raise ValueError(f"it must have at most {_TARGETS_MAX} targets, each name once")
    return tuple(found)


def read_names(value: object) -> tuple[str, ...]:
    """A list of names of targets, or text with commas. ValueError."""
    words = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) and _NAME.fullmatch(word) for word in words):
        raise ValueError("it must be a list of names of targets")
    return tuple(dict.fromkeys(words))


def read_clock_time(value: object) -> str:
    """As "HH:MM"; none is "". ValueError."""
    if not isinstance(value, str) or _CLOCK_TIME.fullmatch(value) is None:
        raise ValueError("it must be a time of the day such as 07:00, or nothing")
    return value


def read_zone(value: object) -> str:
    """The name of a time zone. ValueError."""
    from zoneinfo import ZoneInfo

    # "localtime" is another zone on another machine.
    if not isinstance(value, str) or value == "localtime":
        raise ValueError("it must be the name of a time zone, such as UTC or Europe/Berlin")
    try:
        ZoneInfo(value)
    except (LookupError, ValueError, OSError):
        raise ValueError("it must be the name of a time zone, such as UTC or Europe/Berlin") from None
    return value
