"""Every object store behind HTTP whose server does what it is asked, and its answer is lost."""

from __future__ import annotations

import pytest

from imaging.errors import ObjectExists, StoreUnavailable
from imaging.storage.contract import Store
from imaging.storage.retrying import RetryingStore
from tests.faults.bad_object_store import BadObjectStore, Exchange
from tests.faults.cloud_cases import (
    SLOW,
    Cloud,
    after_success,
    bad,
    check_that_it_passes,
    direct,
    hasty,
    patient,
    patiently,
    prefix,
    proxy,
    store,
    through,
)
from tests.faults.clouds import cloud, each

__all__ = ["bad", "cloud", "direct", "hasty", "patient", "prefix", "proxy", "store", "through"]

pytestmark = pytest.mark.faults


@each("call", "fault", of=lambda cloud: cloud.cases(cloud.lost))
def test_what_passes_is_called_unavailable_and_passes(
    cloud: Cloud, bad: BadObjectStore, store: Store, hasty: Store, direct: Store, call: str, fault: str
) -> None:
    client = hasty if fault in SLOW else store
    check_that_it_passes(bad, client, direct, cloud.calls[call], cloud.lost[fault].reaction)


@pytest.mark.parametrize("lost", ["silence", "a broken connection", "503"])
def test_a_create_whose_answer_is_lost_has_succeeded_and_is_known_by_its_bytes(
    cloud: Cloud, bad: BadObjectStore, store: Store, hasty: Store, lost: str
) -> None:
    reaction = after_success(cloud.passing[lost].reaction)
    bad.fail("create", reaction)
    with pytest.raises(StoreUnavailable):
        hasty.create("leases/aa/end", [b"mine"])
    bad.settle()
    assert store.get("leases/aa/end") == b"mine"
    with pytest.raises(ObjectExists):
        store.create("leases/aa/end", [b"mine"])

    bad.forgive()
    bad.fail("create", reaction)
    patiently(hasty).create("leases/bb/end", [b"mine"])
    assert store.get("leases/bb/end") == b"mine"


def test_a_create_that_failed_and_then_lost_against_another_has_lost(
    cloud: Cloud, bad: BadObjectStore, store: Store, patient: RetryingStore, direct: Store
) -> None:
    def taken_by_another(exchange: Exchange) -> None:
        direct.create("leases/aa/end", [b"another's"])
        cloud.passing["500"].reaction(exchange)

    bad.fail("create", taken_by_another)
    with pytest.raises(ObjectExists):
        patient.create("leases/aa/end", [b"mine"])
    assert store.get("leases/aa/end") == b"another's"
