"""Under which name a file of a host is written, before it has its own.

Why one that follows from its own: who removes a file removes with it what a killed write of it left.
"""

from __future__ import annotations

import hashlib
import os
import posixpath


def part_of(path: str) -> str:
    """In the same folder; short, however long the file's name is."""
    folder, name = posixpath.split(path)
    return posixpath.join(folder, f".strongroom-{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}")
