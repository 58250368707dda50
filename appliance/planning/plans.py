"""A plan: all that is reckoned, with how. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median
from typing import Final

from appliance.amounts import size
from appliance.planning.capacity import MonthSize, Reckoning
from appliance.planning.habits import Habit, History, habits, reading_speed
from appliance.planning.load import HostLoad, RecoveryTime, loads
from appliance.policy.policies import Policy
from appliance.policy.retention import Rules
from appliance.policy.schedules import Schedule
from appliance.policy.selectors import Clause, Selector

_DAY: Final = timedelta(days=1)
_TYPED: Final = "typed in"
_BOUNDS: Final = (
    "Low is for data that is overwritten (a pruned point gives back all that it stored), high for data that is added"
    " (it gives back nothing); what full reads stored stays in both. Points are kept by the decisions that prune them;"
    " that some are protected or in use is left out."
)


@dataclass(frozen=True, slots=True)
class Room:
    """Of the repository: `used_bytes` now, `free_bytes` (None: it has no end, or nobody has looked), and how it was
    seen to grow. `shared`: of some machines in a repository of more: `used_bytes` is what their points stored."""

    used_bytes: int
    free_bytes: int | None = None
    day_bytes: int | None = None
    shared: bool = False


def room_of(histories: Sequence[History]) -> Room:
    """For who may not see the rest."""
    return Room(sum(sum(each.points.stored_bytes) for each in histories), shared=True)


@dataclass(frozen=True, slots=True)
class Numbers:
    """What somebody types in of a fleet that is not there yet. `change_percent`: of a machine, in a day; `reduction`:
    how many bytes of a machine become one in the repository."""

    machines: int
    size_bytes: int
    change_percent: float
    reduction: float
    runs_a_day: float
    read_bytes_s: float
    per_host: int = 2


@dataclass(frozen=True, slots=True)
class Change:
    """Another retention instead of that of now. `going`: points that are there, stay now, and would go. `freed_bytes`:
    what that gives back, to the byte; None: it was not asked. If it was, `going` and `freed_bytes` are of all points
    that it does not keep: also those that go anyway, at the next pruning, and those of machines that are gone.
    `months`: as `Plan.months`, with it."""

    rules: Rules
    going: int
    freed_bytes: int | None
    months: tuple[MonthSize, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """`how`: where each kind of number is from, as sentences. `full_utc`: the end of the first month at which the
    repository does not hold what `trend_bytes` (or else `high_bytes`) says."""

    made_utc: datetime
    machines: int
    room: Room
    months: tuple[MonthSize, ...]
    full_utc: datetime | None
    change: Change | None
    hosts: tuple[HostLoad, ...]
    recoveries: tuple[RecoveryTime, ...]
    how: tuple[str, ...]


def plan(
    histories: Sequence[History],
    room: Room,
    now_utc: datetime,
    *,
    months: int,
    rules: Rules | None = None,
    window_s: float | None = None,
    restore_bytes_s: float | None = None,
    found: Sequence[Habit | None] | None = None,
    since_utc: datetime | None = None,
    reckoning: Reckoning | None = None,
) -> Plan:
    """`rules`: a retention to compare with; `found`: habits that are known otherwise; `since_utc`: from when on the
    months are, if not from now on; `reckoning`: what remembers."""
    reckoning = reckoning or Reckoning()
    since_utc = since_utc or now_utc
    known = tuple(found) if found is not None else habits(histories)
    size_now = reckoning.project(histories, known, room.used_bytes, room.day_bytes, since_utc, months, None)
    speed = restore_bytes_s or reading_speed(histories)
    return Plan(
        made_utc=now_utc,
        machines=sum(history.count for history in histories),
        room=room,
        months=size_now,
        full_utc=_full(size_now, room),
        change=None if rules is None else _change(reckoning, histories, known, room, since_utc, months, rules),
        hosts=loads(histories, known, window_s),
        recoveries=_recoveries(histories, speed),
        how=_how(histories, known, room, speed, typed=restore_bytes_s is not None, numbers=found is not None),
    )


def typed(numbers: Numbers, rules: Rules, now_utc: datetime) -> tuple[tuple[History, ...], tuple[Habit, ...], Room]:
    """A fleet of machines that are alike, whose first full reads are in the repository."""
    changed = numbers.size_bytes * numbers.change_percent / 100 / numbers.runs_a_day
    habit = Habit(
        interval=_DAY / numbers.runs_a_day,
        read_bytes=round(changed),
        stored_bytes=round(changed / numbers.reduction),
        duration_s=changed / numbers.read_bytes_s,
        speed_bytes_s=numbers.read_bytes_s,
    )
    policy = _policy(rules, numbers.per_host)
    history = History(_TYPED, _TYPED, numbers.size_bytes, policies=(policy,), count=numbers.machines)
    return (history,), (habit,), Room(round(numbers.machines * numbers.size_bytes / numbers.reduction))


def _change(
    reckoning: Reckoning,
    histories: Sequence[History],
    known: Sequence[Habit | None],
    room: Room,
    now_utc: datetime,
    months: int,
    rules: Rules,
) -> Change:
    policy = _policy(rules)
    return Change(
        rules,
        reckoning.going(histories, policy),
        None,
        reckoning.project(histories, known, room.used_bytes, None, now_utc, months, policy),
    )


def _policy(rules: Rules, per_host: int = 2) -> Policy:
    """One that does nothing but keep."""
    return Policy("planned", Selector((Clause(),)), Schedule("0 0 * * *", "UTC"), retention=rules, per_host=per_host)


def _full(months: Sequence[MonthSize], room: Room) -> datetime | None:
    if room.free_bytes is None:
        return None
    limit = room.used_bytes + room.free_bytes
    over = (
        each.end_utc for each in months if (each.high_bytes if each.trend_bytes is None else each.trend_bytes) > limit
    )
    return next(over, None)


def _recoveries(histories: Sequence[History], speed: float | None) -> tuple[RecoveryTime, ...]:
    """The largest first."""
    measured = [each.instant_ms for each in histories if each.instant_ms is not None]
    usual = median(measured) if measured else None
    found = []
    for each in sorted(histories, key=lambda each: (-each.size_bytes, each.name)):
        instant = each.instant_ms if each.instant_ms is not None else usual
        found.append(
            RecoveryTime(
                each.name, each.host, each.size_bytes, None if instant is None else instant / 1000,
                each.instant_ms is not None, None if not speed else each.size_bytes / speed,
            )
        )  # fmt: skip
    return tuple(found)


def _how(
    histories: Sequence[History],
    known: Sequence[Habit | None],
    room: Room,
    speed: float | None,
    *,
    typed: bool,
    numbers: bool,
) -> tuple[str, ...]:
    assumed = sum(habit is None or habit.assumed for habit in known)
    told = [_BOUNDS]
    if numbers:
        told.append("All of it is from numbers that were typed in.")
    else:
        told.append(
            "What a run reads, stores and takes is the mean of a machine's last 30 incremental points; how often it"
            " runs, the middle of the times between its last 14."
        )
    if assumed:
        told.append(
            f"{assumed} of {len(histories)} machines have too few points: the fleet's share of changed bytes is assumed"
            " for them, or nothing, if no machine has points enough."
        )
    if room.day_bytes is not None:
        told.append(
            f"The trend is how the repository grew, day by day: {size(room.day_bytes)} a day. It knows nothing of"
            " weekly or monthly points that are yet to come."
        )
    elif room.shared:
        told.append(
            "It is of these machines alone, and what their restore points stored when they were made: of the rest of"
            " the repository, its free space and its growth nothing is told here."
        )
    elif not numbers:
        told.append("There is no trend: the repository's size was not seen on days a week apart yet.")
    if speed is None:
        told.append(
            "How long a restore takes is not told: nothing large was read in full yet (--restore-speed says it)."
        )
    elif not typed:
        told.append(
            f"A restore is reckoned with {size(round(speed))} a second, at which machines were read in full; writing"
            " them back may be slower (--restore-speed)."
        )
    return tuple(told)
