"""An image that somebody else has open."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imaging.source import NbdSource
from tests.lab.listening import wait_listening


@contextmanager
def held_open(image: Path, image_format: str, listen: Path) -> Iterator[None]:
    """By a qemu-nbd that may write to it. It listens first, and opens the image then: it greets once it has the image,
    and its lock."""
    holder = subprocess.Popen(["qemu-nbd", "-t", "-f", image_format, "-k", str(listen), str(image)])
    try:
        wait_listening(listen, holder)
        NbdSource(listen, connections=1).close()
        yield
    finally:
        holder.terminate()
        holder.wait()
