from __future__ import annotations

import errno
import fcntl
import os
import random
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from imaging import index_rows
from imaging.errors import Damaged, IndexUnavailable, NoSpace
from imaging.index import ChunkIndex, PackState, PendingIndex, decode_index, encode_index
from imaging.index_files import IndexFolder
from imaging.places import LENGTH_MAX, OFFSET_MAX, pack_place, unpack_place
from tests.unit.index_process import REPOSITORY, OtherProcess, identity, pack_hash, pack_of, small_segments


@pytest.fixture
def index(tmp_path: Path) -> Iterator[ChunkIndex]:
    with ChunkIndex.open(tmp_path / "index", REPOSITORY) as opened:
        yield opened


@given(st.integers(0, OFFSET_MAX), st.integers(0, LENGTH_MAX), st.integers(0, LENGTH_MAX), st.booleans())
def test_places_hold_their_four_numbers_in_the_bits_that_the_format_states(
    offset: int, stored: int, plain: int, compressed: bool
) -> None:
    place = pack_place(offset, stored, plain, compressed)
    assert unpack_place(place) == (offset, stored, plain, compressed)
    assert place == offset + stored * 2**25 + plain * 2**44 + compressed * 2**63
    assert place < 1 << 64


@pytest.mark.parametrize(
    "numbers", [(OFFSET_MAX + 1, 0, 0), (0, LENGTH_MAX + 1, 0), (0, 0, LENGTH_MAX + 1), (-1, 0, 0)]
)
def test_numbers_that_do_not_fit_a_place_are_our_own_mistake(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="no place"):
        pack_place(*numbers, compressed=False)


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(0, 1000), max_size=20), max_size=6))
def test_index_objects_come_back(packs: list[list[int]]) -> None:
    made = [pack_of(number, blobs) for number, blobs in enumerate(packs)]
    assert decode_index(encode_index(made)) == made


def test_an_index_object_has_the_bytes_that_the_format_states() -> None:
    pack = pack_of(3, [5])
    assert encode_index([pack]) == (
        struct.pack("<I", 1) + pack.pack + pack.salt + struct.pack("<IBBBBI", 1 << 20, 1, 0, 0, 0, 1) + pack.rows
    )


def test_hostile_index_objects_are_damage() -> None:
    good = encode_index([pack_of(1, [1, 2]), pack_of(2, [3])])
    for length in range(len(good)):
        with pytest.raises(Damaged):
            decode_index(good[:length], "index/x")
    for bad in (
        good + b"x",
        struct.pack("<I", 0xFFFFFFFF) + good[4:],
        good[:4] + good[4 : 4 + 64] + struct.pack("<IBBBBI", 1 << 20, 2, 0, 0, 0, 2) + good[80:],
        good[:4] + good[4 : 4 + 64] + struct.pack("<IBBBBI", 1 << 20, 1, 0, 0, 0, 0xFFFFFFFF) + good[80:],
        good[:4] + good[4 : 4 + 64] + struct.pack("<IBBBBI", 0x2000000, 1, 0, 0, 0, 2) + good[80:],
        good[:4] + good[4 : 4 + 64] + struct.pack("<IBBBBI", 79, 1, 0, 0, 0, 2) + good[80:],
    ):
        with pytest.raises(Damaged, match="index/x"):
            decode_index(bad, "index/x")


def test_blobs_are_known_and_located_once_their_object_is_in(index: ChunkIndex) -> None:
    assert index.known([identity(1)]) == [False]
    assert index.locate(identity(1)) == []
    index.add_object("index/a-000000", [pack_of(1, [1, 2]), pack_of(2, [2, 3])])

    assert index.known([identity(3), identity(9), identity(1)]) == [True, False, True]
    assert index.known([]) == []
    (only,) = index.locate(identity(1))
    assert (only.pack, only.salt, only.offset_bytes, only.stored_bytes) == (pack_hash(1), pack_hash(1)[::-1], 64, 100)
    assert (only.plain_bytes, only.compressed, only.state) == (4096, True, PackState.LIVE)
    assert {place.pack for place in index.locate(identity(2))} == {pack_hash(1), pack_hash(2)}
    assert [len(places) for places in index.locate_many([identity(9), identity(2), identity(2)])] == [0, 2, 2]
    assert index.objects() == {"index/a-000000"}


