"""The volumes of a restore point's disks: partitions, logical volumes of LVM, whole disks.

The rule: names are those that Linux would give, as far as the disks' own names allow: `vda2`, `vg/home`, `vda`. What
cannot be read is named with its reason, and hinders nothing else. Runs in the worker alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO, Final

from dissect.volume.lvm.lvm2 import LVM2
from dissect.volume.lvm.physical import LVM2Device, parse_metadata

from imaging.filesystems.engines import Engine
from imaging.filesystems.engines.btrfs import BtrfsTree
from imaging.filesystems.engines.ext import Ext
from imaging.filesystems.engines.ntfs import Ntfs
from imaging.filesystems.engines.sleuth import Sleuth
from imaging.filesystems.engines.xfs import Xfs
from imaging.filesystems.entries import VOLUMES_MAX, Journal, Volume
from imaging.filesystems.kinds import EXT, LVM, Found, recognise
from imaging.filesystems.partitions import partitions
from imaging.filesystems.windows import CachedDisk, Stream, Window

_SECTOR_BYTES: Final = 512
_METADATA_BYTES_MAX: Final = 16 << 20
_HEADER_BYTES: Final = 512


@dataclass(slots=True)
class Place:
    """A volume, and where its bytes are."""

    volume: Volume
    bytes: Window | None
    found: Found


class Volumes:
    """Of these disks, by name."""

    def __init__(self, disks: Sequence[tuple[str, CachedDisk]]) -> None:
        self._disks = disks

    @cached_property
    def places(self) -> dict[str, Place]:
        found: dict[str, Place] = {}
        physical: list[tuple[str, Window]] = []
        for disk, data in self._disks:
            for name, window in _parts(disk, data):
                place = _place(name, disk, window)
                if len(found) < VOLUMES_MAX:
                    found[name] = place
                if place.found.kind == LVM:
                    physical.append((name, window))
        for place in _logical(physical, found):
            if len(found) < VOLUMES_MAX:
                found[place.volume.name] = place
        return found

    def engine(self, place: Place) -> Engine:
        """Opens what is on it. Raises whatever the parsers do."""
        kind, window = place.found.kind, place.bytes
        assert window is not None
        if kind in EXT:
            return Ext(window)
        if kind == "xfs":
            return Xfs(window)
        if kind == "ntfs":
            return Ntfs(window)
        if kind == "btrfs":
            same = [each.bytes for each in self.places.values() if each.found.identity == place.found.identity]
            return BtrfsTree([each for each in same if each is not None])
        return Sleuth(window)


def _parts(disk: str, data: CachedDisk) -> Iterator[tuple[str, Window]]:
    table = partitions(data)
    if table is None:
        yield disk, Window(data)
        return
    between = "p" if disk[-1:].isdigit() else ""
    for each in table:
        yield f"{disk}{between}{each.number}", Window(data, each.start, each.size_bytes)


def _place(name: str, disk: str, window: Window) -> Place:
    found = recognise(window)
    return Place(
        Volume(name, disk, found.kind, found.label, window.size_bytes, found.journal, found.problem), window, found
    )


class _Device(LVM2Device):  # type: ignore[misc]  # dissect's are typed as Any
    """A physical volume whose metadata may go over the end of their area to its beginning, where dissect.volume 3.18
    reads on behind it. `metadata` of one that has none is None."""

    @cached_property
    def metadata(self) -> dict[str, Any] | None:
        if not self._metadata_areas or not self._metadata_areas[0][1]:
            return None
        area, (place, *_) = self._metadata_areas[0]
        if not 0 < place.size <= _METADATA_BYTES_MAX or not _HEADER_BYTES <= place.offset < area.size:
            return None
        first = min(place.size, area.size - place.offset)
        self.fh.seek(area.start + place.offset)
        text = self.fh.read(first)
        if first < place.size:
            self.fh.seek(area.start + _HEADER_BYTES)
            text += self.fh.read(place.size - first)
        parsed: dict[str, Any] = parse_metadata(text.rstrip(b"\0").decode())
        return parsed


def _logical(physical: list[tuple[str, Window]], parts: dict[str, Place]) -> Iterator[Place]:
    groups: dict[str, list[_Device]] = {}
    for name, window in physical:
        try:
            device = _Device(window.file())
            (group,) = [key for key, value in (device.metadata or {}).items() if isinstance(value, dict)] or [""]
            groups.setdefault(group, []).append(device)
        except Exception as err:  # noqa: BLE001  # parsers of hostile data raise anything
            volume = parts[name].volume
            parts[name].volume = Volume(
                name, volume.disk, LVM, "", volume.size_bytes, volume.journal, f"its LVM cannot be read: {err}"
            )
    bare = groups.pop("", [])
    for group, devices in groups.items():
        yield from _volumes_of(group, devices, bare, physical, parts)


def _volumes_of(
    group: str, devices: list[_Device], bare: list[_Device], physical: list[tuple[str, Window]], parts: dict[str, Place]
) -> Iterator[Place]:
    newest = max(devices, key=lambda device: int((device.metadata or {})[group]["seqno"]))
    others = [device for device in (*devices, *bare) if device is not newest]
    disk = parts[physical[0][0]].volume.disk
    lvm = LVM2([newest, *others])
    extent_bytes = int(lvm.vg.extent_size) * _SECTOR_BYTES
    for logical in lvm.vg.lv:
        if not logical.is_visible:
            continue
        name = f"{group}/{logical.name}"
        size_bytes = sum(int(segment.extent_count) for segment in logical.segments) * extent_bytes
        try:
            _check_linear(logical)
            window = Window(Stream(_opened(logical), size_bytes))
            yield _place(name, disk, window)
        except Exception as err:  # noqa: BLE001
            problem = str(err) or type(err).__name__
            volume = Volume(name, disk, LVM, "", size_bytes, Journal.UNKNOWN, problem)
            yield Place(volume, None, Found(LVM, problem=problem))


def _opened(logical: Any) -> BinaryIO:
    file: BinaryIO = logical.open()
    return file


def _check_linear(logical: Any) -> None:
    """dissect.volume 3.18 takes sectors for extents where a volume is striped, and knows few other kinds."""
    for segment in logical.segments:
        if segment.type not in ("linear", "striped") or getattr(segment, "stripe_count", 1) != 1:
            kind = "striped" if segment.type == "striped" else segment.type
            raise ValueError(f"it is a logical volume of the kind {kind}, which is not read here")
