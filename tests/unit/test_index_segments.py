"""The segments of the index against a plain dict; and what becomes of them when disks fail, writers die, and others
write."""

from __future__ import annotations

import errno
import os
import signal
import struct
import subprocess
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imaging import index_segments
from imaging.errors import ImagingError, IndexUnavailable, NoSpace
from imaging.index import ChunkIndex
from imaging.index_files import IndexFolder
from imaging.index_rows import ENTRY, entries_of, sorted_entries
from imaging.index_segments import Listed, Segment, SegmentFolder, absent, columns_of, places_of
from imaging.places import PackRows, PackState
from tests.unit.index_process import REPOSITORY, OtherProcess, identity, pack_hash, pack_of, small_segments

Row = tuple[bytes, int, int]
"""An id, the number of a pack, a place."""

MOST = (1 << 64) - 1
HALVES = st.sampled_from([0, 1, 5, MOST >> 1, (MOST >> 1) + 1, MOST - 1, MOST]) | st.integers(0, MOST)
IDS = st.builds(lambda high, low: struct.pack(">QQ", high, low).ljust(32, b"x"), HALVES, st.integers(0, 2))
ROWS = st.tuples(IDS, st.integers(0, 4), st.sampled_from([0, 7, MOST]))


def entries(rows: list[Row]) -> Any:
    return sorted_entries(
        entries_of([blob + struct.pack("<Q", place) for blob, _, place in rows], [number for _, number, _ in rows])
    )


def opened(folder: SegmentFolder, listed: list[Listed]) -> list[Segment]:
    return [folder.open(each) for each in listed]


def found(segments: list[Segment], ids: list[bytes]) -> list[list[tuple[int, int]]]:
    places = defaultdict(list)
    for at, number, place in places_of(segments, ids):
        places[at].append((number, place))
    return [sorted(places[at]) for at in range(len(ids))]


@pytest.fixture(params=[0, 1 << 40], ids=["all at once", "one by one"])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_segments, "_FEW_IDS", request.param)


@pytest.mark.usefixtures("few")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    added=st.lists(st.lists(ROWS, max_size=30), min_size=1, max_size=6),
    others=st.lists(IDS, max_size=10),
    gone=st.sets(st.integers(0, 4)),
    small=st.sampled_from([0, 20]),
    at_once=st.sampled_from([2, 1 << 18]),
)
def test_segments_say_what_a_dict_would(
    tmp_path_factory: pytest.TempPathFactory,
    added: list[list[Row]],
    others: list[bytes],
    gone: set[int],
    small: int,
    at_once: int,
) -> None:
    """Also with ids at both ends, ids that are all alike at first, and several places of one."""
    folder = SegmentFolder(tmp_path_factory.mktemp("segments"))
    with pytest.MonkeyPatch.context() as patched:
        small_segments(patched, small, at_once)
        model: dict[bytes, set[tuple[int, int]]] = defaultdict(set)
        listed: list[Listed] = []
        for rows in added:
            new = absent(entries(rows), opened(folder, listed))
            assert len(new) == len({row for row in rows if row[1:] not in model[row[0]]})
            listed = folder.with_more(listed, columns_of(new))
            folder.tidy(listed)
            for identity_, number, place in rows:
                model[identity_].add((number, place))
            ids = [*model, *others]
            assert found(opened(folder, listed), ids) == [sorted(model[each]) for each in ids]
            assert sum(each.count for each in listed) == sum(map(len, model.values()))
        listed = folder.without(listed, sorted(gone))
        folder.tidy(listed)
        assert found(opened(folder, listed), ids) == [
            sorted(place for place in model[each] if place[0] not in gone) for each in ids
        ]
        assert len(list(folder.folder.iterdir())) == len(listed)


def test_there_are_few_segments_and_little_is_written_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small_segments(monkeypatch, 0, 1 << 18)
    folder, written, most = SegmentFolder(tmp_path), 0, 0
    real = SegmentFolder.write

    def counted(self: SegmentFolder, room: int, blocks: Any) -> list[Listed]:
        nonlocal written
        written += room
        return real(self, room, blocks)

    monkeypatch.setattr(SegmentFolder, "write", counted)
    listed: list[Listed] = []
    for number in range(300):
        rows = [(identity(number * 20 + each), number, each) for each in range(20)]
        listed = folder.with_more(listed, columns_of(entries(rows)))
        folder.tidy(listed)
        most = max(most, len(listed))
        assert [each.count for each in listed] == sorted((each.count for each in listed), reverse=True)
    assert sum(each.count for each in listed) == 6000
    assert most <= 6
    assert written < 8 * 6000