def test_only_live_packs_deduplicate_and_all_are_read_gone_ones_last(index: ChunkIndex) -> None:
    index.add_object("index/a-000000", [pack_of(1, [1]), pack_of(2, [1, 2])])
    for state in (PackState.CONDEMNED, PackState.DAMAGED):
        index.set_states({pack_hash(1): state})
        assert index.known([identity(1), identity(2)]) == [True, True]
        assert [place.state for place in index.locate(identity(1))] == [PackState.LIVE, state]
    index.set_states({pack_hash(2): PackState.GONE})
    assert index.known([identity(1), identity(2)]) == [False, False]
    assert [place.pack for place in index.locate(identity(1))] == [pack_hash(1), pack_hash(2)]
    assert [place.state for place in index.locate(identity(2))] == [PackState.GONE]
    index.returned([pack_hash(1), pack_hash(2)])
    assert index.known([identity(1), identity(2)]) == [True, True]
    index.set_states({pack_hash(1): PackState.LIVE, pack_hash(2): PackState.LIVE})
    assert index.known([identity(2)]) == [True]
    assert index.packs()[pack_hash(1)].state == PackState.CONDEMNED, "nothing takes back condemned"
    assert index.counts().packs[PackState.CONDEMNED] == 1


def test_an_object_that_is_gone_takes_its_packs_from_deduplication_but_not_from_readers(index: ChunkIndex) -> None:
    shared, own = pack_of(1, [1]), pack_of(2, [2])
    index.add_object("index/a-000000", [shared, own])
    index.add_object("index/b-000000", [shared])
    index.add_object("index/b-000000", [shared])
    index.drop_object("index/a-000000")
    index.drop_object("index/a-000000")
    assert index.known([identity(1), identity(2)]) == [True, False]
    assert [place.state for place in index.locate(identity(2))] == [PackState.UNLISTED]
    index.add_object("index/c-000000", [own])
    assert index.known([identity(2)]) == [True]
    assert index.counts().blobs == 2


def test_unlisted_packs_are_for_reading_only(index: ChunkIndex) -> None:
    index.add_unlisted([pack_of(1, [1])])
    assert index.known([identity(1)]) == [False]
    assert len(index.locate(identity(1))) == 1
    index.add_object("index/a-000000", [pack_of(1, [1])])
    assert index.known([identity(1)]) == [True]


def test_building_equals_adding_also_when_it_spills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_rows, "_SPILL_ENTRIES", 1000)
    chosen = random.Random(1)
    objects = [
        (
            f"index/{number:032x}-000000",
            [pack_of(number * 10 + each, chosen.sample(range(3000), 400)) for each in range(5)],
        )
        for number in range(4)
    ]
    objects[0][1].append(objects[1][1][0])  # one pack in two objects
    with ChunkIndex.open(tmp_path / "a", REPOSITORY) as built, ChunkIndex.open(tmp_path / "b", REPOSITORY) as added:
        built.build(objects)
        for name, packs in objects:
            added.add_object(name, packs)
        everything = [identity(number) for number in range(3100)]
        assert built.known(everything) == added.known(everything)
        assert sum(built.known(everything)) > 2500
        key = lambda place: (place.pack, place.offset_bytes)  # noqa: E731
        assert [sorted(places, key=key) for places in built.locate_many(everything)] == [
            sorted(places, key=key) for places in added.locate_many(everything)
        ]
        assert built.counts() == added.counts()
        assert not list((tmp_path / "a").glob("sorting-*"))


def test_building_into_an_index_that_is_not_empty_is_refused(index: ChunkIndex) -> None:
    index.add_object("index/a-000000", [pack_of(1, list(range(50)))])
    assert not index.build([("index/b-000000", [pack_of(2, list(range(50, 100)))])])
    assert index.objects() == {"index/a-000000"}
    assert index.known([identity(0), identity(50)]) == [True, False]


def test_what_is_said_of_a_pack_holds_before_the_pack_is_there(tmp_path: Path) -> None:
    """A pack that was condemned, or found damaged, is never live between its arrival and its mark."""
    objects = [("index/a-000000", [pack_of(1, [1]), pack_of(2, [2]), pack_of(3, [3])])]
    with ChunkIndex.open(tmp_path / "a", REPOSITORY) as built, ChunkIndex.open(tmp_path / "b", REPOSITORY) as added:
        for index in (built, added):
            assert index.judge([pack_hash(1)], [pack_hash(2)])
            assert not index.judge([pack_hash(1)], [pack_hash(2)])
        assert built.build(objects)
        added.add_object(*objects[0])
        for index in (built, added):
            states = {pack: each.state for pack, each in index.packs().items()}
            assert states == {
                pack_hash(1): PackState.CONDEMNED,
                pack_hash(2): PackState.DAMAGED,
                pack_hash(3): PackState.LIVE,
            }
            assert index.known([identity(1), identity(2), identity(3)]) == [False, False, True]
            assert index.judge([], [])
            assert index.known([identity(1), identity(2), identity(3)]) == [False, True, True], "condemned is for ever"


