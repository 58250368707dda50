"""The pack: many blobs in one immutable object named by the hash of its bytes (docs/format.md, section 7).

Rule: a pack is built in memory, in one piece that can go past the page cache as it is, and its frame and table are read
again, as any reader will, before it leaves.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Final

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

from imaging.errors import Damaged, NotAuthentic, WrongVersion
from imaging.ids import CHUNK, ID_BYTES, NODE
from imaging.keys import Keys
from imaging.memory import aligned_memory
from imaging.places import ROW_BYTES, PackRows, pack_place, unpack_place
from imaging.sealing import FORMAT_VERSION, TAG_BYTES, Sealer
from imaging.storage.contract import Buffer, Store

MAGIC: Final = b"STRONGPK"
MAGIC_END: Final = b"STRONGPE"
_HEADER: Final = struct.Struct("<8sHB5x16s32s")
_TRAILER: Final = struct.Struct("<III4x8s")
HEADER_BYTES: Final = _HEADER.size
TRAILER_BYTES: Final = _TRAILER.size
FRAME_BYTES: Final = HEADER_BYTES + TAG_BYTES + TRAILER_BYTES
"""What a pack holds besides blobs and the rows of its table."""
_ROW: Final = struct.Struct("<32sQ")
PACK_BYTES_MAX: Final = 33_554_431
PACK_ROWS_MAX: Final = 65_536
"""Of all-small blobs: keeps the table, and what a damaged pack takes along, small."""


def pack_name(digest: bytes) -> str:
    """The object's name for the 32-byte hash of a pack."""
    text = digest.hex()
    return f"packs/{text[:2]}/{text}"


def digest_of_name(name: str) -> bytes | None:
    """The hash that a pack's name states, or None if it is no pack's name."""
    parts = name.split("/")
    if len(parts) != 3 or parts[0] != "packs" or len(parts[2]) != 64 or not parts[2].startswith(parts[1]):
        return None
    try:
        return bytes.fromhex(parts[2])
    except ValueError:
        return None


def new_room() -> memoryview:
    """Memory for one pack, on a page boundary; what is not written to costs nothing."""
    return aligned_memory(PACK_BYTES_MAX + 1)


class PackBuilder:
    """Collects sealed blobs of one type; not thread-safe."""

    def __init__(self, keys: Keys, blob_type: int, room: memoryview | None = None) -> None:
        """`room`, from new_room(), is lent to the builder and to what it makes, and may be lent again afterwards."""
        self._keys = keys
        self._type = blob_type
        self._salt = os.urandom(32)
        self._sealer = Sealer(keys, blob_type, self._salt)
        self.room = new_room() if room is None else room
        self.room[:HEADER_BYTES] = _HEADER.pack(MAGIC, FORMAT_VERSION, blob_type, keys.repository_id, self._salt)
        self._rows = bytearray()
        self.size_bytes = HEADER_BYTES

    @property
    def rows(self) -> int:
        """Blobs so far."""
        return len(self._rows) // ROW_BYTES

    def is_full_for(self, payload: Buffer) -> bool:
        """Whether one blob more would make a pack that readers refuse."""
        blobs = self.size_bytes - HEADER_BYTES + len(payload) + TAG_BYTES
        return self.rows >= PACK_ROWS_MAX or FRAME_BYTES + blobs + (self.rows + 1) * ROW_BYTES > PACK_BYTES_MAX

    def add(self, identity: bytes, payload: Buffer, plain_bytes: int, compressed: bool) -> int:
        """Seal and append a blob, for which the pack must not be full; returns its stored length."""
        stored_bytes = len(payload) + TAG_BYTES
        end = self.size_bytes + stored_bytes
        self._sealer.seal(identity, payload, plain_bytes, compressed, self.room[self.size_bytes : end])
        self._rows += _ROW.pack(identity, pack_place(self.size_bytes, stored_bytes, plain_bytes, compressed))
        self.size_bytes = end
        return stored_bytes

    def finish(self) -> tuple[memoryview, PackRows]:
        """The object's bytes, in the builder's room, and what the index needs to know. The builder must not be used
        after. Damaged where what was built does not read back."""
        room, offset = self.room, self.size_bytes
        table_end = offset + len(self._rows) + TAG_BYTES
        end = table_end + TRAILER_BYTES
        room[table_end:end] = _TRAILER.pack(offset, table_end - offset, self.rows, MAGIC_END)
        associated = bytes(room[:HEADER_BYTES]) + bytes(room[table_end:end])
        table = AESGCMSIV(self._keys.pack_table).encrypt(self._salt[:12], bytes(self._rows), associated)
        room[offset:table_end] = table
        pack = room[:end]
        made = PackRows(blake3(pack).digest(), self._salt, end, self._type, bytes(self._rows))
        self._check(made, pack)
        return pack, made

    def _check(self, made: PackRows, pack: memoryview) -> None:
        """Reads the frame and the table as any reader will, before they leave."""
        name = pack_name(made.pack)
        header, trailer = bytes(pack[:HEADER_BYTES]), bytes(pack[-TRAILER_BYTES:])
        try:
            frame = parse_frame(name, header, trailer, made.size_bytes, self._keys.repository_id)
            table = bytes(pack[frame.table_offset : frame.table_offset + frame.table_bytes])
            rows = open_table(name, self._keys, frame, table)
        except (Damaged, WrongVersion) as error:
            raise _misbuilt(name, str(error)) from error
        if (frame.blob_type, frame.salt, rows) != (made.blob_type, made.salt, made.rows):
            raise _misbuilt(name, "its table does not read back as it was written")


