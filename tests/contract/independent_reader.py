"""A second reader of repositories, written from docs/format.md alone; it imports nothing of `imaging`.

Its rule: what the page says to check is checked, and what does not hold is refused, never returned as zeros. It is
slow, and exists so that backups depend on the page, not on one program. Run it by tests/contract/read_repository.py.
"""

import base64
import itertools
import json
import re
import struct
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from argon2.low_level import ARGON2_VERSION, Type, hash_secret_raw
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESGCMSIV
from zstandard import ZstdDecompressor, ZstdError, get_frame_parameters

PAGE, REGION, FORMAT, UNKNOWN = 4096, 16 << 20, 1, "is not known to this reader"
PACK_MAXIMUM, SEALED_MAXIMUM, BODY_MAXIMUM, CLEAR_MAXIMUM = (1 << 25) - 1, 64 << 20, 256 << 20, 64 << 10
CHUNK, NODE = 0, 1
CONFIG, SLOT, INDEX, MANIFEST, LEASE = 1, 2, 3, 4, 6
PINNED = {"chunk_pages_max": 64, "chunk_pages_min": 4, "cut_modulus": 13, "hole_pages_min": 16, "region_bytes": REGION}
MANIFEST_NAME = re.compile(r"manifests/([0-9a-f]{32})/(\d{10})-([0-9a-f]{32})")
INDEX_NAME = re.compile(r"index/([0-9a-f]{32})-\d{6}")
PACK_NAME = re.compile(r"packs/([0-9a-f]{2})/(\1[0-9a-f]{62})")


class Refused(Exception):
    """Something in the repository is not as the page says; the message names it."""


def require(holds: bool, message: str) -> None:
    if not holds:
        raise Refused(message)


def derive(secret: bytes, purpose: str) -> bytes:  # section 2
    return blake3(secret, derive_key_context=f"strongroom v1 {purpose}").digest()


def decrypt(cipher: AESGCM | AESGCMSIV, nonce: bytes, sealed: bytes, associated: bytes, what: str) -> bytes:
    try:
        return cipher.decrypt(nonce, sealed, associated)
    except InvalidTag as err:
        raise Refused(f"{what}: damaged, swapped or of another key") from err


def decompress(frame: bytes, length: int, what: str) -> bytes:
    """The stated size is compared before a byte is decompressed: zstd ignores a limit where the frame states a size."""
    try:
        require(get_frame_parameters(frame).content_size == length, f"{what}: its frame does not state {length} bytes")
        return ZstdDecompressor().decompress(frame, max_output_size=length, allow_extra_data=False)
    except ZstdError as err:
        raise Refused(f"{what}: not one zstd frame ({err})") from err


def clear_part(name: str, data: bytes, type_: int) -> bytes:  # section 3
    """The clear part of an envelope, after its hash and its header were found to be as they must."""
    require(len(data) >= 80 and blake3(data[:-32]).digest() == data[-32:], f"{name}: damaged (its hash is wrong)")
    magic, version, *kind, clear, _, _, sealed = struct.unpack_from("<8sHBBI16s12sI", data)
    require(magic == b"STRONGRM", f"{name}: not an object of a repository")
    require(version == FORMAT, f"{name}: format version {version} {UNKNOWN}")
    require(kind == [type_, 0], f"{name}: not an object of type {type_}")
    fits = clear <= CLEAR_MAXIMUM and 21 <= sealed <= SEALED_MAXIMUM and len(data) == 48 + clear + sealed + 32
    require(fits, f"{name}: its lengths do not add up, or are too large")
    return data[48 : 48 + clear]


def body(name: str, data: bytes, key: bytes) -> bytes:  # section 3
    """The body of an envelope that `clear_part` has checked; `name` is the first of an object that is stored twice."""
    end = 48 + struct.unpack_from("<I", data, 12)[0]
    plain = decrypt(AESGCMSIV(key), data[32:44], data[end:-32], data[:end] + name.encode(), name)
    codec, length = struct.unpack_from("<BI", plain)
    require(codec in (0, 1) and length <= BODY_MAXIMUM, f"{name}: codec {codec}, length {length}")
    require(codec == 1 or len(plain) == 5 + length, f"{name}: its body is not as long as it states")
    return decompress(plain[5:], length, name) if codec else plain[5:]


def recovery_key(text: str) -> bytes:  # section 5
    letters = re.sub(r"[\s-]", "", text).upper()
    require(re.fullmatch("SR1[A-Z2-7]{56}", letters) is not None, "not a recovery key: SR1- and 56 letters")
    raw = base64.b32decode(letters[3:])
    require(blake3(raw[:32]).digest()[:3] == raw[32:], "the recovery key has a typing error")
    return raw[:32]