def test_packs_that_are_not_there_when_it_is_built_are_gone(index: ChunkIndex) -> None:
    assert index.build([("index/a-000000", [pack_of(1, [1]), pack_of(2, [2])])], present={pack_hash(1)})
    assert index.known([identity(1), identity(2)]) == [True, False]
    assert index.has_losses()


def test_packs_that_nothing_needs_any_more_are_forgotten(index: ChunkIndex) -> None:
    for number in range(8):
        index.add_object(f"index/{number}-000000", [pack_of(number, [number, 100])])
    index.judge([pack_hash(0), pack_hash(1), pack_hash(2)], [])
    for number in (0, 1):
        index.drop_object(f"index/{number}-000000")
    assert index.forget_outlived([]) == 0, "a quarter of them is no reason yet"
    index.drop_object("index/2-000000")
    assert index.forget_outlived([pack_hash(0)]) == 3
    assert index.packs().keys() == {pack_hash(number) for number in range(3, 8)}
    assert index.counts().blobs == 10
    assert [len(index.locate(identity(number))) for number in (0, 1, 2, 3, 100)] == [0, 0, 0, 1, 5]
    index.check()
    index.add_object("index/8-000000", [pack_of(8, [8]), pack_of(0, [0]), pack_of(1, [1])])
    assert [each.pack for each in index.locate(identity(8))] == [pack_hash(8)], "no number is given twice"
    assert index.known([identity(0), identity(1), identity(7)]) == [False, True, True]


def test_what_was_collected_is_no_loss(index: ChunkIndex) -> None:
    index.add_object("index/a-000000", [pack_of(number, [number]) for number in range(9)])
    index.judge([pack_hash(0)], [])
    index.set_states({pack_hash(0): PackState.GONE})
    assert not index.has_losses(), "condemned, and deleted since"
    index.set_states({pack_hash(1): PackState.GONE})
    assert index.has_losses()
    index.returned([pack_hash(1)])
    assert not index.has_losses()
    index.judge([], [pack_hash(2)])
    assert index.has_losses()
    index.set_states({pack_hash(2): PackState.LIVE})
    assert not index.has_losses()


