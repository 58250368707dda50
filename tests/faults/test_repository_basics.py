"""A repository from making to reading back, and what opening it says when it cannot."""

from __future__ import annotations

import logging
import os
import shutil
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from blake3 import blake3

from imaging.errors import (
    Damaged,
    LastSlot,
    NoSpace,
    NotARepository,
    PointAmbiguous,
    PointNotFound,
    RepositoryExists,
    SlotNotFound,
    StoreError,
    StoreUnsuitable,
    WrongKey,
    WrongVersion,
)
from imaging.repository import Repository
from imaging.slots import MachineKey, Passphrase, RecoveryKey
from imaging.storage.local import LocalStore
from tests.faults.faulty_store import FaultyStore
from tests.faults.repositories import (
    CHEAP,
    MACHINE,
    ME,
    PASSPHRASE,
    back_up,
    content,
    make,
    read_disk,
    reopen,
)


def test_what_was_backed_up_is_read_back_by_another_process_and_another_appliance(tmp_path: Path) -> None:
    first, second = content(1, 3_000_000), content(2, 500_001)
    with make(tmp_path) as repository:
        one = back_up(repository, "web", {"vda": first, "vdb": second})
        changed = first[:1_000_000] + content(3, 8192) + first[1_008_192:]
        two = back_up(repository, "web", {"vda": changed, "vdb": second})
    assert two.manifest.predecessor == one.hash
    assert (one.generation, two.generation) == (1, 2)
    for cache in ("cache", "elsewhere"):
        with reopen(tmp_path, cache) as repository:
            points = repository.points()
            assert [point.id for point in points] == [one.id, two.id]
            assert points == [one, two]
            assert read_disk(repository, points[0], "vda") == first
            assert read_disk(repository, points[1], "vda") == changed
            assert read_disk(repository, points[1], "vdb") == second


def test_the_second_run_stores_only_what_changed(tmp_path: Path) -> None:
    data = content(1, 4_000_000)
    with make(tmp_path) as repository:
        back_up(repository, "web", {"disk": data})
        before = sum(listed.size_bytes for listed in repository.store.list("packs/"))
        back_up(repository, "web", {"disk": data[:2_000_000] + b"x" * 4096 + data[2_004_096:]})
        back_up(repository, "other", {"disk": data})
        after = sum(listed.size_bytes for listed in repository.store.list("packs/"))
    assert 4_000_000 < before < 4_100_000
    assert after - before < 700_000


