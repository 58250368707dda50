"""Notices in every engine of the catalog: each thing is in one place at any time, so that nothing is told twice, and
nothing is lost."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from sqlalchemy import select

from appliance.catalog import Catalog, tables
from appliance.models import ReadKind, RunRecord, RunState, new_id
from appliance.notices.records import Concern, Delivery, DeliveryState, Kind, Notice, Urgency
from appliance.proofs import Reading, Verification
from tests.unit.records import NOW, machine_record, point_record

LATER = NOW + timedelta(minutes=1)


def ended(name: str, state: RunState = RunState.FAILED, minutes: int = 0) -> RunRecord:
    moment = NOW + timedelta(minutes=minutes)
    return RunRecord(new_id(), name, "vm", f"uuid of {name}", "here", state, moment, moment, error="no space")


def concern(key: str, kind: Kind = Kind.FAILED, *, lasting: bool = False) -> Concern:
    return Concern(new_id(), kind, key, "web-1 on here", "no space", lasting, NOW)


def notice(kind: Kind = Kind.FAILED, minutes: int = 0) -> Notice:
    return Notice(
        new_id(), kind, Urgency.FAILURE, NOW + timedelta(minutes=minutes), "title ‹ü›", "one\ntwo", 500
    )  # fmt: skip


def test_a_run_is_looked_at_once_when_it_is_over(catalog: Catalog) -> None:
    waits = replace(ended("a", RunState.QUEUED), ended_utc=None)
    done, failed = ended("b", RunState.SUCCEEDED, 2), ended("c", minutes=1)
    for run in (waits, done, failed):
        catalog.runs.save(run)
    assert [run.name for run in catalog.notices.unnoticed_runs(10)] == ["c", "b"]
    assert [run.name for run in catalog.notices.unnoticed_runs(1)] == ["c"]
    catalog.notices.keep([concern("r")], (), runs=[failed.id, done.id], now_utc=LATER)
    assert catalog.notices.unnoticed_runs(10) == ()
    catalog.runs.save(replace(catalog.runs.get(failed.id), dismissed_utc=LATER))  # nobody's news
    assert catalog.notices.unnoticed_runs(10) == ()
    catalog.runs.save(replace(catalog.runs.get(waits.id), state=RunState.FAILED, ended_utc=LATER))
    assert [run.name for run in catalog.notices.unnoticed_runs(10)] == ["a"]


def test_old_runs_become_history(catalog: Catalog) -> None:
    for number in range(3):
        catalog.runs.save(ended(f"m{number}", minutes=number))
    catalog.notices.forget_older_runs(NOW + timedelta(minutes=2), LATER)
    assert [run.name for run in catalog.notices.unnoticed_runs(10)] == ["m2"]


def test_what_happened_goes_into_the_notice_and_what_lasts_is_marked(catalog: Catalog) -> None:
    event, lasting, other = concern("e"), concern("l", Kind.THAW, lasting=True), concern("o", Kind.THAW, lasting=True)
    catalog.notices.keep([event, lasting, other], (), state={"points": {"points": 5, "gone": []}}, now_utc=NOW)
    assert set(catalog.notices.concerns()) == {event, lasting, other}
    told = notice()
    catalog.notices.tell(told, ["mail", "ops"], [event, lasting], state={"digest": "2026"})
    assert set(catalog.notices.concerns()) == {replace(lasting, told_utc=told.created_utc), other}
    ((kept, deliveries),) = catalog.notices.list(10)
    assert kept == told
    assert [(each.target, each.state, each.attempts) for each in deliveries] == [
        ("mail", DeliveryState.WAITING, 0),
        ("ops", DeliveryState.WAITING, 0),
    ]
    assert catalog.notices.state("points") == {"points": 5, "gone": []}
    assert (catalog.notices.state("digest"), catalog.notices.state("none")) == ("2026", None)
    assert catalog.notices.last_told() == {Kind.FAILED: told.created_utc}
    catalog.notices.keep((), [lasting.id], now_utc=LATER)
    assert catalog.notices.concerns() == (other,)


def test_hundreds_are_kept_and_told_at_once(catalog: Catalog) -> None:
    many = [concern(f"r{number}", lasting=number % 2 == 0) for number in range(1201)]
    catalog.notices.keep(many, (), now_utc=NOW)
    catalog.notices.tell(notice(), ["ops"], many)
    left = catalog.notices.concerns()
    assert len(left) == 601
    assert all(each.lasting and each.told_utc is not None for each in left)
    catalog.notices.keep((), [each.id for each in left], now_utc=NOW)
    assert catalog.notices.concerns() == ()


def test_a_delivery_waits_until_it_is_over(catalog: Catalog) -> None:
    first, second = notice(), notice(Kind.DIGEST, 1)
    catalog.notices.tell(second, ["ops"])
    catalog.notices.tell(first, ["ops", "mail"])
    assert [(each.id, delivery.target) for each, delivery in catalog.notices.waiting()] == [
        (first.id, "mail"), (first.id, "ops"), (second.id, "ops"),
    ]  # fmt: skip
    catalog.notices.settle(Delivery(first.id, "mail", DeliveryState.SENT, 1, LATER))
    lost = Delivery(first.id, "ops", DeliveryState.GIVEN_UP, 9, LATER, "it does not answer")
    catalog.notices.settle(lost)
    assert [(each, delivery.target) for each, delivery in catalog.notices.waiting()] == [(second, "ops")]
    assert catalog.notices.last_deliveries() == {
        "mail": Delivery(first.id, "mail", DeliveryState.SENT, 1, LATER), "ops": lost,
    }  # fmt: skip
    assert catalog.notices.given_up(NOW) == (lost,)
    assert catalog.notices.given_up(LATER + timedelta(seconds=1)) == ()


def test_old_notices_are_forgotten_unless_somebody_waits_for_them(catalog: Catalog) -> None:
    sent, waits, new = notice(), notice(), notice(minutes=60)
    for each in (sent, waits, new):
        catalog.notices.tell(each, ["ops"])
    catalog.notices.settle(Delivery(sent.id, "ops", DeliveryState.SENT, 1, LATER))
    catalog.notices.settle(Delivery(new.id, "ops", DeliveryState.SENT, 1, LATER))
    catalog.notices.forget(NOW + timedelta(minutes=30))
    assert {each.id for each, _ in catalog.notices.list(10)} == {waits.id, new.id}
    with catalog.database.read() as connection:
        assert len(connection.execute(select(tables.notice_deliveries)).all()) == 2


def test_a_verification_is_looked_at_once(catalog: Catalog) -> None:
    first = Verification(new_id(), NOW, LATER, Reading.DATA, 30, 1 << 41, 3, ("1" * 32, "2" * 32))
    second = Verification(new_id(), LATER, LATER, Reading.TABLES, 1, 0, 0)
    for each in (second, first):
        catalog.proofs.verified(each)
    assert catalog.notices.unnoticed_verifications() == (first, second)
    catalog.notices.keep((), (), verifications=[first.id], now_utc=LATER)
    assert catalog.notices.unnoticed_verifications() == (second,)


def test_what_happened_in_a_span_is_counted(catalog: Catalog) -> None:
    for minutes, state in enumerate((RunState.SUCCEEDED, RunState.FAILED, RunState.FAILED, RunState.PARTIAL)):
        catalog.runs.save(ended(f"m{minutes}", state, minutes))
    history = catalog.history
    begin, end = NOW + timedelta(minutes=1), NOW + timedelta(minutes=3)
    assert history.runs_by_state(begin, end) == {RunState.FAILED: 2}
    assert history.runs_by_state(NOW, NOW + timedelta(days=1)) == {
        RunState.SUCCEEDED: 1, RunState.FAILED: 2, RunState.PARTIAL: 1,
    }  # fmt: skip
    assert [run.name for run in history.runs((RunState.FAILED, RunState.PARTIAL), begin, end, 1)] == ["m1"]
    points = [
        point_record(generation=number, kind=ReadKind.INCREMENTAL if number else ReadKind.FULL, stored_bytes=number + 1)
        for number in range(4)
    ]
    for point in points:
        catalog.points.add(machine_record(), point)
    assert history.points() == 4
    made = history.points_made(NOW + timedelta(hours=1), NOW + timedelta(hours=3))
    assert (made.points, made.read_bytes, made.stored_bytes) == (2, 6, 5)
    assert history.points_made(LATER + timedelta(days=9), LATER + timedelta(days=10)).points == 0
    assert history.stored_before(points[3], 10) == [3, 2]
    assert history.stored_before(points[3], 1) == [3]
    assert {each.id for each in history.points_of([points[1].id, new_id()])} == {points[1].id}
