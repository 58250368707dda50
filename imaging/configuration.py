"""Opening a repository: its configuration, its key slots, and the one secret that fits (docs/format.md sections 4 and
5).

Rules: configuration and slots are stored twice, and either copy will do. A wrong secret, damage, another version and
"no repository" are told apart. What is lost of the configuration is no reason not to restore: in version 1 it says
nothing that a reader needs. A slot that was removed is not offered any more, though index objects still carry it; one
that was lost is. Somebody always keeps a way in: the last slot that is not an appliance's own cannot be removed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from imaging import canonical
from imaging.canonical import Fields
from imaging.envelope import Envelope, ObjectType, open_sealed, parse, seal
from imaging.errors import (
    Damaged,
    ImagingError,
    LastSlot,
    NotARepository,
    NotAuthentic,
    ObjectExists,
    ObjectMissing,
    SlotNotFound,
    StoreUnavailable,
    WrongKey,
    WrongVersion,
)
from imaging.guard.acts import Permit, RemoveKey
from imaging.keys import KeyBundle, Keys
from imaging.slots import MachineKey, RecoveryKey, Secret, Slot, copy_name, open_slot, parse_slot, slot_name
from imaging.storage.contract import Store

_log = logging.getLogger(__name__)

CONFIG: Final = "config"
CONFIG_NAMES: Final = (CONFIG, "config.copy")
PACK_BYTES: Final = 16 << 20
COMPRESSION_LEVELS: Final = (1, 19)
_FIXED: Final = {
    "chunk_pages_max": 64,
    "chunk_pages_min": 4,
    "cut_modulus": 13,
    "hole_pages_min": 16,
    "region_bytes": 16 << 20,
}


class MachineKeyRefused(WrongKey):
    """An appliance's own key opens the repository no longer: its slot was removed, or is lost."""

    def __init__(self, where: str, also: str = "") -> None:
        super().__init__(
            f"no key slot of the repository in {where} opens with this appliance's machine key{also}",
            hint=(
                "move keys/machine.key in the appliance's home away, then take the repository over again:"
                f" strongroom repository adopt {where}"
            ),
        )
        self.where = where


class OnlyMachinesLeft(LastSlot):
    """Without this slot the appliances' own keys alone would open the repository, and they are lost with their
    homes."""

    def __init__(self, slot_id: str) -> None:
        ImagingError.__init__(
            self,
            f"key slot {slot_id} is the last one that is not an appliance's machine key: if the appliance is lost,"
            " nothing else opens the repository",
            hint="add another first: 'strongroom repository key add', for a passphrase or (--recovery) a recovery key",
        )
        self.slot_id = slot_id


@dataclass(frozen=True, slots=True)
class RepositoryConfig:
    created_utc: str
    compression_level: int = 1
    pack_bytes: int = PACK_BYTES


@dataclass(frozen=True, slots=True)
class Unlocked:
    """A repository's keys and configuration. `losses` says what was passed over on the way."""

    bundle: KeyBundle
    keys: Keys
    config: RepositoryConfig
    losses: tuple[ImagingError, ...]


def seal_configuration(config: RepositoryConfig, keys: Keys) -> bytes:
    """The object that goes to both of CONFIG_NAMES."""
    low, high = COMPRESSION_LEVELS
    if not low <= config.compression_level <= high:
        raise ValueError(f"a compression level is between {low} and {high}, not {config.compression_level}")
    body = canonical.encode(
        {
            **_FIXED,
            "compression_level": config.compression_level,
            "created_utc": config.created_utc,
            "pack_bytes": config.pack_bytes,
        }
    )
    clear = canonical.encode({"key_check": keys.check_value().hex()})
    return seal(ObjectType.CONFIG, CONFIG, keys.configuration, keys.repository_id, body, clear, compress=False)


def open_configuration(envelope: Envelope, keys: Keys) -> RepositoryConfig:
    """Damaged; NotAuthentic."""
    fields = Fields.parse(open_sealed(envelope, keys.configuration, CONFIG), envelope.name)
    for name, value in _FIXED.items():
        fields.integer(name, value, value)
    return RepositoryConfig(
        created_utc=canonical.utc_text(fields.utc("created_utc")),
        compression_level=fields.integer("compression_level", *COMPRESSION_LEVELS),
        pack_bytes=fields.integer("pack_bytes", 1 << 16, 28 << 20),  # what follows the blobs must fit too,
    )


