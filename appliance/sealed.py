"""Secrets that have to be read again, sealed: what the catalog may hold of them.

The rule: AES-256-GCM, with what the secret is of as associated data, so that a row's value opens in no other row. The
key never is in the catalog, but wrapped under one that whoever opens the repository can derive.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Self

WRAPPING: Final = "catalog key"
"""The purpose for which a repository derives what wraps a catalog's key."""
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_ID_BYTES: Final = 8


class NotOpened(Exception):
    """It was sealed with another key, for something else, or was changed."""


@dataclass(frozen=True, slots=True)
class CatalogKeyRecord:
    """What the catalog has of its key. `id`: 16 hex digits, which the key alone yields. `wrapped`: the key itself,
    under what `repository` (an id) derives; None: no home that has it has opened a repository yet."""

    id: str
    created_utc: datetime
    repository: str | None = None
    wrapped: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class CatalogKey:
    secret: bytes = field(repr=False)

    @classmethod
    def new(cls) -> Self:
        return cls(secrets.token_bytes(_KEY_BYTES))

    @property
    def id(self) -> str:
        return _derived("catalog key id", self.secret, _ID_BYTES).hex()

    def seal(self, about: str, plain: str) -> str:
        """`about`: what it is of ("user ID")."""
        return _seal(self._key, about, plain.encode("utf-8"))

    def open(self, about: str, sealed: str) -> str:
        """NotOpened."""
        return _open(self._key, about, sealed).decode("utf-8")

    @property
    def _key(self) -> bytes:
        return _derived("catalog secrets", self.secret, _KEY_BYTES)

    def wrapped(self, wrapping: bytes, repository: str) -> str:
        return _seal(wrapping, f"repository {repository}", self.secret)

    @classmethod
    def unwrapped(cls, wrapping: bytes, repository: str, wrapped: str) -> Self:
        """NotOpened."""
        return cls(_open(wrapping, f"repository {repository}", wrapped))


def of_user(id: str) -> str:
    """What the secret of a user's second factor is about."""
    return f"second factor of user {id}"


def of_link(hash: str) -> str:
    """What the secret that a set-up link offers is about."""
    return f"second factor of link {hash}"


def _derived(purpose: str, secret: bytes, length_bytes: int) -> bytes:
    from imaging.keys import derive_key

    return derive_key(f"appliance {purpose}", secret, length_bytes)


def _seal(key: bytes, about: str, plain: bytes) -> str:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = secrets.token_bytes(_NONCE_BYTES)
    return base64.b64encode(nonce + AESGCM(key).encrypt(nonce, plain, about.encode("utf-8"))).decode("ascii")


def _open(key: bytes, about: str, sealed: str) -> bytes:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        data = base64.b64decode(sealed, validate=True)
        return AESGCM(key).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], about.encode("utf-8"))
    except (InvalidTag, binascii.Error, ValueError) as err:
        raise NotOpened from err
