"""Azure Blob Storage that answers as a bad object store does: every fault ends in the right error, or in success, and
never in wrong data. What all object stores have in common is in test_store_object.py too."""

from __future__ import annotations

import logging
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from azure.storage.blob import ContainerSasPermissions, generate_container_sas

from imaging.errors import AddressRefused, Damaged, ImagingError, NoSpace, ObjectExists, StoreError, StoreUnavailable
from imaging.storage.azure import AzureClient, Container, Credentials, endpoint_of
from imaging.storage.cloud import CloudStore
from imaging.storage.contract import Store
from imaging.storage.endpoints import parse_endpoint
from imaging.storage.retrying import RetryingStore
from imaging.storage.wire import Limits, Unanswered, Wire
from tests.faults.bad_object_store import (
    Answer,
    BadObjectStore,
    Exchange,
    Reaction,
    broken,
    broken_after_success,
    changed,
    cut_short,
    failed_after_success,
    late,
    refused,
    silent,
    silent_after_success,
    slow,
)
from tests.faults.cloud_cases import SEVENTY, TEN, fill, longer, own_certificate, patiently, shorter, without
from tests.lab.azurite import ACCOUNT, CONTAINER, Azurite, running

pytestmark = pytest.mark.faults

# Where nothing is shown by being short of patience, a busy machine has the time that the product gives.
LONG = Limits(connections=4)
HASTY = Limits(connections=4, silence_s=2.0)


@pytest.fixture(scope="module")
def server() -> Azurite:
    return running()


@pytest.fixture(scope="module")
def proxy(server: Azurite) -> Iterator[BadObjectStore]:
    with BadObjectStore(server.url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def place(server: Azurite, proxy: BadObjectStore) -> Container:
    return server.container(f"{secrets.token_hex(8)}/", url=proxy.url)


@pytest.fixture(scope="module")
def direct(server: Azurite, place: Container) -> Store:
    """The same objects, past the proxy."""
    return open_store(replace(place, endpoint=parse_endpoint(server.url)), server.credentials, Limits())


@pytest.fixture(scope="module")
def through(server: Azurite, place: Container) -> Store:
    return open_store(place, server.credentials)


@pytest.fixture(scope="module")
def hasty(server: Azurite, place: Container) -> Store:
    """Who soon takes silence for one."""
    return open_store(place, server.credentials, HASTY)


@pytest.fixture
def bad(proxy: BadObjectStore) -> Iterator[BadObjectStore]:
    proxy.begin()
    yield proxy
    proxy.forgive()


@pytest.fixture
def store(bad: BadObjectStore, through: Store, direct: Store) -> Store:
    fill(direct)
    return through


@pytest.fixture
def patient(store: Store) -> RetryingStore:
    return patiently(store)


def open_store(place: Container, credentials: Credentials, limits: Limits = LONG) -> CloudStore:
    return CloudStore(AzureClient(place, credentials, limits))


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
    "500": refused(500, "InternalError"),
    "502 of a proxy": refused(502, ""),
    "503": refused(503, "ServerBusy"),
    "429": refused(429, "TooManyRequests"),
    "409": refused(409, "OperationInProgress"),
    "400 digest": refused(400, "Md5Mismatch"),
    "silence": silent(),
    "silence after success": silent_after_success(),
    "500 after success": failed_after_success(500, "OperationTimedOut"),
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
        if (operation == "head" and fault == "400 digest") or (fault in SLOW and call not in SLOW[fault]):
            continue  # a HEAD has no body that could say so; and silence takes its time
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
    "wrong key": (403, "AuthenticationFailed", "key"),
    "no rights": (403, "AuthorizationPermissionMismatch", "rights"),
    "403 without a code": (403, "", "rights"),
    "401": (401, "NoAuthenticationInformation", "key"),
    "no container": (404, "ContainerNotFound", "container"),
    "404 of something else": (404, "", "endpoint"),
    "a container that goes": (409, "ContainerBeingDeleted", "container"),
    "a policy": (409, "BlobImmutableDueToPolicy", "policy"),
    "an archive": (409, "BlobArchived", "archive"),
    "a lease": (412, "LeaseIdMissing", "lease"),
    "elsewhere": (307, "", "endpoint"),
    "not here": (501, "NotImplemented", "endpoint"),
}


