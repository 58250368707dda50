"""The appliances that share a catalog: which there are, and taking on what one that is gone for good left behind.

The rule: nobody but an appliance itself knows whether what it began still lives, so nothing of it is touched by others,
for however long it is silent. Only an admin can say that it will not come back.
"""

from __future__ import annotations

from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.doing import Subject, about
from appliance.errors import StrongroomError
from appliance.models import ApplianceRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

    from appliance.bootstrap import Appliance


class OwnAppliance(StrongroomError):
    exit_code = 2

    def __init__(self, id: str) -> None:
        super().__init__(
            f"appliance {id[:12]} is this one", hint="'strongroom appliance list' shows which others there are.", id=id
        )


@dataclass(frozen=True, slots=True)
class Member:
    """An appliance, and how much of each kind it has under way: "runs" → 1."""

    record: ApplianceRecord
    own: bool
    under_way: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class TakenOver:
    record: ApplianceRecord
    taken: Mapping[str, int]
    hosts: tuple[str, ...]  # that this appliance has only now


class FleetService:
    """Borrows the appliance."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance

    def members(self) -> tuple[Member, ...]:
        """Oldest first, this one among them."""
        appliances = self._appliance.catalog.appliances
        return tuple(
            Member(record, record.id == self._appliance.catalog.me, appliances.under_way(record.id))
            for record in appliances.list()
        )

    def names(self) -> Mapping[str, str]:
        """What to call each: by its machine, where only one is there; else with its id."""
        known = self._appliance.catalog.appliances.list()
        count = Counter(record.name for record in known)
        return {
            record.id: record.name if record.name and count[record.name] == 1 else f"{record.name} {record.id[:8]}"
            for record in known
        }

    def name(self, id: str) -> str:
        return self.names().get(id, id[:12])

    def left_behind(self) -> Mapping[str, int]:
        """What is under way in the home's own catalog while it uses a shared one, as after a switch, or an emergency
        without the database. CatalogError."""
        settings, catalog = self._appliance.settings, self._appliance.catalog
        if not catalog.database.is_shared or not settings.catalog_file.exists():
            return {}
        from appliance.catalog import Catalog
        from appliance.catalog.database import Database

        own = Catalog.open(Database.at(settings.catalog_file), settings.run_directory / "catalog.lock", catalog.me)
        with closing(own):
            counts: Counter[str] = Counter()
            for record in own.appliances.list():
                counts.update(own.appliances.under_way(record.id))
            return +counts

    def find(self, wanted: str) -> Member:
        """Another one, by its id or a unique beginning of it. RecordMissing, OwnAppliance."""
        record = self._appliance.catalog.appliances.get(wanted)
        if record.id == self._appliance.catalog.me:
            raise OwnAppliance(record.id)
        return Member(record, False, self._appliance.catalog.appliances.under_way(record.id))

    def take_over(self, wanted: str) -> TakenOver:
        """Take on what an appliance that is gone for good has under way, with its hosts: it is then settled, resumed,
        discarded as if it had been begun here. RecordMissing, OwnAppliance."""
        member = self.find(wanted)
        about(Subject("appliance", member.record.id, member.record.name))
        hosts = self._appliance.catalog.hosts
        before = {host.name for host in hosts.list()}
        self._appliance.catalog.queue.give_up(
            member.record.id,
            f"it was to go to a place on {self.name(member.record.id)}, which is gone for good: ask for it again",
            self._appliance.clock.now_utc(),
        )
        self._appliance.catalog.appliances.take_over(member.record.id)
        if self._appliance.catalog.database.is_shared:
            self._forget_messages(member.record.id)
        after = {host.name for host in hosts.list()}
        return TakenOver(member.record, member.under_way, tuple(sorted(after - before)))

    def _forget_messages(self, id: str) -> None:
        """Its workers are not woken any more; what waited is found here by the next sweep."""
        from appliance.services.queue.messages import QueueUnusable, Wakes

        with suppress(QueueUnusable), Wakes(self._appliance, id) as wakes:
            wakes.forget()
