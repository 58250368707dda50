"""Hosts, and the machines on them.

The rule: one host that does not answer never hides the others; what could not be asked is told beside what could.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.doing import Subject, about, machine_of
from appliance.errors import StrongroomError
from appliance.hypervisor.errors import HypervisorError, MachineNotFound
from appliance.hypervisor.protocol import HostConfig, HostFacts, MachineInfo
from appliance.hypervisor.uri import check_host
from appliance.inventory import HostLook, KnownMachine
from appliance.models import CleanupAction, CleanupRecord, HostRecord, MachineRecord
from appliance.services.sightings import SightingService

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance


class NoHosts(StrongroomError):
    def __init__(self) -> None:
        super().__init__(
            "no host is known",
            hint="Add the one that runs your machines: strongroom host add NAME qemu:///system",
        )


class MachineAmbiguous(StrongroomError):
    def __init__(self, name: str, hosts: tuple[str, ...]) -> None:
        super().__init__(
            f"several hosts have a virtual machine {name!r}: {', '.join(hosts)}",
            hint="Say which one with --host.",
            name=name,
            hosts=hosts,
        )


class HostNeeded(StrongroomError):
    """A host that something still depends on cannot be removed."""

    def __init__(self, name: str, reasons: tuple[str, ...]) -> None:
        super().__init__(
            f"host {name} cannot be removed: {'; '.join(reasons)}",
            hint="End that first ('strongroom status' shows it), then remove the host. If the host is gone for good:"
            f" strongroom host remove {name} --force",
            name=name,
        )


class HostInUse(StrongroomError):
    """A command is at work on the host at this moment."""

    retryable = True

    def __init__(self, name: str, works: tuple[str, ...]) -> None:
        super().__init__(
            f"host {name} cannot be removed while a command is at work on it: {'; '.join(works)}",
            hint="Wait until it has ended, or end it, then try again.",
            name=name,
        )


@dataclass(frozen=True, slots=True)
class HostedMachine:
    host: str
    machine: MachineInfo
    protected: MachineRecord | None = None  # None: it has no restore point


@dataclass(frozen=True, slots=True)
class HostProblem:
    host: str
    error: str
    hint: str


@dataclass(frozen=True, slots=True)
class MachineList:
    machines: tuple[HostedMachine, ...]
    problems: tuple[HostProblem, ...]


@dataclass(frozen=True, slots=True)
class KnownMachines:
    """As hosts were last seen. `looks`: how that went, by host; one that nobody has looked at yet is not there."""

    machines: tuple[KnownMachine, ...]
    looks: tuple[HostLook, ...]

    @property
    def away(self) -> tuple[HostLook, ...]:
        return tuple(look for look in self.looks if look.failing_since_utc is not None)


@dataclass(frozen=True, slots=True)
class HostReport:
    """What a host answered."""

    config: HostConfig
    facts: HostFacts
    answered_s: float
    machines: int


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Names of checkpoints and bitmaps: what was deleted, and what other tools have and still keeps snapshots from
    being reverted."""

    deleted: tuple[str, ...]
    left: tuple[str, ...]


