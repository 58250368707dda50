"""What people ask of the queue: back this up, restore that, look after the repository, what waits, stop, try again.

The rule: a run is written into the catalog, and only then a worker is woken. Who takes it is decided here: the
appliance that has the host, or that has the image. A machine or image waits once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.acts import Act
from appliance.catalog.errors import CatalogError
from appliance.doing import Subject, about, machine_of
from appliance.errors import StrongroomError
from appliance.home import NoHome
from appliance.models import RunArguments, RunKind, RunRecord, RunState, new_id
from appliance.patience import StillWaiting, within
from appliance.services.access import SYSTEM, Access
from appliance.services.access.places import check_place, folder_of
from appliance.services.backup.watching import HowFar, how_far
from appliance.services.choosing import choose_disk
from appliance.services.cleaning import CleaningService
from appliance.services.points import PointService
from appliance.services.queue.messages import QueueUnusable, Wakes
from appliance.services.restore.errors import NotAMachine
from appliance.services.restore.planning import check_local, check_name
from appliance.services.spawning import WORKERS
from imaging import images
from imaging.errors import ImagingError

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from appliance.catalog.once import Once
    from imaging.points import Point

_WHOLE = "repository"
_PATIENCE_S = 5.0


class QueuedOtherwise(StrongroomError):
    def __init__(self, name: str, id: str, path: str) -> None:
        super().__init__(
            f"{name} is queued already, as run {id[:12]} of another image: {path}",
            hint=f"Wait for it, or cancel it: strongroom run cancel {id[:12]}",
            id=id,
        )


class NotRepeatable(StrongroomError):
    def __init__(self, run: RunRecord, reason: str) -> None:
        super().__init__(
            f"run {run.id[:12]} of {run.name} cannot be queued again: {reason}",
            hint="Give the whole command again, with --queue: strongroom backup --help",
            id=run.id,
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """`new`: it was queued by this; else one of the same machine waited already. `worker`: one of this appliance lives;
    None: the run is another's."""

    run: RunRecord
    new: bool
    worker: bool | None


@dataclass(frozen=True, slots=True)
class Seen:
    """A run; `alive` and `far` are known of this appliance's own alone."""

    run: RunRecord
    alive: bool | None
    far: HowFar | None


