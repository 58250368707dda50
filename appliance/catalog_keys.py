"""The key that seals secrets in the catalog: in each home as a file, and in the repository's care.

The rule: sealing and opening need the home's file alone, so that a sign-in waits for no store. What the file has is in
the catalog only as wrapped under what the repository's keys derive: each home that opens the repository gets it from
there, whichever key slot it opened it with. The file is written before the catalog names the key: what is sealed can be
opened, whenever the power goes. What an older program left in the clear is sealed when the catalog is brought up to
date; what cannot be done then, `serve` does later.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from appliance import home
from appliance.catalog.errors import CatalogError, CatalogKeyMissing
from appliance.clock import Clock
from appliance.looking import keep_looking
from appliance.sealed import WRAPPING, CatalogKey, CatalogKeyRecord, NotOpened

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from appliance.catalog import Catalog
    from appliance.settings import Settings
    from imaging.repository import Repository

_log = logging.getLogger(__name__)
_EVERY_S: Final = 60.0


class CatalogKeys:
    """Borrows the catalog."""

    def __init__(self, settings: Settings, catalog: Catalog, clock: Clock) -> None:
        self._settings = settings
        self._catalog = catalog
        self._clock = clock

    def current(self) -> CatalogKey | None:
        """None: nothing was sealed yet. CatalogKeyMissing, HomeUnusable."""
        record = self._catalog.sealing.current()
        return None if record is None else self._of(record)

    def needed(self) -> CatalogKey:
        """As `current`; made where there is none."""
        record = self._catalog.sealing.current()
        if record is not None:
            return self._of(record)
        made = self._new()
        record = self._catalog.sealing.found(CatalogKeyRecord(made.id, self._clock.now_utc()))
        if record.id == made.id:
            return made
        self._settings.catalog_key_file(made.id).unlink()  # another process was quicker
        return self._of(record)

    def settle(self) -> None:
        """Seal what a program that did not do so has left in the catalog. What keeps it from being done is logged, and
        `keep_sharing` tries again; that the file is made anew without what was there before, is tried once."""
        try:
            self.seal_what_is_owed()
        except (home.HomeUnusable, CatalogError) as err:
            _log.warning("sealing the second factors in the catalog: %s", err)

    def share(self, repository: Repository) -> None:
        """Let the repository keep the key, or take it from there. What keeps it from being done is logged."""
        record = self._catalog.sealing.current()
        if record is None:
            return
        try:
            self._share(record, repository)
        except (home.HomeUnusable, CatalogError) as err:
            _log.warning("%s", err)

    def share_where_owed(self, open_repository: Callable[[], Repository]) -> None:
        """As `share`, opening the repository only where that helps. CatalogKeyMissing, HomeUnusable, ImagingError."""
        record, attached = self._catalog.sealing.current(), self._catalog.repository()
        if record is None or attached is None or not home.in_use(self._settings):
            return
        kept = record.wrapped is not None and record.repository == attached.id
        if not kept:
            self._of(record)  # where nobody has it, no repository helps
        if not kept or home.read_catalog_key(self._settings, record.id) is None:
            self._share(record, open_repository())

    def renew(self) -> tuple[str, ...]:
        """Another key; the file of the one before stays, for older copies of the catalog. Returns the names of those
        who have to set their second factor up anew, as nobody here has the key it was sealed with. HomeUnusable."""
        before: CatalogKey | None
        try:
            before = self.current()
        except CatalogKeyMissing:
            before = None
        made = self._new()

        def reseal(about: str, sealed: str) -> str | None:
            if before is None:
                return None
            try:
                return made.seal(about, before.open(about, sealed))
            except NotOpened:
                return None

        return self._catalog.sealing.renew(CatalogKeyRecord(made.id, self._clock.now_utc()), reseal, made.seal)

    def seal_what_is_owed(self) -> None:
        """What an older program left in the clear. HomeUnusable, CatalogError."""
        if self._catalog.sealing.is_owed():
            key = self.needed()
            self._catalog.sealing.settle(key.id, key.seal)

    def _share(self, record: CatalogKeyRecord, repository: Repository) -> None:
        wrapping, id = repository.derive_for_appliance(WRAPPING), repository.id.hex()
        kept = record.repository == id and record.wrapped is not None
        if kept and home.read_catalog_key(self._settings, record.id) is None:
            try:
                taken = CatalogKey.unwrapped(wrapping, id, record.wrapped or "")
            except NotOpened as err:
                raise self._missing(record, "what the catalog has of it, wrapped, was changed") from err
            if taken.id != record.id:
                raise self._missing(record, "what the catalog has of it, wrapped, is another key")
            home.write_catalog_key(self._settings, record.id, taken.secret)
        key = self._of(record)
        if not kept:
            self._catalog.sealing.wrap(record.id, id, key.wrapped(wrapping, id))

    def _new(self) -> CatalogKey:
        made = CatalogKey.new()
        home.write_catalog_key(self._settings, made.id, made.secret)
        return made

    def _of(self, record: CatalogKeyRecord) -> CatalogKey:
        secret = home.read_catalog_key(self._settings, record.id)
        if secret is None:
            raise self._missing(record, "there is no such file")
        if CatalogKey(secret).id != record.id:
            raise self._missing(record, "the file has another key, or is damaged: move it away")
        return CatalogKey(secret)

    def _missing(self, record: CatalogKeyRecord, reason: str) -> CatalogKeyMissing:
        file = self._settings.catalog_key_file(record.id)
        return CatalogKeyMissing(
            self._catalog.database.where, record.id, str(file), f"{file}: {reason}",
            others=home.other_catalog_keys(self._settings, record.id), kept=record.wrapped is not None,
        )  # fmt: skip


def keep_sharing(appliance: Appliance, stop: threading.Event) -> None:
    """Every minute, until `stop`; and seal what is still owed. The catalog may be away."""

    def share_and_seal() -> None:
        appliance.catalog_keys.share_where_owed(lambda: appliance.repository)
        appliance.catalog_keys.seal_what_is_owed()

    keep_looking(share_and_seal, "the catalog's key", _EVERY_S, stop, _log)
