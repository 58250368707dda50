"""The forms in which values leave the API, made from the dataclasses of the services.

The rule: a field is written down once, in the dataclass. What is nobody's business outside (sockets, definitions) is
left out by name, and a name that the dataclass has not is our own mistake. Fields are added, never taken away or
changed in meaning, within v1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, get_type_hints

from flask import Response
from pydantic import BaseModel, ConfigDict, Field, create_model


class Out(BaseModel):
    """What all of them are: read from the attributes of a value."""

    model_config = ConfigDict(from_attributes=True, extra="ignore")


class In(BaseModel):
    """What all bodies are: nothing is guessed, and a field that is not known is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)


def schema_of(
    kind: type[Any],
    name: str,
    *,
    leave_out: frozenset[str] = frozenset(),
    change: Mapping[str, Any] | None = None,
    add: Mapping[str, Any] | None = None,
    names: Mapping[str, Any] | None = None,
) -> type[Out]:
    """`change`: other types for some fields (such as a list of another schema); `add`: properties of the dataclass, or
    what is given beside it, with their types; `names`: types that its module imports for type checkers alone."""
    hints = get_type_hints(kind, localns=dict(names or {}), include_extras=True)
    own = [item.name for item in dataclasses.fields(kind)]
    changed = dict(change or {})
    unknown = (leave_out | changed.keys()) - set(own)
    assert not unknown, f"{kind.__name__} has no {sorted(unknown)}"
    fields: dict[str, Any] = {
        item: (changed.get(item, hints[item]), ...) for item in own if item not in leave_out
    } | {item: (hint, ...) for item, hint in (add or {}).items()}  # fmt: skip
    return create_model(name, __base__=Out, __doc__=None, **fields)


def page_of(item: type[Out]) -> type[Out]:
    return create_model(
        f"{item.__name__}Page",
        __base__=Out,
        items=(list[item], ...),  # type: ignore[valid-type]
        next=(str | None, Field(description="What to give as `after` for the next page; null: this is the last.")),
        total=(int | None, Field(description="Of all pages, where that is worth counting.")),
    )


def list_of(item: type[Out]) -> type[Out]:
    """Of what is never many."""
    return create_model(f"{item.__name__}List", __base__=Out, items=(list[item], ...))  # type: ignore[valid-type]


def values_of(schema: type[Out], value: object) -> dict[str, Any]:
    """The schema's fields of a value, for an answer that has others beside them."""
    return {name: getattr(value, name) for name in schema.model_fields}


def send(schema: type[Out], value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`value`: whatever has the schema's fields, as attributes or as a mapping."""
    body = schema.model_validate(value).model_dump_json()
    return Response(body, status, mimetype="application/json", headers=dict(headers or {}))
