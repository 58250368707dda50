"""A stretch of a machine's restore points, as a page shows them: so many, from one that is named in the address.

The rule: every point is reached by going on; the one that a calendar's day leads to is the first of its stretch. Only
the points of the stretch are read, however many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from flask import request

from appliance.models import PointRecord
from appliance.services.browsing import MachineRow, PointFilter, TimePoint
from web.current import browsing

SHOWN: Final = 60
_MOMENT: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Newest first. `older`: the id that the next one begins with; None: there is no other. `newest`: it begins with
    the newest point that there is."""

    points: Sequence[TimePoint]
    older: str | None
    newest: bool


def stretch_of(row: MachineRow, fits: Callable[[PointRecord], bool] = lambda _: True) -> Stretch:
    """Of those that fit, what this request asks for by `from`. One that is gone meanwhile: from the newest on."""
    if row.series is None:
        return Stretch((), None, newest=True)
    begin = browsing().point(row, request.args.get("from", ""))
    wanted, after = PointFilter(row.series), None
    if begin is not None:
        wanted = PointFilter(row.series, until_utc=begin.created_utc + _MOMENT)
    found: list[TimePoint] = []
    while len(found) <= SHOWN:
        page = browsing().points(wanted, after=after, limit=SHOWN + 1)
        found += [each for each in page.items if (begin is None or _at(each.point) <= _at(begin)) and fits(each.point)]
        after = page.next
        if after is None:
            break
    older = found[SHOWN].point.id if len(found) > SHOWN else None
    return Stretch(found[:SHOWN], older, begin is None or begin.id == row.last_point)


def _at(point: PointRecord) -> tuple[object, ...]:
    return point.created_utc, point.id
