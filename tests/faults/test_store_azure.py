"""Azure Blob Storage that answers as a bad object store does, in what no other cloud has. What all have in common is in
test_store_http.py."""

from __future__ import annotations

import logging
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from azure.storage.blob import ContainerSasPermissions, generate_container_sas

from imaging.errors import AddressRefused, ImagingError, ObjectExists, StoreError, StoreUnavailable
from imaging.storage.azure import Container, Credentials, endpoint_of
from imaging.storage.contract import Store
from imaging.storage.endpoints import parse_endpoint
from imaging.storage.wire import Unanswered, Wire
from tests.faults.bad_object_store import BadObjectStore, broken, changed, refused
from tests.faults.cloud_azure import AZURE, open_store
from tests.faults.cloud_cases import (
    CALLS,
    LONG,
    TEN,
    Cloud,
    bad,
    direct,
    fill,
    prefix,
    proxy,
    store,
    through,
    without,
)
from tests.lab.azurite import ACCOUNT, CONTAINER, Azurite, running

__all__ = ["bad", "direct", "prefix", "proxy", "store", "through"]

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def cloud() -> Cloud:
    return AZURE


@pytest.fixture(scope="module")
def server() -> Azurite:
    return running()


@pytest.fixture(scope="module")
def place(server: Azurite, proxy: BadObjectStore, prefix: str) -> Container:
    return server.container(prefix, url=proxy.url)


# Listings


def test_a_listing_in_pages_is_complete_and_fails_as_a_whole(
    bad: BadObjectStore, store: Store, monkeypatch: pytest.MonkeyPatch
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


# Who asks


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
        for call in CALLS.values():
            for fault in (refused(403, "AuthenticationFailed"), broken(), refused(500, "InternalError")):
                bad.fail(call.operation, fault)
                with pytest.raises(ImagingError) as caught:
                    call.act(store)
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
        for call in CALLS.values():
            with pytest.raises(StoreError) as caught:
                call.act(open_store(there, credentials))
            assert not caught.value.retryable
            assert hint in caught.value.hint
            assert "hush" not in str(caught.value)
            assert "d3Jvbmc" not in str(caught.value)
    reader = open_store(place, shared_signature(server, "rl"))
    assert reader.get("config") == TEN
    for name in ("put", "create", "delete", "delete_many"):
        with pytest.raises(StoreError) as caught:
            CALLS[name].act(reader)
        assert "rights" in caught.value.hint
    assert store.get("config") == TEN


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
