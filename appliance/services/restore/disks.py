"""Write one disk of a point: to a new file, to a block device, or over the disk that is still there.

The rule: what did not exist before appears whole or not at all; what is overwritten in place gets only the blocks that
differ, and only while nobody else has it open.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.progress import Progress
from appliance.services.exports import ExportService
from appliance.services.restore.damaged import telling_damage
from imaging import convert
from imaging.errors import TargetFailed, TargetRefused
from imaging.manifest import DiskEntry
from imaging.overwriting import overwriting
from imaging.restoring import DiskWriter, RawTarget, Restored

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from imaging.points import Point

_THREADS_MORE = 2  # than the settings' workers: one waits for the disk while the others compute


class DiskRestorer:
    """Borrows the appliance."""

    def __init__(self, appliance: Appliance, progress: Progress) -> None:
        self._appliance = appliance
        self._progress = progress

    def to(self, point: Point, entry: DiskEntry, target: Path, image_format: str, *, force: bool) -> Restored:
        """To a file that does not exist (or is replaced, with `force`), or to a block device (only with `force`).
        PartDamaged."""
        convert.check_format(image_format, entry.size_bytes, target)
        if _is_block_device(target):
            return self._to_device(entry, target, image_format, force)
        with convert.new_file(target, replace=force) as part:
            if image_format == "raw":
                return self._to_raw(entry, part, target)
            with (
                telling_damage(self._appliance.repository, entry, also=(TargetFailed,)),  # qemu-img met an I/O error
                self._stage(entry),
                ExportService(self._appliance).serve_point(point, entry, purpose="restore") as served,
            ):
                convert.convert(served.uri, part, image_format, entry.size_bytes, self._progress.advance)
            return Restored(part.stat().st_blocks * 512, 0, 0)

    def refuse_if_in_use(self, path: Path, image_format: str) -> None:
        """TargetRefused when anybody has the disk open, by QEMU's own locks."""
        with overwriting(path, image_format, 0, self._appliance.settings.run_directory):
            return

    def over(self, entry: DiskEntry, path: Path, image_format: str) -> Restored:
        """Over a disk that is there, whatever it holds: only what differs is written. TargetRefused, TargetFailed,
        PartDamaged."""
        folder = self._appliance.settings.run_directory
        repository = self._appliance.repository
        with (
            telling_damage(repository, entry),
            overwriting(path, image_format, entry.size_bytes, folder) as target,
            self._stage(entry),
        ):
            writer = DiskWriter(
                repository.blobs,
                repository.keys,
                target,
                compare=True,
                threads=self._threads,
                advance=self._progress.advance,
            )
            return writer.write(entry.root, entry.size_bytes)

    @contextmanager
    def _stage(self, entry: DiskEntry) -> Iterator[None]:
        """Told as finished only if it was."""
        self._progress.start(f"restoring {entry.name}", entry.size_bytes)
        yield
        self._progress.finish()

    @property
    def _threads(self) -> int:
        return self._appliance.settings.limits.workers + _THREADS_MORE

    def _to_raw(self, entry: DiskEntry, part: Path, target: Path) -> Restored:
        try:
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as err:
            raise TargetRefused(
                str(target), err.strerror or str(err), hint="choose a folder that may be written"
            ) from err
        try:
            try:
                os.ftruncate(descriptor, entry.size_bytes)
            except OSError as err:
                hint = "choose another file system, or another format"
                raise TargetRefused(str(target), err.strerror or str(err), hint=hint) from err
            with RawTarget(descriptor, str(target), blank=True) as raw:
                return self._write(entry, raw)
        finally:
            os.close(descriptor)

    def _to_device(self, entry: DiskEntry, target: Path, image_format: str, force: bool) -> Restored:
        if image_format != "raw":
            raise TargetRefused(str(target), "a block device takes raw only", hint="add --format raw")
        if not force:
            hint = "everything on it would be overwritten: say --force if that is meant"
            raise TargetRefused(str(target), "it exists already", hint=hint)
        try:
            descriptor = os.open(target, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
        except OSError as err:
            detail = "it is in use" if err.errno == errno.EBUSY else err.strerror or str(err)
            raise TargetRefused(str(target), detail, hint="unmount it, or choose another device") from err
        try:
            room = os.lseek(descriptor, 0, os.SEEK_END)
            if room < entry.size_bytes:
                detail = f"it holds {room} bytes, and the disk has {entry.size_bytes}"
                raise TargetRefused(str(target), detail, hint="choose a larger one")
            with RawTarget(descriptor, str(target), blank=False) as raw:
                restored = self._write(entry, raw)
            try:
                os.fsync(descriptor)
            except OSError as err:
                raise TargetFailed(str(target), err.strerror or str(err)) from err
            return restored
        finally:
            os.close(descriptor)

    def _write(self, entry: DiskEntry, target: RawTarget) -> Restored:
        repository = self._appliance.repository
        writer = DiskWriter(
            repository.blobs, repository.keys, target, threads=self._threads, advance=self._progress.advance
        )
        with telling_damage(repository, entry), self._stage(entry):
            return writer.write(entry.root, entry.size_bytes)


def _is_block_device(path: Path) -> bool:
    try:
        return stat.S_ISBLK(path.stat().st_mode)
    except OSError:
        return False
