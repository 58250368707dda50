"""The envelope of every small object: sealed bytes bound to their name, with a hash that a keyless scrub checks.

Rule: nothing is allocated or decompressed before its stated length was checked (docs/format.md section 3 has the
bytes). A wrong trailing hash is damage whatever else the bytes say; only an intact object can be of another version.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

from imaging.errors import Damaged, NotAuthentic, WrongVersion

MAGIC: Final = b"STRONGRM"
FORMAT_VERSION: Final = 1
CLEAR_BYTES_MAX: Final = 65_536
SEALED_BYTES_MAX: Final = 67_108_864
BODY_BYTES_MAX: Final = 268_435_456
REPOSITORY_ID_BYTES: Final = 16
HASH_BYTES: Final = 32

_HEAD: Final = struct.Struct("<8sHBBI16s12sI")
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_PLAIN_HEAD: Final = struct.Struct("<BI")
_CODEC_RAW: Final = 0
_CODEC_ZSTD: Final = 1
_ZSTD_LEVEL: Final = 3
OBJECT_BYTES_MIN: Final = _HEAD.size + _TAG_BYTES + _PLAIN_HEAD.size + HASH_BYTES


class ObjectType(IntEnum):
    CONFIG = 1
    KEY_SLOT = 2
    INDEX = 3
    MANIFEST = 4
    TOMBSTONE = 5
    LEASE = 6
    CLAIM = 7
    HOLD = 8
    EPOCH = 9
    ROLL_CALL = 10
    VERDICT = 11
    PERSON = 12
    GUARD = 13
    REQUEST = 14


@dataclass(frozen=True, slots=True)
class Envelope:
    """An object whose bytes are intact; nothing in it is trusted until open_sealed() has authenticated it."""

    name: str
    type: ObjectType
    repository_id: bytes
    clear: bytes
    nonce: bytes
    sealed: bytes
    head: bytes


def seal(
    kind: ObjectType,
    name: str,
    key: bytes,
    repository_id: bytes,
    body: bytes,
    clear: bytes = b"",
    compress: bool = True,
) -> bytes:
    """The object's bytes. `name` is the one that it is bound to: the first, for objects that are stored twice."""
    if len(clear) > CLEAR_BYTES_MAX or len(body) > BODY_BYTES_MAX or len(repository_id) != REPOSITORY_ID_BYTES:
        raise ValueError(f"{name} cannot be sealed: {len(clear)} clear and {len(body)} sealed bytes are out of bounds")
    plain = _PLAIN_HEAD.pack(_CODEC_RAW, len(body)) + body
    if compress:
        frame = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_content_size=True).compress(body)
        if len(frame) < len(body):
            plain = _PLAIN_HEAD.pack(_CODEC_ZSTD, len(body)) + frame
    if len(plain) + _TAG_BYTES > SEALED_BYTES_MAX:
        raise ValueError(f"{name} cannot be sealed: {len(plain)} bytes are more than an envelope holds")
    nonce = os.urandom(_NONCE_BYTES)
    head = _HEAD.pack(
        MAGIC, FORMAT_VERSION, kind, 0, len(clear), repository_id, nonce, len(plain) + _TAG_BYTES
    ) + bytes(clear)
    sealed = AESGCMSIV(key).encrypt(nonce, plain, head + name.encode())
    data = head + sealed
    return data + blake3(data).digest()


def parse(data: bytes, name: str, kind: ObjectType | None = None) -> Envelope:
    """Checks everything that needs no key. Raises Damaged, or WrongVersion for an intact object of another version."""
    if len(data) < OBJECT_BYTES_MIN:
        raise Damaged(name, f"it has {len(data)} bytes, and no object is that short")
    if data[:8] != MAGIC:
        raise Damaged(name, "it does not begin as an object of a repository does")
    if blake3(memoryview(data)[:-HASH_BYTES]).digest() != data[-HASH_BYTES:]:
        raise Damaged(name, "its bytes do not match the hash at its end")
    _, version, type_number, zero, clear_bytes, repository_id, nonce, sealed_bytes = _HEAD.unpack_from(data)
    if version != FORMAT_VERSION:
        raise WrongVersion(name, version)
    try:
        found = ObjectType(type_number)
    except ValueError as error:
        raise Damaged(name, f"it says to be of type {type_number}, which does not exist") from error
    if kind is not None and found != kind:
        raise Damaged(name, f"it is of type {found.name.lower()} and should be {kind.name.lower()}")
    if zero or clear_bytes > CLEAR_BYTES_MAX or sealed_bytes > SEALED_BYTES_MAX:
        raise Damaged(name, "its header states impossible lengths")
    if (
        _HEAD.size + clear_bytes + sealed_bytes + HASH_BYTES != len(data)
        or sealed_bytes < _TAG_BYTES + _PLAIN_HEAD.size
    ):
        raise Damaged(name, f"its header states other lengths than its {len(data)} bytes")
    start = _HEAD.size + clear_bytes
    return Envelope(
        name=name,
        type=found,
        repository_id=repository_id,
        clear=data[_HEAD.size : start],
        nonce=nonce,
        sealed=data[start:-HASH_BYTES],
        head=data[:start],
    )


def open_sealed(envelope: Envelope, key: bytes, bound_name: str | None = None) -> bytes:
    """The body. `bound_name` is the name it was sealed under, where that is not its own. NotAuthentic, Damaged."""
    bound = envelope.name if bound_name is None else bound_name
    try:
        plain = AESGCMSIV(key).decrypt(envelope.nonce, envelope.sealed, envelope.head + bound.encode())
    except InvalidTag as error:
        raise NotAuthentic(envelope.name, "it was not sealed under this name with this repository's key") from error
    codec, length = _PLAIN_HEAD.unpack_from(plain)
    content = memoryview(plain)[_PLAIN_HEAD.size :]
    if length > BODY_BYTES_MAX:
        raise Damaged(envelope.name, f"it states a content of {length} bytes")
    if codec == _CODEC_RAW:
        if len(content) != length:
            raise Damaged(envelope.name, f"it states {length} bytes and holds {len(content)}")
        return bytes(content)
    if codec != _CODEC_ZSTD:
        raise Damaged(envelope.name, f"it is compressed by the unknown codec {codec}")
    return _decompress(content, length, envelope.name)


def _decompress(frame: memoryview, length: int, name: str) -> bytes:
    """One frame that states `length`: checked first, as max_output_size is ignored for frames that state their size."""
    try:
        stated = zstandard.get_frame_parameters(frame).content_size
        if stated != length:
            raise Damaged(name, f"its frame states {stated} bytes where {length} are due")
        body = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Damaged(name, f"it does not decompress: {error}") from error
    if len(body) != length:
        raise Damaged(name, f"it decompresses to {len(body)} bytes where {length} are due")
    return body


def hash_of(data: bytes) -> bytes:
    """The BLAKE3 by which manifests are referred to: over the whole object."""
    return blake3(data).digest()
