"""The ledger: with it a collection finds what it finds without it, whatever came, went, moved or broke since."""

from __future__ import annotations

import contextlib
import random
import resource
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imaging import ledger as ledger_module
from imaging.holdings import Holdings, Trust
from imaging.keys import KeyBundle, Keys
from imaging.ledger import Ledger, TooManyBlobs
from imaging.ledger_segments import NAMES, SegmentFolder
from imaging.marking import LedgerBroken, Marker, Unresolvable
from imaging.node_places import NodePlaces
from imaging.places import Location, PackRows, PackState
from tests.unit.test_holdings import Disk, Forest, identity, pack

KEYS = Keys.derive(KeyBundle(b"m" * 32, b"d" * 32), b"r" * 16)
OTHER_KEYS = Keys.derive(KeyBundle(b"n" * 32, b"d" * 32), b"r" * 16)
WELL = (Trust.WELL, Trust.CONDEMNED, Trust.DAMAGED, Trust.OPEN)


class World:
    """A repository of numbers, as several collections see it one after the other."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.forest = Forest()
        self.disks: list[Disk] = []
        self.packs: dict[int, PackRows] = {}
        self.objects: dict[str, list[int]] = {}
        self.trust: dict[int, Trust] = {}
        self.stored: set[bytes] = set()
        self.fetched: list[bytes] = []
        self.named = 0

    def fetch(self, ids: Sequence[bytes]) -> list[bytes]:
        self.fetched += ids
        return self.forest.fetch(ids)

    def name(self) -> str:
        self.named += 1
        return f"index/{self.named:032x}-000000"

    def put(self, blobs: Sequence[bytes]) -> list[int]:
        """In packs of their own, listed by one index object."""
        numbers = []
        for at in range(0, len(blobs), 5):
            number = len(self.packs)
            self.packs[number] = pack(number, blobs[at : at + 5])
            self.trust[number] = Trust.WELL
            numbers.append(number)
        self.objects[self.name()] = numbers
        return numbers

    def back_up(self) -> None:
        chunks = [self.rng.randrange(13) for _ in range(self.rng.randrange(1, 24))]
        if self.disks and self.rng.random() < 0.7:
            chunks = [*chunks[:2], *(self.rng.randrange(1, 4) for _ in range(12))]
        disk = self.forest.disk(chunks)
        self.disks.append(disk)
        fresh = sorted(self.forest.needs(disk) - self.stored)
        self.stored |= set(fresh)
        if fresh:
            self.put(fresh)

    def move(self) -> None:
        """What a collection does to a pack that is mostly garbage: its blobs are in a new one, and it goes."""
        listed = [each for each, trust in self.trust.items() if trust is not Trust.UNLISTED]
        if not listed:
            return
        number = self.rng.choice(listed)
        rows = self.packs[number].rows
        self.put([rows[at : at + 32] for at in range(0, len(rows), 40)])
        if self.rng.random() < 0.5:
            self.forget(number)
        else:
            self.trust[number] = Trust.CONDEMNED

    def forget(self, number: int) -> None:
        for numbers in self.objects.values():
            if number in numbers:
                numbers.remove(number)
        rest = [each for each in self.objects.items() if each[1]]
        self.objects = {self.name(): numbers for _, numbers in rest}
        self.trust[number] = Trust.UNLISTED

    def doubt(self) -> None:
        for number in self.rng.sample(list(self.trust), min(2, len(self.trust))):
            if self.trust[number] is not Trust.UNLISTED:
                self.trust[number] = self.rng.choice(WELL)

    def merge(self) -> None:
        every = sorted({number for numbers in self.objects.values() for number in numbers})
        self.objects = {self.name(): every}

    def needed(self, ledger: Ledger) -> list[tuple[bytes, Trust]]:
        """The ids that are, each with how good the place is; which of two equally good ones does not matter. Reads
        index objects and nodes only if the ledger does not know them."""
        for name, numbers in self.objects.items():
            if ledger.listed_by(name, len(numbers)) is None:
                ledger.add_object(name, len(numbers), [self.packs[number] for number in numbers])
        ledger.settle()
        trust = {self.packs[number].pack: trust for number, trust in self.trust.items()}
        hashes = [bytes(each) for each in ledger.packs["hash"]]
        holdings = Holdings(ledger, np.array([trust[each] for each in hashes], np.uint8))
        marker = Marker(self.fetch, holdings)
        for disk in self.disks:
            marker.mark([disk], "a point")
        needed = marker.needed()
        ledger.save(self.objects.keys())
        return sorted(
            (self.packs[number].rows[40 * at : 40 * at + 32], held.trust)
            for held in holdings.packs
            for number in [int.from_bytes(held.pack)]
            for at in np.flatnonzero(needed[held.span]).tolist()
        )


@settings(deadline=None, max_examples=15)
@given(st.randoms(use_true_random=False))
def test_it_changes_nothing_but_what_is_read(tmp_path_factory: pytest.TempPathFactory, rng: random.Random) -> None:
    folder = tmp_path_factory.mktemp("ledger") / "ledger"
    world = World(rng)
    world.back_up()
    for _ in range(6):
        world.needed(Ledger.open(folder, KEYS))
        for _ in range(rng.randrange(4)):
            step = rng.choice([world.back_up, world.back_up, world.move, world.doubt, world.merge])
            step()
        if len(world.disks) > 1 and rng.random() < 0.5:
            world.disks.pop(rng.randrange(len(world.disks)))
        known = set(world.fetched)
        world.fetched = []
        warm = world.needed(Ledger.open(folder, KEYS))
        assert not known.intersection(world.fetched), "a node that was walked once is not read again"
        read, world.fetched = world.fetched, list(known)
        assert warm == world.needed(Ledger())
        world.fetched = [*known, *read]
    shutil.rmtree(folder.parent)


@contextlib.contextmanager
def no_file_longer_than(size_bytes: int) -> Iterator[None]:
    """As if the file system were full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def filled(folder: Path) -> World:
    world = World(random.Random(1))
    for _ in range(5):
        world.back_up()
    world.needed(Ledger.open(folder, KEYS))
    world.fetched = []
    return world


