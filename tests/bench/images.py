"""The disks that are backed up: made once per work folder, and the same for every tool.

day0 is an ext4 disk full of real files with free space; day1 is day0 with a share of its 64 KiB blocks touched by
4 KiB writes at random places; other is a second machine: the same files in another layout, and random data of its own.
`spread_qcow2` makes sparse disks whose data is cut from day0, so that it compresses and repeats as real data does.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import cryptography

from tests.bench.measure import BenchError, run

BLOCK_BYTES = 65536
PAGE_BYTES = 4096
MIB = 1 << 20
_MARK = "done"


@dataclass(frozen=True, slots=True)
class Workload:
    tree: str
    size_mib: int
    noise_mib: int
    share: float
    seed: int


FULL = Workload(tree="/usr/lib", size_mib=6144, noise_mib=256, share=0.01, seed=7)
# A package that is installed with the project: everywhere, and small.
QUICK = Workload(tree=os.path.dirname(cryptography.__file__), size_mib=192, noise_mib=8, share=0.01, seed=7)


@dataclass(frozen=True, slots=True)
class Images:
    day0: Path
    day1: Path
    other: Path


def make(work: Path, workload: Workload) -> Images:
    """Make the disks, unless this folder has them."""
    images = Images(work / "day0.raw", work / "day1.raw", work / "other.raw")
    mark = work / _MARK
    if mark.exists() and _made_as(mark, images, workload):
        return images
    mark.unlink(missing_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    rng = random.Random(workload.seed)
    # Drawn for both, although only the second disk gets its noise: the sequence decides which blocks day1 touches.
    for _ in range(workload.noise_mib):
        rng.randbytes(MIB)
    _mkfs(images.day0, workload.size_mib, Path(workload.tree))
    copy = work / "tree"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    try:
        run(["cp", "-a", f"{workload.tree}/.", f"{copy}/"])
        with (copy / "noise").open("wb") as noise:
            for _ in range(workload.noise_mib):
                noise.write(rng.randbytes(MIB))
        _mkfs(images.other, workload.size_mib, copy, "-O", "^flex_bg")
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    run(["cp", "--sparse=always", str(images.day0), str(images.day1)])
    blocks = (workload.size_mib * MIB) // BLOCK_BYTES
    with images.day1.open("r+b") as image:
        for block in rng.sample(range(blocks), int(blocks * workload.share)):
            image.seek(block * BLOCK_BYTES + PAGE_BYTES * rng.randrange(BLOCK_BYTES // PAGE_BYTES))
            image.write(rng.randbytes(PAGE_BYTES))
    mark.write_text(json.dumps(asdict(workload)))
    return images


def _made_as(mark: Path, images: Images, workload: Workload) -> bool:
    files = (images.day0, images.day1, images.other)
    if not all(file.exists() and file.stat().st_size == workload.size_mib * MIB for file in files):
        return False
    text = mark.read_text()
    return not text or json.loads(text) == asdict(workload)  # an empty mark: size alone has to tell


def _mkfs(path: Path, size_mib: int, tree: Path, *options: str) -> None:
    path.unlink(missing_ok=True)
    with path.open("wb") as image:
        image.truncate(size_mib * MIB)
    try:
        run(["mkfs.ext4", "-q", "-F", *options, "-d", str(tree), str(path)])
    except BenchError as err:
        raise BenchError(f"{tree} does not fit a disk of {size_mib} MiB: name another with --tree\n{err}") from err


def data_bytes(path: Path) -> int:
    """What a sparse file occupies."""
    return path.stat().st_blocks * 512


@dataclass(frozen=True, slots=True)
class Spread:
    """A sparse disk: pieces of data of one size, at random places (of 64 KiB alignment)."""

    size_bytes: int
    piece_bytes: int
    offsets: tuple[int, ...]

    @property
    def data_bytes(self) -> int:
        return self.piece_bytes * len(self.offsets)


def spread(size_bytes: int, data_bytes: int, piece_bytes: int, seed: int) -> Spread:
    slots = size_bytes // piece_bytes
    chosen = random.Random(seed).sample(range(slots), data_bytes // piece_bytes)
    return Spread(size_bytes, piece_bytes, tuple(slot * piece_bytes for slot in sorted(chosen)))


def spread_qcow2(path: Path, plan: Spread, content: Path) -> None:
    """A new qcow2 file as planned; its data are consecutive pieces of `content`'s, from the start again if need be."""
    raw = path.with_suffix(".making")
    try:
        with content.open("rb") as given, raw.open("wb") as made:
            made.truncate(plan.size_bytes)
            position = 0
            for offset in plan.offsets:
                piece = bytearray()
                while len(piece) < plan.piece_bytes:
                    position = _next_data(given.fileno(), position)
                    block = os.pread(given.fileno(), min(BLOCK_BYTES, plan.piece_bytes - len(piece)), position)
                    position += len(block)
                    piece += block
                os.pwrite(made.fileno(), piece, offset)
        run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(path)])
    finally:
        raw.unlink(missing_ok=True)


def _next_data(file: int, position: int) -> int:
    try:
        return os.lseek(file, position, os.SEEK_DATA)
    except OSError as err:
        if err.errno != errno.ENXIO or position == 0:
            raise
        return os.lseek(file, 0, os.SEEK_DATA)


def changed_blocks(plan: Spread, share: float, seed: int) -> list[int]:
    """Offsets of 64 KiB blocks, a share of the whole disk: half of them where there is data, half anywhere."""
    rng = random.Random(seed)
    wanted = int(plan.size_bytes * share) // BLOCK_BYTES
    per_piece = plan.piece_bytes // BLOCK_BYTES
    data = [offset + i * BLOCK_BYTES for offset in plan.offsets for i in range(per_piece)]
    chosen = set(rng.sample(data, min(wanted // 2, len(data))))
    blocks = plan.size_bytes // BLOCK_BYTES
    while len(chosen) < wanted:
        chosen.add(rng.randrange(blocks) * BLOCK_BYTES)
    return sorted(chosen)
