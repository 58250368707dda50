"""When pruning, verification and copies are due by policy, and which of them is one piece of work."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from appliance.policy.following import FollowUp, Work, due, unknown_targets, wanted
from appliance.policy.policies import read_policy
from appliance.policy.schedules import Schedule
from appliance.policy.states import PolicyState

MADE = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
SIX = datetime(2026, 3, 2, 6, tzinfo=UTC)
DAILY = Schedule("0 6 * * *")


def policy(name: str, *, since: datetime = MADE, paused: bool = False, **more: Any) -> PolicyState:
    document = {
        "version": 1, "name": name, "select": {"include": [{"all": True}]}, "schedule": {"cron": "0 22 * * *"}, **more,
    }  # fmt: skip
    return PolicyState(read_policy(document), since, paused)


def told(found: tuple[FollowUp, ...]) -> list[tuple[str, list[tuple[str, str]]]]:
    return [(each.wanted.work.value, [(d.policy, d.cause.value) for d in each.due]) for each in found]


def test_what_several_want_is_one_piece_of_work_that_does_the_most() -> None:
    a = policy("a", retention={"daily": 3}, verify_every_days=30, copies=["vault"])
    b = policy("b", retention={"last": 3}, verify_every_days=7, copies=["vault", "attic"])
    c = policy("c", paused=True, retention={"last": 1}, verify_every_days=1, copies=["cellar"])
    found = wanted([a, b, c, policy("d")])
    assert [(each.work, each.target, each.every_days, [p.policy.name for p in each.policies]) for each in found] == [
        (Work.PRUNE, None, None, ["a", "b"]), (Work.COLLECT, None, None, ["a", "b"]),
        (Work.VERIFY, None, 7, ["a", "b"]),
        (Work.COPY, "attic", None, ["b"]), (Work.COPY, "vault", None, ["a", "b"]),
    ]  # fmt: skip
    assert wanted([policy("d"), c]) == ()
    assert unknown_targets(found, {"vault": ""}) == (
        "b wants copies in attic, and no repository of that name is set in policies.copies",
    )


def test_it_is_due_once_a_day_and_answered_by_whatever_began() -> None:
    all_wanted = wanted([policy("a", retention={"last": 1}), policy("b", retention={"last": 1}, since=MADE - 9 * DAY)])
    late = wanted([policy("late", since=SIX + DAY / 2, verify_every_days=3)])
    began: dict[Work, datetime] = {}

    def at(now: datetime, some: Any = all_wanted) -> list[tuple[str, list[tuple[str, str]]]]:
        return told(due(some, DAILY, lambda each: [began[each.work]] if each.work in began else [], now))

    both = [("a", "catch-up"), ("b", "catch-up")]
    assert at(SIX - timedelta(seconds=1)) == [("prune", both), ("collect", both)], "of 9 days, as one"
    began[Work.PRUNE] = SIX - DAY / 2
    assert at(SIX - timedelta(seconds=1)) == [("collect", both)]
    began[Work.COLLECT] = began[Work.PRUNE]
    assert at(SIX - timedelta(seconds=1)) == []
    once = [("a", "schedule"), ("b", "schedule")]
    assert at(SIX) == [("prune", once), ("collect", once)]
    began[Work.PRUNE] = began[Work.COLLECT] = SIX + 300 * DAY  # under a clock that was ahead
    assert at(SIX) != []
    assert at(SIX + DAY - timedelta(seconds=1), late) == []
    assert at(SIX + DAY, late) == [("verify", [("late", "schedule")])], "what was before it wanted anything is nobody's"
