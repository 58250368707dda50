"""One look at what somebody should know.

The rule: it asks the catalog, the clock and the file system of the repository, never a host; a part that cannot be
asked is itself a concern, and ends none of the others. Names and errors become neutral text before they are kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from appliance import home
from appliance.amounts import duration, size
from appliance.clock import format_utc, parse_utc
from appliance.models import ReadKind, RecoveryState, RunKind, RunRecord, RunState, new_id
from appliance.notices.daily import Space
from appliance.notices.records import Concern, Kind
from appliance.notices.unusual import (
    ClockSeen,
    Gone,
    PointCount,
    clock_jump,
    count_points,
    many_gone,
    usual_bytes,
)
from appliance.notices.wording import DETAIL_CHARACTERS_MAX, SUBJECT_CHARACTERS_MAX, neutral
from appliance.proofs import Verification
from appliance.services.browsing.fleet import MachineRow
from appliance.services.browsing.growth import DAYS, growth
from appliance.services.browsing.service import BrowsingService
from appliance.services.queue.hanging import hanging
from imaging.storage.locations import Folder

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

_RUNS: Final = 2000
_EARLIER: Final = 10
_CALM_PERCENT: Final = 2  # more than it was told for: then a repository fills no longer
_KEPT_EVERY: Final = timedelta(minutes=1)
_SILENT: Final = timedelta(days=7)
_NEWS: Final = timedelta(days=1)
_FREE, _FULL, _GONE, _SWEEP = "free", "full", "points", "sweep"


@dataclass(frozen=True, slots=True)
class Look:
    """`events` have happened, `lasting` is so now. `state`: what the next look has to know."""

    now_utc: datetime
    lasting: tuple[Concern, ...]
    events: tuple[Concern, ...]
    runs: tuple[str, ...]
    verifications: tuple[str, ...]
    state: dict[str, object]


class Observer:
    """Borrows the appliance. One for as long as a process looks: it knows the clock of its last look."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance
        self._rules = appliance.settings.notices
        self._browsing = BrowsingService(appliance)
        self._clock: ClockSeen | None = None
        self._kept_utc: datetime | None = None
        self._missed_utc: datetime | None = None
        self._missing: tuple[Concern, ...] = ()

    def look(self, known: Sequence[Concern]) -> Look:
        """`known`: lasting concerns as they were kept. CatalogError."""
        notices = self._appliance.catalog.notices
        now = self._appliance.clock.now_utc()
        self._forget_old(now)
        runs, verifications = notices.unnoticed_runs(_RUNS), notices.unnoticed_verifications()
        state: dict[str, object] = {}
        gone, counted = self._points(runs, now)
        if counted != notices.state("points"):
            state["points"] = counted
        clock = list(self._clock_set(now, state))
        lasting = (
            *gone,
            *self._thaws(now),
            *self._missed(now),
            *self._hosts(now),
            *self._recoveries(now),
            *self._filling(known, now),
            *self._sweep(now),
        )
        events = (*clock, *(_failed(run, now) for run in runs if _is_failed(run)), *self._large(runs, now),
                  *(_damaged(each, now) for each in verifications if each.problems or each.affected))  # fmt: skip
        return Look(
            now, lasting, events, tuple(run.id for run in runs), tuple(each.id for each in verifications), state
        )

    def is_unknown(self, concern: Concern) -> bool:
        """Whether this appliance cannot see if that is over: its repository's folder, another one looks at."""
        place, _, whose = concern.key.partition(":")
        if concern.kind not in (Kind.FILLING, Kind.AWAY) or place not in (_FREE, _FULL, _SWEEP, "repository"):
            return False
        return whose != self._me and whose in {each.id for each in self._appliance.catalog.appliances.list()}

    @property
    def _me(self) -> str:
        return self._appliance.catalog.me

    def _forget_old(self, now: datetime) -> None:
        """When nobody has looked for long, what happened meanwhile is history."""
        if self._clock is not None:
            return
        notices = self._appliance.catalog.notices
        looked = _moment(notices.state("looked"))
        if looked is None or looked > now or now - looked > _SILENT:
            notices.forget_older_runs(now - _NEWS, now)

    def _clock_set(self, now: datetime, state: dict[str, object]) -> Iterator[Concern]:
        here = ClockSeen(now, self._appliance.clock.monotonic_s())
        name = f"clock:{self._me[:24]}"
        before = self._clock
        if before is None and (seen := _moment(self._appliance.catalog.notices.state(name))) is not None:
            before = ClockSeen(seen, None)
        self._clock = here
        jump = None if before is None else clock_jump(before, here)
        if jump is not None:
            way = "forward, or the machine was suspended," if jump > timedelta(0) else "back"
            yield _concern(
                Kind.UNUSUAL, f"clock:{format_utc(now)}", "the clock was set",
                f"the clock of this appliance went {way} by {duration(abs(jump.total_seconds()))}:"
                f" it says {now:%Y-%m-%d %H:%M} UTC now", now, lasting=False,
            )  # fmt: skip
        if self._kept_utc is None or jump is not None or now - self._kept_utc >= _KEPT_EVERY:
            self._kept_utc = now
            state[name] = state["looked"] = format_utc(now)

    def _points(self, runs: Sequence[RunRecord], now: datetime) -> tuple[list[Concern], dict[str, Any]]:
        catalog, rules = self._appliance.catalog, self._rules
        before = _count(catalog.notices.state("points"))
        made = len(_points_made(runs))
        counted = count_points(before, catalog.history.points(), made, now)
        found = []
        if many_gone(counted, rules.deleted_points, rules.deleted_percent):
            gone = counted.gone_in_a_day
            found.append(
                _concern(
                    Kind.UNUSUAL,
                    _GONE,
                    "many restore points are gone",
                    f"within a day {gone} of {counted.points + gone} restore points were deleted",
                    now,
                )
            )
        return found, _count_json(counted)

    def _thaws(self, now: datetime) -> Iterator[Concern]:
        for debt in self._appliance.catalog.thaws.list(everyones=True):
            if (now - debt.since_utc).total_seconds() >= self._rules.thaw_s:
                why = f": {debt.last_error}" if debt.last_error else ""
                yield _concern(
                    Kind.THAW, f"{debt.machine_uuid} {debt.host}", f"{debt.name} on {debt.host}",
                    f"a thaw has been owed since {debt.since_utc:%Y-%m-%d %H:%M} UTC{why}", now,
                )  # fmt: skip

    def _missed(self, now: datetime) -> tuple[Concern, ...]:
        """Once a minute, as it looks at every machine and every policy."""
        if self._missed_utc is None or not timedelta(0) <= now - self._missed_utc < _KEPT_EVERY:
            self._missed_utc = now
            self._missing = tuple(_missing(row, now) for row in self._browsing.fleet().rows if row.missed)
        return self._missing

    def _hosts(self, now: datetime) -> Iterator[Concern]:
        for look in self._appliance.catalog.inventory.looks(everyones=True):
            since = look.failing_since_utc
            if since is not None and (now - since).total_seconds() >= self._rules.host_s:
                yield _concern(
                    Kind.AWAY, f"host:{look.appliance}:{look.host}", f"host {look.host}",
                    f"it has not answered since {since:%Y-%m-%d %H:%M} UTC: {look.error}", now,
                )  # fmt: skip

    def _recoveries(self, now: datetime) -> Iterator[Concern]:
        for each in self._appliance.catalog.recoveries.list(ended=False, everyones=True):
            if each.state is RecoveryState.FAILED:
                yield _concern(
                    Kind.AWAY, f"recovery:{each.id}", f"the recovery of {each.source_name}",
                    f"recovery {each.id[:12]} on {each.host} needs somebody: {each.error}", now,
                )  # fmt: skip

    def _filling(self, known: Iterable[Concern], now: datetime) -> Iterator[Concern]:
        try:
            space = self.space(now)
        except (OSError, home.TwoPlaces) as err:
            yield _concern(Kind.AWAY, f"repository:{self._me}", "the repository", f"it cannot be reached: {err}", now)
            return
        if space is None:
            return
        there = {each.key for each in known if each.kind is Kind.FILLING}
        free, full = f"{_FREE}:{self._me}", f"{_FULL}:{self._me}"
        limit = self._rules.free_percent + (_CALM_PERCENT if free in there else 0)
        what = f"{size(space.free_bytes)} of {size(space.total_bytes)} are free ({space.free_percent:.0f} %)"
        if self._rules.free_percent and space.free_percent < limit:
            yield _concern(Kind.FILLING, free, "the repository", what, now)
        days = self._rules.full_days + (_CALM_PERCENT if full in there else 0)
        if self._rules.full_days and space.days_left is not None and space.days_left < days:
            words = f"{what}; as it fills now, it is full in {space.days_left:.0f} days"
            yield _concern(Kind.FILLING, full, "the repository", words, now)

    def _sweep(self, now: datetime) -> Iterator[Concern]:
        found = hanging(self._appliance)
        if found is not None:
            yield _concern(Kind.AWAY, f"{_SWEEP}:{self._me}", "the repository", found[1], now)

    def space(self, now: datetime) -> Space | None:
        """Of the repository, if that is a folder. OSError."""
        location, record = home.location_of(self._appliance.settings), self._appliance.catalog.repository()
        if not isinstance(location, Folder):
            return None
        free, total = _fullest(location.path)
        since = now.date() - timedelta(days=DAYS)
        sizes = () if record is None else self._appliance.catalog.proofs.sizes(record.id, since)
        day_bytes = growth(sizes, ()).day_bytes
        return Space(free, total, free / day_bytes if day_bytes is not None and day_bytes > 0 else None)

    def _large(self, runs: Sequence[RunRecord], now: datetime) -> Iterator[Concern]:
        history, rules = self._appliance.catalog.history, self._rules
        for point in history.points_of(_points_made(runs)):
            if point.kind is not ReadKind.INCREMENTAL or point.stored_bytes < rules.larger_bytes:
                continue
            earlier = history.stored_before(point, _EARLIER)
            usual = usual_bytes(point.stored_bytes, earlier, rules.larger_times, rules.larger_bytes)
            if usual is not None:
                yield _concern(
                    Kind.UNUSUAL, f"large:{point.id}", f"a large backup of {point.name}",
                    f"it stored {size(point.stored_bytes)}, and {size(usual)} as a rule: much was written in the"
                    " machine, or what was there is encrypted now", now, lasting=False,
                )  # fmt: skip


