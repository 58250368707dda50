"""Canonical JSON, and reading it as hostile input.

Rule: one value has one encoding (keys sorted, no white space, no floats, UTF-8 unescaped); decoding refuses what no
writer of ours makes (floats, repeated keys, broken UTF-8, deep nesting), and a field is read by stating its type and
its bounds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

from imaging.errors import Damaged

INTEGER_MAX: Final = (1 << 63) - 1
TEXT_CHARACTERS_MAX: Final = 4096
LIST_ITEMS_MAX: Final = 65_536
_DEPTH_MAX: Final = 32
_HEX: Final = re.compile(r"(?:[0-9a-f]{2})+")
_UTC: Final = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(?:\.\d{1,6})?Z")


def encode(value: object) -> bytes:
    """The canonical bytes. Raises TypeError for floats and the like, ValueError for text that UTF-8 cannot state: our
    own mistakes."""
    _refuse_what_has_no_canonical_form(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def _refuse_what_has_no_canonical_form(value: object) -> None:
    if value is None or isinstance(value, str | bool | int):
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"canonical JSON has no key of type {type(key).__name__}")
            _refuse_what_has_no_canonical_form(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_what_has_no_canonical_form(item)
    else:
        raise TypeError(f"canonical JSON has no {type(value).__name__}")


def decode(data: bytes, name: str) -> object:
    """The value of canonical JSON found in object `name`. Raises Damaged(name)."""

    def no_float(text: str) -> NoReturn:
        raise ValueError(f"it holds the number {text[:20]}, which is no integer")

    def integer(text: str) -> int:
        if len(text) > 20:
            raise ValueError("it holds a number of more than 20 characters")
        return int(text)

    def object_of(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("it repeats a key")
        return found

    try:
        text = data.decode("utf-8")
        _check_depth(text)
        return json.loads(
            text, parse_float=no_float, parse_constant=no_float, parse_int=integer, object_pairs_hook=object_of
        )
    except ValueError as error:
        raise Damaged(name, f"its JSON cannot be read: {error}") from error


def _check_depth(text: str) -> None:
    """Bounds nesting before the parser recurses. Brackets inside texts count too, so only a suspect text is measured
    exactly."""
    if text.count("[") + text.count("{") <= _DEPTH_MAX:
        return
    depth = 0
    in_text = escaped = False
    for character in text:
        if in_text:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                in_text = False
        elif character == '"':
            in_text = True
        elif character in "[{":
            depth += 1
            if depth > _DEPTH_MAX:
                raise ValueError(f"it is nested deeper than {_DEPTH_MAX}")
        elif character in "]}":
            depth -= 1


def utc_text(moment: datetime) -> str:
    """ISO 8601 with a Z, to the second. Raises ValueError for a time without a zone."""
    if moment.tzinfo is None:
        raise ValueError("a time without a zone says nothing")
    return moment.astimezone(UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z"


@dataclass(frozen=True, slots=True)
class Fields:
    """A JSON object of the store, read field by field; every reader raises Damaged(name) when the field is not as
    stated.

    Fields that nobody asks for are ignored: a later minor version may have added them.
    """

    name: str
    values: Mapping[str, Any]

    @classmethod
    def parse(cls, data: bytes, name: str) -> Fields:
        return cls.of(decode(data, name), name)

    @classmethod
    def of(cls, value: object, name: str) -> Fields:
        if not isinstance(value, dict):
            raise Damaged(name, f"it holds {_kind(value)} where an object belongs")
        return cls(name, value)

    def damaged(self, field: str, detail: str) -> Damaged:
        return Damaged(self.name, f"its field {field!r} {detail}")

    def _get(self, field: str) -> Any:
        if field not in self.values:
            raise self.damaged(field, "is missing")
        return self.values[field]

    def text(self, field: str, max_characters: int = TEXT_CHARACTERS_MAX) -> str:
        value = self._get(field)
        if not isinstance(value, str) or len(value) > max_characters:
            raise self.damaged(field, f"is no text of at most {max_characters} characters")
        return value

    def optional_text(self, field: str, max_characters: int = TEXT_CHARACTERS_MAX) -> str | None:
        return None if self.values.get(field) is None else self.text(field, max_characters)

    def one_of(self, field: str, allowed: tuple[str, ...]) -> str:
        value = self._get(field)
        if value not in allowed:
            raise self.damaged(field, f"is none of {', '.join(allowed)}")
        return str(value)

    def integer(self, field: str, minimum: int = 0, maximum: int = INTEGER_MAX) -> int:
        value = self._get(field)
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
            raise self.damaged(field, f"is no integer between {minimum} and {maximum}")
        return value

    def boolean(self, field: str) -> bool:
        value = self._get(field)
        if not isinstance(value, bool):
            raise self.damaged(field, "is neither true nor false")
        return value

    def hex(self, field: str, size_bytes: int) -> bytes:
        value = self._get(field)
        if not isinstance(value, str) or len(value) != 2 * size_bytes or not _HEX.fullmatch(value):
            raise self.damaged(field, f"is not {2 * size_bytes} hex digits")
        return bytes.fromhex(value)

    def optional_hex(self, field: str, size_bytes: int) -> bytes | None:
        return None if self.values.get(field) is None else self.hex(field, size_bytes)

    def utc(self, field: str) -> datetime:
        value = self._get(field)
        if not isinstance(value, str) or not _UTC.fullmatch(value):
            raise self.damaged(field, "is no time in UTC")
        try:
            return datetime.fromisoformat(value)
        except ValueError as error:
            raise self.damaged(field, "is no time in UTC") from error

    def record(self, field: str) -> Fields:
        return Fields.of(self._get(field), self.name)

    def items(self, field: str, max_items: int = LIST_ITEMS_MAX) -> list[Any]:
        value = self._get(field)
        if not isinstance(value, list) or len(value) > max_items:
            raise self.damaged(field, f"is no list of at most {max_items} items")
        return value

    def records(self, field: str, max_items: int = LIST_ITEMS_MAX) -> Iterator[Fields]:
        for item in self.items(field, max_items):
            yield Fields.of(item, self.name)

    def texts(self, field: str, max_items: int = LIST_ITEMS_MAX) -> tuple[str, ...]:
        found = self.items(field, max_items)
        if not all(isinstance(item, str) and len(item) <= TEXT_CHARACTERS_MAX for item in found):
            raise self.damaged(field, "is no list of texts")
        return tuple(found)


def _kind(value: object) -> str:
    return {list: "a list", str: "a text", int: "a number", bool: "a truth value", type(None): "null"}.get(
        type(value), "something else"
    )