def test_a_hash_a_name_and_an_id_are_what_the_format_says(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        point = back_up(repository, "web", {"disk": content(1, 100_000)})
        assert point.name == f"manifests/{repository.series_of('image', 'web')}/0000000001-{point.id}"
        assert point.hash == blake3(repository.store.get(point.name)).digest()
        lease = point.manifest.lease
        left = [listed.name for listed in repository.store.list(f"leases/{lease}/")]
        assert left == [f"leases/{lease}/end"], "a committed lease keeps its end only"
        names = {listed.name.split("/")[0] for listed in repository.store.list("")}
        assert names == {
            "claims",
            "config",
            "config.copy",
            "index",
            "keys",
            "keys.copy",
            "leases",
            "manifests",
            "packs",
        }


def test_points_are_listed_oldest_first_and_within_a_series_by_generation_whatever_the_clock_said(
    tmp_path: Path,
) -> None:
    with make(tmp_path) as repository:
        tiny = {"disk": content(1, 5000)}
        moments = [datetime(2026, 3, day, tzinfo=UTC) for day in (10, 5, 20, 7)]
        made = [back_up(repository, name, tiny, moment) for name, moment in zip("abab", moments, strict=True)]
        # a: 10 then 20; b: 5 then 7
        assert [point.id for point in repository.points()] == [made[1].id, made[3].id, made[0].id, made[2].id]
        back = back_up(repository, "a", tiny, datetime(2001, 1, 1, tzinfo=UTC))
        assert [point.id for point in repository.points(repository.series_of("image", "a"))][-1] == back.id
        assert [point.id for point in repository.points()][-1] == back.id


def test_points_are_found_by_a_unique_beginning(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        made = [back_up(repository, "web", {"disk": content(1, 5000)}) for _ in range(20)]
        wanted = made[7]
        assert repository.point(wanted.id) == wanted
        assert repository.point(wanted.id[:20].upper()) == wanted
        with pytest.raises(PointNotFound):
            repository.point("zz")
        with pytest.raises(PointNotFound):
            repository.point("")
        absent = next(f"{number:032x}" for number in range(100) if not any(p.id == f"{number:032x}" for p in made))
        with pytest.raises(PointNotFound):
            repository.point(absent)
        shared = next(digit for digit in "0123456789abcdef" if sum(p.id.startswith(digit) for p in made) > 1)
        with pytest.raises(PointAmbiguous) as caught:
            repository.point(shared)
        assert len(caught.value.matches) > 1


def test_it_opens_with_each_of_its_secrets(tmp_path: Path) -> None:
    store = LocalStore.make(tmp_path / "store")
    made, recovery = Repository.create(store, passphrase=PASSPHRASE, machine_key=MACHINE.secret, cost=CHEAP)
    made.close()
    for secret in (Passphrase(PASSPHRASE), MACHINE, recovery, RecoveryKey.parse(recovery.text())):
        with Repository.open(store, secret, cache=tmp_path / "cache", appliance=ME) as opened:
            assert opened.id == made.id
            assert opened.losses == ()
    assert sorted(slot.kind for slot in made.slots()) == ["machine", "passphrase", "recovery"]


@pytest.mark.parametrize("secret", [Passphrase("wrong horse"), MachineKey(b"x" * 32), RecoveryKey(b"x" * 32)])
def test_a_wrong_secret_is_called_that(tmp_path: Path, secret: Passphrase | MachineKey | RecoveryKey) -> None:
    make(tmp_path).close()
    with pytest.raises(WrongKey) as caught:
        Repository.open(LocalStore(tmp_path / "store"), secret, cache=tmp_path / "cache", appliance=ME)
    assert str(tmp_path / "store") in str(caught.value)
    assert "horse" not in str(caught.value)
    assert caught.value.hint


def test_a_kind_of_secret_that_has_no_slot_is_called_that(tmp_path: Path) -> None:
    store = LocalStore.make(tmp_path / "store")
    made, recovery = Repository.create(store, passphrase=None, machine_key=None)
    made.close()
    with pytest.raises(WrongKey, match="no passphrase slot") as caught:
        Repository.open(store, Passphrase("x"), cache=tmp_path / "cache", appliance=ME)
    assert "recovery" in caught.value.hint
    Repository.open(store, recovery, cache=tmp_path / "cache", appliance=ME).close()


def test_what_is_no_repository_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("mine")
    with pytest.raises(NotARepository, match=str(tmp_path / "empty")):
        Repository.open(LocalStore(tmp_path / "empty"), MACHINE, cache=tmp_path / "cache", appliance=ME)


def test_another_version_is_called_that(tmp_path: Path) -> None:
    make(tmp_path).close()
    for name in ("config", "config.copy"):
        path = tmp_path / "store" / name
        data = bytearray(path.read_bytes())
        data[8] = 7
        path.write_bytes(bytes(data[:-32]) + blake3(bytes(data[:-32])).digest())
    with pytest.raises(WrongVersion, match="version 7"):
        reopen(tmp_path)


def test_a_second_one_in_the_same_place_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    make(tmp_path).close()
    before = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()}
    with pytest.raises(RepositoryExists, match="a repository is there"):
        make(tmp_path)
    assert {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()} == before
    (tmp_path / "used" / "store").mkdir(parents=True)
    (tmp_path / "used" / "store" / "notes.txt").write_text("mine")
    with pytest.raises(RepositoryExists, match=r"notes\.txt"):
        make(tmp_path / "used")


def test_slots_left_by_an_interrupted_making_do_not_stand_in_the_way(tmp_path: Path) -> None:
    make(tmp_path).close()
    for name in ("config", "config.copy"):
        (tmp_path / "store" / name).unlink()
    with make(tmp_path) as again:
        assert len(again.slots()) == 3
        assert {slot.envelope.repository_id for slot in again.slots()} == {again.id}


@pytest.mark.parametrize("stuck", [False, True])
@pytest.mark.parametrize("nth", range(1, 7))
def test_a_making_that_fails_leaves_nothing_and_can_be_repeated(tmp_path: Path, nth: int, stuck: bool) -> None:
    """Two slots, each twice, then the configuration twice."""
    with FaultyStore(LocalStore.make(tmp_path / "store")) as store:
        store.fail("create", nth=nth + 2, error=NoSpace("write", "x"))  # the first two probe the store
        if stuck and nth > 1:
            store.fail("delete", prefix="keys", error=StoreError("delete", "x", "y"))
        with pytest.raises(NoSpace):
            Repository.create(store, passphrase=PASSPHRASE, machine_key=None, cost=CHEAP)
        assert len(list(store.list(""))) == (stuck and nth > 1)
        again, _ = Repository.create(store, passphrase=PASSPHRASE, machine_key=None, cost=CHEAP)
        again.close()
        assert len(list(store.list(""))) == 6


def test_a_store_that_lets_two_create_the_same_object_is_refused(tmp_path: Path) -> None:
    class Careless(FaultyStore):
        def create(self, name, data):  # type: ignore[no-untyped-def]
            self.inner.put(name, data)

    with pytest.raises(StoreUnsuitable, match="two writers"):
        Repository.create(Careless(LocalStore.make(tmp_path / "store")), passphrase=None, machine_key=None)


def test_keys_are_added_and_removed_but_never_the_last(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        added = repository.add_slot(Passphrase("another"), "second admin", CHEAP)
        assert added.id in [slot.id for slot in repository.slots()]
        reopened = Repository.open(repository.store, Passphrase("another"), cache=tmp_path / "other", appliance=ME)
        reopened.close()
        for slot in sorted(repository.slots(), key=lambda slot: slot.kind != MachineKey.kind)[:-1]:
            repository.remove_slot(slot.id)
        (last,) = repository.slots()
        with pytest.raises(LastSlot):
            repository.remove_slot(last.id)
        with pytest.raises(SlotNotFound):
            repository.remove_slot("ab" * 16)


def test_one_made_like_another_cuts_and_names_alike_under_another_master(tmp_path: Path) -> None:
    data = {"disk": content(1, 300_000)}
    with make(tmp_path / "a") as first:
        store = LocalStore.make(tmp_path / "b" / "store")
        second, _ = Repository.create(
            store, passphrase=None, machine_key=MACHINE.secret, like=first.key_bundle, cache=tmp_path / "b" / "cache"
        )
        with second:
            one, two = back_up(first, "web", data), back_up(second, "web", data)
            assert one.manifest.disks == two.manifest.disks
            assert first.keys.blob != second.keys.blob
            assert one.series != two.series


def test_the_cache_may_be_lost_unwritable_or_full_of_rubbish(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = content(1, 400_000)
    with make(tmp_path) as repository:
        point = back_up(repository, "web", {"disk": data})
    shutil.rmtree(tmp_path / "cache")
    with reopen(tmp_path) as repository:
        assert read_disk(repository, repository.point(point.id)) == data
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file():
            path.write_bytes(os.urandom(500))
    with reopen(tmp_path) as repository:
        assert repository.points() == [point]
        assert read_disk(repository, point) == data
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING), reopen(tmp_path, "file") as repository:
        assert repository.points() == [point]
        assert read_disk(repository, point) == data
        assert back_up(repository, "web", {"disk": data}).generation == 2
    assert "cannot be written" in caplog.text


def test_the_cache_that_is_removed_while_it_is_used_costs_nothing_but_time(tmp_path: Path) -> None:
    data = content(1, 400_000)
    with make(tmp_path) as repository:
        back_up(repository, "web", {"disk": data})
        shutil.rmtree(tmp_path / "cache")
        point = back_up(repository, "web", {"disk": data})
        assert len(repository.points()) == 2
    with reopen(tmp_path) as repository:
        assert read_disk(repository, repository.point(point.id)) == data


def test_no_secret_and_no_content_is_in_the_store_or_its_modes_open(tmp_path: Path) -> None:
    marker = b"a line that is easily found " * 200
    with make(tmp_path) as repository:
        back_up(repository, "a-name-to-hide", {"disk": marker * 20})
        secrets = [PASSPHRASE.encode(), MACHINE.secret, b"a-name-to-hide", marker[:28], repository.keys.blob]
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        data = path.read_bytes()
        assert not any(secret in data for secret in secrets), path
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_manifests_and_ends_are_read_from_the_store_once(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        for number in range(5):
            back_up(repository, "web", {"disk": content(number, 5000)})
    store = FaultyStore(LocalStore(tmp_path / "store"))
    with reopen(tmp_path, "new", store=store) as repository:
        assert len(repository.points()) == 5
        first = [name for method, name in store.calls if method == "get" and name.startswith(("manifests/", "leases/"))]
        assert len(first) == 10
    store.calls.clear()
    with reopen(tmp_path, "new", store=store) as repository:
        assert len(repository.points()) == 5
        assert not [
            name for method, name in store.calls if method == "get" and name.startswith(("manifests/", "leases/"))
        ]


def test_unknown_names_are_left_alone(tmp_path: Path) -> None:
    with make(tmp_path) as repository:
        repository.store.put("manifests/later/thing", [b"?"])
        repository.store.put("leases/later", [b"?"])
        repository.store.put("index/later", [b"?"])
        repository.store.put("future/object", [b"?"])
        point = back_up(repository, "web", {"disk": content(1, 5000)})
        assert repository.points() == [point]
        report = repository.verify(read_data=True)
        assert report.ok, report
        assert sorted(report.unknown) == ["future/object", "index/later", "leases/later", "manifests/later/thing"]


def test_a_configuration_that_is_wholly_lost_does_not_stand_in_the_way_of_restoring(tmp_path: Path) -> None:
    data = content(1, 100_000)
    with make(tmp_path) as repository:
        point = back_up(repository, "web", {"disk": data})
        identity = repository.id
    for name in ("config", "config.copy"):
        (tmp_path / "store" / name).unlink()
    with reopen(tmp_path) as repository:
        assert repository.id == identity
        assert len(repository.losses) == 2
        assert read_disk(repository, repository.point(point.id)) == data
        assert not repository.verify().ok
    shutil.rmtree(tmp_path / "store" / "keys")
    shutil.rmtree(tmp_path / "store" / "keys.copy")
    with pytest.raises((NotARepository, Damaged)):
        reopen(tmp_path)


def test_two_in_one_process_on_one_cache_both_work(tmp_path: Path) -> None:
    data = content(1, 400_000)
    with make(tmp_path) as first, reopen(tmp_path) as second:
        point = back_up(first, "web", {"disk": data})
        assert read_disk(second, second.point(point.id)) == data
        assert back_up(second, "web", {"disk": data}).manifest.predecessor == point.hash
        assert read_disk(first, first.points()[-1]) == data


def test_an_index_that_breaks_while_it_is_used_is_made_again(tmp_path: Path) -> None:
    data = content(1, 400_000)
    with make(tmp_path) as repository:
        point = back_up(repository, "web", {"disk": data})
        assert read_disk(repository, point) == data
        with repository.index._access.writing() as transaction:
            transaction.drop(repository.index._tables.packs, delete=False)
        second = back_up(repository, "web", {"disk": data})
        assert read_disk(repository, second) == data


@pytest.mark.parametrize("how", ["gone", "cut off"])
def test_an_index_of_which_a_segment_is_broken_is_made_again(tmp_path: Path, how: str) -> None:
    data = content(1, 400_000)
    with make(tmp_path) as repository:
        point = back_up(repository, "web", {"disk": data})
        blobs = repository.index.counts().blobs
    segments = list(tmp_path.rglob("*.segment"))
    assert segments
    for segment in segments:
        if how == "gone":
            segment.unlink()
        else:
            os.truncate(segment, segment.stat().st_size - 1)
    with reopen(tmp_path) as repository:
        assert read_disk(repository, point) == data
        assert repository.index.counts().blobs == blobs
