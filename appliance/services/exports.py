"""Serve a disk of a restore point to other programs, or show all its disks as files in a folder.

The rule: a point in use carries a durable hold, taken before the first server starts and released after the last one
has ended; what is served is recorded before it is, so that whatever a killed process left behind is found and ended.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from appliance import home
from appliance.doing import Subject, about
from appliance.errors import StrongroomError
from appliance.models import ExportKind, ExportRecord, new_id
from appliance.ownership import remove_unowned
from appliance.services.choosing import choose_disk
from appliance.services.points import PointService, point_subject
from imaging import convert, export
from imaging.errors import HoldNotFound, ImagingError, MountFailed
from imaging.export import Export, Listen
from imaging.serving import ServedDisk

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from imaging.manifest import DiskEntry
    from imaging.points import Point

_WATCH_S = 0.2


class NothingMounted(StrongroomError):
    def __init__(self, directory: Path) -> None:
        super().__init__(
            f"no restore point is mounted on {directory}", hint="See 'strongroom status' for what is mounted where."
        )


@dataclass(slots=True)
class Served:
    """A disk that is being served. `start`: another server of it, in the same place."""

    record: ExportRecord
    disk: DiskEntry
    uri: str
    export: Export
    start: Callable[[], Export]

    def wait(self, tell: Callable[[str], None] = lambda _: None) -> None:
        """For ever: a caller who wants to end it raises out of this. A server that dies is replaced, and `tell` gets a
        sentence about it; ExportFailed when the new one does not come up.

        nbdkit 1.32 itself dies where a client goes, without a word, from several requests that are being answered (an
        assertion in its raw_send_socket), and takes the other clients with it.
        """
        while True:
            while self.export.alive():
                time.sleep(_WATCH_S)
            self.export.stop()  # what it leaves
            self.export = self.start()
            tell("The server died, and was started again: clients have to connect anew.")


class ExportService:
    """Borrows the appliance."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance

    @contextmanager
    def serve(self, name: str, point: str, disk: str | None, *, port: int | None = None) -> Iterator[Served]:
        """Serve one disk for as long as the context lasts: on a UNIX socket of this user's alone, or, with a port, on
        the loopback address. It does not outlive the process, nor the thread, that calls this.
        """
        found = PointService(self._appliance).resolve(point, name)
        entry = choose_disk(found.manifest, disk)
        with self.serve_point(found, entry, port=port) as served:
            yield served

    @contextmanager
    def serve_point(
        self, point: Point, entry: DiskEntry, *, port: int | None = None, purpose: str = "export"
    ) -> Iterator[Served]:
        """As `serve`, of a point that was found already. `purpose` is what the hold says."""
        about(point_subject(point), disk=entry.name, port=port)
        record = self._new_record(ExportKind.EXPORT, point, (entry.name,))
        with self._own(record.id, f"export {record.id}"):
            listen = Listen(self._socket(record.id, 0), port=port)
            record = replace(record, address=listen.uri, sockets=(str(listen.path),))
            self._appliance.catalog.exports.save(record)
            try:
                record = self._held(record, point, purpose)

                def start() -> Export:
                    server = export.start(self.served(point, entry.name), listen, outlives_caller=False)
                    try:
                        server.wait_ready(self._appliance.settings.recovery.export_start_timeout_s)
                    except BaseException:
                        server.stop()
                        raise
                    return server

                served = Served(record, entry, listen.uri, start(), start)
                try:
                    yield served
                finally:
                    served.export.stop()
            finally:
                self._end(record)

    def mount(self, name: str, point: str, directory: Path) -> ExportRecord:
        """Show every disk of a point as the read-only raw file DIRECTORY/DISK, until `umount`; outlives this
        process.
        """
        found = PointService(self._appliance).resolve(point, name)
        about(point_subject(found), directory=str(directory))
        directory = _empty_folder(directory)
        names = tuple(entry.name for entry in found.manifest.disks)
        for disk in names:
            if disk in (".", "..") or "/" in disk or "\0" in disk:
                raise MountFailed(str(directory), f"the point's disk {disk!r} cannot be the name of a file")
        record = self._new_record(ExportKind.MOUNT, found, names)
        sockets = tuple(str(self._socket(record.id, number)) for number in range(len(names)))
        record = replace(record, address=str(directory), sockets=sockets)
        with self._own(record.id, f"mount {directory}"):
            self._appliance.catalog.exports.save(record)
            try:
                record = self._held(record, found, "mount")
                self._mount_all(record, found)
            except BaseException:
                self._end(record)
                raise
        return record

    def umount(self, directory: Path) -> ExportRecord:
        """Take the files away again. MountFailed while one is in use, and then nothing else is touched.
        NothingMounted.
        """
        wanted = str(directory.resolve())
        for record in self._appliance.catalog.exports.list():
            if record.kind is ExportKind.MOUNT and record.address == wanted:
                about(Subject("export", record.id, record.name), directory=wanted)
                with self._own(record.id, f"mount {wanted}"):
                    self._end(record)
                return record
        raise NothingMounted(directory)

    def list(self) -> tuple[ExportRecord, ...]:
        return self._appliance.catalog.exports.list()

    def sweep(self) -> tuple[str, ...]:
        """End what dead processes left: exports whose server's caller is gone, mounts that a reboot took away. Returns
        what could not be ended, as sentences.
        """
        problems = []
        for record in self._appliance.catalog.exports.list():
            if self._appliance.alive(f"export-{record.id}"):
                continue
            if record.kind is ExportKind.MOUNT and any(convert.is_mounted(path) for path in _files(record)):
                continue
            try:
                with self._own(record.id, f"{record.kind} {record.id}"):
                    self._end(record)
            except (StrongroomError, ImagingError) as err:
                problems.append(f"{record.kind} of {record.name} ({record.address}): {err}")
        for lock in self._appliance.settings.run_directory.glob("export-*.lock"):
            remove_unowned(lock)
        return tuple(problems)

    def served(self, point: Point, disk: str) -> ServedDisk:
        """What the server of a disk is told."""
        settings = self._appliance.settings
        return ServedDisk(
            location=home.write_location(settings),
            machine_key=settings.machine_key_file,
            cache=settings.cache_directory,
            point=point.id,
            disk=disk,
            cache_bytes=settings.recovery.cache_bytes,
            chunk_cache_bytes=settings.limits.chunk_cache_bytes,
        )

    @contextmanager
    def _own(self, record_id: str, what: str) -> Iterator[None]:
        """Be at work on a record; afterwards its lock file goes too. InUse."""
        owner = f"export-{record_id}"
        try:
            with self._appliance.own(owner, what):
                yield
        finally:
            remove_unowned(self._appliance.settings.run_directory / f"{owner}.lock")

    def _new_record(self, kind: ExportKind, point: Point, disks: tuple[str, ...]) -> ExportRecord:
        now = self._appliance.clock.now_utc()
        return ExportRecord(new_id(), kind, point.id, point.name, point.manifest.machine.name, disks, now)

    def _held(self, record: ExportRecord, point: Point, purpose: str) -> ExportRecord:
        hold = self._appliance.repository.hold(point, purpose, f"export-{record.id}")
        record = replace(record, hold=hold.id)
        self._appliance.catalog.exports.save(record)
        return record

    def _mount_all(self, record: ExportRecord, point: Point) -> None:
        servers = [
            export.start(self.served(point, disk), Listen(Path(path)), outlives_caller=True)
            for disk, path in zip(record.disks, record.sockets, strict=True)
        ]
        for server, path in zip(servers, _files(record), strict=True):
            server.wait_ready(self._appliance.settings.recovery.export_start_timeout_s)
            convert.mount_file(server.listen.uri, path, server.listen.beside(".fuse"), server.listen.beside(".fuselog"))

    def _end(self, record: ExportRecord) -> None:
        """Unmount, stop, release, forget: in this order, so that what fails is still known and held."""
        if record.kind is ExportKind.MOUNT:
            for path in _files(record):
                convert.unmount_file(path)
        for socket in record.sockets:
            listen = Listen(Path(socket))
            export.find(listen, f"an export of {record.name}").stop()
            for suffix in (".fuse", ".fuselog"):
                listen.beside(suffix).unlink(missing_ok=True)
        for hold in self._holds_of(record):
            with contextlib.suppress(HoldNotFound):
                self._appliance.repository.release(hold)
        self._appliance.catalog.exports.remove(record.id)

    def _holds_of(self, record: ExportRecord) -> Sequence[str]:
        """Its hold; one that was placed by a process that died before it could note it is found by its owner."""
        if record.hold is not None:
            return [record.hold]
        return [hold.id for hold in self._appliance.repository.holds() if hold.owner == f"export-{record.id}"]

    def _socket(self, record_id: str, number: int) -> Path:
        return self._appliance.settings.run_directory / f"x{record_id[:12]}.{number}"


def _files(record: ExportRecord) -> list[Path]:
    return [Path(record.address) / disk for disk in record.disks]


def _empty_folder(directory: Path) -> Path:
    directory = directory.resolve()
    try:
        if any(directory.iterdir()):
            raise MountFailed(str(directory), "it is not empty", hint="give an empty folder")
    except OSError as err:
        raise MountFailed(
            str(directory), err.strerror or str(err), hint="give a folder that exists and is empty"
        ) from err
    return directory
