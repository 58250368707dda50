"""What every route says of itself: which act it is, or that everybody may use it.

The rule: a route that says nothing does not exist: the application refuses to start with one.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, TypeVar

from flask import Flask

View = TypeVar("View", bound=Callable[..., Any])
_STATED = "strongroom_stated"
PUBLIC = "public"


class UnstatedRoutes(Exception):
    """Our own mistake: routes without `@act` or `@public`."""

    def __init__(self, endpoints: list[str]) -> None:
        super().__init__(f"these routes state no act: {', '.join(endpoints)}")


def act(which: StrEnum) -> Callable[[View], View]:
    """The view is this act. Goes below the route: `@blueprint.get(...)`, then `@act(...)`."""

    def stating(view: View) -> View:
        setattr(view, _STATED, which)
        return view

    return stating


def public(view: View) -> View:
    """The view is for everybody who reaches the console, without a session."""
    setattr(view, _STATED, PUBLIC)
    return view


def stated(view: Callable[..., Any]) -> str | None:
    """The act of a view, PUBLIC, or None if it states neither."""
    found = getattr(view, _STATED, None)
    assert found is None or isinstance(found, str)
    return found


def refuse_unstated(app: Flask) -> None:
    """UnstatedRoutes, if there is one."""
    missing = sorted(
        {rule.endpoint for rule in app.url_map.iter_rules() if stated(app.view_functions[rule.endpoint]) is None}
    )
    if missing:
        raise UnstatedRoutes(missing)
