"""Tables of partitions, sound, half lost and hostile."""

from __future__ import annotations

import struct
import zlib

from imaging.filesystems.partitions import Partition, partitions
from imaging.filesystems.windows import CachedDisk

SECTOR = 512
SECTORS = 4096


def disk_of(content: bytearray) -> CachedDisk:
    return CachedDisk(lambda offset, length: bytes(content[offset : offset + length]), len(content))


def table(content: bytearray, at: int, *entries: tuple[int, int, int]) -> None:
    for slot, (kind, start, count) in enumerate(entries):
        place = at * SECTOR + 446 + 16 * slot
        content[place : place + 16] = struct.pack("<B3xB3xII", 0, kind, start, count)
    content[at * SECTOR + 510 : at * SECTOR + 512] = b"\x55\xaa"


def header(content: bytearray, place: int, entries_at: int, entries: bytes, entry_bytes: int = 128) -> None:
    fields = [b"EFI PART", 0x10000, 92, 0, 0, place, 0, 34, SECTORS - 34, bytes(16), entries_at]
    fields += [len(entries) // 128, entry_bytes, zlib.crc32(entries)]
    fields[3] = zlib.crc32(struct.pack("<8sIIIIQQQQ16sQIII", *fields))
    content[place * SECTOR : place * SECTOR + 92] = struct.pack("<8sIIIIQQQQ16sQIII", *fields)
    content[entries_at * SECTOR : entries_at * SECTOR + len(entries)] = entries


def gpt(entry_bytes: int = 128) -> bytearray:
    content = bytearray(SECTORS * SECTOR)
    table(content, 0, (0xEE, 1, SECTORS - 1))
    used = [b"L" * 16 + b"U" * 16 + struct.pack("<QQQ72s", *span, 0, b"") for span in ((64, 127), (128, 4000))]
    entries = used[0] + bytes(128) + used[1] + bytes(128)
    header(content, 1, 2, entries, entry_bytes)
    header(content, SECTORS - 1, SECTORS - 33, entries)
    return content


WANTED = (Partition(1, 64 * SECTOR, 64 * SECTOR), Partition(3, 128 * SECTOR, 3873 * SECTOR))


def test_gpt_with_its_last_sectors_and_by_its_second_header() -> None:
    assert partitions(disk_of(gpt())) == WANTED
    for damaged in (slice(SECTOR, SECTOR + 8), slice(SECTOR + 80, SECTOR + 84), slice(2 * SECTOR, 2 * SECTOR + 9)):
        content = gpt()
        content[damaged] = bytes(damaged.stop - damaged.start)
        assert partitions(disk_of(content)) == WANTED
    assert partitions(disk_of(gpt(entry_bytes=0))) == WANTED, "a first header whose entries have no size"


def test_mbr_numbers_logical_partitions_and_ends_a_loop() -> None:
    content = bytearray(SECTORS * SECTOR)
    table(content, 0, (0x83, 64, 64), (0x0F, 1024, 2048))
    table(content, 1024, (0x83, 8, 100), (0x05, 512, 512))
    table(content, 1536, (0x82, 8, 50), (0x05, 0, 512))  # back to the first
    starts = [
        (each.number, each.start // SECTOR, each.size_bytes // SECTOR) for each in partitions(disk_of(content)) or ()
    ]
    assert starts == [(1, 64, 64), (5, 1032, 100), (6, 1544, 50)]


def test_a_file_system_over_the_whole_disk_is_no_table() -> None:
    content = bytearray(SECTORS * SECTOR)
    assert partitions(disk_of(content)) is None
    table(content, 0, (0x83, 64, 64))
    content[3:11] = b"NTFS    "
    assert partitions(disk_of(content)) is None
    assert partitions(disk_of(bytearray(100))) is None
