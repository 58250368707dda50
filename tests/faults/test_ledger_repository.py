"""The ledger on a real repository: with it a collection decides as one that has just read everything."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from imaging.collecting import CollectionRefused, Options
from imaging.ids import NODE
from imaging.packs import digest_of_name, pack_name
from imaging.repository import Repository
from tests.faults.repositories import OTHER, back_up, content, make, read_disk, reopen
from tests.faults.test_collection import Silent, collect, delete, healthy

KIB = 1 << 10


def plans_alike(folder: Path, warm: Repository, number: int) -> None:
    with reopen(folder, f"cold-{number}") as cold:
        mine, theirs = (each.plan_collection(Options(), Silent()) for each in (warm, cold))
        assert (mine.freed_bytes, mine.kept_bytes) == (theirs.freed_bytes, theirs.kept_bytes)
        assert set(mine.condemned) == set(theirs.condemned)
        sets = [[point] for point in cold.points()]
        assert warm.exclusive(sets, Silent()) == cold.exclusive(sets, Silent())


def test_two_appliances_that_collect_by_turns(tmp_path: Path) -> None:
    """What one has moved, merged and removed, the other's ledger has never seen, and has to decide about."""
    rng = random.Random(11)
    kept: dict[str, bytes] = {}
    with make(tmp_path) as repository, reopen(tmp_path, "other", OTHER) as theirs:
        shared = content(1, 600 * KIB)
        for number in range(12):
            by = rng.choice([repository, theirs])
            data = shared[: 100 * KIB * rng.randrange(1, 6)] + content(100 + number, 300 * KIB)
            kept[back_up(by, rng.choice(["web", "db"]), {"disk": data}).id] = data
            if len(kept) > 3:
                gone = rng.choice(sorted(kept))
                delete(by, by.point(gone))
                del kept[gone]
            if rng.random() < 0.6:
                collect(rng.choice([repository, theirs]))
            if number % 3 == 0:
                plans_alike(tmp_path, repository, number)
        collect(theirs)
        collect(repository)
        assert {point.id for point in repository.points()} == set(kept)
        for point in repository.points():
            assert read_disk(repository, point) == kept[point.id]
        healthy(repository)


def test_damage_that_came_after_it_was_read(tmp_path: Path) -> None:
    """An index object and a map are read once: what they said is known, whatever becomes of them."""
    with make(tmp_path) as repository:
        data = content(1, 600 * KIB)
        point = back_up(repository, "web", {"disk": data})
        (nodes,) = [pack_name(pack) for pack, each in repository.index.packs().items() if each.blob_type == NODE]
        gone = back_up(repository, "db", {"disk": content(2, 600 * KIB)})
        repository.plan_collection(Options(), Silent())
        store = tmp_path / "store"
        wholes = {path: path.read_bytes() for path in (*(store / "index").iterdir(), store / nodes)}
        for path, whole in wholes.items():
            path.write_bytes(whole[:70] + bytes([whole[70] ^ 1]) + whole[71:])
        delete(repository, gone)
        with reopen(tmp_path, "cold") as cold, pytest.raises(CollectionRefused):
            cold.plan_collection(Options(), Silent())
        plan = repository.plan_collection(Options(), Silent())
        assert plan.freed_bytes > 600 * KIB
        assert digest_of_name(nodes) not in plan.condemned
        for path, whole in wholes.items():
            path.write_bytes(whole)
        collect(repository)
        assert read_disk(repository, point) == data
        healthy(repository)
