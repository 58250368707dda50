"""What parity over groups of packs would cost: Reed–Solomon by zfec, with docs/decisions/0011 as the reader.

    python -m tests.bench.parity            (zfec is no dependency of the project: install it beside, then run this)

A group of k packs of 16 MiB gets r packs of parity; any r of the k + r may be lost. Then the same within one pack: its
16 pieces of 1 MiB get r of parity, against bad sectors, not against a pack that is gone. Measured are encoding, in
bytes of packs per second of one core, and bringing r back, which has to read k others first.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

PACK_BYTES = 16 << 20
PIECE_BYTES = 1 << 20
PIECES = ((16, 1), (16, 2))
GROUPS = ((10, 1), (10, 2), (20, 2), (20, 4), (50, 5))
T = TypeVar("T")


def timed(action: Callable[[], T]) -> tuple[T, float]:
    """The result, and the seconds of processor time and of the clock, whichever is more."""
    begun, cpu = time.monotonic(), time.process_time()
    result = action()
    return result, max(time.monotonic() - begun, time.process_time() - cpu)


def measure(zfec: Any, packs: int, parity: int, size_bytes: int) -> str:
    blocks = [os.urandom(size_bytes) for _ in range(packs)]
    wanted = list(range(packs, packs + parity))
    made, encode_s = timed(lambda: zfec.Encoder(packs, packs + parity).encode(blocks, wanted))
    left = [*blocks[parity:], *made]
    numbers = [*range(parity, packs), *wanted]
    found, decode_s = timed(lambda: zfec.Decoder(packs, packs + parity).decode(left, numbers))
    if sorted(found) != sorted(blocks):
        raise AssertionError("what was decoded is not what was lost")
    mb = packs * size_bytes / 1e6
    lost = parity * size_bytes / 1e6
    return (
        f"{packs:4} + {parity}   space {parity / packs:5.1%}   encodes {mb / encode_s:6.0f} MB/s"
        f"   brings {lost:5.0f} MB back in {decode_s:6.3f} s, having read {mb:5.0f} MB"
    )


if __name__ == "__main__":
    module = importlib.import_module("zfec")
    print("over groups of packs")
    for group in GROUPS:
        print(measure(module, *group, PACK_BYTES), flush=True)
    print("within a pack")
    for group in PIECES:
        print(measure(module, *group, PIECE_BYTES), flush=True)
