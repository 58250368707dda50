"""Where blobs are: places inside packs, locations, and the rows of a pack as its table and the index state them.

Rule: this module only packs and unpacks numbers; it knows neither stores nor keys. docs/format.md section 7 has the
bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

ID_BYTES: Final = 32
ROW_BYTES: Final = 40

_OFFSET_BITS: Final = 25
_LENGTH_BITS: Final = 19
_STORED_SHIFT: Final = _OFFSET_BITS
_PLAIN_SHIFT: Final = _OFFSET_BITS + _LENGTH_BITS
_COMPRESSED_BIT: Final = 1 << 63
OFFSET_MAX: Final = (1 << _OFFSET_BITS) - 1
LENGTH_MAX: Final = (1 << _LENGTH_BITS) - 1


class PackState(IntEnum):
    """What may be done with a pack: only LIVE deduplicates; readers try all, in this order.

    UNLISTED: found in the store and in no index object that counts: good for reading, but nothing may come to rely on
    it. CONDEMNED: a collector may delete it at any moment, and never changes its mind. GONE: it was not there when it
    was looked for, and may be there again.
    """

    LIVE = 0
    UNLISTED = 1
    CONDEMNED = 2
    DAMAGED = 3
    GONE = 4


@dataclass(frozen=True, slots=True)
class Location:
    """One place that a blob can be read from: one ranged read, as the pack's salt is known."""

    pack: bytes
    salt: bytes
    offset_bytes: int
    stored_bytes: int
    plain_bytes: int
    compressed: bool
    state: PackState


@dataclass(frozen=True, slots=True)
class PackRows:
    """A pack as the index knows it: `rows` holds 40 bytes per blob, `id (32) ‖ u64 place`, in the order of offsets."""

    pack: bytes
    salt: bytes
    size_bytes: int
    blob_type: int
    rows: bytes


def pack_place(offset_bytes: int, stored_bytes: int, plain_bytes: int, compressed: bool) -> int:
    """The u64 of a row. Raises ValueError when a number does not fit: our own mistake."""
    if not (0 <= offset_bytes <= OFFSET_MAX and 0 <= stored_bytes <= LENGTH_MAX and 0 <= plain_bytes <= LENGTH_MAX):
        raise ValueError(f"no place can state offset {offset_bytes}, stored {stored_bytes}, plain {plain_bytes}")
    place = offset_bytes | stored_bytes << _STORED_SHIFT | plain_bytes << _PLAIN_SHIFT
    return place | _COMPRESSED_BIT if compressed else place


def unpack_place(place: int) -> tuple[int, int, int, bool]:
    """offset, stored and plain length in bytes, and whether it is compressed."""
    return (
        place & OFFSET_MAX,
        place >> _STORED_SHIFT & LENGTH_MAX,
        place >> _PLAIN_SHIFT & LENGTH_MAX,
        bool(place & _COMPRESSED_BIT),
    )
