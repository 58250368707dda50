"""Damaged, swapped and hostile blobs and packs: reported, never returned; a second location heals."""

from __future__ import annotations

import random
import threading
from dataclasses import replace

import pytest
import zstandard

from imaging import packs
from imaging.chunking import Record
from imaging.diskmap import Leaf, decode_leaf, encode_leaf
from imaging.errors import ChunkMissing, Damaged, ImagingError, NoSpace, NotAuthentic, StoreUnavailable, WrongVersion
from imaging.ids import CHUNK, NODE, blob_id
from imaging.keys import KeyBundle, Keys
from imaging.packs import PackBuilder, iter_rows, pack_name, parse_pack, read_table
from imaging.places import PackRows, unpack_place
from imaging.reader import DiskReader
from imaging.sealing import TAG_BYTES, Sealer, inflate, open_blob
from imaging.storage.pace import FAR
from tests.unit.memory import KEYS, REPOSITORY, DictIndex, MemoryStore, reader, writer

pytestmark = pytest.mark.faults


def chunk(seed: int, length: int = 70_000) -> bytes:
    return random.Random(seed).randbytes(length // 2) + bytes(length - length // 2)


def stored(*chunks: bytes) -> tuple[MemoryStore, DictIndex, list[bytes]]:
    store, index = MemoryStore(), DictIndex()
    ids = [blob_id(KEYS, CHUNK, item) for item in chunks]
    with writer(store, index) as packs:
        packs.store_chunks(list(zip(ids, chunks, strict=True)))
        packs.flush()
    return store, index, ids


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]


def test_every_flipped_byte_of_a_pack_is_noticed() -> None:
    """Header, each blob, table, trailer: by hash always; and where the hash is made to fit, by authentication."""
    store, index, ids = stored(chunk(1, 9000), chunk(2, 9000))
    (name,) = store.objects
    good = store.objects[name]
    assert parse_pack(name, KEYS, good).pack.hex() in name
    blobs = reader(store, index)
    for at in range(0, len(good), 37):
        bad = flip(good, at)
        with pytest.raises(Damaged):
            parse_pack(name, KEYS, bad)
        store.objects[name] = bad
        for identity, plain in zip(ids, (chunk(1, 9000), chunk(2, 9000)), strict=True):
            offset, length, _, _ = unpack_place(dict(iter_rows_of(good))[identity])
            if offset <= at < offset + length:
                with pytest.raises(Damaged):
                    blobs.chunk(identity)
            else:
                assert blobs.chunk(identity) == plain, "the other blob is not harmed"


def iter_rows_of(pack: bytes) -> list[tuple[bytes, int]]:
    from blake3 import blake3

    return iter_rows(parse_pack(pack_name(blake3(pack).digest()), KEYS, pack).rows)


@pytest.mark.parametrize("where", ["header", "version", "repository", "trailer", "offset", "short", "empty"])
def test_a_pack_that_is_hashed_rightly_but_is_no_pack_of_ours(where: str) -> None:
    """The store's owner can name any bytes by their hash: the table must still authenticate."""
    from blake3 import blake3

    store, _, _ = stored(chunk(1))
    good = next(iter(store.objects.values()))
    bad = {
        "header": flip(good, 0), "version": flip(good, 8), "repository": flip(good, 20),
        "trailer": flip(good, len(good) - 1), "offset": flip(good, len(good) - 24),
        "short": good[:70], "empty": b"",
    }[where]  # fmt: skip
    name = pack_name(blake3(bad).digest())
    with pytest.raises(WrongVersion if where == "version" else Damaged):
        parse_pack(name, KEYS, bad)
    store.objects[name] = bad
    with pytest.raises(ImagingError):
        read_table(store, KEYS, name, len(bad))


def test_a_pack_of_another_repository_is_refused() -> None:
    store, _, _ = stored(chunk(1))
    name, data = next(iter(store.objects.items()))
    other = Keys.derive(KeyBundle(bytes(32), bytes(32)), REPOSITORY)
    with pytest.raises(NotAuthentic):
        parse_pack(name, other, data)


def test_swapped_blobs_do_not_open() -> None:
    """Two places exchanged in the index: each blob's key and associated data name its id."""
    store, index, (one, two) = stored(chunk(1), chunk(2))
    index.places[one], index.places[two] = index.places[two], index.places[one]
    with pytest.raises(Damaged, match="does not authenticate"):
        reader(store, index).chunk(one)


def test_a_chunk_is_no_node() -> None:
    store, index, (one,) = stored(chunk(1))
    with pytest.raises(Damaged):
        reader(store, index).node(one)