def _misbuilt(name: str, detail: str) -> Damaged:
    return Damaged(
        name,
        f"it was not stored, as what was built does not read back ({detail})",
        hint="run the backup again; if this repeats, test this machine's memory",
    )


@dataclass(frozen=True, slots=True)
class PackFrame:
    """The parts of a pack that its header and trailer state."""

    blob_type: int
    salt: bytes
    table_offset: int
    table_bytes: int
    rows: int
    associated: bytes


def parse_frame(name: str, header: bytes, trailer: bytes, size_bytes: int, repository_id: bytes) -> PackFrame:
    """Check header and trailer against each other and the object's size. Raises Damaged, WrongVersion."""
    if size_bytes > PACK_BYTES_MAX or size_bytes < FRAME_BYTES:
        raise Damaged(name, f"a pack cannot be {size_bytes} bytes long")
    magic, version, blob_type, repository, salt = _HEADER.unpack(header)
    if magic != MAGIC:
        raise Damaged(name, "it does not begin as a pack does")
    if version != FORMAT_VERSION:
        raise WrongVersion(name, version)
    if repository != repository_id:
        raise Damaged(name, "it belongs to another repository")
    offset, length, rows, magic = _TRAILER.unpack(trailer)
    if magic != MAGIC_END or blob_type not in (CHUNK, NODE):
        raise Damaged(name, "its header or trailer is not a pack's")
    if offset < HEADER_BYTES or offset + length + TRAILER_BYTES != size_bytes or rows * ROW_BYTES + TAG_BYTES != length:
        raise Damaged(name, "its trailer does not fit its size")
    return PackFrame(blob_type, salt, offset, length, rows, header + trailer)


def open_table(name: str, keys: Keys, frame: PackFrame, sealed: bytes) -> bytes:
    """The rows of a pack's table, checked to lie inside the pack. Raises Damaged, NotAuthentic."""
    try:
        rows = AESGCMSIV(keys.pack_table).decrypt(frame.salt[:12], sealed, frame.associated)
    except InvalidTag as err:
        raise NotAuthentic(name, "its table does not authenticate") from err
    position = HEADER_BYTES
    for _, place in _ROW.iter_unpack(rows):
        offset, stored, _, _ = unpack_place(place)
        if offset != position:
            raise Damaged(name, f"its table places a blob at {offset} instead of {position}")
        position += stored
    if position != frame.table_offset:
        raise Damaged(name, f"its blobs end at {position}, its table begins at {frame.table_offset}")
    return rows


def parse_pack(name: str, keys: Keys, data: bytes) -> PackRows:
    """A whole pack's table, after its name has been checked against its bytes. Raises Damaged, NotAuthentic,
    WrongVersion."""
    digest = digest_of_name(name)
    if digest is None or blake3(data).digest() != digest:
        raise Damaged(name, "its bytes do not have the hash that names it")
    if len(data) < HEADER_BYTES + TRAILER_BYTES:
        raise Damaged(name, f"a pack cannot be {len(data)} bytes long")
    frame = parse_frame(name, data[:HEADER_BYTES], data[-TRAILER_BYTES:], len(data), keys.repository_id)
    table = data[frame.table_offset : frame.table_offset + frame.table_bytes]
    return PackRows(digest, frame.salt, len(data), frame.blob_type, open_table(name, keys, frame, table))


def read_table(store: Store, keys: Keys, name: str, size_bytes: int) -> PackRows:
    """The table of a pack in a store, by three ranged reads, its blobs unread. Raises Damaged, NotAuthentic,
    ObjectMissing."""
    digest = digest_of_name(name)
    if digest is None:
        raise Damaged(name, "this is not a pack's name")
    if size_bytes < HEADER_BYTES + TRAILER_BYTES:
        raise Damaged(name, f"a pack cannot be {size_bytes} bytes long")
    header = store.get(name, 0, HEADER_BYTES)
    trailer = store.get(name, size_bytes - TRAILER_BYTES, TRAILER_BYTES)
    frame = parse_frame(name, header, trailer, size_bytes, keys.repository_id)
    table = store.get(name, frame.table_offset, frame.table_bytes)
    return PackRows(digest, frame.salt, size_bytes, frame.blob_type, open_table(name, keys, frame, table))


def iter_rows(rows: bytes) -> list[tuple[bytes, int]]:
    """(id, place) of each row."""
    if len(rows) % ROW_BYTES:
        raise ValueError(f"{len(rows)} bytes are no whole rows of {ID_BYTES} + 8")
    return list(_ROW.iter_unpack(rows))


def listed_packs(store: Store) -> dict[bytes, int]:
    """Hash → size in bytes of every pack in the store."""
    found = ((digest_of_name(listed.name), listed.size_bytes) for listed in store.list("packs/"))
    return {digest: size for digest, size in found if digest is not None}
