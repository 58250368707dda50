"""A stretch of a machine's restore points, as a page shows them: so many, from one that is named in the address.

The rule: every point is reached by going on; the one that a calendar's day leads to is the first of its stretch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from flask import request

from appliance.services.browsing import TimePoint

SHOWN: Final = 60


@dataclass(frozen=True, slots=True)
class Stretch:
    """Newest first. `older`: the id that the next one begins with; None: there is no other. `newest`: it begins with
    the newest point that there is."""

    points: Sequence[TimePoint]
    older: str | None
    newest: bool


def stretch_of(points: Sequence[TimePoint]) -> Stretch:
    """Of all, newest first, what this request asks for by `from`. One that is gone meanwhile: from the newest on."""
    wanted = request.args.get("from", "")
    begin = next((number for number, each in enumerate(points) if each.point.id == wanted), 0)
    end = begin + SHOWN
    return Stretch(points[begin:end], points[end].point.id if end < len(points) else None, begin == 0)