def test_a_second_location_serves_when_the_first_is_damaged() -> None:
    store, index, (one,) = stored(chunk(1))
    (first,) = store.objects
    other = PackBuilder(KEYS, CHUNK)
    other.add(one, chunk(1), len(chunk(1)), compressed=False)
    pack, rows = other.finish()
    store.put(pack_name(rows.pack), [pack])
    index.add(rows)
    store.objects[first] = flip(store.objects[first], 100)
    assert reader(store, index).chunk(one) == chunk(1)
    del store.objects[first]
    assert reader(store, index).chunk(one) == chunk(1)


def test_a_moved_chunk_is_found_after_a_refresh() -> None:
    """A pack was collected while a reader held an old index: it refreshes once and goes on."""
    from imaging.blobs import BlobReader

    store, index, (one,) = stored(chunk(1))
    stale = DictIndex()
    stale.places = {one: [replace(index.places[one][0], pack=bytes(32))]}
    calls = []

    def refresh() -> None:
        calls.append(1)
        stale.places = index.places

    assert BlobReader(store, KEYS, stale.locate_many, refresh).chunk(one) == chunk(1)
    assert calls == [1]
    with pytest.raises(ChunkMissing):
        BlobReader(store, KEYS, stale.locate_many, refresh).chunk(bytes(32))


def test_a_frame_that_declares_256_mib_is_not_decompressed() -> None:
    frame = zstandard.ZstdCompressor(level=1).compress(bytes(256 << 20))
    assert len(frame) < 32_768
    with pytest.raises(Damaged, match="declares 268435456 bytes"):
        inflate(frame, 65_536, "blob")
    sealer = Sealer(KEYS, CHUNK, bytes(32))
    identity = bytes(32)
    sealed = bytearray(len(frame) + TAG_BYTES)
    sealer.seal(identity, frame, 65_536, compressed=True, into=sealed)
    with pytest.raises(Damaged, match="declares 268435456 bytes"):
        open_blob(KEYS, sealer, CHUNK, identity, sealed, 65_536, compressed=True)


def test_a_frame_without_a_size_is_refused() -> None:
    frame = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(b"x" * 5000)
    with pytest.raises(Damaged, match="declares"):
        inflate(frame, 5000, "blob")


def test_content_with_another_id_is_refused() -> None:
    """Sealed by somebody with the keys, under a wrong id: authentic, and still not what was asked for."""
    sealer = Sealer(KEYS, NODE, bytes(32))
    sealed = bytearray(5 + TAG_BYTES)
    sealer.seal(bytes(32), b"other", 5, compressed=False, into=sealed)
    with pytest.raises(Damaged, match="another id"):
        open_blob(KEYS, sealer, NODE, bytes(32), sealed, 5, compressed=False)


def test_a_full_store_ends_the_run_with_the_first_error() -> None:
    class Full(MemoryStore):
        def put(self, name: str, data: object) -> None:
            raise NoSpace("write", name)

    store, index = Full(), DictIndex()
    items = [(blob_id(KEYS, CHUNK, chunk(n)), chunk(n)) for n in range(30)]

    def store_all() -> None:
        with writer(store, index, pack_bytes=100_000) as packs:
            for item in items:
                packs.store_chunks([item])
            packs.flush()

    with pytest.raises(NoSpace):
        store_all()
    assert not store.objects


def test_rows_must_lie_back_to_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table is hostile until checked, even an authentic one."""
    builder = PackBuilder(KEYS, CHUNK)
    builder.add(bytes(32), b"abc", 3, compressed=False)
    builder._rows[32] ^= 1
    monkeypatch.setattr(builder, "_check", lambda *_: None)
    pack, rows = builder.finish()
    with pytest.raises(Damaged, match="places a blob"):
        parse_pack(pack_name(rows.pack), KEYS, bytes(pack))
    assert isinstance(rows, PackRows)


@pytest.mark.parametrize("what", ["rows", "table", "size", "header"])
def test_a_pack_that_was_built_wrongly_is_never_put(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bit that flips in this machine's memory: every reader would refuse the pack, so the writer does."""
    builder = PackBuilder(KEYS, CHUNK)
    builder.add(bytes(32), b"abc", 3, compressed=False)
    if what == "rows":
        builder._rows[32] ^= 1
    elif what == "size":
        builder.size_bytes += 1
    elif what == "header":
        builder.room[20] ^= 1
    else:
        real = packs.open_table
        monkeypatch.setattr(packs, "open_table", lambda *arguments: flip(real(*arguments), 3))
    with pytest.raises(Damaged, match="was not stored") as caught:
        builder.finish()
    assert "memory" in caught.value.hint


