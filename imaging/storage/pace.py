"""How a store wants to be used: what is far away is asked for in larger pieces, and several at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Pace:
    """`puts`: packs of a run that are written at a time. `gets`: what one reader may ask for at a time. `gap_bytes`:
    reading over a gap so wide costs less than a request of its own. `ahead_bytes`: so much of a disk that is read in
    order is fetched before it is asked for. `cache_bytes`: so much of what was read may be kept on local disk."""

    puts: int = 2
    gets: int = 1
    gap_bytes: int = 64 << 10
    ahead_bytes: int = 0
    cache_bytes: int = 0


NEAR: Final = Pace()
"""A folder: the kernel caches and reads ahead."""

FAR: Final = Pace(puts=4, gets=8, gap_bytes=256 << 10, ahead_bytes=8 << 20)
"""An object store: a request costs milliseconds."""
