"""What is in the golden repository: every disk and file of its restore points, from a seeded generator.

Rule: the content is a function of labels alone, by BLAKE3's extendable output, so that it is the same everywhere and
for ever; nothing here may change while repository-v1 is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from imaging.extents import ByteRange, align_out, merge
from imaging.source import PIECE_BYTES, BlockStatus

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
PAGE: Final = 4096
REGION: Final = 16 * MIB

Piece = tuple[int, bytes]


def noise(label: str, length: int) -> bytes:
    """Bytes that do not compress."""
    return blake3(f"strongroom golden {label}".encode()).digest(length=length)


def text(label: str, length: int) -> bytes:
    """Bytes that compress well: numbered lines."""
    lines = b"".join(b"%s: line %d of a log that nobody reads\n" % (label.encode(), n) for n in range(length // 30 + 1))
    return lines[:length]


@dataclass(frozen=True, slots=True)
class Disk:
    """A sparse disk: `pieces` are sorted and apart from one another; the rest is zeros."""

    size_bytes: int
    pieces: tuple[Piece, ...]

    def read(self, offset: int, length: int) -> bytes:
        found = bytearray(length)
        for start, data in self.pieces:
            first, stop = max(start, offset), min(start + len(data), offset + length)
            if first < stop:
                found[first - offset : stop - offset] = data[first - start : stop - start]
        return bytes(found)

    def changed(self, *changes: Piece) -> Disk:
        """The disk after these were written to it."""
        ranges = merge([ByteRange(start, start + len(data)) for start, data in (*self.pieces, *changes)])
        pieces: list[Piece] = []
        for item in ranges:
            content = bytearray(self.read(item.start, item.length))
            for start, data in changes:
                if item.start <= start < item.stop:
                    content[start - item.start : start - item.start + len(data)] = data
            pieces.append((item.start, bytes(content)))
        return Disk(self.size_bytes, tuple(pieces))


class DiskSource:
    """A disk as ingest_disk reads it: gaps are told to be zero; `changes` as a dirty bitmap of 64 KiB would state
    them."""

    def __init__(self, disk: Disk, changes: Sequence[Piece] = ()) -> None:
        self._disk = disk
        self.size_bytes = disk.size_bytes
        self.piece_bytes = PIECE_BYTES
        dirty = merge([ByteRange(start, start + len(data)) for start, data in changes])
        self._dirty = align_out(dirty, 64 * KIB, disk.size_bytes)

    def status(self, start: int, stop: int) -> BlockStatus:
        zero: list[ByteRange] = []
        position = start
        for first, data in (*self._disk.pieces, (stop, b"")):
            if first > position:
                zero.append(ByteRange(position, min(first, stop)))
            position = max(position, first + len(data))
            if position >= stop:
                break
        dirty = [ByteRange(max(r.start, start), min(r.stop, stop)) for r in self._dirty]
        return BlockStatus(zero, [r for r in dirty if r.start < r.stop])

    def read(self, requests: Sequence[tuple[int, memoryview]]) -> None:
        for offset, view in requests:
            view[:] = self._disk.read(offset, len(view))


def _edges(at: int) -> tuple[Piece, ...]:
    """Zero runs of 15 pages (data) and of 16 (a hole) between data, and a zero page amid data."""
    first, second, third = (noise(f"edge {n}", 5 * PAGE) for n in range(3))
    return ((at, first), (at + 20 * PAGE, second), (at + 41 * PAGE, third[:PAGE] + bytes(PAGE) + third[: 2 * PAGE]))


SHARED: Final = noise("on both machines", 40 * KIB)

SYSTEM: Final = Disk(
    20 * MIB + 1234,
    (
        (0, text("boot", 200 * KIB)),
        (1 * MIB, SHARED),
        *_edges(2 * MIB),
        (REGION - 2 * PAGE, noise("across two regions", 6 * PAGE)),
        (20 * MIB + 1234 - 3000, noise("up to the last byte", 3000)),
    ),
)

DATA_REGIONS: Final = 260
DATA: Final = Disk(
    4 * GIB + 48 * MIB + 5000,
    (
        (0, text("table", 10 * KIB)),
        (255 * REGION + 3 * PAGE, noise("last region below the first inner node", 2 * PAGE)),
        (256 * REGION, text("table", 10 * KIB)),
        (259 * REGION, noise("last region", 5000)),
    ),
)

SYSTEM_CHANGES: Final[tuple[Piece, ...]] = (
    (1 * MIB + 2 * PAGE, noise("a changed page", PAGE)),
    (64 * KIB, bytes(PAGE)),
)
DATA_CHANGES: Final[tuple[Piece, ...]] = ((256 * REGION + 1 * MIB, noise("a new row", 3000)),)
DELETED_CHANGES: Final[tuple[Piece, ...]] = ((5 * MIB, noise("only on the deleted point", 8 * KIB)),)
FENCED_CHANGES: Final[tuple[Piece, ...]] = ((6 * MIB, noise("only on the fenced point", 8 * KIB)),)

SYSTEM_LATER: Final = SYSTEM.changed(*SYSTEM_CHANGES)
DATA_LATER: Final = DATA.changed(*DATA_CHANGES)

NVRAM: Final = Disk(528 * KIB, ((0, noise("variables", 2 * KIB) + b"\xff" * (526 * KIB)),))
EMPTY: Final = Disk(9 * KIB, ())
IMAGE: Final = Disk(3 * MIB + 17, ((0, text("image", 50 * KIB)), (1 * MIB, SHARED), (3 * MIB, noise("tail", 17))))

POINTS: Final[dict[str, dict[str, Disk]]] = {
    "vm full": {"vda": SYSTEM, "vdb": DATA, "nvram": NVRAM, "tpm/tpm2-00.permall": EMPTY},
    "vm incremental": {"vda": SYSTEM_LATER, "vdb": DATA_LATER, "nvram": NVRAM, "tpm/tpm2-00.permall": EMPTY},
    "image": {"disk": IMAGE},
}
"""The restore points that count, and each of their disks and files."""
