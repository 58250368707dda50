"""Checking every small object of a store, and noting what else is there.

Rules: an object is judged by the store's own bytes, read now; one problem never hides another; names that the format
does not have are noted and left alone. What is listed and then not there was removed meanwhile, which is no damage:
what must be there is asked for by those who need it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from imaging import manifest
from imaging.canonical import Fields
from imaging.configuration import CONFIG_NAMES, open_configuration, own_slots
from imaging.envelope import ObjectType, parse
from imaging.errors import Damaged, ImagingError, ObjectMissing, StoreUnavailable, WrongVersion
from imaging.guard.persons import decode_person
from imaging.guard.states import bound_name, decode_state, state_objects
from imaging.leases import Leases, Standing, lease_object
from imaging.objects import SealedObjects
from imaging.packs import digest_of_name
from imaging.slots import copy_name, parse_slot, slot_name
from imaging.storage.contract import Listed
from imaging.verdicts import Verdict, decode_verdict, pack_of_verdict

_ID: Final = "[0-9a-f]{32}"
_TYPES: Final = (
    (re.compile(rf"index/{_ID}-\d{{6}}"), ObjectType.INDEX),
    (re.compile(rf"manifests/{_ID}/\d{{10}}-{_ID}"), ObjectType.MANIFEST),
    (re.compile(rf"tombstones/{_ID}/\d{{10}}-{_ID}"), ObjectType.TOMBSTONE),
    (re.compile(rf"leases/{_ID}/(?:start|epoch|end|beat/\d{{10}})"), ObjectType.LEASE),
    (re.compile(rf"claims/{_ID}/\d{{10}}"), ObjectType.CLAIM),
    (re.compile(rf"holds/{_ID}"), ObjectType.HOLD),
    (re.compile(r"epochs/\d{10}"), ObjectType.EPOCH),
    (re.compile(r"rollcalls/\d{10}"), ObjectType.ROLL_CALL),
    (re.compile(r"damaged/[0-9a-f]{64}"), ObjectType.VERDICT),
    (re.compile(rf"persons/{_ID}/{_ID}"), ObjectType.PERSON),
    (re.compile(r"(?:guard|guard\.copy)/\d{10}"), ObjectType.GUARD),
    (re.compile(rf"requests/{_ID}/(?:asked|decision|done|confirmed/{_ID})"), ObjectType.REQUEST),
)
_ASIDE: Final = re.compile(rf"aside/(?:index/{_ID}-\d{{6}}|manifests/{_ID}/\d{{10}}-{_ID}|leases/{_ID}/end)")
"""What a repair has set aside: nothing refers to it, and it is not looked into."""
_SLOT: Final = re.compile(rf"(keys|keys\.copy)/({_ID})")


@dataclass(slots=True)
class Findings:
    """`packs` with their sizes; `verdicts` as they were found, None for one that cannot be read."""

    objects: int = 0
    size_bytes: int = 0
    problems: dict[str, ImagingError] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    packs: dict[bytes, int] = field(default_factory=dict)
    indexes: list[str] = field(default_factory=list)
    manifests: set[str] = field(default_factory=set)
    verdicts: dict[bytes, Verdict | None] = field(default_factory=dict)

    def add(self, name: str, error: ImagingError) -> None:
        self.problems.setdefault(name, error)


def check_object(objects: SealedObjects, listed: Listed, findings: Findings) -> None:
    name = listed.name
    digest = digest_of_name(name)
    kind = next((kind for pattern, kind in _TYPES if pattern.fullmatch(name)), None)
    slot = _SLOT.fullmatch(name)
    if _ASIDE.fullmatch(name):
        return
    if digest is None and kind is None and slot is None and name not in CONFIG_NAMES:
        findings.unknown.append(name)
        return
    findings.objects += 1
    findings.size_bytes += listed.size_bytes
    if digest is not None:
        findings.packs[digest] = listed.size_bytes
        return
    if kind == ObjectType.INDEX:
        findings.indexes.append(name)
    elif kind == ObjectType.MANIFEST:
        findings.manifests.add(name)
    try:
        _open(objects, kind, name, slot[2] if slot is not None else None, findings)
    except ObjectMissing:
        return
    except (Damaged, WrongVersion, StoreUnavailable) as error:
        findings.add(name, error)


def _open(objects: SealedObjects, kind: ObjectType | None, name: str, slot_id: str | None, findings: Findings) -> None:
    if kind == ObjectType.VERDICT:
        pack = pack_of_verdict(name)
        if pack is not None:
            findings.verdicts[pack] = None
            findings.verdicts[pack] = decode_verdict(objects.read(kind, name).body, name)
        return
    data = objects.store.get(name)
    if kind == ObjectType.GUARD:
        decode_state(Fields.parse(objects.open(kind, name, data, bound_name(name)).body, name))
        return
    if slot_id is not None:
        found = parse_slot(data, name)
        if found.id != slot_id or found.envelope.repository_id != objects.keys.repository_id:
            raise Damaged(name, "another key slot is stored under this name")
    elif kind is None:
        open_configuration(parse(data, name, ObjectType.CONFIG), objects.keys)
    else:
        body = objects.open(kind, name, data).body
        if kind == ObjectType.MANIFEST:
            manifest.decode(body, name)
        elif kind == ObjectType.PERSON:
            decode_person(Fields.parse(body, name))


def check_pairs(objects: SealedObjects, findings: Findings) -> None:
    """Configuration, slots and the guard's states are stored twice; one that is missing is damage, though the other
    serves."""
    slots = [slot.id for slot in own_slots(objects.store, objects.keys.repository_id)]
    names = [*CONFIG_NAMES, *(each(slot) for slot in slots for each in (slot_name, copy_name))]
    names += state_objects(objects.store)
    for name in names:
        try:
            if not objects.store.exists(name):
                findings.add(name, ObjectMissing(name))
        except StoreUnavailable as error:
            findings.add(name, error)


def check_ends(objects: SealedObjects, leases: Leases, findings: Findings) -> None:
    """A lease below a later claim of its series was ended before that claim was made: if its end is not there, it was
    lost."""
    highest: dict[str, str] = {}
    for listed in objects.store.list("claims/"):
        series, _, generation = listed.name.removeprefix("claims/").partition("/")
        highest[series] = generation
    for lease in leases.list().unended():
        try:
            if leases.standing(lease) != Standing.OPEN:
                continue
            start = leases.start(lease)
        except ImagingError:
            continue  # damaged: it is among the problems already
        if f"{start.generation:010}" < highest.get(start.series, ""):
            name = lease_object(lease, "end")
            findings.add(name, ObjectMissing(name))
