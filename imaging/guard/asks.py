"""What somebody asks for, signed, and the confirmation of another: together they are an authority to do it.

Rules: both sign the very record, which states the repository, a random id, the act in full, who asks and until when it
is good; so a signature serves nothing else. Whether two signatures are enough is told from the rules of the moment, by
their public keys: two different persons, both of the guard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from blake3 import blake3

from imaging import canonical
from imaging.canonical import Fields
from imaging.guard.acts import Act, decode_act, encode_act
from imaging.guard.persons import SIGNATURE_BYTES, Signer, is_signed
from imaging.guard.rules import Rules

REASON_CHARACTERS_MAX: Final = 1000
_ASKING: Final = b"strongroom v1 guard request\0"
_CONFIRMING: Final = b"strongroom v1 guard confirmation\0"


@dataclass(frozen=True, slots=True)
class Ask:
    """`person` is the id of who asks; `record` the canonical JSON that is signed."""

    id: str
    repository: bytes
    person: str
    act: Act
    reason: str
    created_utc: datetime
    expires_utc: datetime
    record: bytes = field(repr=False)

    @classmethod
    def make(
        cls,
        id: str,
        repository: bytes,
        person: str,
        act: Act,
        reason: str,
        created_utc: datetime,
        expires_utc: datetime,
    ) -> Ask:
        values = {
            "act": encode_act(act),
            "created_utc": canonical.utc_text(created_utc),
            "expires_utc": canonical.utc_text(expires_utc),
            "id": id,
            "person": person,
            "reason": reason[:REASON_CHARACTERS_MAX],
            "repository": repository.hex(),
        }
        return cls.of(Fields.of(values, f"requests/{id}/asked"))

    @classmethod
    def of(cls, fields: Fields) -> Ask:
        """Damaged."""
        return cls(
            id=fields.hex("id", 16).hex(),
            repository=fields.hex("repository", 16),
            person=fields.hex("person", 16).hex(),
            act=decode_act(fields.record("act")),
            reason=fields.text("reason", REASON_CHARACTERS_MAX),
            created_utc=fields.utc("created_utc"),
            expires_utc=fields.utc("expires_utc"),
            record=canonical.encode(fields.values),
        )

    def as_json(self) -> Mapping[str, object]:
        return Fields.parse(self.record, "a request").values

    def to_ask(self) -> bytes:
        """What who asks signs."""
        return _ASKING + blake3(self.record).digest()

    def to_confirm(self) -> bytes:
        """What who confirms signs."""
        return _CONFIRMING + blake3(self.record).digest()


@dataclass(frozen=True, slots=True)
class Asked:
    """An ask with the signature of who asks."""

    ask: Ask
    signature: bytes

    @classmethod
    def by(cls, signer: Signer, ask: Ask) -> Asked:
        return cls(ask, signer.sign(ask.to_ask()))

    def as_json(self) -> dict[str, object]:
        return {"ask": self.ask.as_json(), "signature": self.signature.hex()}

    @classmethod
    def of(cls, fields: Fields) -> Asked:
        """Damaged."""
        return cls(Ask.of(fields.record("ask")), fields.hex("signature", SIGNATURE_BYTES))

    def flaw(self, rules: Rules, repository: bytes) -> str | None:
        """Why this counts for nothing under these rules, as half a sentence; None: it counts."""
        person = rules.signer(self.ask.person)
        if self.ask.repository != repository:
            return "it was made for another repository"
        if person is None:
            return "who asked is no person of the guard"
        if not is_signed(person, self.signature, self.ask.to_ask()):
            return f"it is not signed by {person.name}"
        return None


@dataclass(frozen=True, slots=True)
class Confirmation:
    person: str
    signature: bytes

    @classmethod
    def by(cls, signer: Signer, ask: Ask) -> Confirmation:
        return cls(signer.person.id, signer.sign(ask.to_confirm()))

    def as_json(self) -> dict[str, object]:
        return {"person": self.person, "signature": self.signature.hex()}

    @classmethod
    def of(cls, fields: Fields) -> Confirmation:
        """Damaged."""
        return cls(fields.hex("person", 16).hex(), fields.hex("signature", SIGNATURE_BYTES))

    def flaw(self, ask: Ask, rules: Rules) -> str | None:
        person = rules.signer(self.person)
        if person is None:
            return "who confirmed it is no person of the guard"
        if person.id == ask.person:
            return "the same person asked and confirmed"
        if not is_signed(person, self.signature, ask.to_confirm()):
            return f"the confirmation is not signed by {person.name}, or for something else"
        return None


@dataclass(frozen=True, slots=True)
class Authority:
    """What two persons signed."""

    asked: Asked
    confirmation: Confirmation

    def as_json(self) -> dict[str, object]:
        return {"asked": self.asked.as_json(), "confirmation": self.confirmation.as_json()}

    @classmethod
    def of(cls, fields: Fields) -> Authority:
        """Damaged."""
        return cls(Asked.of(fields.record("asked")), Confirmation.of(fields.record("confirmation")))

    def flaw(self, rules: Rules, repository: bytes) -> str | None:
        return self.asked.flaw(rules, repository) or self.confirmation.flaw(self.asked.ask, rules)
