"""The index of an open repository: opened when it is first asked for, brought up to date, made again when it breaks.

Rules: whoever has the index waits for nobody: bringing it up to date, looking for what is lost, and reading are under
locks of their own, always taken in that order. What a reader finds to be lost is marked here and passed on to all.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from imaging import running
from imaging.clock import Clock
from imaging.errors import (
    Damaged,
    ImagingError,
    IndexUnavailable,
    NoSpace,
    ObjectMissing,
    StoreError,
    WrongVersion,
)
from imaging.index import ChunkIndex
from imaging.index_access import translated
from imaging.leases import Leases
from imaging.objects import SealedObjects
from imaging.places import Location, PackState
from imaging.reconciling import Reconciled, Said, read_unlisted_packs, reconcile
from imaging.verdicts import DAMAGED, MISSING, Verdict, Verdicts

_log = logging.getLogger(__name__)
_TABLES_EVERY_S: Final = 60.0
_Result = TypeVar("_Result")


class IndexKeeper:
    """Thread-safe. Borrows everything; owns the index until close()."""

    def __init__(self, objects: SealedObjects, leases: Leases, clock: Clock, folder: Path) -> None:
        self._objects = objects
        self._leases = leases
        self._clock = clock
        self._folder = folder
        self.verdicts = Verdicts(objects, clock)
        self._temporary = contextlib.ExitStack()
        self._looking = threading.RLock()
        self._refreshing = threading.RLock()
        self._lock = threading.Lock()
        self._index: ChunkIndex | None = None
        self._looks_begun = 0
        self._last_look = 0
        self._tables_read_s = float("-inf")

    @property
    def index(self) -> ChunkIndex:
        """The index as it is; opened and brought up to date if it is not open yet."""
        with self._lock:
            found = self._index
        if found is not None:
            return found
        self.refresh()
        with self._lock:
            if self._index is None:
                raise IndexUnavailable(str(self._folder), "it was closed")
            return self._index

    @property
    def is_open(self) -> bool:
        with self._lock:
            return self._index is not None

    def close(self) -> None:
        with self._looking, self._refreshing:
            with self._lock:
                index, self._index = self._index, None
            if index is not None:
                index.close()
            self._temporary.close()

    # Bringing it up to date

    def refresh(self, condemned: frozenset[bytes] = frozenset()) -> Reconciled:
        """Brings the index up to date with the store; nothing of `condemned` is relied on, whatever the newest list
        says. One that turns out to be broken is made again, and one that cannot be kept in the cache folder (full, or
        open elsewhere in this process) in a temporary one."""
        with self._refreshing:
            failure: ImagingError | None = None
            for lasting in (True, True, False):
                try:
                    return self._reconcile(self._opened(lasting), condemned)
                except (IndexUnavailable, NoSpace) as error:
                    _log.warning("making the index cache again: %s", error)
                    failure = error
                    self._drop()
            raise failure or IndexUnavailable(str(self._folder), "it cannot be opened")

    def _opened(self, lasting: bool) -> ChunkIndex:
        with self._lock:
            if self._index is None:
                folder = self._folder if lasting else self._temporary_folder()
                self._index = ChunkIndex.open(folder, self._objects.keys.repository_id)
            return self._index

    def _temporary_folder(self) -> Path:
        with translated(tempfile.gettempdir()):
            made = tempfile.TemporaryDirectory(prefix="strongroom-index-", ignore_cleanup_errors=True)
        return Path(self._temporary.enter_context(made))

    def _drop(self) -> None:
        with self._lock:
            index, self._index = self._index, None
        if index is not None:
            try:
                index.discard()
            except ImagingError as error:
                _log.warning("what is left of it stays there: %s", error)

    def _reconcile(self, index: ChunkIndex, condemned: frozenset[bytes]) -> Reconciled:
        said = Said(condemned | self._newly_condemned(), self.verdicts.packs())
        done = reconcile(index, self._objects, self._leases, said)
        for loss in done.damaged:
            _log.warning("%s; its packs are read by their own tables where a chunk is missing", loss)
        return done

    def _newly_condemned(self) -> frozenset[bytes]:
        """The newest list. One that cannot be read stops no reader; a run has read it itself, under its lease."""
        try:
            return running.newest_epoch(self._objects)[1]
        except (Damaged, StoreError, WrongVersion) as error:
            _log.warning("what is condemned cannot be read, so no new run can begin: %s", error)
            return frozenset()

    # For readers

    def locate_many(self, ids: Sequence[bytes]) -> list[list[Location]]:
        return self._with_index(lambda index: index.locate_many(ids))

    def size_of(self, pack: bytes) -> int | None:
        """How long a pack is, as far as the index knows it."""
        return self._with_index(lambda index: index.size_of(pack))

    def has_losses(self) -> bool:
        return self._with_index(ChunkIndex.has_losses)

    def damaged(self) -> frozenset[bytes]:
        """The packs on which there is a verdict, and those that only this cache knows to be damaged."""
        return self.verdicts.packs() | self._with_index(ChunkIndex.damaged)

    def _with_index(self, action: Callable[[ChunkIndex], _Result]) -> _Result:
        index = self.index
        try:
            return action(index)
        except IndexUnavailable:
            self.refresh()  # it broke, or another thread has replaced it meanwhile
            return action(self.index)

    def look_again(self) -> None:
        """A blob is missing or damaged wherever it was thought to be: it may have been stored or moved a moment ago.

        Those who ask at once are served by one look that began after they asked. Only what index objects cannot say is
        looked for in the packs' tables, and, as a guest may ask for a lost chunk a thousand times a second, not more
        often than once a minute while they say the same.
        """
        asked = self._looks_begun
        with self._looking:
            if self._last_look > asked:
                return
            self._looks_begun += 1
            this = self._looks_begun
            done = self.refresh()
            now = self._clock.monotonic_s()
            if done.added or done.dropped or now - self._tables_read_s >= _TABLES_EVERY_S:
                self._tables_read_s = now
                read_unlisted_packs(self.index, self._objects.store, self._objects.keys)
            self._last_look = this

    def lost(self, identity: bytes, place: Location, error: ImagingError) -> None:
        """A reader could not have a blob where it should be: from now on runs store anew what its pack held, as after
        verify() has found it. What may pass says nothing of the pack."""
        if isinstance(error, ObjectMissing):
            if place.state in (PackState.LIVE, PackState.DAMAGED) and place.pack not in self._newly_condemned():
                self.found_bad(Verdict(place.pack, MISSING, "a reader did not find it", None))
        elif isinstance(error, Damaged) and place.state in (PackState.LIVE, PackState.CONDEMNED):
            reason = f"a reader could not open blob {identity.hex()}"
            self.found_bad(Verdict(place.pack, DAMAGED, reason, frozenset({identity})))

    def back(self, place: Location) -> None:
        """A pack that was taken for gone is there."""
        self._marked(place.pack, lambda index: index.returned([place.pack]))

    # What is found out about packs

    def found_bad(self, verdict: Verdict, replace: bool = False) -> None:
        """Nothing comes to rely on the pack any more: here, and as far as the verdict can be written, anywhere."""
        pack = verdict.pack
        told = self.verdicts.pass_on(verdict, replace)

        def mark(index: ChunkIndex) -> None:
            if told:
                index.judged([pack])
            if verdict.found == MISSING:
                index.set_states({pack: PackState.GONE})
            elif not told:
                index.set_states({pack: PackState.DAMAGED})

        self._marked(pack, mark)

    def found_good(self, pack: bytes) -> None:
        """The pack was read whole, and all of it opens."""
        if self.verdicts.take_back(pack):
            self._marked(pack, lambda index: index.set_states({pack: PackState.LIVE}))

    def _marked(self, pack: bytes, action: Callable[[ChunkIndex], None]) -> None:
        try:
            action(self.index)
        except ImagingError as error:
            _log.warning("pack %s cannot be marked in the index: %s", pack.hex(), error)