def unlock(store: Store, secret: Secret) -> Unlocked:
    """Keys and configuration. NotARepository, WrongVersion, WrongKey, Damaged, StoreError."""
    losses: list[ImagingError] = []
    heads = _read_heads(store, losses)
    slots = read_slots(store, losses)
    if not heads and not slots:
        if any(not isinstance(loss, ObjectMissing) for loss in losses):
            raise Damaged(CONFIG, "neither it nor its copy nor any key slot can be read") from losses[0]
        raise NotARepository(store.describe())
    slot, bundle = _open_any(store, slots, secret, {head.repository_id for head in heads}, losses)
    keys = Keys.derive(bundle, slot.envelope.repository_id)
    config = _config(heads, keys, losses)
    for loss in losses:
        _log.warning("opened all the same, but: %s", loss)
    return Unlocked(bundle, keys, config, tuple(losses))


def _read_heads(store: Store, losses: list[ImagingError]) -> list[Envelope]:
    heads: list[Envelope] = []
    missing: list[ImagingError] = []
    for name in CONFIG_NAMES:
        try:
            heads.append(parse(store.get(name), name, ObjectType.CONFIG))
        except ObjectMissing as error:
            missing.append(error)
        except (Damaged, StoreUnavailable) as error:
            losses.append(error)
        except WrongVersion:
            if not heads:
                raise
    losses.extend(missing)
    return heads


def read_slots(store: Store, losses: list[ImagingError] | None = None) -> list[Slot]:
    """Every slot that can be read, oldest first; `losses` gets what cannot. What a slot says of itself is anybody's
    word until it opens, so two that state the same id are both here."""
    found: dict[bytes, Slot] = {}
    passed = losses if losses is not None else []
    for prefix in ("keys/", "keys.copy/"):
        for listed in store.list(prefix):
            try:
                slot = parse_slot(store.get(listed.name), listed.name)
            except ObjectMissing:
                continue
            except (Damaged, StoreUnavailable, WrongVersion) as error:
                passed.append(error)
                continue
            found.setdefault(slot.data, slot)
    return sorted(found.values(), key=lambda slot: (slot.created_utc, slot.id))


def own_slots(store: Store, repository_id: bytes, losses: list[ImagingError] | None = None) -> list[Slot]:
    """The repository's slots, oldest first, each once; `losses` gets what cannot be read."""
    own = [slot for slot in read_slots(store, losses) if slot.envelope.repository_id == repository_id]
    named = sorted(own, key=lambda slot: slot.envelope.name in (slot_name(slot.id), copy_name(slot.id)))
    return sorted({slot.id: slot for slot in named}.values(), key=lambda slot: (slot.created_utc, slot.id))


def _open_any(
    store: Store, slots: list[Slot], secret: Secret, stated_ids: set[bytes], losses: list[ImagingError]
) -> tuple[Slot, KeyBundle]:
    """The slot that opens. One of a repository that no configuration here is of only if there is no other."""
    tried = 0
    strange: tuple[Slot, KeyBundle] | None = None
    own = [slot for slot in slots if not stated_ids or slot.envelope.repository_id in stated_ids]
    for slot in _candidates(store, slots, own, secret, losses):
        tried += 1
        try:
            bundle = open_slot(slot, secret)
        except NotAuthentic:
            continue  # another secret of the same kind
        except Damaged as error:
            losses.append(error)
            continue
        if not stated_ids or slot.envelope.repository_id in stated_ids:
            if slot not in slots:
                _put_back(store, slot)
            return slot, bundle
        losses.append(Damaged(slot.envelope.name, "it and the configuration are of different repositories"))
        strange = strange or (slot, bundle)
    if strange is not None:
        return strange
    damaged = [loss for loss in losses if loss_of_slot(loss)]
    raise _refusal(store, own, secret, tried, damaged) from (damaged[0] if damaged else None)


