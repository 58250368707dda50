"""Every object store behind HTTP whose server fails, or keeps silent, for a while: who is patient gets there."""

from __future__ import annotations

import socket

import pytest

from imaging.errors import StoreUnavailable
from imaging.storage.contract import Store
from tests.faults.bad_object_store import BadObjectStore, late
from tests.faults.cloud_cases import (
    SLOW,
    TEN,
    Cloud,
    bad,
    check_that_it_passes,
    direct,
    hasty,
    prefix,
    proxy,
    store,
    through,
)
from tests.faults.clouds import cloud, each

__all__ = ["bad", "cloud", "direct", "hasty", "prefix", "proxy", "store", "through"]

pytestmark = pytest.mark.faults


@each("call", "fault", of=lambda cloud: cloud.cases(cloud.passing))
def test_what_passes_is_called_unavailable_and_passes(
    cloud: Cloud, bad: BadObjectStore, store: Store, hasty: Store, direct: Store, call: str, fault: str
) -> None:
    client = hasty if fault in SLOW else store
    check_that_it_passes(bad, client, direct, cloud.calls[call], cloud.passing[fault].reaction)


def test_an_answer_that_is_late_is_waited_for(bad: BadObjectStore, store: Store) -> None:
    for operation in ("get", "list", "put"):
        bad.fail(operation, late(0.2))
    store.put("config", [TEN[::-1]])
    assert store.get("config") == TEN[::-1]
    assert len(list(store.list(""))) == 2


def test_nobody_at_the_endpoint_is_unavailable(cloud: Cloud) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        store = cloud.open(f"http://127.0.0.1:{taken.getsockname()[1]}", "")
        for call in cloud.calls.values():
            with pytest.raises(StoreUnavailable):
                call.act(store)
