"""Messages of the queue are ids and nothing else, whatever is put in their place."""

from __future__ import annotations

import os
import pickle
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from appliance.bootstrap import Appliance
from appliance.models import new_id
from appliance.services.queue.messages import QueueUnusable, RunMessages, Wakes, run_of
from appliance.settings import load


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Appliance]:
    with Appliance(load({"STRONGROOM_HOME": str(tmp_path / "home")})) as made:
        yield made


def test_a_message_is_an_id() -> None:
    id = new_id()
    message = RunMessages().deserialize(b'{"run": "%s"}' % id.encode())
    assert (message.id, message.args, message.kwargs) == (id, (id,), {})
    assert message.on_complete is message.on_error is message.eta is None
    assert run_of(RunMessages().serialize(message)) == id


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"run": 5}',
        b'{"run": "../../etc"}',
        b'{"run": "%s", "more": 1}' % (b"a" * 32),
        b'{"run": "%s"}' % (b"A" * 32),
        b'{"run": "%s"}' % (b"a" * 33),
        b" " * 201,
        b"\xff\xfe",
        pickle.dumps(("a" * 32,)),
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        RunMessages().deserialize(data)


def test_what_is_put_into_the_file_by_others_is_not_run(appliance: Appliance, tmp_path: Path) -> None:
    mark, id = tmp_path / "mark", new_id()
    pickle.loads(pickle.dumps(Evil(mark)))
    assert mark.exists(), "the attack works where something unpickles"
    mark.unlink()
    taken: list[str] = []
    with Wakes(appliance, "a" * 32, taken.append) as wakes:
        with closing(sqlite3.connect(appliance.settings.queue_file)) as file, file:
            file.execute(
                "INSERT INTO task (queue, data, priority) VALUES (?, ?, 1)",
                (f"runs-{'a' * 32}", pickle.dumps(Evil(mark))),
            )
        assert wakes.put(id)
        assert wakes.pending() == {id}
        with pytest.raises(ValueError):
            wakes.huey.dequeue()
        wakes.huey.execute(wakes.huey.dequeue())
    assert taken == [id]
    assert not mark.exists()


def test_the_file_holds_ids_and_is_the_owner_s_alone(appliance: Appliance) -> None:
    id = new_id()
    with Wakes(appliance, "a" * 32) as wakes, Wakes(appliance, "b" * 32) as other:
        assert wakes.put(id)
        assert other.pending() == frozenset(), "each appliance has its own"
    with closing(sqlite3.connect(appliance.settings.queue_file)) as file:
        assert file.execute("SELECT data FROM task").fetchall() == [(b'{"run": "%s"}' % id.encode(),)]
    assert appliance.settings.queue_file.stat().st_mode & 0o777 == 0o600


def test_a_damaged_file_is_made_anew_and_an_unusable_place_is_told(appliance: Appliance) -> None:
    file = appliance.settings.queue_file
    file.write_bytes(b"no database" * 1000)
    with Wakes(appliance, "a" * 32) as wakes:
        assert wakes.put(new_id())
        for left in file.parent.glob(f"{file.name}*"):
            left.unlink()
        file.mkdir()
        with pytest.raises(QueueUnusable, match=r"queue\.sqlite"):
            wakes.leave(new_id())
        assert not wakes.put(new_id()), "who asks is not troubled with it"
    with pytest.raises(QueueUnusable, match=r"queue\.sqlite"):
        Wakes(appliance, "a" * 32)


def test_a_file_that_is_damaged_in_use_is_made_anew(appliance: Appliance, caplog: pytest.LogCaptureFixture) -> None:
    file = appliance.settings.queue_file
    taken: list[str] = []
    with Wakes(appliance, "a" * 32, taken.append) as wakes, Wakes(appliance, "a" * 32) as asker:
        assert wakes.put(new_id())
        wakes.huey.storage.sql("PRAGMA wal_checkpoint(TRUNCATE)")
        assert len(asker.pending()) == 1
        with file.open("r+b") as damaged:
            damaged.write(b"no database" * 9)
        # Each reads what it has read already from its own memory, until it sees that another has written.
        assert asker.put(new_id())
        with pytest.raises(QueueUnusable, match="not a database"):
            wakes.pending()
        assert "it is made anew" in caplog.text
        assert wakes.pending() == frozenset(), "what it held, the catalog has"
        assert file.stat().st_mode & 0o777 == 0o600
        later = new_id()
        assert asker.put(later)
        assert wakes.pending() == {later}
        wakes.huey.execute(wakes.huey.dequeue())
    assert taken == [later]


def test_one_that_others_have_removed_or_made_anew_is_noticed(appliance: Appliance) -> None:
    file = appliance.settings.queue_file
    with Wakes(appliance, "a" * 32) as wakes:
        for change in (lambda: file.unlink(), lambda: file.write_bytes(b"no database" * 1000)):
            assert wakes.put(new_id())
            change()
            id = new_id()
            with Wakes(appliance, "a" * 32) as asker:
                assert asker.put(id)
            assert wakes.pending() == {id}


def test_one_that_was_emptied_has_its_tables_again(appliance: Appliance) -> None:
    file, id = appliance.settings.queue_file, new_id()
    with Wakes(appliance, "a" * 32) as wakes:
        with closing(sqlite3.connect(file)) as other:
            for table in ("kv", "schedule", "task", "counter"):
                other.execute(f"DROP TABLE {table}")
        with pytest.raises(QueueUnusable, match="no such table"):
            wakes.leave(id)
        assert wakes.put(id)
        assert wakes.pending() == {id}
