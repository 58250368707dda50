"""Restore points: which there are, which one is meant, what differs between two, which may go.

The rule: the repository decides; the catalog's copy is brought up to date from it and is used alone only where the
repository cannot be reached. A point is named by its id, a unique beginning of it, "latest", or a time, which means the
newest point at or before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.doing import Subject, about, machine_of
from appliance.models import (
    CleanupAction,
    CleanupRecord,
    MachineRecord,
    PointRecord,
    new_id,
)
from appliance.services.choosing import LATEST, NotProtected, choose_machine, choose_point, machines_named
from appliance.services.moments import looks_like_moment
from appliance.services.point_records import machines_of, oldest_first, record_of
from imaging.errors import PointHeld, PointNotFound
from imaging.guard.acts import deletion_of
from imaging.points import PROTECTED, doomed

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from imaging.manifest import DiskEntry
    from imaging.points import DamagedPoint, Hold, Point, Survey

_HELD_HINT = (
    "End what uses it (discard, umount) or lift its protection, then delete it. 'strongroom repository hold list' tells"
    " what that is, and 'repository hold release' lets go of what nobody uses any more."
)
_LOOKS = 5


@dataclass(frozen=True, slots=True)
class PointDetails:
    point: Point
    holds: tuple[Hold, ...]


@dataclass(frozen=True, slots=True)
class DiskDifference:
    """How a disk differs between an older and a newer point; None: it is not on that one."""

    disk: str
    old_size_bytes: int | None
    new_size_bytes: int | None
    changed_bytes: int
    ranges: int


class PointService:
    """Borrows the appliance."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance

    def refresh(self) -> tuple[DamagedPoint, ...]:
        """Make the catalog's copy what the repository says; returns the points whose manifests are damaged."""
        return self._surveyed().damaged

    def _surveyed(self) -> Survey:
        """Where somebody else brings the catalog up to date meanwhile, the repository is looked at once more: what was
        seen may be older than what is there."""
        self._appliance.attach()
        copy = self._appliance.catalog.points
        for _ in range(_LOOKS):
            before = copy.names()
            survey = self._appliance.repository.survey()
            if {point.name for point in survey.points} == before:
                break
            records = [record_of(point) for point in survey.points]
            if copy.replace(machines_of(survey.points), records, before=before):
                break
        return survey

    def record(self, point: Point) -> PointRecord:
        """Note a point that was just committed, so that lists have it without asking the repository."""
        self._appliance.attach()
        series = self._appliance.repository.points(point.manifest.series)
        record = record_of(point)
        for machine in machines_of(series):
            self._appliance.catalog.points.add(machine, record)
        return record

    def list(self, name: str | None = None) -> tuple[PointRecord, ...]:
        """All, or of the machines of that name; oldest first. Call `refresh` before. NotProtected."""
        records = self._appliance.catalog.points.list()
        if name is not None:
            wanted = {machine.series for machine in machines_named(name, self._appliance.catalog.points.machines())}
            records = tuple(record for record in records if record.series in wanted)
        return oldest_first(records)

    def machine(self, name: str) -> MachineRecord:
        """The protected machine or image of that name, UUID, or vm:NAME / image:NAME. NotProtected, NameAmbiguous."""
        machines = self._appliance.catalog.points.machines()
        return choose_machine(name, machines)

    def resolve(
        self, wanted: str, name: str | None = None, *, among: Callable[[MachineRecord], bool] | None = None
    ) -> Point:
        """The one point that is meant, of one machine if it is named. `among`: with a name, only these machines count,
        and of no other anything is told.

        NotProtected, PointNotFound, PointAmbiguous, MomentNotUnderstood, NothingThatOld, NewerDamaged.
        """
        if name is None:
            if wanted == LATEST or looks_like_moment(wanted):
                raise PointNotFound(f"{wanted!r} without a machine")
            return self._appliance.repository.point(wanted)
        survey = self._surveyed()
        if wanted != LATEST and not looks_like_moment(wanted):
            return self._by_id(wanted, name, survey, among)
        machine = choose_machine(name, self._machines(among))
        points = [point for point in survey.points if point.series == machine.series]
        if not points:
            raise NotProtected(name, [known.name for known in self._machines(among)])
        return choose_point(name, wanted, points, survey)

    def _machines(self, among: Callable[[MachineRecord], bool] | None) -> tuple[MachineRecord, ...]:
        known = self._appliance.catalog.points.machines()
        return known if among is None else tuple(machine for machine in known if among(machine))

    def _by_id(self, wanted: str, name: str, survey: Survey, among: Callable[[MachineRecord], bool] | None) -> Point:
        """An id is enough even where several machines have the name; it only has to be of one of them."""
        named = {machine.series for machine in machines_named(name, self._machines(among))}
        if among is not None:
            prefix = wanted.strip().lower()
            if not any(point.series in named and point.id.startswith(prefix) for point in survey.points):
                raise PointNotFound(f"{wanted} of {name}")
        point = self._appliance.repository.point(wanted)
        if point.series not in named:
            raise PointNotFound(f"{wanted} of {name} (that point is of {point.manifest.machine.name})")
        return point

    def details(self, wanted: str) -> PointDetails:
        point = self.resolve(wanted)
        holds = tuple(hold for hold in self._appliance.repository.holds() if hold.manifest == point.name)
        return PointDetails(point, holds)

    def difference(self, old: str, new: str) -> tuple[DiskDifference, ...]:
        """What changed on each disk from one point to another, by a walk that reads no data."""
        before, after = self.resolve(old).manifest, self.resolve(new).manifest
        names = [disk.name for disk in after.disks]
        names += [disk.name for disk in before.disks if disk.name not in names]
        return tuple(self._disk_difference(name, before.disk(name), after.disk(name)) for name in names)

    def _disk_difference(self, name: str, before: DiskEntry | None, after: DiskEntry | None) -> DiskDifference:
        old = (None, 0) if before is None else (before.root, before.size_bytes)
        new = (None, 0) if after is None else (after.root, after.size_bytes)
        from imaging import diskmap  # with numpy, which no list needs

        changed_bytes = ranges = 0
        for extent in diskmap.difference(old, new, self._appliance.repository.blobs.node):
            changed_bytes += extent.stop - extent.start
            ranges += 1
        return DiskDifference(
            disk=name,
            old_size_bytes=None if before is None else before.size_bytes,
            new_size_bytes=None if after is None else after.size_bytes,
            changed_bytes=changed_bytes,
            ranges=ranges,
        )

    def delete(self, wanted: str, request: str | None = None) -> Point:
        """Drop a point; the space is given back when the repository is collected. PointHeld while something uses it:
        what commands that were killed held is let go of first. Guarded, unless it may go or `request` is ready.
        """
        with self.deletions(request) as delete:
            return delete(wanted)

    @contextmanager
    def deletions(self, request: str | None = None) -> Iterator[Callable[[str], Point]]:
        """As `delete`, for several points: what is done for all of them is done once. A point that is not deleted, and
        whose error the caller takes, hinders no other."""
        from appliance.services.upkeep import UpkeepService

        problems: tuple[str, ...] | None = None

        def delete(wanted: str) -> Point:
            nonlocal problems
            point = self.resolve(wanted)
            about(point_subject(point))
            self._appliance.repository.guard.permit(deletion_of([doomed(point)]), request)  # before anything is noted
            if problems is None:
                problems = UpkeepService(self._appliance).here()
            self._owe_checkpoint(point)
            try:
                self._appliance.repository.delete_point(point, self._appliance.id, request)
            except PointHeld as err:
                err.hint = "; ".join([*problems, _HELD_HINT])
                raise
            self._appliance.catalog.points.remove(point.manifest.id)
            return point

        yield delete
        self.refresh()

    def damaged(self, wanted: str) -> DamagedPoint | None:
        """The point of which only the id is known, as its manifest cannot be read; a beginning is enough that no other
        point has, damaged or not."""
        prefix = wanted.strip().lower()
        survey = self._surveyed()
        found = [point for point in survey.damaged if prefix and point.id.startswith(prefix)]
        others = any(point.id.startswith(prefix) for point in survey.points)
        return found[0] if len(found) == 1 and not others else None

    def delete_damaged(self, point: DamagedPoint, request: str | None = None) -> None:
        """Drop what is left of a point that cannot be read, so that the repository can be collected again. PointHeld,
        StillReadable; Guarded as `delete`."""
        about(Subject("point", point.id))
        self._appliance.repository.delete_point(point, self._appliance.id, request)
        self.refresh()

    def _owe_checkpoint(self, point: Point) -> None:
        """The newest point's checkpoint is still on its machine, and no other point starts from it: it is removed when
        debts are settled next, unless the point is the newest even then, because it could not be deleted."""
        manifest = point.manifest
        known = {record.name for record in self._appliance.catalog.hosts.list()}
        newest = self._appliance.repository.points(manifest.series)[-1:]
        if manifest.checkpoint is None or manifest.machine.host not in known or newest != [point]:
            return
        record = CleanupRecord(
            new_id(), f"point-{manifest.id}", CleanupAction.DELETE_CHECKPOINT, self._appliance.clock.now_utc(),
            manifest.machine.host, manifest.machine.uuid, manifest.machine.name, manifest.checkpoint, (),
            tuple(disk.name for disk in manifest.disks if disk.checkpoint),
        )  # fmt: skip
        self._appliance.catalog.cleanups.add(record)

    def protect(self, wanted: str) -> Point:
        """Keep a point from being deleted. Protected already: fine."""
        details = self.details(wanted)
        about(point_subject(details.point))
        if not any(hold.purpose == PROTECTED for hold in details.holds):
            self._appliance.repository.hold(details.point, PROTECTED, self._appliance.id)
        return details.point

    def unprotect(self, wanted: str) -> Point:
        """Lift the protection. Not protected: fine. Guarded."""
        details = self.details(wanted)
        about(point_subject(details.point))
        for hold in details.holds:
            if hold.purpose == PROTECTED:
                self._appliance.repository.release(hold.id)
        return details.point


def point_subject(point: Point) -> Subject:
    """As the audit has it."""
    machine = point.manifest.machine
    return Subject("point", point.id, machine.name, machine_of(machine.kind, machine.name, machine.uuid, machine.host))
