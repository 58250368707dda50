"""The object store that answers as a bad one does: every fault ends in the right error, or in success, and never in
wrong data."""

from __future__ import annotations

import contextlib
import random
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from imaging.errors import (
    AddressRefused,
    Damaged,
    ImagingError,
    NoSpace,
    ObjectExists,
    ObjectMissing,
    StoreError,
    StoreUnavailable,
)
from imaging.storage.contract import Store
from imaging.storage.endpoints import parse_endpoint
from imaging.storage.retrying import RetryingStore
from imaging.storage.s3 import Bucket, Credentials, Limits, S3Store
from tests.faults.bad_object_store import (
    Answer,
    BadObjectStore,
    Exchange,
    Reaction,
    broken,
    broken_after_success,
    changed,
    cut_short,
    empty_listing,
    failed_after_success,
    late,
    refused,
    silent,
    silent_after_success,
    slow,
)
from tests.faults.cloud_cases import SEVENTY, TEN, fill, longer, own_certificate, patiently, shorter, without
from tests.lab.s3_server import S3Server, running

pytestmark = pytest.mark.faults

# Where nothing is shown by being short of patience, a busy machine has the time that the product gives.
LONG = Limits(connections=4)
HASTY = Limits(connections=4, silence_s=2.0)
SILENCES = ("silence", "silence after success")


@pytest.fixture(scope="module")
def server() -> S3Server:
    return running()


