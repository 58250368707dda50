"""A store that fails in passing, and the one around it that has patience. Every fault is seen to fire."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from imaging.errors import (
    Damaged,
    ImagingError,
    NoSpace,
    ObjectExists,
    ObjectMissing,
    StoreError,
    StoreUnavailable,
)
from imaging.storage.contract import Store
from imaging.storage.local import LocalStore
from imaging.storage.retrying import Patience, RetryingStore
from tests.faults.faulty_store import FaultyStore
from tests.faults.repositories import ManualClock, back_up, content, make, read_disk, reopen

PASSING = StoreUnavailable("reach", "an object", "Connection reset by peer")
END = "leases/aa/end"


class Rig:
    """A retrying store over one that fails; time passes only in waits and, where a test says so, in calls."""

    def __init__(self, folder: Path, jitter: float = 1.0, patience: Patience | None = None) -> None:
        self.inner = LocalStore.make(folder / "store")
        self.faulty = FaultyStore(self.inner)
        self.clock = ManualClock()
        self.waits: list[float] = []
        self.store: Store = RetryingStore(self.faulty, self.clock, self._sleep, lambda: jitter, patience)

    def _sleep(self, seconds: float) -> None:
        self.waits.append(round(seconds, 6))
        self.clock.pass_s(seconds)


OPERATIONS: dict[str, Callable[[Store], object]] = {
    "put": lambda store: store.put("config", [b"new"]),
    "create": lambda store: store.create(END, [b"new"]),
    "get": lambda store: store.get("config"),
    "exists": lambda store: store.exists("config"),
    "list": lambda store: list(store.list("")),
    "delete": lambda store: store.delete("config"),
    "free_bytes": lambda store: store.free_bytes(),
}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("method", OPERATIONS)
def test_what_fails_in_passing_is_tried_again_until_it_succeeds(tmp_path: Path, method: str, after: bool) -> None:
    rig = Rig(tmp_path)
    rig.inner.put("config", [b"old"])
    expected = OPERATIONS[method](rig.inner) if method in ("get", "exists", "list") else None
    times = 1 if after and method in ("create", "delete") else 4  # those cannot be carried out twice
    with rig.faulty as faulty:
        for _ in range(times):
            faulty.fail(method, after=after and method != "free_bytes", error=PASSING)
        found = OPERATIONS[method](rig.store)
    assert rig.waits == [0.2, 0.4, 0.8, 1.6][:times]
    assert found == expected or method == "free_bytes"
    assert rig.inner.exists("config") == (method != "delete")
    assert rig.inner.exists(END) == (method == "create")
    if method == "put":
        assert rig.inner.get("config") == b"new"


def test_many_deletions_are_tried_again_from_what_is_left(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    names = [f"packs/ab/{number}" for number in range(5)]
    for name in names:
        rig.inner.put(name, [b"x"])
    with rig.faulty as faulty:
        faulty.fail("delete", nth=3, error=PASSING)
        faulty.fail("delete", nth=4, after=True, error=PASSING)
        rig.store.delete_many(name for name in names)
    assert list(rig.inner.list("")) == []
    assert rig.waits == [0.2, 0.4]


@pytest.mark.parametrize("jitter", [0.5, 1.0])
def test_waits_grow_to_a_bound_are_random_below_it_and_end(tmp_path: Path, jitter: float) -> None:
    rig = Rig(tmp_path, jitter, Patience(first_s=1, longest_s=5, total_s=20))
    with rig.faulty as faulty:
        faulty.fail("get", error=PASSING, forever=True)
        with pytest.raises(StoreUnavailable) as caught:
            rig.store.get("config")
        assert caught.value is PASSING, "the store's own words"
        calls = len(faulty.calls)
    bounds = [1, 2, 4, 5, 5, 5, 5, 5, 5, 5]
    assert rig.waits == [bound * jitter for bound in bounds][: len(rig.waits)]
    assert sum(rig.waits) <= 20
    assert sum(rig.waits) + bounds[len(rig.waits)] * jitter > 20
    assert calls == len(rig.waits) + 1


def test_the_time_that_calls_take_is_counted(tmp_path: Path) -> None:
    rig = Rig(tmp_path, patience=Patience(total_s=60))
    with rig.faulty as faulty:
        faulty.before = lambda method, name: rig.clock.pass_s(25)
        faulty.fail("put", error=PASSING, forever=True)
        with pytest.raises(StoreUnavailable):
            rig.store.put("config", [b"x"])
        assert len(faulty.calls) == 3


@pytest.mark.parametrize(
    "error",
    [
        NoSpace("write", "x"),
        StoreError("write", "x", "Read-only file system"),
        Damaged("x", "it is short"),
        ObjectMissing("x"),
        ObjectExists("x"),
    ],
)
@pytest.mark.parametrize("method", ["put", "create", "get", "exists", "list", "delete"])
def test_what_will_not_pass_is_told_at_once(tmp_path: Path, method: str, error: ImagingError) -> None:
    rig = Rig(tmp_path)
    with rig.faulty as faulty:
        faulty.fail(method, error=error)
        with pytest.raises(type(error)) as caught:
            OPERATIONS[method](rig.store)
        assert caught.value is error
        assert [name for name, _ in faulty.calls] == [method]
    assert rig.waits == []


# What an unknown outcome means for create


def test_a_create_whose_answer_was_lost_has_succeeded(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    with rig.faulty as faulty:
        faulty.fail("create", after=True, error=PASSING)
        faulty.fail("get", error=PASSING)  # also where comparing fails in passing
        rig.store.create(END, [b"my ", bytearray(b"own"), memoryview(b" bytes")])
    assert rig.inner.get(END) == b"my own bytes"
    assert len(rig.waits) == 2


@pytest.mark.parametrize("theirs", [b"somebody else's", b"min", b"mine and more", b""])
def test_a_create_that_failed_and_then_finds_somebody_elses_bytes_has_lost(tmp_path: Path, theirs: bytes) -> None:
    rig = Rig(tmp_path)

    def faster(method: str, name: str) -> None:
        if rig.waits:
            rig.faulty.before = None
            rig.inner.create(END, [theirs])

    with rig.faulty as faulty:
        faulty.before = faster
        faulty.fail("create", error=PASSING)
        with pytest.raises(ObjectExists):
            rig.store.create(END, [b"mine"])
    assert rig.inner.get(END) == theirs


def test_a_create_that_finds_its_bytes_at_once_has_lost(tmp_path: Path) -> None:
    """Nobody but the caller can tell whether it wrote them: who is first with `fenced` decides, whatever it says."""
    rig = Rig(tmp_path)
    rig.inner.create(END, [b"the same"])
    with pytest.raises(ObjectExists):
        rig.store.create(END, [b"the same"])
    assert [method for method, _ in rig.faulty.calls] == ["create"]


def test_a_create_that_finds_the_name_taken_and_then_free_has_lost(tmp_path: Path) -> None:
    rig = Rig(tmp_path)

    def removed(method: str, name: str) -> None:
        if method == "get":
            rig.inner.delete(END)

    with rig.faulty as faulty:
        faulty.before = removed
        faulty.fail("create", after=True, error=PASSING)
        with pytest.raises(ObjectExists):
            rig.store.create(END, [b"mine"])


def test_an_object_that_is_not_there_is_told_unless_it_may_have_been_this_callers_own_deletion(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    with pytest.raises(ObjectMissing):
        rig.store.delete(END)
    rig.inner.create(END, [b"x"])
    with rig.faulty as faulty:
        faulty.calls.clear()
        faulty.fail("delete", after=True, error=PASSING)
        rig.store.delete(END)
        assert [method for method, _ in faulty.calls] == ["delete", "delete"]


# Listings


def test_a_listing_that_fails_again_and_again_on_its_way_is_complete_and_repeats_nothing(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    names = [f"packs/{number:02x}/{number:04}" for number in range(64)]
    for name in names:
        rig.inner.put(name, [name.encode()])
    with rig.faulty as faulty:
        faulty.fail("list", error=PASSING)
        for _ in range(3):
            faulty.fail("list", after=True, error=PASSING)
        found = list(rig.store.list(""))
    assert [listed.name for listed in found] == names
    assert [listed.size_bytes for listed in found] == [len(name) for name in names]


def test_a_listing_that_cannot_go_on_is_an_error_and_no_short_list(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    for number in range(10):
        rig.inner.put(f"packs/ab/{number}", [b"x"])
    with rig.faulty as faulty:
        faulty.fail("list", after=True, error=PASSING)
        faulty.fail("list", nth=2, error=PASSING, forever=True)
        listing = rig.store.list("")
        assert [next(listing).name[-1] for _ in range(5)] == ["0", "1", "2", "3", "4"]
        with pytest.raises(StoreUnavailable):
            next(listing)
        assert faulty.faults[1].fired > 3


# All of it


@pytest.mark.parametrize("after", [False, True])
def test_a_repository_works_on_a_store_that_fails_in_passing_all_the_time(tmp_path: Path, after: bool) -> None:
    make(tmp_path).close()
    rig = Rig(tmp_path)
    with rig.faulty as faulty, reopen(tmp_path, store=rig.store) as repository:
        for method, nth in (("put", 2), ("create", 3), ("get", 4), ("exists", 2), ("list", 3), ("delete", 2)):
            faulty.fail(method, nth=nth, after=after, error=PASSING, every=True)
        data = [{"disk": content(seed, 200_000)} for seed in range(4)]
        points = [back_up(repository, "web", each) for each in data]
        repository.release(repository.hold(points[0], "restore", "test").id)
        repository.delete_point(points[1], "admin")
        assert repository.points() == [points[0], *points[2:]]
        for point, each in zip(points, data, strict=True):
            assert read_disk(repository, point) == each["disk"]
        assert repository.verify(read_data=True).ok
    assert len(rig.waits) > 20