def test_a_failing_file_system_is_an_unusable_cache_and_not_a_bare_error(
    index: ChunkIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_rows, "_SPILL_ENTRIES", 10)
    for number, kind in ((errno.EIO, IndexUnavailable), (errno.ENOSPC, NoSpace)):

        def fail(*_: object, number: int = number, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("imaging.index_rows.tempfile.TemporaryDirectory", fail)
        with pytest.raises(kind) as caught:
            index.build([("index/a-000000", [pack_of(1, list(range(50)))])])
        assert caught.value.hint
    monkeypatch.setattr("imaging.index_files.shutil.rmtree", fail)
    with pytest.raises(NoSpace):
        index.discard()


def test_of_two_processes_that_build_at_once_one_does_and_the_other_goes_on_with_that(tmp_path: Path) -> None:
    code = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from imaging.index import ChunkIndex
        from tests.unit.index_process import REPOSITORY, pack_of

        def objects():
            print("building", flush=True)
            sys.stdin.readline()
            yield "index/a-000000", [pack_of(1, [1]), pack_of(2, [2])]

        with ChunkIndex.open(Path(sys.argv[1]), REPOSITORY) as opened:
            assert opened.build(objects())
        """
    )
    folder = tmp_path / "index"
    with (
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as child,
        ChunkIndex.open(folder, REPOSITORY) as index,
    ):
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"building\n"
        built: list[bool] = []
        other = threading.Thread(
            target=lambda: built.append(index.build([("index/b-000000", [pack_of(2, [2]), pack_of(3, [3])])]))
        )
        other.start()
        other.join(0.2)
        assert other.is_alive(), "it waits for the one that builds"
        child.stdin.write(b"\n")
        child.stdin.close()
        other.join()
        assert child.wait() == 0
        assert built == [False]
        index.add_object("index/b-000000", [pack_of(2, [2]), pack_of(3, [3])])
        assert index.known([identity(number) for number in (1, 2, 3)]) == [True, True, True]
        assert index.objects() == {"index/a-000000", "index/b-000000"}


def test_it_is_closed_when_everybody_has_left_and_lets_nobody_in_after(tmp_path: Path) -> None:
    index = ChunkIndex.open(tmp_path, REPOSITORY)
    index.add_object("index/a-000000", [pack_of(1, [1])])
    inside, leave = threading.Event(), threading.Event()

    def read() -> None:
        with index._access.reading() as snapshot:
            inside.set()
            leave.wait()
            assert snapshot.entries(index._tables.packs) == 1

    reader, closer = threading.Thread(target=read), threading.Thread(target=index.close)
    reader.start()
    inside.wait()
    closer.start()

    def ask_until(deadline: float) -> None:
        while time.monotonic() < deadline:
            index.known([identity(1)])

    with pytest.raises(IndexUnavailable, match="closed"):
        ask_until(time.monotonic() + 60)
    closer.join(0.1)
    assert closer.is_alive()
    leave.set()
    closer.join()
    reader.join()


def test_it_keeps_its_content_and_loses_it_for_another_repository(tmp_path: Path) -> None:
    with ChunkIndex.open(tmp_path, REPOSITORY) as opened:
        opened.add_object("index/a-000000", [pack_of(1, [1])])
    with ChunkIndex.open(tmp_path, REPOSITORY) as opened:
        assert opened.known([identity(1)]) == [True]
    with ChunkIndex.open(tmp_path, bytes(16)) as opened:
        assert opened.objects() == set()


def test_a_machine_that_went_down_while_it_was_open_makes_it_empty_and_one_that_did_not_keeps_it(
    tmp_path: Path,
) -> None:
    code = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from imaging.index import ChunkIndex
        from tests.unit.index_process import REPOSITORY, pack_of
        opened = ChunkIndex.open(Path(sys.argv[1]), REPOSITORY, boot="first")
        opened.add_object("index/a-000000", [pack_of(1, [1])])
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    child = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=False)
    assert child.returncode == -9, child.stderr
    with ChunkIndex.open(tmp_path, REPOSITORY, boot="first") as opened:
        assert opened.known([identity(1)]) == [True], "the death of a process loses nothing"
    assert (tmp_path / "open").read_bytes() == b""
    with ChunkIndex.open(tmp_path, REPOSITORY, boot="second") as opened:
        assert opened.known([identity(1)]) == [True], "it was closed cleanly before the machine went down"
        (tmp_path / "open").write_bytes(b"first")
    (tmp_path / "open").write_bytes(b"first")
    with ChunkIndex.open(tmp_path, REPOSITORY, boot="second") as opened:
        assert opened.objects() == set()


def test_what_is_there_is_made_durable_while_nobody_else_can_write(tmp_path: Path) -> None:
    first, second = IndexFolder(tmp_path, "boot"), IndexFolder(tmp_path, "boot")
    first.enter()
    second.enter()
    synced = 0

    def sync() -> bool:
        nonlocal synced
        synced += 1
        with (tmp_path / "guard").open("r+b") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which is what enter() begins with
        return True

    first.leave(sync)
    assert (synced, (tmp_path / "open").read_bytes()) == (0, b"boot"), "the other may write more, and be killed"
    second.leave(sync)
    assert (synced, (tmp_path / "open").read_bytes()) == (1, b"")


def test_a_damaged_file_is_thrown_away(tmp_path: Path) -> None:
    with ChunkIndex.open(tmp_path, REPOSITORY) as opened:
        opened.add_object("index/a-000000", [pack_of(1, [1])])
    (tmp_path / "lmdb" / "data.mdb").write_bytes(os.urandom(20_000))
    with ChunkIndex.open(tmp_path, REPOSITORY) as opened:
        assert opened.objects() == set()
        opened.add_object("index/a-000000", [pack_of(1, [1])])
        assert opened.known([identity(1)]) == [True]


def test_a_second_opening_in_one_process_is_refused_and_hurts_nothing(tmp_path: Path) -> None:
    with ChunkIndex.open(tmp_path, REPOSITORY) as opened:
        opened.add_object("index/a-000000", [pack_of(1, [1])])
        with pytest.raises(IndexUnavailable, match="already open"):
            ChunkIndex.open(tmp_path, REPOSITORY)
        assert opened.known([identity(1)]) == [True]


def test_another_process_sees_changes_and_its_own_are_seen(index: ChunkIndex, tmp_path: Path) -> None:
    index.add_object("index/a-000000", [pack_of(1, [1])])
    assert index.known([identity(1)]) == [True]
    code = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from imaging.index import ChunkIndex, PackState
        from tests.unit.index_process import REPOSITORY, identity, pack_hash
        with ChunkIndex.open(Path(sys.argv[1]), REPOSITORY) as opened:
            assert opened.known([identity(1)]) == [True]
            opened.set_states({pack_hash(1): PackState.CONDEMNED})
        """
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "index")], check=True)
    assert index.known([identity(1)]) == [False]
    assert (tmp_path / "index" / "open").read_bytes() != b"", "it is still open here"


