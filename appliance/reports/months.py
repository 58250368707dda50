"""Months, and how long a machine was without a backup as young as wanted. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Self
from zoneinfo import ZoneInfo

from appliance.errors import StrongroomError

_MONTH: Final = re.compile(r"(\d{4})-(0[1-9]|1[0-2])", re.ASCII)


class MonthNotUnderstood(StrongroomError):
    exit_code = 2

    def __init__(self, text: str) -> None:
        super().__init__(f"{text[:40]!r} is no month", hint="Write for example 2026-10.", text=text[:40])


@dataclass(frozen=True, slots=True)
class Month:
    """A calendar month in a time zone, from `begin_utc` up to and without `end_utc`."""

    year: int
    month: int
    zone: str

    @classmethod
    def parse(cls, text: str, zone: str) -> Self:
        """From "2026-10". MonthNotUnderstood."""
        match = _MONTH.fullmatch(text)
        if match is None or not 1970 <= int(match[1]) <= 9000:
            raise MonthNotUnderstood(text)
        return cls(int(match[1]), int(match[2]), zone)

    @classmethod
    def before(cls, now_utc: datetime, zone: str) -> Self:
        """The last one that is over."""
        today = now_utc.astimezone(ZoneInfo(zone))
        return cls(today.year - 1, 12, zone) if today.month == 1 else cls(today.year, today.month - 1, zone)

    @property
    def begin_utc(self) -> datetime:
        return datetime(self.year, self.month, 1, tzinfo=ZoneInfo(self.zone)).astimezone(UTC)

    @property
    def end_utc(self) -> datetime:
        year, month = (self.year + 1, 1) if self.month == 12 else (self.year, self.month + 1)
        return datetime(year, month, 1, tzinfo=ZoneInfo(self.zone)).astimezone(UTC)

    def __str__(self) -> str:
        return f"{self.year}-{self.month:02}"


@dataclass(frozen=True, slots=True)
class Exposure:
    """`longest`: the longest time within the span for which the newest backup lay back; `missed`: for how long it was
    older than wanted, in all."""

    longest: timedelta
    missed: timedelta


def exposure(backups: Sequence[datetime], begin: datetime, end: datetime, rpo: timedelta | None) -> Exposure:
    """`backups`: when successful runs began, in order, those before `begin` as far as they count. Where there is none
    before, the time since `begin` is what there is to tell."""
    earlier = [each for each in backups if each <= begin]
    at = earlier[-1] if earlier else begin
    longest = missed = timedelta(0)
    for following in [*(each for each in backups if begin < each < end), end]:
        longest = max(longest, following - at)
        if rpo is not None:
            missed += max(timedelta(0), following - max(at + rpo, begin))
        at = following
    return Exposure(longest, missed)
