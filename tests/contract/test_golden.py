"""The format stays what docs/format.md says: what version 1 wrote once is still read, by this code and by a reader that
was written from the page alone; and what this code writes, that reader reads."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

from imaging import canonical, envelope, packs, slots
from imaging.canonical import Fields
from imaging.chunking import PageHash, cut_region, zero_pages
from imaging.collecting import Options
from imaging.diskmap import Leaf, MapWriter, encode_leaf
from imaging.envelope import ObjectType, open_sealed, parse, seal
from imaging.ids import CHUNK, NODE, blob_id
from imaging.index_objects import decode_index, encode_index
from imaging.keys import KeyBundle, Keys, derive_key
from imaging.places import pack_place, unpack_place
from imaging.reader import DiskReader
from imaging.repository import Repository
from imaging.restoring import DiskWriter, RawTarget
from imaging.sealing import Sealer, open_blob
from imaging.slots import MachineKey, Passphrase, RecoveryKey
from imaging.storage.local import LocalStore
from tests.contract import independent_reader
from tests.contract.independent_reader import IndependentReader, Refused
from tests.unit.golden import content, make, vectors
from tests.unit.golden.content import Disk

GOLDEN = make.HERE / "repository-v1"
SECRETS: dict[str, Any] = json.loads(make.SECRETS.read_text("utf-8"))
VECTORS: dict[str, Any] = json.loads(make.VECTORS.read_text("utf-8"))
KINDS = ("passphrase", "recovery", "machine")
KEYS = Keys.derive(KeyBundle(vectors.MASTER, vectors.DEDUP), vectors.REPOSITORY)


def secret_bytes(kind: str) -> bytes:
    """As the independent reader wants it."""
    if kind == "machine":
        return bytes.fromhex(SECRETS["machine_key"])
    return str(SECRETS["recovery_key" if kind == "recovery" else "passphrase"]).encode()


def secret(kind: str) -> slots.Secret:
    if kind == "passphrase":
        return Passphrase(SECRETS["passphrase"])
    return RecoveryKey.parse(SECRETS["recovery_key"]) if kind == "recovery" else MachineKey(secret_bytes(kind))


def data_extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """What of a sparse file is allocated; the rest reads as zeros by what the system promises."""
    at = 0
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        at = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, at


def assert_is(path: Path, disk: Disk) -> None:
    """The file is the disk, to the bit: compared where either has data."""
    with path.open("rb") as file:
        assert os.fstat(file.fileno()).st_size == disk.size_bytes
        pieces = [(start, start + len(data)) for start, data in disk.pieces]
        for start, stop in [*data_extents(file.fileno(), disk.size_bytes), *pieces]:
            for at in range(start, stop, 1 << 20):
                length = min(1 << 20, stop - at)
                assert os.pread(file.fileno(), length, at) == disk.read(at, length), f"{path.name} differs near {at}"


def restore_all(reader: IndependentReader, points: dict[str, str], folder: Path) -> None:
    """Every disk and file of `points` (a label of content.POINTS to a manifest's name), compared with what went in."""
    found = reader.points()
    assert reader.warnings == []
    assert set(found) == set(points.values()), "deleted and fenced points do not count, and nothing else is hidden"
    for label, name in points.items():
        entries = [each["name"] for each in found[name]["disks"] + found[name]["files"]]
        assert sorted(entries) == sorted(content.POINTS[label])
        for number, (disk_name, disk) in enumerate(content.POINTS[label].items()):
            path = folder / f"{label} {number}"
            with path.open("xb") as out:
                reader.restore(found[name], disk_name, out)
            assert_is(path, disk)


# The golden repository


@pytest.mark.parametrize("kind", KINDS)
def test_the_present_code_restores_what_version_1_wrote(kind: str, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "repository")
    before = {path: path.read_bytes() for path in (tmp_path / "repository").rglob("*") if path.is_file()}
    store = LocalStore(tmp_path / "repository")
    with Repository.open(store, secret(kind), cache=tmp_path / "cache", appliance=make.APPLIANCE) as repository:
        assert repository.id.hex() == SECRETS["repository_id"]
        assert repository.losses == ()
        survey = repository.survey()
        assert survey.damaged == ()
        assert [hold.manifest for hold in repository.holds()] == [SECRETS["points"]["vm incremental"]]
        assert {point.name for point in survey.points} == set(SECRETS["points"].values())
        by_name = {point.name: point for point in survey.points}
        for label, name in SECRETS["points"].items():
            manifest = by_name[name].manifest
            entries = {each.name: (each.root, each.size_bytes) for each in manifest.disks}
            entries |= {each.name: (each.root, each.size_bytes) for each in manifest.files}
            assert set(entries) == set(content.POINTS[label])
            for number, (disk_name, disk) in enumerate(content.POINTS[label].items()):
                root, size = entries[disk_name]
                path = tmp_path / f"{label} {number}"
                with path.open("xb+") as out, RawTarget(out.fileno(), disk_name, blank=True) as target:
                    out.truncate(size)
                    DiskWriter(repository.blobs, repository.keys, target).write(root, size)
                assert_is(path, disk)
                data = [
                    (each.start, each.stop)
                    for each in DiskReader(repository.blobs, root, size).extents(0, size)
                    if not each.zero
                ]
                assert (data == []) == (disk.pieces == ())
    assert {path: path.read_bytes() for path in before} == before, "reading changes nothing"


class Unwatched:
    def start(self, label: str, total_bytes: int | None) -> None: ...
    def advance(self, count_bytes: int) -> None: ...
    def note(self, text: str) -> None: ...
    def finish(self) -> None: ...


@pytest.mark.parametrize("tables_only", [False, True])
def test_the_independent_reader_restores_what_a_collection_left_of_it(tables_only: bool, tmp_path: Path) -> None:
    """Every pack is emptied into new ones, so that all that is read was published by a collection's lease."""
    folder = tmp_path / "repository"
    shutil.copytree(GOLDEN, folder)
    before = {path.name for path in folder.glob("packs/*/*")}
    with Repository.open(
        LocalStore(folder), secret("machine"), cache=tmp_path / "cache", appliance=make.APPLIANCE
    ) as repository:
        done = repository.collect(Options(wait_s=0, repack_below=2), Unwatched())
        assert done.removed_points == 1
        again = repository.collect(Options(wait_s=0, repack_below=0), Unwatched())
        assert again.problems == done.problems == []
        assert repository.verify(read_data=True).ok
    assert not before & {path.name for path in folder.glob("packs/*/*")}
    assert not (folder / SECRETS["deleted"]).exists()
    assert list(folder.glob("rollcalls/*"))
    assert list(folder.glob("epochs/*"))
    reader = IndependentReader(folder, "recovery", secret_bytes("recovery"), tables_only=tables_only)
    restore_all(reader, SECRETS["points"], tmp_path)


@pytest.mark.parametrize("tables_only", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_independent_reader_restores_what_version_1_wrote(kind: str, tables_only: bool, tmp_path: Path) -> None:
    reader = IndependentReader(GOLDEN, kind, secret_bytes(kind), tables_only=tables_only)
    assert reader.repository_id.hex() == SECRETS["repository_id"]
    restore_all(reader, SECRETS["points"], tmp_path)


def test_the_golden_repository_has_the_cases_that_it_is_kept_for() -> None:
    files = {path.relative_to(GOLDEN).as_posix(): path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()}
    assert sum(files.values()) < 300 << 10
    reader = IndependentReader(GOLDEN, "recovery", secret_bytes("recovery"))
    found = reader.points()
    full, later = (found[SECRETS["points"][label]] for label in ("vm full", "vm incremental"))
    assert later["kind"] == "incremental"
    assert later["predecessor"] == blake3((GOLDEN / SECRETS["points"]["vm full"]).read_bytes()).hexdigest()
    assert next(each for each in full["files"] if each["name"].startswith("tpm/"))["root"] is None
    roots = [bytes.fromhex(each["disks"][1]["root"]) for each in (full, later)]
    nodes = [reader.blob(NODE, root) for root in roots]
    assert all(node[:4] == bytes([2, 0, 2, 0]) for node in nodes), "a root of level 2 with two slots"
    assert nodes[0][36:68] == nodes[1][36:68], "the first subtree is shared"
    assert nodes[0][68:] != nodes[1][68:]
    assert SECRETS["deleted"] in files
    assert SECRETS["deleted"].replace("manifests/", "tombstones/") in files
    assert SECRETS["void"] in files
    assert f"leases/{full['lease']}/end" not in files
    assert f"leases/{later['lease']}/end" in files


def test_the_command_line_lists_and_restores(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(SECRETS["recovery_key"].lower().replace("-", " ") + "\n")
    command = [sys.executable, "-m", "tests.contract.read_repository", str(GOLDEN)]
    command += ["--recovery-key", str(tmp_path / "key")]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        root = Path(__file__).parents[2]
        return subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=root)

    listed = run("list")
    assert listed.returncode == 0, listed.stderr
    assert [line.split()[0] for line in listed.stdout.splitlines()] == sorted(SECRETS["points"].values())
    point = SECRETS["points"]["image"].rsplit("-", 1)[1]
    restored = run("restore", point, "disk", str(tmp_path / "disk.raw"))
    assert restored.returncode == 0, restored.stderr
    assert_is(tmp_path / "disk.raw", content.IMAGE)
    again = run("restore", point, "disk", str(tmp_path / "disk.raw"))
    assert again.returncode == 1
    assert "disk.raw" in again.stderr
    wrong = run("restore", SECRETS["void"], "vda", str(tmp_path / "void.raw"))
    assert (wrong.returncode, (tmp_path / "void.raw").exists()) == (1, False)


# What the independent reader does with damage: a check that never fails would prove nothing


def damaged(folder: Path, change: Callable[[Path], None]) -> IndependentReader:
    shutil.copytree(GOLDEN, folder)
    change(folder)
    return IndependentReader(folder, "recovery", secret_bytes("recovery"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_the_independent_reader_names_a_damaged_chunk_and_restores_the_rest(tmp_path: Path) -> None:
    largest = max((GOLDEN / "packs").rglob("*"), key=lambda path: path.stat().st_size).relative_to(GOLDEN)
    reader = damaged(tmp_path / "repository", lambda folder: flip(folder / largest, 1000))
    found, whole, refused = reader.points(), [], []
    for label, name in SECRETS["points"].items():
        for number, (disk, expected) in enumerate(content.POINTS[label].items()):
            path = tmp_path / f"{label} {number}"
            try:
                with path.open("xb") as out:
                    reader.restore(found[name], disk, out)
            except Refused as error:
                refused.append(str(error))
            else:
                assert_is(path, expected)
                whole.append(disk)
    assert whole
    assert refused
    assert all(largest.name in message for message in refused)


def test_the_independent_reader_opens_with_the_slot_that_index_objects_carry(tmp_path: Path) -> None:
    def lose_keys(folder: Path) -> None:
        shutil.rmtree(folder / "keys")
        shutil.rmtree(folder / "keys.copy")
        (folder / "config").unlink()

    reader = damaged(tmp_path / "repository", lose_keys)
    assert set(reader.points()) == set(SECRETS["points"].values())
    assert len(reader.warnings) == 1, "the configuration's copy was used"


@pytest.mark.parametrize(
    ("name", "secret_text"), [("passphrase", b"another passphrase"), ("machine", bytes(32)), ("recovery", b"SR1-AAAA")]
)
def test_the_independent_reader_refuses_a_wrong_secret(name: str, secret_text: bytes) -> None:
    with pytest.raises(Refused, match="no key slot"):
        IndependentReader(GOLDEN, name, secret_text)


def test_the_independent_reader_names_lost_and_damaged_manifests(tmp_path: Path) -> None:
    lost, flipped = SECRETS["points"]["image"], SECRETS["points"]["vm incremental"]

    def lose_and_damage(folder: Path) -> None:
        (folder / lost).unlink()
        flip(folder / flipped, 100)

    reader = damaged(tmp_path / "repository", lose_and_damage)
    assert set(reader.points()) == {SECRETS["points"]["vm full"]}
    assert [name in "".join(reader.warnings) for name in (lost, flipped)] == [True, True]


def test_the_independent_reader_refuses_a_manifest_under_another_name(tmp_path: Path) -> None:
    moved = SECRETS["points"]["image"][:-1] + ("0" if SECRETS["points"]["image"][-1] != "0" else "1")
    reader = damaged(
        tmp_path / "repository", lambda folder: shutil.copy(folder / SECRETS["points"]["image"], folder / moved)
    )
    assert moved not in reader.points()
    assert [moved in warning for warning in reader.warnings] == [True]


def test_names_that_nobody_knows_are_passed_over_by_both_readers(tmp_path: Path) -> None:
    strange = (
        "future/1",
        "manifests/notes",
        "index/notes",
        "packs/notes",
        "leases/notes",
        "tombstones/notes",
        "keys/n",
    )

    def add(folder: Path) -> None:
        for name in strange:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"of a later version")

    reader = damaged(tmp_path / "repository", add)
    assert set(reader.points()) == set(SECRETS["points"].values())
    assert reader.warnings == []
    store = LocalStore(tmp_path / "repository")
    with Repository.open(store, secret("recovery"), cache=tmp_path / "cache", appliance=make.APPLIANCE) as repository:
        assert {point.name for point in repository.points()} == set(SECRETS["points"].values())
        assert repository.damaged_points() == []
    assert all((tmp_path / "repository" / name).exists() for name in strange)


def test_the_independent_reader_bounds_what_an_object_may_cost() -> None:
    with pytest.raises(Refused, match="does not state"):
        independent_reader.decompress(vectors.FRAME, len(vectors.PLAIN) - 1, "a frame")
    assert independent_reader.decompress(vectors.FRAME, len(vectors.PLAIN), "a frame") == vectors.PLAIN
    costly = {"name": "argon2id", "lanes": 1, "memory_kib": 1 << 30, "passes": 1, "salt": vectors.ARGON2_SALT.hex()}
    with pytest.raises(Refused, match="argon2id costs"):
        independent_reader.slot_key("passphrase", b"secret", costly, "keys/x")


# What is written now


@pytest.mark.parametrize("tables_only", [False, True])
def test_the_independent_reader_restores_what_the_present_code_writes(tables_only: bool, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with make.new_repository(tmp_path / "repository") as (_, made):
        reader = IndependentReader(
            tmp_path / "repository", "recovery", made.recovery_key.encode(), tables_only=tables_only
        )
        restore_all(reader, made.points, tmp_path / "out")
        expected = sum(len(content.POINTS[label]) for label in made.points)
    assert len(list((tmp_path / "out").iterdir())) == expected > 0


# Known answers


def test_the_known_answers_are_those_of_the_page() -> None:
    assert vectors.vectors() == VECTORS


def test_keys_and_names_are_derived_as_ever() -> None:
    for purpose, expected in VECTORS["derived keys"].items():
        derived: bytes = getattr(KEYS, purpose.replace(" ", "_"))
        assert (blake3(derived).hexdigest() if len(derived) > 32 else derived.hex()) == expected, purpose
        assert derive_key(purpose, vectors.PURPOSES[purpose], len(derived)) == derived
    assert KEYS.check_value().hex() == VECTORS["key check"]
    assert [KEYS.series_of(kind, name) for kind, name in vectors.SERIES] == VECTORS["series"]
    assert RecoveryKey(vectors.MASTER).text() == VECTORS["recovery text"]
    assert independent_reader.recovery_key(VECTORS["recovery text"]) == vectors.MASTER
    argon2 = {"name": "argon2id", "lanes": 1, "memory_kib": 19_456, "passes": 1, "salt": vectors.ARGON2_SALT.hex()}
    keyed = {"name": "blake3", "salt": vectors.SALT.hex()}
    decomposed = Passphrase("cafe\u0301")
    assert decomposed.wrapping_key(Fields.of(argon2, "slot")).hex() == VECTORS["slot keys"]["passphrase"]
    assert RecoveryKey(vectors.MASTER).wrapping_key(Fields.of(keyed, "slot")).hex() == VECTORS["slot keys"]["recovery"]
    assert MachineKey(vectors.DEDUP).wrapping_key(Fields.of(keyed, "slot")).hex() == VECTORS["slot keys"]["machine"]
    assert canonical.encode(vectors.JSON_VALUE).decode() == VECTORS["canonical json"]


@pytest.mark.parametrize("name", list(vectors.REGIONS))
def test_regions_are_cut_and_named_as_ever(name: str) -> None:
    disk, expected = vectors.REGIONS[name], VECTORS["regions"][name]
    region = disk.read(0, disk.size_bytes)
    pages = np.frombuffer(region.ljust(-(-len(region) // 4096) * 4096, b"\0"), "<u8").reshape(-1, 512)
    records = cut_region(zero_pages(pages), PageHash(KEYS.cut_multipliers, KEYS.cut_permutation).cut_pages(pages))
    kinds = {True: "chunk", False: "hole"}
    assert [[record.stop - record.start, kinds[record.data]] for record in records] == expected["records"]
    ids = [
        blob_id(KEYS, CHUNK, region[record.start * 4096 : record.stop * 4096]) if record.data else None
        for record in records
    ]
    named = [identity for identity in ids if identity is not None]
    assert named[0].hex() == expected["first chunk id"]
    assert blake3(b"".join(named)).hexdigest() == expected["chunk ids"]
    leaf = encode_leaf(Leaf(tuple(records), tuple(ids)))
    assert leaf is not None
    assert blake3(leaf).hexdigest() == expected["leaf"]
    assert blob_id(KEYS, NODE, leaf).hex() == expected["leaf id"]


def test_trees_are_built_as_ever() -> None:
    nodes: list[bytes] = []

    def store(plain: bytes) -> bytes:
        nodes.append(plain)
        return blob_id(KEYS, NODE, plain)

    writer = MapWriter(vectors.TREE_REGIONS * content.REGION - 1, store)
    for region, leaf in vectors.TREE_LEAVES.items():
        writer.add(region, leaf)
    root = writer.finish()
    assert root is not None
    assert root.hex() == VECTORS["tree"]["root"]
    assert [node.hex() for node in nodes] == VECTORS["tree"]["nodes"]


def test_places_are_packed_as_ever() -> None:
    for place, expected in zip(vectors.PLACES, VECTORS["places"], strict=True):
        assert pack_place(*place) == int(expected)
        assert unpack_place(int(expected)) == place


@pytest.mark.parametrize(
    ("name", "kind", "plain", "payload"),
    [
        ("chunk", CHUNK, content.noise("incompressible", 100), content.noise("incompressible", 100)),
        ("chunk compressed", CHUNK, vectors.PLAIN, vectors.FRAME),
        ("node", NODE, content.noise("incompressible", 100), content.noise("incompressible", 100)),
    ],
)
def test_blobs_are_sealed_as_ever(name: str, kind: int, plain: bytes, payload: bytes) -> None:
    sealer, identity, compressed = Sealer(KEYS, kind, vectors.SALT), blob_id(KEYS, kind, plain), payload != plain
    sealed = bytes.fromhex(VECTORS["blobs"][name])
    made = bytearray(len(sealed))
    sealer.seal(identity, payload, len(plain), compressed, made)
    assert made == sealed
    assert open_blob(KEYS, sealer, kind, identity, sealed, len(plain), compressed) == plain


def fixed(*parts: bytes) -> Callable[[int], bytes]:
    """os.urandom for one test."""
    left = list(parts)

    def random_bytes(length: int) -> bytes:
        drawn = left.pop(0)
        assert len(drawn) == length
        return drawn

    return random_bytes


def test_packs_and_index_objects_are_written_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imaging.packs.os.urandom", fixed(vectors.SALT))
    builder = packs.PackBuilder(KEYS, CHUNK)
    incompressible = content.noise("incompressible", 100)
    blobs: Sequence[tuple[bytes, bytes]] = ((vectors.PLAIN, vectors.FRAME), (incompressible, incompressible))
    for plain, payload in blobs:
        builder.add(blob_id(KEYS, CHUNK, plain), payload, len(plain), payload != plain)
    pack, rows = builder.finish()
    whole = bytes(pack)
    assert whole.hex() == VECTORS["pack"]
    assert packs.parse_pack(packs.pack_name(blake3(whole).digest()), KEYS, whole) == rows
    assert encode_index([rows]).hex() == VECTORS["index body"]
    assert decode_index(bytes.fromhex(VECTORS["index body"])) == [rows]


def test_envelopes_are_sealed_and_opened_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imaging.envelope.os.urandom", fixed(vectors.NONCE))
    expected = bytes.fromhex(VECTORS["envelopes"]["raw"])
    sealed = seal(
        ObjectType.KEY_SLOT, vectors.ENVELOPE_NAME, KEYS.control, KEYS.repository_id, vectors.PLAIN, vectors.CLEAR,
        compress=False,
    )  # fmt: skip
    assert sealed == expected
    opened = parse(expected, vectors.ENVELOPE_NAME, ObjectType.KEY_SLOT)
    assert (open_sealed(opened, KEYS.control), opened.clear) == (vectors.PLAIN, vectors.CLEAR)
    compressed = bytes.fromhex(VECTORS["envelopes"]["compressed"])
    assert open_sealed(parse(compressed, "holds/x", ObjectType.HOLD), KEYS.control) == vectors.PLAIN
    assert envelope.hash_of(compressed) == blake3(compressed).digest()