@pytest.mark.parametrize("fault", sorted(REFUSED))
def test_what_an_admin_must_mend_is_said_at_once_and_how(
    bad: BadObjectStore, store: Store, patient: RetryingStore, fault: str
) -> None:
    """An object that is missing, or an empty listing, would be taken for the truth."""
    status, code, hint = REFUSED[fault]
    headers = {"x-ms-error-code": code} if code else {}
    for operation, act in CALLS.values():
        bad.fail(operation, refused(status, code, **headers), forever=True)
        before = bad.calls[operation]
        with pytest.raises(StoreError) as caught:
            act(patient)
        assert not caught.value.retryable
        assert hint in caught.value.hint
        assert bad.calls[operation] <= before + 2, "it was asked again"
        bad.forgive()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_nobody_is_followed_elsewhere(bad: BadObjectStore, server: Azurite, store: Store, status: int) -> None:
    with BadObjectStore(server.url) as elsewhere:
        for operation, act in CALLS.values():
            bad.fail(operation, refused(status, "", Location=f"{elsewhere.url}/"), forever=True)
            with pytest.raises(StoreError):
                act(store)
            bad.forgive()
        assert elsewhere.opened == 0


def test_a_full_store_is_no_space(bad: BadObjectStore, store: Store) -> None:
    bad.fail("put", refused(507, "InsufficientStorage"))
    with pytest.raises(NoSpace, match="packs/aa/new"):
        store.put("packs/aa/new", [TEN])


def test_what_a_server_says_reaches_no_terminal_as_it_is(bad: BadObjectStore, store: Store) -> None:
    bad.fail("put", refused(400, "InvalidHeaderValue", "&#x9b;31m" + "x" * 5000))
    with pytest.raises(StoreError) as caught:
        store.put("config", [TEN])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "lost", [silent_after_success(), broken_after_success(), failed_after_success(503, "ServerBusy")]
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
        refused(500, "InternalError")(exchange)

    bad.fail("create", taken_by_another)
    with pytest.raises(ObjectExists):
        patient.create("leases/aa/end", [b"mine"])
    assert store.get("leases/aa/end") == b"another's"


def test_a_page_of_something_else_is_no_answer(bad: BadObjectStore, store: Store, direct: Store) -> None:
    """A login page of some network, for example."""
    page = Answer(200, {"Content-Type": "text/html"}, b"<html>Please log in</html>")
    for call in ("put", "create", "get", "get a range", "list"):
        operation, act = CALLS[call]
        bad.fail(operation, lambda exchange: exchange.reply(page))
        with pytest.raises(StoreUnavailable):
            act(store)
    assert not direct.exists("keys/aa")


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


# Listings


