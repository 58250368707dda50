"""Segments of the ledger: arrays in files, sealed, and never changed once they are there.

Rules: a segment that its seal does not fit is not there: nothing half written, rotten or forged ever says what packs
hold. The numbers of rows and packs go on from one segment to the next, so that several become one by putting them
behind each other. The arrays are mapped: what they take is the page cache's, and not this process's.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from blake3 import blake3
from numpy.lib import format as npy

from imaging.keys import Keys, derive_key
from imaging.sorted_ids import Array, parted

NAME_BYTES: Final = 45  # index/LEASE-NUMBER
PACK: Final = np.dtype([("hash", "V32"), ("size", "<u4"), ("type", "u1"), ("first", "<u4"), ("rows", "<u4")])
OBJECT: Final = np.dtype([("name", f"S{NAME_BYTES}"), ("size", "<u8"), ("first", "<u4"), ("packs", "<u4")])
_SEAL: Final = "seal"
_TEMPORARY: Final = "new-"
_PART_BITS: Final = 6
_HEAD: Final = np.dtype("<i8")
_SORTED: Final = ("prefixes", "checks", "originals")


@dataclass(frozen=True, slots=True)
class Segment:
    """`head` is (first row, rows, first pack). Rows and packs are numbered over all segments.

    `stored`: the stored length of each row. `prefixes`, `checks`, `originals`: every id that no earlier segment has,
    by its first 8 bytes, the next 4, and the first row that has it, sorted by the first. `copies`, `copied`: rows whose
    id an earlier row has, and that row. `objects` list packs by `listed`. `nodes`: rows of map nodes, sorted, each with
    its level; `runs_at` says where its runs begin in `run_firsts` and `run_lengths`: what it refers to, as rows that
    follow one another.
    """

    head: Array
    stored: Array
    prefixes: Array
    checks: Array
    originals: Array
    copies: Array
    copied: Array
    packs: Array
    objects: Array
    listed: Array
    nodes: Array
    levels: Array
    runs_at: Array
    run_firsts: Array
    run_lengths: Array

    @property
    def first_row(self) -> int:
        return int(self.head[0])

    @property
    def rows(self) -> int:
        return int(self.head[1])

    @property
    def first_pack(self) -> int:
        return int(self.head[2])

    @property
    def weight(self) -> int:
        """What merging it costs, roughly."""
        return self.rows + len(self.run_firsts) + len(self.nodes)


NAMES: Final = tuple(field.name for field in fields(Segment))


def head(first_row: int, rows: int, first_pack: int) -> Array:
    return np.array([first_row, rows, first_pack], _HEAD)


class SegmentFolder:
    """Where segments are kept. A caller that writes, or must not be written to meanwhile, holds a lock of its own."""

    def __init__(self, folder: Path, keys: Keys) -> None:
        self.folder = folder
        self._key = derive_key("collection ledger", keys.index + keys.repository_id)

    def names(self) -> list[str]:
        """In the order of what they hold."""
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir() if path.is_dir() and path.name[:1].isdigit())

    def load(self, name: str) -> Segment | None:
        """None when it is not what was once written here. OSError."""
        folder = self.folder / name
        try:
            if (folder / _SEAL).read_bytes() != self._seal(folder):
                return None
            arrays = (np.load(folder / f"{each}.npy", mmap_mode="r", allow_pickle=False) for each in NAMES)
            return Segment(*(array.view(np.ndarray) for array in arrays))
        except (FileNotFoundError, ValueError):
            return None

    def write(self, number: int, arrays: Iterable[tuple[str, Array]]) -> str:
        """Returns the name of the new segment. OSError."""
        with self._new() as temporary:
            for name, array in arrays:
                _save(temporary, name, [array])
            return self._publish(number, temporary)

    def merge(self, number: int, segments: Sequence[Segment], wanted: Collection[str]) -> str:
        """Those segments, which follow one another, as one; of index objects only the `wanted` ones. OSError."""
        with self._new() as temporary:
            for name, parts in _merged(segments, wanted):
                _save(temporary, name, parts)
            _merge_ids(temporary, segments)
            return self._publish(number, temporary)

    def remove(self, names: Collection[str]) -> None:
        """OSError."""
        for name in names:
            shutil.rmtree(self.folder / name)

    def discard(self) -> None:
        """Everything, whatever it is. OSError."""
        if self.folder.is_dir():
            shutil.rmtree(self.folder)

    def clean(self) -> None:
        """What writers that died left. OSError."""
        for path in self.folder.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(path, ignore_errors=True)

    def _new(self) -> _Temporary:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _Temporary(self.folder / f"{_TEMPORARY}{secrets.token_hex(8)}")

    def _publish(self, number: int, temporary: Path) -> str:
        (temporary / _SEAL).write_bytes(self._seal(temporary))
        name = f"{number:010}-{secrets.token_hex(4)}"
        os.rename(temporary, self.folder / name)
        return name

    def _seal(self, folder: Path) -> bytes:
        """Over the names and bytes of all files."""
        hasher = blake3(key=self._key, max_threads=blake3.AUTO)
        for name in NAMES:
            path = folder / f"{name}.npy"
            hasher.update(f"{name} {path.stat().st_size}\n".encode())
            hasher.update_mmap(path)
        return hasher.digest()


class _Temporary:
    """A new folder, which is removed unless it was renamed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Path:
        self._path.mkdir(mode=0o700)
        return self._path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._path, ignore_errors=True)


