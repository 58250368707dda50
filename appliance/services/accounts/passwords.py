"""Passwords: what is one, and argon2id.

The rule: long enough, and no rules beside (NIST SP 800-63B, OWASP ASVS 2.1); a wrong password, a user who is not there
and one without a password cost the same. Hashing takes 64 MiB, so only some go on at a time.
"""

from __future__ import annotations

import base64
import secrets
import threading
import unicodedata
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from appliance.services.accounts.errors import PasswordUnfit

LEAST_CHARACTERS: Final = 12
MOST_CHARACTERS: Final = 256
_LEAST_DIFFERENT: Final = 5
_AT_ONCE: Final = threading.BoundedSemaphore(2)


def check_password(password: str, name: str) -> None:
    """PasswordUnfit."""
    if len(password) < LEAST_CHARACTERS:
        raise PasswordUnfit(f"it has fewer than {LEAST_CHARACTERS} characters")
    if len(password) > MOST_CHARACTERS:
        raise PasswordUnfit(f"it has more than {MOST_CHARACTERS} characters")
    if any(0xD800 <= ord(character) <= 0xDFFF for character in password):
        raise PasswordUnfit("it has characters that are none")
    if len(set(password)) < _LEAST_DIFFERENT:
        raise PasswordUnfit("it is the same few characters over and over")
    if name and not password.lower().replace(name, "").strip():
        raise PasswordUnfit("it is the name")


class Passwords:
    """`hasher`: tests pass a cheap one."""

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = made = hasher or PasswordHasher()
        # What nobody has: well formed, so that to compare with it costs what a comparison costs.
        cost = f"m={made.memory_cost},t={made.time_cost},p={made.parallelism}"
        self._nobodys = f"$argon2id$v=19${cost}${_filler(made.salt_len)}${_filler(made.hash_len)}"

    def hash(self, password: str) -> str:
        with _AT_ONCE:
            return self._hasher.hash(_bytes(password))

    def fits(self, password: str, hash: str | None) -> bool:
        """Whether it is the one. It takes its time although `hash` is None, or the password is no possible one."""
        given = _bytes(password[: MOST_CHARACTERS + 1])
        known = hash or self._nobodys
        with _AT_ONCE:
            try:
                self._hasher.verify(known, given)
            except (VerificationError, InvalidHashError):
                return False
        return hash is not None and len(password) <= MOST_CHARACTERS

    def is_dated(self, hash: str) -> bool:
        """Whether it was made with weaker parameters than today's."""
        return self._hasher.check_needs_rehash(hash)


def _filler(count: int) -> str:
    return base64.b64encode(secrets.token_bytes(count)).decode("ascii").rstrip("=")


def _bytes(password: str) -> bytes:
    # The same characters, whatever keyboard they come from.
    return unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")
