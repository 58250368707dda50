"""From which share of garbage on a pack is emptied: what each threshold costs in copying and saves in space:
`python -m tests.bench.thresholds`.

A disk is backed up every night and kept for 30, collected every week; the product's own planner decides, on packs that
are rows and no bytes. Four months are let pass before anything is counted, and four are counted. Two kinds of
change: the same few places again and again, as databases have it, and places anywhere.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from imaging.collection import CollectionPlan, plan_collection
from imaging.holdings import Holdings, Trust
from imaging.ledger import Ledger
from imaging.packing import PACK_BYTES
from imaging.places import PackRows
from tests.bench.synthetic import CHUNK_BYTES, packs_of_chunks

_CHUNKS = 16_000
_SHARE_A_NIGHT = 0.02
_KEPT_NIGHTS = 30
_COLLECTED_EVERY = 7
_SETTLING_NIGHTS = 119
_COUNTED_NIGHTS = 119
THRESHOLDS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
HOT = {"a tenth of the disk takes nine tenths of the changes": (0.1, 0.9), "anywhere": (1.0, 1.0)}


@dataclass(slots=True)
class Counted:
    new: int = 0
    copied: int = 0
    overheads: list[float] = field(default_factory=list)


class Disk:
    """Chunks by number, each with the night in which it was overwritten. All of a pack's rows are one kind of blob."""

    def __init__(self, hot: tuple[float, float], seed: int) -> None:
        self._rng = random.Random(seed)
        self._hot = hot
        self._following = 0
        self.packs: dict[bytes, PackRows] = {}
        self.gone_since: dict[bytes, int] = {}
        self._place: list[bytes] = [b""] * _CHUNKS
        self.write(range(_CHUNKS), 0)

    def change(self, night: int) -> int:
        share, of_changes = self._hot
        hot = int(share * _CHUNKS)
        count = int(_SHARE_A_NIGHT * _CHUNKS)
        places = {
            self._rng.randrange(hot) if self._rng.random() < of_changes else self._rng.randrange(_CHUNKS)
            for _ in range(count)
        }
        self.write(sorted(places), night)
        return len(places)

    def write(self, places: range | list[int], night: int) -> None:
        ids = [self._rng.randbytes(32) for _ in places]
        for place, identity in zip(places, ids, strict=True):
            if self._place[place]:
                self.gone_since[self._place[place]] = night
            self._place[place] = identity
        self.store(ids)

    def store(self, ids: list[bytes]) -> None:
        for packs in packs_of_chunks(np.frombuffer(b"".join(ids), "V32"), self._rng):
            self.packs |= {pack.pack: pack for pack in packs}

    def is_needed(self, identity: bytes, night: int) -> bool:
        since = self.gone_since.get(identity)
        return since is None or since > night - _KEPT_NIGHTS

    def collect(self, night: int, threshold: float) -> int:
        """How many chunks were copied."""
        plan, needed = self._plan(night, threshold)
        copied = 0
        for group in plan.moved:
            ids = [each for pack in group for each in _ids(self.packs[pack]) if each in needed]
            copied += len(ids)
            self.store(ids)
        for pack in plan.condemned:
            del self.packs[pack]
        return copied

    def _plan(self, night: int, threshold: float) -> tuple[CollectionPlan, set[bytes]]:
        ledger = Ledger()
        ledger.add_object("index", 0, list(self.packs.values()))
        ledger.settle()
        holdings = Holdings(ledger, np.full(len(ledger.packs), Trust.WELL, np.uint8))
        every = [each for pack in self.packs.values() for each in _ids(pack)]
        marks = np.array([self.is_needed(each, night) for each in every], bool)
        needed = {each for each, wanted in zip(every, marks.tolist(), strict=True) if wanted}
        placed = holdings.placed(marks, nothing=False, kept=True)
        return plan_collection(holdings, placed, pack_bytes=PACK_BYTES, repack_below=threshold), needed

    def overhead(self, night: int) -> float:
        every = [self.is_needed(each, night) for pack in self.packs.values() for each in _ids(pack)]
        return len(every) / sum(every) - 1


def _ids(pack: PackRows) -> Iterator[bytes]:
    return (pack.rows[at : at + 32] for at in range(0, len(pack.rows), 40))


def measure(hot: tuple[float, float], threshold: float) -> Counted:
    disk = Disk(hot, seed=7)
    counted = Counted()
    for night in range(1, _SETTLING_NIGHTS + _COUNTED_NIGHTS):
        new, copied = disk.change(night), 0
        if night % _COLLECTED_EVERY == 0:
            copied = disk.collect(night, threshold)
            if night >= _SETTLING_NIGHTS:
                counted.overheads.append(disk.overhead(night))
        if night >= _SETTLING_NIGHTS:
            counted.new += new
            counted.copied += copied
    return counted


def main() -> int:
    print(f"{_CHUNKS} chunks of {CHUNK_BYTES >> 10} KiB, {_SHARE_A_NIGHT:.0%} written a night, {_KEPT_NIGHTS} points")
    for label, hot in HOT.items():
        print(f"\n{label}:\nemptied below   garbage kept   copied for each chunk that is new")
        for threshold in THRESHOLDS:
            found = measure(hot, threshold)
            overhead = sum(found.overheads) / len(found.overheads)
            print(f"{threshold:13.0%} {overhead:14.1%} {found.copied / found.new:14.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
