"""How much a run has read at which moment, few enough to keep and to draw, however long it runs. Pure.

The rule: there are never more than 240 samples. Once there are, every second one goes, and from then on they are taken
half as often: so they are evenly far apart at any time, and the first and the last are among them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

SAMPLES_MOST: Final = 240


@dataclass(frozen=True, slots=True)
class Sample:
    """`at_s`: since the attempt began; `done_bytes`: of all its stages until then."""

    at_s: float
    done_bytes: int


class Throughput:
    """Not thread-safe."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._early_s = every_s / 10  # nobody wakes up to the moment
        self._samples = [Sample(0.0, 0)]
        self._last = self._samples[0]

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Oldest first; the newest is what was told last."""
        if self._last is self._samples[-1]:
            return tuple(self._samples)
        return (*self._samples, self._last)

    def add(self, at_s: float, done_bytes: int) -> None:
        """Moments that do not grow are of a mistaken clock, and left out."""
        at_s = round(at_s, 3)
        if at_s <= self._last.at_s:
            return
        self._last = Sample(at_s, done_bytes)
        if at_s - self._samples[-1].at_s >= self._every_s - self._early_s:
            self._samples.append(self._last)
        if len(self._samples) >= SAMPLES_MOST:
            self._samples = self._samples[::2]
            self._every_s *= 2


def bytes_s(samples: Iterable[Sample]) -> tuple[tuple[float, float], ...]:
    """The middle of each stretch between two samples, in seconds, and how fast it was."""
    kept = list(samples)
    return tuple(
        ((one.at_s + other.at_s) / 2, (other.done_bytes - one.done_bytes) / (other.at_s - one.at_s))
        for one, other in pairwise(kept)
        if other.at_s > one.at_s
    )
