"""Opening a repository: its configuration, its key slots, and the one secret that fits (docs/format.md sections 4 and
5).

Rules: configuration and slots are stored twice, and either copy will do. A wrong secret, damage, another version and
"no repository" are told apart. What is lost of the configuration is no reason not to restore: in version 1 it says
nothing that a reader needs.
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
    ObjectMissing,
    SlotNotFound,
    StoreUnavailable,
    WrongKey,
    WrongVersion,
)
from imaging.keys import KeyBundle, Keys
from imaging.slots import RecoveryKey, Secret, Slot, copy_name, open_slot, parse_slot, slot_name
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
        pack_bytes=fields.integer("pack_bytes", 1 << 16, 33_554_431),
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


def own_slots(store: Store, repository_id: bytes) -> list[Slot]:
    """The repository's slots, oldest first, each once."""
    own = [slot for slot in read_slots(store) if slot.envelope.repository_id == repository_id]
    named = sorted(own, key=lambda slot: slot.envelope.name in (slot_name(slot.id), copy_name(slot.id)))
    return sorted({slot.id: slot for slot in named}.values(), key=lambda slot: (slot.created_utc, slot.id))


def _open_any(
    store: Store, slots: list[Slot], secret: Secret, stated_ids: set[bytes], losses: list[ImagingError]
) -> tuple[Slot, KeyBundle]:
    """The slot that opens. One of a repository that no configuration here is of only if there is no other."""
    tried = 0
    strange: tuple[Slot, KeyBundle] | None = None
    for slot in _candidates(store, slots, secret):
        tried += 1
        try:
            bundle = open_slot(slot, secret)
        except NotAuthentic:
            continue  # another secret of the same kind
        except Damaged as error:
            losses.append(error)
            continue
        if not stated_ids or slot.envelope.repository_id in stated_ids:
            return slot, bundle
        losses.append(Damaged(slot.envelope.name, "it and the configuration are of different repositories"))
        strange = strange or (slot, bundle)
    if strange is not None:
        return strange
    damaged = [loss for loss in losses if loss_of_slot(loss)]
    also = f"; {len(damaged)} key slots are damaged" if damaged else ""
    if tried:
        raise WrongKey(f"no key slot of the repository in {store.describe()} opens with this {_word(secret)}{also}")
    if damaged:
        raise Damaged("keys", f"no {secret.kind} slot can be read{also}", hint="try the recovery key") from damaged[0]
    kinds = sorted({slot.kind for slot in slots})
    raise WrongKey(
        f"the repository in {store.describe()} has no {secret.kind} slot",
        hint=f"open it with its {' or its '.join(kinds)}" if kinds else "try the recovery key",
    )


def loss_of_slot(loss: ImagingError) -> bool:
    return isinstance(loss, Damaged) and loss.name.startswith(("keys/", "keys.copy/"))


def _word(secret: Secret) -> str:
    return {"passphrase": "passphrase", "recovery": "recovery key", "machine": "machine key"}[secret.kind]


def _candidates(store: Store, slots: list[Slot], secret: Secret) -> Iterator[Slot]:
    """Slots of the secret's kind; for a recovery key also those that index objects carry, should all others be lost."""
    offered: set[bytes] = set()
    for slot in slots:
        if slot.kind == secret.kind:
            offered.add(slot.data)
            yield slot
    if not isinstance(secret, RecoveryKey):
        return
    for listed in store.list("index/"):
        try:
            carried = parse(store.get(listed.name), listed.name, ObjectType.INDEX).clear
            slot = parse_slot(carried, listed.name)
        except (Damaged, ObjectMissing, StoreUnavailable, WrongVersion):
            continue  # reported by verify; here only what helps is looked for
        if slot.kind == secret.kind and slot.data not in offered:
            offered.add(slot.data)
            yield slot


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


def remove_slot(store: Store, slot_id: str, repository_id: bytes) -> None:
    """SlotNotFound; LastSlot. A copy of the slot that somebody made before stays good: only a new repository revokes
    it."""
    left = {slot.id for slot in own_slots(store, repository_id)}
    if slot_id not in left:
        raise SlotNotFound(slot_id)
    if left == {slot_id}:
        raise LastSlot(slot_id)
    for name in (copy_name(slot_id), slot_name(slot_id)):
        try:
            store.delete(name)
        except ObjectMissing:
            continue
