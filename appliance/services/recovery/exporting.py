"""The exports under a recovered machine: started, found alive, started again, ended.

The rule: an export is always on the socket that the overlay names, is QEMU's to connect to, and outlives whoever
started it. It needs no hypervisor: a host whose libvirtd is away must not keep its machines paused.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from appliance import home
from appliance.models import RecoveryDisk, RecoveryRecord
from appliance.services.recovery.errors import OverlayGone
from imaging import export
from imaging.errors import ExportFailed
from imaging.export import Export, Listen, Owner
from imaging.serving import ServedDisk

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance


class RecoveryExports:
    """The exports of one recovery's disks that still need one. Borrows everything."""

    def __init__(self, appliance: Appliance, record: RecoveryRecord) -> None:
        self._appliance = appliance
        self._record = record
        self._launched: set[str] = set()

    @cached_property
    def _owner(self) -> Owner:
        """QEMU's user: the recovery's folder was made his."""
        try:
            found = Path(self._record.folder).stat()
        except OSError as err:
            raise OverlayGone(self._record.machine_name, self._record.folder) from err
        return Owner(found.st_uid, found.st_gid)

    def launch(self) -> int:
        """Start those that are dead, and wait for none; `ensure` does. Returns how many. ExportFailed."""
        dead = [disk for disk in self._needed() if not self._find(disk).alive()]
        for disk in dead:
            export.start(self._served(disk), self._listen(disk), outlives_caller=True)
            self._launched.add(disk.target)
        return len(dead)

    def ensure(self) -> int:
        """See that every export lives and is QEMU's to connect to. Returns how many had died. ExportFailed."""
        started = self.launch()
        for disk in self._needed():
            server = self._find(disk)
            # Whoever started it may have died before he handed the socket over.
            if disk.target in self._launched or not self._handed_over(disk):
                self._wait(disk, server)
                self._launched.discard(disk.target)
            server.trim_log()
        return started

    def stop(self) -> None:
        """End them all. ExportFailed, after all were tried."""
        stop_exports(self._record)

    def last_words(self) -> str:
        """What the exports complained of last."""
        said = (self._find(disk).last_words() for disk in self._needed())
        return "; ".join(dict.fromkeys(words for words in said if words))

    def _wait(self, disk: RecoveryDisk, server: Export) -> None:
        timeout_s = self._appliance.settings.recovery.export_start_timeout_s
        try:
            server.wait_ready(timeout_s)
        except ExportFailed:
            if not server.alive():
                raise
            # It lives and does not serve (its socket was removed, say): a new one takes its place.
            server.stop()
            export.start(self._served(disk), self._listen(disk), outlives_caller=True).wait_ready(timeout_s)

    def _handed_over(self, disk: RecoveryDisk) -> bool:
        try:
            return Path(disk.socket).stat().st_uid == self._owner.uid
        except FileNotFoundError:
            return False

    def _needed(self) -> list[RecoveryDisk]:
        return [disk for disk in self._record.disks if not disk.migrated]

    def _find(self, disk: RecoveryDisk) -> Export:
        return export.find(self._listen(disk), _label(self._record, disk))

    def _listen(self, disk: RecoveryDisk) -> Listen:
        return Listen(Path(disk.socket), owner=self._owner)

    def _served(self, disk: RecoveryDisk) -> ServedDisk:
        settings = self._appliance.settings
        return ServedDisk(
            location=home.write_location(settings),
            machine_key=settings.machine_key_file,
            cache=settings.cache_directory,
            point=self._record.point,
            disk=disk.target,
            cache_bytes=settings.recovery.cache_bytes,
            chunk_cache_bytes=settings.limits.chunk_cache_bytes,
        )


def stop_exports(record: RecoveryRecord) -> None:
    """End all exports of a recovery; its host need not answer. ExportFailed, after all were tried."""
    export.stop_all([export.find(Listen(Path(disk.socket)), _label(record, disk)) for disk in record.disks])


def _label(record: RecoveryRecord, disk: RecoveryDisk) -> str:
    return f"disk {disk.target} of {record.source_name}"
