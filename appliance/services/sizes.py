"""How large the repository is, day by day: what its growth is told by.

The rule: it is looked at once a day, by one of those who share it, as listing all objects of a large repository takes a
while; the room that is left is asked for every hour. No key is needed, and nothing is read but names and sizes.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final

from appliance import home
from appliance.looking import keep_looking
from appliance.proofs import RepositorySize
from imaging.storage.locations import open_store

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

_log = logging.getLogger(__name__)
_EVERY_S: Final = 3600.0


class SizeService:
    """Borrows the appliance."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance

    def look(self) -> RepositorySize | None:
        """Keep how large it is today; None: there is no repository yet. StrongroomError, ImagingError."""
        catalog = self._appliance.catalog
        record = catalog.repository()
        if record is None or not home.in_use(self._appliance.settings):
            return None
        now = self._appliance.clock.now_utc()
        store = open_store(home.location_of(self._appliance.settings))
        free = store.free_bytes()
        known = catalog.proofs.sizes(record.id, now.date())
        used = known[-1].used_bytes if known else sum(each.size_bytes for each in store.list(""))
        size = RepositorySize(record.id, now.date(), now, used, free)
        catalog.proofs.took(size)
        return size

    def keep_looking(self, stop: threading.Event) -> None:
        """Every hour, until `stop`."""
        keep_looking(self.look, "size of the repository", _EVERY_S, stop, _log)
