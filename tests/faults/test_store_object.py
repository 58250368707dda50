"""The S3-compatible object store that answers as a bad one does, in what no other cloud has. What all have in common is
in test_store_http.py."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from imaging.errors import (
    AddressRefused,
    Damaged,
    ImagingError,
    ObjectExists,
    ObjectMissing,
    StoreError,
    StoreUnavailable,
)
from imaging.storage.contract import Store
from imaging.storage.endpoints import parse_endpoint
from imaging.storage.retrying import RetryingStore
from imaging.storage.s3 import Bucket, Credentials
from imaging.storage.wire import Limits
from tests.faults.bad_object_store import (
    Answer,
    BadObjectStore,
    Reaction,
    changed,
    cut_short,
    late,
    refused,
    silent,
    silent_after_success,
    slow,
)
from tests.faults.cloud_cases import (
    SEVENTY,
    SLOW,
    TEN,
    Cloud,
    answered,
    bad,
    direct,
    longer,
    patient,
    patiently,
    prefix,
    proxy,
    shorter,
    store,
    through,
)
from tests.faults.cloud_s3 import NO_LISTING, S3, S3_CALLS, open_store
from tests.lab.s3_server import S3Server, running

__all__ = ["bad", "direct", "patient", "prefix", "proxy", "store", "through"]

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def cloud() -> Cloud:
    return S3


@pytest.fixture(scope="module")
def server() -> S3Server:
    return running()


@pytest.fixture(scope="module")
def place(server: S3Server, proxy: BadObjectStore, prefix: str) -> Bucket:
    return server.bucket(prefix, url=proxy.url)


# A read that is not what was asked for


def test_a_whole_object_that_ends_early_is_an_error(bad: BadObjectStore, store: Store) -> None:
    bad.fail("get", cut_short())
    with pytest.raises(StoreUnavailable):
        store.get("packs/aa/seventy")
    assert store.get("packs/aa/seventy") == SEVENTY


def test_a_refusal_that_is_cut_short_refuses_nothing(bad: BadObjectStore, store: Store, patient: RetryingStore) -> None:
    """Nobody can tell then whether the object was missing, or the bucket."""
    bad.fail("get", cut_short(), nth=1)
    bad.fail("get", cut_short(), nth=2)
    with pytest.raises(StoreUnavailable):
        store.get("packs/aa/none")
    assert not patient.exists("packs/aa/none")


def test_a_server_that_knows_no_ranges_is_read_all_the_same(bad: BadObjectStore, store: Store) -> None:
    headers = {"Content-Type": "application/octet-stream"}
    bad.fail("get", lambda exchange: exchange.reply(Answer(200, headers, SEVENTY)), forever=True)
    assert store.get("packs/aa/seventy", 100, 60_000) == SEVENTY[100:60_100]
    assert store.get("packs/aa/seventy", 69_000) == SEVENTY[69_000:]
    assert store.get("packs/aa/seventy", 70_000) == b""
    assert store.exists("packs/aa/seventy")
    with pytest.raises(Damaged):
        store.get("packs/aa/seventy", 69_999, 2)


# Listings


def test_a_listing_in_pages_is_complete_sorted_and_fails_as_a_whole(
    bad: BadObjectStore, store: Store, direct: Store
) -> None:
    wanted = sorted(f"packs/{number % 3}/{number:04}" for number in range(1203))
    with ThreadPoolExecutor(8) as workers:
        list(workers.map(lambda name: direct.put(name, [b"x"]), wanted))
    direct.delete("packs/aa/seventy")
    assert [listed.name for listed in store.list("packs/")] == wanted
    assert bad.calls["list"] == 2
    bad.fail("list", refused(403, "ExpiredToken"), nth=2)
    with pytest.raises(StoreError, match="ExpiredToken"):
        next(store.list("packs/"))
    bad.forgive()
    with contextlib.suppress(StoreUnavailable):  # it may take longer than this store has patience
        store.delete_many(wanted)
        assert bad.calls["delete_many"] == 2
    patiently(direct).delete_many([*wanted, "packs/aa/seventy"])
    assert list(store.list("packs/")) == []


def test_an_object_that_another_deleted_is_no_witness(store: Store, direct: Store) -> None:
    store.put("leases/aa/end", [b"x"])
    direct.delete("leases/aa/end")
    assert list(store.list("leases/")) == []


def test_what_is_no_object_of_ours_is_passed_over(server: S3Server, place: Bucket, store: Store) -> None:
    strange = ("Upper", "tmp/x", "a b", "folder/", ".hidden", "packs/ü", "packs/aa/x\ny", f"{'a' * 200}/{'b' * 100}")
    client = server.client()
    for key in strange:
        client.put_object(Bucket=place.name, Key=place.prefix + key, Body=b"theirs")
    shown = client.list_objects_v2(Bucket=place.name, Prefix=place.prefix)["Contents"]
    assert len(shown) == len(strange) + 2
    for key in strange:
        client.delete_object(Bucket=place.name, Key=place.prefix + key)
    assert [listed.name for listed in store.list("")] == ["config", "packs/aa/seventy"]


# Deleting many


def told(body: str) -> Reaction:
    return answered(body.encode(), "application/xml")


def test_one_that_cannot_be_deleted_is_an_error(bad: BadObjectStore, store: Store, place: Bucket) -> None:
    for code, kind in (("AccessDenied", StoreError), ("InternalError", StoreUnavailable)):
        bad.fail(
            "delete_many",
            told(
                f"<DeleteResult><Deleted><Key>{place.prefix}packs/aa/seventy</Key></Deleted>"
                f"<Error><Key>{place.prefix}config</Key><Code>{code}</Code></Error></DeleteResult>"
            ),
        )
        with pytest.raises(kind) as caught:
            store.delete_many(["config", "packs/aa/seventy"])
        assert caught.value.name == "config"
        bad.forgive()


def test_what_is_not_said_to_be_deleted_is_deleted_one_by_one(bad: BadObjectStore, store: Store) -> None:
    bad.fail("delete_many", told("<DeleteResult/>"))
    store.delete_many(["config", "packs/aa/seventy"])
    assert bad.calls["delete"] == 2
    assert list(store.list("")) == []


# Slowness


def test_an_answer_that_trickles_is_ended(bad: BadObjectStore, server: S3Server, store: Store, place: Bucket) -> None:
    # So long that what a busy machine keeps waiting is not taken for silence.
    waits = open_store(place, server.credentials, Limits(connections=4, silence_s=15.0))
    bad.fail("get", slow(0.02))
    with pytest.raises(StoreUnavailable, match="too slow"):
        waits.get("packs/aa/seventy")


def test_connections_are_bounded(server: S3Server, store: Store, place: Bucket) -> None:
    with BadObjectStore(server.url) as bad:
        bounded = open_store(
            replace(place, endpoint=parse_endpoint(bad.url)), server.credentials, Limits(connections=3)
        )
        bad.fail("get", late(0.02), every=True)
        with ThreadPoolExecutor(12) as readers:
            read = list(readers.map(lambda first: bounded.get("packs/aa/seventy", first, 5_000), range(48)))
        assert read == [SEVENTY[first : first + 5_000] for first in range(48)]
        assert bad.most_connections == 3


# What the real server does not want


@pytest.mark.parametrize("call", sorted(S3_CALLS))
def test_the_real_server_refuses(server: S3Server, place: Bucket, store: Store, call: str) -> None:
    for credentials, place_, hint in (
        (Credentials("nobody", "knows"), place, "access key"),
        (Credentials(server.credentials.access_key, "wrong"), place, "secret"),
        (server.without_rights, place, "rights"),
        (server.credentials, replace(place, name="no-such-bucket"), "bucket"),
    ):
        with pytest.raises(StoreError) as caught:
            S3_CALLS[call].act(open_store(place_, credentials))
        assert not caught.value.retryable
        assert hint in caught.value.hint
        assert credentials.secret_key not in str(caught.value)
    assert store.get("config") == TEN


@pytest.mark.parametrize(
    ("name", "prefix", "region"),
    [
        ("no", "", "us-east-1"),
        ("Upper", "", "us-east-1"),
        ("a..b", "", "us-east-1"),
        ("a/b", "", "us-east-1"),
        ("arn:aws:s3:::bucket", "", "us-east-1"),
        ("bucket", "no-slash", "us-east-1"),
        ("bucket", "../", "us-east-1"),
        ("bucket", "", "us east"),
        ("bucket", "", "evil.example.org/"),
    ],
)
def test_what_is_no_bucket_is_refused(name: str, prefix: str, region: str) -> None:
    with pytest.raises(AddressRefused):
        Bucket(parse_endpoint("https://s3.example.org"), name, prefix, region)


# All at once


@pytest.mark.parametrize("seed", range(3))
def test_random_operations_over_a_bad_server_end_as_on_a_plain_dictionary(
    bad: BadObjectStore, store: Store, server: S3Server, place: Bucket, seed: int
) -> None:
    # A request that was given up must not come after what is written next: few silences, long ones, and all is met.
    patient = patiently(open_store(place, server.credentials, Limits(connections=4, silence_s=4.0)))
    passing = [each.reaction for name, each in [*S3.passing.items(), *S3.lost.items()] if name not in SLOW]
    choose = random.Random(seed)

    def any_of(reactions: Iterable[Reaction]) -> Reaction:
        among = list(reactions)
        return lambda exchange: choose.choice(among)(exchange)

    bad.fail("put", silent_after_success(), nth=5)
    bad.fail("create", silent(), nth=5)
    bad.fail("get", silent(), nth=6)
    for operation in ("put", "create", "delete"):
        bad.fail(operation, any_of(passing), nth=2, every=True)
    bad.fail("get", any_of([*passing, cut_short(), changed(shorter), changed(longer)]), nth=4, every=True)
    bad.fail("list", any_of([*NO_LISTING.values(), *passing]), nth=2, every=True)
    model = {"config": TEN, "packs/aa/seventy": SEVENTY}

    for number in range(60):
        bad.quiet()
        name = f"leases/{choose.choice('abcdef')}/end"
        data = b"%d," % number * choose.randrange(1, 2000)
        match choose.randrange(6):
            case 0:
                patient.put(name, [data])
                model[name] = data
            case 1:
                assert outcome(patient.create, name, [data]) == (ObjectExists if name in model else None)
                model.setdefault(name, data)
            case 2:
                assert outcome(patient.get, name) == model.get(name, ObjectMissing)
            case 3:
                first, length = choose.randrange(70_000), choose.randrange(1, 5_000)
                wanted = SEVENTY[first : first + length] if first + length <= 70_000 else Damaged
                assert outcome(patient.get, "packs/aa/seventy", first, length) == wanted
            case 4:
                assert {each.name: each.size_bytes for each in patient.list("")} == {
                    each: len(held) for each, held in model.items()
                }
            case 5:
                assert patient.exists(name) == (name in model)
                if name in model:
                    patient.delete(name)
                    model.pop(name)
    bad.forgive()
    assert {each.name: patient.get(each.name) for each in patient.list("")} == model


def outcome(act: Callable[..., object], *given: object) -> object:
    """What came back, or the class of the error."""
    try:
        return act(*given)
    except ImagingError as error:
        return type(error)
