"""Packs for tests of the chunk index, and another process that has it open, which one process can only once."""

from __future__ import annotations

import hashlib
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from imaging import index_segments
from imaging.index import ChunkIndex
from imaging.places import PackRows, pack_place

REPOSITORY = bytes(range(16))


def identity(number: int) -> bytes:
    return hashlib.sha256(b"id %d" % number).digest()


def pack_hash(number: int) -> bytes:
    return hashlib.sha256(b"pack %d" % number).digest()


def pack_of(number: int, blobs: list[int], size_bytes: int = 1 << 20) -> PackRows:
    rows = b"".join(
        identity(blob) + struct.pack("<Q", pack_place(64 + at * 100, 100, 4096, bool(blob % 2)))
        for at, blob in enumerate(blobs)
    )
    return PackRows(pack_hash(number), pack_hash(number)[::-1], size_bytes, number % 2, rows)


def small_segments(patch: pytest.MonkeyPatch, small: int, at_once: int) -> None:
    """Few entries make several segments, and several parts when they are put together."""
    patch.setattr(index_segments, "_SMALL", small)
    patch.setattr(index_segments, "_MERGED_AT_ONCE", at_once)
    patch.setattr(index_segments, "_IDS_IN_PIECE", 4)


class OtherProcess:
    """Does what it is told with the index in a folder. Ends with close() and end()."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-c", "from tests.unit.index_process import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def open(self, folder: Path) -> None:
        self.call("open", folder)

    def close(self) -> None:
        self.call("close")

    def call(self, method: str, *arguments: Any) -> Any:
        """What the method of its index returns, or raises."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        pickle.dump((method, arguments), self._child.stdin)
        self._child.stdin.flush()
        good, result = pickle.load(self._child.stdout)
        if not good:
            raise AssertionError(f"{method} in the other process: {result}")
        return result

    def end(self) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        self._child.stdout.close()
        self._child.wait()


def serve() -> None:
    index: ChunkIndex | None = None
    with pytest.MonkeyPatch.context() as patched:
        small_segments(patched, 0, 8)
        while True:
            try:
                method, arguments = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            try:
                result = None
                if method == "open":
                    index = ChunkIndex.open(arguments[0], REPOSITORY)
                elif index is not None:
                    result = getattr(index, method)(*arguments)
                    index = None if method == "close" else index
                answer = True, result
            except Exception as error:  # noqa: BLE001 - told to the parent, which fails
                answer = False, repr(error)
            pickle.dump(answer, sys.stdout.buffer)
            sys.stdout.buffer.flush()
