"""What is sent reads as a file does, as often as a client wants it."""

from __future__ import annotations

import io
import os
import random

from hypothesis import given
from hypothesis import strategies as st

from imaging.storage.sending import Sent, whole

CONTENT = random.Random(1).randbytes(1000)
steps = st.one_of(
    st.tuples(st.just("read"), st.integers(-1, 1200)),
    st.tuples(st.sampled_from(["set", "end"]), st.integers(0, 1000)),
    st.just(("tell", 0)),
)


@given(st.lists(steps, max_size=20))
def test_it_is_a_file(wanted: list[tuple[str, int]]) -> None:
    sent, model = Sent(whole([memoryview(CONTENT)])), io.BytesIO(CONTENT)
    for step, number in wanted:
        if step == "read":
            assert sent.read(number) == model.read(number)
        elif step == "set":
            assert sent.seek(number) == model.seek(number)
        elif step == "end":
            assert sent.seek(-number, os.SEEK_END) == model.seek(-number, os.SEEK_END)
        assert sent.tell() == model.tell()


def test_one_piece_is_not_copied_and_several_are_joined() -> None:
    room = bytearray(b"abc")
    piece = whole([memoryview(room)])
    room[1] = ord("x")
    assert bytes(piece) == b"axc"
    assert bytes(whole([b"a", memoryview(b"bc"), bytearray(b"d")])) == b"abcd"
    assert bytes(whole([])) == b""
    assert Sent(whole([])).read() == b""
