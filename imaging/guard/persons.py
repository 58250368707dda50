"""Persons: an Ed25519 key each, whose private half is sealed under a passphrase of their own (docs/format.md
section 14).

Rules: the public key says who somebody is, and the guard's rules say which public keys count: what else lies below
persons/ is only a way to get at a private key, so that no forged object there gains anything. A key is kept twice.
A passphrase's parameters are hostile until they were bounded, as those of key slots.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

from imaging import canonical
from imaging.canonical import Fields
from imaging.clock import Clock
from imaging.envelope import ObjectType
from imaging.errors import Damaged, ImagingError, ObjectMissing, WrongVersion
from imaging.guard.errors import PassphraseWrong, PersonExists, PersonKeyLost
from imaging.guard.rules import NAME_CHARACTERS_MAX, PUBLIC_KEY_BYTES, Person, check_person_name, person_id
from imaging.objects import SealedObjects
from imaging.slots import Argon2Cost, Passphrase, new_argon2_kdf

_NAME: Final = re.compile(r"persons/([0-9a-f]{32})/([0-9a-f]{32})")
_NONCE_BYTES: Final = 12
_SEALED_BYTES: Final = 32 + 16
_COPIES: Final = 2
SIGNATURE_BYTES: Final = 64


class Signer:
    """A person at work: what their passphrase opened."""

    def __init__(self, person: Person, key: Ed25519PrivateKey) -> None:
        self.person = person
        self._key = key

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


def is_signed(person: Person, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(person.public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Sealed:
    """One object below persons/."""

    name: str
    person: Person
    kdf: Fields
    nonce: bytes
    sealed: bytes


class Persons:
    """Borrows everything."""

    def __init__(self, objects: SealedObjects, clock: Clock) -> None:
        self._objects = objects
        self._clock = clock

    def enrolled(self) -> tuple[Person, ...]:
        """Whoever has a key here that can be read, by name. They count only where the guard's rules name them."""
        found = {each.person.id: each.person for each in self._read("persons/", [])}
        return tuple(sorted(found.values(), key=lambda person: (person.name, person.id)))

    def enrol(self, name: str, passphrase: str, cost: Argon2Cost | None = None) -> Person:
        """A key for somebody new. RulesRefused for a name that cannot be, PersonExists."""
        check_person_name(name)
        if any(each.name == name for each in self.enrolled()):
            raise PersonExists(name)
        key = Ed25519PrivateKey.generate()
        public = key.public_key().public_bytes_raw()
        person = Person(person_id(public), name, public)
        self._write(person, key, passphrase, cost)
        return person

    def signer(self, person: Person, passphrase: str) -> Signer:
        """PassphraseWrong, PersonKeyLost."""
        losses: list[ImagingError] = []
        tried: set[bytes] = set()
        for sealed in self._read(f"persons/{person.id}/", losses):
            if sealed.sealed in tried:
                continue  # the second copy: a passphrase costs a fifth of a second to try
            try:
                key = self._open(sealed, person, passphrase)
            except Damaged as error:
                losses.append(error)
                continue
            tried.add(sealed.sealed)
            if key is not None:
                return Signer(person, key)
        if tried:
            raise PassphraseWrong(person.name)
        raise PersonKeyLost(person.name) from (losses[0] if losses else None)

    def change_passphrase(self, person: Person, old: str, new: str, cost: Argon2Cost | None = None) -> None:
        """The key stays. Whoever has copied the repository, and the old passphrase, still has it. PassphraseWrong."""
        before = [each.name for each in self._read(f"persons/{person.id}/", [])]
        signer = self.signer(person, old)
        self._write(person, signer._key, new, cost)
        self._objects.store.delete_many(before)

    def _write(self, person: Person, key: Ed25519PrivateKey, passphrase: str, cost: Argon2Cost | None) -> None:
        kdf = new_argon2_kdf(cost)
        wrapping = Passphrase(passphrase).wrapping_key(Fields.of(kdf, "persons/"))
        nonce = secrets.token_bytes(_NONCE_BYTES)
        values: dict[str, object] = {
            "created_utc": canonical.utc_text(self._clock.now_utc()),
            "id": person.id,
            "kdf": kdf,
            "name": person.name,
            "nonce": nonce.hex(),
            "public_key": person.public_key.hex(),
            "sealed": AESGCMSIV(wrapping).encrypt(nonce, key.private_bytes_raw(), self._bound(person)).hex(),
        }
        for _ in range(_COPIES):
            self._objects.create_json(ObjectType.PERSON, f"persons/{person.id}/{secrets.token_hex(16)}", values)

    def _bound(self, person: Person) -> bytes:
        return b"strongroom v1 person\0" + self._objects.keys.repository_id + person.public_key

    def _open(self, sealed: _Sealed, person: Person, passphrase: str) -> Ed25519PrivateKey | None:
        """None: another passphrase, or the object of somebody else."""
        wrapping = Passphrase(passphrase).wrapping_key(sealed.kdf)
        try:
            secret = AESGCMSIV(wrapping).decrypt(sealed.nonce, sealed.sealed, self._bound(person))
        except InvalidTag:
            return None
        key = Ed25519PrivateKey.from_private_bytes(secret)
        return key if key.public_key().public_bytes_raw() == person.public_key else None

    def _read(self, prefix: str, losses: list[ImagingError]) -> list[_Sealed]:
        found = []
        for listed in self._objects.store.list(prefix):
            if _NAME.fullmatch(listed.name) is None:
                continue
            try:
                found.append(decode_person(self._objects.read_json(ObjectType.PERSON, listed.name)))
            except ObjectMissing:
                continue
            except (Damaged, WrongVersion) as error:
                losses.append(error)  # the other copy may do
        return found


def decode_person(fields: Fields) -> _Sealed:
    """Damaged."""
    public = fields.hex("public_key", PUBLIC_KEY_BYTES)
    person = Person(person_id(public), fields.text("name", NAME_CHARACTERS_MAX), public)
    if fields.hex("id", 16).hex() != person.id or not fields.name.startswith(f"persons/{person.id}/"):
        raise fields.damaged("id", "is not that of its public key")
    return _Sealed(
        fields.name,
        person,
        fields.record("kdf"),
        fields.hex("nonce", _NONCE_BYTES),
        fields.hex("sealed", _SEALED_BYTES),
    )