NO_LISTING: Mapping[str, Reaction] = {
    "nothing": changed(lambda answer: replace(answer, body=b"")),
    "no XML": changed(lambda answer: replace(answer, body=b"Welcome")),
    "an empty element": changed(lambda answer: replace(answer, body=b"<EnumerationResults/>")),
    "half of it": cut_short(),
    "half of it, as if whole": changed(lambda answer: replace(answer, body=answer.body[: len(answer.body) // 2])),
    "of another container": changed(without(rb'ContainerName="[^"]*"', b'ContainerName="another"')),
    "of another prefix": changed(without(rb"<Prefix>.*?</Prefix>", b"<Prefix>another/</Prefix>")),
    "sizes that are none": changed(
        without(rb"<Content-Length>.*?</Content-Length>", b"<Content-Length>m</Content-Length>")
    ),
    "objects without a size": changed(without(rb"<Content-Length>.*?</Content-Length>")),
    "objects without a name": changed(without(rb"<Name>.*?</Name>")),
    "of other objects": changed(without(rb"<Name>.*?</Name>", b"<Name>another/config</Name>")),
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
    bad: BadObjectStore, store: Store, server: Azurite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imaging.storage.azure._SHOWN_AT_ONCE", 7)
    wanted = sorted(f"packs/{number % 3}/{number:04}" for number in range(30))
    for name in wanted:
        store.put(name, [b"x"])
    wanted.append("packs/aa/seventy")
    assert [listed.name for listed in store.list("packs/")] == wanted
    assert bad.calls["list"] == 5
    bad.fail("list", refused(403, "AuthenticationFailed"), nth=3)
    with pytest.raises(StoreError, match="AuthenticationFailed"):
        next(store.list("packs/"))
    bad.forgive()
    bad.fail("list", changed(without(rb"<NextMarker>[^<]+<", b"<NextMarker>again<")), forever=True)
    with pytest.raises(StoreUnavailable):
        next(store.list("packs/"))


def test_a_listing_without_any_object_is_not_believed_while_one_is_there(bad: BadObjectStore, store: Store) -> None:
    assert list(store.list("claims/")) == []
    store.create("leases/aa/end", [b"x"])
    bad.fail("list", changed(without(rb"<Blob>.*</Blob>")), forever=True)
    for prefix in ("leases/", "leases/aa/", ""):
        with pytest.raises(StoreUnavailable, match="is there"):
            list(store.list(prefix))
    bad.forgive()
    store.delete("leases/aa/end")
    assert list(store.list("leases/")) == []


def test_what_is_no_object_of_ours_is_passed_over(server: Azurite, place: Container, store: Store) -> None:
    strange = (
        "Upper",
        "tmp/x",
        "a b",
        "folder/",
        ".hidden",
        "packs/ü",
        "packs//x",
        f"{'a' * 200}/{'b' * 100}",
    )
    container = server.raw()
    for key in strange:
        container.upload_blob(place.prefix + key, b"theirs", overwrite=True)
    shown = [blob.name for blob in container.list_blobs(name_starts_with=place.prefix)]
    assert len(shown) >= len(strange)
    assert [listed.name for listed in store.list("")] == ["config", "packs/aa/seventy"]
    for key in shown:
        if key.removeprefix(place.prefix) not in ("config", "packs/aa/seventy"):
            container.delete_blob(key)


def test_an_object_of_which_somebody_made_a_snapshot_can_be_deleted(
    server: Azurite, place: Container, store: Store
) -> None:
    server.raw().get_blob_client(f"{place.prefix}config").create_snapshot()
    store.delete("config")
    assert not store.exists("config")
    assert [listed.name for listed in store.list("")] == ["packs/aa/seventy"]


# Slowness, and connections


def test_an_answer_that_is_late_is_waited_for(bad: BadObjectStore, store: Store) -> None:
    for operation in ("get", "list", "put"):
        bad.fail(operation, late(0.1))
    store.put("config", [TEN[::-1]])
    assert store.get("config") == TEN[::-1]
    assert len(list(store.list(""))) == 2


def test_a_connection_is_used_again(bad: BadObjectStore, server: Azurite, place: Container) -> None:
    store = open_store(place, server.credentials, Limits(connections=1))
    opened = bad.opened
    store.put("config", [TEN])
    for _ in range(5):
        assert store.get("config", 2, 3) == TEN[2:5]
        assert store.get("config") == TEN
        assert store.exists("config")
        assert not store.exists("other")
        assert len(list(store.list(""))) == 2
    store.delete_many(["config", "a", "b", "c"])
    assert bad.opened == opened + 1


# Who answers, and who asks


def test_nobody_at_the_endpoint_is_unavailable(server: Azurite) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        place = server.container(url=f"http://127.0.0.1:{taken.getsockname()[1]}")
        for _, act in CALLS.values():
            with pytest.raises(StoreUnavailable):
                act(open_store(place, server.credentials))


def test_a_server_without_tls_is_no_passing_failure(server: Azurite) -> None:
    store = open_store(server.container(url=server.url.replace("http:", "https:")), server.credentials)
    with pytest.raises(StoreError) as caught:
        store.get("config")
    assert not caught.value.retryable
    assert "certificates" in caught.value.hint


def test_tls_is_checked_against_the_file_of_certificates(server: Azurite, place: Container, tmp_path: Path) -> None:
    certificate, other = own_certificate(tmp_path / "server.pem"), own_certificate(tmp_path / "other.pem")
    with BadObjectStore(server.url, certificate) as secure:
        here = replace(place, endpoint=parse_endpoint(secure.url))
        store = open_store(replace(here, ca_file=str(certificate)), server.credentials)
        fill(store)
        with pytest.raises(ObjectExists):
            store.create("config", [b"mine"])
        assert store.get("packs/aa/seventy", 5, 60_000) == SEVENTY[5:60_005]
        for untrusted in (here, replace(here, ca_file=str(other))):
            with pytest.raises(StoreError) as caught:
                open_store(untrusted, server.credentials).get("config")
            assert not caught.value.retryable
            assert "certificates" in caught.value.hint
    with pytest.raises(AddressRefused, match=r"ca\.pem"):
        open_store(replace(place, ca_file=str(tmp_path / "ca.pem")), server.credentials)


def shared_signature(server: Azurite, permission: str, until: timedelta = timedelta(hours=1)) -> Credentials:
    now = datetime.now(UTC)
    token = generate_container_sas(
        ACCOUNT,
        CONTAINER,
        account_key=server.credentials.account_key or "",
        permission=ContainerSasPermissions.from_string(permission),
        start=now - timedelta(hours=2),
        expiry=now + until,
    )
    return Credentials(sas_token=f"?{token}")


def test_a_shared_access_signature_opens_it_and_shows_nowhere(
    bad: BadObjectStore, server: Azurite, place: Container, caplog: pytest.LogCaptureFixture
) -> None:
    lent = shared_signature(server, "rwdlc")
    secret = re.findall(r"sig=([^&]+)", lent.sas_token or "")[0]
    with caplog.at_level(logging.DEBUG):
        store = open_store(place, lent)
        fill(store)
        with pytest.raises(ObjectExists):
            store.create("config", [b"x"])
        assert len(list(store.list(""))) == 2
        said = [repr(lent), repr(store), repr(place)]
        for operation, act in CALLS.values():
            for fault in (refused(403, "AuthenticationFailed"), broken(), refused(500, "InternalError")):
                bad.fail(operation, fault)
                with pytest.raises(ImagingError) as caught:
                    act(store)
                bad.forgive()
                said.append(f"{caught.value} {caught.value.hint}")
    said += [record.getMessage() for record in caplog.records]
    assert any("PUT" in line for line in said), "nothing was logged at all"
    assert not [line for line in said if secret in line]


def test_the_real_server_refuses(server: Azurite, place: Container, store: Store) -> None:
    wrong = Credentials(account_key="d3Jvbmc=")
    for credentials, there, hint in (
        (wrong, place, "key"),
        (shared_signature(server, "rwdlc", -timedelta(hours=1)), place, "expired"),
        (Credentials(sas_token="sv=2021&sig=hush"), place, "shared access signature"),
        (server.credentials, replace(place, name="no-such-container"), "container"),
    ):
        for _, act in CALLS.values():
            with pytest.raises(StoreError) as caught:
                act(open_store(there, credentials))
            assert not caught.value.retryable
            assert hint in caught.value.hint
            assert "hush" not in str(caught.value)
            assert "d3Jvbmc" not in str(caught.value)
    reader = open_store(place, shared_signature(server, "rl"))
    assert reader.get("config") == TEN
    for call in ("put", "create", "delete", "delete_many"):
        with pytest.raises(StoreError) as caught:
            CALLS[call][1](reader)
        assert "rights" in caught.value.hint
    assert store.get("config") == TEN


def test_the_environment_decides_nothing(
    server: Azurite, place: Container, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login nobody password nothing\n")
    netrc.chmod(0o600)
    for name, value in {
        "NETRC": str(netrc),
        "AZURE_STORAGE_CONNECTION_STRING": "wrong",
        "AZURE_STORAGE_KEY": "wrong",
        "REQUESTS_CA_BUNDLE": "/no/such/file",
        "CURL_CA_BUNDLE": "/no/such/file",
        "SSL_CERT_FILE": "/no/such/file",
        "HTTP_PROXY": "http://127.0.0.1:1",
        "http_proxy": "http://127.0.0.1:1",
        "all_proxy": "http://127.0.0.1:1",
    }.items():
        monkeypatch.setenv(name, value)
    assert open_store(place, server.credentials).get("config") == TEN


def test_another_machine_is_reached_through_the_proxy_that_the_environment_names(
    server: Azurite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked to connect there, and refuses."""
    with BadObjectStore(server.url) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        place = Container(endpoint_of(ACCOUNT), ACCOUNT, CONTAINER)
        with pytest.raises(StoreUnavailable, match="501"):
            open_store(place, server.credentials).get("config")
        assert proxy.opened == 1


# What is no place


@pytest.mark.parametrize(
    ("account", "name", "prefix"),
    [
        ("", "container", ""),
        ("Upper", "container", ""),
        ("evil.example.org/", "container", ""),
        ("account", "no", ""),
        ("account", "Upper", ""),
        ("account", "a--b", ""),
        ("account", "a/b", ""),
        ("account", "$root", ""),
        ("account", "container", "no-slash"),
        ("account", "container", "../"),
    ],
)
def test_what_is_no_container_is_refused(account: str, name: str, prefix: str) -> None:
    with pytest.raises(AddressRefused):
        Container(endpoint_of(account), account, name, prefix)
    with pytest.raises(AddressRefused):
        Container(endpoint_of(account, "https://blobs.example.org"), account, name, prefix)


def test_the_account_is_in_the_name_of_the_server_or_in_the_path() -> None:
    for url, wanted in {
        "": "https://account.blob.core.windows.net",
        "https://account.blob.core.chinacloudapi.cn": "https://account.blob.core.chinacloudapi.cn",
        "http://127.0.0.1:10000": "http://127.0.0.1:10000/account",
        "http://localhost:10000": "http://localhost:10000/account",
        "http://[::1]:10000": "http://[::1]:10000/account",
        "https://[fd12::5]": "https://[fd12::5]/account",
    }.items():
        assert Container(endpoint_of("account", url), "account", "container").account_url == wanted
    for url in ("http://account.blob.core.windows.net", "http://169.254.169.254", "https://168.63.129.16"):
        with pytest.raises(AddressRefused):
            endpoint_of("account", url)


@pytest.mark.parametrize(
    ("key", "token"), [(None, None), ("aHVzaA==", "sig=hush"), ("hush hush", None), (None, "hush"), (None, "sig=")]
)
def test_what_is_no_credential_is_refused_and_not_repeated(key: str | None, token: str | None) -> None:
    with pytest.raises(AddressRefused) as caught:
        Credentials(key, token)
    assert "hush" not in str(caught.value) + caught.value.hint
    assert "aHVzaA" not in str(caught.value)


@pytest.mark.parametrize("proxy", ["127.0.0.1:{port}", "http://127.0.0.1:{port}"])
def test_a_proxy_is_named_with_its_scheme_or_without(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("https_proxy", proxy.format(port=listening.getsockname()[1]))
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(
                Wire(parse_endpoint("https://storage.example"), LONG).ask, "GET", "https://storage.example/x", {}
            )
            connection, _ = listening.accept()
            with connection:
                assert connection.recv(100).startswith(b"CONNECT storage.example:443 ")
            with pytest.raises(Unanswered):
                asked.result()


def test_what_is_no_http_proxy_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "socks5://me:hush@127.0.0.1:1080")
    with pytest.raises(AddressRefused, match="no HTTP proxy") as caught:
        Wire(parse_endpoint("https://storage.example"))
    assert "hush" not in str(caught.value) + caught.value.hint


def test_only_who_uses_it_needs_its_library() -> None:
    """The extra is optional: nothing else may load it."""
    code = (
        "import sys; import imaging.storage.locations, imaging.storage.s3, appliance.cli, imaging.serving;"
        "sys.exit(any(name == 'azure' or name.startswith('azure.') for name in sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=False).returncode
    assert loaded == 0, "somebody else loads it"
