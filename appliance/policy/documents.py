"""Reading the JSON form of a policy, which somebody may have written by hand.

The rule: every field is read by stating its type and bounds, a key that nobody reads is an error that names the one
that was probably meant, and every error says where in the document it is.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Final

from appliance.policy.errors import PolicyInvalid

TEXT_CHARACTERS_MAX: Final = 200
LIST_ITEMS_MAX: Final = 1000


class Document:
    """A JSON object. Ask for all of its fields, then `finish`."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise PolicyInvalid(where, f"it must be an object with named fields, not {shown(value)}")
        self._value: Mapping[str, Any] = value
        self._where = where
        self._asked: list[str] = []

    def at(self, key: str) -> str:
        return f"{self._where}.{key}"

    def get(self, key: str) -> object:
        """None: it is not there, or null."""
        self._asked.append(key)
        return self._value.get(key)

    def text(self, key: str) -> str | None:
        value = self.get(key)
        return None if value is None else check_text(value, self.at(key))

    def integer(self, key: str, least: int, most: int) -> int | None:
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise PolicyInvalid(self.at(key), f"it must be a whole number from {least} to {most}, not {shown(value)}")
        return value

    def switch(self, key: str) -> bool | None:
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise PolicyInvalid(self.at(key), f"it must be true or false, not {shown(value)}")
        return value

    def items(self, key: str) -> tuple[tuple[str, object], ...]:
        """The items of a list, each with where it is; none if it is not there."""
        value = self.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or len(value) > LIST_ITEMS_MAX:
            raise PolicyInvalid(
                self.at(key), f"it must be a list of at most {LIST_ITEMS_MAX} items, not {shown(value)}"
            )
        return tuple((f"{self.at(key)}[{number}]", item) for number, item in enumerate(value))

    def finish(self) -> None:
        """PolicyInvalid for a field that nobody asked for."""
        for key in self._value:
            if key not in self._asked:
                raise PolicyInvalid(
                    self._where, f"there is no field {shown(key)} here", hint=suggestion(key, self._asked)
                )


def check_text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > TEXT_CHARACTERS_MAX or not value.isprintable():
        raise PolicyInvalid(
            where, f"it must be text of 1 to {TEXT_CHARACTERS_MAX} printable characters, not {shown(value)}"
        )
    return value


def suggestion(given: str, known: Iterable[str]) -> str:
    """A hint with the known word that was probably meant, or with all of them if they are few."""
    words = {word.casefold(): word for word in known}
    near = difflib.get_close_matches(given[:TEXT_CHARACTERS_MAX].casefold(), words, n=1)
    if near:
        return f"Did you mean {words[near[0]]}?"
    return f"It is one of {', '.join(words.values())}." if 0 < len(words) <= 20 else ""


def shown(value: object) -> str:
    """A value of a document in an error: never longer than a line."""
    if isinstance(value, str):
        return repr(value[:60])
    if isinstance(value, bool | int | float | None):
        return str(value)[:60] if not isinstance(value, int) or abs(value) < 10**18 else "a number that large"
    return "a list" if isinstance(value, list) else "an object"
