"""Columns of ids by their first eight bytes, sorted: what is in them is found, and several are put together.

Rule: ids are spread evenly, so their first bits say nearly where one is, and the same first bits part all columns into
pieces that are small. Where they are not spread so, everything holds, and takes longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

PREFIX_BITS: Final = 64


def bits_for(count: int, each: int) -> int:
    """How many first bits part so many ids into pieces of `each` at most, on average; at least one."""
    return max(1, (max(0, count - 1) // each).bit_length())


def edges(bits: int) -> Array:
    """The first number of each piece."""
    firsts: Array = np.arange(1 << bits, dtype=np.uint64) << np.uint64(PREFIX_BITS - bits)
    return firsts


def begins_of(prefixes: Array, bits: int) -> Array:
    """Where each piece of a sorted column begins, and where the last one ends."""
    return np.append(np.searchsorted(prefixes, edges(bits)), len(prefixes))


def first_at_least(prefixes: Array, begins: Array, longest: int, wanted: Array) -> Array:
    """For each of the wanted, the place of the first in the sorted column, which is not empty, that is not less; its
    length, or more, if there is none. `begins` as begins_of() says, whose pieces have `longest` at most."""
    shift = np.uint64(PREFIX_BITS - (len(begins) - 1).bit_length() + 1)
    at: Array = begins[(wanted >> shift).astype(np.int64)].astype(np.int64)
    for step in (1 << exponent for exponent in reversed(range(longest.bit_length()))):
        # Beyond the end stands the last one: what is not greater than that has its place before it.
        at += (prefixes.take(at + (step - 1), mode="clip") < wanted) * step
    return at


def parted(columns: Sequence[Array], bits: int) -> Iterator[list[slice]]:
    """Of several sorted columns, the pieces that begin with the same bits, one after the other; with no bits, all."""
    firsts = edges(bits) if bits else np.zeros(1, np.uint64)
    bounds = [[*np.searchsorted(column, firsts).tolist(), len(column)] for column in columns]
    for part in range(1 << bits):
        yield [slice(bound[part], bound[part + 1]) for bound in bounds]
