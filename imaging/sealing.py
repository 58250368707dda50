"""One blob: compress and encrypt it, and back (docs/format.md, section 7).

Rules: every blob has a key of its own, so that no nonce is ever used twice for different content; sizes are checked
before anything is decompressed; what comes out has the id that was asked for, or nothing comes out.
"""

from __future__ import annotations

import struct
import threading
from typing import Final

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from imaging.errors import Damaged
from imaging.ids import blob_id
from imaging.keys import Keys
from imaging.storage.contract import Buffer

FORMAT_VERSION: Final = 1
TAG_BYTES: Final = 16
_NONCE: Final = bytes(12)  # the key is used once
# zstd's level 1 for inputs of our size, with a hash table of 64 KiB instead of 16 and matches from 5 bytes on: 1.5 %
# smaller for 7 % more time (docs/decisions/0007).
_FAST: Final = zstandard.ZstdCompressionParameters(
    window_log=18, hash_log=14, chain_log=13, search_log=1, min_match=5, target_length=0, strategy=1,
    write_content_size=True, write_checksum=False, write_dict_id=False,
)  # fmt: skip
_KEY_TAIL = struct.Struct("<BB32sI")
_ASSOCIATED = struct.Struct("<H16sBBI32s")


class Compressor:
    """zstd for one thread. A frame states its content size, and is used only where it is smaller."""

    def __init__(self, level: int) -> None:
        if level == 1:
            self._zstd = zstandard.ZstdCompressor(compression_params=_FAST)
        else:
            self._zstd = zstandard.ZstdCompressor(
                level=level, write_content_size=True, write_checksum=False, write_dict_id=False
            )

    def compress(self, data: Buffer) -> tuple[Buffer, bool]:
        """The smaller of the frame and the data itself, and whether it is the frame."""
        frame = self._zstd.compress(data)
        return (frame, True) if len(frame) < len(data) else (data, False)


class Sealer:
    """Encrypts blobs of one type for one pack."""

    def __init__(self, keys: Keys, blob_type: int, salt: bytes) -> None:
        self._key = keys.blob
        self._salt = salt
        self._type = blob_type
        self._repository = keys.repository_id

    def seal(self, identity: bytes, payload: Buffer, plain_bytes: int, compressed: bool,
             into: bytearray | memoryview) -> None:  # fmt: skip
        """Ciphertext and tag of `payload`, which is the blob's content of `plain_bytes` bytes, compressed or not. They
        fill `into`, which is TAG_BYTES longer."""
        cipher = AESGCM(self._blob_key(identity, len(into), compressed))
        cipher.encrypt_into(_NONCE, payload, self._associated(identity, plain_bytes, compressed), into)

    def open(self, identity: bytes, sealed: Buffer, plain_bytes: int, compressed: bool) -> bytes:
        """The payload. Raises InvalidTag."""
        cipher = AESGCM(self._blob_key(identity, len(sealed), compressed))
        return cipher.decrypt(_NONCE, sealed, self._associated(identity, plain_bytes, compressed))

    def _blob_key(self, identity: bytes, stored_bytes: int, compressed: bool) -> bytes:
        tail = _KEY_TAIL.pack(self._type, compressed, identity, stored_bytes)
        return blake3(self._salt + tail, key=self._key).digest()

    def _associated(self, identity: bytes, plain_bytes: int, compressed: bool) -> bytes:
        return _ASSOCIATED.pack(FORMAT_VERSION, self._repository, self._type, compressed, plain_bytes, identity)


_local = threading.local()


def _decompressor() -> zstandard.ZstdDecompressor:
    found: zstandard.ZstdDecompressor | None = getattr(_local, "zstd", None)
    if found is None:
        found = _local.zstd = zstandard.ZstdDecompressor()
    return found


def inflate(payload: bytes, plain_bytes: int, name: str) -> bytes:
    """Decompress one frame whose content is exactly `plain_bytes`.

    `max_output_size` is ignored by zstandard for a frame that states its size, so the statement is checked first.
    """
    try:
        _check_stated(payload, plain_bytes, name)
        return _decompressor().decompress(payload, allow_extra_data=False)
    except zstandard.ZstdError as err:
        raise Damaged(name, f"it does not decompress ({err})") from err


def inflate_into(room: memoryview, payload: bytes, name: str) -> None:
    """As inflate, into memory of exactly the content's length."""
    try:
        _check_stated(payload, len(room), name)
        filled = _decompressor().stream_reader(payload).readinto(room)
    except zstandard.ZstdError as err:
        raise Damaged(name, f"it does not decompress ({err})") from err
    if filled != len(room):
        raise Damaged(name, f"it holds {filled} bytes instead of {len(room)}")


def _check_stated(payload: bytes, plain_bytes: int, name: str) -> None:
    stated = zstandard.get_frame_parameters(payload).content_size
    if stated != plain_bytes:
        raise Damaged(name, f"it declares {stated} bytes of content instead of {plain_bytes}")


def open_blob(keys: Keys, sealer: Sealer, blob_type: int, identity: bytes, sealed: Buffer, plain_bytes: int,
              compressed: bool) -> bytes:  # fmt: skip
    """A blob's plaintext, authenticated and with the id that was asked for. Raises Damaged."""
    return _open(keys, sealer, blob_type, identity, sealed, plain_bytes, compressed)[0]


def open_blob_into(room: memoryview, keys: Keys, sealer: Sealer, blob_type: int, identity: bytes, sealed: Buffer,
                   compressed: bool) -> None:  # fmt: skip
    """As open_blob, into memory of exactly the plaintext's length, which holds anything after an error."""
    name = f"blob {identity.hex()}"
    payload = _opened(sealer, identity, sealed, len(room), compressed, name)
    if compressed:
        inflate_into(room, payload, name)
    elif len(payload) == len(room):
        room[:] = payload
    else:
        raise Damaged(name, f"it holds {len(payload)} bytes instead of {len(room)}")
    if blob_id(keys, blob_type, room) != identity:
        raise Damaged(name, "its content has another id")


def open_payload(keys: Keys, sealer: Sealer, blob_type: int, identity: bytes, sealed: Buffer, plain_bytes: int,
                 compressed: bool) -> bytes:  # fmt: skip
    """What was sealed, still compressed if it was, after the same checks: to be sealed into another pack. Damaged."""
    return _open(keys, sealer, blob_type, identity, sealed, plain_bytes, compressed)[1]


def _open(keys: Keys, sealer: Sealer, blob_type: int, identity: bytes, sealed: Buffer, plain_bytes: int,
          compressed: bool) -> tuple[bytes, bytes]:  # fmt: skip
    """Plaintext and payload."""
    name = f"blob {identity.hex()}"
    payload = _opened(sealer, identity, sealed, plain_bytes, compressed, name)
    plain = inflate(payload, plain_bytes, name) if compressed else payload
    if len(plain) != plain_bytes:
        raise Damaged(name, f"it holds {len(plain)} bytes instead of {plain_bytes}")
    if blob_id(keys, blob_type, plain) != identity:
        raise Damaged(name, "its content has another id")
    return plain, payload


def _opened(sealer: Sealer, identity: bytes, sealed: Buffer, plain_bytes: int, compressed: bool, name: str) -> bytes:
    try:
        return sealer.open(identity, sealed, plain_bytes, compressed)
    except InvalidTag as err:
        raise Damaged(name, "it does not authenticate") from err
