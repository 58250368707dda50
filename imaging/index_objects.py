"""The body of index objects: which packs there are and what lies where in them (docs/format.md section 8).

Rule: what is decoded is hostile until checked; lengths are compared with what is there before anything is sliced.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from typing import Final

from imaging.errors import Damaged
from imaging.places import ROW_BYTES, PackRows

_NAME: Final = re.compile(r"index/([0-9a-f]{32})-\d{6}")
_COUNT: Final = struct.Struct("<I")
_PACK: Final = struct.Struct("<32s32sIB3xI")
PACK_BYTES_MAX: Final = 33_554_431
BLOB_TYPES: Final = (0, 1)


def lease_of(name: str) -> str | None:
    """The lease under which an index object was written, or None if this is no index object's name."""
    parsed = _NAME.fullmatch(name)
    return parsed[1] if parsed else None


def is_index_object(name: str) -> bool:
    """What else lies in index/ lists nothing, and is left alone, as names are that the format does not have."""
    return _NAME.fullmatch(name) is not None


def encode_index(packs: Sequence[PackRows]) -> bytes:
    parts: list[bytes] = [_COUNT.pack(len(packs))]
    for entry in packs:
        rows, rest = divmod(len(entry.rows), ROW_BYTES)
        if rest:
            raise ValueError(
                f"the rows of pack {entry.pack.hex()} are {len(entry.rows)} bytes, no multiple of {ROW_BYTES}"
            )
        parts.append(_PACK.pack(entry.pack, entry.salt, entry.size_bytes, entry.blob_type, rows))
        parts.append(entry.rows)
    return b"".join(parts)


def decode_index(body: bytes, name: str = "an index object") -> list[PackRows]:
    """Raises Damaged(name) when the body is not exactly what its counts say."""
    if len(body) < _COUNT.size:
        raise Damaged(name, "it is too short to say how many packs it lists")
    (count,) = _COUNT.unpack_from(body)
    if count * _PACK.size > len(body):
        raise Damaged(name, f"it says {count} packs in {len(body)} bytes")
    packs: list[PackRows] = []
    at = _COUNT.size
    for _ in range(count):
        if at + _PACK.size > len(body):
            raise Damaged(name, "it ends inside a pack's entry")
        pack, salt, size_bytes, blob_type, rows = _PACK.unpack_from(body, at)
        at += _PACK.size
        end = at + rows * ROW_BYTES
        if end > len(body):
            raise Damaged(name, f"it ends inside the rows of pack {pack.hex()}")
        if blob_type not in BLOB_TYPES or size_bytes > PACK_BYTES_MAX or rows * ROW_BYTES > size_bytes:
            raise Damaged(name, f"the entry of pack {pack.hex()} is impossible")
        packs.append(PackRows(pack, salt, size_bytes, blob_type, body[at:end]))
        at = end
    if at != len(body):
        raise Damaged(name, f"{len(body) - at} bytes follow its last pack")
    return packs


def count_rows(packs: Iterable[PackRows]) -> int:
    return sum(len(entry.rows) // ROW_BYTES for entry in packs)
