"""Known answers of the format's pure functions, computed here from docs/format.md as literally as possible.

Rule: nothing of `imaging` is used, and no compressor, whose output may change from one version to the next: what is
compressed in the answers is a frame kept below. vectors.json holds what vectors() returned when version 1 was made.
"""

from __future__ import annotations

import base64
import json
import struct
from operator import mul
from typing import Any, Final

from argon2.low_level import ARGON2_VERSION, Type, hash_secret_raw
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESGCMSIV

from tests.unit.golden.content import KIB, MIB, PAGE, Disk, noise, text

MASTER: Final = bytes(range(32))
DEDUP: Final = bytes(range(100, 132))
REPOSITORY: Final = bytes(range(16))
NONCE: Final = bytes(range(50, 62))
SALT: Final = bytes(range(60, 92))
PURPOSES: Final = {
    "chunk id": DEDUP, "node id": DEDUP, "cut multipliers": DEDUP, "cut permutation": DEDUP, "blob": MASTER,
    "pack table": MASTER, "index": MASTER, "manifest": MASTER, "control": MASTER, "configuration": MASTER,
    "series": MASTER, "key check": MASTER,
}  # fmt: skip
SERIES: Final = (("vm", "0b2f0c7e-1d5c-4a55-9c5e-2f6d3a1b7c90"), ("image", "golden image \u2603"))
PASSPHRASE: Final = "caf\u00e9"
ARGON2_SALT: Final = bytes(range(16))
PLACES: Final = ((64, 17, 1, False), (33_554_431, 524_287, 524_287, True), (16_777_216, 262_160, 262_144, False))
PLAIN: Final = b"page" * 1024
FRAME: Final = bytes.fromhex("28b52ffd60000f5d000020706167650100f9e75f22")
"""PLAIN as one zstd frame that states its size."""

ENVELOPE_NAME: Final = "keys/00112233445566778899aabbccddeeff"
CLEAR: Final = b'{"clear":"part"}'
JSON_VALUE: Final[dict[str, Any]] = {"b": [1, None, True], "a": {"\u2603": "\u00e9\n"}, "B": -5}
REGIONS: Final = {
    "whole": Disk(
        16 * MIB,
        (
            (0, noise("region head", 3 * MIB)),
            (3 * MIB + 15 * PAGE, noise("after 15 zero pages", 700 * KIB)),
            (5 * MIB, text("region", 2 * MIB)),
            (9 * MIB, noise("one page", 1)),
            (12 * MIB, noise("region tail", 4 * MIB - 3 * PAGE)),
        ),
    ),
    "last": Disk(1 * MIB + 1234, ((40 * KIB, noise("last region head", 400 * KIB)), (1 * MIB, noise("end", 1234)))),
}
TREE_REGIONS: Final = 260
TREE_LEAVES: Final = {number: noise(f"leaf {number}", 32) for number in (0, 3, 255, 256, 259)}


def derive(purpose: str) -> bytes:
    hasher = blake3(PURPOSES[purpose], derive_key_context=f"strongroom v1 {purpose}")
    return hasher.digest(length=8200 if purpose == "cut multipliers" else 32)


def blob_id(purpose: str, plain: bytes) -> bytes:
    return blake3(plain, key=derive(purpose)).digest()


def is_cut_page(page: bytes, multipliers: tuple[int, ...], permutation: Any) -> bool:
    words = struct.unpack("<1024I", page.ljust(PAGE, b"\0"))
    total = (multipliers[1024] + sum(map(mul, multipliers, words))) % 2**64
    block = permutation.update(struct.pack("<I12x", total >> 32))
    return int.from_bytes(block[:8], "little") % 13 == 0


def cut(region: bytes) -> list[tuple[int, bool]]:
    """(pages, whether it is a chunk) of each record, by section 6."""
    multipliers = struct.unpack("<1025Q", derive("cut multipliers"))
    permutation = Cipher(algorithms.AES256(derive("cut permutation")), modes.ECB()).encryptor()
    pages = [region[at : at + PAGE] for at in range(0, len(region), PAGE)]
    records: list[tuple[int, bool]] = []
    at = chunk = 0
    while at < len(pages):
        zeros = 0
        while at + zeros < len(pages) and not any(pages[at + zeros]):
            zeros += 1
        if zeros >= 16 or (zeros and at + zeros == len(pages)):
            records += [(chunk, True)] * bool(chunk) + [(zeros, False)]
            at, chunk = at + zeros, 0
            continue
        for page in pages[at : at + max(1, zeros)]:
            at, chunk = at + 1, chunk + 1
            if chunk == 64 or (chunk >= 4 and is_cut_page(page, multipliers, permutation)):
                records.append((chunk, True))
                chunk = 0
    return records + [(chunk, True)] * bool(chunk)


def region_answers(region: bytes) -> dict[str, Any]:
    records, at, ids = cut(region), 0, []
    for pages, is_chunk in records:
        if is_chunk:
            ids.append(blob_id("chunk id", region[at * PAGE : (at + pages) * PAGE]))
        at += pages
    words = [pages | is_chunk << 15 for pages, is_chunk in records]
    leaf = struct.pack(f"<BBH{len(words)}H", 0, 0, len(words), *words) + b"".join(ids)
    return {
        "records": [[pages, "chunk" if is_chunk else "hole"] for pages, is_chunk in records],
        "chunk ids": blake3(b"".join(ids)).hexdigest(),
        "first chunk id": ids[0].hex(),
        "leaf": blake3(leaf).hexdigest(),
        "leaf id": blob_id("node id", leaf).hex(),
    }


