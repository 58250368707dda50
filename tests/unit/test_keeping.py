"""What policies keep together, and what a change of them would cost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from appliance.policy.keeping import keep
from appliance.policy.policies import Policy, read_policy
from appliance.policy.previews import losing
from appliance.policy.retention import Candidate, decide
from appliance.policy.selectors import Kind, Machine

BEGIN = datetime(2026, 3, 1, 22, 30, tzinfo=UTC)
WEB = Machine(Kind.VM, "u-web", "web", "kvm1")
DB = Machine(Kind.VM, "u-db", "db", "kvm1")


def policy(name: str, retention: dict[str, int] | None, zone: str = "UTC", vms: str = "*") -> Policy:
    return read_policy({
        "version": 1, "name": name, "select": {"include": [{"name": vms}]},
        "schedule": {"cron": "0 22 * * *", "zone": zone}, "retention": retention,
    })  # fmt: skip


def points(count: int, every: timedelta = timedelta(days=1), **uses: Any) -> list[Candidate]:
    return [
        Candidate(f"p{number}", number, BEGIN + number * every, frozenset(uses.get(f"p{number}", ())))
        for number in range(count)
    ]


def kept(policies: list[Policy], candidates: list[Candidate]) -> list[str]:
    return [verdict.candidate.id for verdict in keep(policies, candidates) if verdict.kept]


def test_a_point_stays_if_any_policy_keeps_it_and_its_reasons_name_them() -> None:
    verdicts = keep([policy("a", {"last": 2}), policy("b", {"weekly": 2})], points(15, p3={"protected"}))
    told = {verdict.candidate.id: verdict.reasons for verdict in verdicts if verdict.kept}
    assert told == {
        "p3": ("protected",),
        "p7": ("b: weekly",),  # Sunday the 8th
        "p13": ("a: last",),
        "p14": ("a: newest", "a: last", "b: newest", "b: weekly"),
    }


def test_each_policy_has_days_of_its_own_zone() -> None:
    # 22:30 and 23:30 UTC: one day in UTC, two in Berlin
    both = points(2, timedelta(hours=1))
    assert kept([policy("utc", {"daily": 2})], both) == ["p1"]
    assert kept([policy("berlin", {"daily": 2}, "Europe/Berlin")], both) == ["p0", "p1"]
    assert kept([policy("utc", {"daily": 2}), policy("berlin", {"daily": 2}, "Europe/Berlin")], both) == ["p0", "p1"]


def test_without_a_policy_or_with_one_without_rules_all_stay() -> None:
    assert kept([], points(9)) == kept([policy("a", None), policy("b", {"last": 1})], points(9))
    assert len(kept([], points(9))) == 9
    assert kept([policy("b", {"last": 1})], []) == []


RULES = st.dictionaries(st.sampled_from(["last", "daily", "weekly", "monthly"]), st.integers(1, 5), min_size=1)


@given(st.lists(RULES, min_size=1, max_size=3), st.lists(st.integers(1, 100), max_size=25))
def test_it_is_the_union_of_what_each_keeps_alone(several: list[dict[str, int]], hours: list[int]) -> None:
    candidates, at = [], BEGIN
    for number, each in enumerate(hours):
        at += timedelta(hours=each)
        candidates.append(Candidate(f"p{number}", number, at))
    policies = [policy(f"n{number}", rules) for number, rules in enumerate(several)]
    alone = {
        verdict.candidate.id
        for each in policies
        for verdict in decide(candidates, each.retention, zone=UTC)
        if verdict.kept
    }
    assert kept(policies, candidates) == [each.id for each in candidates if each.id in alone]


def test_what_a_change_costs_is_what_stays_now_and_goes_then() -> None:
    fourteen, three = policy("a", {"last": 14}), policy("a", {"last": 3})
    of = {WEB: points(20), DB: points(4)}
    assert losing([], [fourteen], of) == {WEB: tuple(of[WEB][:6])}
    assert losing([fourteen], [three], of) == {WEB: tuple(of[WEB][6:17]), DB: tuple(of[DB][:1])}
    assert losing([three], [fourteen], of) == {}
    assert losing([three], [], of) == {}, "without a policy, nothing goes"
    web_only = policy("b", {"last": 18}, vms="web")
    assert losing([web_only, three], [three], of) == {WEB: tuple(of[WEB][2:17])}
    assert losing([fourteen], [policy("a", {"last": 3}, vms="d*")], of) == {DB: tuple(of[DB][:1])}
