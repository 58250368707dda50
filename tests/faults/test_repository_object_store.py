"""A repository on an object store that fails, lies and refuses: nothing acknowledged is lost, nothing wrong is read."""

from __future__ import annotations

import contextlib
import random
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from imaging.census import CollectionRefused
from imaging.collecting import Options
from imaging.errors import ImagingError, RepositoryExists, StoreError, StoreUnavailable
from imaging.repository import Point, Repository
from imaging.storage.contract import Store
from imaging.storage.endpoints import parse_endpoint
from imaging.storage.retrying import Patience, RetryingStore
from imaging.storage.s3 import Bucket, Limits, S3Store
from tests.faults.bad_object_store import (
    BadObjectStore,
    Reaction,
    broken,
    broken_after_success,
    cut_short,
    empty_listing,
    failed_after_success,
    refused,
    silent_after_success,
)
from tests.faults.repositories import ManualClock, back_up, content, make, read_disk, reopen
from tests.faults.schedules import Silent
from tests.lab.s3_server import S3Server, running

pytestmark = pytest.mark.faults

MIB = 1 << 20
SHORT = Limits(connections=4, silence_s=4.0)  # a busy machine takes its time to answer


@dataclass
class Rig:
    """A repository with two points behind a proxy that is good until it is told to be bad."""

    folder: Path
    bad: BadObjectStore
    place: Bucket
    server: S3Server
    disks: dict[str, bytes]

    def store(self, place: Bucket | None = None) -> Store:
        inner = S3Store(place or self.place, self.server.credentials, SHORT)
        clock = ManualClock()
        return RetryingStore(inner, clock, clock.pass_s, random.random, Patience(0.2, 10.0, 60.0))

    def past_the_proxy(self) -> Store:
        return self.store(replace(self.place, endpoint=parse_endpoint(self.server.url)))

    def open(self, cache: str = "cache", store: Store | None = None) -> Repository:
        return reopen(self.folder, cache, store=store or self.store())

    def back_up(self, repository: Repository, name: str, seed: int) -> Point:
        data = content(seed, MIB)
        point = back_up(repository, name, {"disk": data})
        self.disks[point.id] = data
        return point

    def check(self) -> None:
        """As a machine finds it that knows nothing but the key."""
        with self.open(secrets.token_hex(4), self.past_the_proxy()) as repository:
            report = repository.verify(read_data=True)
            assert report.ok, [str(problem.error) for problem in report.problems]
            points = repository.points()
            assert {point.id for point in points} == set(self.disks)
            for point in points:
                assert read_disk(repository, point) == self.disks[point.id]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    server = running()
    with BadObjectStore(server.url) as bad:
        rig = Rig(tmp_path, bad, server.bucket(f"{secrets.token_hex(8)}/", url=bad.url), server, {})
        with make(tmp_path, store=rig.store()) as repository:
            rig.back_up(repository, "web", 1)
            rig.back_up(repository, "db", 2)
        yield rig


def test_a_repository_is_made_written_and_read_in_a_bucket(rig: Rig) -> None:
    rig.check()


def test_every_third_request_may_fail_and_all_goes_well(rig: Rig) -> None:
    choose = random.Random(5)
    ways = [
        refused(500, "InternalError"),
        refused(503, "SlowDown"),
        broken(),
        broken_after_success(),
        failed_after_success(500, "InternalError"),
    ]

    def any_of(*reactions: Reaction) -> Reaction:
        return lambda exchange: choose.choice(reactions)(exchange)

    for operation in ("put", "create", "delete_many", "list"):
        rig.bad.fail(operation, any_of(*ways), nth=3, every=True)
    rig.bad.fail("create", silent_after_success(), nth=10)
    rig.bad.fail("get", any_of(cut_short(), *ways), nth=3, every=True)
    with rig.open() as repository:
        doomed = rig.back_up(repository, "web", 3)
        kept = rig.back_up(repository, "web", 4)
        assert read_disk(repository, kept) == rig.disks[kept.id]
        repository.delete_point(doomed, by="test")
        done = repository.collect(Options(wait_s=0), Silent())
        assert done.freed_bytes >= MIB
    rig.bad.forgive()
    del rig.disks[doomed.id]
    rig.check()


@pytest.mark.parametrize("hidden", ["", "manifests", "index", "packs", "leases", "epochs", "rollcalls", "tombstones"])
def test_a_listing_that_is_empty_for_no_reason_loses_nothing(rig: Rig, hidden: str) -> None:
    """By an appliance that knows the repository, and by one that has never seen it."""
    with rig.open() as repository:
        doomed = rig.back_up(repository, "web", 3)
        repository.delete_point(doomed, by="test")
        repository.collect(Options(wait_s=0), Silent())
        del rig.disks[doomed.id]
        also = rig.back_up(repository, "db", 4)
        repository.delete_point(also, by="test")
        del rig.disks[also.id]
    rig.bad.fail("list", empty_listing(), within=hidden and f"{hidden}%2F", forever=True)
    for cache in ("cache", "another"):
        with contextlib.suppress(ImagingError), rig.open(cache) as repository:
            repository.collect(Options(wait_s=0), Silent())
    rig.bad.forgive()
    rig.check()


def test_known_manifests_that_are_not_listed_stop_a_collection(rig: Rig) -> None:
    with rig.open() as repository:
        repository.collect(Options(wait_s=0), Silent())
    rig.bad.fail("list", empty_listing(), within="manifests", forever=True)
    # The store does not believe it while it knows of an object; what still came through would be refused.
    with rig.open("another") as repository, pytest.raises((StoreUnavailable, CollectionRefused)):
        repository.collect(Options(wait_s=0), Silent())
    rig.bad.forgive()
    rig.check()


def test_a_backup_that_sees_nothing_of_the_repository_harms_nothing(rig: Rig) -> None:
    rig.bad.fail("list", empty_listing(), forever=True)
    with contextlib.suppress(ImagingError), rig.open() as repository:
        rig.back_up(repository, "web", 3)
    rig.bad.forgive()
    with rig.open() as repository:
        rig.back_up(repository, "web", 4)
    rig.check()


def test_no_second_repository_is_made_where_a_listing_shows_none(rig: Rig, tmp_path: Path) -> None:
    rig.bad.fail("list", empty_listing(), forever=True)
    with pytest.raises(RepositoryExists):
        make(tmp_path / "other", store=rig.store())
    rig.bad.forgive()
    rig.check()


@pytest.mark.parametrize("operation", ["put", "create", "get", "list"])
def test_credentials_that_expire_end_a_run_and_the_next_one_goes_on(rig: Rig, operation: str) -> None:
    rig.bad.fail(operation, refused(403, "ExpiredToken"), nth=3, forever=True)

    def write() -> None:
        with rig.open() as repository:
            for seed in (3, 4, 5):
                rig.back_up(repository, "web", seed)

    with pytest.raises(StoreError) as caught:
        write()
    assert "expired" in caught.value.hint
    rig.bad.forgive()
    rig.check()
    with rig.open() as repository:
        rig.back_up(repository, "web", 6)
    rig.check()


def test_a_restore_through_cut_answers_is_exact(rig: Rig) -> None:
    rig.bad.fail("get", cut_short(), nth=2, every=True)
    with rig.open("new") as repository:
        for point in repository.points():
            assert read_disk(repository, point) == rig.disks[point.id]