def test_a_leaf_with_impossible_records_is_refused() -> None:
    import struct

    def leaf(*words: int) -> bytes:
        ids = b"".join(bytes(32) for word in words if word & 0x8000)
        return struct.pack("<BxH", 0, len(words)) + struct.pack(f"<{len(words)}H", *words) + ids

    assert decode_leaf(leaf(0x8004, 60), 64, "leaf").ids == (bytes(32), None)
    for words in ((0x8000 | 65, 1), (0x8004, 30, 30), (0x8004, 0x2000 | 60), (0x8004, 0, 60), (0x8004, 59)):
        with pytest.raises(Damaged):
            decode_leaf(leaf(*words), sum(word & 0x1FFF for word in words) if words[-1] != 59 else 64, "leaf")


def test_a_chunk_of_another_length_than_its_record_is_refused() -> None:
    """Whoever has the keys could write such a map: shifted bytes must not come out of it."""
    store, index, (one,) = stored(bytes(range(256)) * 32)
    record = Record(0, 4, data=True)
    plain = encode_leaf(Leaf((record,), (one,)))
    assert plain is not None
    with writer(store, index) as packs:
        root = packs.store_node(plain)
        packs.flush()
    disk = DiskReader(reader(store, index), root, 4 * 4096)
    with pytest.raises(Damaged, match="8192 bytes where the disk map says 16384"):
        disk.pread(0, 100)


def test_bytes_after_a_frame_are_refused() -> None:
    frame = zstandard.ZstdCompressor(level=1).compress(bytes(5000))
    with pytest.raises(Damaged, match="does not decompress"):
        inflate(frame + b"more", 5000, "blob")


def test_a_place_that_cannot_be_read_now_leaves_the_others() -> None:
    class Failing(MemoryStore):
        broken = ""

        def get(self, name: str, offset_bytes: int = 0, length_bytes: int | None = None) -> bytes:
            if name == self.broken:
                raise StoreUnavailable("read", name, "Input/output error")
            return super().get(name, offset_bytes, length_bytes)

    store, index = Failing(), DictIndex()
    one = blob_id(KEYS, CHUNK, chunk(1))
    for _ in range(2):
        builder = PackBuilder(KEYS, CHUNK)
        builder.add(one, chunk(1), len(chunk(1)), compressed=False)
        pack, rows = builder.finish()
        store.put(pack_name(rows.pack), [pack])
        index.add(rows)
    store.broken = pack_name(index.places[one][0].pack)
    assert reader(store, index).chunk(one) == chunk(1)
    index.places[one].pop()
    with pytest.raises(StoreUnavailable):
        reader(store, index).chunk(one)


class FewAtATime(MemoryStore):
    """Gives nobody anything until so many ask at once; then fails as it is told."""

    def __init__(self, together: int) -> None:
        super().__init__()
        self.gate = threading.Barrier(together)
        self.waits = False
        self.failures: dict[str, list[ImagingError]] = {}

    def get(self, name: str, offset_bytes: int = 0, length_bytes: int | None = None) -> bytes:
        if self.waits:
            self.gate.wait(120)
        if self.failures.get(name):
            raise self.failures[name].pop()
        return super().get(name, offset_bytes, length_bytes)


def test_a_store_that_is_far_away_is_asked_for_several_stretches_at_a_time() -> None:
    contents = [chunk(seed, 200_000) for seed in range(4)]
    store, index = FewAtATime(4), DictIndex()
    ids = [blob_id(KEYS, CHUNK, plain) for plain in contents]
    with writer(store, index, pack_bytes=64 << 10) as packs:
        for identity, plain in zip(ids, contents, strict=True):
            packs.store_chunks([(identity, plain)])
        packs.flush()
    assert len(store.objects) == 4
    blobs = reader(store, index, FAR)
    rooms = [memoryview(bytearray(200_000)) for _ in ids]
    store.waits = True
    blobs.chunks_into(list(zip(ids, rooms, strict=True)))
    assert [bytes(room) for room in rooms] == contents
    assert blobs.chunks(ids[::-1]) == contents[::-1]
    store.waits = False
    first, second, *_ = store.objects
    passing = StoreUnavailable("read", first, "Connection reset by peer")
    store.failures = {first: [passing]}
    assert blobs.chunks(ids) == contents, "one of them is asked for again"
    store.failures = {second: [passing] * 3}
    with pytest.raises(StoreUnavailable):
        blobs.chunks(ids)
    assert blobs.chunks(ids) == contents
    blobs.close()
