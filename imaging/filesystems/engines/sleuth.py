"""FAT and exFAT by the Sleuth Kit (pytsk3), which also reads single files of ext for their engine.

What it shows beyond the file system's own (deleted entries, the volume's label, tables and orphans as files) is left
out. FAT has local times without a zone: they are taken for UTC.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, cast

import pytsk3

from imaging.filesystems.engines import Content, Number, Stat
from imaging.filesystems.entries import Kind
from imaging.filesystems.windows import Window

_LABEL = b" (Volume Label Entry)"
_TABLES = (b"$ALLOC_BITMAP", b"$UPCASE_TABLE")  # of exFAT, shown as files


class _Image(pytsk3.Img_Info):  # type: ignore[misc]  # pytsk3 has no types
    def __init__(self, volume: Window) -> None:
        self._volume = volume
        super().__init__(url="", type=pytsk3.TSK_IMG_TYPE_EXTERNAL)

    def close(self) -> None:
        """Nothing is its own."""

    def read(self, offset: int, length: int) -> bytes:
        return self._volume.pread(offset, length)

    def get_size(self) -> int:
        return self._volume.size_bytes


class _File:
    """What of a file object its reader uses."""

    def __init__(self, file: pytsk3.File, size_bytes: int) -> None:
        self._file = file
        self._size_bytes = size_bytes
        self._at = 0

    def seek(self, offset: int) -> int:
        self._at = offset
        return offset

    def read(self, length: int) -> bytes:
        length = min(length, self._size_bytes - self._at)
        found = bytes(self._file.read_random(self._at, length)) if length > 0 else b""
        self._at += len(found)
        return found


class Sleuth:
    def __init__(self, volume: Window) -> None:
        self._image = _Image(volume)
        self._fs = pytsk3.FS_Info(self._image)
        self.root = int(self._fs.info.root_inum)

    def children(self, folder: Number) -> Iterator[tuple[str, Kind | None, Number]]:
        for each in self._fs.open_dir(inode=folder):
            name = each.info.name
            if name is None or int(name.flags) & int(pytsk3.TSK_FS_NAME_FLAG_UNALLOC):
                continue
            if int(name.type) in (int(pytsk3.TSK_FS_NAME_TYPE_VIRT), int(pytsk3.TSK_FS_NAME_TYPE_VIRT_DIR)):
                continue
            raw = bytes(name.name)
            if raw in (b".", b"..") or (folder == self.root and (raw.endswith(_LABEL) or raw in _TABLES)):
                continue
            folder_type = int(name.type) == int(pytsk3.TSK_FS_NAME_TYPE_DIR)
            yield (
                raw.decode("utf-8", "surrogateescape"),
                Kind.FOLDER if folder_type else Kind.FILE,
                int(name.meta_addr),
            )

    def stat(self, number: Number) -> Stat:
        meta = self._fs.open_meta(inode=number).info.meta
        folder = int(meta.type) in (int(pytsk3.TSK_FS_META_TYPE_DIR), int(pytsk3.TSK_FS_META_TYPE_VIRT_DIR))
        modified_ns = int(meta.mtime) * 1_000_000_000 + int(meta.mtime_nano) if meta.mtime else None
        return Stat(Kind.FOLDER if folder else Kind.FILE, 0 if folder else int(meta.size), modified_ns)

    def content(self, number: Number) -> Content:
        file = self._fs.open_meta(inode=number)
        size_bytes = int(file.info.meta.size)
        return Content(cast("BinaryIO", _File(file, size_bytes)), size_bytes)
