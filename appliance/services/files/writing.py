"""What was taken, as a file of this machine.

The rule: it is whole under its name, or not there: written beside it first, with holes where zeros are. A link in its
place is replaced, never followed, and that only if the caller says so.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from appliance.services.files.errors import TargetTaken, TargetUnfit
from appliance.services.files.service import Taken
from appliance.services.files.tarring import plain
from imaging.filesystems.entries import is_name
from imaging.filesystems.session import Hole, Piece

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


def target_of(target: Path, taken: Taken) -> Path:
    """In a folder that exists, under its own name; else the target itself. TargetUnfit."""
    if not target.is_dir():
        return target
    if not is_name(taken.name):
        raise TargetUnfit(str(target), "the name cannot be used here", "Give a file with --to.")
    return target / taken.name


def check(path: Path, force: bool) -> None:
    """Before anything is read. TargetTaken, TargetUnfit."""
    if not path.parent.is_dir():
        raise TargetUnfit(str(path), f"there is no folder {path.parent}", "Make it first.")
    if os.path.lexists(path) and not force:
        raise TargetTaken(path)


def write(path: Path, taken: Taken, force: bool, advance: Callable[[int], None]) -> int:
    """The number of bytes. TargetTaken; OSError; FilesError, ImagingError."""
    check(path, force)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".strongroom-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            size_bytes = _fill(file, taken.pieces, advance)
            file.flush()
            os.fsync(file.fileno())
        if taken.entry.modified_ns is not None and taken.tar is None:
            with suppress(OSError, OverflowError):  # a moment that this file system cannot state
                os.utime(name, ns=(taken.entry.modified_ns, taken.entry.modified_ns))
        _name(name, path, force)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)
    return size_bytes


def pour(out: BinaryIO, pieces: Iterable[Piece], advance: Callable[[int], None]) -> None:
    """To where nothing can be left out."""
    for piece in pieces:
        for data in plain(piece):
            out.write(data)
            advance(len(data))
    out.flush()


def _fill(file: BinaryIO, pieces: Iterable[Piece], advance: Callable[[int], None]) -> int:
    at = 0
    for piece in pieces:
        if isinstance(piece, Hole):
            at += piece.length
            file.seek(at)
            advance(piece.length)
        else:
            file.write(piece)
            at += len(piece)
            advance(len(piece))
    file.truncate(at)
    return at


def _name(temporary: str, path: Path, force: bool) -> None:
    if force:
        os.replace(temporary, path)
        return
    try:
        os.link(temporary, path)
    except FileExistsError as err:
        raise TargetTaken(path) from err
    except OSError as err:
        if err.errno not in _NO_LINKS or os.path.lexists(path):
            raise
        os.replace(temporary, path)
