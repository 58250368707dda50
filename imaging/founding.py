"""Making a repository in an empty store.

Rules: it exists once its configuration does, which is written last; a store that does not keep the one promise that
everything rests on is refused before anything is trusted to it; what is there already is never touched, but for what
an interrupted making left.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from imaging import canonical, configuration
from imaging.configuration import RepositoryConfig, Unlocked, seal_configuration
from imaging.errors import ImagingError, ObjectExists, ObjectMissing, RepositoryExists, StoreUnsuitable
from imaging.keys import KeyBundle, Keys
from imaging.slots import Argon2Cost, MachineKey, Passphrase, RecoveryKey, Secret, copy_name, make_slot, slot_name
from imaging.storage.contract import Store


@dataclass(frozen=True, slots=True)
class Founded:
    unlocked: Unlocked
    recovery_key: RecoveryKey


def found(
    store: Store,
    *,
    passphrase: str | None,
    machine_key: bytes | None,
    compression_level: int,
    like: KeyBundle | None,
    now_utc: datetime,
    cost: Argon2Cost | None,
) -> Founded:
    """RepositoryExists, StoreUnsuitable, StoreError."""
    left_over = _refuse_unless_empty(store)
    _probe(store)
    bundle = KeyBundle.new(like)
    keys = Keys.derive(bundle, secrets.token_bytes(16))
    config = RepositoryConfig(canonical.utc_text(now_utc), compression_level)
    data = seal_configuration(config, keys)
    recovery = RecoveryKey.new()
    given: list[tuple[Secret, str]] = [(recovery, "recovery key printed at init")]
    if passphrase is not None:
        given.append((Passphrase(passphrase), "passphrase given at init"))
    if machine_key is not None:
        given.append((MachineKey(machine_key), "machine key of the appliance that made the repository"))
    made = [make_slot(secret, bundle, keys.repository_id, now_utc, label, cost) for secret, label in given]
    objects = [(name, slot.data) for slot in made for name in (copy_name(slot.id), slot_name(slot.id))]
    objects += [(name, data) for name in reversed(configuration.CONFIG_NAMES)]
    written: list[str] = []
    try:
        for name, content in objects:
            store.create(name, [content])
            written.append(name)
    except BaseException as error:
        _undo(store, written)
        if isinstance(error, ObjectExists):
            raise RepositoryExists(store.describe(), "another one was made there at the same moment") from error
        raise
    _remove(store, left_over)
    return Founded(Unlocked(bundle, keys, config, ()), recovery)


def _refuse_unless_empty(store: Store) -> list[str]:
    """What an interrupted `create` left: slots that no configuration ever referred to. RepositoryExists for anything
    else."""
    left_over: list[str] = []
    for listed in store.list(""):
        if not listed.name.startswith(("keys/", "keys.copy/", "probes/")):
            what = "a repository is there" if listed.name in configuration.CONFIG_NAMES else f"{listed.name} is there"
            raise RepositoryExists(store.describe(), what)
        left_over.append(listed.name)
    return left_over


def _undo(store: Store, written: Sequence[str]) -> None:
    """The configuration first, as slots without one are nobody's; what cannot be removed hides no first error."""
    for name in reversed(written):
        with contextlib.suppress(ImagingError):
            store.delete(name)


def _remove(store: Store, names: Sequence[str]) -> None:
    for name in names:
        with contextlib.suppress(ObjectMissing):
            store.delete(name)


def _probe(store: Store) -> None:
    """Everything rests on create-if-absent, so it is tried before anything is trusted to this store."""
    name = f"probes/{secrets.token_hex(16)}"
    store.create(name, [b"first"])
    try:
        store.create(name, [b"second"])
    except ObjectExists:
        if store.get(name) != b"first":
            raise StoreUnsuitable(store.describe(), "creating an object twice changed it") from None
    else:
        raise StoreUnsuitable(store.describe(), "it lets two writers create the same object")
    finally:
        with contextlib.suppress(ImagingError):
            store.delete(name)
