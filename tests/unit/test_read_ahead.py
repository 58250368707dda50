"""Reading ahead: what comes next of a disk that is read in order is fetched, once, and nothing else is."""

from __future__ import annotations

import logging
import threading

import pytest

from imaging.errors import Damaged
from imaging.read_ahead import PIECE_BYTES, ReadAhead

AHEAD = 4
SIZE = 40 * PIECE_BYTES + 12345


class Fetched:
    """Notes which pieces were asked for."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []
        self.error: Exception | None = None
        self.lock = threading.Lock()

    def __call__(self, start: int, stop: int) -> None:
        with self.lock:
            self.ranges.append((start, stop))
        if self.error is not None:
            raise self.error

    @property
    def pieces(self) -> list[int]:
        return sorted(start // PIECE_BYTES for start, _ in self.ranges)


@pytest.fixture
def fetched() -> Fetched:
    return Fetched()


def noted(fetched: Fetched, reads: list[tuple[int, int]], *, ahead: int = AHEAD) -> Fetched:
    """After these reads, in pieces, and all that follows from them."""
    reader = ReadAhead(fetched, SIZE, ahead * PIECE_BYTES)
    for offset, length in reads:
        reader.note(offset, length)
    with reader._lock:
        pool = reader._pool
    if pool is not None:
        pool.shutdown(wait=True)  # close() drops what did not begin
    return fetched


def in_order(first: int, stop: int, step: int = 64 << 10) -> list[tuple[int, int]]:
    return [(at, step) for at in range(first * PIECE_BYTES, stop * PIECE_BYTES, step)]


def test_what_follows_a_stream_is_fetched_once(fetched: Fetched) -> None:
    noted(fetched, in_order(5, 9))
    assert fetched.pieces == list(range(8, 8 + 1 + AHEAD)), "from the third piece of the stream on, up to four ahead"


def test_long_requests_and_a_little_disorder_are_a_stream(fetched: Fetched) -> None:
    noted(fetched, [(2 * PIECE_BYTES, 2 * PIECE_BYTES), (1 * PIECE_BYTES, PIECE_BYTES), (4 * PIECE_BYTES, 10)])
    assert fetched.pieces == [5, 6, 7, 8]


def test_two_streams_do_not_disturb_each_other(fetched: Fetched) -> None:
    mixed = [read for pair in zip(in_order(0, 3), in_order(20, 23), strict=True) for read in pair]
    noted(fetched, mixed)
    assert fetched.pieces == [3, 4, 5, 6, 23, 24, 25, 26]


def test_scattered_reads_fetch_nothing(fetched: Fetched) -> None:
    noted(fetched, [(piece * PIECE_BYTES, 4096) for piece in (30, 3, 5, 7, 9, 31, 0, 20, 33, 35)])
    assert fetched.ranges == []


def test_it_ends_where_the_disk_ends(fetched: Fetched) -> None:
    noted(fetched, in_order(36, 39))
    assert sorted(fetched.ranges) == [(39 * PIECE_BYTES, 40 * PIECE_BYTES), (40 * PIECE_BYTES, SIZE)]


def test_without_room_nothing_is_fetched(fetched: Fetched) -> None:
    noted(fetched, in_order(0, 10), ahead=0)
    assert fetched.ranges == []


def test_what_fails_ahead_of_time_is_only_noted(fetched: Fetched, caplog: pytest.LogCaptureFixture) -> None:
    fetched.error = Damaged("chunk 17", "injected")
    with caplog.at_level(logging.DEBUG, "imaging.read_ahead"):
        noted(fetched, in_order(0, 3))
    assert len(fetched.ranges) == AHEAD
    assert "chunk 17" in caplog.text


def test_a_mistake_of_ours_shows(fetched: Fetched, caplog: pytest.LogCaptureFixture) -> None:
    fetched.error = KeyError("ours")
    noted(fetched, in_order(0, 3))
    assert "Traceback" in caplog.text


def test_after_its_end_nothing_begins(fetched: Fetched) -> None:
    reader = ReadAhead(fetched, SIZE, AHEAD * PIECE_BYTES)
    reader.close()
    for read in in_order(0, 10):
        reader.note(*read)
    assert fetched.ranges == []
