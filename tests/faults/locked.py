"""A repository whose objects are locked, on the real server, and an intruder with the appliance's own credentials."""

from __future__ import annotations

import random
import secrets
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from imaging.repository import Point, Repository
from imaging.storage.object_lock import GOVERNANCE, Lock, Locking
from imaging.storage.retrying import Patience, RetryingStore
from imaging.storage.s3 import Bucket, Credentials, Limits, S3Store
from imaging.storage.s3_versions import S3Versions
from tests.faults.repositories import ManualClock, back_up, content, make, read_disk, reopen
from tests.lab.s3_server import S3Server

MIB = 1 << 20
FEW = Limits(connections=4)


@dataclass
class LockedRig:
    """Its credentials are those that an appliance is given."""

    folder: Path
    server: S3Server
    place: Bucket
    lock: Lock
    disks: dict[str, bytes] = field(default_factory=dict)
    credentials: Credentials = S3Server.appliance
    limits: Limits = FEW
    page: int = 7

    def with_days(self, days: int) -> LockedRig:
        """The same repository, locked for longer."""
        return replace(self, lock=replace(self.lock, days=days))

    @property
    def store(self) -> RetryingStore:
        return self._opened[1]

    @cached_property
    def versions(self) -> S3Versions:
        store, patient, locking = self._opened
        return S3Versions(store, locking, patient, page=self.page)

    @cached_property
    def _opened(self) -> tuple[S3Store, RetryingStore, Locking]:
        locking, clock = Locking(self.lock), ManualClock()
        store = S3Store(self.place, self.credentials, self.limits, locking)
        return store, RetryingStore(store, clock, clock.pass_s, random.random, Patience(0.2, 10.0, 60.0)), locking

    def make(self) -> Repository:
        return make(self.folder, store=self.store)

    def open(self, cache: str = "cache") -> Repository:
        return reopen(self.folder, cache, store=self.store)

    def back_up(self, repository: Repository, name: str, seed: int) -> Point:
        data = content(seed, MIB)
        point = back_up(repository, name, {"disk": data})
        self.disks[point.id] = data
        return point

    def check(self, cache: str = "") -> None:
        """As a machine finds it that knows nothing but the key, or the one that has this cache."""
        with self.open(cache or secrets.token_hex(4)) as repository:
            report = repository.verify(read_data=True)
            assert report.ok, [str(problem.error) for problem in report.problems]
            points = repository.points()
            assert {point.id for point in points} == set(self.disks)
            for point in points:
                assert read_disk(repository, point) == self.disks[point.id]

    # The intruder

    @cached_property
    def intruder(self) -> Any:
        """boto3, with the appliance's credentials."""
        return self.server.client(self.server.appliance)

    def shown(self) -> list[str]:
        """Of every object that is there now."""
        found: list[str] = []
        pages = self.intruder.get_paginator("list_objects_v2").paginate(
            Bucket=self.place.name, Prefix=self.place.prefix
        )
        for page in pages:
            found += [entry["Key"] for entry in page.get("Contents", ())]
        return found


def rig(
    folder: Path, server: S3Server, mode: str = GOVERNANCE, *, days: int = 10, extra_days: int = 5, url: str = ""
) -> LockedRig:
    """`url` leads there through a proxy."""
    place = server.locked_bucket(f"{secrets.token_hex(8)}/", url=url)
    return LockedRig(folder, server, place, Lock(mode, days, extra_days))


def days(count: float) -> timedelta:
    return timedelta(days=count)
