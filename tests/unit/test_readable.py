"""Descriptors from 1,024 on, which `select` refuses."""

from __future__ import annotations

import fcntl
import os
import resource
from collections.abc import Iterator

import pytest

from appliance.readable import readable

_MANY = 1200


@pytest.fixture
def room() -> Iterator[None]:
    limits = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * _MANY), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("room")
def test_what_comes_by_a_high_descriptor_is_seen() -> None:
    reading, writing = os.pipe()
    high = fcntl.fcntl(reading, fcntl.F_DUPFD_CLOEXEC, _MANY)
    try:
        assert high >= _MANY
        assert not readable(high, 0)
        os.write(writing, b"x")
        assert readable(high, 60)
        assert os.read(high, 1) == b"x"
        assert not readable(high, 0)
        os.close(writing)
        assert readable(high, 60), "its end is something to read"
    finally:
        os.close(high)
        os.close(reading)
