"""Reading what forms and addresses say. Whatever is there that nobody expects counts as not being there."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import TypeVar

from werkzeug.datastructures import MultiDict

from appliance.errors import StrongroomError

Choice = TypeVar("Choice", bound=StrEnum)
TEXT_CHARACTERS_MAX = 2000


class FormWrong(StrongroomError):
    """What was typed cannot be used. `field`: the name of the input; the form is shown again with this beside it."""

    exit_code = 2

    def __init__(self, field: str, what: str) -> None:
        super().__init__(what, hint="Correct it, then send the form again.", field=field)
        self.field = field


def choice(given: MultiDict[str, str], name: str, kind: type[Choice]) -> Choice | None:
    try:
        return kind(given.get(name, ""))
    except ValueError:
        return None


def flag(given: MultiDict[str, str], name: str) -> bool:
    return given.get(name, "") in ("on", "1", "yes", "true")


def text(given: MultiDict[str, str], name: str, *, most: int = TEXT_CHARACTERS_MAX) -> str:
    """Without what cannot be typed. FormWrong, if it is too long."""
    value = given.get(name, "").strip()
    if len(value) > most:
        raise FormWrong(name, f"it has {len(value)} characters, and {most} are the most")
    if "\x00" in value:
        raise FormWrong(name, "it has a character that no text has")
    return value


def required(given: MultiDict[str, str], name: str, *, most: int = TEXT_CHARACTERS_MAX) -> str:
    """FormWrong, if it is empty."""
    value = text(given, name, most=most)
    if not value:
        raise FormWrong(name, "it must not be empty")
    return value


def whole(given: MultiDict[str, str], name: str, least: int, most: int) -> int | None:
    """None: it was left empty. FormWrong."""
    value = text(given, name, most=20)
    if not value:
        return None
    if not value.isascii() or not value.isdecimal() or not least <= int(value) <= most:
        raise FormWrong(name, f"it must be a whole number from {least} to {most}")
    return int(value)


def real(given: MultiDict[str, str], name: str, least: float, most: float) -> float | None:
    """None: it was left empty. FormWrong."""
    value = text(given, name, most=20)
    if not value:
        return None
    try:
        found = float(value) if value.isascii() else math.nan
    except ValueError:
        found = math.nan
    if not least <= found <= most:  # nor is anything that is no number
        raise FormWrong(name, f"it must be a number from {least:g} to {most:g}")
    return found


def local(address: str) -> str:
    """A path of this console, or nothing: never another site."""
    if not address.startswith("/") or address.startswith(("//", "/\\")) or not address.isprintable():
        return ""
    return address if "\\" not in address and len(address) <= TEXT_CHARACTERS_MAX else ""
