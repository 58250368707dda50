"""Sealed objects that never change, kept near: manifests and the ends of leases.

Rule: nothing relies on it. What it gives is as hostile as what the store gives, a folder that cannot be written is no
failure, and it may be thrown away at any time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from pathlib import Path

from blake3 import blake3

_log = logging.getLogger(__name__)


class ObjectCache:
    """Files in `folder`, named by the hash of the object's name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._complained = False

    def get(self, name: str) -> bytes | None:
        try:
            return self._path(name).read_bytes()
        except OSError:
            return None

    def put(self, name: str, data: bytes) -> None:
        path = self._path(name)
        temporary = path.with_name(f".{secrets.token_hex(8)}")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                temporary.write_bytes(data)
                os.replace(temporary, path)
            except OSError:
                with contextlib.suppress(OSError):
                    temporary.unlink()
                raise
        except OSError as error:
            if not self._complained:
                self._complained = True
                _log.warning(
                    "the cache in %s cannot be written, so objects are read again each time: %s", path.parent, error
                )

    def forget(self, name: str) -> None:
        with contextlib.suppress(OSError):
            self._path(name).unlink()

    def _path(self, name: str) -> Path:
        digest = blake3(name.encode()).hexdigest()
        return self._folder / digest[:2] / digest[2:40]
