"""Btrfs, by dissect.btrfs, from the top of all subvolumes on.

What dissect.btrfs 1.10 gets wrong, and is put right: times before 1970. A file of which it returns too little is an
error (`worker`). Not read: what only the log of fsync has.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import Any

from dissect.btrfs.btrfs import Btrfs
from dissect.btrfs.c_btrfs import FT_MAP
from dissect.btrfs.stream import ExtentStream

from imaging.filesystems.engines import Content, Number, Stat, kind_of
from imaging.filesystems.entries import LINK_BYTES_MAX, Kind
from imaging.filesystems.windows import Window

_INODE_BITS = 64
_NS = 1_000_000_000


class BtrfsTree:
    def __init__(self, volumes: list[Window]) -> None:
        self._fs = Btrfs([volume.file() for volume in volumes])
        top = self._fs.fs_tree
        self.root = _number(top.objectid, top.root.inum)

    def children(self, folder: Number) -> Iterator[tuple[str, Kind | None, Number]]:
        for name, node in self._node(folder).iterdir():
            if name not in (".", ".."):
                yield name, kind_of(FT_MAP.get(node._type)), _number(node.subvolume.objectid, node.inum)

    def stat(self, number: Number) -> Stat:
        node = self._node(number)
        inode = node.inode
        kind = kind_of(stat.S_IFMT(inode.mode)) or Kind.OTHER
        seconds = inode.mtime.sec - (1 << 64) if inode.mtime.sec >> 63 else inode.mtime.sec
        return Stat(
            kind,
            int(node.size) if kind in (Kind.FILE, Kind.LINK) else 0,
            int(seconds * _NS + inode.mtime.nsec),
            stat.S_IMODE(inode.mode),
            int(inode.uid),
            int(inode.gid),
            node.link[:LINK_BYTES_MAX] if kind is Kind.LINK else "",
        )

    def content(self, number: Number) -> Content:
        node = self._node(number)
        file = node.open()
        holes: list[tuple[int, int]] = []
        if isinstance(file, ExtentStream):
            at = 0
            for extent in file.extents:
                if (extent.disk_offset, extent.disk_length) == (0, 0) and at < node.size:
                    holes.append((at, min(extent.length, node.size - at)))
                at += extent.length
        return Content(file, int(node.size), tuple(holes))

    def _node(self, number: Number) -> Any:
        subvolume = self._fs.open_subvolume(number >> _INODE_BITS)
        return subvolume.inode(number & ((1 << _INODE_BITS) - 1))


def _number(subvolume: int, inode: int) -> Number:
    return subvolume << _INODE_BITS | inode
