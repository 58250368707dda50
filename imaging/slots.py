"""Key slots: the key bundle wrapped by a passphrase, the printed recovery key, or a machine key (docs/format.md
section 5).

Rule: a slot's stored parameters are hostile: they are bounded before a byte of memory is spent on them. A secret that
does not fit is told apart from a slot that is damaged.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar, Final, TypeAlias

from blake3 import blake3
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from imaging import canonical
from imaging.canonical import Fields
from imaging.envelope import Envelope, ObjectType, open_sealed, parse, seal
from imaging.errors import Damaged, RecoveryKeyMalformed
from imaging.keys import SECRET_BYTES, KeyBundle

KINDS: Final = ("passphrase", "recovery", "machine")
_ARGON2_SALT_BYTES: Final = 16
_BLAKE3_SALT_BYTES: Final = 32
_RECOVERY_CHECK_BYTES: Final = 3
_LABEL_CHARACTERS_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class Passphrase:
    """Typed by an admin; NFC, so that the same letters from another keyboard are the same passphrase."""

    kind: ClassVar[str] = "passphrase"
    text: str = field(repr=False)

    def wrapping_key(self, kdf: Fields) -> bytes:
        kdf.one_of("name", ("argon2id",))
        return Argon2id(
            salt=kdf.hex("salt", _ARGON2_SALT_BYTES),
            length=SECRET_BYTES,
            iterations=kdf.integer("passes", 1, 16),
            lanes=kdf.integer("lanes", 1, 16),
            memory_cost=kdf.integer("memory_kib", 19_456, 1_048_576),
        ).derive(unicodedata.normalize("NFC", self.text).encode())


@dataclass(frozen=True, slots=True)
class RecoveryKey:
    """256 bits, printed once at `init`: SR1- and 14 groups of four."""

    kind: ClassVar[str] = "recovery"
    secret: bytes = field(repr=False)

    @classmethod
    def new(cls) -> RecoveryKey:
        return cls(secrets.token_bytes(SECRET_BYTES))

    def text(self) -> str:
        checked = self.secret + blake3(self.secret).digest(length=_RECOVERY_CHECK_BYTES)
        letters = base64.b32encode(checked).decode()
        return "SR1-" + "-".join(letters[at : at + 4] for at in range(0, len(letters), 4))

    @classmethod
    def parse(cls, text: str) -> RecoveryKey:
        """Ignores case, white space and dashes. Raises RecoveryKeyMalformed, which does not repeat the text."""
        letters = "".join(text.split()).replace("-", "").upper()
        if not letters.startswith("SR1"):
            raise RecoveryKeyMalformed("it does not begin with SR1")
        letters = letters[3:]
        if len(letters) != 56:
            raise RecoveryKeyMalformed(f"it has {len(letters)} of 56 characters after SR1")
        try:
            checked = base64.b32decode(letters)
        except (binascii.Error, ValueError) as error:
            raise RecoveryKeyMalformed("it has characters other than A-Z and 2-7") from error
        secret, check = checked[:SECRET_BYTES], checked[SECRET_BYTES:]
        if blake3(secret).digest(length=_RECOVERY_CHECK_BYTES) != check:
            raise RecoveryKeyMalformed("its check digits do not fit; a character is mistyped")
        return cls(secret)

    def wrapping_key(self, kdf: Fields) -> bytes:
        return _keyed_salt(self.secret, kdf)


@dataclass(frozen=True, slots=True)
class MachineKey:
    """Kept by an appliance in a file of mode 0600, so that it works unattended."""

    kind: ClassVar[str] = "machine"
    secret: bytes = field(repr=False)

    @classmethod
    def new(cls) -> MachineKey:
        return cls(secrets.token_bytes(SECRET_BYTES))

    def wrapping_key(self, kdf: Fields) -> bytes:
        return _keyed_salt(self.secret, kdf)


Secret: TypeAlias = Passphrase | RecoveryKey | MachineKey


def _keyed_salt(secret: bytes, kdf: Fields) -> bytes:
    kdf.one_of("name", ("blake3",))
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a key has {SECRET_BYTES} bytes, not {len(secret)}")
    return blake3(kdf.hex("salt", _BLAKE3_SALT_BYTES), key=secret).digest()


@dataclass(frozen=True, slots=True)
class Argon2Cost:
    """RFC 9106's second recommendation: 64 MiB and three passes, well under a second, on the smallest appliance."""

    memory_kib: int = 65_536
    passes: int = 3
    lanes: int = 4