def _points_made(runs: Iterable[RunRecord]) -> list[str]:
    return [run.point for run in runs if run.point is not None and run.kind is RunKind.BACKUP]


def _is_failed(run: RunRecord) -> bool:
    return run.state in (RunState.FAILED, RunState.INTERRUPTED) and run.dismissed_utc is None


def _failed(run: RunRecord, now: datetime) -> Concern:
    where = f" on {run.host}" if run.host else ""
    error = run.error or ("it was interrupted" if run.state is RunState.INTERRUPTED else "for an unknown reason")
    if run.kind is RunKind.BACKUP:
        return _concern(Kind.FAILED, f"run:{run.id}", f"{run.name}{where}", error, now, lasting=False)
    return _concern(Kind.WORK, f"run:{run.id}", f"the {run.kind} of {run.name}{where}", error, now, lasting=False)


def _missing(row: MachineRow, now: datetime) -> Concern:
    watched, machine = row.watched, row.machine
    assert watched is not None
    since = f"its newest point is of {watched.since_utc:%Y-%m-%d %H:%M} UTC" if watched.has_point else "it has no point"
    paused = "; it is paused" if watched.paused else ""
    where = f" on {machine.host}" if machine.host else ""
    wanted = duration(watched.rpo.total_seconds())
    return _concern(
        Kind.RPO, machine.key, f"{machine.name}{where}",
        f"policy {watched.policy} wants a point within {wanted}, and {since}{paused}", now,
    )  # fmt: skip


