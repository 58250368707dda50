"""Google Cloud Storage that answers as a bad object store does: every fault ends in the right error, or in success, and
never in wrong data. What all object stores have in common is in test_store_object.py too."""

from __future__ import annotations

import json
import logging
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from email.message import Message
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

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
from imaging.storage.cloud import CloudStore
from imaging.storage.contract import Store
from imaging.storage.endpoints import parse_endpoint
from imaging.storage.gcs import Bucket, GcsClient, endpoint_of
from imaging.storage.gcs_key import ServiceAccount, Tokens, read_key
from imaging.storage.retrying import RetryingStore
from imaging.storage.wire import Limits, Unanswered
from tests.faults.bad_object_store import (
    Answer,
    BadObjectStore,
    Exchange,
    Reaction,
    broken,
    broken_after_success,
    changed,
    cut_short,
    garbled,
    late,
    silent,
    silent_after_success,
    slow,
    then,
)
from tests.faults.cloud_cases import SEVENTY, TEN, fill, longer, own_certificate, patiently, shorter, without
from tests.faults.counted_lock import CountedLock
from tests.lab.gcs_server import BUCKET, GcsServer, running

pytestmark = pytest.mark.faults

# Where nothing is shown by being short of patience, a busy machine has the time that the product gives.
LONG = Limits(connections=4)
HASTY = Limits(connections=4, silence_s=2.0)


def operation_of(method: str, path: str, headers: Message) -> str:
    query = parse_qs(urlsplit(path).query)
    if method == "POST":
        return "token" if path == "/token" else "create" if "ifGenerationMatch" in query else "put"
    if method == "DELETE":
        return "delete"
    return "get" if query.get("alt") == ["media"] else "head" if query.get("maxResults") == ["1"] else "list"


def refused(status: int, reason: str, message: str = "as the test wants it", **headers: str) -> Reaction:
    """Nothing is carried out. Without a reason, not in Google's form."""
    told = {"code": status, "message": message, "errors": [{"domain": "global", "reason": reason, "message": message}]}
    body = json.dumps({"error": told}).encode() if reason else b"<html>no</html>"
    kind = "application/json; charset=UTF-8" if reason else "text/html"
    return lambda exchange: exchange.reply(Answer(status, {"Content-Type": kind, **headers}, body))


def failed_after_success(status: int, reason: str) -> Reaction:
    return then(lambda exchange, answer: refused(status, reason)(exchange))


def answered(body: bytes, kind: str = "application/json") -> Reaction:
    return lambda exchange: exchange.reply(Answer(200, {"Content-Type": kind}, body))


@pytest.fixture(scope="module")
def server() -> GcsServer:
    return running()


@pytest.fixture(scope="module")
def proxy(server: GcsServer) -> Iterator[BadObjectStore]:
    with BadObjectStore(server.url, operation_of=operation_of) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def place(server: GcsServer, proxy: BadObjectStore) -> Bucket:
    return server.bucket(f"{secrets.token_hex(8)}/", url=proxy.url)


@pytest.fixture(scope="module")
def direct(server: GcsServer, place: Bucket) -> Store:
    """The same objects, past the proxy."""
    return open_store(replace(place, endpoint=parse_endpoint(server.url)), server.account, Limits())


@pytest.fixture(scope="module")
def through(server: GcsServer, place: Bucket) -> Store:
    return open_store(place, server.account)


@pytest.fixture(scope="module")
def hasty(server: GcsServer, place: Bucket) -> Store:
    """Who soon takes silence for one."""
    hasty = open_store(place, server.account, HASTY)
    patiently(hasty).exists("config")  # has a token that counts
    return hasty


@pytest.fixture
def bad(proxy: BadObjectStore) -> Iterator[BadObjectStore]:
    proxy.begin()
    yield proxy
    proxy.forgive()


@pytest.fixture
def store(bad: BadObjectStore, through: Store, direct: Store) -> Store:
    fill(direct)
    assert through.exists("config"), "its token counts"
    return through


@pytest.fixture
def patient(store: Store) -> RetryingStore:
    return patiently(store)