def _refusal(store: Store, slots: list[Slot], secret: Secret, tried: int, damaged: list[ImagingError]) -> ImagingError:
    where, word = store.describe(), _word(secret.kind)
    also = f"; {len(damaged)} key slots are damaged" if damaged else ""
    others = sorted({_word(slot.kind) for slot in slots} - {word, _word(MachineKey.kind)})
    hint = f"open it with its {' or its '.join(others)}" if others else ""
    if isinstance(secret, MachineKey):
        return MachineKeyRefused(where, also)
    if tried:
        return WrongKey(
            f"no key slot of the repository in {where} opens with this {word}{also}",
            hint=hint and f"try another {word}, or {hint}",
        )
    if damaged:
        return Damaged("keys", f"no {secret.kind} slot can be read{also}", hint=hint or "try the recovery key")
    return WrongKey(f"the repository in {where} has no {secret.kind} slot", hint=hint or "try the recovery key")


def loss_of_slot(loss: ImagingError) -> bool:
    return isinstance(loss, Damaged) and loss.name.startswith(("keys/", "keys.copy/"))


def _word(kind: str) -> str:
    return {"passphrase": "passphrase", "recovery": "recovery key", "machine": "machine key"}[kind]


def _candidates(
    store: Store, slots: list[Slot], own: list[Slot], secret: Secret, losses: list[ImagingError]
) -> Iterator[Slot]:
    """Slots of the secret's kind; for a recovery key then those that index objects carry in place of lost ones.

    Lost is a slot whose objects are there and cannot be read; and every one, if none is left but machine keys, as the
    last of the others is never removed. What is carried but neither there nor lost was removed.
    """
    yield from (slot for slot in slots if slot.kind == secret.kind)
    if not isinstance(secret, RecoveryKey):
        return
    all_lost = all(slot.kind == MachineKey.kind for slot in own)
    unread = {
        loss.name.rpartition("/")[2] for loss in losses if isinstance(loss, (Damaged, StoreUnavailable, WrongVersion))
    }
    unread -= {slot.id for slot in own}
    if all_lost or unread:
        offered = {slot.data for slot in slots}
        for slot in _carried(store):
            if slot.kind == secret.kind and slot.data not in offered and (all_lost or slot.id in unread):
                offered.add(slot.data)
                yield slot


def _carried(store: Store) -> Iterator[Slot]:
    for listed in store.list("index/"):
        try:
            carried = parse(store.get(listed.name), listed.name, ObjectType.INDEX).clear
            yield parse_slot(carried, listed.name)
        except (Damaged, ObjectMissing, StoreUnavailable, WrongVersion):
            continue  # reported by verify; here only what helps is looked for


def _put_back(store: Store, slot: Slot) -> None:
    """A slot that only index objects carried, where it was: what is written from now on carries only what is there."""
    for name in (copy_name(slot.id), slot_name(slot.id)):
        try:
            store.create(name, [slot.data])
        except ObjectExists:
            continue  # it cannot be read, and is left as it is
        except ImagingError as error:
            _log.warning("key slot %s was lost, and cannot be put back: %s", slot.id, error)
            return


def _config(heads: list[Envelope], keys: Keys, losses: list[ImagingError]) -> RepositoryConfig:
    for head in heads:
        try:
            if head.repository_id != keys.repository_id:
                raise Damaged(head.name, "it is of another repository than the slot that was opened")
            stated = Fields.parse(head.clear, head.name).hex("key_check", 32)
            if stated != keys.check_value():
                raise Damaged(head.name, "it belongs to other keys than the slot that was opened")
            return open_configuration(head, keys)
        except Damaged as error:
            losses.append(error)
    return RepositoryConfig(created_utc="1970-01-01T00:00:00Z")


def add_slot(store: Store, slot: Slot) -> None:
    store.create(copy_name(slot.id), [slot.data])
    store.create(slot_name(slot.id), [slot.data])


def remove_slot(store: Store, slot_id: str, repository_id: bytes, permit: Permit) -> None:
    """SlotNotFound; LastSlot, also for the last one that is no machine key. A copy of the slot that somebody made
    before stays good, and index objects are such copies of recovery slots: only a new repository revokes one."""
    permit.check(RemoveKey(slot_id))
    kinds = {slot.id: slot.kind for slot in own_slots(store, repository_id)}
    if slot_id not in kinds:
        raise SlotNotFound(slot_id)
    removed = kinds.pop(slot_id)
    if not kinds:
        raise LastSlot(slot_id)
    if removed != MachineKey.kind and all(kind == MachineKey.kind for kind in kinds.values()):
        raise OnlyMachinesLeft(slot_id)
    for name in (copy_name(slot_id), slot_name(slot_id)):
        try:
            store.delete(name)
        except ObjectMissing:
            continue
