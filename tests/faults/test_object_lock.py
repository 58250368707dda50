"""Object Lock on the real server: what the appliance's own credentials cannot do, and how what they did is undone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from imaging.collecting import CollectionRefused, Options
from imaging.envelope import ObjectType
from imaging.errors import ImagingError, NotARepository, StoreError
from imaging.guard.acts import deletion_of
from imaging.guard.errors import Guarded
from imaging.guard.rules import Rules
from imaging.lock_log import LockLog
from imaging.lock_sweep import Swept
from imaging.manifest import tombstone_name
from imaging.points import doomed
from imaging.repository import Repository
from imaging.storage.object_lock import COMPLIANCE, GOVERNANCE, is_locked
from imaging.storage.s3 import S3Store
from imaging.storage.versions import LockUnsuitable
from imaging.undoing import Undo, Undoing
from tests.faults.bad_object_store import Answer, BadObjectStore, changed, failed_after_success, refused
from tests.faults.guarded import PERSONS, words
from tests.faults.locked import FEW, LockedRig, days, rig
from tests.faults.repositories import CHEAP, MACHINE, ManualClock, back_up, make
from tests.faults.schedules import Silent
from tests.lab.s3_server import S3Server, running

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def server() -> S3Server:
    return running()


def sweep(rig: LockedRig, repository: Repository, *, dry_run: bool = False, ask_all: bool = False) -> Swept:
    return repository.sweep_locks(rig.versions, Silent(), dry_run=dry_run, ask_all=ask_all, connections=4)


def plan_undo(rig: LockedRig, since: object) -> tuple[Undoing, Undo]:
    undoing = Undoing(rig.store, rig.versions, ManualClock(), Silent(), 4)
    return undoing, undoing.plan(since, MACHINE)  # type: ignore[arg-type]


def undo(rig: LockedRig, since: object) -> Undo:
    undoing, plan = plan_undo(rig, since)
    assert plan.problems == ()
    done = undoing.execute(plan)
    assert done.problems == ()
    return plan


# Writing


@pytest.mark.parametrize("mode", [GOVERNANCE, COMPLIANCE])
def test_what_points_are_made_of_is_locked_as_it_is_written_and_leases_are_not(
    server: S3Server, tmp_path: Path, mode: str
) -> None:
    locked = rig(tmp_path, server, mode)
    versions = locked.versions
    with locked.make() as repository:
        locked.back_up(repository, "web", 1)
        repository.hold(repository.points()[0], "protected", "test")
    now = versions.now_utc()
    seen: dict[bool, set[str]] = {True: set(), False: set()}
    for version in versions.list():
        if version.is_marker:
            continue
        found = versions.retention(version.name, version.id)
        assert (found is not None) is is_locked(version.name), version.name
        if found is not None:
            assert found.mode == mode
            assert abs(found.until_utc - now - days(15)) < timedelta(minutes=5), "the store's time, and R + S"
        seen[found is not None].add(version.name.partition("/")[0])
    assert seen[True] == {"config", "config.copy", "keys", "keys.copy", "packs", "index", "manifests"}
    assert {"leases", "claims", "holds"} <= seen[False]
    locked.check()


# What an intruder with the appliance's credentials can do


def delete(rig: LockedRig) -> None:
    for key in rig.shown():
        rig.intruder.delete_object(Bucket=rig.place.name, Key=key)
    assert rig.shown() == []


def overwrite(rig: LockedRig) -> None:
    """The second half is said to be whole by its last bytes, as a keyless check sees it."""
    for number, key in enumerate(rig.shown()):
        garbage = b"STRONGRM" + bytes(200) if number % 2 else b""
        rig.intruder.put_object(Bucket=rig.place.name, Key=key, Body=garbage)


def overwrite_and_lock(rig: LockedRig) -> None:
    for key in rig.shown():
        until = rig.versions.now_utc() + days(30)
        rig.intruder.put_object(
            Bucket=rig.place.name, Key=key, Body=b"x", ObjectLockMode="COMPLIANCE", ObjectLockRetainUntilDate=until
        )


def destroy_versions(rig: LockedRig) -> None:
    """Refused for what is locked, and for nothing else."""
    refused: set[tuple[str, str]] = set()
    gone: set[str] = set()
    for version in rig.versions.list():
        one = {"Bucket": rig.place.name, "Key": rig.place.prefix + version.name, "VersionId": version.id}
        for bypass in ({}, {"BypassGovernanceRetention": True}):
            try:
                rig.intruder.delete_object(**one, **bypass)
            except ClientError as error:
                refused.add((version.name, error.response["Error"]["Code"]))
            else:
                gone.add(version.name)
    assert {(is_locked(name), code) for name, code in refused} == {(True, "AccessDenied")}
    assert {is_locked(name) for name in gone} == {False}
    delete(rig)


def shorten(rig: LockedRig) -> None:
    attempts = refused = 0
    for version in rig.versions.list():
        if not is_locked(version.name):
            continue
        one = {"Bucket": rig.place.name, "Key": rig.place.prefix + version.name, "VersionId": version.id}
        soon = {"Mode": rig.lock.mode.upper(), "RetainUntilDate": rig.versions.now_utc() + timedelta(minutes=1)}
        for change in (soon, {}):
            attempts += 1
            with pytest.raises(ClientError) as caught:
                rig.intruder.put_object_retention(**one, Retention=change, BypassGovernanceRetention=True)
            refused += caught.value.response["Error"]["Code"] in ("AccessDenied", "InvalidRequest")
    assert attempts == refused > 10
    destroy_versions(rig)


def undo_the_bucket(rig: LockedRig) -> None:
    bucket = {"Bucket": rig.place.name}
    calls: list[Callable[[], object]] = [
        lambda: rig.intruder.put_bucket_versioning(**bucket, VersioningConfiguration={"Status": "Suspended"}),
        lambda: rig.intruder.put_object_lock_configuration(**bucket, ObjectLockConfiguration={}),
        lambda: rig.intruder.delete_bucket(**bucket),
    ]
    for call in calls:
        with pytest.raises(ClientError):
            call()
    destroy_versions(rig)


ATTACKS: dict[str, Callable[[LockedRig], None]] = {
    "delete": delete,
    "overwrite": overwrite,
    "overwrite and lock": overwrite_and_lock,
    "shorten": shorten,
    "undo the bucket": undo_the_bucket,
}


@pytest.mark.parametrize(
    ("attack", "mode"),
    [
        ("delete", COMPLIANCE),
        ("overwrite", GOVERNANCE),
        ("overwrite and lock", COMPLIANCE),
        ("shorten", GOVERNANCE),
        ("shorten", COMPLIANCE),
        ("undo the bucket", GOVERNANCE),
    ],
)
def test_the_appliances_own_credentials_destroy_no_point(
    server: S3Server, tmp_path: Path, attack: str, mode: str
) -> None:
    locked = rig(tmp_path, server, mode)
    with locked.make() as repository:
        locked.back_up(repository, "web", 1)
        locked.back_up(repository, "db", 2)
    since = server.next_second()
    ATTACKS[attack](locked)
    with pytest.raises(ImagingError), locked.open("attacked") as repository:
        assert [point.id for point in repository.points()] == sorted(locked.disks), "the attack did nothing"
    plan = undo(locked, since)
    assert {point.id for point in plan.points} == set(locked.disks)
    locked.check("cache" if attack == "delete" else "")
    assert plan_undo(locked, since)[1].is_empty, "there is nothing left to undo"


def with_the_stolen_key(rig: LockedRig) -> None:
    """Who has the machine key, too, writes what is authentic: deletes points, collects, and forges what says how things
    stand."""
    with rig.open("stolen") as repository:
        for hold in repository.holds():
            repository.release(hold.id)
        points = repository.points()
        for point in points:
            repository.delete_point(point, by="nobody")
        assert repository.collect(Options(wait_s=0), Silent()).removed_points == len(points)
        objects = repository._objects
        epochs = max(listed.name for listed in objects.store.list("epochs/"))
        objects.create_json(ObjectType.EPOCH, "epochs/9999999999", {"condemned": []})
        objects.create_json(ObjectType.CLAIM, f"claims/{points[0].series}/9999999998", {"lease": "0" * 32})
        store = objects.store
        for point in points:
            store.put(tombstone_name(point.name), [b"that it is there is enough"])
            lease = point.manifest.lease
            objects.create_json(ObjectType.LEASE, f"leases/{lease}/end", {"outcome": "fenced", "by": "nobody"})
        store.put(epochs, [b"nothing"])
        store.put(f"holds/{'0' * 32}", [b"what is this?"])
        store.put("rollcalls/9999999999", [b"nor this"])


def test_what_was_done_with_the_machine_key_is_undone_and_work_goes_on(server: S3Server, tmp_path: Path) -> None:
    locked = rig(tmp_path, server)
    with locked.make() as repository:
        doomed = locked.back_up(repository, "web", 1)
        locked.back_up(repository, "web", 2)
        protected = locked.back_up(repository, "db", 3)
        repository.hold(protected, "protected", "test")
        repository.delete_point(doomed, by="test")
        repository.collect(Options(wait_s=0), Silent())
        del locked.disks[doomed.id]
    since = server.next_second()
    with_the_stolen_key(locked)
    with locked.open("attacked") as repository:
        assert repository.points() == []
        with pytest.raises(CollectionRefused):
            repository.collect(Options(wait_s=0), Silent())
    undone = undo(locked, since)
    assert {name.partition("/")[0] for name in undone.removing} >= {"tombstones", "epochs", "claims", "holds"}
    for cache in ("", "stolen", "cache"):
        locked.check(cache)
    with locked.open("cache") as repository:
        assert [hold.purpose for hold in repository.holds()] == ["protected"]
        locked.back_up(repository, "web", 5)
        going = locked.back_up(repository, "mail", 6)
        repository.delete_point(going, by="test")
        del locked.disks[going.id]
        assert repository.collect(Options(wait_s=0), Silent()).removed_points == 1
    locked.check()


@pytest.mark.parametrize("attack", [delete, overwrite])
def test_the_guard_comes_back_with_the_points(
    server: S3Server, tmp_path: Path, attack: Callable[[LockedRig], None]
) -> None:
    locked = rig(tmp_path, server)
    with locked.make() as repository:
        point = locked.back_up(repository, "web", 1)
        guard = repository.guard
        persons = tuple(guard.enrol(name, words(name), CHEAP) for name in PERSONS)
        state = guard.change(guard.next_state(Rules(True, persons=persons)))
    since = server.next_second()
    attack(locked)
    undo(locked, since)
    locked.check()
    with locked.open("another") as repository:
        assert repository.guard.state() == state
        request = repository.guard.ask(deletion_of([doomed(point)]), "alice", words("alice"), "")
        assert repository.guard.confirm(request.id, "bob", words("bob")).confirmed_by == (persons[1].id,)
        with pytest.raises(Guarded):
            repository.delete_point(point, "nobody")


def test_points_that_were_deleted_and_collected_in_good_faith_come_back_too(server: S3Server, tmp_path: Path) -> None:
    locked = rig(tmp_path, server)
    with locked.make() as repository:
        locked.back_up(repository, "web", 1)
        going = locked.back_up(repository, "web", 2)
    since = server.next_second()
    with locked.open() as repository:
        repository.delete_point(going, by="a typing mistake")
        assert repository.collect(Options(wait_s=0), Silent()).deleted_packs > 0
        later = locked.back_up(repository, "web", 3)
        assert going.id not in {point.id for point in repository.points()}
    plan = undo(locked, since)
    assert later.id not in {point.id for point in plan.points}
    locked.check()
    locked.check("cache")


def test_an_overwriting_that_was_noticed_late_is_undone_from_the_oldest_bytes(server: S3Server, tmp_path: Path) -> None:
    """The moment that is given is after the attack: what is written once is true in its oldest version."""
    locked = rig(tmp_path, server)
    with locked.make() as repository:
        locked.back_up(repository, "web", 1)
    overwrite(locked)
    since = server.next_second()
    undone = undo(locked, since)
    assert {is_locked(version.name) for version in undone.returning} == {True, False}
    locked.check()


def test_who_may_delete_and_what_was_decided_come_back(server: S3Server, tmp_path: Path) -> None:
    locked = rig(tmp_path, server)
    kept = {f"{folder}/0000000001": folder.encode() for folder in ("guard", "guard.copy")}
    kept |= {f"persons/{'1' * 32}/{'2' * 32}": b"alice", f"requests/{'3' * 32}/decision": b"refused"}
    with locked.make() as repository:
        for name, data in kept.items():
            repository.store.create(name, [data])
        assert sweep(locked, repository).until_utc is not None
    since = server.next_second()
    delete(locked)
    undo(locked, since)
    assert {name: locked.store.get(name) for name in kept} == kept


def test_a_repository_that_was_not_there_yet_is_no_moment_to_go_back_to(server: S3Server, tmp_path: Path) -> None:
    locked = rig(tmp_path, server)
    since = server.next_second()
    with locked.make() as repository:
        locked.back_up(repository, "web", 1)
    with pytest.raises(NotARepository):
        plan_undo(locked, since)
    locked.check()


# Sweeping


def test_a_sweep_renews_what_runs_out_and_only_that(server: S3Server, tmp_path: Path) -> None:
    locked = rig(tmp_path, server)
    now = locked.versions.now_utc()
    with locked.make() as repository:
        locked.back_up(repository, "web", 1)
        first = sweep(locked, repository)
        assert (first.due, first.extended, first.problems, first.replaced) == (0, 0, [], [])
        assert first.asked == first.objects > 8
        assert first.until_utc is not None
        assert abs(first.until_utc - now - days(15)) < timedelta(minutes=5)
        promise = LockLog(tmp_path / "cache").promise()
        assert promise is not None
        assert promise.until_utc == first.until_utc
        second = sweep(locked, repository)
        assert (second.asked, second.until_utc) == (0, first.until_utc), "what was seen is not asked for again"
        longer = locked.with_days(20)
        told = sweep(longer, repository, dry_run=True)
        assert (told.due, told.extended, told.until_utc) == (told.objects, 0, first.until_utc)
        assert sweep(longer, repository, ask_all=True).extended == told.objects
        third = sweep(longer, repository, ask_all=True)
        assert (third.asked, third.due) == (third.objects, 0)
        assert third.until_utc is not None
        assert third.until_utc - first.until_utc >= days(10) - timedelta(minutes=5)


def test_what_is_going_is_not_renewed(server: S3Server, tmp_path: Path) -> None:
    locked = rig(tmp_path, server)
    longer = locked.with_days(20)
    with locked.make() as repository:
        locked.back_up(repository, "web", 1)
        going = locked.back_up(repository, "db", 2)
        packs = {name for name in locked.shown() if "/packs/" in name}
        with repository.begin_run(repository.series_of("image", "slow"), host="host"):  # what is condemned waits for it
            repository.delete_point(going, by="test")
            done = repository.collect(Options(wait_s=0), Silent())
            assert done.waiting_packs > 0
            buried = locked.back_up(repository, "mail", 3)
            repository.delete_point(buried, by="test")
            swept = sweep(longer, repository)
            assert swept.problems == []
            ends = {
                version.name: retention.until_utc
                for version in longer.versions.list()
                if not version.is_marker
                and (retention := longer.versions.retention(version.name, version.id)) is not None
            }
    short = {name for name, end in ends.items() if end < swept.now_utc + days(19)}
    assert len([name for name in short if name.startswith("packs/")]) == done.waiting_packs < len(packs)
    assert {name for name in short if name.startswith("manifests/")} == {going.name, buried.name}
    assert swept.until_utc is not None
    assert swept.until_utc > swept.now_utc + days(20)


def test_a_sweep_tells_what_was_written_over_and_keeps_what_was_there(server: S3Server, tmp_path: Path) -> None:
    locked = rig(tmp_path, server)
    longer = locked.with_days(20)
    with locked.make() as repository:
        locked.back_up(repository, "web", 1)
        (victim, *_) = [key for key in locked.shown() if "/packs/" in key]
        locked.intruder.put_object(Bucket=locked.place.name, Key=victim, Body=b"evil")
        name = victim.removeprefix(locked.place.prefix)
        swept = sweep(longer, repository)
        assert swept.replaced == [name]
        kept = [
            longer.versions.retention(version.name, version.id)
            for version in longer.versions.list("packs/")
            if version.name == name
        ]
        assert len(kept) == 2
        assert all(each is not None and each.until_utc > swept.now_utc + days(20) for each in kept)


def test_what_cannot_be_told_stays_locked(server: S3Server, tmp_path: Path) -> None:
    locked = rig(tmp_path, server)
    with locked.make() as repository:
        locked.back_up(repository, "web", 1)
        repository.store.put("epochs/0000000007", [b"no list"])
        lease = repository.points()[0].manifest.lease
        repository.store.put(f"leases/{lease}/end", [b"no end"])
        swept = sweep(locked, repository)
        assert len(swept.problems) == 1
        assert "condemned" in swept.problems[0]
        assert swept.objects == len([key for key in locked.shown() if is_locked(key.removeprefix(locked.place.prefix))])


def test_objects_that_are_not_locked_are_locked_by_a_sweep(server: S3Server, tmp_path: Path) -> None:
    """As in a repository that is older than its settings."""
    locked = rig(tmp_path, server)
    plain = S3Store(locked.place, server.appliance, FEW)
    with make(tmp_path, store=plain) as repository:
        back_up(repository, "web", {"disk": b"x" * 4096})
        told = sweep(locked, repository, dry_run=True)
        assert (told.until_utc, told.due) == (None, told.objects)
        swept = sweep(locked, repository)
        assert swept.extended == told.objects
        assert swept.until_utc is not None


# The bucket and the rights to it


@pytest.mark.parametrize("mode", [GOVERNANCE, COMPLIANCE])
def test_a_bucket_that_locks_is_taken_and_what_the_proof_left_is_hidden(
    server: S3Server, tmp_path: Path, mode: str
) -> None:
    locked = rig(tmp_path, server, mode)
    locked.versions.prove()
    assert locked.shown() == []
    with locked.make() as repository:
        locked.back_up(repository, "web", 1)
    locked.check()


def test_credentials_that_can_bypass_a_lock_are_refused(server: S3Server, tmp_path: Path) -> None:
    for mode, can_bypass in ((GOVERNANCE, True), (COMPLIANCE, False)):
        locked = rig(tmp_path, server, mode)
        locked.credentials = server.credentials  # an administrator's
        if can_bypass:
            with pytest.raises(LockUnsuitable, match="destroy a locked object"):
                locked.versions.prove()
        else:
            locked.versions.prove()


def test_a_bucket_that_does_not_lock_is_refused(server: S3Server, tmp_path: Path) -> None:
    locked = rig(tmp_path, server)
    with pytest.raises(LockUnsuitable, match="no Object Lock"):
        replace(locked, place=server.bucket("x/")).versions.check()
    name = "strongroom-default-retention"
    server.make_bucket(name, locked=True)
    rule = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}}
    server.client().put_object_lock_configuration(
        Bucket=name, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
    )
    with pytest.raises(LockUnsuitable, match="default retention"):
        replace(locked, place=server.bucket("x/", name=name)).versions.check()


def test_rights_that_are_missing_are_named(server: S3Server, tmp_path: Path) -> None:
    locked = rig(tmp_path, server)
    locked.credentials = server.without_rights
    with pytest.raises(StoreError) as caught:
        locked.versions.check()
    assert "s3:PutObjectRetention" in caught.value.hint


# A store that fails or lies


@pytest.fixture
def bad(server: S3Server) -> Iterator[BadObjectStore]:
    with BadObjectStore(server.url) as bad:
        yield bad


def without_versions(answer: Answer) -> Answer:
    body, count = re.subn(rb"<Version>.*?</Version>", b"", answer.body, flags=re.DOTALL)
    assert count, answer.body
    return replace(answer, body=body)


def test_a_listing_without_versions_is_not_believed_and_promises_nothing(
    server: S3Server, tmp_path: Path, bad: BadObjectStore
) -> None:
    locked = rig(tmp_path, server, url=bad.url)
    with locked.make() as repository:
        locked.back_up(repository, "web", 1)
        bad.fail("get", changed(without_versions), within="versions", nth=2)
        swept = sweep(locked, repository)
        assert (swept.until_utc, swept.unseen, len(swept.problems)) == (None, 2, 2)
        bad.forgive()
        swept = sweep(locked, repository)
        assert swept.until_utc is not None
        assert swept.problems == []


def test_what_fails_in_passing_is_tried_again(server: S3Server, tmp_path: Path, bad: BadObjectStore) -> None:
    locked = rig(tmp_path, server, url=bad.url)
    longer = locked.with_days(20)
    with locked.make() as repository:
        locked.back_up(repository, "web", 1)
        bad.fail("get", changed(lambda answer: replace(answer, body=b"<html>Welcome</html>")), within="versions", nth=1)
        bad.fail("get", refused(503, "SlowDown"), within="retention", nth=2)
        bad.fail("put", failed_after_success(500, "InternalError"), within="retention", nth=1)
        swept = sweep(longer, repository)
        assert (swept.problems, swept.extended) == ([], swept.objects)


def test_a_lock_that_the_store_refuses_is_a_problem_and_hides_no_other(
    server: S3Server, tmp_path: Path, bad: BadObjectStore
) -> None:
    locked = rig(tmp_path, server, url=bad.url)
    longer = locked.with_days(20)
    with locked.make() as repository:
        locked.back_up(repository, "web", 1)
        bad.fail("put", refused(403, "AccessDenied"), within="retention", nth=3)
        swept = sweep(longer, repository)
        assert len(swept.problems) == 1
        assert swept.extended == swept.objects - 1
        assert swept.until_utc is not None
        assert swept.until_utc < swept.now_utc + days(16), "what was refused is locked for as long as it was"


def test_an_undo_that_was_interrupted_is_gone_on_with(server: S3Server, tmp_path: Path, bad: BadObjectStore) -> None:
    locked = rig(tmp_path, server, url=bad.url)
    with locked.make() as repository:
        locked.back_up(repository, "web", 1)
    since = server.next_second()
    delete(locked)
    bad.fail("put", refused(403, "AccessDenied"), within="config", nth=1)
    undoing, plan = plan_undo(locked, since)
    done = undoing.execute(plan)
    assert len(done.problems) == 1
    assert done.returned == len(plan.returning) - 1
    bad.forgive()
    again = undo(locked, since)
    # Both copies are brought back side by side: either may have been the one that was refused.
    assert [version.name for version in again.returning if is_locked(version.name)] in (["config"], ["config.copy"])
    locked.check()