def slot_key(kind: str, secret: bytes, kdf: dict[str, Any], slot: str) -> bytes:  # section 5
    salt = bytes.fromhex(kdf["salt"])
    require(kdf["name"] == ("argon2id" if kind == "passphrase" else "blake3"), f"{slot}: an unknown key derivation")
    if kind != "passphrase":
        return blake3(salt, key=recovery_key(secret.decode()) if kind == "recovery" else secret).digest()
    memory, passes, lanes = int(kdf["memory_kib"]), int(kdf["passes"]), int(kdf["lanes"])
    permitted = 19_456 <= memory <= 1_048_576 and 1 <= passes <= 16 and 1 <= lanes <= 16
    require(permitted, f"{slot}: argon2id costs outside what version 1 permits")
    text = unicodedata.normalize("NFC", secret.decode()).encode()
    return hash_secret_raw(text, salt, passes, memory, lanes, 32, Type.ID, ARGON2_VERSION)


class IndependentReader:
    """An opened repository. kind and secret: passphrase (UTF-8), recovery (the printed text) or machine (32 bytes)."""

    def __init__(self, root: Path, kind: str, secret: bytes, *, tables_only: bool = False) -> None:
        """tables_only: read no index object, since every pack tells what it holds."""
        self.root, self.warnings = root, list[str]()
        self.repository_id, bundle = self._open_slot(kind, secret)
        self.master, dedup = bundle[:32], bundle[32:]
        for name in ("config", "config.copy"):
            try:
                self._check_config(name)
                break
            except (Refused, FileNotFoundError) as err:  # reading needs nothing of what it says in version 1
                require(UNKNOWN not in str(err), str(err))
                self.warnings.append(str(err))
        self._blob_key = derive(self.master, "blob")
        self._id_keys = {CHUNK: derive(dedup, "chunk id"), NODE: derive(dedup, "node id")}
        self._places: dict[tuple[int, bytes], list[tuple[Path, bytes, int]]] = {}
        by_index, by_table = (self._read_index, INDEX_NAME, "index"), (self._read_table, PACK_NAME, "packs")
        read, pattern, folder = by_table if tables_only else by_index
        for name in filter(pattern.fullmatch, self._names(folder)):
            try:
                read(name)
            except Refused as err:  # what only this object knows of is missed, and named, where it is needed
                self.warnings.append(str(err))

    def _names(self, folder: str) -> list[str]:
        return sorted(p.relative_to(self.root).as_posix() for p in (self.root / folder).rglob("*") if p.is_file())

    def _body(self, name: str, type_: int, purpose: str) -> bytes:
        data = (self.root / name).read_bytes()
        clear = clear_part(name, data, type_)
        require(data[16:32] == self.repository_id, f"{name}: of another repository")
        require(type_ == INDEX or not clear, f"{name}: has a clear part")
        return body(name, data, derive(self.master, purpose))

    def _open_slot(self, kind: str, secret: bytes) -> tuple[bytes, bytes]:  # section 5
        problems = [f"no key slot of kind {kind} opens"]
        for name in self._names("keys") + self._names("keys.copy") + self._names("index"):
            try:
                data = (self.root / name).read_bytes()
                data = clear_part(name, data, INDEX) if name.startswith("index/") else data
                stated = json.loads(clear_part(name, data, SLOT))
                if stated["kind"] == kind:
                    bundle = body(f"keys/{stated['id']}", data, slot_key(kind, secret, stated["kdf"], name))
                    require(len(bundle) == 64, f"{name}: a bundle of {len(bundle)} bytes")
                    return data[16:32], bundle
            except (Refused, ValueError, KeyError, TypeError) as err:  # the clear part is anybody's until it opens
                problems.append(f"{name}: {err}")
        raise Refused("; ".join(problems))

    def _check_config(self, name: str) -> None:  # section 4
        data = (self.root / name).read_bytes()
        clear = clear_part(name, data, CONFIG)
        check = blake3(data[16:32], key=derive(self.master, "key check")).hexdigest()
        of_slot = data[16:32] == self.repository_id and json.loads(clear)["key_check"] == check
        require(of_slot, f"{name}: of another repository or other keys than the slot that opened")
        stated = json.loads(body("config", data, derive(self.master, "configuration")))
        require(PINNED.items() <= stated.items(), f"{name}: its numbers are not those of version 1")

    def _end(self, lease: str) -> dict[str, Any] | None:
        """What a lease's end says; {"outcome": None} if it has objects but no end, None if it has no object at all."""
        end = f"leases/{lease}/end"
        if (self.root / end).exists():
            return dict(json.loads(self._body(end, LEASE, "control")))
        return {"outcome": None} if self._names(f"leases/{lease}") else None

    def _read_index(self, name: str) -> None:  # section 8
        if (self._end(name[6:38]) or {"outcome": "committed"})["outcome"] not in ("committed", "collected"):
            return
        rows, at = self._body(name, INDEX, "index"), 4
        for _ in range(struct.unpack_from("<I", rows)[0]):
            digest, salt, size, type_, zeros, count = struct.unpack_from("<32s32sIB3sI", rows, at)
            first, at = at + 76, at + 76 + 40 * count
            require(at <= len(rows) and size <= PACK_MAXIMUM, f"{name}: its counts do not add up")
            require(type_ in (CHUNK, NODE) and zeros == bytes(3), f"{name}: a pack of type {type_}")
            pack = self.root / "packs" / digest.hex()[:2] / digest.hex()
            self._add_rows(pack, salt, size, type_, rows[first:at])
        require(at == len(rows), f"{name}: its counts do not add up")

    def _read_table(self, name: str) -> None:  # section 7
        pack, data = self.root / name, (self.root / name).read_bytes()
        if blake3(data).hexdigest() != pack.name:
            self.warnings.append(f"{name}: damaged (its hash is not its name); what still opens in it is used")
        require(104 <= len(data) <= PACK_MAXIMUM, f"{name}: a pack of {len(data)} bytes")
        magic, version, type_, *rest, salt = struct.unpack_from("<8sHB5s16s32s", data)
        start, length, count, *last = struct.unpack("<IIII8s", data[-24:])
        require((magic, version) == (b"STRONGPK", FORMAT), f"{name}: not a pack of version {FORMAT}")
        require(type_ in (CHUNK, NODE) and last == [0, b"STRONGPE"], f"{name}: damaged, or a pack of type {type_}")
        require(rest == [bytes(5), self.repository_id], f"{name}: of another repository")
        require(start + length + 24 == len(data) and length == 40 * count + 16, f"{name}: its lengths do not add up")
        cipher, associated = AESGCMSIV(derive(self.master, "pack table")), data[:64] + data[-24:]
        self._add_rows(pack, salt, len(data), type_, decrypt(cipher, salt[:12], data[start:-24], associated, name))

    def _add_rows(self, pack: Path, salt: bytes, size: int, type_: int, rows: bytes) -> None:
        end = 64
        for id_, place in struct.iter_unpack("<32sQ", rows):
            require(place & 0x1FFFFFF == end, f"{pack.name}: its blobs do not lie back to back")
            end += place >> 25 & 0x7FFFF
            self._places.setdefault((type_, id_), []).append((pack, salt, place))
        require(end + len(rows) + 40 == size, f"{pack.name}: its rows do not fit its size")

    def blob(self, type_: int, id_: bytes, length: int | None = None) -> bytes:
        """The plaintext of one blob, from the first of its places that holds what it should."""
        problems = [f"{('chunk', 'map node')[type_]} {id_.hex()} cannot be read"]
        for pack, salt, place in self._places.get((type_, id_), []):
            try:
                plain = self._blob_at(pack, salt, place, type_, id_)
                require(length in (None, len(plain)), f"{pack.name}: {len(plain)} bytes where {length} belong")
                return plain
            except (Refused, FileNotFoundError) as err:
                problems.append(str(err))
        raise Refused("; ".join(problems))

    def _blob_at(self, pack: Path, salt: bytes, place: int, type_: int, id_: bytes) -> bytes:  # section 7
        offset, stored, length = place & 0x1FFFFFF, place >> 25 & 0x7FFFF, place >> 44 & 0x7FFFF
        flags = bytes([type_, place >> 63])
        key = blake3(salt + flags + id_ + struct.pack("<I", stored), key=self._blob_key).digest()
        sealed = pack.read_bytes()[offset : offset + stored]
        associated = struct.pack("<H16s2sI32s", FORMAT, self.repository_id, flags, length, id_)
        plain = decrypt(AESGCM(key), bytes(12), sealed, associated, pack.name)
        plain = decompress(plain, length, pack.name) if flags[1] else plain
        require(len(plain) == length, f"{pack.name}: a blob is not as long as its row states")
        require(blake3(plain, key=self._id_keys[type_]).digest() == id_, f"{pack.name}: a blob has another id")
        return plain

    def points(self) -> dict[str, dict[str, Any]]:
        """The manifests that count, by name: by series and generation."""
        points: dict[str, dict[str, Any]] = {}
        names = list(filter(MANIFEST_NAME.fullmatch, self._names("manifests")))
        for name in names + [name for name in self._names("leases") if name.endswith("/end")]:
            try:
                if name.startswith("leases/"):
                    committed = (self._end(name[7:39]) or {}).get("manifest")
                    if committed and committed not in names:
                        self._manifest(committed)  # deleted, or lost
                elif manifest := self._manifest(name):
                    points[name] = manifest
            except (Refused, FileNotFoundError) as err:  # one damaged or lost point does not hide the others
                self.warnings.append(str(err))
        return points

    def _manifest(self, name: str) -> dict[str, Any] | None:  # section 10
        if (self.root / name.replace("manifests/", "tombstones/")).exists():
            return None
        manifest = dict(json.loads(self._body(name, MANIFEST, "manifest")))
        require(manifest["version"] == 1, f"{name}: manifest version {manifest['version']} {UNKNOWN}")
        stated = f"manifests/{manifest['series']}/{manifest['generation']:010}-{manifest['id']}"
        require(stated == name, f"{name}: states another name")
        digest, end = blake3((self.root / name).read_bytes()).hexdigest(), self._end(manifest["lease"])
        if end is not None and (end["outcome"], end.get("manifest")) != ("committed", name):
            return None
        require(end is None or end["hash"] == digest, f"{name}: not the manifest that its run committed")
        return manifest

    def restore(self, manifest: dict[str, Any], disk: str, out: BinaryIO) -> None:
        """Write one disk or file of a point to an empty seekable file; holes stay unallocated."""
        found = [entry for entry in manifest["disks"] + manifest["files"] if entry["name"] == disk]
        require(len(found) == 1, f"{len(found)} disks or files of the restore point are named {disk}")
        root, size, level = found[0]["root"], found[0]["size_bytes"], 0
        while REGION * 256**level < size:
            level += 1
        for offset, data in self._node(bytes.fromhex(root), level, 0, size) if root else ():
            out.seek(offset)
            out.write(data)
        out.truncate(size)

    def _node(self, id_: bytes, level: int, start: int, size: int) -> Iterator[tuple[int, bytes]]:  # section 9
        """(offset, bytes) of all that is not a hole below one node at `level` whose span begins at byte `start`."""
        node, what = self.blob(NODE, id_), f"map node {id_.hex()}"
        require(len(node) >= 4 and node[:2] == bytes([level, 0]), f"{what}: not a node of level {level}")
        count = struct.unpack_from("<H", node, 2)[0]
        if level == 0:
            yield from self._leaf(node, count, start, size, what)
            return
        span = REGION * 256 ** (level - 1)
        require(count == min(256, -(-(size - start) // span)), f"{what}: not of a disk of this size")
        bitmap = int.from_bytes(node[4:36], "little")
        require(0 < bitmap < 1 << count and len(node) == 36 + 32 * bitmap.bit_count(), f"{what}: ids do not add up")
        ids = (node[at : at + 32] for at in range(36, len(node), 32))
        for slot in (slot for slot in range(count) if bitmap >> slot & 1):
            yield from self._node(next(ids), level - 1, start + slot * span, size)

    def _leaf(self, node: bytes, count: int, start: int, size: int, what: str) -> Iterator[tuple[int, bytes]]:
        require(len(node) >= 4 + 2 * count, f"{what}: its records do not fit")
        records = [(r >> 15, r & 0x7FFF) for r in struct.unpack_from(f"<{count}H", node, 4)]  # bits 13, 14: refused
        require(all(0 < pages <= (64 if chunk else 4096) for chunk, pages in records), f"{what}: a bad record")
        require(all(a or b for (a, _), (b, _) in itertools.pairwise(records)), f"{what}: two holes meet")
        covered, chunks = sum(pages for _, pages in records), sum(chunk for chunk, _ in records)
        require(covered == -(-min(REGION, size - start) // PAGE), f"{what}: does not cover its region")
        require(chunks > 0 and len(node) == 4 + 2 * count + 32 * chunks, f"{what}: ids do not add up")
        ids = (node[at : at + 32] for at in range(4 + 2 * count, len(node), 32))
        for chunk, pages in records:
            if chunk:
                yield start, self.blob(CHUNK, next(ids), min(pages * PAGE, size - start))
            start += pages * PAGE
