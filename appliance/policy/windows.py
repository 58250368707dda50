"""When runs of a policy may begin: spans of the week, in the time zone of its schedule. Pure.

Rules: a span begins on each of its days; where its end is not after its beginning, it ends on the next day. A span
begins at its time and ends before it. Where the clock leaves a time out, that time is the end of the gap; of a time
that comes twice, a span begins at the first and ends at the second: the longer reading. Spans that touch are one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from typing import Final

from appliance.policy.documents import Document, shown, suggestion
from appliance.policy.errors import PolicyInvalid

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
SPANS_MAX: Final = 50
_TIME: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])", re.ASCII)
_DAY: Final = timedelta(days=1)
_AHEAD: Final = 9  # days: a week and what a change of the clock or a span over midnight may add


@dataclass(frozen=True, slots=True)
class Span:
    """`days`: 0 is Monday; those on which it begins. `begins` = `ends`: for 24 hours."""

    days: frozenset[int]
    begins: time
    ends: time

    def to_json(self) -> dict[str, object]:
        return {
            "days": [DAYS[day] for day in sorted(self.days)],
            "from": f"{self.begins:%H:%M}",
            "to": f"{self.ends:%H:%M}",
        }


@dataclass(frozen=True, slots=True)
class Opening:
    """A window at a moment. Open: `opened_utc` says since when, `closes_utc` until when (None: not within a week).
    Closed: `opens_utc` says when it opens next."""

    opened_utc: datetime | None = None
    closes_utc: datetime | None = None
    opens_utc: datetime | None = None

    @property
    def open(self) -> bool:
        return self.opened_utc is not None


@dataclass(frozen=True, slots=True)
class Window:
    spans: tuple[Span, ...]

    def at(self, moment: datetime, zone: tzinfo) -> Opening:
        moment = moment.astimezone(UTC)
        for begin, end in _open_around(self, moment.astimezone(zone).date(), zone):
            if begin <= moment < end:
                endless = end >= moment + timedelta(days=7)
                return Opening(opened_utc=begin, closes_utc=None if endless else end)
            if begin > moment:
                return Opening(opens_utc=begin)
        raise AssertionError("a window opens every week")

    def to_json(self) -> list[object]:
        return [span.to_json() for span in self.spans]


# Of a day, as every look at every policy asks for this.
@lru_cache(maxsize=1024)
def _open_around(window: Window, today: date, zone: tzinfo) -> tuple[tuple[datetime, datetime], ...]:
    """When it is open from the day before on (from earlier, if it has been open since), in order."""
    first = today - _DAY
    while first > today - 8 * _DAY and _reaches_back(window, first, zone):
        first -= _DAY
    merged: list[tuple[datetime, datetime]] = []
    for number in range((today - first).days + _AHEAD):
        for begin, end in _of_day(window, first + number * _DAY, zone):
            if merged and begin <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], end))
            else:
                merged.append((begin, end))
    return tuple(merged)


def _reaches_back(window: Window, day: date, zone: tzinfo) -> bool:
    """Whether what is open on a day may have opened on the one before."""
    begins = [begin for begin, _ in _of_day(window, day, zone)]
    ends = [end for _, end in _of_day(window, day - _DAY, zone)]
    return bool(begins and ends) and max(ends) >= min(begins)


def _of_day(window: Window, day: date, zone: tzinfo) -> list[tuple[datetime, datetime]]:
    found = []
    for span in window.spans:
        if day.weekday() in span.days:
            last = day if span.ends > span.begins else day + _DAY
            begin, end = _moment(day, span.begins, zone, fold=0), _moment(last, span.ends, zone, fold=1)
            if end > begin:  # not if all of it is left out
                found.append((begin, end))
    return sorted(found)


def read_window(document: Document, key: str) -> Window | None:
    """From its JSON form, a list of spans; None: it is not there, and so always open. PolicyInvalid."""
    if document.get(key) is None:
        return None
    items = document.items(key)
    if not 0 < len(items) <= SPANS_MAX:
        raise PolicyInvalid(
            document.at(key), f"it must have 1 to {SPANS_MAX} spans", hint="Leave it out, and runs may always begin."
        )
    return Window(tuple(_read_span(item, at) for at, item in items))


def _read_span(value: object, where: str) -> Span:
    document = Document(value, where)
    days = {_read_day(item, at) for at, item in document.items("days")}
    begins, ends = _read_time(document, "from"), _read_time(document, "to")
    document.finish()
    return Span(frozenset(days or range(7)), begins, ends)


def _read_day(value: object, where: str) -> int:
    if not isinstance(value, str) or value.lower() not in DAYS:
        hint = suggestion(value, DAYS) if isinstance(value, str) else ""
        raise PolicyInvalid(where, f"{shown(value)} is no day of the week", hint=hint or f"One of {', '.join(DAYS)}.")
    return DAYS.index(value.lower())


def _read_time(document: Document, key: str) -> time:
    text = document.text(key) or ""
    match = _TIME.fullmatch(text)
    if match is None:
        raise PolicyInvalid(
            document.at(key), f"{text!r} is no time of the day", hint="Write for example 22:00 or 06:30."
        )
    return time(int(match[1]), int(match[2]))


def _moment(day: date, clock: time, zone: tzinfo, *, fold: int) -> datetime:
    local = datetime.combine(day, clock, tzinfo=zone)
    first = local.astimezone(UTC)
    while first.astimezone(zone).replace(tzinfo=None) != local.replace(tzinfo=None):  # left out
        local += timedelta(minutes=1)
        first = local.astimezone(UTC)
    return local.replace(fold=fold).astimezone(UTC)
