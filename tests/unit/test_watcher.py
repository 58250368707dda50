"""Many watch runs, and the catalog is asked as if it were one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import event

from appliance.bootstrap import Appliance
from appliance.catalog.errors import CatalogBusy
from appliance.models import RunRecord, RunState, new_id
from appliance.progress import SILENT
from appliance.services.backup.watching import living, watched
from appliance.services.watcher import RunEvent, RunWatcher, Trouble
from appliance.settings import load

NOW = datetime(2026, 11, 23, 14, 0, tzinfo=UTC)
EVERY_S = 0.02
HANG_S = 60.0


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Appliance]:
    with Appliance(load({"STRONGROOM_HOME": str(tmp_path)})) as made:
        assert made.catalog.me
        yield made


def run(appliance: Appliance, state: RunState = RunState.RUNNING, **changes: object) -> RunRecord:
    made = RunRecord(new_id(), "web", "vm", "u", "here", state, NOW, appliance=appliance.catalog.me)
    made = replace(made, **changes)  # type: ignore[arg-type]
    appliance.catalog.runs.save(made)
    return made


def ended(appliance: Appliance, made: RunRecord) -> RunRecord:
    made = replace(made, state=RunState.SUCCEEDED, ended_utc=NOW)
    appliance.catalog.runs.save(made)
    return made


def test_a_run_is_told_as_it_stands_when_it_changes_and_until_it_ends(appliance: Appliance) -> None:
    made, other = run(appliance), run(appliance)
    events = RunWatcher(appliance, EVERY_S).watch(threading.Event(), [made.id])
    assert next(events) == RunEvent(made, False, None), "its process is not there"
    with living(appliance, made.id), watched(appliance, made.id, lambda: None, SILENT) as progress:
        progress.start("vda", 100)
        progress.advance(40)
        found = next(told for told in events if isinstance(told, RunEvent) and told.far is not None)
        assert found.alive
        assert found.far is not None
        assert (found.far.label, found.far.done_bytes) == ("vda", 40)
    ended(appliance, other)
    done = ended(appliance, made)
    left = [told for told in events if isinstance(told, RunEvent)]
    assert left[-1] == RunEvent(done, None, None)
    assert {told.run.id for told in left} == {made.id}


def test_of_all_that_is_under_way_what_begins_and_ends_is_told(appliance: Appliance) -> None:
    first, queued, over = run(appliance), run(appliance, RunState.QUEUED), run(appliance, RunState.FAILED)
    stop = threading.Event()
    watcher = RunWatcher(appliance, EVERY_S)
    events = watcher.watch(stop)
    asked = watcher.watch(stop, [queued.id, over.id])
    assert {next(asked), next(asked)} == {RunEvent(queued, None, None), RunEvent(over, None, None)}
    assert next(events) == RunEvent(first, False, None)
    done = ended(appliance, first)
    assert next(events) == RunEvent(done, None, None)
    second = run(appliance)
    assert next(events) == RunEvent(second, False, None), "what only the other asked for is not told here"
    stop.set()
    assert list(events) == []
    assert list(asked) == []


def test_what_may_not_be_seen_is_not_told(appliance: Appliance) -> None:
    hidden, shown = run(appliance, name="hidden"), run(appliance)
    stop = threading.Event()
    events = RunWatcher(appliance, EVERY_S).watch(
        stop, [hidden.id, shown.id], may_see=lambda each: each.name != "hidden", quiet_s=0.05
    )
    assert next(filter(None, events)) == RunEvent(shown, False, None)
    ended(appliance, hidden)
    ended(appliance, shown)
    assert {told.run.id for told in events if isinstance(told, RunEvent)} == {shown.id}


def test_fifty_watchers_cost_what_one_does(appliance: Appliance) -> None:
    made = run(appliance)
    statements: list[str] = []

    def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("SELECT"):
            statements.append(threading.current_thread().name)

    event.listen(appliance.catalog.database.engine, "before_cursor_execute", count)
    watcher, stop = RunWatcher(appliance, EVERY_S), threading.Event()
    told: list[RunEvent | Trouble | None] = []

    def watch() -> None:
        told.extend(each for each in watcher.watch(stop, [made.id]) if each is not None)

    threads = [threading.Thread(target=watch, name=f"viewer-{number}") for number in range(50)]
    for thread in threads:
        thread.start()
    while len(told) < 50:
        assert all(thread.is_alive() for thread in threads)
    done = ended(appliance, made)
    for thread in threads:
        thread.join(HANG_S)
        assert not thread.is_alive()
    assert told.count(RunEvent(done, None, None)) == 50
    assert set(statements) == {"watcher"}, "one thread asks for all"
    for thread in threading.enumerate():
        if thread.name == "watcher":
            thread.join(HANG_S)
            assert not thread.is_alive(), "nobody watches any more"


def test_nothing_new_is_told_now_and_then_and_a_watcher_that_goes_is_forgotten(appliance: Appliance) -> None:
    made = run(appliance)
    watcher = RunWatcher(appliance, EVERY_S)
    with closing(watcher.watch(threading.Event(), [made.id], quiet_s=0.01)) as events:
        assert next(filter(None, events)) == RunEvent(made, False, None)
        assert [next(events) for _ in range(3)] == [None] * 3
    again = watcher.watch(threading.Event(), [made.id])
    assert next(again) == RunEvent(made, False, None)
    again.close()


def test_a_database_that_is_away_is_told_and_that_it_is_back(
    appliance: Appliance, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run(appliance)
    browsing = appliance.catalog.browsing
    real, away = type(browsing).watched, threading.Event()

    def asked(self: object, ids: frozenset[str]) -> tuple[RunRecord, ...]:
        if away.is_set():
            raise CatalogBusy("the catalog is away")
        return real(browsing, ids)

    monkeypatch.setattr(type(browsing), "watched", asked)
    events = RunWatcher(appliance, EVERY_S).watch(threading.Event(), [made.id])
    assert next(events) == RunEvent(made, False, None)
    away.set()
    assert next(events) == Trouble("the catalog is away")
    done = ended(appliance, made)
    away.clear()
    assert [next(events), next(events)] == [Trouble(""), RunEvent(done, None, None)]
    assert list(events) == []
