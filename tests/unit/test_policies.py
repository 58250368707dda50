"""Policies: the JSON form, what is refused, and the example of the documentation."""

from __future__ import annotations

import json
import re
from datetime import time, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.policy.errors import PolicyInvalid
from appliance.policy.policies import Policy, assign, read_policy
from appliance.policy.retention import Rules
from appliance.policy.schedules import Schedule
from appliance.policy.selectors import Clause, Kind, Machine, Selector
from appliance.policy.windows import Span, Window

SMALL: dict[str, Any] = {
    "version": 1,
    "name": "nightly",
    "select": {"include": [{"all": True}]},
    "schedule": {"cron": "0 22 * * *"},
}


def test_what_is_left_out_has_a_default() -> None:
    assert read_policy(SMALL) == Policy("nightly", Selector((Clause(),)), Schedule("0 22 * * *", "UTC"))


def test_the_example_of_the_documentation_is_a_policy() -> None:
    text = (Path(__file__).parents[2] / "docs/policies.md").read_text()
    found = re.search(r"```json\n(.*?)```", text, re.DOTALL)
    assert found is not None
    value = json.loads(found[1])
    policy = read_policy(value)
    assert policy.to_json() == value, "it shows every field"
    assert policy.window is not None
    assert policy.rpo == timedelta(hours=26)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": None}, "version: it must be 1"),
        ({"version": 2}, "version: it must be 1, not 2"),
        ({"version": True}, "not True"),
        ({"name": "../x"}, "'../x' is no name"),
        ({"name": None}, "'' is no name"),
        ({"select": None}, "policy.select: it must be an object"),
        ({"schedule": None}, "policy.schedule: it must be an object"),
        ({"schedule": {}}, "policy.schedule.cron: it is missing"),
        ({"schedule": {"cron": "0 22 * * *", "zone": "Mars/Base"}}, "no time zone 'Mars/Base'"),
        ({"per_host": 0}, "per_host: it must be a whole number from 1 to 1000, not 0"),
        ({"per_host": 1.5}, "not 1.5"),
        ({"per_host": 10**5000}, "a number that large"),
        ({"limit_bytes_s": 0}, "limit_bytes_s"),
        ({"quiesce": "yes"}, "quiesce: it must be true or false"),
        ({"copies": ["a", "a"]}, "each one once"),
        ({"copies": [""]}, r"copies\[0\]"),
        ({"rpo_minutes": 0}, "rpo_minutes"),
        ({"retention": {}}, "no rule says what is kept"),
        ({"retention": {"daily": -1}}, "retention.daily"),
        ({"retention": {"dayly": 1}}, "no field 'dayly'"),
        ({"windows": []}, "no field 'windows'"),
    ],
)
def test_what_is_no_policy_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(PolicyInvalid, match=says) as caught:
        read_policy(SMALL | change)
    assert caught.value.hint


def test_a_policy_of_a_newer_strongroom_says_so() -> None:
    with pytest.raises(PolicyInvalid) as caught:
        read_policy(SMALL | {"version": 2})
    assert "newer" in caught.value.hint


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


_SPAN = st.builds(Span, st.frozensets(st.integers(0, 6), min_size=1), *(st.builds(time, st.integers(0, 23)),) * 2)
_RULES = st.builds(Rules, *(st.integers(0, 99),) * 6, optional(st.integers(1, 999).map(lambda h: timedelta(hours=h))))
POLICIES = st.builds(
    Policy,
    name=st.from_regex(r"[a-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    select=st.just(Selector((Clause(tag="gold"),), (Clause(name="*-test"),))),
    schedule=st.builds(
        Schedule, st.sampled_from(["0 22 * * *", "*/5 * * * MON"]), st.sampled_from(["UTC", "Asia/Tokyo"])
    ),
    retention=_RULES,
    window=optional(st.builds(Window, st.lists(_SPAN, min_size=1, max_size=3).map(tuple))),
    limit_bytes_s=optional(st.integers(1024, 1 << 40)),
    per_host=st.integers(1, 100),
    spread_s=st.integers(0, 3600),
    quiesce=st.booleans(),
    verify_every_days=optional(st.integers(1, 400)),
    copies=st.lists(st.sampled_from(["vault", "s3 paris"]), unique=True).map(tuple),
    rpo=optional(st.integers(1, 9999).map(lambda minutes: timedelta(minutes=minutes))),
)


@given(POLICIES)
def test_json_and_back(policy: Policy) -> None:
    assert read_policy(json.loads(json.dumps(policy.to_json()))) == policy


def test_assignment_names_every_policy_of_a_machine() -> None:
    every, gold = read_policy(SMALL), read_policy(SMALL | {"name": "gold", "select": {"include": [{"tag": "gold"}]}})
    machines = [Machine(Kind.VM, "1", "a", "h", frozenset({"gold"})), Machine(Kind.VM, "2", "b", "h"),
                Machine(Kind.IMAGE, "i", "i")]  # fmt: skip
    assert assign([every, gold], machines) == {"vm:1": ("gold", "nightly"), "vm:2": ("nightly",), "image:i": ()}