def _damaged(found: Verification, now: datetime) -> Concern:
    detail = f"{found.problems} objects are damaged or missing, {len(found.affected)} restore points are touched"
    return _concern(Kind.VERIFICATION, f"verification:{found.id}", "the repository", detail, now, lasting=False)


def _concern(kind: Kind, key: str, subject: str, detail: str, now: datetime, *, lasting: bool = True) -> Concern:
    return Concern(
        new_id(), kind, key, neutral(subject, SUBJECT_CHARACTERS_MAX), neutral(detail, DETAIL_CHARACTERS_MAX),
        lasting, now,
    )  # fmt: skip


def _fullest(folder: Path) -> tuple[int, int]:
    """Free and total bytes of the fullest file system of the repository: a folder in it may be another disk's."""
    folders = [folder, *(each for each in folder.iterdir() if each.is_dir())]
    found = [os.statvfs(each) for each in folders]
    least = min(found, key=lambda status: status.f_bavail * status.f_frsize)
    return least.f_bavail * least.f_frsize, least.f_blocks * least.f_frsize


def _moment(value: object) -> datetime | None:
    return parse_utc(value) if isinstance(value, str) else None


def _count(value: Any) -> PointCount | None:
    if value is None:
        return None
    return PointCount(value["points"], tuple(Gone(parse_utc(utc), points) for utc, points in value["gone"]))


def _count_json(count: PointCount) -> dict[str, Any]:
    return {"points": count.points, "gone": [[format_utc(each.utc), each.points] for each in count.gone]}