def tree_answers() -> dict[str, Any]:
    """The inner nodes above TREE_LEAVES on a disk of TREE_REGIONS regions, lowest first."""
    nodes: list[str] = []
    ids, slots, level = TREE_LEAVES, TREE_REGIONS, 0
    while slots > 1:
        level, above = level + 1, {}
        for number in sorted({child // 256 for child in ids}):
            mine = {child - 256 * number: ids[child] for child in sorted(ids) if child // 256 == number}
            bitmap = sum(1 << slot for slot in mine).to_bytes(32, "little")
            head = struct.pack("<BBH", level, 0, min(256, slots - 256 * number))
            plain = head + bitmap + b"".join(mine.values())
            nodes.append(plain.hex())
            above[number] = blob_id("node id", plain)
        ids, slots = above, -(-slots // 256)
    return {"nodes": nodes, "root": ids[0].hex()}


def place(offset: int, stored: int, length: int, compressed: bool) -> int:
    return offset | stored << 25 | length << 44 | compressed << 63


def blob(kind: int, plain: bytes, payload: bytes) -> tuple[bytes, bytes, bool]:
    """id, sealed bytes, and whether the payload is a frame."""
    compressed = payload != plain
    identity = blob_id(("chunk id", "node id")[kind], plain)
    message = SALT + bytes([kind, compressed]) + identity + struct.pack("<I", len(payload) + 16)
    key = blake3(message, key=derive("blob")).digest()
    associated = (
        struct.pack("<H", 1) + REPOSITORY + bytes([kind, compressed]) + struct.pack("<I", len(plain)) + identity
    )
    return identity, AESGCM(key).encrypt(bytes(12), payload, associated), compressed


def pack(kind: int, blobs: list[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    """A whole pack of (plain, payload), and its rows."""
    data = struct.pack("<8sHB5x", b"STRONGPK", 1, kind) + REPOSITORY + SALT
    header, rows = data, b""
    for plain, payload in blobs:
        identity, sealed, compressed = blob(kind, plain, payload)
        rows += identity + struct.pack("<Q", place(len(data), len(sealed), len(plain), compressed))
        data += sealed
    trailer = struct.pack("<III4x8s", len(data), len(rows) + 16, len(rows) // 40, b"STRONGPE")
    table = AESGCMSIV(derive("pack table")).encrypt(SALT[:12], rows, header + trailer)
    return data + table + trailer, rows


def envelope(kind: int, purpose: str, name: str, clear: bytes, plaintext: bytes) -> bytes:
    head = struct.pack("<8sHBBI", b"STRONGRM", 1, kind, 0, len(clear)) + REPOSITORY + NONCE
    head += struct.pack("<I", len(plaintext) + 16) + clear
    data = head + AESGCMSIV(derive(purpose)).encrypt(NONCE, plaintext, head + name.encode())
    return data + blake3(data).digest()


def recovery_text(secret: bytes) -> str:
    letters = base64.b32encode(secret + blake3(secret).digest()[:3]).decode()
    return "-".join(["SR1", *(letters[at : at + 4] for at in range(0, 56, 4))])


def series_name(kind: str, name: str) -> str:
    return blake3(f"{kind}\0{name}".encode(), key=derive("series")).digest()[:16].hex()


def vectors() -> dict[str, Any]:
    chunks = [(PLAIN, FRAME), (noise("incompressible", 100), noise("incompressible", 100))]
    whole, rows = pack(0, chunks)
    entry = blake3(whole).digest() + SALT + struct.pack("<IB3xI", len(whole), 0, 2) + rows
    argon2 = hash_secret_raw(PASSPHRASE.encode(), ARGON2_SALT, 1, 19_456, 1, 32, Type.ID, ARGON2_VERSION)
    return {
        "derived keys": {
            purpose: (blake3(derive(purpose)).hexdigest() if len(derive(purpose)) > 32 else derive(purpose).hex())
            for purpose in PURPOSES
        },
        "key check": blake3(REPOSITORY, key=derive("key check")).hexdigest(),
        "series": [series_name(kind, name) for kind, name in SERIES],
        "slot keys": {
            "passphrase": argon2.hex(),
            "recovery": blake3(SALT, key=MASTER).hexdigest(),
            "machine": blake3(SALT, key=DEDUP).hexdigest(),
        },
        "recovery text": recovery_text(MASTER),
        "canonical json": json.dumps(JSON_VALUE, sort_keys=True, separators=(",", ":"), ensure_ascii=False),
        "places": [str(place(*each)) for each in PLACES],
        "regions": {name: region_answers(disk.read(0, disk.size_bytes)) for name, disk in REGIONS.items()},
        "tree": tree_answers(),
        "blobs": {
            "chunk": blob(0, *chunks[1])[1].hex(),
            "chunk compressed": blob(0, *chunks[0])[1].hex(),
            "node": blob(1, *chunks[1])[1].hex(),
        },
        "pack": whole.hex(),
        "index body": (struct.pack("<I", 1) + entry).hex(),
        "envelopes": {
            "raw": envelope(2, "control", ENVELOPE_NAME, CLEAR, struct.pack("<BI", 0, 4096) + PLAIN).hex(),
            "compressed": envelope(8, "control", "holds/x", b"", struct.pack("<BI", 1, 4096) + FRAME).hex(),
        },
    }
