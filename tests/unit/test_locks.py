"""Object Lock, decided: how long a lock has to be, what time it is at the store, what was there at a moment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.services.locks import LockState
from imaging.errors import Damaged, ObjectMissing, StoreError, StoreUnavailable
from imaging.lock_log import LockLog, Promise
from imaging.lock_sweep import Known, wanted
from imaging.storage.as_of import AsOf, histories
from imaging.storage.locations import BucketPrefix, Folder, encode_location, open_versions, read_location
from imaging.storage.object_lock import COMPLIANCE, GOVERNANCE, Lock, StoreTime, is_locked
from imaging.storage.versions import Retention, Version
from imaging.undoing import what_happened

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
ID = "0123456789abcdef" * 2
LOCK = Lock(GOVERNANCE, days=30, extra_days=7)


def after(days: float) -> datetime:
    return NOON + timedelta(days=days)


# How long a lock has to be


@pytest.mark.parametrize(
    ("held", "becomes"),
    [
        (None, Retention(GOVERNANCE, after(37))),
        (Retention(GOVERNANCE, after(29.9)), Retention(GOVERNANCE, after(37))),
        (Retention(GOVERNANCE, after(-1)), Retention(GOVERNANCE, after(37))),
        (Retention(GOVERNANCE, after(30)), None),
        (Retention(GOVERNANCE, after(500)), None),
        (Retention(COMPLIANCE, after(31)), None),
        (Retention(COMPLIANCE, after(29)), Retention(COMPLIANCE, after(37))),
    ],
)
def test_a_lock_is_renewed_below_the_days_and_never_weakened(held: Retention | None, becomes: Retention | None) -> None:
    assert wanted(held, LOCK, NOON) == becomes


def test_a_stricter_mode_is_taken_on_and_no_time_is_lost() -> None:
    strict = Lock(COMPLIANCE, days=30, extra_days=7)
    assert wanted(Retention(GOVERNANCE, after(500)), strict, NOON) == Retention(COMPLIANCE, after(500))
    assert wanted(Retention(GOVERNANCE, after(31)), strict, NOON) == Retention(COMPLIANCE, after(37))


def test_what_is_going_is_not_live_and_all_else_is() -> None:
    pack, other = b"\x01" * 32, b"\x02" * 32
    manifest = f"manifests/{ID}/0000000001-{ID}"
    known = Known(frozenset({pack}), frozenset({manifest}), frozenset({ID}))
    assert not known.is_live(f"packs/01/{pack.hex()}")
    assert not known.is_live(manifest)
    assert not known.is_live(f"index/{ID}-000000")
    for name in (f"packs/02/{other.hex()}", f"manifests/{ID}/0000000002-{ID}", "config", f"keys/{ID}"):
        assert known.is_live(name), name


@pytest.mark.parametrize(
    "name",
    [
        "config", "config.copy", f"keys/{ID}", f"keys.copy/{ID}", f"index/{ID}-000000",
        f"manifests/{ID}/0000000001-{ID}", f"packs/01/{ID}{ID}", "guard/0000000001", "guard.copy/0000000001",
        f"persons/{ID}/{ID}",
    ],
)  # fmt: skip
def test_what_points_are_made_of_and_who_may_delete_them_is_locked(name: str) -> None:
    assert is_locked(name)


@pytest.mark.parametrize(
    "name",
    [
        f"requests/{ID}/done", f"leases/{ID}/end", f"claims/{ID}/0000000001", f"holds/{ID}", "epochs/0000000001",
        f"tombstones/{ID}/0000000001-{ID}", f"damaged/{ID}{ID}", "packs/zz/short", f"aside/index/{ID}-000000",
        "config.old", f"keys/{ID}/x", f"requests/{ID}/asked", "guard/1", f"persons/{ID}",
    ],
)  # fmt: skip
def test_what_comes_and_goes_is_not_locked(name: str) -> None:
    assert not is_locked(name)


@pytest.mark.parametrize("name", ["guard/0000000001", "guard.copy/0000000001", f"persons/{ID}/{ID}"])
def test_who_may_let_points_go_is_locked_as_they_are(name: str) -> None:
    assert is_locked(name)
    assert Known(frozenset(), frozenset(), frozenset()).is_live(name)


# The store's time


def test_time_goes_on_from_the_last_answer_whatever_the_clock_of_this_machine_says() -> None:
    passed = [100.0]
    store = StoreTime(lambda: passed[0])
    with pytest.raises(StoreUnavailable):
        store.now_utc()
    for nothing in (None, "", "yesterday", "Wed, 99 Nov 2026 12:00:00 GMT", "Wed, 25 Nov 2026 12:00:00"):
        store.heard(nothing)
        assert not store.is_known, nothing
    store.heard("Wed, 25 Nov 2026 12:00:00 GMT")
    passed[0] += 86_400
    assert store.now_utc() == after(1)
    store.heard("Sun, 25 Nov 2035 12:00:00 GMT")
    assert store.now_utc() == datetime(2035, 11, 25, 12, tzinfo=UTC)


# What sweeps remember


def test_what_was_seen_of_locks_is_kept_and_damage_is_only_asked_for_again(tmp_path: Path) -> None:
    log = LockLog(tmp_path)
    assert log.promise() is None
    one, two = version("config", 1), version("config", 2)
    log.note(one, Retention(COMPLIANCE, after(3)))
    log.note(two, Retention(GOVERNANCE, after(4)))
    log.save()
    log.write_promise(Promise(NOON, after(3), 2))
    again = LockLog(tmp_path)
    assert again.retention(one) == Retention(COMPLIANCE, after(3))
    assert again.promise() == Promise(NOON, after(3), 2)
    again.keep_only([two])
    assert again.retention(one) is None
    log.write_promise(Promise(NOON, None, 2))
    assert log.promise() == Promise(NOON, None, 2)
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:30])
    torn = LockLog(tmp_path)
    assert torn.promise() is None
    assert [torn.retention(each) is None for each in (one, two)].count(False) == 1


def test_a_lock_that_runs_out_is_a_concern() -> None:
    def concern(swept: datetime | None, until: datetime | None) -> str | None:
        return LockState(GOVERNANCE, 30, swept, until).concern(NOON)

    assert "no sweep" in (concern(None, None) or "")
    assert "not everything" in (concern(NOON, None) or "")
    assert "27 days more" in (concern(after(-3), after(27.5)) or "")
    assert concern(after(-1), after(29)) is None


# What was there


def version(name: str, number: int, day: float = 0, *, latest: bool = False, marker: bool = False) -> Version:
    return Version(name, f"v{number}", 0 if marker else 10, "" if marker else f"e{number}", after(day), latest, marker)


def test_a_moment_splits_a_history() -> None:
    listed = [  # newest first, as stores show them
        version("config", 4, 3, latest=True, marker=True),
        version("config", 3, 2),
        version("config", 2, 1, marker=True),
        version("config", 1, 0),
    ]
    history = histories(listed)["config"]
    assert history.at(after(0)) is None
    assert history.at(after(0.5)) == listed[3]
    assert history.at(after(1.5)) is None
    assert history.at(after(2.5)) == listed[1]
    assert history.now() is None
    assert history.contents(after(3), whole=True) == [listed[3], listed[1]]
    assert history.contents(after(3), whole=False) == [listed[1]]


def test_of_one_second_what_is_the_newest_is_known_and_else_more_is_there() -> None:
    newest = version("config", 3, 0, latest=True)
    assert histories([newest, version("config", 2, 0, marker=True)])["config"].at(after(1)) == newest
    gone = version("config", 3, 1, latest=True, marker=True)
    here, marker = version("config", 1, 0), version("config", 2, 0, marker=True)
    assert histories([gone, here, marker])["config"].at(after(1)) == here
    assert histories([gone, marker, here])["config"].at(after(1)) == here


def test_the_past_is_read_and_never_written() -> None:
    there = {"config": version("config", 1), "keys/a": version("keys/a", 1)}
    past = AsOf("somewhere", there, lambda each: each.name.encode().ljust(10))
    assert past.get("config") == b"config    "
    assert past.get("config", 2, 3) == b"nfi"
    assert [listed.name for listed in past.list("keys/")] == ["keys/a"]
    assert past.exists("keys/a")
    assert not past.exists("keys/b")
    with pytest.raises(ObjectMissing):
        past.get("keys/b")
    with pytest.raises(Damaged):
        past.get("config", 5, 6)
    with pytest.raises(StoreError):
        past.put("config", [])
    with pytest.raises(StoreError):
        past.create("x", [])
    with pytest.raises(StoreError):
        past.delete("config")


def test_what_happened_is_told_by_the_hour() -> None:
    pack = f"packs/01/{'01' * 32}"
    tombstone = f"tombstones/{ID}/0000000001-{ID}"
    told = what_happened(
        [
            version(pack, 3, 2, latest=True, marker=True), version(pack, 2, 1), version(pack, 1, 0),
            version(tombstone, 1, 2, latest=True), version(f"leases/{ID}/end", 1, 2, latest=True, marker=True),
        ]
    )  # fmt: skip
    assert [(each.hour_utc, each.deleted, each.overwritten, each.buried) for each in told] == [
        (after(1), 0, 1, 0),
        (after(2), 1, 0, 1),
    ]


# Where it is


def test_a_location_says_how_it_is_locked_and_one_of_old_does_not(tmp_path: Path) -> None:
    place = BucketPrefix("http://127.0.0.1:1", "bucket", "", "us-east-1", "a", "b", lock_mode=GOVERNANCE, lock_days=30,
                         lock_extra_days=7)  # fmt: skip
    file = tmp_path / "location.json"
    file.write_bytes(encode_location(place))
    file.chmod(0o600)
    assert read_location(file) == place
    versions = open_versions(place)
    assert versions is not None
    assert versions.lock == LOCK
    file.write_text('{"bucket": {"endpoint": "http://127.0.0.1:1", "bucket": "bucket", "prefix": "",'
                    ' "region": "us-east-1", "access_key": "a", "secret_key": "b"}}')  # fmt: skip
    assert open_versions(read_location(file)) is None
    assert open_versions(Folder(tmp_path)) is None
