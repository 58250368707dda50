"""What follows the runs by policy: pruning and collecting, verification, copies; and when it is due. Pure.

The rule: once a day, at one time for all, and answered by the newest run of its kind that began, whatever came of it;
however many days were missed, there is one. What several policies want is one piece of work, which does the most that
any of them wants. A paused policy asks for nothing, though its retention still keeps what it keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from appliance.policy.due import Cause, Due
from appliance.policy.schedules import Schedule
from appliance.policy.states import PolicyState, newest

_BEGINNING = datetime.min.replace(tzinfo=UTC)


class Work(StrEnum):
    """In the order in which they are done: what goes need not be verified, and what is damaged is known before it is
    copied."""

    PRUNE = "prune"
    COLLECT = "collect"
    VERIFY = "verify"
    COPY = "copy"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A piece of work that some policies want. `target`: the repository that is copied to, by its name."""

    work: Work
    policies: tuple[PolicyState, ...]
    target: str | None = None
    every_days: int | None = None

    @property
    def since_utc(self) -> datetime:
        """Due times before that are nobody's: no policy wanted it."""
        return min(each.since_utc for each in self.policies)


@dataclass(frozen=True, slots=True)
class FollowUp:
    """What is due now, and by whom it is wanted."""

    wanted: Wanted
    due: tuple[Due, ...]


def wanted(policies: Iterable[PolicyState]) -> tuple[Wanted, ...]:
    active = [each for each in policies if not each.paused]
    pruning = tuple(each for each in active if not each.policy.retention.empty)
    found = [Wanted(work, pruning) for work in (Work.PRUNE, Work.COLLECT) if pruning]
    verifying = [(each.policy.verify_every_days, each) for each in active if each.policy.verify_every_days is not None]
    if verifying:
        days = min(days for days, _ in verifying)
        found.append(Wanted(Work.VERIFY, tuple(each for _, each in verifying), every_days=days))
    for target in sorted({name for each in active for name in each.policy.copies}):
        found.append(Wanted(Work.COPY, tuple(each for each in active if target in each.policy.copies), target))
    return tuple(found)


def due(
    all_wanted: Iterable[Wanted],
    schedule: Schedule,
    answers: Callable[[Wanted], Iterable[datetime]],
    now_utc: datetime,
) -> tuple[FollowUp, ...]:
    """`answers`: when runs of such work began, or were cancelled."""
    around = schedule.around(now_utc)
    latest, previous = around.latest_utc, around.previous_utc
    found = []
    for each in all_wanted:
        answered = max(
            newest(answers(each), now_utc) or _BEGINNING, newest([each.since_utc], now_utc) or _BEGINNING
        )  # fmt: skip
        if latest is None or answered >= latest:
            continue
        several = answered > _BEGINNING and previous is not None and answered < previous
        cause = Cause.CATCH_UP if several else Cause.SCHEDULE
        found.append(FollowUp(each, tuple(Due(state.policy.name, latest, cause) for state in each.policies)))
    return tuple(found)


def unknown_targets(all_wanted: Iterable[Wanted], known: Mapping[str, object]) -> tuple[str, ...]:
    """Copies that go nowhere, as sentences."""
    return tuple(
        f"{', '.join(state.policy.name for state in each.policies)} wants copies in {each.target}, and no repository of"
        " that name is set in policies.copies"
        for each in all_wanted
        if each.target is not None and each.target not in known
    )
