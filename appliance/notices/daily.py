"""The daily digest: when it is due, and what it says. Pure.

Rules: one a day, at a time of the day in a zone; however many were missed, one makes up for them, and it tells of all
the time since the last. Where the clock leaves the time out, it is the end of the gap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo
from typing import Final

from appliance.amounts import size
from appliance.models import RunState, new_id
from appliance.notices.records import Concern, Kind, Notice, Urgency
from appliance.notices.wording import BODY_CHARACTERS_MAX, DETAIL_CHARACTERS_MAX, listed, neutral, titled

_DAY: Final = timedelta(days=1)
_LONGEST: Final = timedelta(days=7)
_CONCERNS_MAX: Final = 20
_ORDER: Final = (
    RunState.SUCCEEDED, RunState.PARTIAL, RunState.FAILED, RunState.INTERRUPTED, RunState.CANCELLED,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Space:
    """Of the repository's file system. `days_left`: until it is full, as it has grown lately; None: it does not grow,
    or has not long enough."""

    free_bytes: int
    total_bytes: int
    days_left: float | None = None

    @property
    def free_percent(self) -> float:
        return 100 * self.free_bytes / self.total_bytes if self.total_bytes else 0.0


@dataclass(frozen=True, slots=True)
class Day:
    """`failed`, `partial`: what the runs were of. `unprotected`: machines that were seen and have no restore point.
    `lost`: targets to which notices were given up."""

    since_utc: datetime
    until_utc: datetime
    runs: Mapping[RunState, int]
    failed: Sequence[str]
    partial: Sequence[str]
    points: int
    read_bytes: int
    stored_bytes: int
    machines: int
    unprotected: Sequence[str]
    verified: int
    damaged: int
    space: Space | None
    concerns: Sequence[Concern]
    lost: Sequence[str] = ()


def latest_due(now_utc: datetime, at: time, zone: tzinfo) -> datetime:
    """The newest moment, not after now, at which a digest is due."""
    today = now_utc.astimezone(zone).date()
    for back in range(3):
        due = datetime.combine(today - back * _DAY, at, zone).astimezone(UTC)
        if due <= now_utc:
            return due
    raise AssertionError("every day has such a time")


def due_since(last_utc: datetime, now_utc: datetime, at: time, zone: tzinfo) -> datetime | None:
    """From when on the digest that is due now has to tell; None: none is. `last_utc`: until when the last one told.
    One that was written under a clock that was ahead counts as of a day ago."""
    due = latest_due(now_utc, at, zone)
    if last_utc > now_utc:
        return now_utc - _DAY
    return max(last_utc, now_utc - _LONGEST) if last_utc < due else None


def digest(day: Day, appliance: str, now_utc: datetime) -> Notice:
    bad = day.runs.get(RunState.FAILED, 0) + day.runs.get(RunState.INTERRUPTED, 0)
    if bad or day.damaged or day.concerns:
        urgency = Urgency.WARNING
        headline = f"{_many(bad, 'backup')} failed, {_many(len(day.concerns), 'thing')} to look at"
    else:
        urgency, headline = Urgency.SUCCESS, f"all well, {_many(day.points, 'restore point')} made"
    body = "\n".join(_lines(day))[:BODY_CHARACTERS_MAX]
    return Notice(new_id(), Kind.DIGEST, urgency, now_utc, titled(appliance, headline), body)


def _lines(day: Day) -> list[str]:
    runs = ", ".join(f"{day.runs[state]} {state.value}" for state in _ORDER if day.runs.get(state)) or "none"
    lines = [
        f"From {day.since_utc:%Y-%m-%d %H:%M} to {day.until_utc:%Y-%m-%d %H:%M} UTC.",
        "",
        f"Runs: {runs}.",
        f"Restore points made: {day.points}; read {size(day.read_bytes)}, stored {size(day.stored_bytes)}.",
        f"Machines and images with restore points: {day.machines}.",
    ]
    for heading, names in (
        ("Failed", day.failed),
        ("Something was left out or needs an eye", day.partial),
        ("Without any restore point", day.unprotected),
        ("Notices did not reach", day.lost),
    ):
        if names:
            lines.append(f"{heading}: {listed(names, 20)}.")
    if day.verified or day.damaged:
        lines.append(f"Verifications: {day.verified}, of which {day.damaged} found damage or failed.")
    if day.space is not None:
        left = "" if day.space.days_left is None else f", full in about {day.space.days_left:.0f} days"
        lines.append(f"Free for the repository: {size(day.space.free_bytes)} ({day.space.free_percent:.0f} %){left}.")
    if day.concerns:
        lines += ["", "To look at:"]
        lines += [
            f"- {neutral(each.subject, 100)}: {neutral(each.detail, DETAIL_CHARACTERS_MAX)}"
            for each in day.concerns[:_CONCERNS_MAX]
        ]
        if (more := len(day.concerns) - _CONCERNS_MAX) > 0:
            lines.append(f"- … and {more} more")
    return lines


def _many(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"
