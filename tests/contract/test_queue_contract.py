"""The queue of runs in every engine of the catalog: a run is taken once, by whose it is, and never lost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from appliance.catalog import Catalog
from appliance.catalog.errors import KeyUsedOtherwise, RecordMissing, RunEnded
from appliance.catalog.once import KEPT, Once
from appliance.models import ApplianceRecord, RunArguments, RunKind, RunRecord, RunState, new_id
from tests.contract.catalogs import ME, OTHER, Place
from tests.unit.records import NOW

LATER = NOW + timedelta(hours=1)


def machine(name: str = "web", uuid: str | None = "u", host: str = "here") -> RunRecord:
    return RunRecord(new_id(), name, "vm", uuid, host, RunState.QUEUED, NOW, asked_utc=NOW)


def image(name: str = "web") -> RunRecord:
    return replace(machine(name, None), machine_kind="image", host=None, image_path="/srv/web", image_format="raw")


def test_a_machine_waits_once(catalog: Catalog, other: Catalog) -> None:
    first = catalog.queue.put(machine())
    assert catalog.queue.put(machine("web-renamed")).id == first.id
    assert catalog.queue.put(replace(machine(), full_read=True)) == replace(first, full_read=True)
    by_name = catalog.queue.put(machine("db", None))
    assert catalog.queue.put(machine("db", None)).id == by_name.id
    assert catalog.queue.put(machine("db", "u2")).id == by_name.id, "it may be that one"
    others = [
        catalog.queue.put(machine("db", None, "rack2")),
        catalog.queue.put(image()),
        catalog.queue.put(image("db")),
        other.queue.put(image()),  # of another appliance, it may be another image
    ]
    ids = [first.id, by_name.id, *(run.id for run in others)]
    assert sorted(ids) == sorted(run.id for run in catalog.queue.waiting(everyones=True))
    assert len(set(ids)) == 6
    claimed = catalog.queue.claim(first.id, NOW)
    assert claimed is not None
    assert catalog.queue.put(machine()).id != first.id, "one that runs does not wait"


def test_who_asks_again_is_not_made_to_wait(catalog: Catalog) -> None:
    attempt = catalog.queue.claim(catalog.queue.put(replace(machine(), limit_bytes_s=5, full_read=True)).id, NOW)
    assert attempt is not None
    put_off = replace(attempt, state=RunState.QUEUED, not_before_utc=LATER, error="away")
    catalog.queue.settle(attempt, put_off, NOW)
    assert catalog.queue.due(NOW) == ()
    asked = catalog.queue.put(replace(machine(), limit_bytes_s=7))
    assert asked == replace(put_off, not_before_utc=None, limit_bytes_s=7)
    assert catalog.queue.due(NOW) == (asked,)


def test_what_is_asked_under_a_key_is_the_same_run_for_a_day(catalog: Catalog) -> None:
    key = Once("token-1", "nightly-7", "a" * 64, NOW)
    assert catalog.queue.asked_before(key) is None
    first = catalog.queue.put(machine(), key)
    assert catalog.queue.put(machine("db", "u2"), Once("token-1", "another", "b" * 64, NOW)).id != first.id
    claimed = catalog.queue.claim(first.id, NOW)
    assert claimed is not None
    almost = replace(key, now_utc=NOW + KEPT - timedelta(seconds=1))
    assert catalog.queue.put(machine(), almost) == catalog.queue.asked_before(almost) == claimed
    assert catalog.queue.put(machine(), replace(key, actor="token-2")).id != first.id, "keys are of their actors"
    with pytest.raises(KeyUsedOtherwise, match="nightly-7"):
        catalog.queue.asked_before(replace(key, asked="c" * 64))
    with pytest.raises(KeyUsedOtherwise):
        catalog.queue.put(machine(), replace(key, asked="c" * 64))
    late = replace(key, asked="c" * 64, now_utc=NOW + KEPT)
    assert catalog.queue.asked_before(late) is None
    again = catalog.queue.put(machine(), late)
    assert again.id != first.id
    assert catalog.queue.asked_before(late) == again


def test_many_that_ask_at_once_under_one_key_get_one_run(place: Place, catalog: Catalog) -> None:
    key = Once("token-1", "k", "a" * 64, NOW)

    def ask(number: int) -> str:
        with place.open() as mine:
            return mine.queue.put(machine(f"m{number}", f"u{number}"), key).id

    with ThreadPoolExecutor(4) as pool:
        ids = set(pool.map(ask, range(8)))
    assert len(ids) == 1
    assert {run.id for run in catalog.queue.waiting()} == ids


def test_nothing_is_queued_for_an_appliance_that_is_not_there(catalog: Catalog, other: Catalog) -> None:
    run = replace(machine(), appliance=OTHER)
    with pytest.raises(RecordMissing, match=OTHER):
        catalog.queue.put(run)
    assert catalog.queue.waiting(everyones=True) == ()
    other.appliances.join(ApplianceRecord(OTHER, NOW, "hv2", "/home", "p", NOW), "file")
    assert catalog.queue.put(run) == run
    assert other.queue.due(NOW) == (run,)
    catalog.appliances.take_over(OTHER)
    with pytest.raises(RecordMissing, match=OTHER):
        catalog.queue.put(replace(image(), appliance=OTHER))


@pytest.mark.parametrize("ahead", [timedelta(days=366), timedelta(days=3)])
def test_what_was_put_off_while_the_clock_was_wrong_waits_for_nothing(catalog: Catalog, ahead: timedelta) -> None:
    attempt = catalog.queue.claim(catalog.queue.put(machine()).id, NOW + ahead)
    assert attempt is not None
    put_off = replace(attempt, state=RunState.QUEUED, not_before_utc=NOW + ahead + timedelta(hours=1), error="away")
    catalog.queue.settle(attempt, put_off, NOW + ahead)
    assert catalog.queue.due(NOW + ahead) == ()
    assert catalog.queue.claim(put_off.id, NOW + ahead) is None
    assert catalog.queue.due(NOW) == (put_off,)
    assert catalog.queue.next_due(NOW) is None
    again = catalog.queue.claim(put_off.id, NOW)
    assert again is not None
    assert (again.attempts, again.not_before_utc) == (2, None)


def test_many_that_claim_one_at_once_are_answered_once(place: Place, catalog: Catalog) -> None:
    runs = [catalog.queue.put(image(f"image-{number}")) for number in range(6)]

    def claim_all() -> list[str]:
        with place.open() as mine:
            return [run.id for run in runs if mine.queue.claim(run.id, NOW) is not None]

    with ThreadPoolExecutor(4) as pool:
        claimed = [id for done in [pool.submit(claim_all) for _ in range(4)] for id in done.result(60)]
    assert sorted(claimed) == sorted(run.id for run in runs)
    assert all(run.state is RunState.RUNNING and run.attempts == 1 for run in catalog.runs.list())


def test_only_what_is_due_and_one_s_own_is_claimed(catalog: Catalog, other: Catalog) -> None:
    run = catalog.queue.put(image())
    assert other.queue.claim(run.id, NOW) is None
    assert other.queue.due(NOW) == ()
    assert catalog.queue.claim(new_id(), NOW) is None
    attempt = catalog.queue.claim(run.id, NOW)
    assert attempt is not None
    assert attempt == replace(run, state=RunState.RUNNING, attempts=1)
    back = replace(attempt, state=RunState.QUEUED, not_before_utc=LATER, error="away")
    assert catalog.queue.settle(attempt, back, NOW) == back
    assert catalog.queue.claim(run.id, LATER - timedelta(seconds=1)) is None
    assert catalog.queue.due(NOW) == ()
    assert catalog.queue.next_due(NOW) == LATER
    assert other.queue.next_due(NOW) is None
    assert catalog.queue.due(LATER) == catalog.queue.due(LATER, id=run.id) == (back,)
    assert catalog.queue.next_due(LATER) is None
    assert catalog.queue.due(LATER, id=new_id()) == ()
    assert catalog.queue.hurry(run.id) == replace(back, not_before_utc=None)
    second = catalog.queue.claim(run.id, NOW)
    assert second is not None
    assert (second.attempts, second.error) == (2, "away")
    assert catalog.queue.hurry(run.id) == second, "one that runs is left alone"


def test_one_machine_is_never_claimed_twice_at_once(catalog: Catalog, other: Catalog) -> None:
    begun_at_once = replace(machine(), asked_utc=None, state=RunState.RUNNING)
    catalog.runs.save(begun_at_once)
    waits, elsewhere = catalog.queue.put(machine()), other.queue.put(machine())
    assert catalog.queue.due(NOW) == ()
    assert catalog.queue.claim(waits.id, NOW) is None
    assert catalog.runs.get(waits.id) == waits
    assert other.queue.claim(elsewhere.id, NOW) is not None, "of another appliance only its lease tells"
    catalog.runs.save(replace(begun_at_once, state=RunState.SUCCEEDED, ended_utc=NOW))
    assert catalog.queue.due(NOW) == (waits,)
    assert catalog.queue.claim(waits.id, NOW) is not None


def test_a_cancellation_is_not_lost(catalog: Catalog, other: Catalog) -> None:
    waits = catalog.queue.put(image("waits"))
    cancelled = other.queue.cancel(waits.id, LATER)
    assert (cancelled.state, cancelled.ended_utc) == (RunState.CANCELLED, LATER)
    assert catalog.queue.claim(waits.id, LATER) is None
    with pytest.raises(RunEnded, match="cancelled"):
        catalog.queue.cancel(waits.id, LATER)

    for number, (ended, becomes) in enumerate(
        [
            ({"state": RunState.QUEUED, "error": "it was ended by SIGTERM"}, RunState.CANCELLED),
            ({"state": RunState.FAILED, "error": "it was ended by SIGTERM"}, RunState.CANCELLED),
            ({"state": RunState.SUCCEEDED, "point": "1" * 32}, RunState.SUCCEEDED),
        ]
    ):
        attempt = catalog.queue.claim(catalog.queue.put(image(f"runs-{number}")).id, NOW)
        assert attempt is not None
        assert not catalog.queue.cancel_asked(attempt.id)
        assert other.queue.cancel(attempt.id, NOW).state is RunState.RUNNING, "its process ends it"
        assert catalog.queue.cancel_asked(attempt.id)
        assert catalog.queue.settle(attempt, replace(attempt, **ended), NOW).state is becomes  # type: ignore[arg-type]
        assert catalog.runs.get(attempt.id).state is becomes


def test_what_an_earlier_attempt_tells_late_counts_for_nothing(catalog: Catalog) -> None:
    run = catalog.queue.put(image())
    first = catalog.queue.claim(run.id, NOW)
    assert first is not None
    catalog.queue.settle(first, replace(first, state=RunState.QUEUED), NOW)
    second = catalog.queue.claim(run.id, NOW)
    assert second is not None
    catalog.queue.settle(first, replace(first, state=RunState.FAILED, error="dead"), NOW)
    assert catalog.runs.get(run.id) == second
    catalog.queue.settle(second, replace(first, state=RunState.SUCCEEDED, ended_utc=NOW), NOW)
    catalog.queue.settle(second, replace(first, state=RunState.FAILED), NOW)
    assert catalog.runs.get(run.id).state is RunState.SUCCEEDED


def test_an_attempt_whose_number_was_given_again_is_another(catalog: Catalog) -> None:
    """What was no failure does not count: the next attempt has the same number."""
    first = catalog.queue.claim(catalog.queue.put(image()).id, NOW)
    assert first is not None
    catalog.queue.settle(first, replace(first, state=RunState.QUEUED, attempts=0, error="busy"), NOW)
    second = catalog.queue.claim(first.id, LATER)
    assert second is not None
    assert second.attempts == first.attempts
    catalog.queue.settle(first, replace(first, state=RunState.INTERRUPTED, error="its process ended"), LATER)
    assert catalog.runs.get(first.id) == second


def test_one_that_waits_is_settled_by_the_point_that_it_made(catalog: Catalog) -> None:
    first = catalog.queue.claim(catalog.queue.put(image()).id, NOW)
    assert first is not None
    waits = catalog.queue.settle(first, replace(first, state=RunState.QUEUED, error="away"), NOW)
    made = replace(waits, state=RunState.SUCCEEDED, point="1" * 32, ended_utc=NOW, error=None)
    second = catalog.queue.claim(first.id, LATER)
    assert second is not None
    catalog.queue.settle(waits, made, LATER)
    assert catalog.runs.get(first.id) == second, "the one that is at it finds the point itself"
    waits = catalog.queue.settle(second, replace(second, state=RunState.QUEUED), LATER)
    assert catalog.queue.settle(waits, made, LATER) == catalog.runs.get(first.id)
    with pytest.raises(RunEnded, match="succeeded"):
        catalog.queue.cancel(first.id, LATER)


def test_what_waits_is_taken_over_and_tells_nothing_of_its_machine(catalog: Catalog, other: Catalog) -> None:
    failed = replace(machine(), asked_utc=None, state=RunState.FAILED, ended_utc=NOW, appliance=ME)
    catalog.runs.save(failed)
    other.appliances.join(ApplianceRecord(OTHER, NOW, "hv2", "/home", "p", NOW), "file")
    waits = other.queue.put(replace(machine(), started_utc=LATER))
    assert other.appliances.under_way(OTHER)["runs"] == 1
    catalog.appliances.take_over(OTHER)
    taken = replace(waits, appliance=ME)
    assert catalog.queue.due(LATER) == (taken,)
    assert catalog.runs.last() == (failed,)
    catalog.queue.cancel(waits.id, LATER)
    assert catalog.runs.last() == (failed,)


def test_runs_are_found_by_the_beginning_of_their_id(catalog: Catalog) -> None:
    run = catalog.queue.put(replace(image(), id="ab" * 16))
    catalog.queue.put(replace(image("other"), id="ac" * 16))
    assert catalog.runs.find("abab") == run
    for wanted in ("a", "", "%", "ff"):
        with pytest.raises(RecordMissing):
            catalog.runs.find(wanted)


def whole(kind: RunKind, name: str = "repository", **arguments: bool | str) -> RunRecord:
    given = replace(RunArguments(), **arguments)  # type: ignore[arg-type]
    return replace(machine(name, None), machine_kind="repository", host=None, kind=kind, arguments=given)


def restore() -> RunRecord:
    return replace(machine(), kind=RunKind.RESTORE, arguments=RunArguments("p", new_name="copy", names=("a", "b")))


def test_what_a_run_is_to_do_is_kept(catalog: Catalog) -> None:
    asked = catalog.queue.put(restore())
    assert catalog.runs.get(asked.id) == asked
    assert catalog.runs.get(asked.id).arguments == RunArguments("p", new_name="copy", names=("a", "b"))
    assert catalog.runs.get(catalog.queue.put(machine()).id).arguments is None


def test_only_the_same_work_waits_once_and_goes_by_what_was_asked_last(catalog: Catalog) -> None:
    backup = catalog.queue.put(machine())
    restores = {catalog.queue.put(restore()).id for _ in range(2)}
    assert len(restores | {backup.id}) == 3, "each restore is one of its own"
    verify = catalog.queue.put(whole(RunKind.VERIFY))
    assert catalog.queue.put(whole(RunKind.VERIFY, read_data=True)) == replace(
        verify, arguments=RunArguments(read_data=True)
    )
    copies = {catalog.queue.put(whole(RunKind.COPY, home, home=home)).id for home in ("/a", "/b", "/a")}
    assert len(copies | {verify.id, catalog.queue.put(whole(RunKind.COLLECT)).id}) == 4


def test_restores_come_first_and_what_reads_everything_last_and_one_at_a_time(catalog: Catalog) -> None:
    later = replace(machine("db", "u2"), asked_utc=LATER)
    asked = [whole(RunKind.VERIFY), whole(RunKind.COLLECT), machine(), later, replace(restore(), asked_utc=LATER)]
    verify, collect, backup, second, first = (catalog.queue.put(run).id for run in asked)
    assert [run.id for run in catalog.queue.due(NOW)] == [first, backup, second, *sorted([verify, collect])]
    assert catalog.queue.claim(verify, NOW) is not None
    assert catalog.queue.claim(collect, NOW) is None, "two would only be in each other's way"
    assert [run.id for run in catalog.queue.due(NOW)] == [first, backup, second]
    for id in (backup, second, first, catalog.queue.put(restore()).id):
        assert catalog.queue.claim(id, NOW) is not None, "these run beside each other, and beside that"


def test_work_that_was_done_when_it_was_cancelled_is_done(catalog: Catalog) -> None:
    attempt = catalog.queue.claim(catalog.queue.put(whole(RunKind.COLLECT)).id, NOW)
    assert attempt is not None
    catalog.queue.cancel(attempt.id, NOW)
    done = catalog.queue.settle(attempt, replace(attempt, state=RunState.SUCCEEDED, result="freed"), NOW)
    assert (done.state, done.result) == (RunState.SUCCEEDED, "freed")


def test_each_kind_of_work_has_a_history_of_its_own(catalog: Catalog) -> None:
    backup = replace(machine(), state=RunState.SUCCEEDED)
    failed = replace(restore(), state=RunState.FAILED, started_utc=LATER)
    for run in (backup, failed, replace(whole(RunKind.VERIFY), state=RunState.FAILED)):
        catalog.runs.save(run)
    assert {(run.kind, run.state) for run in catalog.runs.last()} == {
        (RunKind.BACKUP, RunState.SUCCEEDED), (RunKind.RESTORE, RunState.FAILED), (RunKind.VERIFY, RunState.FAILED),
    }  # fmt: skip


def test_one_that_waits_does_for_all_who_asked(catalog: Catalog) -> None:
    def joined(*asked: RunRecord) -> RunArguments | None:
        ids = {catalog.queue.put(run).id for run in asked}
        assert len(ids) == 1
        arguments = catalog.runs.get(ids.pop()).arguments
        catalog.queue.cancel(catalog.queue.waiting()[0].id, NOW)
        return arguments

    def copy(*names: str) -> RunRecord:
        return replace(whole(RunKind.COPY, "/b"), arguments=RunArguments(home="/b", names=names))

    def verify(read_data: bool = True, **how: Any) -> RunRecord:
        return replace(whole(RunKind.VERIFY), arguments=RunArguments(read_data=read_data, **how))

    assert joined(copy("a", "b"), copy("b", "c")) == RunArguments(home="/b", names=("a", "b", "c"))
    assert joined(copy("a"), copy()) == joined(copy(), copy("a")) == RunArguments(home="/b")
    deep, quick = RunArguments(read_data=True), RunArguments()
    assert joined(verify(), verify(False)) == joined(verify(False), verify()) == deep
    assert joined(verify(every_days=30), verify(False)) == RunArguments(read_data=True, every_days=30)
    assert joined(verify(every_days=30), verify(every_days=7)) == RunArguments(read_data=True, every_days=7)
    assert joined(verify(every_days=30, hashes_only=True), verify()) == deep
    assert joined(verify(False), verify(False)) == quick


def test_what_was_to_go_to_a_place_of_a_machine_that_is_gone_goes_nowhere(catalog: Catalog, other: Catalog) -> None:
    """A file or block device of the same path is another one here, and would be overwritten."""
    other.appliances.join(ApplianceRecord(OTHER, NOW, "hv2", "/home", "p", NOW), "file")
    disk = replace(restore(), host=None, arguments=RunArguments("p", disk="vda", target="/dev/vdb", force=True))
    to_file, to_home, to_host, backup = (
        other.queue.put(run).id for run in (disk, whole(RunKind.COPY, "/b", home="/b"), restore(), image())
    )
    running = other.queue.claim(other.queue.put(replace(disk, id=new_id())).id, NOW)
    assert running is not None
    mine = catalog.queue.put(replace(disk, id=new_id())).id
    catalog.queue.give_up(OTHER, "it is gone", LATER)
    catalog.appliances.take_over(OTHER)
    for id in (to_file, to_home):
        given_up = catalog.runs.get(id)
        assert (given_up.state, given_up.error, given_up.ended_utc) == (RunState.FAILED, "it is gone", LATER)
    assert {run.id for run in catalog.queue.due(LATER)} == {to_host, backup, mine}
    assert catalog.runs.get(running.id).state is RunState.RUNNING, "that one is settled as one whose process died"
