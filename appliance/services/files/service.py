"""Volumes, folders and files of restore points, for whoever may see them.

The rule: a place is a volume and a path in it; what is taken is a file as it is, or a folder as a tar. Every look and
every download says on which point and where, for the audit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from appliance.doing import Subject, about
from appliance.services.access.subjects import Subjects
from appliance.services.choosing import choose_disk
from appliance.services.files.errors import PlaceRefused, VolumeNotNamed
from appliance.services.files.following import Following
from appliance.services.files.sessions import Sessions
from appliance.services.files.tarring import Tar, shown
from appliance.services.point_records import record_of
from appliance.services.points import PointService, point_subject
from imaging.errors import PointNotFound
from imaging.filesystems.entries import Entry, Journal, Kind, Listing, Path, Volume, split
from imaging.filesystems.errors import NotThatKind, Unreadable, VolumeNotFound
from imaging.filesystems.session import PAGE_MAX, Piece, Session

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from imaging.points import Point

__all__ = [
    "PAGE_MAX", "Chosen", "Entry", "FilesService", "Found", "Piece", "PointFiles", "Seen", "Taken",
    "Volume",
]  # fmt: skip
_CRASH: Final = "crash"


@dataclass(frozen=True, slots=True)
class Chosen:
    """A restore point, and whose files are in it, as grants have it."""

    point: Point
    subject: Subject


@dataclass(frozen=True, slots=True)
class Seen:
    """A volume. `caution`: why the newest changes may be missing; "" where they are not, or it cannot be read."""

    volume: Volume
    caution: str


@dataclass(frozen=True, slots=True)
class Found:
    """A part of a folder. `caution`: as `Seen` has it."""

    volume: Volume
    path: Path
    listing: Listing
    caution: str


@dataclass(frozen=True, slots=True)
class Taken:
    """What is being taken: of a file its pieces, of a folder a tar, which knows at its end what is not in it.
    `size_bytes`: None of a tar."""

    name: str
    entry: Entry
    size_bytes: int | None
    pieces: Iterator[Piece]
    caution: str
    tar: Tar | Following | None


class FilesService:
    """Borrows the appliance and the sessions."""

    def __init__(self, appliance: Appliance, sessions: Sessions) -> None:
        self._appliance = appliance
        self._sessions = sessions

    def of(self, name: str, wanted: str) -> PointFiles:
        """Those of a point; as `PointService.resolve`."""
        return PointFiles(self, PointService(self._appliance).resolve(wanted, name))

    def chosen(self, id: str) -> Chosen:
        """By the whole id. PointNotFound, Damaged."""
        point = PointService(self._appliance).resolve(id)
        if point.id != id:
            raise PointNotFound(id)
        return Chosen(point, Subjects(self._appliance).point(record_of(point)))

    def volumes(self, point: Point, disk: str | None = None) -> tuple[Seen, ...]:
        """Of all disks, or of one. DiskNotOnPoint; FilesError, ImagingError."""
        if disk is not None:
            choose_disk(point.manifest, disk)
        about(point_subject(point))
        with self._sessions.one(point) as session:
            found = [volume for volume in session.volumes() if disk in (None, volume.disk)]
        consistency = point.manifest.consistency
        return tuple(Seen(each, _caution(each, consistency) if each.readable else "") for each in found)

    def listing(
        self, point: Point, place: str, offset: int = 0, limit: int = PAGE_MAX, disk: str | None = None
    ) -> Found:
        """Of a folder, from the `offset`th entry on. PlaceRefused, VolumeNotNamed; FilesError, ImagingError."""
        with self._sessions.one(point) as session:
            volume, path = _placed(session, place, disk)
            about(point_subject(point), volume=volume.name, path=shown(path))
            listing = session.listing(volume.name, path, offset, min(limit, PAGE_MAX))
            return Found(volume, path, listing, _caution(volume, point.manifest.consistency))

    @contextmanager
    def take(self, point: Point, place: str, disk: str | None = None) -> Iterator[Taken]:
        """A file, or a folder as a tar; its pieces are read within the context. As `listing`."""
        with self._sessions.one(point) as session:
            volume, path = _placed(session, place, disk)
            about(point_subject(point), volume=volume.name, path=shown(path))
            entry = session.stat(volume.name, path)
            words = _caution(volume, point.manifest.consistency)
            name = path[-1] if path else volume.name.replace("/", "-")
            if entry.kind is Kind.FOLDER:
                tar = Tar(session, volume.name, path, name)
                with closing(tar.stream()) as stream:  # before the session is another's: it may be within a file
                    yield Taken(f"{name}.tar", entry, None, stream, words, tar)
                return
            if entry.kind is not Kind.FILE:
                hint = "Links are not followed: ask for what it leads to." if entry.kind is Kind.LINK else ""
                raise NotThatKind(shown(path), entry.kind.value, "file", hint)
            if entry.problem:
                raise Unreadable(shown(path), entry.problem)
            pieces = session.read(volume.name, path, entry.size_bytes)
            try:
                yield Taken(name, entry, entry.size_bytes, pieces, words, None)
            finally:
                pieces.close()  # type: ignore[attr-defined]  # a generator


class PointFiles:
    """Of one restore point. Borrows the service."""

    def __init__(self, service: FilesService, point: Point) -> None:
        self._service = service
        self._point = point
        self.id = point.id

    def volumes(self, disk: str | None = None) -> tuple[Seen, ...]:
        return self._service.volumes(self._point, disk)

    def listing(self, place: str, offset: int, limit: int, disk: str | None = None) -> Found:
        return self._service.listing(self._point, place, offset, limit, disk)

    def take(self, place: str, disk: str | None = None) -> AbstractContextManager[Taken]:
        return self._service.take(self._point, place, disk)


def _caution(volume: Volume, consistency: str) -> str:
    """Journals are not replayed: of which volumes that may show."""
    if volume.journal is Journal.PENDING:
        return "Its journal holds changes that were not written to their places yet: the newest may be missing here."
    if volume.journal is Journal.UNKNOWN and consistency == _CRASH:
        return "The restore point is crash-consistent, and no journal is replayed: the newest changes may be missing."
    return ""


def _placed(session: Session, place: str, disk: str | None) -> tuple[Volume, Path]:
    """VOLUME:/PATH, or a path alone where there is one volume only."""
    volumes = [volume for volume in session.volumes() if disk in (None, volume.disk)]
    readable = [volume for volume in volumes if volume.readable]
    before, colon, after = place.partition(":")
    named = {volume.name: volume for volume in volumes}
    if colon and place[:1] != "/":
        path, volume = split(after), named.get(before)
        if volume is None:
            raise VolumeNotFound(before, [each.name for each in readable])
        if not volume.readable:
            raise Unreadable(f"volume {volume.name}", volume.problem)
    else:
        path = split(place)
        if len(readable) != 1:
            raise VolumeNotNamed(place, [each.name for each in readable])
        (volume,) = readable
    if path is None:
        raise PlaceRefused(place)
    return volume, path
