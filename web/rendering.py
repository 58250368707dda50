"""How values are written on pages: sizes, times, spans. Pure, but for the clock that spans are told by.

The rule: a moment is a `time` element with the moment itself in it, so that the page's script can show it in the
reader's zone; without the script it is UTC and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from flask import Flask
from jinja2 import TemplateRuntimeError, Undefined, UndefinedError
from jinja2.utils import missing
from markupsafe import Markup

from appliance.clock import Clock, format_utc
from appliance.models import RecoveryState, RunState
from appliance.services.browsing import Standing

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_SPANS: Final = ((86_400 * 365, "year"), (86_400 * 60, "month"), (86_400, "day"), (3600, "hour"), (60, "minute"))
_MONTH: Final = 86_400 * 30

RUN_BADGES: Final = {
    RunState.QUEUED: "", RunState.RUNNING: "busy", RunState.SUCCEEDED: "good", RunState.PARTIAL: "warn",
    RunState.FAILED: "bad", RunState.INTERRUPTED: "bad", RunState.CANCELLED: "",
}  # fmt: skip
RECOVERY_BADGES: Final = {
    RecoveryState.SERVING: "busy", RecoveryState.RUNNING: "good", RecoveryState.MIGRATING: "busy",
    RecoveryState.MIGRATED: "good", RecoveryState.DISCARDING: "busy", RecoveryState.DISCARDED: "",
    RecoveryState.FAILED: "bad",
}  # fmt: skip
STANDING_BADGES: Final = {
    Standing.PROTECTED: "good", Standing.WAITING: "busy", Standing.UNPROTECTED: "bad", Standing.GONE: "warn",
    Standing.RECOVERED: "busy",
}  # fmt: skip


class NotGiven(Undefined):
    """A name that a page was not given is nothing there. A field that is not of what it was given is a mistake of ours:
    taken for nothing, it would have the page say something else than what is."""

    def __init__(
        self, hint: str | None = None, obj: Any = missing, name: str | None = None,
        exc: type[TemplateRuntimeError] = UndefinedError,
    ) -> None:  # fmt: skip
        super().__init__(hint, obj, name, exc)
        if obj is not missing and not isinstance(obj, Mapping):
            raise exc(f"{type(obj).__name__} has no {name!r}")


def set_up(app: Flask, clock: Clock) -> None:
    app.jinja_env.filters.update(
        size=size, sentence=sentence, moment=moment, day=day, span=span, short=short,
        ago=lambda value: ago(value, clock.now_utc()),
        count=count, rate=lambda value: f"{size(value)}/s", from_now=lambda value: from_now(value, clock.now_utc()),
    )  # fmt: skip
    app.jinja_env.globals.update(
        run_badge=RUN_BADGES.get, recovery_badge=RECOVERY_BADGES.get, standing_badge=STANDING_BADGES.get
    )


def size(value: int | float | None) -> str:
    """In powers of 1000, as disks are sold, with three digits: "1.23 GB"."""
    if value is None:
        return "–"
    amount, unit = float(abs(value)), 0
    while amount >= 999.5 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1000, unit + 1
    digits = 0 if unit == 0 or amount >= 99.95 else 1 if amount >= 9.995 else 2
    return f"{'−' if value < 0 else ''}{amount:.{digits}f} {_UNITS[unit]}"


def count(value: int) -> str:
    return f"{value:,}".replace(",", " ")  # a narrow space that does not break


def sentence(text: str) -> str:
    """With a capital letter and a full stop, if it has no end yet; all else stays as it is."""
    return f"{text[:1].upper()}{text[1:]}{'' if text[-1] in '.!?' else '.'}" if text else ""


def short(id: str) -> str:
    """What is shown of an id: enough to ask by."""
    return id[:12]


def moment(value: datetime | None) -> str | Markup:
    if value is None:
        return "–"
    return _time(value, value.astimezone(UTC).strftime("%d %b %Y, %H:%M UTC").lstrip("0"), "moment")


def day(value: date | None) -> str:
    return "–" if value is None else value.strftime("%d %b %Y").lstrip("0")


def ago(value: datetime | None, now: datetime) -> str | Markup:
    """ "3 hours ago", with the moment to look at."""
    if value is None:
        return "never"
    return _time(value, _far(now - value, "{} ago", "just now"), "ago")


def from_now(value: datetime | None, now: datetime) -> str | Markup:
    if value is None:
        return "–"
    return _time(value, _far(value - now, "in {}", "now"), "ago")


def span(value: timedelta | float | None) -> str:
    """How long something took: "4.2 s", "3 min 20 s", "2 h 05 min"."""
    if value is None:
        return "–"
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min"


def _far(distance: timedelta, form: str, near: str) -> str:
    seconds = distance.total_seconds()
    for length, name in _SPANS:
        if seconds >= length:
            number = int(seconds // (_MONTH if name == "month" else length))
            return form.format(f"{number} {name}{'s' if number != 1 else ''}")
    return near


def _time(value: datetime, text: str, kind: str) -> Markup:
    exact = value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return Markup('<time datetime="{}" title="{}" data-shown="{}">{}</time>').format(
        format_utc(value), exact, kind, text
    )
