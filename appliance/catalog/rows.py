"""Between frozen dataclasses and rows: one place that knows both.

The rule: a dataclass's fields have the names of the table's columns. Enumerations become their values, tuples become
JSON lists, dataclasses within tuples become JSON objects with moments as text; what a row has beyond the dataclass is
ignored, what it lacks takes the default.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Hashable
from dataclasses import MISSING, fields, is_dataclass, replace
from datetime import datetime
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from sqlalchemy import ColumnElement, Connection, Row, Table, and_, false, insert, select, update

from appliance.catalog.errors import RecordMissing
from appliance.clock import format_utc, parse_utc

_HEX = frozenset("0123456789abcdef")
_AFTER_HEX = "g"

Value = TypeVar("Value")


def encode(value: Any) -> dict[str, Any]:
    """The row (or JSON object) of a dataclass."""
    return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}


def decode(kind: type[Value], row: Row[Any] | dict[str, Any]) -> Value:
    """The dataclass of a row (or JSON object); ValueError or KeyError when it does not fit."""
    mapping = row if isinstance(row, dict) else row._mapping
    values = {}
    for name, typed, required in _fields(cast(Hashable, kind)):
        if name in mapping:
            values[name] = mapping[name] if typed is None else typed(mapping[name])
        elif required:
            raise KeyError(name)
    return kind(**values)


def save(connection: Connection, table: Table, value: Any, key: ColumnElement[bool]) -> None:
    """Replace the row that `key` selects, or add it."""
    row = encode(value)
    # The row goes beside the statement: within it, each of its values would be a part of a statement made anew.
    if connection.execute(update(table).where(key), row).rowcount == 0:
        connection.execute(insert(table), row)


def find(connection: Connection, table: Table, kind: type[Value], id: str, what: str) -> Value:
    """The one whose id begins so; `what`: a word for it, and the command that lists them. RecordMissing."""
    found = connection.execute(select(table).where(begins(table.c.id, id)).limit(2)).all()
    if len(found) > 1:
        raise RecordMissing(f"single {what}", f"{id}: several begin so", hint="Give more digits of the id.")
    if not found:
        raise RecordMissing(what, id, hint=f"See 'strongroom {what} list'.")
    return decode(kind, found[0])


def begins(column: ColumnElement[str], prefix: str) -> ColumnElement[bool]:
    """Whether an id (hex digits) begins so, told by its index in every engine; what is no such beginning fits none."""
    if not prefix or not set(prefix) <= _HEX:
        return false()
    return and_(column >= prefix, column < prefix + _AFTER_HEX)


def owned(value: Value, me: str) -> Value:
    """A record that says of no appliance that it is its own is of `me`, which adds it."""
    return value if value.appliance else replace(value, appliance=me)  # type: ignore[attr-defined,type-var]


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [_within(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return _within(value)
    return value


def _within(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, datetime):
        return format_utc(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _within(getattr(value, item.name)) for item in fields(value)}
    return _plain(value)


@cache
def _fields(kind: Hashable) -> tuple[tuple[str, Callable[[Any], Any] | None, bool], ...]:
    """The name of each field, what makes its value of a column's (None: it is the same), whether it has no default."""
    hints = get_type_hints(kind)
    return tuple(
        (item.name, _typed(hints[item.name]), item.default is MISSING and item.default_factory is MISSING)
        for item in fields(kind)  # type: ignore[arg-type]
    )


def _typed(hint: Any) -> Callable[[Any], Any] | None:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        (option,) = (option for option in get_args(hint) if option is not type(None))
        there = _typed(option)
        return None if there is None else lambda value: None if value is None else there(value)
    if origin is tuple:
        item = _typed(get_args(hint)[0])
        # Nothing: written by a program that did not know the column.
        return (lambda value: tuple(value or ())) if item is None else lambda value: tuple(map(item, value or ()))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint
    if hint is datetime:
        return lambda value: parse_utc(value) if isinstance(value, str) else value
    if is_dataclass(hint) and isinstance(hint, type):
        return lambda value: decode(hint, value)
    return None