@pytest.fixture(scope="module")
def proxy(server: S3Server) -> Iterator[BadObjectStore]:
    with BadObjectStore(server.url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def place(server: S3Server, proxy: BadObjectStore) -> Bucket:
    return server.bucket(f"{secrets.token_hex(8)}/", url=proxy.url)


@pytest.fixture(scope="module")
def direct(server: S3Server, place: Bucket) -> S3Store:
    """The same objects, past the proxy."""
    return S3Store(replace(place, endpoint=parse_endpoint(server.url)), server.credentials)


@pytest.fixture(scope="module")
def through(server: S3Server, place: Bucket) -> S3Store:
    """One for all tests, as a client takes a fifth of a second to make."""
    return S3Store(place, server.credentials, LONG)


@pytest.fixture(scope="module")
def hasty(server: S3Server, place: Bucket) -> S3Store:
    """Who soon takes silence for one."""
    return S3Store(place, server.credentials, HASTY)


@pytest.fixture
def bad(proxy: BadObjectStore) -> Iterator[BadObjectStore]:
    proxy.begin()
    yield proxy
    proxy.forgive()


@pytest.fixture
def store(bad: BadObjectStore, through: S3Store, direct: S3Store) -> S3Store:
    fill(direct)
    return through


@pytest.fixture
def patient(store: S3Store) -> RetryingStore:
    return patiently(store)


def create(store: Store) -> None:
    store.create("leases/aa/end", [b"mine"])


CALLS: Mapping[str, tuple[str, Callable[[Store], object]]] = {
    "put": ("put", lambda store: store.put("keys/aa", [TEN])),
    "create": ("create", create),
    "get": ("get", lambda store: store.get("config")),
    "get a range": ("get", lambda store: store.get("packs/aa/seventy", 100, 60_000)),
    "get nothing": ("get", lambda store: store.get("config", 3, 0)),
    "exists": ("get", lambda store: store.exists("config")),
    "list": ("list", lambda store: list(store.list(""))),
    "look before delete": ("get", lambda store: store.delete("config")),
    "delete": ("delete", lambda store: store.delete("config")),
    "delete_many": ("delete_many", lambda store: store.delete_many(["config", "packs/aa/seventy"])),
}

PASSING: Mapping[str, Reaction] = {
    "500": refused(500, "InternalError"),
    "500 without a body": refused(500, ""),
    "502 of a proxy": refused(502, ""),
    "503": refused(503, "SlowDown"),
    "429": refused(429, "TooManyRequests"),
    "409": refused(409, "OperationAborted"),
    "400 time-out": refused(400, "RequestTimeout"),
    "400 digest": refused(400, "BadDigest"),
    "silence": silent(),
    "silence after success": silent_after_success(),
    "500 after success": failed_after_success(500, "InternalError"),
    "a broken connection": broken(),
    "a broken connection after success": broken_after_success(),
}


@pytest.mark.parametrize("fault", sorted(PASSING))
@pytest.mark.parametrize("call", sorted(CALLS))
def test_what_passes_is_called_unavailable_and_passes(
    bad: BadObjectStore, store: S3Store, hasty: S3Store, direct: S3Store, call: str, fault: str
) -> None:
    operation, act = CALLS[call]
    client = hasty if fault in SILENCES else store
    bad.fail(operation, PASSING[fault])
    with pytest.raises(StoreUnavailable) as caught:
        act(client)
    assert caught.value.retryable
    assert caught.value.hint
    assert caught.value.name in str(caught.value)

    bad.forgive()
    fill(direct)
    bad.fail(operation, PASSING[fault])
    act(patiently(client))
    bad.settle()
    gone = {"delete": {"config"}, "look before delete": {"config"}, "delete_many": {"config", "packs/aa/seventy"}}
    made = {"put": {"keys/aa"}, "create": {"leases/aa/end"}}
    left = {"config", "packs/aa/seventy"} | made.get(call, set())
    assert {listed.name for listed in direct.list("")} == left - gone.get(call, set())


REFUSED: Mapping[str, tuple[Reaction, str]] = {
    "expired": (refused(403, "ExpiredToken"), "expired"),
    "expired, by 400": (refused(400, "ExpiredToken"), "expired"),
    "unknown key": (refused(403, "InvalidAccessKeyId"), "access key"),
    "wrong secret": (refused(403, "SignatureDoesNotMatch"), "secret"),
    "no rights": (refused(403, "AccessDenied"), "rights"),
    "403 without a body": (refused(403, ""), "rights"),
    "401": (refused(401, "Unauthorized"), "rights"),
    "wrong clock": (refused(403, "RequestTimeTooSkewed"), "clock"),
    "no bucket": (refused(404, "NoSuchBucket"), "bucket"),
    "404 of something else": (refused(404, ""), "endpoint"),
    "wrong region": (refused(400, "AuthorizationHeaderMalformed"), "region"),
    "elsewhere": (refused(301, "PermanentRedirect"), "region"),
    "not here": (refused(501, "NotImplemented"), "endpoint"),
    "wrong method": (refused(405, "MethodNotAllowed"), "endpoint"),
}


@pytest.mark.parametrize("fault", sorted(REFUSED))
@pytest.mark.parametrize("call", sorted(CALLS))
def test_what_an_admin_must_mend_is_said_at_once_and_how(
    bad: BadObjectStore, store: S3Store, patient: RetryingStore, call: str, fault: str
) -> None:
    """An object that is missing, or an empty listing, would be taken for the truth."""
    operation, act = CALLS[call]
    reaction, hint = REFUSED[fault]
    bad.fail(operation, reaction, forever=True)
    before = bad.calls[operation]
    with pytest.raises(StoreError) as caught:
        act(patient)
    assert not caught.value.retryable
    assert hint in caught.value.hint
    assert bad.calls[operation] == before + 1, "it was asked again"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_nobody_is_followed_elsewhere(bad: BadObjectStore, server: S3Server, store: S3Store, status: int) -> None:
    with BadObjectStore(server.url) as elsewhere:
        headers = {"Location": f"{elsewhere.url}/", "x-amz-bucket-region": "eu-west-1"}
        for call in ("get", "put", "list", "delete_many"):
            operation, act = CALLS[call]
            bad.fail(operation, refused(status, "PermanentRedirect", **headers), forever=True)
            asked = sum(bad.calls.values())
            with pytest.raises(StoreError):
                act(store)
            assert sum(bad.calls.values()) == asked + 1
        assert elsewhere.opened == 0


@pytest.mark.parametrize(
    "full", [refused(507, "InsufficientStorage"), refused(403, "QuotaExceeded"), refused(507, "XMinioStorageFull")]
)
def test_a_full_store_is_no_space(bad: BadObjectStore, store: S3Store, full: Reaction) -> None:
    bad.fail("put", full)
    with pytest.raises(NoSpace) as caught:
        store.put("packs/aa/new", [TEN])
    assert "packs/aa/new" in str(caught.value)


def test_what_a_server_says_reaches_no_terminal_as_it_is(bad: BadObjectStore, store: S3Store) -> None:
    bad.fail("put", refused(400, "InvalidRequest", "&#x9b;31m" + "x" * 5000))
    with pytest.raises(StoreError) as caught:
        store.put("config", [TEN])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


# A write whose answer is lost


@pytest.mark.parametrize(
    "lost", [silent_after_success(), broken_after_success(), failed_after_success(503, "SlowDown")]
)
def test_a_create_whose_answer_is_lost_has_succeeded_and_is_known_by_its_bytes(
    bad: BadObjectStore, store: S3Store, hasty: S3Store, lost: Reaction
) -> None:
    bad.fail("create", lost)
    with pytest.raises(StoreUnavailable):
        hasty.create("leases/aa/end", [b"mine"])
    bad.settle()
    assert store.get("leases/aa/end") == b"mine"
    with pytest.raises(ObjectExists):
        store.create("leases/aa/end", [b"mine"])

    bad.forgive()
    bad.fail("create", lost)
    patiently(hasty).create("leases/bb/end", [b"mine"])
    assert store.get("leases/bb/end") == b"mine"


def test_a_create_that_failed_and_then_lost_against_another_has_lost(
    bad: BadObjectStore, store: S3Store, patient: RetryingStore, direct: S3Store
) -> None:
    def taken_by_another(exchange: Exchange) -> None:
        direct.create("leases/aa/end", [b"another's"])
        refused(500, "InternalError")(exchange)

    bad.fail("create", taken_by_another)
    with pytest.raises(ObjectExists):
        patient.create("leases/aa/end", [b"mine"])
    assert store.get("leases/aa/end") == b"another's"


def test_a_put_whose_answer_is_no_answer_did_not_succeed(bad: BadObjectStore, store: S3Store) -> None:
    """A login page of some network, for example."""
    page = Answer(200, {"Content-Type": "text/html"}, b"<html>Please log in</html>")
    for operation, act in (CALLS["put"], CALLS["create"]):
        bad.fail(operation, lambda exchange: exchange.reply(page))
        with pytest.raises(StoreUnavailable):
            act(store)
    assert not store.exists("keys/aa")


# A read that is not what was asked for


def other_range(answer: Answer) -> Answer:
    """As a cache that mixes up two requests."""
    return replace(answer, headers={**answer.headers, "Content-Range": "bytes 200-60199/70000"})


def shorter_range(answer: Answer) -> Answer:
    headers = {**answer.headers, "Content-Range": "bytes 100-59999/70000"}
    return replace(answer, headers=headers, body=answer.body[:59_900])


def nonsense(answer: Answer) -> Answer:
    return replace(answer, headers={**answer.headers, "Content-Range": "bytes all of them"})


WRONG: Mapping[str, Reaction] = {
    "cut short": cut_short(),
    "a byte less": changed(shorter),
    "a byte more": changed(longer),
    "another range": changed(other_range),
    "a shorter range": changed(shorter_range),
    "a range that is none": changed(nonsense),
}


@pytest.mark.parametrize("fault", sorted(WRONG))
def test_a_get_is_all_that_was_asked_for_or_an_error(
    bad: BadObjectStore, store: S3Store, patient: RetryingStore, fault: str
) -> None:
    bad.fail("get", WRONG[fault], nth=1)
    bad.fail("get", WRONG[fault], nth=2)
    with pytest.raises(StoreUnavailable):
        store.get("packs/aa/seventy", 100, 60_000)
    assert patient.get("packs/aa/seventy", 100, 60_000) == SEVENTY[100:60_100]


def test_a_whole_object_that_ends_early_is_an_error(bad: BadObjectStore, store: S3Store) -> None:
    bad.fail("get", cut_short())
    with pytest.raises(StoreUnavailable):
        store.get("packs/aa/seventy")
    assert store.get("packs/aa/seventy") == SEVENTY


def test_a_refusal_that_is_cut_short_refuses_nothing(
    bad: BadObjectStore, store: S3Store, patient: RetryingStore
) -> None:
    """Nobody can tell then whether the object was missing, or the bucket."""
    bad.fail("get", cut_short(), nth=1)
    bad.fail("get", cut_short(), nth=2)
    with pytest.raises(StoreUnavailable):
        store.get("packs/aa/none")
    assert not patient.exists("packs/aa/none")


def test_a_server_that_knows_no_ranges_is_read_all_the_same(bad: BadObjectStore, store: S3Store) -> None:
    headers = {"Content-Type": "application/octet-stream"}
    bad.fail("get", lambda exchange: exchange.reply(Answer(200, headers, SEVENTY)), forever=True)
    assert store.get("packs/aa/seventy", 100, 60_000) == SEVENTY[100:60_100]
    assert store.get("packs/aa/seventy", 69_000) == SEVENTY[69_000:]
    assert store.get("packs/aa/seventy", 70_000) == b""
    assert store.exists("packs/aa/seventy")
    with pytest.raises(Damaged):
        store.get("packs/aa/seventy", 69_999, 2)


def test_an_object_that_announces_too_much_is_not_read(bad: BadObjectStore, store: S3Store) -> None:
    announced = Answer(200, {"Content-Type": "application/octet-stream"}, TEN)
    bad.fail("get", lambda exchange: exchange.reply(announced, length=1 << 40))
    with pytest.raises(Damaged, match="more than any object"):
        store.get("config")


# Listings


NO_LISTING: Mapping[str, Reaction] = {
    "nothing": changed(lambda answer: replace(answer, body=b"")),
    "a page of another server": changed(lambda answer: replace(answer, body=b"<html><body>Welcome</body></html>")),
    "no XML": changed(lambda answer: replace(answer, body=b"Welcome")),
    "an empty element": changed(lambda answer: replace(answer, body=b"<ListBucketResult/>")),
    "half of it": cut_short(),
    "half of it, as if whole": changed(lambda answer: replace(answer, body=answer.body[: len(answer.body) // 2])),
    "without its end": changed(without(rb"<IsTruncated>.*?</IsTruncated>")),
    "of another bucket": changed(without(rb"<Name>.*?</Name>", b"<Name>another</Name>")),
    "of another prefix": changed(without(rb"<Prefix>.*?</Prefix>", b"<Prefix>another/</Prefix>")),
    "one object less than it counts": changed(without(rb"<Contents>.*?</Contents>")),
    "more to come and no way to it": changed(without(rb"false", b"true")),
    "sizes that are none": changed(without(rb"<Size>.*?</Size>", b"<Size>many</Size>")),
    "objects without a name": changed(without(rb"<Key>.*?</Key>")),
    "of other objects": changed(without(rb"<Key>.*?</Key>", b"<Key>another/config</Key>")),
}


@pytest.mark.parametrize("fault", sorted(NO_LISTING))
def test_a_listing_is_complete_or_an_error(
    bad: BadObjectStore, store: S3Store, patient: RetryingStore, fault: str
) -> None:
    bad.fail("list", NO_LISTING[fault], nth=1)
    bad.fail("list", NO_LISTING[fault], nth=2)
    with pytest.raises(StoreUnavailable):
        list(store.list("packs/"))
    assert [listed.name for listed in patient.list("packs/")] == ["packs/aa/seventy"]


def test_a_listing_in_pages_is_complete_sorted_and_fails_as_a_whole(
    bad: BadObjectStore, store: S3Store, direct: S3Store
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


def test_a_listing_without_any_object_is_not_believed_while_one_is_there(bad: BadObjectStore, store: S3Store) -> None:
    assert list(store.list("claims/")) == []
    store.create("leases/aa/end", [b"x"])
    assert store.exists("packs/aa/seventy")
    bad.fail("list", empty_listing(), forever=True)
    for prefix in ("leases/", "leases/aa/", "packs/", ""):
        with pytest.raises(StoreUnavailable, match="is there"):
            list(store.list(prefix))
    assert list(store.list("leases/bb/")) == []
    store.delete("leases/aa/end")
    assert list(store.list("leases/")) == []


def test_an_object_that_another_deleted_is_no_witness(store: S3Store, direct: S3Store) -> None:
    store.put("leases/aa/end", [b"x"])
    direct.delete("leases/aa/end")
    assert list(store.list("leases/")) == []


def test_what_is_no_object_of_ours_is_passed_over(place: Bucket, store: S3Store) -> None:
    strange = ("Upper", "tmp/x", "a b", "folder/", ".hidden", "packs/ü", "packs/aa/x\ny", f"{'a' * 200}/{'b' * 100}")
    for key in strange:
        store._client.put_object(Bucket=place.name, Key=place.prefix + key, Body=b"theirs")
    shown = store._client.list_objects_v2(Bucket=place.name, Prefix=place.prefix)["Contents"]
    assert len(shown) == len(strange) + 2
    for key in strange:
        store._client.delete_object(Bucket=place.name, Key=place.prefix + key)
    assert [listed.name for listed in store.list("")] == ["config", "packs/aa/seventy"]


# Deleting many


def told(body: str) -> Reaction:
    return lambda exchange: exchange.reply(Answer(200, {"Content-Type": "application/xml"}, body.encode()))


def test_one_that_cannot_be_deleted_is_an_error(bad: BadObjectStore, store: S3Store, place: Bucket) -> None:
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


def test_what_is_not_said_to_be_deleted_is_deleted_one_by_one(bad: BadObjectStore, store: S3Store) -> None:
    bad.fail("delete_many", told("<DeleteResult/>"))
    store.delete_many(["config", "packs/aa/seventy"])
    assert bad.calls["delete"] == 2
    assert list(store.list("")) == []


# Slowness


def test_an_answer_that_is_late_is_waited_for(bad: BadObjectStore, store: S3Store) -> None:
    for operation in ("get", "list", "put"):
        bad.fail(operation, late(0.2))
    store.put("config", [TEN[::-1]])
    assert store.get("config") == TEN[::-1]
    assert len(list(store.list(""))) == 2


def test_an_answer_that_trickles_is_ended(bad: BadObjectStore, server: S3Server, store: S3Store, place: Bucket) -> None:
    # So long that what a busy machine keeps waiting is not taken for silence.
    waits = S3Store(place, server.credentials, Limits(connections=4, silence_s=15.0))
    bad.fail("get", slow(0.02))
    with pytest.raises(StoreUnavailable, match="too slow"):
        waits.get("packs/aa/seventy")


def test_connections_are_bounded(server: S3Server, store: S3Store, place: Bucket) -> None:
    with BadObjectStore(server.url) as bad:
        bounded = S3Store(replace(place, endpoint=parse_endpoint(bad.url)), server.credentials, Limits(connections=3))
        bad.fail("get", late(0.02), every=True)
        with ThreadPoolExecutor(12) as readers:
            read = list(readers.map(lambda first: bounded.get("packs/aa/seventy", first, 5_000), range(48)))
        assert read == [SEVENTY[first : first + 5_000] for first in range(48)]
        assert bad.most_connections == 3


def test_a_connection_is_used_again(bad: BadObjectStore, server: S3Server, place: Bucket) -> None:
    store = S3Store(place, server.credentials, Limits(connections=1))
    opened = bad.opened
    store.put("config", [TEN])
    for _ in range(20):
        assert store.get("config", 2, 3) == TEN[2:5]
        assert store.get("config") == TEN
        assert store.exists("config")
        assert not store.exists("other")
    assert bad.opened == opened + 1


# A server that is not there, and one that does not want us


def test_nobody_at_the_endpoint_is_unavailable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        store = S3Store(Bucket(parse_endpoint(url), "bucket"), Credentials("a", "b"), LONG)
        for _, act in CALLS.values():
            with pytest.raises(StoreUnavailable):
                act(store)


def test_a_server_without_tls_is_no_passing_failure(server: S3Server) -> None:
    store = S3Store(server.bucket(url=server.url.replace("http:", "https:")), server.credentials, LONG)
    with pytest.raises(StoreError) as caught:
        store.get("config")
    assert not caught.value.retryable
    assert "certificates" in caught.value.hint


def test_tls_is_checked_against_the_file_of_certificates(server: S3Server, place: Bucket, tmp_path: Path) -> None:
    """Requests are signed otherwise than without TLS, and the real server has to like it."""
    certificate, other = own_certificate(tmp_path / "server.pem"), own_certificate(tmp_path / "other.pem")
    with BadObjectStore(server.url, certificate) as secure:
        here = replace(place, endpoint=parse_endpoint(secure.url))
        store = S3Store(replace(here, ca_file=str(certificate)), server.credentials, LONG)
        fill(store)
        store.create("leases/aa/end", [b"mine"])
        with pytest.raises(ObjectExists):
            store.create("leases/aa/end", [b"mine"])
        assert store.get("packs/aa/seventy", 5, 60_000) == SEVENTY[5:60_005]
        assert len(list(store.list(""))) == 3
        store.delete_many(["leases/aa/end", "config"])
        store.delete("packs/aa/seventy")
        for untrusted in (here, replace(here, ca_file=str(other))):
            with pytest.raises(StoreError) as caught:
                S3Store(untrusted, server.credentials, LONG).get("config")
            assert not caught.value.retryable
            assert "certificates" in caught.value.hint
        assert secure.calls["put"] == 2
        secure.fail("get", broken())
        with pytest.raises(StoreUnavailable):
            store.get("config")


@pytest.mark.parametrize("call", sorted(CALLS))
def test_the_real_server_refuses(server: S3Server, place: Bucket, store: S3Store, call: str) -> None:
    _, act = CALLS[call]
    for credentials, place_, hint in (
        (Credentials("nobody", "knows"), place, "access key"),
        (Credentials(server.credentials.access_key, "wrong"), place, "secret"),
        (server.without_rights, place, "rights"),
        (server.credentials, replace(place, name="no-such-bucket"), "bucket"),
    ):
        with pytest.raises(StoreError) as caught:
            act(S3Store(place_, credentials, LONG))
        assert not caught.value.retryable
        assert hint in caught.value.hint
        assert credentials.secret_key not in str(caught.value)
    assert store.get("config") == TEN


def test_the_environment_decides_nothing(
    server: S3Server, place: Bucket, store: S3Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text(
        "[default]\ns3 =\n  addressing_style = virtual\nendpoint_url = http://127.0.0.1:1\n"
    )
    for name, value in {
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_PROFILE": "no-such-profile",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
        "AWS_ACCESS_KEY_ID": "wrong",
        "AWS_SESSION_TOKEN": "wrong",
        "AWS_CA_BUNDLE": "/no/such/file",
        "AWS_MAX_ATTEMPTS": "7",
        "AWS_USE_FIPS_ENDPOINT": "true",
        "HTTP_PROXY": "http://127.0.0.1:1",
        "http_proxy": "http://127.0.0.1:1",
    }.items():
        monkeypatch.setenv(name, value)
    assert S3Store(place, server.credentials, LONG).get("config") == TEN


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


def test_a_file_of_certificates_that_is_not_there_is_named(tmp_path: Path) -> None:
    place = Bucket(parse_endpoint("https://s3.example.org"), "bucket", ca_file=str(tmp_path / "ca.pem"))
    with pytest.raises(AddressRefused, match=r"ca\.pem"):
        S3Store(place, Credentials("a", "b"))


# All at once


@pytest.mark.parametrize("seed", range(3))
def test_random_operations_over_a_bad_server_end_as_on_a_plain_dictionary(
    bad: BadObjectStore, store: S3Store, server: S3Server, place: Bucket, seed: int
) -> None:
    # A request that was given up must not come after what is written next: few silences, long ones, and all is met.
    patient = patiently(S3Store(place, server.credentials, Limits(connections=4, silence_s=4.0)))
    passing = [reaction for name, reaction in PASSING.items() if name not in SILENCES]
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
