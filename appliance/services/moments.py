"""What an admin writes for a moment, as a moment. Pure.

The rule: UTC unless the text names another zone; a day without a time means its end, as "the newest point of that day"
is what is meant; anything not understood is an error that shows the forms that are.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from appliance.errors import StrongroomError

EXAMPLES = (
    "2026-11-23, '2026-11-23 14:00', 2026-11-23T14:00:00Z, '23.11.2026 14:00 Europe/Berlin' or '2026-11-23 14:00 local'"
)

_DATE = r"(?:(?P<y>\d{4})-(?P<m>\d{1,2})-(?P<d>\d{1,2})|(?P<d2>\d{1,2})\.(?P<m2>\d{1,2})\.(?P<y2>\d{4}))"
_TIME = r"(?P<H>\d{1,2}):(?P<M>\d{2})(?::(?P<S>\d{2})(?:[.,](?P<f>\d{1,9}))?)?"
_ZONE = r"(?P<zone>[Zz]|[+-]\d{2}:?\d{2}|[A-Za-z][A-Za-z0-9_+/-]{1,63})"
_MOMENT = re.compile(rf"{_DATE}(?:(?:[Tt]|\s+){_TIME})?(?:\s*{_ZONE})?", re.ASCII)


class MomentNotUnderstood(StrongroomError):
    exit_code = 2

    def __init__(self, text: str, reason: str) -> None:
        shown = text[:80]
        super().__init__(f"{shown!r} is not a time: {reason}", hint=f"Write for example {EXAMPLES}.", text=shown)


def looks_like_moment(text: str) -> bool:
    """Whether the text was meant as a time, and not as the id of a point (which has no such characters)."""
    return re.search(r"\d\s*[-.:]\s*\d", text, re.ASCII) is not None


def parse_moment(text: str, local: tzinfo | None = None) -> datetime:
    """Aware, in UTC. `local` is the zone that "local" names (this machine's, if not given). MomentNotUnderstood."""
    match = _MOMENT.fullmatch(text.strip())
    if match is None:
        raise MomentNotUnderstood(text, "its form is unknown")
    part = match.groupdict()
    year, month, day = (int(part[key] or part[f"{key}2"]) for key in "ymd")
    try:
        if part["H"] is None:
            moment = datetime(year, month, day, tzinfo=UTC).replace(tzinfo=None) + timedelta(days=1, microseconds=-1)
        else:
            fraction = int(((part["f"] or "") + "000000")[:6])
            clock = (int(part["H"]), int(part["M"]), int(part["S"] or 0), fraction)
            moment = datetime(year, month, day, *clock, tzinfo=UTC).replace(tzinfo=None)
        return _in_zone(moment, part["zone"] or "UTC", local, text).astimezone(UTC)
    except (ValueError, OverflowError) as err:
        raise MomentNotUnderstood(text, str(err)) from err


def _in_zone(moment: datetime, zone: str, local: tzinfo | None, text: str) -> datetime:
    if zone.upper() in ("Z", "UTC"):
        return moment.replace(tzinfo=UTC)
    if zone.lower() == "local":
        return moment.replace(tzinfo=local) if local is not None else moment.astimezone()
    if zone[0] in "+-":
        digits = zone[1:].replace(":", "")
        return datetime.fromisoformat(f"{moment.isoformat()}{zone[0]}{digits[:2]}:{digits[2:]}")
    try:
        return moment.replace(tzinfo=ZoneInfo(zone))
    except (ZoneInfoNotFoundError, OSError, ValueError) as err:
        raise MomentNotUnderstood(text, f"there is no time zone {zone!r}") from err