def test_an_entry_takes_under_thirty_bytes(tmp_path: Path) -> None:
    rows = [(identity(number), 1, number) for number in range(50_000)]
    (listed,) = SegmentFolder(tmp_path).with_more([], columns_of(entries(rows)))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 30 * listed.count
    assert ENTRY.itemsize == 28


def test_a_file_that_is_cut_off_is_told(tmp_path: Path) -> None:
    folder = SegmentFolder(tmp_path)
    (listed,) = folder.with_more([], columns_of(entries([(identity(number), 1, 1) for number in range(10)])))
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(IndexUnavailable, match="not as it was written"):
            folder.open(listed)
    path.write_bytes(data)
    assert folder.open(listed).count == 10
    with pytest.raises(IndexUnavailable, match="not as it was written"):
        folder.open(Listed(listed.name, 9))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ChunkIndex]:
    small_segments(monkeypatch, 0, 1 << 18)
    with ChunkIndex.open(tmp_path / "index", REPOSITORY) as made:
        yield made


@pytest.fixture
def other() -> Iterator[OtherProcess]:
    process = OtherProcess()
    yield process
    process.close()
    process.end()


def files(index: ChunkIndex) -> list[Path]:
    return sorted(index._files.database.glob("*.segment"))


def add(index: ChunkIndex, number: int, count: int = 10) -> list[bytes]:
    blobs = list(range(number * 1000, number * 1000 + count))
    index.add_object(f"index/{number}-000000", [pack_of(number, blobs)])
    return [identity(blob) for blob in blobs]