def _save(folder: Path, name: str, parts: Sequence[Array]) -> None:
    """One array, in parts. As numpy's own, which does not notice every failure to write."""
    with (folder / f"{name}.npy").open("wb") as file:
        _begin(file, parts[0].dtype, sum(len(part) for part in parts))
        for part in parts:
            file.write(np.ascontiguousarray(part).view(np.uint8).data)


def _begin(file: BinaryIO, kind: np.dtype[Any], count: int) -> None:
    header = {"descr": npy.dtype_to_descr(kind), "fortran_order": False, "shape": (count,)}
    npy.write_array_header_1_0(file, header)


def _merged(segments: Sequence[Segment], wanted: Collection[str]) -> Iterator[tuple[str, Sequence[Array]]]:
    """All arrays, in parts, but those that are sorted by ids."""
    rows = sum(each.rows for each in segments)
    yield "head", [head(segments[0].first_row, rows, segments[0].first_pack)]
    for name in ("stored", "copies", "copied", "packs"):
        yield name, [getattr(each, name) for each in segments]
    objects, listed = [], []
    following = 0
    for segment in segments:
        for each in segment.objects:
            if each["name"].decode() in wanted:
                first, count = int(each["first"]), int(each["packs"])
                listed.append(segment.listed[first : first + count])
                objects.append((each["name"], each["size"], following, count))
                following += count
    yield "objects", [np.array(objects, OBJECT)]
    yield "listed", [np.empty(0, "<u4"), *listed]
    yield from _merged_nodes(segments)


def _merged_nodes(segments: Sequence[Segment]) -> Iterator[tuple[str, Sequence[Array]]]:
    nodes = np.concatenate([each.nodes for each in segments])
    order = np.argsort(nodes, kind="stable")
    counts = np.concatenate([np.diff(each.runs_at) for each in segments])
    offsets = np.cumsum([0, *(len(each.run_firsts) for each in segments[:-1])])
    begins = np.concatenate([each.runs_at[:-1] + offset for each, offset in zip(segments, offsets, strict=True)])
    yield "nodes", [nodes[order]]
    yield "levels", [np.concatenate([each.levels for each in segments])[order]]
    yield "runs_at", [np.concatenate(([0], np.cumsum(counts[order]))).astype("<i8")]
    taken = expand(begins[order], counts[order])
    yield "run_firsts", [np.concatenate([each.run_firsts for each in segments])[taken]]
    yield "run_lengths", [np.concatenate([each.run_lengths for each in segments])[taken]]


def _merge_ids(folder: Path, segments: Sequence[Segment]) -> None:
    """Written part by part, so that no more than one of 64 is in memory. Not through a mapping: a file system that runs
    full would end the process."""
    total = sum(len(each.prefixes) for each in segments)
    with contextlib.ExitStack() as files:
        made = {name: files.enter_context((folder / f"{name}.npy").open("wb")) for name in _SORTED}
        for name, file in made.items():
            _begin(file, getattr(segments[0], name).dtype, total)
        for spans in parted([each.prefixes for each in segments], _PART_BITS):
            columns = [
                np.concatenate([getattr(each, name)[span] for each, span in zip(segments, spans, strict=True)])
                for name in _SORTED
            ]
            order = np.argsort(columns[0], kind="stable")
            for file, column in zip(made.values(), columns, strict=True):
                file.write(column[order].tobytes())


def expand(firsts: Array, lengths: Array) -> Array:
    """All numbers of runs, one run after the other."""
    lengths = lengths.astype(np.int64)
    total = int(lengths.sum())
    ends = np.cumsum(lengths)
    found: Array = np.arange(total) + np.repeat(firsts.astype(np.int64) - (ends - lengths), lengths)
    return found


def as_runs(rows: Array, counts: Array) -> tuple[Array, Array, Array]:
    """Several lists of rows, put behind each other, as runs: their firsts, their lengths, and how many each list
    has."""
    begins = np.ones(len(rows), np.bool_)
    begins[1:] = rows[1:] != rows[:-1] + 1
    starts = np.cumsum(counts) - counts
    begins[starts[counts > 0]] = True
    at = np.flatnonzero(begins)
    lengths = np.diff(np.append(at, len(rows)))
    run_counts = np.searchsorted(at, starts + counts) - np.searchsorted(at, starts)
    return rows[at].astype("<u4"), lengths.astype("<u4"), run_counts
