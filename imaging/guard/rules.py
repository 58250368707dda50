"""What a guard guarantees, and who its persons are. Pure.

Rules: what may go without asking is told by the points that came after, and never by a clock: a point goes freely
only when points of so many other days, and so many in number, have followed it. So a clock that jumps adds a day at
most, and a flood of points on one day adds none. On is either nobody's to change (append-only, no person), or that of
two persons and more.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from blake3 import blake3

from imaging.canonical import Fields
from imaging.guard.errors import RulesRefused

DELAY_S: Final = 24 * 3600
DELAY_S_MAX: Final = 90 * 86_400
KEEP_DAYS: Final = 30
KEEP_POINTS: Final = 7
KEEP_MAX: Final = 100_000
PERSONS_MAX: Final = 100
NAME_CHARACTERS_MAX: Final = 60
PUBLIC_KEY_BYTES: Final = 32


def person_id(public_key: bytes) -> str:
    return blake3(public_key).digest(length=16).hex()


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who may ask and confirm. `id` is made of the public key: 32 hex digits."""

    id: str
    name: str
    public_key: bytes

    def as_json(self) -> dict[str, object]:
        return {"id": self.id, "name": self.name, "public_key": self.public_key.hex()}

    @classmethod
    def of(cls, fields: Fields) -> Person:
        return cls(
            fields.hex("id", 16).hex(),
            fields.text("name", NAME_CHARACTERS_MAX),
            fields.hex("public_key", PUBLIC_KEY_BYTES),
        )


@dataclass(frozen=True, slots=True)
class Rules:
    """`keep_days` None: nothing ever goes without asking. Times in seconds."""

    on: bool
    delay_s: int = DELAY_S
    keep_days: int | None = KEEP_DAYS
    keep_points: int = KEEP_POINTS
    persons: tuple[Person, ...] = ()

    @property
    def append_only(self) -> bool:
        return self.on and not self.persons

    def person(self, wanted: str) -> Person | None:
        """By id or name; a name that is another's id is nobody's."""
        return self.signer(wanted) or next((each for each in self.persons if wanted == each.name), None)

    def signer(self, id: str) -> Person | None:
        """By id alone, as signatures say who made them."""
        return next((each for each in self.persons if each.id == id), None)

    def check(self) -> None:
        """RulesRefused."""
        if not 0 <= self.delay_s <= DELAY_S_MAX:
            raise RulesRefused(f"a delay is at most {DELAY_S_MAX // 86_400} days")
        if self.keep_days is not None and not 1 <= self.keep_days <= KEEP_MAX:
            raise RulesRefused(f"points of 1 to {KEEP_MAX} days are guaranteed, or all")
        if not 1 <= self.keep_points <= KEEP_MAX:
            raise RulesRefused(f"1 to {KEEP_MAX} points are guaranteed")
        if self.on and len(self.persons) == 1:
            raise RulesRefused("one person alone can never confirm anything: it takes two, better three")
        if len(self.persons) > PERSONS_MAX:
            raise RulesRefused(f"{PERSONS_MAX} persons are the most")
        for each in self.persons:
            check_person_name(each.name)
            if each.id != person_id(each.public_key):
                raise RulesRefused(f"the id of {each.name} is not that of the key: it may be somebody else's key")
        for words in ([each.name for each in self.persons], [each.id for each in self.persons]):
            if len(set(words)) != len(words):
                raise RulesRefused("a person is named twice")

    def as_json(self) -> dict[str, object]:
        return {
            "delay_s": self.delay_s,
            "keep_days": self.keep_days,
            "keep_points": self.keep_points,
            "on": self.on,
            "persons": [each.as_json() for each in self.persons],
        }

    @classmethod
    def of(cls, fields: Fields) -> Rules:
        """Damaged."""
        found = cls(
            on=fields.boolean("on"),
            delay_s=fields.integer("delay_s", 0, DELAY_S_MAX),
            keep_days=None if fields.values.get("keep_days") is None else fields.integer("keep_days", 1, KEEP_MAX),
            keep_points=fields.integer("keep_points", 1, KEEP_MAX),
            persons=tuple(Person.of(each) for each in fields.records("persons", PERSONS_MAX)),
        )
        try:
            found.check()
        except RulesRefused as error:
            raise fields.damaged("persons", str(error)) from error
        return found


OFF: Final = Rules(on=False)


def check_person_name(name: str) -> None:
    """RulesRefused. Two names that look alike by their composition are one: NFC is asked for."""
    if not name.strip() or name != name.strip() or len(name) > NAME_CHARACTERS_MAX or not name.isprintable():
        raise RulesRefused(f"a person's name has 1 to {NAME_CHARACTERS_MAX} printable characters: {name!r} is none")
    if unicodedata.normalize("NFC", name) != name:
        raise RulesRefused(f"{name!r} is not written in the usual form (NFC)")


class DatedPoint(Protocol):
    @property
    def generation(self) -> int: ...
    @property
    def created_utc(self) -> datetime: ...


def may_go(point: DatedPoint, series: Sequence[DatedPoint], rules: Rules) -> bool:
    """Whether the point is past what the rules guarantee. `series`: the points of its machine that count."""
    if rules.keep_days is None:
        return False
    later = [each for each in series if each.generation > point.generation]
    days = {each.created_utc.date() for each in later} - {point.created_utc.date()}
    return len(later) >= rules.keep_points and len(days) >= rules.keep_days