@pytest.mark.parametrize("how", ["flipped", "cut short", "gone", "another's", "half of a merge"])
def test_one_that_is_not_what_was_written_is_made_anew(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "ledger"
    world = filled(folder)
    victims = [f"{name}.npy" for name in NAMES] if how in ("flipped", "gone") else ["stored.npy"]
    for victim in victims:
        expected = world.needed(Ledger.open(folder, KEYS))
        assert not world.fetched
        segments = sorted(each for each in folder.iterdir() if each.is_dir())
        path = segments[0] / victim
        whole = path.read_bytes()
        if how == "flipped":
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        elif how == "cut short":
            path.write_bytes(whole[:-1])
        elif how == "gone":
            path.unlink()
        elif how == "half of a merge":
            shutil.copytree(segments[0], folder / "0000000009-00000000")
        made = Ledger.open(folder, OTHER_KEYS if how == "another's" else KEYS)
        assert made.rows == 0
        assert world.needed(made if how != "another's" else Ledger.open(folder, KEYS)) == expected
        assert world.fetched
        world.fetched = []


def test_two_processes_at_once_lose_no_more_than_what_one_has_learnt(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    world = filled(folder)
    first, second = Ledger.open(folder, KEYS), Ledger.open(folder, KEYS)
    world.back_up()
    world.move()
    expected = world.needed(first)
    assert world.needed(second) == expected
    assert world.needed(second) == expected
    world.back_up()
    expected = world.needed(second)
    assert world.needed(first) == expected
    world.fetched = []
    assert world.needed(Ledger.open(folder, KEYS)) == expected
    assert not world.fetched


def test_without_a_folder_that_can_be_written_it_goes_on_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = filled(tmp_path / "ledger")
    expected = world.needed(Ledger())
    (tmp_path / "file").write_text("no folder")
    found = Ledger.open(tmp_path / "file" / "ledger", KEYS)
    assert world.needed(found) == expected
    assert "cannot be used" in caplog.text
    ledger = Ledger.open(tmp_path / "ledger", KEYS)
    world.put([identity(1000 + each) for each in range(20)])
    with no_file_longer_than(200):
        assert world.needed(ledger) == world.needed(Ledger())
    assert "not kept" in caplog.text
    assert world.needed(Ledger.open(tmp_path / "ledger", KEYS)) == world.needed(Ledger())


def test_many_pieces_become_few(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    world = World(random.Random(2))
    files = SegmentFolder(folder, KEYS)
    most = 0
    for number in range(40):
        world.put([identity(1000 + 3 * number + each) for each in range(3)])
        world.needed(Ledger.open(folder, KEYS))
        most = max(most, len(files.names()))
    assert most < 8
    ledger = Ledger.open(folder, KEYS)
    assert ledger.rows == 120
    assert ledger.rows_of(b"".join(identity(1000 + each) for each in range(120))).tolist() == list(range(120))
    world.merge()
    world.needed(ledger)
    world.put([identity(5000 + each) for each in range(200)])
    world.needed(Ledger.open(folder, KEYS))
    ledger = Ledger.open(folder, KEYS)
    assert {name for name in world.objects if ledger.listed_by(name, len(world.objects[name])) is not None} == set(
        world.objects
    )


def test_one_that_is_mostly_of_packs_that_are_gone_is_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "ledger"
    monkeypatch.setattr(ledger_module, "_UNUSED_ROWS", 10)
    world = filled(folder)
    for number in range(3):
        world.put([identity(1000 + 40 * number + each) for each in range(40)])
    world.needed(Ledger.open(folder, KEYS))
    for number in [number for number, each in world.packs.items() if each.rows[:32] not in world.stored]:
        world.forget(number)
    expected = world.needed(Ledger.open(folder, KEYS))
    assert Ledger.open(folder, KEYS).rows == 0
    assert world.needed(Ledger.open(folder, KEYS)) == expected
    assert Ledger.open(folder, KEYS).rows > 0


def test_what_every_pack_has_lost_is_not_taken_for_needed_by_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    world = filled(folder)
    lost = world.needed(Ledger.open(folder, KEYS))[0][0]
    number = next(number for number, each in world.packs.items() if lost in each.rows)
    world.forget(number)
    for ledger in (Ledger.open(folder, KEYS), Ledger()):
        with pytest.raises(Unresolvable):
            world.needed(ledger)


def test_a_node_without_what_is_below_it_is_our_own_mistake(tmp_path: Path) -> None:
    world = World(random.Random(3))
    disk = world.forest.disk([1] * 2000)
    assert disk.root is not None
    world.put(sorted(world.forest.needs(disk)))
    world.disks.append(disk)
    ledger = Ledger()
    for name, numbers in world.objects.items():
        ledger.add_object(name, len(numbers), [world.packs[number] for number in numbers])
    ledger.settle()
    root, leaf = ledger.rows_of(disk.root + next(iter(world.forest.needs(disk) - {disk.root, identity(1)})))
    ledger.note(np.array([root]), 2, np.array([leaf]), np.array([1]))
    ledger.save([])
    with pytest.raises(LedgerBroken):
        world.needed(ledger)


def test_more_blobs_than_can_be_numbered_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_ROWS_MAX", 4)
    ledger = Ledger()
    ledger.add_object("a", 0, [pack(1, [identity(each) for each in range(4)])])
    ledger.settle()
    ledger.add_object("b", 0, [pack(2, [identity(5)])])
    with pytest.raises(TooManyBlobs):
        ledger.settle()


def test_a_node_that_was_just_met_is_found_without_the_index_and_one_that_moved_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    Ledger.open(folder, KEYS).save([])
    chunks, old = pack(1, [identity(1)]), pack(2, [identity(2)], blob_type=1)
    nodes = pack(3, [identity(3), identity(4)], blob_type=1)
    first = Ledger.open(folder, KEYS)
    first.add_object("index/a", 0, [chunks, old])
    first.settle()
    ledger = Ledger.open(folder, KEYS)
    ledger.add_object("index/b", 0, [nodes])
    ledger.settle()
    elsewhere = Location(b"e" * 32, bytes(32), 64, 80, 64, False, PackState.LIVE)
    asked: list[Sequence[bytes]] = []

    def of_index(ids: Sequence[bytes]) -> list[list[Location]]:
        asked.append(ids)
        return [[elsewhere] for _ in ids]

    refreshed: list[bool] = []
    places = NodePlaces(ledger, of_index, lambda: refreshed.append(True))
    assert places.locate_many([identity(4), identity(2), identity(3), identity(9)]) == [
        [Location(nodes.pack, nodes.salt, 1064, 1000, 1000, False, PackState.LIVE)],
        [elsewhere],
        [Location(nodes.pack, nodes.salt, 64, 1000, 1000, False, PackState.LIVE)],
        [elsewhere],
    ]
    assert asked == [[identity(2), identity(9)]]
    assert places.locate_many([identity(3)])[0][0].pack == nodes.pack
    places.refresh()
    assert places.locate_many([identity(3)]) == [[elsewhere]]
    assert refreshed == [True]
