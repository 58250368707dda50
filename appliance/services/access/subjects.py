"""What acts are about, as it is checked and written down: the same by whatever way somebody does them.

The rule: a subject that has a machine has it as policies and grants see it, with its tags, wherever that is known;
whatever name somebody gives it goes by what is known of it, and no host is asked for that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from appliance.catalog.browsing import RecoverySources
from appliance.doing import Subject
from appliance.models import MachineRecord, PointRecord, RecoveryRecord, RunRecord
from appliance.policy.selectors import Kind, Machine
from appliance.services.access.actors import Actor
from appliance.services.policies.known import known_machine, known_machines
from imaging.manifest import ManifestName

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance


class Subjects:
    """Borrows the appliance. Of one moment: to be made anew for each request. `many`: it will be asked about so many
    that everything is better read at once."""

    def __init__(self, appliance: Appliance, *, many: bool = False) -> None:
        self._appliance = appliance
        self._many = many

    @cached_property
    def _known(self) -> dict[str, Machine]:
        return {machine.key: machine for machine in known_machines(self._appliance)}

    @cached_property
    def _serieses(self) -> dict[str, MachineRecord]:
        return {record.series: record for record in self._appliance.catalog.points.machines()}

    def _machine_of(self, series: str) -> MachineRecord | None:
        return self._serieses.get(series) if self._many else self._appliance.catalog.points.machine(series)

    def named(self, name: str, host: str | None = None) -> tuple[Machine, ...]:
        """Those that have this name, UUID, or vm:NAME, vm:UUID, image:NAME; of this host, if it is given."""
        kind, _, bare = name.partition(":")
        prefixed = bare != "" and kind in tuple(Kind)
        return tuple(
            machine
            for machine in self._known.values()
            if (
                (machine.kind == kind and bare in (machine.name, machine.id))
                if prefixed
                else name in (machine.name, machine.id)
            )
            and host in (None, machine.host)
        )

    def called(self, name: str, host: str | None = None) -> Subject:
        """Of one that is not known, or of several, the name alone."""
        found = self.named(name, host)
        return Subject.of_machine(found[0]) if len(found) == 1 else Subject("machine", name, name)

    def to_back_up(self, actor: Actor, name: str, host: str | None = None) -> Machine:
        """The virtual machine that is meant; of several that have the name, the one that was granted. One that was not
        seen yet is looked for on the hosts. NoHosts, MachineNotFound, MachineAmbiguous, HypervisorError."""
        from appliance.services.inventory import InventoryService, MachineAmbiguous

        known = [machine for machine in self.named(name, host) if machine.kind is Kind.VM]
        known = [machine for machine in known if actor.granted(machine)] or known
        if len(known) == 1 and known[0].host is not None:
            return known[0]
        if len(known) > 1:
            raise MachineAmbiguous(name, tuple(sorted(machine.host or "no host" for machine in known)))
        found = InventoryService(self._appliance).find(name, host)
        return Machine(Kind.VM, found.machine.uuid, found.machine.name, found.host, frozenset(found.machine.tags))

    def machine(self, kind: str, uuid: str | None, name: str, host: str | None) -> Subject:
        """One that a record is of; what nothing is known of any more goes by what the record says."""
        return Subject.of_machine(self._machine(kind, uuid, name, host))

    def _machine(self, kind: str, uuid: str | None, name: str, host: str | None) -> Machine:
        told = Machine(Kind(kind), uuid or name, name, host if kind == Kind.VM else None, tags_known=False)
        known = self._known.get(told.key) if self._many else known_machine(self._appliance, told.key)
        return known or told

    def run(self, run: RunRecord) -> Subject:
        """One of the whole repository is about no machine."""
        if run.machine_kind not in tuple(Kind):
            return Subject("run", run.id, run.name)
        machine = self.machine(run.machine_kind, run.uuid, run.name, run.host).machine
        return Subject("run", run.id, run.name, machine)

    def point(self, point: PointRecord) -> Subject:
        machine = self.machine(point.machine_kind, point.uuid, point.name, point.host).machine
        return Subject("point", point.id, point.name, machine)

    def recovery(self, recovery: RecoveryRecord) -> Subject:
        """It is about the machine that was lost: the one of its point."""
        place = ManifestName.parse(recovery.manifest_name)
        record = None if place is None else self._machine_of(place.series)
        lost = self._gone(recovery.source_name, recovery.host) if record is None else self._protected(record)
        return Subject("recovery", recovery.id, recovery.source_name, lost)

    def recoverable(self, may_see: Callable[[Machine], bool]) -> RecoverySources:
        """Those whose recoveries somebody may see who may see these machines."""
        gone = self._appliance.catalog.browsing.gone_sources()
        return RecoverySources(
            frozenset(record.series for record in self._serieses.values() if may_see(self._protected(record))),
            frozenset((name, host) for name, host in gone if may_see(self._gone(name, host))),
        )

    def _protected(self, record: MachineRecord) -> Machine:
        return self._machine(record.kind, record.uuid, record.name, record.host)

    def _gone(self, name: str, host: str) -> Machine:
        """One whose points are all gone."""
        return self._machine(Kind.VM, None, name, host)
