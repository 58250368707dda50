"""What goes wrong within a file system."""

from __future__ import annotations

from typing import Final

from imaging.errors import ImagingError

_OTHERWISE: Final = "'strongroom mount' shows the whole disk as a file, for other tools"


class FilesError(ImagingError):
    """Base class."""


class VolumeNotFound(FilesError):
    def __init__(self, volume: str, known: list[str]) -> None:
        super().__init__(
            f"there is no volume {volume!r}", hint=f"There are: {', '.join(known) or 'none that can be read'}."
        )
        self.volume = volume


class EntryNotFound(FilesError):
    def __init__(self, path: str) -> None:
        super().__init__(f"there is no {path!r}", hint="List the folder above it to see what there is.")
        self.path = path


class PathRefused(FilesError):
    def __init__(self, path: str) -> None:
        super().__init__(f"{path!r} is no path within a volume", hint="Name folders and a file, and none of them '..'.")
        self.path = path


class NotThatKind(FilesError):
    """A folder was asked for where a file is, or the other way round."""

    def __init__(self, path: str, kind: str, wanted: str, hint: str = "") -> None:
        super().__init__(f"{path!r} is a {kind}, not a {wanted}", hint=hint)
        self.path = path


class Unreadable(FilesError):
    """Damaged, hostile, or of a kind that is not read here."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"{what} cannot be read: {reason}", hint=f"{_OTHERWISE[:1].upper()}{_OTHERWISE[1:]}.")
        self.what = what
        self.reason = reason


class ReaderEnded(FilesError):
    """The process that reads the file system is no more: it was at its limits, or broke."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the file system cannot be read: {reason}",
            hint=f"It may be damaged, or made to do harm; other volumes are not touched by it. {_OTHERWISE}.",
        )
        self.reason = reason
