"""A home with a repository and an image protected in it: what tests of exports, mounts and restores start from."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.bootstrap import Appliance
from appliance.services import repositories
from appliance.services.backup.service import BackupService
from appliance.settings import load
from imaging.points import Point

MIB = 1 << 20
NAME = "img"


@dataclass(frozen=True, slots=True)
class Protected:
    appliance: Appliance
    image: Path
    content: bytes
    point: Point


def patchwork(size_bytes: int, seed: int = 1) -> bytes:
    """Data that compresses, data that does not, and holes of many sizes; the end is data."""
    rng = random.Random(seed)
    content = bytearray(size_bytes)
    position = 0
    while position < size_bytes:
        length = rng.choice((512, 4096, 70_000, 300_000, 2 * MIB))
        kind = rng.randrange(3)
        stop = min(position + length, size_bytes)
        if kind == 0:
            content[position:stop] = rng.randbytes(stop - position)
        elif kind == 1:
            content[position:stop] = (b"compressible %d " % position * (length // 12 + 1))[: stop - position]
        position = stop
    content[-100:] = rng.randbytes(100)
    return bytes(content)


@contextmanager
def new_appliance(home: Path) -> Iterator[Appliance]:
    """An appliance on a home that gets a repository of its own."""
    settings = load({"STRONGROOM_HOME": str(home)})
    keys: list[str] = []
    repositories.init(settings, None, os.environ["STRONGROOM_PASSPHRASE"], keys.append)
    with Appliance(settings) as appliance:
        yield appliance


@contextmanager
def protected_image(home: Path, size_bytes: int = 24 * MIB + 4096) -> Iterator[Protected]:
    """One raw image, backed up once under the name `img`."""
    with new_appliance(home) as appliance:
        image = home / "source.raw"
        content = patchwork(size_bytes)
        image.write_bytes(content)
        point = BackupService(appliance).run_image(image, "raw", NAME).point
        yield Protected(appliance, image, content, point)


def nbd_copy(uri: str, target: Path) -> bytes:
    """What an export holds, by libnbd's own tool."""
    subprocess.run(["nbdcopy", uri, str(target)], check=True, timeout=120)
    return target.read_bytes()


def command_lines() -> bytes:
    """Of all processes that there are, as everybody sees them."""
    words = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            words.append(line.read_bytes())
    return b"".join(words)
