"""Selectors: what is selected, by which clause, and what is refused; names that want to cost time get none."""

from __future__ import annotations

import fnmatch
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.policy.crowds import Crowd
from appliance.policy.errors import PolicyInvalid
from appliance.policy.selectors import Clause, Kind, Machine, Selector, read_selector

WEB = Machine(Kind.VM, "u1", "web-1", "kvm1", frozenset({"gold", "site=berlin"}))
TEST = Machine(Kind.VM, "u2", "web-1-test", "kvm2")
DISK = Machine(Kind.IMAGE, "web-disk", "web-disk")


def decide(value: object, machine: Machine) -> tuple[bool, str]:
    found = read_selector(value, "select").decide(machine)
    return found.selected, found.reason


@pytest.mark.parametrize(
    ("include", "selected"),
    [
        ({"all": True}, [WEB, TEST]),
        ({"host": "kvm1"}, [WEB]),
        ({"host": "kvm?"}, [WEB, TEST]),
        ({"name": "web-1"}, [WEB]),
        ({"name": "web-*"}, [WEB, TEST]),
        ({"name": "WEB-*"}, []),
        ({"tag": "gold"}, [WEB]),
        ({"tag": "site=*"}, [WEB]),
        ({"host": "kvm2", "name": "web-*"}, [TEST]),
        ({"host": "kvm2", "tag": "gold"}, []),
        ({"image": "*"}, [DISK]),
        ({"image": "other"}, []),
        ({"name": "web-[1]*"}, []),
    ],
)
def test_a_clause_selects_what_all_of_it_fits(include: object, selected: list[Machine]) -> None:
    assert [each for each in (WEB, TEST, DISK) if decide({"include": [include]}, each)[0]] == selected


def test_a_decision_names_its_clause() -> None:
    rule = {"include": [{"host": "kvm1", "name": "db-*"}, {"all": True}], "exclude": [{"name": "*-test"}]}
    assert decide(rule, WEB) == (True, "selected by: every virtual machine")
    assert decide(rule, TEST) == (False, "excluded by: name *-test")
    assert decide(rule, DISK) == (False, "no clause selects it")
    named = Machine(Kind.VM, "u3", "db-1", "kvm1")
    assert decide(rule, named) == (True, "selected by: host kvm1 and name db-*")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "select: it must be an object"),
        ({}, "select.include: no clause"),
        ({"include": []}, "select.include: no clause"),
        ({"include": {"all": True}}, "select.include: it must be a list"),
        ({"include": ["web"]}, r"select.include\[0\]: it must be an object"),
        ({"include": [{"all": True}, {}]}, r"select.include\[1\]: it says nothing"),
        ({"include": [{"all": False}]}, "it is true, or left out"),
        ({"include": [{"all": True, "name": "a"}]}, "all is stated alone"),
        ({"include": [{"image": "a", "host": "b"}]}, "image is stated alone"),
        ({"include": [{"nmae": "web"}]}, "there is no field 'nmae'"),
        ({"include": [{"name": ""}]}, "text of 1 to 200"),
        ({"include": [{"name": "a\n"}]}, "printable"),
        ({"include": [{"name": "a" * 201}]}, "200"),
        ({"include": [{"name": 7}]}, "not 7"),
        ({"include": [{"all": True}] * 1001}, "at most 1000"),
    ],
)
def test_what_is_no_selector_is_refused_with_its_place(value: object, says: str) -> None:
    with pytest.raises(PolicyInvalid, match=says):
        read_selector(value, "select")


def test_the_word_that_was_meant_is_proposed() -> None:
    with pytest.raises(PolicyInvalid) as caught:
        read_selector({"include": [{"nmae": "web"}]}, "select")
    assert caught.value.hint == "Did you mean name?"


def test_hostile_names_and_patterns_cost_little() -> None:
    """A matcher that tries all ways would not come back from any of these."""
    name = Machine(Kind.VM, "u", "a" * 1024, "h")
    assert not Selector((Clause(name="*a" * 100 + "b"),)).decide(name).selected
    assert Selector((Clause(name="*" * 200),)).decide(name).selected
    assert not Selector((Clause(name="?*" * 99 + "b"),)).decide(name).selected
    huge = Machine(Kind.VM, "u", "a" * 5_000_000, "h")
    assert not Selector((Clause(name="*a" * 100),)).decide(huge).selected
    assert Selector((Clause(),)).decide(huge).selected, "what asks for no name does not care"


@given(st.text("ab*?", max_size=8), st.text("ab\n", max_size=10))
def test_patterns_are_those_of_the_shell(pattern: str, name: str) -> None:
    if pattern:
        found = Selector((Clause(name=pattern),)).decide(Machine(Kind.VM, "u", name)).selected
        assert found == fnmatch.fnmatchcase(name, pattern)


_PATTERN = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=20)
_VM = st.builds(Clause, st.none() | _PATTERN, st.none() | _PATTERN, st.none() | _PATTERN)
_CLAUSE = _VM | st.builds(Clause, image=_PATTERN)


@given(st.builds(Selector, st.lists(_CLAUSE, min_size=1, max_size=4).map(tuple), st.lists(_CLAUSE).map(tuple)))
def test_json_and_back(selector: Selector) -> None:
    assert read_selector(selector.to_json(), "select") == selector


_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["include", "exclude", "all", "host", "name", "tag", "image", "x"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@settings(max_examples=40)
@given(_JSON)
def test_anything_else_is_an_error_for_people(value: object) -> None:
    refused: list[PolicyInvalid] = []
    try:
        read_selector(value, "select")
    except PolicyInvalid as err:
        refused.append(err)
    assert all(err.where.startswith("select") and len(err.sentence) < 300 for err in refused)


TEXTS = st.text("ab*?-[", max_size=5)
SOME = st.none() | TEXTS
CLAUSES = st.builds(Clause, SOME, SOME, SOME) | st.builds(Clause, image=TEXTS)
MACHINES = st.builds(
    Machine, st.sampled_from(Kind), st.uuids().map(str), TEXTS, SOME, st.frozensets(TEXTS, max_size=3)
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.lists(MACHINES, max_size=12), st.lists(CLAUSES, min_size=1, max_size=3), st.lists(CLAUSES, max_size=2)
)  # fmt: skip
def test_a_crowd_is_selected_as_each_of_it_is(
    machines: list[Machine], include: list[Clause], exclude: list[Clause]
) -> None:
    selector = Selector(tuple(include), tuple(exclude))
    alone = {number for number, machine in enumerate(machines) if selector.decide(machine).selected}
    assert Crowd(machines).selected(selector) == alone