@pytest.fixture
def tokens(server: GcsServer) -> Iterator[BadObjectStore]:
    """What leads to the server of tokens."""
    with BadObjectStore(server.tokens.url, operation_of=operation_of) as proxy:
        yield proxy


@pytest.fixture
def account(server: GcsServer, tokens: BadObjectStore, tmp_path: Path) -> ServiceAccount:
    """Whose tokens come from there."""
    return read_key(server.tokens.key_file(tmp_path, url=tokens.url))


def open_store(place: Bucket, account: ServiceAccount, limits: Limits = LONG) -> CloudStore:
    return CloudStore(GcsClient(place, account, limits))


CALLS: Mapping[str, tuple[str, Callable[[Store], object]]] = {
    "put": ("put", lambda store: store.put("keys/aa", [TEN])),
    "create": ("create", lambda store: store.create("leases/aa/end", [b"mine"])),
    "get": ("get", lambda store: store.get("config")),
    "get a range": ("get", lambda store: store.get("packs/aa/seventy", 100, 60_000)),
    "exists": ("head", lambda store: store.exists("config")),
    "list": ("list", lambda store: list(store.list(""))),
    "delete": ("delete", lambda store: store.delete("config")),
    "delete_many": ("delete", lambda store: store.delete_many(["config", "packs/aa/seventy"])),
}

PASSING: Mapping[str, Reaction] = {
    "500": refused(500, "internalError"),
    "502 of a proxy": refused(502, ""),
    "503": refused(503, "backendError"),
    "429": refused(429, "rateLimitExceeded"),
    "403 of too many": refused(403, "userRateLimitExceeded"),
    "409": refused(409, "conflict"),
    "400 digest": refused(400, "invalid", 'Provided CRC32C "AAAAAA==" doesn\'t match calculated CRC32C "KAwGng==".'),
    "silence": silent(),
    "silence after success": silent_after_success(),
    "500 after success": failed_after_success(500, "internalError"),
    "a broken connection": broken(),
    "a broken connection after success": broken_after_success(),
}
SLOW: Mapping[str, set[str]] = {
    "silence": {"get", "list"},
    "silence after success": {"create", "delete"},
}


@pytest.mark.parametrize("call", sorted(CALLS))
def test_what_passes_is_called_unavailable_and_passes(
    bad: BadObjectStore, store: Store, hasty: Store, direct: Store, call: str
) -> None:
    operation, act = CALLS[call]
    for fault, reaction in PASSING.items():
        client = hasty if fault in SLOW else store
        if (operation not in ("put", "create") and fault == "400 digest") or (
            fault in SLOW and call not in SLOW[fault]
        ):
            continue  # what is not written has no digest; and silence takes its time
        fill(direct)
        direct.delete_many(["keys/aa", "leases/aa/end"])
        bad.fail(operation, reaction)
        with pytest.raises(StoreUnavailable) as caught:
            act(client)
        assert caught.value.retryable, fault
        assert caught.value.hint, fault

        bad.forgive()
        fill(direct)
        direct.delete_many(["keys/aa", "leases/aa/end"])
        bad.fail(operation, reaction)
        act(patiently(client))
        bad.forgive()
        gone = {"delete": {"config"}, "delete_many": {"config", "packs/aa/seventy"}}
        made = {"put": {"keys/aa"}, "create": {"leases/aa/end"}}
        left = {"config", "packs/aa/seventy"} | made.get(call, set())
        assert {listed.name for listed in direct.list("")} == left - gone.get(call, set()), fault


REFUSED: Mapping[str, tuple[int, str, str]] = {
    "a key that was deleted": (401, "authError", "key"),
    "no rights": (403, "forbidden", "rights"),
    "403 without a reason": (403, "", "rights"),
    "no bucket": (404, "notFound", "bucket"),
    "404 of something else": (404, "", "endpoint"),
    "412 of something else": (412, "", "endpoint"),
    "a retention policy": (403, "retentionPolicyNotMet", "policy"),
    "a hold": (403, "objectUnderActiveHold", "hold"),
    "a project that does not pay": (403, "accountDisabled", "disabled"),
    "400": (400, "invalid", "endpoint"),
    "elsewhere": (307, "", "endpoint"),
    "not here": (501, "notImplemented", "endpoint"),
}


