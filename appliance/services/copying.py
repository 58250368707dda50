"""Restore points of this home's repository, copied into another home's.

The rule: what is newer than the newest copy of a machine is copied, oldest first, each point a run of its own in the
other repository, so that an interrupted copy is gone on with by the next; what is older and not there was pruned there,
and stays away. A point counts there once what was stored for it was read back. The other home has its own keys,
settings and retention, and restores by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.errors import StrongroomError
from appliance.models import MachineRecord, new_id
from appliance.progress import SILENT, Progress
from appliance.services.choosing import machines_named
from appliance.services.holds import held_meanwhile
from appliance.services.points import PointService
from appliance.services.upkeep import UpkeepService
from imaging.copying import Copier, read_back
from imaging.errors import BitmapLied, ParentMapLost
from imaging.lineage import copied_from
from imaging.packing import PackWriter
from imaging.pending import PendingIndex

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from imaging.places import PackRows
    from imaging.points import Point
    from imaging.running import Run


class SameRepository(StrongroomError):
    exit_code = 2

    def __init__(self, id: str) -> None:
        super().__init__(
            f"both homes use the same repository ({id})",
            hint="Make another one in the other home: STRONGROOM_HOME=DIR strongroom init --repository PATH.",
            id=id,
        )


@dataclass(frozen=True, slots=True)
class MachineToCopy:
    """`points` are missing in the other repository, oldest first; `total` is how many the machine has here."""

    machine: MachineRecord
    points: tuple[Point, ...]
    total: int


@dataclass(frozen=True, slots=True)
class CopiedPoint:
    machine: str
    origin: str
    copy: str
    read_bytes: int
    stored_bytes: int
    verified_bytes: int
    """Of what was stored, how much was read back and authenticated."""


class CopyService:
    """Borrows both appliances. `verify`: what is stored is read back before it counts."""

    def __init__(self, origin: Appliance, target: Appliance, *, verify: bool = True) -> None:
        self._origin = origin
        self._target = target
        self._verify = verify
        if origin.repository.id == target.repository.id:
            raise SameRepository(origin.repository.id.hex())

    def plan(self, names: Sequence[str] = (), *, last: int | None = None) -> tuple[MachineToCopy, ...]:
        """What is missing of the machines of these names, or of all; of each the `last` points only. NotProtected."""
        service = PointService(self._origin)
        service.refresh()
        known = self._origin.catalog.points.machines()
        wanted = {each.series: each for name in names for each in machines_named(name, known)}
        machines = list(wanted.values()) if names else list(known)
        points = self._origin.repository.points()
        copies = self._target.repository.points()
        found = []
        for machine in machines:
            mine = sorted((p for p in points if p.series == machine.series), key=lambda p: p.generation)
            series = self._series(mine[-1]) if mine else ""
            missing = self._newer(mine, [p for p in copies if p.series == series])
            found.append(MachineToCopy(machine, tuple(missing[-last:] if last else missing), len(mine)))
        return tuple(found)

    def copy(self, plan: Sequence[MachineToCopy], *, progress: Progress = SILENT) -> Iterator[CopiedPoint]:
        """Copies one point after the other, and tells of each that is done. What copies that were killed have left in
        either home is cleared away first. SeriesBusy, SourceError, CopyUnreadable, ImagingError."""
        for home in (self._origin, self._target):
            for problem in UpkeepService(home).here():
                progress.note(problem)
        for each in plan:
            for point in each.points:
                yield self._point(each.machine, point, progress)

    def _newer(self, points: list[Point], copies: list[Point]) -> list[Point]:
        """Those after the newest that was copied: by their order, which no clock decides, and by time only where none
        of those that were copied is left here."""
        notes = {note for copy in copies for note in copy.manifest.notes}
        repository = self._origin.repository.id
        copied = [point.generation for point in points if copied_from(point, repository) in notes]
        if copied:
            return [point for point in points if point.generation > max(copied)]
        newest = max((copy.created_utc for copy in copies), default=None)
        return [point for point in points if newest is None or point.created_utc > newest]

    def _point(self, machine: MachineRecord, point: Point, progress: Progress) -> CopiedPoint:
        repository = self._target.repository
        with (
            held_meanwhile(self._origin, point, f"restore-{new_id()}"),
            repository.begin_run(self._series(point), host=point.manifest.machine.host) as lease,
        ):
            before = self._copied(lease.parent, point)
            written: dict[bytes, int] = {}  # packs that will count, with their sizes
            try:
                copy, done = self._store(machine, point, before, lease, written, progress)
            except (BitmapLied, ParentMapLost) as err:
                progress.note(f"{machine.name} is copied in full: {err}")
                copy, done = self._store(machine, point, None, lease, written, progress)
        PointService(self._target).record(copy)
        return done

    def _store(self, machine: MachineRecord, point: Point, before: Point | None, lease: Run,
               written: dict[bytes, int], progress: Progress) -> tuple[Point, CopiedPoint]:  # fmt: skip
        repository, settings = self._target.repository, self._target.settings

        def publish(packs: Sequence[PackRows]) -> None:
            lease.put_index(packs)
            written.update((pack.pack, pack.size_bytes) for pack in packs)

        with ExitStack() as stack:
            pending = PendingIndex(settings.cache_directory)
            stack.callback(pending.close)
            writer = stack.enter_context(PackWriter(
                repository.store, repository.keys, repository.index, pending, publish,
                compression_level=repository.config.compression_level, pack_bytes=repository.config.pack_bytes,
                uploads=repository.pace.puts,
            ))  # fmt: skip
            copier = Copier(
                self._origin.repository, repository, writer, workers=settings.limits.workers,
                start=lambda disk, size: progress.start(f"{machine.name} {disk}", size), advance=progress.advance,
            )  # fmt: skip
            draft = copier.copy(point, before, lease.parent)
            progress.finish()
            writer.flush()
            if self._verify and written:
                progress.start(f"{machine.name}, read back", sum(written.values()))
                read_back(repository, written, progress.advance)
                progress.finish()
            copy = lease.commit(draft)
            return copy, CopiedPoint(
                machine.name, point.id, copy.id, draft.statistics.read_bytes, writer.stored.bytes,
                sum(written.values()) if self._verify else 0,
            )  # fmt: skip

    def _copied(self, parent: Point | None, point: Point) -> Point | None:
        """The point of which the copy's parent is a copy, if it is still there."""
        if parent is None:
            return None
        origin = self._origin.repository
        notes = parent.manifest.notes
        return next((each for each in origin.points(point.series) if copied_from(each, origin.id) in notes), None)

    def _series(self, point: Point) -> str:
        machine = point.manifest.machine
        name = machine.uuid if machine.kind == "vm" and machine.uuid is not None else machine.name
        return self._target.repository.series_of(machine.kind, name)
