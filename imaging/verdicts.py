"""Verdicts: which packs are known to be damaged or missing, told to whoever comes after (docs/format.md section 11).

Rules: that a verdict is there is enough, it need not open; it takes a pack from deduplication and never from readers;
it is written by whoever finds out and taken back by a verification that reads the pack whole. Where it cannot be
written, nothing else fails for that.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Final

from imaging import canonical
from imaging.canonical import Fields
from imaging.clock import Clock
from imaging.envelope import ObjectType
from imaging.errors import Damaged, ImagingError, ObjectExists, ObjectMissing, StoreError
from imaging.objects import SealedObjects
from imaging.packs import pack_name

_log = logging.getLogger(__name__)
_FOLDER: Final = "damaged/"
_NAME: Final = re.compile(r"damaged/([0-9a-f]{64})")
_IDS_MAX: Final = 1_000_000
_REASON_CHARACTERS: Final = 1000

DAMAGED: Final = "damaged"
MISSING: Final = "missing"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found of a pack: `found` is DAMAGED or MISSING; `unreadable` are the ids in it that could not be read,
    or None where that could not be told, and it may be any of them."""

    pack: bytes
    found: str
    reason: str
    unreadable: frozenset[bytes] | None
    created_utc: str = ""

    def as_error(self) -> ImagingError:
        """For a report of somebody who has not looked at the pack as closely."""
        name = pack_name(self.pack)
        if self.found == MISSING:
            return ObjectMissing(name)
        return Damaged(
            name,
            f"so it was found on {self.created_utc}: {self.reason}",
            hint="run 'strongroom repository verify --read-data' to see whether it still is",
        )


def verdict_name(pack: bytes) -> str:
    return _FOLDER + pack.hex()


def pack_of_verdict(name: str) -> bytes | None:
    """The pack that a verdict of this name is on; None if it is no verdict's name."""
    found = _NAME.fullmatch(name)
    return bytes.fromhex(found[1]) if found else None


def decode_verdict(body: bytes, name: str) -> Verdict:
    """Damaged."""
    pack = pack_of_verdict(name)
    fields = Fields.parse(body, name)
    if pack is None:
        raise Damaged(name, "this is not a verdict's name")
    unreadable: frozenset[bytes] | None = None
    if fields.values.get("unreadable") is not None:
        try:
            unreadable = frozenset(bytes.fromhex(text) for text in fields.texts("unreadable", _IDS_MAX))
        except ValueError as error:
            raise Damaged(name, "it lists something that is no id") from error
    return Verdict(
        pack=pack,
        found=fields.one_of("found", (DAMAGED, MISSING)),
        reason=fields.text("reason"),
        unreadable=unreadable,
        created_utc=canonical.utc_text(fields.utc("created_utc")),
    )


class Verdicts:
    """Borrows everything."""

    def __init__(self, objects: SealedObjects, clock: Clock) -> None:
        self._objects = objects
        self._clock = clock

    def packs(self) -> frozenset[bytes]:
        """The packs on which there is a verdict. StoreError."""
        found = (pack_of_verdict(listed.name) for listed in self._objects.store.list(_FOLDER))
        return frozenset(pack for pack in found if pack is not None)

    def pass_on(self, verdict: Verdict, replace: bool = False) -> bool:
        """Writes it, unless there is one and it is not to `replace` that; returns whether there is one now."""
        name = verdict_name(verdict.pack)
        unreadable = verdict.unreadable
        body = canonical.encode(
            {
                "created_utc": canonical.utc_text(self._clock.now_utc()),
                "found": verdict.found,
                "reason": verdict.reason[:_REASON_CHARACTERS],
                "unreadable": None if unreadable is None else sorted(identity.hex() for identity in unreadable),
            }
        )
        try:
            if replace:
                self._objects.replace(ObjectType.VERDICT, name, body)
            else:
                self._objects.create(ObjectType.VERDICT, name, body)
        except ObjectExists:
            return True
        except StoreError as error:
            _log.warning("only this appliance knows that pack %s is %s: %s", verdict.pack.hex(), verdict.found, error)
            return False
        return True

    def take_back(self, pack: bytes) -> bool:
        """Removes it; returns whether there is none any more."""
        try:
            self._objects.store.delete(verdict_name(pack))
        except ObjectMissing:
            return True
        except StoreError as error:
            _log.warning("the verdict on pack %s cannot be taken back: %s", pack.hex(), error)
            return False
        return True
