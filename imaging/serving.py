"""One disk of a restore point, opened for an NBD server: what runs inside nbdkit, without nbdkit.

Rules: opened after the server forked (LMDB must not cross a fork); secrets are read from files, never given as
arguments; a read that fails is an error that names the bytes, never zeros, and is told once, however often a guest
asks again.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

from imaging.errors import ImagingError, PointNotFound
from imaging.extents import Extent

if TYPE_CHECKING:
    from imaging.manifest import DiskEntry, Manifest

_WINDOW_BYTES: Final = 256 << 20
_EXTENTS_MAX: Final = 4096
_EXTENTS_PATIENCE_S: Final = 0.05
_COMPLAINTS_MAX: Final = 1000


class Disk(Protocol):
    """What is served: `imaging.reader.DiskReader`."""

    size_bytes: int

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer, or raise."""

    def extents(self, offset: int, length: int) -> list[Extent]:
        """What of a range is a hole."""


@dataclass(frozen=True, slots=True)
class ServedDisk:
    """Which disk to serve, in paths and names: all of it may be seen in a process list. `location` is the file that
    says where the repository is (storage/locations.py). `cache_bytes` are of memory; up to `chunk_cache_bytes` of a
    repository that is far away may be kept in `cache`."""

    location: Path
    machine_key: Path
    cache: Path
    point: str
    disk: str
    cache_bytes: int = 64 << 20
    chunk_cache_bytes: int = 0

    def arguments(self) -> list[str]:
        """As `key=value` for the plugin."""
        return [
            f"location={self.location}",
            f"machine_key={self.machine_key}",
            f"cache={self.cache}",
            f"point={self.point}",
            f"disk={self.disk}",
            f"cache_bytes={self.cache_bytes}",
            f"chunk_cache_bytes={self.chunk_cache_bytes}",
        ]

    @classmethod
    def parse(cls, given: dict[str, str]) -> ServedDisk:
        """Raises ValueError, naming what is missing or not known."""
        known = ("location", "machine_key", "cache", "point", "disk", "cache_bytes", "chunk_cache_bytes")
        for key in given:
            if key not in known:
                raise ValueError(f"there is no parameter {key!r}")
        for key in known[:-2]:
            if not given.get(key):
                raise ValueError(f"the parameter {key} is missing")
        return cls(
            Path(given["location"]),
            Path(given["machine_key"]),
            Path(given["cache"]),
            given["point"],
            given["disk"],
            int(given.get("cache_bytes", str(64 << 20))),
            int(given.get("chunk_cache_bytes", "0")),
        )


class DiskService:
    """Reads and extents of one disk, as an NBD server asks for them. Thread-safe. Borrows the disk."""

    def __init__(self, disk: Disk, label: str, complain: Callable[[str], None] | None = None) -> None:
        self._disk = disk
        self._label = label
        self._complain = complain or _to_stderr
        self._lock = threading.Lock()
        self._told: set[str] = set()
        self.size_bytes = disk.size_bytes

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer. Raises OSError (EIO) after telling what failed."""
        try:
            self._disk.read_into(offset, buffer)
        except (ImagingError, ValueError, OSError) as err:
            self._tell(f"reading {len(buffer)} bytes at {offset}", err)
            raise OSError(5, f"{len(buffer)} bytes at {offset} cannot be read") from err

    def extents(self, offset: int, length: int, one: bool) -> list[tuple[int, int, bool]]:
        """(offset, length, zero) from `offset` on; may end early, which NBD allows, but never empty."""
        try:
            return list(self._extents(offset, min(offset + length, self.size_bytes), one))
        except (ImagingError, ValueError, OSError) as err:
            self._tell(f"looking for holes at {offset}", err)
            raise OSError(5, f"the extents at {offset} cannot be read") from err

    def _extents(self, start: int, stop: int, one: bool) -> Iterator[tuple[int, int, bool]]:
        deadline = monotonic() + _EXTENTS_PATIENCE_S
        held: Extent | None = None
        count, position = 0, start
        while position < stop:
            for extent in self._disk.extents(position, min(_WINDOW_BYTES, stop - position)):
                if held is not None and held.zero == extent.zero:
                    held = Extent(held.start, held.length + extent.length, held.zero)
                    continue
                if held is not None:
                    yield held.start, held.length, held.zero
                    count += 1
                    if one:
                        return
                held = extent
            position += min(_WINDOW_BYTES, stop - position)
            if count >= _EXTENTS_MAX or monotonic() > deadline:
                break
        if held is not None:
            yield held.start, held.length, held.zero

    def _tell(self, doing: str, err: Exception) -> None:
        text = f"{doing} of {self._label} failed: {err}"
        with self._lock:
            if text in self._told or len(self._told) >= _COMPLAINTS_MAX:
                return
            self._told.add(text)
        self._complain(text)


def open_disk(served: ServedDisk) -> DiskService:
    """Open the repository by its machine key and find the disk. Raises ImagingError, OSError.

    What it opens lives as long as the process: nbdkit has no moment at which closing would be of use.
    """
    from imaging.reader import DiskReader
    from imaging.repository import Appliance, Repository
    from imaging.slots import MachineKey
    from imaging.storage.locations import open_store, pace_of, read_location

    location = read_location(served.location)
    repository = Repository.open(
        open_store(location),
        MachineKey(served.machine_key.read_bytes()),
        cache=served.cache,
        appliance=Appliance(bytes(16), socket.gethostname()),  # it holds no lease, so nobody ever sees this
        pace=pace_of(location, served.chunk_cache_bytes),
    )
    entry = find_entry(repository.point(served.point).manifest, served.disk)
    disk = DiskReader(
        repository.blobs, entry.root, entry.size_bytes, cache_bytes=served.cache_bytes,
        ahead_bytes=repository.pace.ahead_bytes,
    )  # fmt: skip
    return DiskService(disk, f"disk {served.disk} of restore point {served.point}")


def find_entry(manifest: Manifest, name: str) -> DiskEntry:
    """A disk of a point. Raises PointNotFound."""
    entry = manifest.disk(name)
    if entry is None:
        raise PointNotFound(f"{manifest.id} with a disk {name!r}")
    return entry


def _to_stderr(text: str) -> None:
    sys.stderr.write(f"strongroom export: {text}\n")
    sys.stderr.flush()