@dataclass(frozen=True, slots=True)
class Slot:
    """A slot's clear part, and the object it came from."""

    id: str
    kind: str
    label: str
    created_utc: datetime
    kdf: Fields
    envelope: Envelope
    data: bytes = field(repr=False)


def slot_name(slot_id: str) -> str:
    return f"keys/{slot_id}"


def copy_name(slot_id: str) -> str:
    return f"keys.copy/{slot_id}"


def new_argon2_kdf(
    cost: Argon2Cost | None, new_bytes: Callable[[int], bytes] = secrets.token_bytes
) -> dict[str, object]:
    """What a passphrase's `wrapping_key` takes, with a new salt."""
    chosen = cost or Argon2Cost()
    return {
        "name": "argon2id",
        "lanes": chosen.lanes,
        "memory_kib": chosen.memory_kib,
        "passes": chosen.passes,
        "salt": new_bytes(_ARGON2_SALT_BYTES).hex(),
    }


def make_slot(
    secret: Secret,
    bundle: KeyBundle,
    repository_id: bytes,
    created_utc: datetime,
    label: str,
    cost: Argon2Cost | None = None,
    new_bytes: Callable[[int], bytes] = secrets.token_bytes,
) -> Slot:
    """A new slot; its object goes to slot_name(id) and copy_name(id) alike."""
    if isinstance(secret, Passphrase):
        if not secret.text:
            raise ValueError("an empty passphrase protects nothing")
        kdf = new_argon2_kdf(cost, new_bytes)
    else:
        kdf = {"name": "blake3", "salt": new_bytes(_BLAKE3_SALT_BYTES).hex()}
    slot_id = new_bytes(16).hex()
    clear = canonical.encode(
        {
            "created_utc": canonical.utc_text(created_utc),
            "id": slot_id,
            "kdf": kdf,
            "kind": secret.kind,
            "label": label[:_LABEL_CHARACTERS_MAX],
        }
    )
    name = slot_name(slot_id)
    key = secret.wrapping_key(Fields.of(kdf, name))
    return parse_slot(
        seal(ObjectType.KEY_SLOT, name, key, repository_id, bundle.to_bytes(), clear, compress=False), name
    )


def parse_slot(data: bytes, name: str) -> Slot:
    """Everything that needs no secret. Raises Damaged, WrongVersion."""
    envelope = parse(data, name, ObjectType.KEY_SLOT)
    clear = Fields.parse(envelope.clear, name)
    return Slot(
        id=clear.hex("id", 16).hex(),
        kind=clear.one_of("kind", KINDS),
        label=clear.text("label"),
        created_utc=clear.utc("created_utc"),
        kdf=clear.record("kdf"),
        envelope=envelope,
        data=data,
    )


def open_slot(slot: Slot, secret: Secret) -> KeyBundle:
    """The bundle. NotAuthentic when the secret does not fit this slot; Damaged when its parameters are out of
    bounds."""
    if slot.kind != secret.kind:
        raise Damaged(slot.envelope.name, f"it is a {slot.kind} slot and was tried with a {secret.kind}")
    key = secret.wrapping_key(slot.kdf)
    return KeyBundle.from_bytes(open_sealed(slot.envelope, key, slot_name(slot.id)), slot.envelope.name)