class QueueService:
    """Borrows the appliance."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance

    def ask_machine(
        self,
        name: str,
        host: str | None = None,
        *,
        full: bool = False,
        limit_bytes_s: int | None = None,
        key: Once | None = None,
    ) -> Asked:
        """Queue a machine, by name or UUID. It is looked for now if its host is one of this appliance's; one of another
        appliance's is that one's to find. With a `key`, it is done once: asked again, it is the same run.
        StrongroomError."""
        from appliance.services.inventory import InventoryService

        if (before := self._before(key)) is not None:
            return before
        hosts = self._appliance.catalog.hosts
        owners = () if host is None else hosts.owners(host)
        if owners and self._appliance.catalog.me not in owners:
            run = self._run(name, "vm", None, host)
            return self._put(replace(run, appliance=owners[0], full_read=full, limit_bytes_s=limit_bytes_s), key)
        found = InventoryService(self._appliance).find(name, host)
        run = self._run(found.machine.name, "vm", found.machine.uuid, found.host)
        return self._put(replace(run, full_read=full, limit_bytes_s=limit_bytes_s), key)

    def ask_image(
        self, path: Path, image_format: str, name: str, *, limit_bytes_s: int | None = None, key: Once | None = None
    ) -> Asked:
        """Queue an image file or block device of this machine; `key` as for a machine. StrongroomError, ImagingError,
        QueuedOtherwise."""
        if (before := self._before(key)) is not None:
            return before
        images.check_alone(path, image_format)
        run = self._run(name, "image", None, None)
        run = replace(
            run, image_path=str(path.absolute()), image_format=image_format, limit_bytes_s=limit_bytes_s
        )  # fmt: skip
        return self._put(run, key)

    def ask_restore(
        self,
        name: str,
        point: str,
        host: str,
        *,
        new_name: str | None = None,
        force: bool = False,
        storage: str | None = None,
        limit_bytes_s: int | None = None,
        key: Once | None = None,
    ) -> Asked:
        """Queue the restore of a whole machine, as `RestoreService.machine` does it; which point is meant is decided
        now, and whether it can be: NotPossible. PlaceNotAllowed; StrongroomError, ImagingError."""
        if (before := self._before(key)) is not None:
            return before
        check_place(self._appliance.settings.restore.folders, folder_of(storage, new_name))
        found = PointService(self._appliance).resolve(point, name)
        if found.manifest.machine.kind != "vm":
            raise NotAMachine(found.manifest.machine.name)
        if new_name is not None:
            check_name(new_name)
        check_local(record := self._appliance.catalog.hosts.get(host))
        arguments = RunArguments(found.id, new_name=new_name, storage=storage, force=force)
        run = self._restoring(found, record.name, arguments, limit_bytes_s)
        self._foresee(run)
        return self._put(run, key)

    def ask_restore_disk(
        self,
        name: str,
        point: str,
        disk: str | None,
        target: Path,
        image_format: str,
        *,
        force: bool = False,
        limit_bytes_s: int | None = None,
        key: Once | None = None,
    ) -> Asked:
        """Queue the restore of one disk to a file of this machine, as `RestoreService.disk` does it, if it can be now:
        NotPossible. StrongroomError, ImagingError."""
        if (before := self._before(key)) is not None:
            return before
        found = PointService(self._appliance).resolve(point, name)
        entry = choose_disk(found.manifest, disk)
        arguments = RunArguments(
            found.id, disk=entry.name, target=str(target.absolute()), image_format=image_format, force=force
        )
        run = self._restoring(found, None, arguments, limit_bytes_s)
        self._foresee(run)
        return self._put(run, key)

    def ask_verify(
        self,
        *,
        read_data: bool = False,
        every_days: int | None = None,
        hashes_only: bool = False,
        limit_bytes_s: int | None = None,
        key: Once | None = None,
    ) -> Asked:
        """Queue a verification of the repository, as `RepositoryService.verify_as` does it."""
        arguments = RunArguments(read_data=read_data, every_days=every_days, hashes_only=hashes_only)
        return self._ask_all(RunKind.VERIFY, arguments, limit_bytes_s, key)

    def ask_collect(self, *, key: Once | None = None) -> Asked:
        """Queue a collection of the repository."""
        return self._ask_all(RunKind.COLLECT, RunArguments(), None, key)

    def ask_prune(self, *, key: Once | None = None) -> Asked:
        """Queue deleting what no policy keeps, as `MaintenanceService.plan_policies` has it."""
        return self._ask_all(RunKind.PRUNE, RunArguments(), None, key)

    def ask_copy(
        self, home: Path, names: Sequence[str] = (), *, limit_bytes_s: int | None = None, key: Once | None = None
    ) -> Asked:
        """Queue copying what is new of these machines, or of all, into the repository of another home. NoHome."""
        if not home.is_dir():
            raise NoHome(home)
        arguments = RunArguments(home=str(home.absolute()), names=tuple(names))
        return self._ask_all(RunKind.COPY, arguments, limit_bytes_s, key)

    def _ask_all(self, kind: RunKind, arguments: RunArguments, limit_bytes_s: int | None, key: Once | None) -> Asked:
        """Of the whole repository."""
        if (before := self._before(key)) is not None:
            return before
        name = arguments.home or _WHOLE
        run = replace(
            self._run(name, _WHOLE, None, None), kind=kind, arguments=arguments, limit_bytes_s=limit_bytes_s
        )  # fmt: skip
        return self._put(run, key)

    def _restoring(
        self, point: Point, host: str | None, arguments: RunArguments, limit_bytes_s: int | None
    ) -> RunRecord:
        machine = point.manifest.machine
        run = self._run(machine.name, machine.kind, machine.uuid, host)
        return replace(run, kind=RunKind.RESTORE, arguments=arguments, limit_bytes_s=limit_bytes_s)

    def _foresee(self, run: RunRecord) -> None:
        """Whether a restore by this appliance can be, as everything is now. NotPossible; StrongroomError,
        ImagingError."""
        from appliance.services.restore.foreseeing import ForeseeingService

        foreseeing, asked = ForeseeingService(self._appliance), run.arguments
        assert asked is not None, "a restore is asked for with arguments"
        assert asked.point is not None, "a restore is of a point"
        if asked.target is not None:
            assert asked.image_format is not None, "a file has a format"
            foreseeing.disk(asked.point, asked.disk, Path(asked.target), asked.image_format, force=asked.force)
            return
        assert run.host is not None, "a machine is restored to a host"
        if asked.new_name is not None:
            foreseeing.new(asked.point, run.host, asked.new_name, asked.storage)
        else:
            foreseeing.in_place(asked.point, run.host, force=asked.force)

    def ask_due(self, wanted: Iterable[RunRecord]) -> tuple[Asked, ...]:
        """Queue runs that policies want, each of a machine as the inventory has it or of an image whose place is known:
        no host is asked, and no repository. CatalogError, and then some are queued and some are not."""
        asked: list[Asked] = []
        mine = self._appliance.catalog.me
        worker = self._appliance.alive(WORKERS)
        try:
            with self._wakes(mine) as wakes:
                for run in wanted:
                    kept = self._appliance.catalog.queue.put(run)
                    asked.append(Asked(kept, kept.id == run.id, worker))
                    if wakes is not None:
                        wakes.put(kept.id)
        finally:  # also those that were queued before the catalog went away
            started = [(_subject(each.run), _scheduled(each.run)) for each in asked if each.new]
            if started:
                Access(self._appliance).record_all(SYSTEM, Act.RUN_START, started)
        return tuple(asked)

    def again(self, wanted: str, *, key: Once | None = None) -> Asked:
        """Queue what an ended run was about once more, with what was asked then; one that waits to be tried again waits
        no longer. A restore is foreseen as when it was asked for, if it is this appliance's. `key` as for a machine.
        RecordMissing, NotRepeatable; PlaceNotAllowed; NotPossible; StrongroomError, ImagingError."""
        if (before := self._before(key)) is not None:
            return before
        catalog = self._appliance.catalog
        former = catalog.runs.find(wanted)
        about(_subject(former), former=former.id)
        self._check_place_of(former)
        if former.state is RunState.QUEUED:
            run = catalog.queue.hurry(former.id)
            return Asked(run, False, self._wake(run))
        if former.state is RunState.RUNNING:
            raise NotRepeatable(former, "it is running")
        if former.kind in (RunKind.RESTORE, RunKind.COPY) and former.host is None and not self._is_there(former):
            raise NotRepeatable(former, "it went to a place on the machine of an appliance that is gone")
        backup = former.kind is RunKind.BACKUP
        if backup and former.machine_kind == "image" and former.image_path is None:
            raise NotRepeatable(former, "it was begun at once, and where its image was is not known")
        run = replace(
            self._run(former.name, former.machine_kind, former.uuid, former.host), image_path=former.image_path,
            image_format=former.image_format, full_read=former.full_read, limit_bytes_s=former.limit_bytes_s,
            quiesce=former.quiesce, appliance=self._whose(former), kind=former.kind, arguments=former.arguments,
        )  # fmt: skip
        if run.kind is RunKind.RESTORE and run.appliance == catalog.me:
            self._foresee(run)
        return self._put(run, key)

    def _check_place_of(self, former: RunRecord) -> None:
        """Whoever asks for it once more may be another than who asked first. PlaceNotAllowed."""
        if former.arguments is None or former.arguments.storage is None:
            return
        whose = former.appliance if former.state is RunState.QUEUED else self._whose(former)
        check_place(
            self._appliance.settings.restore.folders,
            folder_of(former.arguments.storage, former.arguments.new_name),
            here=whose == self._appliance.catalog.me,
        )

    def _is_there(self, former: RunRecord) -> bool:
        catalog = self._appliance.catalog
        return former.appliance in {catalog.me, *(record.id for record in catalog.appliances.list())}

    def _whose(self, former: RunRecord) -> str:
        """Who can reach it now: whoever has the host, or had the image; this appliance, if that one is gone."""
        catalog = self._appliance.catalog
        if former.host is None:
            able: Sequence[str] = [record.id for record in catalog.appliances.list() if record.id == former.appliance]
        else:
            able = catalog.hosts.owners(former.host)
        return next((id for id in (catalog.me, former.appliance, *able) if id in able), catalog.me)

    def cancel(self, wanted: str, tell: Callable[[str], None] = lambda _: None) -> RunRecord:
        """One that waits is cancelled; one that runs, here or on another appliance, ends itself within seconds, once
        it sees that. Returns it as it is now. A repository that hangs is not waited for: `tell` gets what is left to
        the daemon then, as a sentence. RecordMissing, RunEnded."""
        catalog = self._appliance.catalog
        asked = catalog.runs.find(wanted)
        about(_subject(asked), run=asked.id)
        if asked.state is RunState.QUEUED and asked.error is not None:  # an earlier attempt may have made its point
            with suppress(ImagingError):  # but a repository that is away keeps no run from being cancelled
                self._patiently(
                    lambda: CleaningService(self._appliance).settle_made(asked), tell,
                    "whether an earlier attempt has made its point is not known: 'strongroom point list' shows it then",
                )  # fmt: skip
        run = catalog.queue.cancel(asked.id, self._appliance.clock.now_utc())
        if run.state is RunState.RUNNING and self._alive(run) is False:  # nobody would see it
            self._patiently(
                CleaningService(self._appliance).tidy, tell,
                "its process is dead, and what it left is cleaned up by 'strongroom serve' once the repository answers",
            )  # fmt: skip
            run = catalog.runs.get(run.id)
        return run

    def _patiently(self, work: Callable[[], object], tell: Callable[[str], None], left: str) -> None:
        try:
            within(_PATIENCE_S, work, "cancel")
        except StillWaiting:
            tell(f"the repository has not answered within {_PATIENCE_S:g} s: {left}")

    def runs(self, state: RunState | None = None, limit: int | None = None) -> tuple[RunRecord, ...]:
        """Newest first."""
        return self._appliance.catalog.runs.list(state=state, limit=limit)

    def run(self, wanted: str) -> Seen:
        """By its id or a unique beginning of it. RecordMissing."""
        run = self._appliance.catalog.runs.find(wanted)
        alive = self._alive(run)
        return Seen(run, alive, how_far(self._appliance.settings, run.id) if alive else None)

    def _alive(self, run: RunRecord) -> bool | None:
        if run.state is not RunState.RUNNING or run.appliance != self._appliance.catalog.me:
            return None
        return self._appliance.alive(f"run-{run.id}")

    def _before(self, key: Once | None) -> Asked | None:
        run = None if key is None else self._appliance.catalog.queue.asked_before(key)
        if run is not None:
            about(_subject(run), run=run.id, **_details(run))
        return None if run is None else Asked(run, False, self._worker(run))

    def _put(self, run: RunRecord, key: Once | None) -> Asked:
        self._appliance.attach()
        about(_subject(run), **_details(run))
        kept = self._appliance.catalog.queue.put(run, key)
        about(run=kept.id)
        if (kept.image_path, kept.image_format) != (run.image_path, run.image_format):
            raise QueuedOtherwise(kept.name, kept.id, kept.image_path or "")
        return Asked(kept, kept.id == run.id, self._wake(kept))

    def _wake(self, run: RunRecord) -> bool | None:
        """Whether a worker lives, where that is known. That the message could not be left costs some seconds."""
        with self._wakes(run.appliance) as wakes:
            if wakes is not None:
                wakes.put(run.id)
        return self._worker(run)

    def _worker(self, run: RunRecord) -> bool | None:
        return self._appliance.alive(WORKERS) if run.appliance == self._appliance.catalog.me else None

    @contextmanager
    def _wakes(self, whose: str) -> Iterator[Wakes | None]:
        """None: it cannot be used. The runs are in the catalog; the workers' sweep finds them, and says what it met."""
        with ExitStack() as stack:
            try:
                found = stack.enter_context(Wakes(self._appliance, whose))
            except (QueueUnusable, CatalogError):
                found = None
            yield found

    def _run(self, name: str, kind: str, uuid: str | None, host: str | None) -> RunRecord:
        now = self._appliance.clock.now_utc()
        return RunRecord(
            new_id(), name, kind, uuid, host, RunState.QUEUED, now, asked_utc=now,
            appliance=self._appliance.catalog.me,
        )  # fmt: skip


def _subject(run: RunRecord) -> Subject:
    """As the audit has it: the machine, or the whole repository."""
    if run.machine_kind == _WHOLE:
        return Subject(_WHOLE, name=run.name)
    return Subject.of_machine(machine_of(run.machine_kind, run.name, run.uuid, run.host))


def _scheduled(run: RunRecord) -> dict[str, object]:
    return _details(run) | {"run": run.id, "due": [{"policy": each.policy, "cause": each.cause} for each in run.due]}


def _details(run: RunRecord) -> dict[str, object]:
    if run.kind is RunKind.BACKUP:
        return {"full": run.full_read, "limit_bytes_s": run.limit_bytes_s}
    arguments = run.arguments or RunArguments()
    if run.kind is RunKind.RESTORE and arguments.disk is not None:
        return {
            "point": arguments.point, "disk": arguments.disk, "target": arguments.target,
            "image_format": arguments.image_format, "force": arguments.force,
        }  # fmt: skip
    if run.kind is RunKind.RESTORE:
        return {
            "point": arguments.point, "host": run.host, "new_name": arguments.new_name, "storage": arguments.storage,
            "force": arguments.force,
        }  # fmt: skip
    return {key: value for key, value in asdict(arguments).items() if value not in (None, False, ())}