def test_a_forked_child_must_not_use_it(index: ChunkIndex) -> None:
    child = os.fork()
    if child == 0:
        try:
            index.known([identity(1)])
        except RuntimeError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_threads_read_while_another_writes(index: ChunkIndex) -> None:
    index.add_object("index/0-000000", [pack_of(0, list(range(100)))])
    failures: list[BaseException] = []
    stop = threading.Event()

    def read() -> None:
        try:
            while not stop.is_set():
                assert all(index.known([identity(number) for number in range(100)]))
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for number in range(1, 30):
        index.add_object(f"index/{number}-000000", [pack_of(number, list(range(number * 100, number * 100 + 100)))])
        index.set_states({pack_hash(number): PackState.CONDEMNED})
    stop.set()
    for reader in readers:
        reader.join()
    assert failures == []


@pytest.mark.parametrize("limit", [0, 50, 10_000])
def test_what_a_run_stored_is_known_to_it_in_memory_and_beyond(tmp_path: Path, limit: int) -> None:
    with PendingIndex(tmp_path, in_memory_max=limit) as pending, PendingIndex(tmp_path) as other:
        for number in range(5):
            pending.add(pack_of(number, list(range(number * 40, number * 40 + 60))))
        wanted = list(range(0, 300, 7))
        assert pending.known([identity(each) for each in wanted]) == [each < 220 for each in wanted]
        assert not any(other.known([identity(each) for each in wanted]))
        assert bool(list(tmp_path.glob("pending-*"))) == (limit < 200)
    assert list(tmp_path.iterdir()) == []


