"""Keyed names of chunks and map nodes: whoever reads the store cannot test for known content."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from blake3 import blake3

if TYPE_CHECKING:
    from imaging.keys import Keys

ID_BYTES = 32
CHUNK = 0
NODE = 1


def blob_id(keys: Keys, blob_type: int, data: bytes | bytearray | memoryview) -> bytes:
    """The 32-byte id of a blob's plaintext; chunks and map nodes have keys of their own."""
    return blake3(data, key=keys.chunk_id if blob_type == CHUNK else keys.node_id).digest()


def chunk_ids_of(keys: Keys, plains: Iterable[memoryview]) -> list[bytes]:
    """The ids of many chunks: between one's hash and the next as little is done as can be, as other threads wait."""
    key = keys.chunk_id
    return [blake3(plain, key=key).digest() for plain in plains]
