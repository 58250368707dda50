"""Every failure that imaging reports.

Rule: an error carries its facts as attributes, str() is one sentence that names the thing, `hint` is the way out, and
whether trying again may help is declared on the class, never guessed at by the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final


class ImagingError(Exception):
    """Base class: `str(error)` says what happened to what, `error.hint` what to do about it (may be empty)."""

    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Damaged(ImagingError):
    """An object's bytes do not parse or do not authenticate."""

    def __init__(self, name: str, detail: str, *, hint: str = "") -> None:
        super().__init__(
            f"{name} is damaged: {detail}",
            hint=hint or "run 'strongroom repository verify' to see which restore points it touches",
        )
        self.name = name
        self.detail = detail


class NotAuthentic(Damaged):
    """Intact bytes that this key does not open: a wrong secret, or an object under another's name."""


class ObjectMissing(ImagingError):
    def __init__(self, name: str) -> None:
        super().__init__(
            f"the repository has no object {name}",
            hint="run 'strongroom repository verify' to see which restore points need it",
        )
        self.name = name


class ObjectExists(ImagingError):
    """create() lost: the name is taken."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the object {name} exists already")
        self.name = name


class InvalidName(ImagingError):
    """A name that no store may be asked for (our own mistake, or hostile input)."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name!r} is not the name of an object")
        self.name = name


class StoreError(ImagingError):
    """The store refused an operation; repeating it will not help by itself."""

    def __init__(self, operation: str, name: str, detail: str, *, hint: str = "") -> None:
        super().__init__(
            f"cannot {operation} {name}: {detail}",
            hint=hint or "check that the repository's file system is mounted, writable and healthy",
        )
        self.operation = operation
        self.name = name
        self.detail = detail


class StoreUnavailable(StoreError):
    """A passing failure: the same call, with the data written again from memory, may succeed."""

    retryable = True


class NoSpace(StoreError):
    """The store is full."""

    def __init__(
        self, operation: str, name: str, detail: str = "no space is left on the repository's file system"
    ) -> None:
        super().__init__(
            operation,
            name,
            detail,
            hint="free or add space where the repository is, or delete restore points and collect",
        )


class AddressRefused(ImagingError):
    """Where an object store is said to be cannot be, or must not be, one. Nothing was sent there."""

    def __init__(self, address: str, detail: str, *, hint: str = "") -> None:
        super().__init__(f"{address} is refused: {detail}", hint=hint or "give it as https://HOST or https://HOST:PORT")
        self.address = address
        self.detail = detail


class NotARepository(ImagingError):
    def __init__(self, where: str, detail: str = "it has no configuration") -> None:
        super().__init__(
            f"{where} is not a repository: {detail}",
            hint="check the path, or make a repository there with 'strongroom init'",
        )
        self.where = where


class RepositoryExists(ImagingError):
    def __init__(self, where: str, detail: str) -> None:
        super().__init__(
            f"cannot make a repository in {where}: {detail}", hint="choose an empty place, or adopt what is there"
        )
        self.where = where


class StoreUnsuitable(ImagingError):
    """The store does not keep the promise that the protocols rely on (create-if-absent)."""

    def __init__(self, where: str, detail: str) -> None:
        super().__init__(
            f"{where} cannot hold a repository: {detail}", hint="use a local file system, NFS 4 or an object store"
        )
        self.where = where


class WrongVersion(ImagingError):
    def __init__(self, name: str, found: int) -> None:
        super().__init__(
            f"{name} is written in format version {found}, and this program reads version 1",
            hint="use the version of strongroom that wrote the repository, or a newer one",
        )
        self.name = name
        self.found = found


class WrongKey(ImagingError):
    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint or "try another passphrase, or the recovery key that was printed at 'init'")


class RecoveryKeyMalformed(ImagingError):
    """What was typed is no recovery key; the text itself is never repeated."""

    def __init__(self, detail: str) -> None:
        super().__init__(
            f"this is not a recovery key: {detail}",
            hint="a recovery key is SR1- and 14 groups of 4 letters and digits (A-Z, 2-7), as printed at 'init'",
        )
        self.detail = detail


class SlotNotFound(ImagingError):
    def __init__(self, slot_id: str) -> None:
        super().__init__(f"the repository has no key slot {slot_id}", hint="see 'strongroom repository key list'")
        self.slot_id = slot_id


class LastSlot(ImagingError):
    def __init__(self, slot_id: str) -> None:
        super().__init__(
            f"key slot {slot_id} is the last one that opens this repository",
            hint="add another key slot before removing it",
        )
        self.slot_id = slot_id


class SeriesBusy(ImagingError):
    """Another run holds the lease of this series, as far as this observer can tell."""

    def __init__(self, series: str, lease: str, holder: str, wait_s: float) -> None:
        super().__init__(
            f"a run of {holder} holds the lease {lease} of this machine's series {series}",
            hint=(
                "wait for that run to end"
                if wait_s <= 0
                else f"wait for that run to end; if it is dead, a new run may take over in {max(1, round(wait_s))} s"
            ),
        )
        self.series = series
        self.lease = lease
        self.holder = holder
        self.wait_s = wait_s


class Fenced(ImagingError):
    """This run's lease was ended by somebody else; nothing that it wrote counts."""

    def __init__(self, lease: str, by: str) -> None:
        super().__init__(
            f"the run's lease {lease} was ended by {by}, so its restore point does not count",
            hint="start the run again; if this repeats, look for an appliance that was suspended or cloned",
        )
        self.lease = lease
        self.by = by


