"""The audit in every engine of the catalog: one chain, whoever writes, and whatever was done to it afterwards shows."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import delete, select, text, update

from appliance.audit import Draft, Head, Result, check, head_of
from appliance.catalog import Catalog, tables
from appliance.catalog.audit import Filter
from appliance.models import new_id
from tests.contract.catalogs import ME, OTHER, Place
from tests.unit.records import NOW


def draft(**changes: Any) -> Draft:
    made = Draft(
        id=new_id(), at_utc=NOW, ended_utc=NOW + timedelta(seconds=2), appliance="", act="run.start", result=Result.OK,
        error="", actor_kind="user", actor_id="u" * 32, actor_name="alice", actor_role="operator", via="console",
        address="192.0.2.7", subject_kind="machine", subject_id="a-uuid", subject_name="web-1", machine="vm:a-uuid",
        details={"full": False, "limit_bytes_s": None},
    )  # fmt: skip
    return replace(made, **changes)


def test_entries_come_back_as_they_went_in(catalog: Catalog) -> None:
    hostile = draft(
        subject_name="web\0\udcff\x1b[31m" + "数" * 5000, error="e" * 5000, ended_utc=None, machine=None,
        details={"names": ["\0", "\ud800", "é"], "size": 1 << 62, "share": 0.1, "when": NOW, "nested": {"deep": [1]}},
    )  # fmt: skip
    added = catalog.audit.append([draft(), hostile])
    assert tuple(catalog.audit.entries()) == added
    assert [entry.number for entry in added] == [1, 2]
    assert {entry.appliance for entry in added} == {ME}
    assert added[1].subject_name.startswith("web\\x00\\udcff\x1b[31m数")
    assert check(catalog.audit.entries()).good
    assert catalog.audit.head() == head_of(added[1])


def test_what_is_there_already_is_not_added_again(catalog: Catalog) -> None:
    first = draft()
    assert len(catalog.audit.append([first, first])) == 1
    assert catalog.audit.append([first]) == ()
    assert len(catalog.audit.append([first, draft()])) == 1
    assert check(catalog.audit.entries()).head == catalog.audit.head()


def test_newest_first_and_by_what_is_asked(catalog: Catalog) -> None:
    catalog.audit.append(
        [
            draft(act=act, actor_name=name)
            for name in ("alice", "bob")
            for act in ("run.start", "run.cancel", "user.save")
        ]
    )
    catalog.audit.append([draft(result=Result.REFUSED, machine="vm:other", subject_id="other")])

    def numbers(limit: int = 50, before: int | None = None, **wanted: str) -> list[int]:
        return [entry.number for entry in catalog.audit.newest(Filter(**wanted), before=before, limit=limit)]

    assert numbers() == [7, 6, 5, 4, 3, 2, 1]
    assert numbers(limit=2) == [7, 6]
    assert numbers(limit=2, before=6) == [5, 4]
    assert numbers(act="run.start") == [7, 4, 1]
    assert numbers(act="run.") == [7, 5, 4, 2, 1]
    assert numbers(act="run_") == []
    assert numbers(actor="bob", act="user.save") == [6]
    assert numbers(machine="vm:other") == numbers(result="refused") == numbers(subject="other") == [7]


def _append(place: Place, me: str, done: Any) -> None:
    with place.open(me) as catalog:
        done.put([entry.number for _ in range(20) for entry in catalog.audit.append([draft(), draft()])])


def test_several_processes_and_appliances_write_one_chain(place: Place, catalog: Catalog) -> None:
    spawn = multiprocessing.get_context("spawn")
    done = spawn.Queue()
    writers = [spawn.Process(target=_append, args=(place, me, done)) for me in (ME, OTHER)]
    for process in writers:
        process.start()
    numbers = sorted(number for _ in writers for number in done.get(timeout=120))
    for process in writers:
        process.join(120)
        assert process.exitcode == 0
    assert numbers == list(range(1, 81))
    assert check(catalog.audit.entries()) == check(list(catalog.audit.entries()))
    assert check(catalog.audit.entries()).good
    assert {entry.appliance for entry in catalog.audit.entries()} == {ME, OTHER}


@pytest.fixture
def heads(catalog: Catalog) -> list[Head]:
    """Of a chain of ten entries."""
    return [head_of(entry) for _ in range(10) for entry in catalog.audit.append([draft()])]


CHANGES = ["act", "result", "error", "actor_name", "actor_id", "via", "address", "subject_name", "appliance", "id"]


@pytest.mark.parametrize("column", CHANGES)
def test_a_changed_entry_shows(catalog: Catalog, heads: list[Head], column: str) -> None:
    with catalog.database.write() as connection:
        connection.execute(update(tables.audit).where(tables.audit.c.number == 4).values({column: "x"}))
        if column == "result":
            connection.execute(update(tables.audit).where(tables.audit.c.number == 4).values(result="failed"))
    verdict = check(catalog.audit.entries())
    assert [flaw.number for flaw in verdict.flaws] == [4]
    assert "not the one that was written" in verdict.flaws[0].what


@pytest.mark.parametrize(
    "values",
    [{"details": {"full": True}}, {"at_utc": NOW + timedelta(microseconds=1)}, {"ended_utc": None}, {"machine": None}],
    ids=str,
)
def test_a_changed_detail_shows(catalog: Catalog, heads: list[Head], values: dict[str, Any]) -> None:
    with catalog.database.write() as connection:
        connection.execute(update(tables.audit).where(tables.audit.c.number == 10).values(values))
    assert [flaw.number for flaw in check(catalog.audit.entries()).flaws] == [10]


def test_removed_entries_show(catalog: Catalog, heads: list[Head]) -> None:
    with catalog.database.write() as connection:
        connection.execute(delete(tables.audit).where(tables.audit.c.number.in_([1, 5, 6])))
    flaws = check(catalog.audit.entries()).flaws
    assert [flaw.what for flaw in flaws] == ["entry 1 is missing", "entries 5 to 6 are missing"]


def test_closing_the_gap_shows(catalog: Catalog, heads: list[Head]) -> None:
    with catalog.database.write() as connection:
        connection.execute(delete(tables.audit).where(tables.audit.c.number == 5))
        for number in range(6, 11):
            connection.execute(update(tables.audit).where(tables.audit.c.number == number).values(number=number - 1))
    flaws = check(catalog.audit.entries(), [heads[-1]]).flaws
    assert flaws[0].number == 5
    assert flaws[-1].what == "entry 10 is missing"


def test_two_entries_in_each_others_place_show(catalog: Catalog, heads: list[Head]) -> None:
    with catalog.database.write() as connection:
        for old, new in ((4, 99), (7, 4), (99, 7)):
            connection.execute(update(tables.audit).where(tables.audit.c.number == old).values(number=new))
    numbers = [flaw.number for flaw in check(catalog.audit.entries()).flaws]
    assert {4, 7} <= set(numbers)


def test_a_chain_that_was_cut_off_shows_to_who_knew_more(catalog: Catalog, heads: list[Head]) -> None:
    with catalog.database.write() as connection:
        connection.execute(delete(tables.audit).where(tables.audit.c.number > 7))
    assert check(catalog.audit.entries()).good, "by itself it is a chain"
    verdict = check(catalog.audit.entries(), [heads[5], heads[9]])
    assert [flaw.what for flaw in verdict.flaws] == ["entries 8 to 10 are missing"]
    assert verdict.head == heads[6]
    assert check(catalog.audit.entries(), [heads[5]]).good


def test_a_chain_that_was_made_anew_shows_to_who_knew_it(catalog: Catalog, heads: list[Head]) -> None:
    """By somebody who knows how hashes are made."""
    entries = list(catalog.audit.entries())
    with catalog.database.write() as connection:
        connection.execute(delete(tables.audit))
    names = {item.name for item in tables.audit.columns} - {"number", "hash"}
    catalog.audit.append(
        [Draft(**{name: getattr(entry, name) for name in names} | {"error": "x"}) for entry in entries]
    )
    assert check(catalog.audit.entries()).good
    (flaw,) = check(catalog.audit.entries(), [heads[4]]).flaws
    assert "made anew" in flaw.what


def test_an_inserted_entry_takes_the_place_of_another(catalog: Catalog, heads: list[Head]) -> None:
    """Numbers are a key, so whoever inserts has to move the others, and those show."""
    with catalog.database.write() as connection:
        for number in range(10, 4, -1):
            connection.execute(update(tables.audit).where(tables.audit.c.number == number).values(number=number + 1))
        row = dict(connection.execute(select(tables.audit).where(tables.audit.c.number == 4)).one()._mapping)
        connection.execute(tables.audit.insert().values(row | {"number": 5, "id": new_id()}))
    numbers = [flaw.number for flaw in check(catalog.audit.entries()).flaws]
    assert numbers[0] == 5


def test_many_entries_are_read_some_at_a_time(catalog: Catalog) -> None:
    catalog.audit.append([draft() for _ in range(2500)])
    assert [entry.number for entry in catalog.audit.entries()] == list(range(1, 2501))
    assert [entry.number for entry in catalog.audit.entries(after=2498)] == [2499, 2500]
    with catalog.database.read() as connection:
        plan = "EXPLAIN QUERY PLAN" if not catalog.database.is_shared else "EXPLAIN"
        found = connection.execute(text(f"{plan} SELECT max(number) FROM audit")).all()
    assert "scan audit" not in str(found).lower(), "the end of the chain is looked up"
