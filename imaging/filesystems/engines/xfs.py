"""XFS, by dissect.xfs.

What dissect.xfs 3.13 gets wrong, and is put right: extents that were allocated and never written it returns as what the
disk held before, not as zeros; times before 1970. Not read: files on a real-time device.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from dissect.util.stream import RunlistStream
from dissect.xfs.c_xfs import c_xfs
from dissect.xfs.xfs import XFS, fsb_to_bb

from imaging.filesystems.engines import Content, NotRead, Number, Stat, holes_of, kind_of
from imaging.filesystems.entries import LINK_BYTES_MAX, Kind
from imaging.filesystems.windows import Window

_REALTIME = 0x1  # XFS_DIFLAG_REALTIME
_NS = 1_000_000_000


class Xfs:
    def __init__(self, volume: Window) -> None:
        self._volume = volume
        self._fs = XFS(volume.file())
        self.root = int(self._fs.sb.sb_rootino)

    def children(self, folder: Number) -> Iterator[tuple[str, Kind | None, Number]]:
        for node in self._fs.get_inode(folder).iterdir():
            yield node.filename, kind_of(node._filetype), int(node.inum)

    def stat(self, number: Number) -> Stat:
        node = self._fs.get_inode(number)
        inode = node.inode
        kind = kind_of(stat.S_IFMT(inode.di_mode)) or Kind.OTHER
        return Stat(
            kind,
            int(node.size) if kind in (Kind.FILE, Kind.LINK) else 0,
            _modified_ns(node),
            stat.S_IMODE(inode.di_mode),
            int(inode.di_uid),
            int(inode.di_gid),
            node.link[:LINK_BYTES_MAX] if kind is Kind.LINK else "",
            _problem(node) if kind is Kind.FILE else "",
        )

    def content(self, number: Number) -> Content:
        node = self._fs.get_inode(number)
        problem = _problem(node)
        if problem:
            raise NotRead(problem)
        if node.inode.di_format == c_xfs.xfs_dinode_fmt.XFS_DINODE_FMT_LOCAL:
            return Content(node.open(), int(node.size))
        runs = self._runs(node)
        block_bytes = int(self._fs.block_size)
        file = cast("BinaryIO", RunlistStream(self._volume.file(), runs, node.size, block_bytes))
        return Content(file, int(node.size), holes_of(runs, block_bytes, int(node.size)))

    def _runs(self, node: Any) -> list[tuple[int | None, int]]:
        runs: list[tuple[int | None, int]] = []
        at = 0
        for offset, block, count, unwritten in node._iter_blocks():
            if offset < at:
                raise NotRead("its extents overlap")
            if offset > at:
                runs.append((None, offset - at))
            group, inside = fsb_to_bb(block, self._fs.sb.sb_agblklog)
            runs.append((None if unwritten else group * self._fs.sb.sb_agblocks + inside, count))
            at = offset + count
        blocks = -(-node.size // self._fs.block_size)
        if at < blocks:
            runs.append((None, blocks - at))
        return runs


def _problem(node: Any) -> str:
    return "it lies on a real-time device" if node.inode.di_flags & _REALTIME else ""


def _modified_ns(node: Any) -> int:
    found = int(node.mtime_ns)
    seconds = found // _NS
    before_1970 = not node._has_bigtime() and seconds >> 31
    return found - (_NS << 32) if before_1970 else found
