"""The repository of this home: making one, taking one over, looking after its keys, checking it.

The rule: a home has one repository, and taking one on is all or nothing: the machine key is written last, and it is
what makes the home "in use". The recovery key is handed over the moment it exists, before anything can fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from appliance import home, proofs
from appliance.acts import Act
from appliance.bootstrap import Appliance
from appliance.catalog.errors import CatalogError, CatalogOfAnotherRepository
from appliance.clock import parse_utc
from appliance.doing import Subject, about
from appliance.errors import StrongroomError
from appliance.models import (
    MachineRecord,
    PointRecord,
    RepositoryRecord,
    RunArguments,
    RunKind,
    RunRecord,
    RunState,
    new_id,
)
from appliance.ownership import own
from appliance.progress import SILENT, Progress
from appliance.services.access import Access, local_actor
from appliance.services.points import PointService
from imaging.errors import Damaged, ImagingError, NotAuthentic, SlotNotFound
from imaging.repository import Repository
from imaging.slots import MachineKey, Passphrase, RecoveryKey, Secret, open_slot
from imaging.storage.locations import Location, open_store, open_versions

if TYPE_CHECKING:
    from appliance.settings import Settings
    from imaging.points import DamagedPoint, Hold
    from imaging.scrub import Reading, VerifyReport
    from imaging.slots import Slot

_AFFECTED_MOST = 10_000
_KEY_STILL_OPENS = (
    "Removing a recovery key does not lock out whoever has it and reads the repository's storage: index objects carry"
    " its slot as well, so that it still opens this repository, as it is now and with all that is added to it. If the"
    " key was stolen, only a new repository helps."
)
_COPY_STILL_OPENS = (
    "Removing a key slot does not lock out whoever has an older copy of the repository's keys folder: with that copy"
    " and the old secret it still opens. If the secret was stolen, only a new repository helps."
)


def still_opens(removed: Slot) -> str:
    """What removing this slot does not do, for whoever does it."""
    return _KEY_STILL_OPENS if removed.kind == RecoveryKey.kind else _COPY_STILL_OPENS


class KeyAmbiguous(StrongroomError):
    def __init__(self, wanted: str, count: int) -> None:
        super().__init__(f"{count} key slots begin with {wanted}", hint="Give more digits of the id.", wanted=wanted)


class OwnKey(StrongroomError):
    def __init__(self, slot: str) -> None:
        super().__init__(
            f"key slot {slot} is the one that this appliance opens the repository with",
            hint="Remove it from another home that uses the repository, if this one is to lose its access.",
            slot=slot,
        )


@dataclass(frozen=True, slots=True)
class Founded:
    """A home that was just given a repository. `points` and `damaged` are what an adopted one holds."""

    repository_id: str
    location: str
    machines: tuple[MachineRecord, ...]
    points: tuple[PointRecord, ...]
    damaged: tuple[DamagedPoint, ...]


@dataclass(frozen=True, slots=True)
class RepositoryInfo:
    id: str
    location: str
    created_utc: datetime
    compression_level: int
    free_bytes: int | None
    object_count: int
    size_bytes: int
    machines: int
    points: int
    damaged: tuple[DamagedPoint, ...]
    protected_bytes: int  # sizes of the newest point's disks, summed over machines


def init(
    settings: Settings,
    path: Path | None,
    passphrase: str,
    deliver: Callable[[str], None],
) -> Founded:
    """Make a repository in the folder `path`, or where the settings say, and take it on; `deliver` gets the recovery
    key's text, once.

    HomeInUse, RepositoryExists, LockUnsuitable, StoreError and the like; then nothing of the home has changed.
    """
    with _founding(settings, path) as (appliance, location, machine_key):
        _refuse_another(appliance, None)
        _prove_locks(location)
        store = open_store(location, make=True)
        repository, recovery_key = Repository.create(
            store,
            passphrase=passphrase,
            machine_key=machine_key,
            compression_level=settings.repository.compression_level,
            cache=settings.cache_directory,
            appliance=appliance.identity,
        )
        with repository:
            deliver(recovery_key.text())
            return _take_on(appliance, repository, location, machine_key, Act.REPOSITORY_INITIALISE)


def adopt(settings: Settings, path: Path | None, secret: Secret) -> Founded:
    """Take on an existing repository, in the folder `path` or where the settings say, opened with its passphrase or
    recovery key.

    HomeInUse, NotARepository, WrongKey and the like; then nothing of the home has changed.
    """
    with _founding(settings, path) as (appliance, location, machine_key):
        _prove_locks(location)
        store = open_store(location)
        with Repository.open(store, secret, cache=settings.cache_directory, appliance=appliance.identity) as repository:
            _refuse_another(appliance, repository.id.hex())
            repository.add_slot(MachineKey(machine_key), f"machine key of {appliance.identity.host}")
            return _take_on(appliance, repository, location, machine_key, Act.REPOSITORY_ADOPT)


@contextmanager
def _founding(settings: Settings, path: Path | None) -> Iterator[tuple[Appliance, Location, bytes]]:
    if home.in_use(settings):
        raise home.HomeInUse(settings.home)
    location = home.chosen_location(settings, path)
    with Appliance(settings) as appliance, own(settings.run_directory / "home.lock", f"home {settings.home}"):
        if home.in_use(settings):
            raise home.HomeInUse(settings.home)
        yield appliance, location, home.new_machine_key()


def _refuse_another(appliance: Appliance, repository: str | None) -> None:
    """CatalogOfAnotherRepository, before anything is made, where others use the catalog with another one; None: with a
    new one."""
    catalog = appliance.catalog
    known = catalog.repository()
    if catalog.database.is_shared and known is not None and known.id != repository:
        raise CatalogOfAnotherRepository(catalog.database.where, known.id, repository or "a new one")


def _prove_locks(location: Location) -> None:
    """Where objects are to be locked, the bucket is asked whether it does, and a lock is tried to be broken.
    LockUnsuitable, StoreError."""
    versions = open_versions(location)
    if versions is not None:
        versions.prove()


def _take_on(appliance: Appliance, repository: Repository, location: Location, machine_key: bytes, act: Act) -> Founded:
    settings = appliance.settings
    appliance.use_repository(repository)
    appliance.catalog.attach_repository(RepositoryRecord(repository.id.hex(), str(location), appliance.clock.now_utc()))
    points = PointService(appliance)
    damaged = points.refresh()
    home.remember_repository(settings, location)
    home.write_machine_key(settings, machine_key)
    subject = Subject("repository", repository.id.hex())
    Access(appliance).record(local_actor(), act, subject, {"location": str(location)})
    return Founded(
        repository_id=repository.id.hex(),
        location=str(location),
        machines=appliance.catalog.points.machines(),
        points=points.list(),
        damaged=damaged,
    )


class RepositoryService:
    """Borrows the appliance."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance

    def info(self) -> RepositoryInfo:
        repository = self._appliance.repository
        points = PointService(self._appliance)
        damaged = points.refresh()
        count = size_bytes = 0
        for listed in repository.store.list(""):
            count += 1
            size_bytes += listed.size_bytes
        machines = self._appliance.catalog.points.machines()
        return RepositoryInfo(
            id=repository.id.hex(),
            location=repository.store.describe(),
            created_utc=parse_utc(repository.config.created_utc),
            compression_level=repository.config.compression_level,
            free_bytes=repository.store.free_bytes(),
            object_count=count,
            size_bytes=size_bytes,
            machines=len(machines),
            points=len(points.list()),
            damaged=damaged,
            protected_bytes=sum(disk.size_bytes for machine in machines for disk in machine.disks),
        )

    def verify(self, reading: Reading | None = None, *, progress: Progress = SILENT) -> VerifyReport:
        """Every object's bytes, and with `reading` chunks, decrypted and compared with their ids. What it found is kept
        in the catalog, unless that is away."""
        began = self._appliance.clock.now_utc()
        about(Subject("repository", name="repository"), read_data=reading is not None)
        report = self._appliance.repository.verify(progress=progress, reading=reading)
        how = proofs.Reading.TABLES
        if reading is not None:
            how = proofs.Reading.HASHES if reading.hashes_only else proofs.Reading.DATA
        record = proofs.Verification(
            id=new_id(),
            began_utc=began,
            ended_utc=self._appliance.clock.now_utc(),
            reading=how,
            every_days=1 if reading is None else reading.every_days,
            read_bytes=report.read_bytes,
            problems=len(report.problems),
            affected=tuple(hit.id for hit in report.affected[:_AFFECTED_MOST]),
        )
        with suppress(CatalogError):  # the repository needs none, and the report says it all
            self._appliance.catalog.proofs.verified(record)
        return report

    def verify_as(
        self, *, read_data: bool, every_days: int | None = None, hashes_only: bool = False, progress: Progress = SILENT
    ) -> VerifyReport:
        """As `verify`, in a person's words: data is read if asked, everything in so many daily runs."""
        from imaging.scrub import Reading

        return self.verify(Reading(every_days or 1, hashes_only) if read_data else None, progress=progress)

    def verify_at_once(
        self, *, read_data: bool, every_days: int | None = None, hashes_only: bool = False, progress: Progress = SILENT
    ) -> VerifyReport:
        """As `verify_as`, outside of the queue: an error that ends it is recorded as a run of the queue would be, so
        that somebody is told of a repository that is away each night; coming to the end takes that back."""
        began = self._appliance.clock.now_utc()
        try:
            report = self.verify_as(
                read_data=read_data, every_days=every_days, hashes_only=hashes_only, progress=progress
            )
        except (StrongroomError, ImagingError) as err:
            failed = RunRecord(
                new_id(), "repository", "repository", None, None, RunState.FAILED, began,
                ended_utc=self._appliance.clock.now_utc(), error=str(err), kind=RunKind.VERIFY,
                arguments=RunArguments(read_data=read_data, every_days=every_days, hashes_only=hashes_only),
            )  # fmt: skip
            with suppress(CatalogError):  # what ended it is what is told
                self._appliance.catalog.runs.save(failed)
            raise
        with suppress(CatalogError):
            self._take_back()
        return report

    def _take_back(self) -> None:
        runs, now = self._appliance.catalog.runs, self._appliance.clock.now_utc()
        for run in runs.last():
            begun_at_once = run.kind is RunKind.VERIFY and not run.from_queue
            if begun_at_once and run.state is RunState.FAILED and run.dismissed_utc is None:
                runs.save(replace(run, dismissed_utc=now))

    def holds(self) -> tuple[Hold, ...]:
        return tuple(self._appliance.repository.holds())

    def keys(self) -> tuple[Slot, ...]:
        return tuple(self._appliance.repository.slots())

    def add_passphrase(self, passphrase: str, label: str) -> Slot:
        slot = self._appliance.repository.add_slot(Passphrase(passphrase), label)
        about(Subject("key", slot.id, label), what=slot.kind)
        return slot

    def add_recovery_key(self, label: str, deliver: Callable[[str], None]) -> Slot:
        """A new recovery key beside those there are; it is delivered only when its slot is in the repository."""
        key = RecoveryKey.new()
        slot = self._appliance.repository.add_slot(key, label)
        about(Subject("key", slot.id, label), what=slot.kind)
        deliver(key.text())
        return slot

    def find_key(self, wanted: str) -> Slot:
        """By its id or a unique beginning of it. SlotNotFound, KeyAmbiguous."""
        found = [slot for slot in self.keys() if wanted and slot.id.startswith(wanted.lower())]
        if not found:
            raise SlotNotFound(wanted)
        if len(found) > 1:
            raise KeyAmbiguous(wanted, len(found))
        return found[0]

    def remove_key(self, slot: Slot, request: str | None = None) -> None:
        """SlotNotFound; LastSlot, also for the last one that is no machine key; OwnKey for the one that this appliance
        works with; Guarded, unless `request` is ready.
        """
        about(Subject("key", slot.id, slot.label), what=slot.kind)
        if slot.kind == MachineKey.kind and self._opens(slot):
            raise OwnKey(slot.id)
        self._appliance.repository.remove_slot(slot.id, request)

    def _opens(self, slot: Slot) -> bool:
        try:
            open_slot(slot, MachineKey(home.read_machine_key(self._appliance.settings)))
        except (NotAuthentic, Damaged):
            return False
        return True
