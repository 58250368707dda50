"""The key slots of an open repository: which there are, one more or one less, and the one that index objects carry.

Rule: a slot that cannot be read just now is not taken for one that is not there.
"""

from __future__ import annotations

import logging
from typing import Final

from imaging import configuration
from imaging.clock import Clock
from imaging.envelope import CLEAR_BYTES_MAX
from imaging.errors import ImagingError, StoreUnavailable
from imaging.guard.acts import Permit
from imaging.keys import KeyBundle
from imaging.slots import Argon2Cost, RecoveryKey, Secret, Slot, make_slot
from imaging.storage.contract import Store

_log = logging.getLogger(__name__)
_ATTEMPTS: Final = 3


class KeySlots:
    """Borrows the store."""

    def __init__(self, store: Store, repository_id: bytes, bundle: KeyBundle, clock: Clock) -> None:
        self._store = store
        self._id = repository_id
        self._bundle = bundle
        self._clock = clock
        self._carried: bytes | None = None

    def list(self) -> list[Slot]:
        """Those that can be read, oldest first."""
        return configuration.own_slots(self._store, self._id)

    def add(self, secret: Secret, label: str, cost: Argon2Cost | None) -> Slot:
        slot = make_slot(secret, self._bundle, self._id, self._clock.now_utc(), label, cost)
        configuration.add_slot(self._store, slot)
        self._carried = None
        return slot

    def remove(self, slot_id: str, permit: Permit) -> None:
        """SlotNotFound, LastSlot."""
        configuration.remove_slot(self._store, slot_id, self._id, permit)
        self._carried = None

    def carried(self) -> bytes:
        """What index objects carry in the clear, should every copy of the slots be lost: the newest recovery slot. One
        that cannot be read just now is asked for again."""
        if self._carried is not None:
            return self._carried
        found = b""
        for _ in range(_ATTEMPTS):
            losses: list[ImagingError] = []
            slots = configuration.own_slots(self._store, self._id, losses)
            kept = [slot.data for slot in slots if slot.kind == RecoveryKey.kind and len(slot.data) <= CLEAR_BYTES_MAX]
            found = kept[-1] if kept else found
            read = {slot.id for slot in slots}  # from its copy, where one of both fails
            passing = [
                loss
                for loss in losses
                if isinstance(loss, StoreUnavailable) and loss.name.rpartition("/")[2] not in read
            ]
            if not passing:
                self._carried = found or None
                return found
        if not found:
            _log.warning("this index object carries no recovery slot, as none can be read: %s", passing[0])
        return found
