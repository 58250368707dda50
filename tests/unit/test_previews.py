"""What a policy would do, as it is told before it does."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from appliance.policy.policies import Policy, read_policy
from appliance.policy.previews import Chosen, preview
from appliance.policy.selectors import Clause, Kind, Machine

NOW = datetime(2026, 3, 28, 12, tzinfo=UTC)
WEB = Machine(Kind.VM, "u-web", "web-1", "kvm1", frozenset({"gold"}))
TEST = Machine(Kind.VM, "u-test", "web-test", "kvm1")
DB = Machine(Kind.VM, "u-db", "db", "kvm2")
FIREWALL = Machine(Kind.IMAGE, "fw", "fw")
MACHINES = [TEST, DB, FIREWALL, WEB]


def policy(name: str = "nightly", select: dict[str, Any] | None = None, **more: Any) -> Policy:
    return read_policy({
        "version": 1, "name": name, "select": select or {"include": [{"all": True}]},
        "schedule": {"cron": "30 2 * * *", "zone": "Europe/Berlin"}, **more,
    })  # fmt: skip


def test_each_machine_is_told_with_the_clause_that_decided_and_others_that_select_it() -> None:
    web = policy(
        "web", {"include": [{"name": "web-*"}, {"tag": "gold"}], "exclude": [{"name": "*-test"}, {"image": "*"}]}
    )
    found = preview(web, [policy("all"), policy("web", {"include": [{"name": "db"}]})], MACHINES, NOW)
    assert found.selected == (Chosen(WEB, Clause(name="web-*"), ("all",)),)
    assert found.excluded == (Chosen(TEST, Clause(name="*-test"), ("all",)),), "what no clause includes is not told of"


def test_the_next_due_times_are_those_of_the_schedule_over_a_change_of_the_clock() -> None:
    found = preview(policy(), [], MACHINES, NOW)
    assert found.words == "At 02:30 every day"
    assert [f"{each.astimezone(found.zone):%d %H:%M}" for each in found.due_utc] == [
        "29 03:00", "30 02:30", "31 02:30", "01 02:30", "02 02:30",
    ]  # fmt: skip
    assert found.remarks == ()


@pytest.mark.parametrize(
    ("wanted", "others", "says"),
    [
        (policy(select={"include": [{"name": "nothing"}]}), [], "selects none"),
        (policy(rpo_minutes=24 * 60), [], "RPO of 24 h is shorter than the 25 h"),
        (policy(window=[{"from": "03:00", "to": "06:00"}]), [], "398 of its next 400 due times"),
        (policy(window=[{"from": "04:00", "to": "06:00"}]), [], "all its due times are outside"),
        (policy(window=[{"days": ["sat"], "from": "22:00", "to": "06:00"}]), [], "outside of its window: runs wait"),
        (policy(), [policy("db", {"include": [{"name": "db"}]})], "select 1 of its machines as well (db)"),
        (policy(retention={"last": 3}), [policy("db")], "none of their points goes, as db prunes nothing"),
        (policy(select={"include": [{"name": "web-1"}]}),
         [policy("test", {"include": [{"name": "web-test"}]}, per_host=1)], "test allows 1 runs at once"),
    ],
)  # fmt: skip
def test_what_may_not_be_meant_is_told(wanted: Policy, others: list[Policy], says: str) -> None:
    assert any(says in remark for remark in preview(wanted, others, MACHINES, NOW).remarks)


def test_an_rpo_that_the_longest_night_of_the_year_keeps_is_not_remarked() -> None:
    assert (
        preview(policy(rpo_minutes=26 * 60, window=[{"from": "02:00", "to": "04:00"}]), [], MACHINES, NOW).remarks == ()
    )