@pytest.mark.parametrize("nth", range(4))
@pytest.mark.parametrize(("number", "kind"), [(errno.EIO, IndexUnavailable), (errno.ENOSPC, NoSpace)])
def test_a_disk_that_fails_while_a_segment_is_written_changes_nothing(
    index: ChunkIndex, monkeypatch: pytest.MonkeyPatch, nth: int, number: int, kind: type[ImagingError]
) -> None:
    known = add(index, 1)
    before = files(index)
    real, calls = os.pwrite, 0

    def fails(descriptor: int, data: Any, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls == nth + 1:
            raise OSError(number, os.strerror(number))
        return real(descriptor, data, offset)

    with monkeypatch.context() as patched:
        patched.setattr("imaging.index_segments.os.pwrite", fails)
        with pytest.raises(kind) as caught:
            add(index, 2)
    assert calls == nth + 1
    assert caught.value.hint
    assert files(index) == before
    assert all(index.known(known))
    assert not any(index.known([identity(2000)]))
    assert all(index.known([*known, *add(index, 2)]))


def test_a_disk_that_writes_less_than_it_was_given_is_given_the_rest(
    index: ChunkIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, short = os.pwrite, 0

    def some(descriptor: int, data: Any, offset: int) -> int:
        nonlocal short
        short += len(data) > 7
        return real(descriptor, data[:7], offset)

    monkeypatch.setattr("imaging.index_segments.os.pwrite", some)
    assert all(index.known(add(index, 1)))
    assert short > 10


def test_a_writer_that_is_killed_leaves_nothing_for_long(tmp_path: Path) -> None:
    code = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from imaging.index import ChunkIndex
        from tests.unit.index_process import REPOSITORY, pack_of
        with ChunkIndex.open(Path(sys.argv[1]), REPOSITORY) as opened:
            opened.add_object("index/1-000000", [pack_of(1, [1])])
            real = os.pwrite
            def dies(*arguments):
                real(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            os.pwrite = dies
            opened.add_object("index/2-000000", [pack_of(2, [2])])
        """
    )
    child = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr
    with ChunkIndex.open(tmp_path, REPOSITORY) as index:
        assert len(files(index)) == 2, "the one that is listed, and what it was killed in"
        assert index.known([identity(1), identity(2)]) == [True, False]
        index.add_object("index/2-000000", [pack_of(2, [2])])
        assert len(files(index)) == 1
        assert index.known([identity(1), identity(2)]) == [True, True]


def test_a_reader_that_comes_too_late_for_a_segment_reads_the_list_again(
    index: ChunkIndex, other: OtherProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    other.open(index._files.folder)
    known = add(index, 1, count=1)
    other.call("add_object", "index/2-000000", [pack_of(2, [2000])])
    real, late = SegmentFolder.open, 0

    def overtaken(self: SegmentFolder, listed: Listed, *, at_random: bool = True) -> Segment:
        nonlocal late
        if late < 3:
            blobs = list(range((3 + late) * 1000, (3 + late) * 1000 + 10 * 4**late))  # more than all before
            other.call("add_object", f"index/{3 + late}-000000", [pack_of(3 + late, blobs)])
            late += 1
            assert not (index._files.database / f"{listed.name}.segment").exists()
        return real(self, listed, at_random=at_random)

    with monkeypatch.context() as patched:
        patched.setattr(SegmentFolder, "open", overtaken)
        assert all(index.known([*known, *(identity(number * 1000) for number in range(2, 6))]))
    assert late == 3


def test_a_reader_goes_on_with_what_it_has_mapped(index: ChunkIndex) -> None:
    known = add(index, 1)
    with index._access.reading() as snapshot:
        before = files(index)
        add(index, 2)
        assert not set(before) & set(files(index))
        assert len({at for at, _, _ in snapshot.places(known)}) == len(known)


@pytest.mark.parametrize("how", ["gone", "cut off"])
def test_a_broken_segment_is_told_and_thrown_away(index: ChunkIndex, other: OtherProcess, how: str) -> None:
    other.open(index._files.folder)
    other.call("add_object", "index/1-000000", [pack_of(1, [1])])
    for path in files(index):
        if how == "gone":
            path.unlink()
        else:
            os.truncate(path, 100)
    with pytest.raises(IndexUnavailable):
        index.known([identity(1)])
    with pytest.raises(IndexUnavailable):
        index.add_object("index/2-000000", [pack_of(2, [2])])
    other.close()
    index.close()
    with ChunkIndex.open(index._files.folder, REPOSITORY) as again:
        assert again.objects() == set()
        assert files(again) == []
        assert again.known([identity(1)]) == [False]


def test_an_index_that_was_thrown_away_meanwhile_is_read_but_not_written_and_does_not_throw_away_the_new_one(
    index: ChunkIndex, other: OtherProcess
) -> None:
    known = add(index, 1)
    assert all(index.known(known))
    IndexFolder(index._files.folder).discard()
    other.open(index._files.folder)
    other.call("add_object", "index/2-000000", [pack_of(2, [2])])
    assert all(index.known(known))
    with pytest.raises(IndexUnavailable, match="thrown away"):
        add(index, 3)
    index.discard()
    assert other.call("known", [identity(2), *known]) == [True, *[False] * len(known)]
    with ChunkIndex.open(index._files.folder, REPOSITORY) as again:
        assert again.objects() == {"index/2-000000"}


def test_a_cache_whose_segments_cannot_be_made_durable_is_not_believed_after_the_machine_went_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failed = os.fsync, 0

    def fails(descriptor: int) -> None:
        nonlocal failed
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".segment"):
            failed += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    for broken in (True, False):
        index = ChunkIndex.open(tmp_path, REPOSITORY)
        add(index, 1)
        with monkeypatch.context() as patched:
            if broken:
                patched.setattr("imaging.index_segments.os.fsync", fails)
            index.close()
        assert failed == 1
        assert ((tmp_path / "open").read_bytes() != b"") == broken


def test_a_pack_that_comes_again_is_taken_in_once_and_what_is_new_of_it_too(index: ChunkIndex) -> None:
    whole = pack_of(1, [1, 2, 3])
    part = PackRows(whole.pack, whole.salt, whole.size_bytes, whole.blob_type, whole.rows[:40])
    index.add_unlisted([part])
    for name in ("index/a-000000", "index/b-000000", "index/b-000000"):
        index.add_object(name, [whole, pack_of(2, [3])])
    assert index.counts().blobs == 4
    assert [len(places) for places in index.locate_many([identity(each) for each in (1, 2, 3)])] == [1, 1, 2]
    assert index.packs()[pack_hash(1)].state == PackState.LIVE


def test_what_it_takes_on_disk_stays_under_64_bytes_while_it_grows(tmp_path: Path) -> None:
    """Its segments being put together included: for a moment there are the old ones and the new one."""
    real, most = SegmentFolder.tidy, 0

    def watched(self: SegmentFolder, listed: Any) -> None:
        nonlocal most
        most = max(most, sum(path.stat().st_size for path in self.folder.glob("*.segment")))
        real(self, listed)

    with pytest.MonkeyPatch.context() as patched, ChunkIndex.open(tmp_path, REPOSITORY) as index:
        patched.setattr(SegmentFolder, "tidy", watched)
        for number in range(20):
            place = struct.pack("<Q", 1)
            rows = b"".join(os.urandom(32) + place for _ in range(4000))
            index.add_object(f"index/{number}-000000", [PackRows(pack_hash(number), bytes(32), 1 << 20, 0, rows)])
            held = most + 200 * (number + 1)  # and so much for a pack in LMDB
            assert held < 64 * 4000 * (number + 1)
            most = 0
