"""An object store of three servers that keeps everything twice loses one of them, and then another. It takes half a
minute, so it is part of the soak: python -m tests.soak --what replicas."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from imaging.clock import SystemClock
from imaging.errors import StoreUnavailable
from imaging.storage.contract import Store
from imaging.storage.retrying import Patience, RetryingStore
from imaging.storage.s3 import Limits, S3Store
from tests.faults.repositories import back_up, content, make, read_disk, reopen
from tests.lab.s3_replicas import VOLUME_SERVERS, ReplicatedServer

MIB = 1 << 20


def run(folder: Path, seed: int, say: Callable[[str], None]) -> str:
    """AssertionError where a point does not restore with one server lost, or where it makes no difference."""
    disks: dict[str, bytes] = {}
    with ReplicatedServer() as server:
        plain = S3Store(server.bucket("home/"), server.credentials, Limits())
        store = RetryingStore(plain, SystemClock(), time.sleep, random.random, Patience(longest_s=1.0, total_s=60.0))
        with make(folder, store=store) as repository:
            for number in range(3):
                data = content(seed + number, 6 * MIB)
                for each in (data, data[:MIB] + content(seed + 10 + number, MIB) + data[2 * MIB :]):
                    disks[back_up(repository, f"machine-{number}", {"disk": each}).id] = each
        before = server.held()
        volumes = set().union(*before.values())
        copies = {volume: {name for name in before if volume in before[name]} for volume in volumes}
        assert {len(each) for each in copies.values()} == {2}, copies
        say(f"{len(disks)} restore points, in {len(volumes)} volumes on three servers, each on two of them")

        first = server.fullest()
        server.kill(first)
        assert server.held().keys() == set(VOLUME_SERVERS) - {first}
        check(folder, store, disks)
        say(f"{first} killed, with {len(before[first])} volumes: all is verified, and each point restores bit-exact")

        with reopen(folder, store=store) as repository:
            data = content(seed + 3, 6 * MIB)
            disks[back_up(repository, "machine-3", {"disk": data}).id] = data
        check(folder, store, disks)
        say("a backup with two servers left: it, and all before, restore")

        second = max(server.held(), key=lambda name: len(before[name] & before[first]))
        assert before[second] & before[first], "no volume was on these two"
        packs = {listed.name: plain.get(listed.name) for listed in plain.list("packs/")}
        server.kill(second)
        lost = sum(is_lost(plain, name, data) for name, data in packs.items())
        assert lost, "the copies were never needed"
        return f"{second} killed too: {lost} of {len(packs)} packs cannot be read, and none is read wrong"


def check(folder: Path, store: Store, disks: Mapping[str, bytes]) -> None:
    """As a machine finds it that knows nothing but the key."""
    with reopen(folder, secrets.token_hex(4), store=store) as repository:
        report = repository.verify(read_data=True)
        assert report.ok, [str(problem.error) for problem in report.problems]
        points = repository.points()
        assert {point.id for point in points} == set(disks)
        for point in points:
            assert read_disk(repository, point) == disks[point.id]


def is_lost(store: Store, name: str, data: bytes) -> bool:
    try:
        assert store.get(name) == data
    except StoreUnavailable:
        return True
    return False