@pytest.mark.parametrize("fault", sorted(REFUSED))
def test_what_an_admin_must_mend_is_said_at_once_and_how(
    bad: BadObjectStore, store: Store, patient: RetryingStore, fault: str
) -> None:
    """An object that is missing, or an empty listing, would be taken for the truth."""
    status, reason, hint = REFUSED[fault]
    for operation, act in CALLS.values():
        assert store.exists("config"), "its token counts"
        for each in {operation, "head" if status == 404 and operation in ("get", "delete") else operation}:
            bad.fail(each, refused(status, reason), forever=True)
        before = bad.calls[operation]
        with pytest.raises(StoreError) as caught:
            act(patient)
        assert not caught.value.retryable
        assert hint in caught.value.hint
        objects, tokens = 2, 2 if status == 401 else 1  # the token that counted may have ended
        assert bad.calls[operation] <= before + objects * tokens, "it was asked again"
        bad.forgive()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_nobody_is_followed_elsewhere(bad: BadObjectStore, server: GcsServer, store: Store, status: int) -> None:
    with BadObjectStore(server.url) as elsewhere:
        for operation, act in CALLS.values():
            bad.fail(operation, refused(status, "", Location=f"{elsewhere.url}/"), forever=True)
            with pytest.raises(StoreError):
                act(store)
            bad.forgive()
        assert elsewhere.opened == 0


def test_a_full_store_is_no_space(bad: BadObjectStore, store: Store) -> None:
    bad.fail("put", refused(507, "insufficientStorage"))
    with pytest.raises(NoSpace, match="packs/aa/new"):
        store.put("packs/aa/new", [TEN])


def test_what_a_server_says_reaches_no_terminal_as_it_is(bad: BadObjectStore, store: Store) -> None:
    bad.fail("put", refused(400, "\x9b31minvalid", "\x9b31m" + "x" * 5000))
    with pytest.raises(StoreError) as caught:
        store.put("config", [TEN])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "lost", [silent_after_success(), broken_after_success(), failed_after_success(503, "backendError")]
)
def test_a_create_whose_answer_is_lost_has_succeeded_and_is_known_by_its_bytes(
    bad: BadObjectStore, store: Store, hasty: Store, lost: Reaction
) -> None:
    bad.fail("create", lost)
    with pytest.raises(StoreUnavailable):
        hasty.create("leases/aa/end", [b"mine"])
    bad.settle()
    with pytest.raises(ObjectExists):
        store.create("leases/aa/end", [b"mine"])
    bad.forgive()
    bad.fail("create", lost)
    patiently(hasty).create("leases/bb/end", [b"mine"])
    assert store.get("leases/bb/end") == b"mine"


def test_a_create_that_failed_and_then_lost_against_another_has_lost(
    bad: BadObjectStore, store: Store, patient: RetryingStore, direct: Store
) -> None:
    def taken_by_another(exchange: Exchange) -> None:
        direct.create("leases/aa/end", [b"another's"])
        refused(500, "internalError")(exchange)

    bad.fail("create", taken_by_another)
    with pytest.raises(ObjectExists):
        patient.create("leases/aa/end", [b"mine"])
    assert store.get("leases/aa/end") == b"another's"


def test_a_page_of_something_else_is_no_answer(bad: BadObjectStore, store: Store, direct: Store) -> None:
    """A login page of some network, for example; or an answer to something else."""
    for page in (answered(b"<html>Please log in</html>", "text/html"), answered(b"{}"), answered(b"[]")):
        for operation, act in CALLS.values():
            bad.fail(operation, page)
            with pytest.raises(StoreUnavailable):
                act(store)
            bad.forgive()
    assert not direct.exists("keys/aa")


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


def ranged(said: str, length: int = 60_000) -> Callable[[Answer], Answer]:
    """As a cache that mixes up two requests."""
    return lambda answer: replace(answer, headers={**answer.headers, "Content-Range": said}, body=answer.body[:length])


