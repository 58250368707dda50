"""When a policy is due: a cron expression in a time zone. Pure; cronsim reads and walks it.

Rules: minutes are the finest unit. As Debian's cron has it, what is due at fixed times is due once a day also when the
clock is changed: in the hour that is left out, at its end; in the hour that comes twice, the first time. What goes by
the hour or minute (a star in one of the first two fields) goes on as time does. Moments are aware, results in UTC.
"""

from __future__ import annotations

import bisect
import re
import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from appliance.policy.documents import Document, suggestion
from appliance.policy.errors import PolicyInvalid

CRON_CHARACTERS_MAX: Final = 200
# How far back the last due times are looked for: first where most are, in the end over a leap day that fell out (2100).
_BACK: Final = tuple(timedelta(days=days) for days in (1 / 24, 1, 8, 32, 367, 5 * 366, 9 * 366, 29 * 366))
_BLOCK: Final = timedelta(hours=6)
_ZONE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_+-]{0,31}(?:/[A-Za-z0-9_+-]{1,31}){0,2}")
_SYNTAX: Final = (
    "A schedule has five fields: minute, hour, day of month, month, day of week. '0 22 * * MON-FRI' is 22:00 from "
    "Monday to Friday, '*/30 * * * *' every half hour."
)


@dataclass(frozen=True, slots=True)
class Around:
    """The due times around a moment: the last two up to it, and the first after it."""

    previous_utc: datetime | None
    latest_utc: datetime | None
    next_utc: datetime


@dataclass(frozen=True, slots=True)
class Schedule:
    """One that exists is valid: PolicyInvalid, else."""

    cron: str
    zone: str = "UTC"

    def __post_init__(self) -> None:
        _check_zone(self.zone)
        if len(self.cron) > CRON_CHARACTERS_MAX or len(self.cron.split()) != 5:
            raise PolicyInvalid("schedule.cron", f"{self.cron[:60]!r} has not five fields", hint=_SYNTAX)
        try:
            # A year that is not a leap year, so that all that it takes to find one is walked here.
            next(CronSim(self.cron, datetime(2097, 3, 1, tzinfo=UTC)))
        except CronSimError as err:
            raise PolicyInvalid(
                "schedule.cron", f"{self.cron!r} is no cron expression: {_lowered(str(err))}", hint=_SYNTAX
            ) from err
        except StopIteration as err:
            raise PolicyInvalid(
                "schedule.cron", f"{self.cron!r} is never due: no day is like that", hint=_SYNTAX
            ) from err

    @property
    def tzinfo(self) -> ZoneInfo:
        return ZoneInfo(self.zone)

    @property
    def words(self) -> str:
        """For people, without the zone: "At 22:00 on Monday through Friday"."""
        return _words(self.cron)

    def after(self, moment: datetime) -> Iterator[datetime]:
        """The due times after a moment, without end."""
        last = moment
        for each in CronSim(self.cron, moment.astimezone(self.tzinfo)):
            # In the second of a doubled hour, the library begins with times of the first.
            if (due := each.astimezone(UTC)) > last:
                yield due
                last = due

    def next_after(self, moment: datetime) -> datetime:
        return next(self.after(moment))

    def around(self, moment: datetime) -> Around:
        """`latest_utc` may be the moment itself. None: there was none in the last 29 years."""
        moment = moment.astimezone(UTC)
        found = _block(self, moment.replace(hour=moment.hour - moment.hour % 6, minute=0, second=0, microsecond=0))
        after = bisect.bisect_right(found, moment)
        previous, latest = (None, None, *found[:after])[-2:]
        return Around(previous, latest, found[after])

    def to_json(self) -> dict[str, object]:
        return {"cron": self.cron, "zone": self.zone}


def read_schedule(value: object, where: str) -> Schedule:
    """From its JSON form. PolicyInvalid."""
    document = Document(value, where)
    cron, zone = document.text("cron"), document.text("zone")
    document.finish()
    if cron is None:
        raise PolicyInvalid(f"{where}.cron", "it is missing", hint=_SYNTAX)
    return Schedule(" ".join(cron.split()), zone or "UTC")


# Of some hours at a time, as every look at every policy asks for this.
@lru_cache(maxsize=4096)
def _words(cron: str) -> str:
    """A list of 500 policies asks for all of theirs, and most are the same."""
    return CronSim(spelled(cron), datetime(2026, 1, 1, tzinfo=UTC)).explain()


@lru_cache(maxsize=4096)
def _block(schedule: Schedule, begin: datetime) -> tuple[datetime, ...]:
    """All due times of a block, the last two before it, if there were any, and the first after it."""
    return (*_last_two(schedule, begin), *_up_to_the_first_from(schedule, begin, begin + _BLOCK))


def _last_two(schedule: Schedule, begin: datetime) -> list[datetime]:
    # Forwards from before, as what the library finds backwards misses the first of a doubled hour.
    found: list[datetime] = []
    for back in _BACK:
        found = _up_to_the_first_from(schedule, begin - back, begin)[-3:-1]
        if len(found) == 2:
            break
    return found


def _up_to_the_first_from(schedule: Schedule, begin: datetime, end: datetime) -> list[datetime]:
    """The due times from `begin` up to `end`, and the first at or after that."""
    found = []
    for due in schedule.after(begin - timedelta(microseconds=1)):
        found.append(due)
        if due >= end:
            break
    return found


def spelled(cron: str) -> str:
    """The same due times, with steps written out where the library's words for them mislead: `*/40` in the field of
    minutes is due at 0 and 40 of every hour, and not every 40 minutes; `*/3` in that of months loses "every day"."""
    minute, hour, day, month, weekday = cron.split()
    minute, hour, month = _steps(minute, 0, 60), _steps(hour, 0, 24), _steps(month, 1, 12, even=False)
    if day == "*":  # else a star in this field has a meaning of its own: both days must fit
        weekday = _steps(weekday, 0, 7)
    return " ".join((minute, hour, day, month, weekday))


def _steps(field: str, first: int, count: int, *, even: bool = True) -> str:
    """`*/N` as a list; as it is, if N fits `count` evenly, unless `even` is False."""
    match = re.fullmatch(r"\*/([0-9]{1,4})", field, re.ASCII)
    if match is None or int(match[1]) < 2 or (even and count % int(match[1]) == 0 and int(match[1]) < count):
        return field
    return ",".join(map(str, range(first, first + count, int(match[1]))))


def _check_zone(zone: str) -> None:
    try:
        # "localtime" is another zone on another machine.
        if _ZONE.fullmatch(zone) and zone.casefold() != "localtime":
            ZoneInfo(zone)
            return
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        pass
    hint = suggestion(zone, zoneinfo.available_timezones())
    raise PolicyInvalid(
        "schedule.zone", f"there is no time zone {zone[:60]!r}", hint=hint or "Write for example UTC or Europe/Berlin."
    )


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]