class InventoryService:
    """Borrows the appliance; connects to a host for one call and closes it again."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance

    def add_host(self, config: HostConfig, *, test: bool = True) -> HostReport | None:
        """Keep a host, after it has answered (unless told not to ask). HostFieldRefused, RecordExists,
        HypervisorError."""
        about(Subject("host", config.name, config.name), hostname=config.hostname, tested=test)
        check_host(config)
        report = self._report(config) if test else None
        record = HostRecord(config, self._appliance.clock.now_utc())
        self._appliance.catalog.hosts.add(record)
        if test:
            SightingService(self._appliance).look((record,))
        return report

    def hosts(self) -> tuple[HostRecord, ...]:
        return self._appliance.catalog.hosts.list()

    def test_host(self, name: str) -> HostReport:
        about(Subject("host", name, name))
        return self._report(self._appliance.catalog.hosts.get(name).config)

    def _report(self, config: HostConfig) -> HostReport:
        started_s = self._appliance.clock.monotonic_s()
        with self._appliance.connect_to(config) as hypervisor:
            facts = hypervisor.facts()
            answered_s = self._appliance.clock.monotonic_s() - started_s
            return HostReport(config, facts, answered_s, len(hypervisor.machines.list()))

    def remove_host(self, name: str, *, force: bool = False) -> tuple[str, ...]:
        """Forget how to reach a host; its restore points stay. Returns the debts that were dropped, as sentences.

        HostNeeded while something is owed to it or runs on it out of the repository, unless `force`: then that is given
        up, for a host that is gone for good. HostInUse. RecordMissing.
        """
        from appliance.services.recovery import RecoveryService

        about(Subject("host", name, name), force=force)
        catalog = self._appliance.catalog
        debts = self.debts(name)
        if debts and not force:
            raise HostNeeded(name, debts)
        cleanups = [record for record in catalog.cleanups.list() if record.host == name]
        works = {record.owner: None for record in cleanups if self._appliance.alive(record.owner)}
        if works:
            raise HostInUse(name, tuple(works))
        for recovery in catalog.recoveries.list(ended=False):
            if recovery.host == name:
                RecoveryService(self._appliance).abandon(recovery.id)
        for thaw in catalog.thaws.list():
            if thaw.host == name:
                catalog.thaws.paid(thaw.machine_uuid, name)
        for cleanup in cleanups:
            catalog.cleanups.drop(cleanup.id)
        catalog.hosts.remove(name)
        return debts

    def debts(self, name: str) -> tuple[str, ...]:
        """What would be given up with a host, as sentences. RecordMissing."""
        catalog = self._appliance.catalog
        catalog.hosts.get(name)
        debts = [
            f"recovery {record.id[:8]} ({record.machine_name}) is {record.state}"
            for record in catalog.recoveries.list(ended=False)
            if record.host == name
        ]
        debts += [f"a thaw of {debt.name} is owed" for debt in catalog.thaws.list() if debt.host == name]
        debts += [_pending(record) for record in catalog.cleanups.list() if record.host == name]
        return tuple(debts)

    def list_machines(self, host: str | None = None) -> MachineList:
        """Of one host, or of all, as they answer now; it is kept for `known`. With one host named, its failure is
        raised; else it is told in `problems`."""
        protected = {record.uuid: record for record in self._appliance.catalog.points.machines() if record.uuid}
        machines: list[HostedMachine] = []
        problems: list[HostProblem] = []
        for sighting in SightingService(self._appliance).look(self._chosen(host)):
            if sighting.error is not None:
                if host is not None:
                    raise sighting.error
                problems.append(HostProblem(sighting.host.name, str(sighting.error), sighting.error.hint))
            machines += (
                HostedMachine(sighting.host.name, machine, protected.get(machine.uuid)) for machine in sighting.machines
            )
        machines.sort(key=lambda item: (item.machine.name, item.host))
        return MachineList(tuple(machines), tuple(problems))

    def known(self, host: str | None = None) -> KnownMachines:
        """As last seen, of one host or of all of this appliance, each machine once; no host is asked. NoHosts,
        RecordMissing."""
        chosen = {record.name for record in self._chosen(host)}
        inventory = self._appliance.catalog.inventory
        return KnownMachines(
            tuple(each for each in inventory.machines() if each.seen.host in chosen),
            tuple(look for look in inventory.looks() if look.host in chosen),
        )

    def find(self, name: str, host: str | None = None) -> HostedMachine:
        """One machine, by name or UUID. NoHosts, MachineNotFound, MachineAmbiguous, HypervisorError."""
        found: list[HostedMachine] = []
        failures: list[HypervisorError] = []
        asked = self._chosen(host)
        for record in asked:
            try:
                with self._appliance.connect_to(record.config) as hypervisor:
                    found.append(HostedMachine(record.name, hypervisor.machines.get(name)))
            except MachineNotFound:
                continue
            except HypervisorError as err:
                failures.append(err)
        if len(found) > 1:
            raise MachineAmbiguous(name, tuple(item.host for item in found))
        if found:
            return found[0]
        if failures:
            raise failures[0]
        raise MachineNotFound(host or " or ".join(record.name for record in asked), name)

    def forget_checkpoints(self, name: str, host: str | None = None, *, others: bool = False) -> Forgotten:
        """Delete our checkpoints and bitmaps of a machine, so that its internal snapshots can be reverted again; with
        `others`, those of other tools too, which then read everything as well."""
        found = self.find(name, host)
        uuid = found.machine.uuid
        about(Subject.of_machine(machine_of("vm", found.machine.name, uuid, found.host)), others=others)
        repository = self._appliance.repository
        points = repository.points(repository.series_of("vm", uuid))
        names = {point.manifest.checkpoint for point in points if point.manifest.checkpoint}
        names |= {
            record.subject
            for record in self._appliance.catalog.cleanups.list(everyones=True)
            if record.action is CleanupAction.DELETE_CHECKPOINT and record.machine_uuid == uuid and record.subject
        }
        with self._appliance.connect(found.host) as hypervisor:
            deleted = hypervisor.checkpoints.forget(uuid, names, others=others)
            left = {each.name for each in hypervisor.checkpoints.list(uuid)}
            left |= {each.name for each in hypervisor.checkpoints.bitmaps(uuid)}
        return Forgotten(deleted, tuple(sorted(left)))

    def _chosen(self, host: str | None) -> tuple[HostRecord, ...]:
        if host is not None:
            return (self._appliance.catalog.hosts.get(host),)
        records = self._appliance.catalog.hosts.list()
        if not records:
            raise NoHosts
        return records


def _pending(record: CleanupRecord) -> str:
    about = " ".join(part for part in (record.action, record.subject or ", ".join(record.paths)) if part)
    return f"a clean-up is pending: {about}" + (f" of {record.machine_name}" if record.machine_name else "")