WRONG: Mapping[str, Reaction] = {
    "cut short": cut_short(),
    "a byte less": changed(shorter),
    "a byte more": changed(longer),
    "another range": changed(ranged("bytes 200-60199/70000")),
    "a shorter range": changed(ranged("bytes 100-59999/70000", 59_900)),
    "a range that is none": changed(ranged("bytes all of them")),
    "no range at all": answered(SEVENTY[100:60_100], "application/octet-stream"),
    "not there, but listed": refused(404, "notFound"),
    "a trickle": slow(0.02),
}


@pytest.mark.parametrize("fault", sorted(WRONG))
def test_a_get_is_all_that_was_asked_for_or_an_error(
    bad: BadObjectStore, store: Store, hasty: Store, fault: str
) -> None:
    client = hasty if fault == "a trickle" else store
    bad.fail("get", WRONG[fault], nth=1)
    bad.fail("get", WRONG[fault], nth=2)
    with pytest.raises(StoreUnavailable):
        client.get("packs/aa/seventy", 100, 60_000)
    assert patiently(client).get("packs/aa/seventy", 100, 60_000) == SEVENTY[100:60_100]


def test_an_object_that_announces_too_much_is_not_read(bad: BadObjectStore, store: Store) -> None:
    headers = {"Content-Type": "application/octet-stream", "Content-Range": f"bytes 0-{(1 << 27) - 1}/{1 << 40}"}
    bad.fail("get", lambda exchange: exchange.reply(Answer(206, headers, TEN), length=1 << 40))
    with pytest.raises(Damaged, match="more than any object"):
        store.get("config")


# What is missing


def test_an_object_is_missing_only_where_a_listing_says_so(bad: BadObjectStore, store: Store) -> None:
    for call in (lambda: store.get("packs/aa/none"), lambda: store.delete("packs/aa/none")):
        with pytest.raises(ObjectMissing):
            call()
        bad.fail("head", refused(404, "notFound"))
        with pytest.raises(StoreError, match="404") as caught:
            call()
        assert "bucket" in caught.value.hint
        bad.forgive()
        bad.fail("head", answered(b"{}"))
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
        bad.fail(operation, answered(json.dumps(page).encode()))
    assert store.exists("packs/aa/seventy")
    assert [listed.name for listed in store.list("")] == ["config", "packs/aa/seventy"]


# Listings


def items(change: Callable[[dict[str, object]], object]) -> Reaction:
    """A listing with each of its objects changed."""

    def rewritten(answer: Answer) -> Answer:
        page = json.loads(answer.body)
        for each in page["items"]:
            change(each)
        return replace(answer, body=json.dumps(page).encode())

    return changed(rewritten)


