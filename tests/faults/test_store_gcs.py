"""Google Cloud Storage that answers as a bad object store does, in what no other cloud has. What all have in common is
in test_store_http.py, who asks in test_store_gcs_tokens.py."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest

from imaging.errors import AddressRefused, ObjectMissing, StoreError, StoreUnavailable
from imaging.storage.contract import Store
from imaging.storage.gcs import Bucket, endpoint_of
from imaging.storage.gcs_key import read_key
from imaging.storage.retrying import RetryingStore
from tests.faults.bad_object_store import Answer, BadObjectStore, changed, garbled
from tests.faults.cloud_cases import (
    CALLS,
    TEN,
    Cloud,
    bad,
    direct,
    patient,
    prefix,
    proxy,
    store,
    through,
    without,
)
from tests.faults.cloud_gcs import GCS, open_store, refused, told
from tests.lab.gcs_server import BUCKET, GcsServer, running

__all__ = ["bad", "direct", "patient", "prefix", "proxy", "store", "through"]

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def cloud() -> Cloud:
    return GCS


@pytest.fixture(scope="module")
def server() -> GcsServer:
    return running()


@pytest.fixture(scope="module")
def place(server: GcsServer, proxy: BadObjectStore, prefix: str) -> Bucket:
    return server.bucket(prefix, url=proxy.url)


# Writing


def test_what_arrived_as_something_else_is_not_taken_for_written(
    bad: BadObjectStore, store: Store, patient: RetryingStore, direct: Store
) -> None:
    """Google compares the digest itself, and refuses; the emulator stores what came, and says what it has."""
    for nth in (1, 2):
        bad.fail("put", garbled(lambda body: body.replace(TEN, TEN[::-1])), nth=nth)
    with pytest.raises(StoreUnavailable):
        store.put("keys/aa", [TEN])
    patient.put("keys/aa", [TEN])
    assert direct.get("keys/aa") == TEN


@pytest.mark.parametrize(
    "change",
    [
        without(rb'"name":"[^"]*"', b'"name":"another"'),
        without(rb'"size":"\d+"', b'"size":"11"'),
        without(rb'"crc32c":"[^"]*",'),
    ],
)
def test_an_upload_is_known_by_what_was_stored(
    bad: BadObjectStore, store: Store, change: Callable[[Answer], Answer]
) -> None:
    bad.fail("put", changed(change))
    with pytest.raises(StoreUnavailable):
        store.put("keys/aa", [TEN])


# What is missing


@pytest.mark.parametrize(
    ("fault", "reason", "hint"),
    [("no bucket", "notFound", "bucket"), ("404 of something else", "", "endpoint")],
)
@pytest.mark.parametrize("call", sorted(CALLS))
def test_a_404_of_everything_is_for_an_admin_to_mend(
    bad: BadObjectStore, patient: RetryingStore, call: str, fault: str, reason: str, hint: str
) -> None:
    """As in test_store_http.py; and the listing that is asked whether the object is there has to say so too."""
    tried = CALLS[call]
    for operation in {tried.operation, "head" if tried.operation in ("get", "delete") else tried.operation}:
        bad.fail(operation, refused(404, reason), forever=True)
    before = bad.calls[tried.operation]
    with pytest.raises(StoreError) as caught:
        tried.act(patient)
    assert not caught.value.retryable
    assert hint in caught.value.hint
    assert bad.calls[tried.operation] <= before + tried.requests, "it was asked again"


def test_an_object_is_missing_only_where_a_listing_says_so(bad: BadObjectStore, store: Store) -> None:
    for call in (lambda: store.get("packs/aa/none"), lambda: store.delete("packs/aa/none")):
        with pytest.raises(ObjectMissing):
            call()
        bad.fail("head", refused(404, "notFound"))
        with pytest.raises(StoreError, match="404") as caught:
            call()
        assert "bucket" in caught.value.hint
        bad.forgive()
        bad.fail("head", told(b"{}"))
        with pytest.raises(StoreUnavailable):
            call()
        bad.forgive()
    bad.fail("delete", refused(404, "notFound"))
    with pytest.raises(StoreUnavailable, match="listing"):
        store.delete("config")
    assert store.exists("config")


def test_a_page_without_objects_is_not_the_last_one_where_another_follows(
    bad: BadObjectStore, store: Store, place: Bucket
) -> None:
    """Google may answer so where much was deleted."""
    for operation, key in (("head", "packs/aa/seventy"), ("list", "")):
        page = {"kind": "storage#objects", "nextPageToken": place.prefix + key}
        bad.fail(operation, told(json.dumps(page).encode()))
    assert store.exists("packs/aa/seventy")
    assert [listed.name for listed in store.list("")] == ["config", "packs/aa/seventy"]


# Listings


def test_a_listing_in_pages_is_complete_and_fails_as_a_whole(
    bad: BadObjectStore, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imaging.storage.gcs._SHOWN_AT_ONCE", 7)
    wanted = sorted(f"packs/{number % 3}/{number:04}" for number in range(30))
    for name in wanted:
        store.put(name, [b"x"])
    wanted.append("packs/aa/seventy")
    assert [listed.name for listed in store.list("packs/")] == wanted
    assert bad.calls["list"] == 5
    bad.fail("list", refused(403, "forbidden"), nth=3)
    with pytest.raises(StoreError, match="forbidden"):
        next(store.list("packs/"))
    bad.forgive()
    bad.fail("list", changed(without(rb'"nextPageToken":"[^"]+"', b'"nextPageToken":"again"')), forever=True)
    with pytest.raises(StoreUnavailable):
        next(store.list("packs/"))


def test_what_is_no_object_of_ours_is_passed_over(server: GcsServer, place: Bucket, store: Store) -> None:
    strange = ("Upper", "tmp/x", "a b", "folder/", ".hidden", "packs/ü", "packs//x", f"{'a' * 200}/{'b' * 100}")
    for key in strange:
        server.upload(place.prefix + key, b"theirs")
    prefix = quote(place.prefix, safe="")
    shown = json.loads(server.ask("GET", f"/b/{BUCKET}/o?prefix={prefix}"))["items"]
    assert {each["name"] for each in shown} >= {place.prefix + key for key in strange}
    assert [listed.name for listed in store.list("")] == ["config", "packs/aa/seventy"]
    for key in strange:
        server.ask("DELETE", f"/b/{BUCKET}/o/{quote(place.prefix + key, safe='')}")


# What the real servers do not want


def test_the_real_servers_refuse(server: GcsServer, place: Bucket, store: Store, tmp_path: Path) -> None:
    for changed_key in ({"client_email": "hush@example.org"}, {"private_key_id": "hush"}):
        account = read_key(server.tokens.key_file(tmp_path, changed=changed_key))
        for call in CALLS.values():
            with pytest.raises(StoreError) as caught:
                call.act(open_store(place, account))
            assert not caught.value.retryable
            assert "key" in caught.value.hint
    for call in CALLS.values():
        with pytest.raises(StoreError) as caught:
            call.act(open_store(replace(place, name="no-such-bucket"), server.account))
        assert not caught.value.retryable
        assert "make the bucket first" in caught.value.hint


# What is no place


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("", ""),
        ("no", ""),
        ("Upper", ""),
        ("a..b", ""),
        ("a/b", ""),
        ("-abc", ""),
        ("bucket?x", ""),
        ("bucket", "no-slash"),
        ("bucket", "../"),
    ],
)
def test_what_is_no_bucket_is_refused(name: str, prefix: str) -> None:
    with pytest.raises(AddressRefused):
        Bucket(endpoint_of(), name, prefix)


def test_the_endpoint_is_googles_unless_another_is_named() -> None:
    assert str(Bucket(endpoint_of(), "backups", "a/")) == "gs://backups/a/ at https://storage.googleapis.com"
    assert endpoint_of("https://storage-lab.p.googleapis.com").url == "https://storage-lab.p.googleapis.com"
    for url in ("http://storage.googleapis.com", "http://metadata.google.internal", "https://[fd20:ce::254]"):
        with pytest.raises(AddressRefused):
            endpoint_of(url)


def test_only_who_uses_it_needs_its_libraries() -> None:
    """The extra is optional: nothing else may load it."""
    code = (
        "import sys; import imaging.storage.locations, imaging.storage.s3, appliance.cli, imaging.serving;"
        "sys.exit(any(name.partition('.')[0] in ('google', 'google_crc32c') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