class PointNotFound(ImagingError):
    def __init__(self, wanted: str) -> None:
        super().__init__(f"there is no restore point {wanted}", hint="see 'strongroom point list'")
        self.wanted = wanted


class PointAmbiguous(ImagingError):
    def __init__(self, wanted: str, matches: Sequence[str]) -> None:
        super().__init__(
            f"{wanted} fits {len(matches)} restore points: {', '.join(matches[:5])}{', …' if len(matches) > 5 else ''}",
            hint="give more digits of the id",
        )
        self.wanted = wanted
        self.matches = tuple(matches)


class StillReadable(ImagingError):
    """What seems damaged is not, or not for good."""

    def __init__(self, point: str, detail: str) -> None:
        super().__init__(
            f"restore point {point} is not damaged for good, so it is not deleted: {detail}",
            hint="try again later, or with the Strongroom that wrote it",
        )


class PointHeld(ImagingError):
    """A hold keeps the point from being deleted."""

    def __init__(self, point: str, purposes: Sequence[str]) -> None:
        super().__init__(
            f"restore point {point} is held for {', '.join(sorted(set(purposes)))}",
            hint="end what uses it (discard, umount) or lift its protection, then delete it",
        )
        self.point = point
        self.purposes = tuple(purposes)


class HoldNotFound(ImagingError):
    def __init__(self, hold_id: str) -> None:
        super().__init__(f"there is no hold {hold_id}", hint="see 'strongroom status'")
        self.hold_id = hold_id


class IndexUnavailable(ImagingError):
    """The index cache cannot be used; nothing is lost, as the repository holds everything that it says."""

    def __init__(self, where: str, detail: str, *, hint: str = "") -> None:
        super().__init__(
            f"the index cache in {where} cannot be used: {detail}",
            hint=hint or "delete that folder: it is made again from the repository",
        )
        self.where = where
        self.detail = detail


class SourceError(ImagingError):
    """An NBD source failed; what was asked for is never replaced by zeros."""

    def __init__(self, offset: int, length: int, detail: str, *, hint: str = "") -> None:
        super().__init__(f"reading {length} bytes at offset {offset} of the source failed: {detail}", hint=hint)
        self.offset = offset
        self.length = length
        self.detail = detail


class ChunkMissing(ImagingError):
    """No pack that is left holds this chunk or map node."""

    def __init__(self, id: bytes) -> None:
        super().__init__(
            f"no pack of the repository holds chunk {id.hex()}",
            hint="run 'strongroom repository verify' to see which restore points need it",
        )
        self.id = id


UNREADABLE: Final = (Damaged, ChunkMissing, ObjectMissing, StoreUnavailable)
"""As which of these it is told that a chunk or a map node cannot be read now."""


class BitmapLied(ImagingError):
    """A dirty bitmap calls clean what has changed: nothing that it says can be believed."""

    def __init__(self, offset: int, length: int, detail: str) -> None:
        super().__init__(
            f"the dirty bitmap is wrong about {length} bytes at offset {offset}: {detail}",
            hint="read the disk in full",
        )
        self.offset = offset
        self.length = length
        self.detail = detail


class CopyUnreadable(ImagingError):
    """What was just stored for a copy cannot be read back as it was."""

    def __init__(self, detail: str) -> None:
        super().__init__(
            f"what was just stored in the other repository does not read back right: {detail}",
            hint="nothing counts of this point there, and the next copy stores it anew; look after that storage first",
        )
        self.detail = detail


class ImageUnreadable(ImagingError):
    """QEMU's tools cannot open a disk image."""

    def __init__(self, path: str, detail: str) -> None:
        super().__init__(f"cannot open {path}: {detail}", hint="check the path, the stated format and the file itself")
        self.path = path
        self.detail = detail


class ImageRefused(ImagingError):
    """A disk image that leads to other files, or claims an impossible size: it may be hostile."""

    def __init__(self, path: str, detail: str) -> None:
        super().__init__(
            f"{path} is refused: {detail}",
            hint="if you trust it, make it stand alone first: qemu-img convert -f FORMAT -O qcow2 OLD NEW",
        )
        self.path = path
        self.detail = detail


class ParentMapLost(ImagingError):
    """The disk map that an incremental read would start from cannot be read."""

    def __init__(self, cause: ImagingError) -> None:
        super().__init__(
            f"the disk map of the previous restore point cannot be read: {cause}", hint="read the disk in full"
        )


class ExportFailed(ImagingError):
    """The server of a disk did not start, or does not end."""

    def __init__(self, label: str, detail: str, *, hint: str = "") -> None:
        super().__init__(f"{label} cannot be served: {detail}", hint=hint)
        self.label = label
        self.detail = detail


class MountFailed(ImagingError):
    """A disk could not be shown as a file, or the file is still in use."""

    def __init__(self, path: str, detail: str, *, hint: str = "") -> None:
        super().__init__(f"{path}: {detail}", hint=hint)
        self.path = path
        self.detail = detail


class TargetRefused(ImagingError):
    """What is to be written to is there already, is in use, or cannot hold the disk. Nothing was written."""

    def __init__(self, path: str, detail: str, *, hint: str = "") -> None:
        super().__init__(f"{path} cannot be restored to: {detail}", hint=hint)
        self.path = path
        self.detail = detail


class TargetFailed(ImagingError):
    """Writing to the target failed. A new file was removed again; what was overwritten in place is incomplete."""

    def __init__(self, path: str, detail: str, *, hint: str = "") -> None:
        super().__init__(
            f"writing {path} failed: {detail}", hint=hint or "make room or mend the target, then restore again"
        )
        self.path = path
        self.detail = detail