NO_LISTING: Mapping[str, Reaction] = {
    "nothing": answered(b""),
    "no JSON": answered(b"Welcome"),
    "an empty object": answered(b"{}"),
    "null": answered(b"null"),
    "no number": answered(b"17"),
    "deep": answered(b"[" * 200_000),
    "half of it": cut_short(),
    "half of it, as if whole": changed(lambda answer: replace(answer, body=answer.body[: len(answer.body) // 2])),
    "of another kind": changed(without(rb"storage#objects", b"storage#buckets")),
    "objects that are none": answered(b'{"kind": "storage#objects", "items": [17]}'),
    "sizes that are none": items(lambda each: each.update(size="m")),
    "objects without a size": items(lambda each: each.pop("size")),
    "objects without a name": items(lambda each: each.pop("name")),
    "of other objects": items(lambda each: each.update(name="another/config")),
    "a next page that is none": changed(without(rb"\A{", b'{"nextPageToken": ["a"], ')),
}


@pytest.mark.parametrize("fault", sorted(NO_LISTING))
def test_a_listing_is_complete_or_an_error(
    bad: BadObjectStore, store: Store, patient: RetryingStore, fault: str
) -> None:
    bad.fail("list", NO_LISTING[fault], nth=1)
    bad.fail("list", NO_LISTING[fault], nth=2)
    with pytest.raises(StoreUnavailable):
        list(store.list("packs/"))
    assert [listed.name for listed in patient.list("packs/")] == ["packs/aa/seventy"]


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


def test_a_listing_without_any_object_is_not_believed_while_one_is_there(bad: BadObjectStore, store: Store) -> None:
    assert list(store.list("claims/")) == []
    store.create("leases/aa/end", [b"x"])
    bad.fail("list", answered(b'{"kind": "storage#objects"}'), forever=True)
    for prefix in ("leases/", "leases/aa/", ""):
        with pytest.raises(StoreUnavailable, match="is there"):
            list(store.list(prefix))
    bad.forgive()
    store.delete("leases/aa/end")
    assert list(store.list("leases/")) == []


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


# Slowness, and connections


def test_an_answer_that_is_late_is_waited_for(bad: BadObjectStore, store: Store) -> None:
    for operation in ("get", "list", "put"):
        bad.fail(operation, late(0.1))
    store.put("config", [TEN[::-1]])
    assert store.get("config") == TEN[::-1]
    assert len(list(store.list(""))) == 2


def test_a_connection_is_used_again(
    bad: BadObjectStore, server: GcsServer, place: Bucket, tokens: BadObjectStore, account: ServiceAccount
) -> None:
    store = open_store(place, account, Limits(connections=1))
    opened = bad.opened
    store.put("config", [TEN])
    for _ in range(5):
        assert store.get("config", 2, 3) == TEN[2:5]
        assert store.get("config") == TEN
        assert store.exists("config")
        assert not store.exists("other")
        assert len(list(store.list(""))) >= 1
    store.delete_many(["config", "a", "b", "c"])
    assert bad.opened == opened + 1
    assert tokens.opened == 1


# Who asks


def guarded(server: GcsServer, revoked: set[str]) -> Reaction:
    """As Google, and not the emulator: nobody without a token that was lent, and not taken back."""

    def react(exchange: Exchange) -> None:
        kind, _, token = (exchange.headers["Authorization"] or "").partition(" ")
        if kind != "Bearer" or token not in server.tokens.lent or token in revoked:
            refused(401, "authError", "Invalid Credentials")(exchange)
        else:
            exchange.reply(exchange.forward())

    return react


def test_every_request_has_a_token_and_all_have_the_same(
    bad: BadObjectStore, server: GcsServer, store: Store, place: Bucket, tokens: BadObjectStore, account: ServiceAccount
) -> None:
    mine = open_store(place, account)
    for operation in {operation for operation, _ in CALLS.values()}:
        bad.fail(operation, guarded(server, set()), every=True)
    gate = threading.Barrier(8)

    def read(_: int) -> bytes:
        gate.wait()
        return mine.get("config")

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(read, range(8))) == {TEN}
    for _, act in CALLS.values():
        fill(mine)
        act(mine)
    assert tokens.calls["token"] == 1


def test_a_token_that_is_taken_back_is_replaced_once(
    bad: BadObjectStore, server: GcsServer, store: Store, place: Bucket, tokens: BadObjectStore, account: ServiceAccount
) -> None:
    mine = open_store(place, account)
    revoked: set[str] = set()
    bad.fail("get", guarded(server, revoked), every=True)
    assert mine.get("config") == TEN
    revoked.add(server.tokens.lent[-1])
    with pytest.raises(StoreUnavailable):
        mine.get("config")
    assert patiently(mine).get("config") == TEN
    assert tokens.calls["token"] == 2
    revoked.add(server.tokens.lent[-1])
    assert patiently(mine).get("config") == TEN
    bad.forgive()

    bad.fail("get", refused(401, "authError"), forever=True)
    before = bad.calls["get"], tokens.calls["token"]
    with pytest.raises(StoreError, match="authError") as caught:
        patiently(mine).get("config")
    assert not caught.value.retryable
    assert "key" in caught.value.hint
    assert (bad.calls["get"], tokens.calls["token"]) == (before[0] + 2, before[1] + 1)


def test_who_is_late_with_a_token_that_was_replaced_tries_the_next(account: ServiceAccount) -> None:
    lender = Tokens(account)
    first = lender.token()
    lender.accepted(first)
    assert lender.refused(first), "it was good once"
    second = lender.token()
    lender.accepted(second)
    assert second != first
    assert lender.refused(first), "another request had it still"
    assert lender.token() == second
    assert lender.refused(second)
    third = lender.token()
    assert not lender.refused(third), "it never was any good"
    assert lender.token() != third
    assert not lender.refused(third), "nor for another request that had it still"


def test_a_token_is_fetched_anew_before_it_ends(
    store: Store, place: Bucket, tokens: BadObjectStore, account: ServiceAccount
) -> None:
    tokens.fail("token", changed(without(rb'"expires_in": \d+', b'"expires_in": 60')), nth=2)
    tokens.fail("token", changed(without(rb'"expires_in": \d+', b'"expires_in": "60"')), nth=1)
    mine = open_store(place, account)
    for _ in range(5):
        assert mine.get("config") == TEN
    assert tokens.calls["token"] == 3


LENDS_NOT: Mapping[str, tuple[Reaction, bool]] = {
    "500": (refused(500, ""), True),
    "503": (refused(503, "internal_failure"), True),
    "429": (refused(429, ""), True),
    "silence": (silent(), True),
    "a broken connection": (broken(), True),
    "half of it": (cut_short(), True),
    "a page of something else": (answered(b"<html>Please log in</html>", "text/html"), True),
    "nothing": (answered(b""), True),
    "null": (answered(b"null"), True),
    "no token": (answered(b"{}"), True),
    "a token that is none": (answered(b'{"access_token": {"a": 1}, "expires_in": 3599}'), True),
    "a token of two lines": (answered(b'{"access_token": "a\\r\\nX-Evil: b", "expires_in": 3599}'), True),
    "a time that is none": (answered(b'{"access_token": "a", "expires_in": "m"}'), True),
    "deep": (answered(b"[" * 200_000), True),
    "wrong": (answered(b"", "x"), True),
    "400": (lambda exchange: exchange.reply(Answer(400, {}, b'{"error": "invalid_grant"}')), False),
    "401": (refused(401, ""), False),
    "403": (refused(403, ""), False),
    "404": (refused(404, ""), False),
    "elsewhere": (refused(307, "", Location="https://example.org/"), False),
}


@pytest.mark.parametrize("fault", sorted(LENDS_NOT))
def test_a_server_that_lends_no_token_is_asked_once_and_waited_for_where_that_helps(
    bad: BadObjectStore, store: Store, place: Bucket, tokens: BadObjectStore, account: ServiceAccount, fault: str
) -> None:
    """Google's library would ask three times, a second apart; and asks for none of these words."""
    reaction, passes = LENDS_NOT[fault]
    # So long that what a busy machine keeps waiting is not taken for one more silence.
    mine = open_store(place, account, Limits(connections=4, silence_s=15.0) if fault == "silence" else LONG)
    tokens.fail("token", reaction)
    before = dict(bad.calls)
    with pytest.raises(StoreError) as caught:
        mine.get("config")
    assert caught.value.retryable == passes
    assert passes or "key" in caught.value.hint
    assert tokens.calls["token"] == 1
    assert bad.calls == before, "nothing was asked without a token"
    tokens.forgive()
    tokens.fail("token", reaction, nth=1)
    if passes:
        assert patiently(mine).get("config") == TEN
        assert tokens.calls["token"] == 3
    else:
        with pytest.raises(StoreError):
            patiently(mine).get("config")
        assert tokens.calls["token"] == 2


def test_who_waits_for_a_token_shares_its_failure(
    tokens: BadObjectStore, account: ServiceAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one silence after another; who comes later tries again."""
    lender, lock = Tokens(account), CountedLock()
    monkeypatch.setattr(lender, "_lock", lock)

    def held(exchange: Exchange) -> None:
        for _ in range(4):
            lock.came.acquire()
        exchange.hang_up()

    tokens.fail("token", held)
    with ThreadPoolExecutor(4) as pool:
        outcomes = [pool.submit(lender.token) for _ in range(4)]
        for each in outcomes:
            with pytest.raises(Unanswered):
                each.result()
    assert tokens.calls["token"] == 1
    assert lender.token().startswith("ya29.")
    assert tokens.calls["token"] == 2


def test_the_key_and_its_tokens_show_nowhere(
    bad: BadObjectStore, server: GcsServer, store: Store, place: Bucket, tokens: BadObjectStore,
    account: ServiceAccount, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with caplog.at_level(logging.DEBUG):
        mine = open_store(place, account)
        fill(mine)
        said = [repr(account), repr(mine), repr(place)]
        for operation, act in CALLS.values():
            for fault in (refused(403, "forbidden"), broken(), refused(500, "internalError")):
                bad.fail(operation, fault)
                with pytest.raises(ImagingError) as caught:
                    act(mine)
                bad.forgive()
                said.append(f"{caught.value} {caught.value.hint}")
    said += [record.getMessage() for record in caplog.records]
    assert any("POST" in line for line in said), "nothing was logged at all"
    hidden = [*server.tokens.lent, *server.tokens.private_key.splitlines()[1:-1], "assertion", account.key_id]
    assert not [line for line in said for secret in hidden if secret in line]


def test_the_real_servers_refuse(server: GcsServer, place: Bucket, store: Store, tmp_path: Path) -> None:
    for changed_key in ({"client_email": "hush@example.org"}, {"private_key_id": "hush"}):
        account = read_key(server.tokens.key_file(tmp_path, changed=changed_key))
        for _, act in CALLS.values():
            with pytest.raises(StoreError) as caught:
                act(open_store(place, account))
            assert not caught.value.retryable
            assert "key" in caught.value.hint
    for _, act in CALLS.values():
        with pytest.raises(StoreError) as caught:
            act(open_store(replace(place, name="no-such-bucket"), server.account))
        assert not caught.value.retryable
        assert "make the bucket first" in caught.value.hint


# Who answers


def test_nobody_at_the_endpoint_is_unavailable(server: GcsServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        place = server.bucket(url=f"http://127.0.0.1:{taken.getsockname()[1]}")
        for _, act in CALLS.values():
            with pytest.raises(StoreUnavailable):
                act(open_store(place, server.account))


def test_a_server_without_tls_is_no_passing_failure(server: GcsServer) -> None:
    store = open_store(server.bucket(url=server.url.replace("http:", "https:")), server.account)
    with pytest.raises(StoreError) as caught:
        store.get("config")
    assert not caught.value.retryable
    assert "certificates" in caught.value.hint


def test_tls_is_checked_against_the_file_of_certificates(
    server: GcsServer, place: Bucket, store: Store, tmp_path: Path
) -> None:
    certificate, other = own_certificate(tmp_path / "server.pem"), own_certificate(tmp_path / "other.pem")
    with BadObjectStore(server.url, certificate, operation_of) as secure:
        here = replace(place, endpoint=parse_endpoint(secure.url))
        trusted = open_store(replace(here, ca_file=str(certificate)), server.account)
        fill(trusted)
        with pytest.raises(ObjectExists):
            trusted.create("config", [b"mine"])
        assert trusted.get("packs/aa/seventy", 5, 60_000) == SEVENTY[5:60_005]
        for untrusted in (here, replace(here, ca_file=str(other))):
            with pytest.raises(StoreError) as caught:
                open_store(untrusted, server.account).get("config")
            assert not caught.value.retryable
            assert "certificates" in caught.value.hint
    with BadObjectStore(server.tokens.url, certificate, operation_of) as secure:
        account = read_key(server.tokens.key_file(tmp_path, url=secure.url))
        assert open_store(replace(place, ca_file=str(certificate)), account).exists("config")
        with pytest.raises(StoreError) as caught:
            open_store(place, account).exists("config")
        assert "certificates" in caught.value.hint
    with pytest.raises(AddressRefused, match=r"ca\.pem"):
        open_store(replace(place, ca_file=str(tmp_path / "ca.pem")), server.account)


def test_the_environment_decides_nothing(
    server: GcsServer, place: Bucket, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {
        "GOOGLE_APPLICATION_CREDENTIALS": "/no/such/file",
        "GOOGLE_CLOUD_PROJECT": "wrong",
        "GOOGLE_CLOUD_UNIVERSE_DOMAIN": "example.org",
        "GOOGLE_SDK_EXPERIMENTAL_PYTHON_REGIONAL_ACCESS_BOUNDARY_LOOKUP_ENABLED": "1",
        "STORAGE_EMULATOR_HOST": "http://127.0.0.1:1",
        "GCE_METADATA_HOST": "127.0.0.1:1",
        "REQUESTS_CA_BUNDLE": "/no/such/file",
        "SSL_CERT_FILE": "/no/such/file",
        "HTTP_PROXY": "http://127.0.0.1:1",
        "http_proxy": "http://127.0.0.1:1",
        "all_proxy": "http://127.0.0.1:1",
    }.items():
        monkeypatch.setenv(name, value)
    assert open_store(place, server.account).get("config") == TEN


def test_another_machine_is_reached_through_the_proxy_that_the_environment_names(
    server: GcsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked to connect there, and refuses."""
    with BadObjectStore(server.url) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        with pytest.raises(StoreUnavailable, match="501"):
            open_store(Bucket(endpoint_of(), BUCKET), server.account).get("config")
        assert proxy.opened == 1


# What is no place, and no key


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


def elliptic() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")


NO_KEY: Mapping[str, Mapping[str, object]] = {
    "a person's": {"type": "authorized_user"},
    "one of somewhere else": {"type": "external_account"},
    "of another cloud": {"universe_domain": "hush.example"},
    "without an address": {"client_email": None},
    "without a number": {"private_key_id": None},
    "no private key": {"private_key": "hush"},
    "half a private key": {"private_key": "-----BEGIN PRIVATE KEY-----\nhush\n-----END PRIVATE KEY-----\n"},
    "one that Google has not": {"private_key": elliptic()},
    "tokens of the machine's own": {"token_uri": "http://169.254.169.254/token"},
    "tokens of the metadata": {"token_uri": "http://metadata.google.internal/token"},
    "tokens that all can read": {"token_uri": "http://tokens.example.org/token"},
    "tokens with a password": {"token_uri": "https://me:hush@tokens.example.org/token"},
    "tokens by a query": {"token_uri": "https://tokens.example.org/token?to=hush"},
    "tokens of no server": {"token_uri": "token"},
    "tokens of nothing": {"token_uri": 5},
}


@pytest.mark.parametrize("fault", sorted(NO_KEY))
def test_what_is_no_key_is_refused_and_not_repeated(server: GcsServer, tmp_path: Path, fault: str) -> None:
    path = server.tokens.key_file(tmp_path, changed=NO_KEY[fault])
    with pytest.raises(AddressRefused) as caught:
        read_key(path)
    assert "hush" not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize("content", [b"", b"hush", b"[]", b"null", b"[" * 60_000, b"\xff\xfe", b'{"type": "x"}' * 9000])
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key.json"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(AddressRefused, match=r"key\.json") as caught:
        read_key(path)
    assert "hush" not in str(caught.value)


def test_a_key_file_is_its_owners_alone(server: GcsServer, tmp_path: Path) -> None:
    path = server.tokens.key_file(tmp_path)
    path.chmod(0o640)
    with pytest.raises(AddressRefused, match="others may read it") as caught:
        read_key(path)
    assert caught.value.hint == f"chmod 0600 {path}"
    path.unlink()
    with pytest.raises(AddressRefused, match="No such file"):
        read_key(path)


def test_only_who_uses_it_needs_its_libraries() -> None:
    """The extra is optional: nothing else may load it."""
    code = (
        "import sys; import imaging.storage.locations, imaging.storage.s3, appliance.cli, imaging.serving;"
        "sys.exit(any(name.partition('.')[0] in ('google', 'google_crc32c') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
