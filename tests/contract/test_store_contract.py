"""What every store must do. A new store joins by adding a factory to STORES; "over failures" is one in which every
other call fails, before or after it was carried out."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest

from imaging.clock import SystemClock
from imaging.errors import Damaged, InvalidName, ObjectExists, ObjectMissing, StoreUnavailable
from imaging.storage.contract import Listed, Store
from imaging.storage.limited import LimitedStore
from imaging.storage.local import LocalStore
from imaging.storage.retrying import RetryingStore
from imaging.throttle import Throttle
from tests.faults.faulty_store import FaultyStore
from tests.lab.azurite import fresh_azure_store
from tests.lab.gcs_server import fresh_gcs_store
from tests.lab.s3_server import fresh_locked_store, fresh_s3_store

PASSING = StoreUnavailable("reach", "an object", "Connection reset by peer")


def local(folder: Path) -> LocalStore:
    return LocalStore.make(folder / "store")


def retrying(inner: Store) -> RetryingStore:
    return RetryingStore(inner, SystemClock(), lambda seconds: None, random.random)


def failing(folder: Path) -> FaultyStore:
    store = FaultyStore(local(folder))
    for method in ("put", "create", "get", "exists", "list"):  # a delete that fails cannot tell what was not there
        store.fail(method, nth=2, every=True, error=PASSING)
        store.fail(method, nth=2, every=True, error=PASSING, after=True)
    return store


STORES: dict[str, Callable[[Path], Store]] = {
    "azure": lambda folder: fresh_azure_store(),
    # The emulator closes a connection on which it was asked for a range that is not there, and whoever is quicker than
    # that uses it once more.
    "gcs": lambda folder: retrying(fresh_gcs_store()),
    "limited": lambda folder: LimitedStore(local(folder), Throttle(1e12, SystemClock(), Event().wait)),
    "local": local,
    "object": lambda folder: fresh_s3_store(),
    "object, locked": lambda folder: fresh_locked_store(),
    "object, retrying": lambda folder: retrying(fresh_s3_store()),
    "retrying": lambda folder: retrying(local(folder)),
    "retrying over failures": lambda folder: retrying(failing(folder)),
}


@pytest.fixture(params=sorted(STORES))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return STORES[request.param](tmp_path)


def names(store: Store, prefix: str = "") -> list[str]:
    return [listed.name for listed in store.list(prefix)]


def test_what_was_put_is_read_back_whole_and_in_parts(store: Store) -> None:
    store.put("packs/ab/abcd", [b"one", bytearray(b"two"), memoryview(b"three")])

    assert store.get("packs/ab/abcd") == b"onetwothree"
    assert store.get("packs/ab/abcd", 3, 3) == b"two"
    assert store.get("packs/ab/abcd", 6) == b"three"
    assert store.get("packs/ab/abcd", 11, 0) == b""


def test_many_small_buffers_are_written_in_order(store: Store) -> None:
    parts = [bytes([each % 251]) * (each % 7) for each in range(3000)]
    store.put("packs/aa/many", parts)
    assert store.get("packs/aa/many") == b"".join(parts)


def test_an_empty_object_is_an_object(store: Store) -> None:
    store.create("claims/x/0000000001", [])
    assert store.get("claims/x/0000000001") == b""
    assert list(store.list("claims/")) == [Listed("claims/x/0000000001", 0)]


def test_a_put_replaces_whole(store: Store) -> None:
    store.put("config", [b"a long first version"])
    store.put("config", [b"short"])
    assert store.get("config") == b"short"


def test_create_refuses_a_name_that_is_taken_and_changes_nothing(store: Store) -> None:
    store.create("leases/aa/end", [b"first"])
    with pytest.raises(ObjectExists) as caught:
        store.create("leases/aa/end", [b"second"])
    assert caught.value.name == "leases/aa/end"
    assert store.get("leases/aa/end") == b"first"
    store.delete("leases/aa/end")
    store.create("leases/aa/end", [b"third"])
    assert store.get("leases/aa/end") == b"third"


def test_of_many_creators_exactly_one_wins_and_its_bytes_stay(store: Store) -> None:
    outcomes: list[int | None] = []
    gate = threading.Barrier(8)

    def contend(number: int) -> None:
        gate.wait()
        try:
            store.create("claims/s/0000000007", [b"%d" % number] * 1000)
        except ObjectExists:
            outcomes.append(None)
        else:
            outcomes.append(number)

    threads = [threading.Thread(target=contend, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    winners = [each for each in outcomes if each is not None]
    assert len(outcomes) == 8
    assert len(winners) == 1
    assert store.get("claims/s/0000000007") == b"%d" % winners[0] * 1000


def test_readers_see_the_old_object_or_the_new_one_while_it_is_replaced(store: Store) -> None:
    old, new = b"o" * 70_000, b"n" * 50_000
    store.put("config", [old])
    seen: set[bytes] = set()
    begun, stop = threading.Event(), threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(store.get("config"))
            begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(120)
    for _ in range(50):
        store.put("config", [new])
        store.put("config", [old])
    stop.set()
    reader.join()
    assert seen <= {old, new}


def test_missing_objects_are_named(store: Store) -> None:
    for call in (lambda: store.get("packs/aa/none"), lambda: store.get("config", 4, 4), lambda: store.delete("keys/x")):
        with pytest.raises(ObjectMissing):
            call()
    store.put("config", [b"x"])
    with pytest.raises(ObjectMissing):
        store.get("config/below")


def test_what_exists_is_told_without_reading_it(store: Store) -> None:
    store.create("leases/aa/end", [])
    store.put("config", [b"x"])
    assert store.exists("leases/aa/end")
    assert store.exists("config")
    for nothing in ("leases/aa", "leases", "leases/aa/start", "config/below", "packs/aa/none"):
        assert not store.exists(nothing), nothing
        with pytest.raises(ObjectMissing):
            store.get(nothing)
        with pytest.raises(ObjectMissing):
            store.delete(nothing)
    store.delete("config")
    assert not store.exists("config")


def test_many_are_deleted_at_once_and_those_that_are_not_there_are_no_error(store: Store) -> None:
    kept = ["claims/s/0000000009", "packs/ab/abcd"]
    doomed = [f"packs/{number % 7:02}/{number:04}" for number in range(40)]
    for name in (*kept, *doomed):
        store.put(name, [b"x"])
    store.delete_many(each for each in (*doomed[:20], "packs/aa/none", "nothing/at/all", *doomed[20:], doomed[0]))
    assert names(store) == kept
    store.delete_many([])
    with pytest.raises(InvalidName):
        store.delete_many([kept[0], "../config"])
    assert names(store) == kept, "names are checked before anything is removed"


def test_a_range_beyond_the_end_is_damage_and_never_a_short_answer(store: Store) -> None:
    store.put("packs/aa/ten", [b"0123456789"])
    for offset, length in ((0, 11), (5, 6), (11, None), (11, 0), (100, 1), (-1, 2), (0, 1 << 62)):
        with pytest.raises(Damaged) as caught:
            store.get("packs/aa/ten", offset, length)
        assert caught.value.name == "packs/aa/ten"


def test_listings_are_sorted_by_name_recursive_and_complete(store: Store) -> None:
    wanted = sorted(
        [
            "config",
            "config.copy",
            "keys/aa",
            "keys.copy/aa",
            "leases/a/beat/0000000001",
            "leases/a/end",
            "leases/a-b/end",
        ]
    )
    for name in reversed(wanted):
        store.put(name, [name.encode()])

    assert [(each.name, each.size_bytes) for each in store.list("")] == [(name, len(name)) for name in wanted]
    assert names(store, "keys/") == ["keys/aa"]
    assert names(store, "leases/a/") == ["leases/a/beat/0000000001", "leases/a/end"]
    assert names(store, "manifests/") == []


def test_a_listing_survives_what_vanishes_and_appears_meanwhile(store: Store) -> None:
    for number in range(20):
        store.put(f"leases/{number:02}/end", [b"x"])
    listing = store.list("leases/")
    first = next(listing)
    store.delete("leases/10/end")
    store.put("leases/99/end", [b"y"])
    rest = {each.name for each in listing}
    assert first.name == "leases/00/end"
    assert rest >= {f"leases/{number:02}/end" for number in range(1, 20) if number != 10}


def test_a_folder_that_became_empty_can_be_written_to_again(store: Store) -> None:
    for _ in range(3):
        store.create("leases/aa/beat/0000000001", [b"1"])
        store.delete("leases/aa/beat/0000000001")
    assert names(store, "leases/") == []


NO_NAMES = (
    "", "/", "a/", "/a", "a//b", "..", "../a", "a/../b", ".hidden", "a/.b", "A", "a b", "a\n", "a\0", "ä", "tmp/x",
    "tmp", "a" * 256,
)  # fmt: skip


def test_names_that_are_none_are_refused_by_every_method(store: Store) -> None:
    calls: tuple[Callable[[str], object], ...] = (
        lambda name: store.put(name, [b""]),
        lambda name: store.create(name, [b""]),
        store.get,
        store.exists,
        store.delete,
        lambda name: store.delete_many([name]),
    )
    for name in NO_NAMES:
        for number, call in enumerate(calls):
            try:
                call(name)
            except InvalidName:
                continue
            pytest.fail(f"{name!r} is a name to call {number}")


def test_prefixes_that_are_none_are_refused(store: Store) -> None:
    for prefix in ("packs", "/", "../", "a//", "packs/a"):
        with pytest.raises(InvalidName):
            store.list(prefix)


def test_it_says_where_it_is_and_what_is_free(store: Store) -> None:
    assert store.describe()
    free = store.free_bytes()
    assert free is None or free > 0
