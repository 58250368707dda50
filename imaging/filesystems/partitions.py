"""Where partitions are: GPT, also by its second header, and MBR with logical partitions. Pure, over bytes that are
hostile.

The rule: a table counts as far as it makes sense (checksums, places within the disk), a loop ends, and numbers are
those that Linux gives. Parsers that were tried lose a partition's last sector, do not know the second header, and
make 128 partitions of an entry size of 0.

UEFI specification 2.10, chapter 5.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from imaging.filesystems.windows import Bytes

_SECTORS: Final = (512, 4096)
_ENTRIES_MAX: Final = 1024
_LOGICAL_MAX: Final = 256
_EXTENDED: Final = frozenset({0x05, 0x0F, 0x85})
_PROTECTIVE: Final = 0xEE
_BOOT_RECORDS: Final = (b"NTFS    ", b"EXFAT   ", b"MSDOS", b"MSWIN", b"mkfs.fat", b"mkdosfs", b"-FVE-FS-")
_HEADER: Final = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY: Final = struct.Struct("<16s16sQQQ72s")


@dataclass(frozen=True, slots=True)
class Partition:
    number: int
    start: int
    size_bytes: int


def partitions(disk: Bytes) -> tuple[Partition, ...] | None:
    """In order of their numbers; None: the disk has no table, and may be one volume as a whole."""
    sector = disk.pread(0, 512)
    if len(sector) < 512 or sector[510:] != b"\x55\xaa" or _is_boot_record(sector):
        return None
    entries = list(_table(sector))
    if any(kind == _PROTECTIVE for _, kind, _, _ in entries):
        found = _gpt(disk)
        if found is not None:
            return found
    for sector_bytes in _SECTORS:
        inside = [each for each in _mbr(disk, entries, sector_bytes) if each.start < disk.size_bytes]
        if inside:
            return tuple(inside)
    return None


def _is_boot_record(sector: bytes) -> bool:
    return any(sector[3:].startswith(name) for name in _BOOT_RECORDS) or b"FAT" in (sector[54:57], sector[82:85])


def _table(sector: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(slot from 1, type, first sector, sectors) of those that are in use."""
    for slot in range(4):
        entry = sector[446 + 16 * slot : 462 + 16 * slot]
        start, count = struct.unpack("<II", entry[8:])
        if entry[0] in (0x00, 0x80) and entry[4] and count:
            yield slot + 1, entry[4], start, count


def _mbr(disk: Bytes, entries: list[tuple[int, int, int, int]], sector_bytes: int) -> Iterator[Partition]:
    for slot, kind, start, count in entries:
        if kind not in _EXTENDED and kind != _PROTECTIVE and start:
            yield Partition(slot, start * sector_bytes, count * sector_bytes)
    number = 5
    for _, kind, start, _ in entries:
        if kind in _EXTENDED:
            for first, count in _logical(disk, start, sector_bytes):
                yield Partition(number, first * sector_bytes, count * sector_bytes)
                number += 1


def _logical(disk: Bytes, base: int, sector_bytes: int) -> Iterator[tuple[int, int]]:
    """(first sector, sectors): a chain of tables, each with one partition and the place of the next table."""
    at, seen = base, set[int]()
    while at not in seen and len(seen) < _LOGICAL_MAX:
        seen.add(at)
        sector = disk.pread(at * sector_bytes, 512)
        if len(sector) < 512 or sector[510:] != b"\x55\xaa":
            return
        following = None
        for _, kind, start, count in _table(sector):
            if kind in _EXTENDED:
                following = base + start
            elif start:
                yield at + start, count
        if following is None:
            return
        at = following


def _gpt(disk: Bytes) -> tuple[Partition, ...] | None:
    for sector_bytes in _SECTORS:
        for place in (1, disk.size_bytes // sector_bytes - 1):
            entries = _entries(disk, place, sector_bytes)
            if entries is not None:
                return tuple(_used(entries, disk, sector_bytes))
    return None


def _entries(disk: Bytes, place: int, sector_bytes: int) -> list[bytes] | None:
    """What a header at this sector leads to, if both are what their checksums say."""
    raw = disk.pread(place * sector_bytes, sector_bytes)
    if len(raw) < _HEADER.size:
        return None
    signature, _, length, checksum, _, _, _, _, _, _, first, count, entry_bytes, entries_checksum = _HEADER.unpack(
        raw[: _HEADER.size]
    )
    if signature != b"EFI PART" or not _HEADER.size <= length <= sector_bytes:
        return None
    if zlib.crc32(raw[:16] + bytes(4) + raw[20:length]) != checksum:
        return None
    if not 0 < count <= _ENTRIES_MAX or not _ENTRY.size <= entry_bytes <= 4096:
        return None
    table = disk.pread(first * sector_bytes, count * entry_bytes)
    if len(table) < count * entry_bytes or zlib.crc32(table) != entries_checksum:
        return None
    return [table[at : at + entry_bytes] for at in range(0, len(table), entry_bytes)]


def _used(entries: list[bytes], disk: Bytes, sector_bytes: int) -> Iterator[Partition]:
    for number, entry in enumerate(entries, 1):
        kind, _, first, last, _, _ = _ENTRY.unpack(entry[: _ENTRY.size])
        if kind != bytes(16) and 0 < first <= last and first * sector_bytes < disk.size_bytes:
            yield Partition(number, first * sector_bytes, (last + 1 - first) * sector_bytes)
