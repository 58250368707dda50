"""Who asks Google Cloud Storage: the key of a service account, the tokens that it is lent, and the server that lends
them, which answers as a bad one does. The bucket is in test_store_gcs.py."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from imaging.errors import AddressRefused, ImagingError, StoreError, StoreUnavailable
from imaging.storage.contract import Store
from imaging.storage.gcs import Bucket
from imaging.storage.gcs_key import ServiceAccount, Tokens, read_key
from imaging.storage.retrying import RetryingStore
from imaging.storage.wire import Limits, Unanswered
from tests.faults.bad_object_store import (
    Answer,
    BadObjectStore,
    Exchange,
    Reaction,
    broken,
    changed,
    cut_short,
    silent,
)
from tests.faults.cloud_cases import (
    CALLS,
    LOGIN,
    LONG,
    TEN,
    Cloud,
    answered,
    bad,
    direct,
    fill,
    own_certificate,
    patient,
    patiently,
    prefix,
    proxy,
    store,
    through,
    without,
)
from tests.faults.cloud_gcs import GCS, open_store, operation_of, refused, told
from tests.faults.counted_lock import CountedLock
from tests.lab.gcs_server import GcsServer, running

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


@pytest.fixture
def tokens(server: GcsServer) -> Iterator[BadObjectStore]:
    """What leads to the server of tokens."""
    with BadObjectStore(server.tokens.url, operation_of=operation_of) as proxy:
        yield proxy


@pytest.fixture
def account(server: GcsServer, tokens: BadObjectStore, tmp_path: Path) -> ServiceAccount:
    """Whose tokens come from there."""
    return read_key(server.tokens.key_file(tmp_path, url=tokens.url))


# Tokens


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
    for operation in {call.operation for call in CALLS.values()}:
        bad.fail(operation, guarded(server, set()), every=True)
    gate = threading.Barrier(8)

    def read(_: int) -> bytes:
        gate.wait()
        return mine.get("config")

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(read, range(8))) == {TEN}
    for call in CALLS.values():
        fill(mine)
        call.act(mine)
    assert tokens.calls["token"] == 1
    assert tokens.opened == 1


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


@pytest.mark.parametrize("call", sorted(CALLS))
def test_a_key_that_was_deleted_is_for_an_admin_to_mend(bad: BadObjectStore, patient: RetryingStore, call: str) -> None:
    """As in test_store_http.py; but the token that counted may have ended, so each request is made with two."""
    tried = CALLS[call]
    bad.fail(tried.operation, refused(401, "authError"), forever=True)
    before = bad.calls[tried.operation]
    with pytest.raises(StoreError) as caught:
        tried.act(patient)
    assert not caught.value.retryable
    assert "key" in caught.value.hint
    assert bad.calls[tried.operation] <= before + 2 * tried.requests, "it was asked again"


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
    "a page of something else": (LOGIN, True),
    "nothing": (told(b""), True),
    "null": (told(b"null"), True),
    "no token": (told(b"{}"), True),
    "a token that is none": (told(b'{"access_token": {"a": 1}, "expires_in": 3599}'), True),
    "a token of two lines": (told(b'{"access_token": "a\\r\\nX-Evil: b", "expires_in": 3599}'), True),
    "a time that is none": (told(b'{"access_token": "a", "expires_in": "m"}'), True),
    "deep": (told(b"[" * 200_000), True),
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
        for call in CALLS.values():
            for fault in (refused(403, "forbidden"), broken(), refused(500, "internalError")):
                bad.fail(call.operation, fault)
                with pytest.raises(ImagingError) as caught:
                    call.act(mine)
                bad.forgive()
                said.append(f"{caught.value} {caught.value.hint}")
    said += [record.getMessage() for record in caplog.records]
    assert any("POST" in line for line in said), "nothing was logged at all"
    hidden = [*server.tokens.lent, *server.tokens.private_key.splitlines()[1:-1], "assertion", account.key_id]
    assert not [line for line in said for secret in hidden if secret in line]


def test_the_server_of_tokens_is_checked_against_the_file_of_certificates_too(
    server: GcsServer, place: Bucket, store: Store, tmp_path: Path
) -> None:
    certificate = own_certificate(tmp_path / "server.pem")
    with BadObjectStore(server.tokens.url, certificate, operation_of) as secure:
        account = read_key(server.tokens.key_file(tmp_path, url=secure.url))
        assert open_store(replace(place, ca_file=str(certificate)), account).exists("config")
        with pytest.raises(StoreError) as caught:
            open_store(place, account).exists("config")
        assert "certificates" in caught.value.hint


# What is no key


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
