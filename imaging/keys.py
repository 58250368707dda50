"""The key bundle and the keys derived from it (docs/format.md section 2).

Rule: secrets live in objects whose repr hides them; nothing here logs, and no error repeats what was typed.
Every use has a key of its own, derived by purpose, so that no two formats ever share one.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, fields
from typing import Final

from blake3 import blake3

from imaging.errors import Damaged

SECRET_BYTES: Final = 32
REPOSITORY_ID_BYTES: Final = 16
CUT_MULTIPLIER_BYTES: Final = 8200

_OF_DEDUP: Final = ("chunk id", "node id", "cut multipliers", "cut permutation")


@dataclass(frozen=True, slots=True)
class KeyBundle:
    """What the slots wrap: the master secret, and the one that names and cuts chunks (shared by repositories made
    alike)."""

    master: bytes = field(repr=False)
    dedup: bytes = field(repr=False)

    @classmethod
    def new(cls, like: KeyBundle | None = None) -> KeyBundle:
        return cls(secrets.token_bytes(SECRET_BYTES), like.dedup if like else secrets.token_bytes(SECRET_BYTES))

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> KeyBundle:
        if len(data) != 2 * SECRET_BYTES:
            raise Damaged(name, f"its key bundle has {len(data)} bytes")
        return cls(data[:SECRET_BYTES], data[SECRET_BYTES:])

    def to_bytes(self) -> bytes:
        return self.master + self.dedup


@dataclass(frozen=True, slots=True)
class Keys:
    """Everything derived from a bundle for one repository. Fields are named for their purpose."""

    repository_id: bytes
    chunk_id: bytes = field(repr=False)
    node_id: bytes = field(repr=False)
    cut_multipliers: bytes = field(repr=False)
    cut_permutation: bytes = field(repr=False)
    blob: bytes = field(repr=False)
    pack_table: bytes = field(repr=False)
    index: bytes = field(repr=False)
    manifest: bytes = field(repr=False)
    control: bytes = field(repr=False)
    configuration: bytes = field(repr=False)
    series: bytes = field(repr=False)
    key_check: bytes = field(repr=False)

    @classmethod
    def derive(cls, bundle: KeyBundle, repository_id: bytes) -> Keys:
        if len(repository_id) != REPOSITORY_ID_BYTES:
            raise ValueError(f"a repository id has {REPOSITORY_ID_BYTES} bytes, not {len(repository_id)}")
        derived: dict[str, bytes] = {}
        for purpose in (each.name.replace("_", " ") for each in fields(cls) if each.name != "repository_id"):
            secret = bundle.dedup if purpose in _OF_DEDUP else bundle.master
            length = CUT_MULTIPLIER_BYTES if purpose == "cut multipliers" else SECRET_BYTES
            derived[purpose.replace(" ", "_")] = derive_key(purpose, secret, length)
        return cls(repository_id=repository_id, **derived)

    def check_value(self) -> bytes:
        """What the configuration states in the clear, to tell a wrong key from damage."""
        return blake3(self.repository_id, key=self.key_check).digest()

    def series_of(self, kind: str, name: str) -> str:
        """The name of a series: `kind` is "vm" (and `name` the domain's UUID), "image", or "repository" for
        what is done to all of it, one at a time."""
        if kind not in ("vm", "image", "repository") or not name or "\0" in name:
            raise ValueError(f"there is no series of kind {kind!r} and name {name!r}")
        return blake3(f"{kind}\0{name}".encode(), key=self.series).digest(length=16).hex()


def derive_key(purpose: str, secret: bytes, length_bytes: int = SECRET_BYTES) -> bytes:
    return blake3(secret, derive_key_context=f"strongroom v1 {purpose}").digest(length=length_bytes)
