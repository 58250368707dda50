"""Mending what the repository can mend by itself: index objects, out of the packs that they listed, and small objects
that this appliance remembers.

Rules: an index object that cannot be read is set aside, as it is, and never thrown away; it goes only after what it
listed counts again. Packs are listed again whosever they were: one that nothing needs is collected like any other, and
one of a run that is still going on is waited for, as its lease is older than any epoch that could condemn it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from imaging import running
from imaging.envelope import ObjectType
from imaging.errors import Damaged, ImagingError, NotAuthentic, ObjectMissing
from imaging.index_objects import decode_index, lease_of
from imaging.packs import listed_packs, pack_name, read_table
from imaging.places import PackRows
from imaging.remembered import ASIDE, Remembered

if TYPE_CHECKING:
    from imaging.collecting import Progress
    from imaging.repository import Repository
    from imaging.running import RunContext

_PACKS_AT_ONCE: Final = 256


@dataclass(frozen=True, slots=True)
class Repaired:
    """`set_aside`: names of the index objects that could not be read. `unreadable`: packs whose own tables cannot be
    read either, each with the reason; what they hold is lost unless it is stored again. `put_back`: names of manifests
    and ends of leases that are as they were."""

    set_aside: tuple[str, ...]
    relisted_packs: int
    unreadable: tuple[tuple[str, str], ...]
    put_back: tuple[str, ...] = ()


class Repair:
    """One repair. Borrows everything."""

    def __init__(self, repository: Repository, context: RunContext, progress: Progress) -> None:
        self._repository = repository
        self._context = context
        self._objects = context.objects
        self._store = context.objects.store
        self._progress = progress
        self._unreadable: list[tuple[str, str]] = []

    def look(self) -> tuple[str, ...]:
        """The index objects that cannot be read; changes nothing. StoreError, WrongVersion."""
        return tuple(self._read()[0])

    def remembered(self) -> tuple[str, ...]:
        """The manifests and ends of leases that would be put back; changes nothing. StoreError."""
        return tuple(Remembered(self._objects, self._context.clock).lost())

    def mend(self) -> Repaired:
        """SeriesBusy while a collection runs; Fenced; Damaged where the condemned list cannot be read; WrongVersion,
        StoreError."""
        with running.begin(self._context, self._repository.collection_series, None, running.COLLECTION) as run:
            put_back = Remembered(self._objects, self._context.clock).put_back()
            broken, listed = self._read()
            if not broken:
                return Repaired((), 0, (), put_back)
            condemned = running.newest_epoch(self._objects)[1]
            missing = {
                pack: size_bytes
                for pack, size_bytes in listed_packs(self._store).items()
                if pack not in listed and pack not in condemned
            }
            relisted = 0
            for part in self._tables(missing):
                run.put_index(part)
                relisted += len(part)
            for name in broken:
                self._store.put(ASIDE + name, [self._store.get(name)])
            run.check()
            run.conclude()
        for name in broken:  # what they listed counts again
            self._store.delete(name)
        self._repository.refresh_index()
        return Repaired(tuple(broken), relisted, tuple(self._unreadable), put_back)

    def _read(self) -> tuple[list[str], set[bytes]]:
        """Names of the index objects that are damaged, and the packs that those list which count: what others list may
        go with them."""
        broken: list[str] = []
        listed: set[bytes] = set()
        for each in list(self._store.list("index/")):
            lease = lease_of(each.name)
            if lease is None:
                continue  # whatever that is, it is left alone
            try:
                packs = decode_index(self._objects.read(ObjectType.INDEX, each.name).body, each.name)
                if self._counts(lease):
                    listed.update(entry.pack for entry in packs)
            except ObjectMissing:
                continue  # of an abandoned run, removed since it was listed
            except Damaged as error:
                self._progress.note(str(error))
                broken.append(each.name)
        return broken, listed

    def _counts(self, lease: str) -> bool:
        try:
            return self._context.leases.standing(lease).counts
        except Damaged:
            return False  # verify names the lease

    def _tables(self, packs: dict[bytes, int]) -> Iterator[list[PackRows]]:
        self._progress.start("tables of packs", sum(packs.values()))
        part: list[PackRows] = []
        for pack, size_bytes in packs.items():
            try:
                part.append(read_table(self._store, self._repository.keys, pack_name(pack), size_bytes))
            except (Damaged, NotAuthentic, ObjectMissing) as error:
                self._cannot_read(pack, error)
            self._progress.advance(size_bytes)
            if len(part) == _PACKS_AT_ONCE:
                yield part
                part = []
        if part:
            yield part
        self._progress.finish()

    def _cannot_read(self, pack: bytes, error: ImagingError) -> None:
        self._unreadable.append((pack_name(pack), str(error)))
        self._progress.note(str(error))