class IndexMachine(RuleBasedStateMachine):
    """The index against plain dicts, in two processes that have it open at once: every step is done by one of them, and
    both say the same."""

    other: OtherProcess
    packs: Bundle[int] = Bundle("packs")
    objects: Bundle[str] = Bundle("objects")

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.patch = pytest.MonkeyPatch()
        small_segments(self.patch, 0, 8)
        self.index = ChunkIndex.open(Path(self.folder.name), REPOSITORY)
        self.other.open(Path(self.folder.name))
        self.elsewhere = False
        self.content: dict[int, list[int]] = {}
        self.listed: dict[str, set[int]] = {}
        self.marks: dict[PackState, set[int]] = {
            PackState.CONDEMNED: set(),
            PackState.DAMAGED: set(),
            PackState.GONE: set(),
        }
        self.judged: set[int] = set()
        self.seen: set[int] = set()

    @initialize(target=packs, contents=st.lists(st.lists(st.integers(0, 25), max_size=6), min_size=3, max_size=6))
    def make(self, contents: list[list[int]]) -> MultipleResults[int]:
        self.content = {number: sorted(set(blobs)) for number, blobs in enumerate(contents)}
        return multiple(*self.content)

    def act(self, method: str, *arguments: Any) -> Any:
        if self.elsewhere:
            return self.other.call(method, *arguments)
        return getattr(self.index, method)(*arguments)

    @rule(elsewhere=st.booleans())
    def take_turns(self, elsewhere: bool) -> None:
        self.elsewhere = elsewhere

    @rule(
        target=objects,
        name=st.sampled_from([f"index/{letter}-000000" for letter in "abcde"]),
        chosen=st.lists(packs, max_size=4),
    )
    def add(self, name: str, chosen: list[int]) -> str:
        self.act("add_object", name, [pack_of(number, self.content[number]) for number in chosen])
        self.listed.setdefault(name, set(chosen))
        self.seen |= set(chosen)
        return name

    @rule(chosen=packs)
    def unlisted(self, chosen: int) -> None:
        self.act("add_unlisted", [pack_of(chosen, self.content[chosen])])
        self.seen.add(chosen)

    @rule(name=consumes(objects))
    def drop(self, name: str) -> None:
        self.act("drop_object", name)
        self.listed.pop(name, None)

    @rule(chosen=packs, state=st.sampled_from(PackState))
    def mark(self, chosen: int, state: PackState) -> None:
        self.act("set_states", {pack_hash(chosen): state})
        if state == PackState.LIVE:
            for bad in (self.marks[PackState.DAMAGED], self.marks[PackState.GONE], self.judged):
                bad.discard(chosen)
        elif state in self.marks:
            self.marks[state].add(chosen)

    @rule(chosen=packs)
    def returns(self, chosen: int) -> None:
        self.act("returned", [pack_hash(chosen)])
        self.marks[PackState.GONE].discard(chosen)

    @rule(condemned=st.lists(packs, max_size=2), damaged=st.lists(packs, max_size=2))
    def judge(self, condemned: list[int], damaged: list[int]) -> None:
        news = self.act("judge", [pack_hash(each) for each in condemned], [pack_hash(each) for each in damaged])
        assert news == (not self.marks[PackState.CONDEMNED].issuperset(condemned) or self.judged != set(damaged))
        self.marks[PackState.CONDEMNED].update(condemned)
        self.judged = set(damaged)

    @rule()
    def forget(self) -> None:
        outlived = {
            number
            for number in self.seen
            if not any(number in listed for listed in self.listed.values())
            and (number in self.marks[PackState.CONDEMNED] or number in self.marks[PackState.GONE])
        }
        if len(outlived) * 4 <= len(self.seen):
            outlived = set()
        assert self.act("forget_outlived", []) == len(outlived)
        self.seen -= outlived
        for marked in (*self.marks.values(), self.judged):
            marked -= outlived

    @rule()
    def reopen(self) -> None:
        self.index.close()
        self.index = ChunkIndex.open(Path(self.folder.name), REPOSITORY)

    @rule()
    def reopen_elsewhere(self) -> None:
        self.other.close()
        self.other.open(Path(self.folder.name))

    @rule(name=st.sampled_from("fgh"), chosen=st.lists(packs, max_size=4))
    def build(self, name: str, chosen: list[int]) -> None:
        """If it is empty, all at once."""
        objects = [(f"index/{name}-000000", [pack_of(number, self.content[number]) for number in chosen])]
        if self.act("build", objects):
            self.listed.setdefault(objects[0][0], set(chosen))
            self.seen |= set(chosen)

    def state(self, number: int) -> PackState:
        if number in self.marks[PackState.GONE]:
            return PackState.GONE
        if number in self.marks[PackState.DAMAGED] or number in self.judged:
            return PackState.DAMAGED
        if number in self.marks[PackState.CONDEMNED]:
            return PackState.CONDEMNED
        return PackState.LIVE if any(number in listed for listed in self.listed.values()) else PackState.UNLISTED

    @invariant()
    def agrees(self) -> None:
        expected = {
            blob: sorted(
                (self.state(number), pack_hash(number)) for number in self.seen if blob in self.content[number]
            )
            for blob in range(27)
        }
        ids = [identity(blob) for blob in range(27)]
        for known in (self.index.known(ids), self.other.call("known", ids), self.index.known(ids[:5])):
            assert known == [any(s == PackState.LIVE for s, _ in expected[blob]) for blob in range(27)][: len(known)]
        for found in (
            self.index.locate_many(ids),
            self.other.call("locate_many", ids),
            [self.index.locate(each) for each in ids],
        ):
            assert [sorted((place.state, place.pack) for place in places) for places in found] == list(
                expected.values()
            )
            assert all([p.state for p in places] == sorted(p.state for p in places) for places in found)
        assert self.index.counts().blobs == sum(map(len, expected.values()))
        assert self.index.objects() == set(self.listed)
        assert {pack: each.state for pack, each in self.index.packs().items()} == {
            pack_hash(number): self.state(number) for number in self.seen
        }

    def teardown(self) -> None:
        self.index.close()
        self.other.close()
        self.patch.undo()
        self.folder.cleanup()


class TestIndexMachine(IndexMachine.TestCase):  # type: ignore[valid-type, misc]
    settings = settings(max_examples=25, stateful_step_count=20, deadline=None)

    @classmethod
    def setUpClass(cls) -> None:
        IndexMachine.other = OtherProcess()

    @classmethod
    def tearDownClass(cls) -> None:
        IndexMachine.other.end()
