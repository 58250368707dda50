"""ext2, ext3 and ext4, by dissect.extfs; files that are mapped by indirect blocks by the Sleuth Kit.

What dissect.extfs 3.15 gets wrong, and is put right: uid and gid of 16 bits; times before 1970 and after 2038; entries
of the last inode, and those in the last 12 bytes of a folder; of files mapped by indirect blocks, holes of 4 MiB and
more, which it reads from block 0. Not read: what is encrypted (it would be returned as it is), and what lies within
inodes (inline_data) where that is more than 60 bytes.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from io import BytesIO
from typing import Any, BinaryIO, cast

from dissect.extfs.extfs import ExtFS
from dissect.util.stream import RunlistStream

from imaging.filesystems.engines import Content, NotRead, Number, Stat, holes_of, kind_of
from imaging.filesystems.engines.sleuth import Sleuth
from imaging.filesystems.entries import LINK_BYTES_MAX, Kind
from imaging.filesystems.windows import Window

_ROOT = 2
_ENCRYPTED, _EXTENTS, _INLINE = 0x800, 0x80000, 0x10000000
_INLINE_BYTES = 60
_MODIFIED_EXTRA_END = 12  # of i_extra_isize: with i_mtime_extra
_TYPES = {1: Kind.FILE, 2: Kind.FOLDER, 3: Kind.OTHER, 4: Kind.OTHER, 5: Kind.OTHER, 6: Kind.OTHER, 7: Kind.LINK}
_FILETYPE = 0x2


class Ext:
    root = _ROOT

    def __init__(self, volume: Window) -> None:
        self._volume = volume
        self._fs = ExtFS(volume.file())
        self._typed = bool(self._fs.sb.s_feature_incompat & _FILETYPE)
        self._sleuth: Sleuth | None = None

    def children(self, folder: Number) -> Iterator[tuple[str, Kind | None, Number]]:
        node = self._fs.get_inode(folder)
        if node.inode.i_flags & _INLINE:
            raise NotRead("its entries lie within its inode (inline_data), which is not read here")
        if node.inode.i_flags & _ENCRYPTED:
            raise NotRead("it is encrypted (fscrypt), and its key is not known here")
        block_bytes = self._fs.block_size
        content = self._content(node)
        for _ in range(0, content.size_bytes, block_bytes):
            yield from self._block(content.file.read(block_bytes))

    def _block(self, block: bytes) -> Iterator[tuple[str, Kind | None, Number]]:
        at = 0
        while at + 8 <= len(block):
            number, length, name_bytes, kind = struct.unpack_from("<IHBB", block, at)
            if length < 8:
                break
            if number and name_bytes and at + 8 + name_bytes <= len(block):
                name = block[at + 8 : at + 8 + name_bytes].decode("utf-8", "surrogateescape")
                yield name, _TYPES.get(kind) if self._typed else None, number
            at += length

    def stat(self, number: Number) -> Stat:
        node = self._fs.get_inode(number)
        inode = node.inode
        kind = kind_of(stat.S_IFMT(inode.i_mode)) or Kind.OTHER
        return Stat(
            kind,
            node.size if kind in (Kind.FILE, Kind.LINK) else 0,
            self._modified_ns(inode),
            stat.S_IMODE(inode.i_mode),
            inode.i_uid | inode.i_uid_high << 16,
            inode.i_gid | inode.i_gid_high << 16,
            self._link(node) if kind is Kind.LINK else "",
            self._problem(node) if kind is Kind.FILE else "",
        )

    def content(self, number: Number) -> Content:
        node = self._fs.get_inode(number)
        problem = self._problem(node)
        if problem:
            raise NotRead(problem)
        return self._content(node)

    def _content(self, node: Any) -> Content:
        if node.inode.i_flags & _INLINE:
            return Content(BytesIO(bytes(node.inode.i_block)[: node.size]), node.size)
        if not node.inode.i_flags & _EXTENTS:
            if self._sleuth is None:
                self._sleuth = Sleuth(self._volume)
            return self._sleuth.content(node.inum)
        runs = node.dataruns()
        file = cast("BinaryIO", RunlistStream(self._volume.file(), runs, node.size, self._fs.block_size))
        return Content(file, node.size, holes_of(runs, self._fs.block_size, node.size))

    def _problem(self, node: Any) -> str:
        if node.inode.i_flags & _ENCRYPTED:
            return "it is encrypted (fscrypt), and its key is not known here"
        if node.inode.i_flags & _INLINE and node.size > _INLINE_BYTES:
            return "it lies within its inode (inline_data), which is not read here"
        return ""

    def _link(self, node: Any) -> str:
        if node.inode.i_flags & _ENCRYPTED:
            return ""
        if node.size < _INLINE_BYTES:
            raw = bytes(node.inode.i_block)[: node.size]
        else:
            raw = self._content(node).file.read(min(node.size, LINK_BYTES_MAX))
        return raw.decode("utf-8", "surrogateescape")

    def _modified_ns(self, inode: Any) -> int:
        """Seconds are signed, and two bits of what is extra count further. linux/fs/ext4/ext4.h."""
        seconds = inode.i_mtime - (1 << 32) if inode.i_mtime >> 31 else inode.i_mtime
        extra = 0
        if self._fs.sb.s_inode_size > 128 and inode.i_extra_isize >= _MODIFIED_EXTRA_END:
            extra = inode.i_mtime_extra
        return int((seconds + ((extra & 3) << 32)) * 1_000_000_000 + (extra >> 2))
