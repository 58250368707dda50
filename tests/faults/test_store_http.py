"""Every object store behind HTTP that answers as a bad one does: every fault ends in the right error, or in success,
and never in wrong data. What passes is in test_store_http_passing.py, what loses an answer in test_store_http_lost.py.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from imaging.errors import AddressRefused, Damaged, NoSpace, ObjectExists, StoreError, StoreUnavailable
from imaging.storage.contract import Store
from imaging.storage.retrying import RetryingStore
from imaging.storage.wire import Limits
from tests.faults.bad_object_store import BadObjectStore, broken
from tests.faults.cloud_cases import (
    SEVENTY,
    SLOW,
    TEN,
    Cloud,
    bad,
    direct,
    fill,
    hasty,
    own_certificate,
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


@each("call", "fault", of=lambda cloud: product(cloud.calls, cloud.refusals))
def test_what_an_admin_must_mend_is_said_at_once_and_how(
    cloud: Cloud, bad: BadObjectStore, patient: RetryingStore, call: str, fault: str
) -> None:
    """An object that is missing, or an empty listing, would be taken for the truth."""
    tried, refusal = cloud.calls[call], cloud.refusals[fault]
    bad.fail(tried.operation, refusal.reaction, forever=True)
    asked = sum(bad.calls.values())
    with pytest.raises(StoreError) as caught:
        tried.act(patient)
    assert not caught.value.retryable
    assert refusal.hint in caught.value.hint
    assert sum(bad.calls.values()) <= asked + tried.requests, "it was asked again"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_nobody_is_followed_elsewhere(cloud: Cloud, bad: BadObjectStore, store: Store, status: int) -> None:
    with BadObjectStore(cloud.url()) as elsewhere:
        for call in cloud.calls.values():
            bad.fail(call.operation, cloud.redirected(status, f"{elsewhere.url}/"), forever=True)
            asked = sum(bad.calls.values())
            with pytest.raises(StoreError):
                call.act(store)
            assert sum(bad.calls.values()) <= asked + call.requests
            bad.forgive()
        assert elsewhere.opened == 0


@each("fault", of=lambda cloud: product(cloud.full))
def test_a_full_store_is_no_space(cloud: Cloud, bad: BadObjectStore, store: Store, fault: str) -> None:
    bad.fail("put", cloud.full[fault])
    with pytest.raises(NoSpace, match="packs/aa/new"):
        store.put("packs/aa/new", [TEN])


def test_what_a_server_says_reaches_no_terminal_as_it_is(cloud: Cloud, bad: BadObjectStore, store: Store) -> None:
    bad.fail("put", cloud.rude)
    with pytest.raises(StoreError) as caught:
        store.put("config", [TEN])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@each("call", "page", of=lambda cloud: cloud.cases(cloud.strangers))
def test_a_page_of_something_else_is_no_answer(
    cloud: Cloud, bad: BadObjectStore, store: Store, direct: Store, call: str, page: str
) -> None:
    """A login page of some network, for example; or an answer to something else."""
    bad.fail(cloud.calls[call].operation, cloud.strangers[page].reaction)
    with pytest.raises(StoreUnavailable):
        cloud.calls[call].act(store)
    assert not direct.exists("keys/aa")


# Reading


@each("fault", of=lambda cloud: product(cloud.wrong))
def test_a_get_is_all_that_was_asked_for_or_an_error(
    cloud: Cloud, bad: BadObjectStore, store: Store, hasty: Store, fault: str
) -> None:
    client = hasty if fault in SLOW else store
    bad.fail("get", cloud.wrong[fault], nth=1)
    bad.fail("get", cloud.wrong[fault], nth=2)
    with pytest.raises(StoreUnavailable):
        client.get("packs/aa/seventy", 100, 60_000)
    assert patiently(client).get("packs/aa/seventy", 100, 60_000) == SEVENTY[100:60_100]


def test_an_object_that_announces_too_much_is_not_read(cloud: Cloud, bad: BadObjectStore, store: Store) -> None:
    bad.fail("get", lambda exchange: exchange.reply(cloud.endless, length=1 << 40))
    with pytest.raises(Damaged, match="more than any object"):
        store.get("config")


# Listings


@each("fault", of=lambda cloud: product(cloud.no_listing))
def test_a_listing_is_complete_or_an_error(
    cloud: Cloud, bad: BadObjectStore, store: Store, patient: RetryingStore, fault: str
) -> None:
    bad.fail("list", cloud.no_listing[fault], nth=1)
    bad.fail("list", cloud.no_listing[fault], nth=2)
    with pytest.raises(StoreUnavailable):
        list(store.list("packs/"))
    assert [listed.name for listed in patient.list("packs/")] == ["packs/aa/seventy"]


def test_a_listing_without_any_object_is_not_believed_while_one_is_there(
    cloud: Cloud, bad: BadObjectStore, store: Store
) -> None:
    assert list(store.list("claims/")) == []
    store.create("leases/aa/end", [b"x"])
    assert store.exists("packs/aa/seventy")
    bad.fail("list", cloud.empty_listing, forever=True)
    for below in ("leases/", "leases/aa/", "packs/", ""):
        with pytest.raises(StoreUnavailable, match="is there"):
            list(store.list(below))
    assert list(store.list("leases/bb/")) == []
    store.delete("leases/aa/end")
    assert list(store.list("leases/")) == []
    bad.forgive()
    assert list(store.list("leases/")) == []


# Connections, and who answers


def test_a_connection_is_used_again(cloud: Cloud, bad: BadObjectStore, direct: Store, prefix: str) -> None:
    fill(direct)
    store = cloud.open(bad.url, prefix, Limits(connections=1))
    opened = bad.opened
    store.put("config", [TEN])
    for _ in range(20):
        assert store.get("config", 2, 3) == TEN[2:5]
        assert store.get("config") == TEN
        assert store.exists("config")
        assert not store.exists("other")
        assert len(list(store.list(""))) == 2
    store.delete_many(["config", "a", "b", "c"])
    assert bad.opened == opened + 1


def test_a_server_without_tls_is_no_passing_failure(cloud: Cloud) -> None:
    store = cloud.open(cloud.url().replace("http:", "https:"), "")
    with pytest.raises(StoreError) as caught:
        store.get("config")
    assert not caught.value.retryable
    assert "certificates" in caught.value.hint


def test_tls_is_checked_against_the_file_of_certificates(cloud: Cloud, prefix: str, tmp_path: Path) -> None:
    """A request may be signed otherwise than without TLS, and the real server has to like it."""
    certificate, other = own_certificate(tmp_path / "server.pem"), own_certificate(tmp_path / "other.pem")
    with BadObjectStore(cloud.url(), certificate, cloud.operation_of) as secure:
        store = cloud.open(secure.url, prefix, ca_file=str(certificate))
        fill(store)
        store.create("leases/aa/end", [b"mine"])
        with pytest.raises(ObjectExists):
            store.create("leases/aa/end", [b"mine"])
        assert store.get("packs/aa/seventy", 5, 60_000) == SEVENTY[5:60_005]
        assert len(list(store.list(""))) == 3
        store.delete_many(["leases/aa/end", "config"])
        store.delete("packs/aa/seventy")
        for ca_file in (None, str(other)):
            with pytest.raises(StoreError) as caught:
                cloud.open(secure.url, prefix, ca_file=ca_file).get("config")
            assert not caught.value.retryable
            assert "certificates" in caught.value.hint
        assert secure.calls["put"] == 2
        secure.fail("get", broken())
        with pytest.raises(StoreUnavailable):
            store.get("config")


def test_a_file_of_certificates_that_is_not_there_is_named(cloud: Cloud, tmp_path: Path) -> None:
    for url in ("https://storage.example.org", cloud.url()):
        with pytest.raises(AddressRefused, match=r"ca\.pem"):
            cloud.open(url, "", ca_file=str(tmp_path / "ca.pem"))


# The environment


def test_the_environment_decides_nothing(
    cloud: Cloud, bad: BadObjectStore, store: Store, prefix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither the variables of this cloud's own tools, nor those of another's."""
    aws, netrc = tmp_path / "config", tmp_path / ".netrc"
    aws.write_text("[default]\ns3 =\n  addressing_style = virtual\nendpoint_url = http://127.0.0.1:1\n")
    netrc.write_text("machine 127.0.0.1 login nobody password nothing\n")
    netrc.chmod(0o600)
    for name, value in {
        "AWS_CONFIG_FILE": str(aws),
        "AWS_PROFILE": "no-such-profile",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
        "AWS_ACCESS_KEY_ID": "wrong",
        "AWS_SESSION_TOKEN": "wrong",
        "AWS_CA_BUNDLE": "/no/such/file",
        "AWS_MAX_ATTEMPTS": "7",
        "AWS_USE_FIPS_ENDPOINT": "true",
        "AZURE_STORAGE_CONNECTION_STRING": "wrong",
        "AZURE_STORAGE_KEY": "wrong",
        "GOOGLE_APPLICATION_CREDENTIALS": "/no/such/file",
        "GOOGLE_CLOUD_PROJECT": "wrong",
        "GOOGLE_CLOUD_UNIVERSE_DOMAIN": "example.org",
        "GOOGLE_SDK_EXPERIMENTAL_PYTHON_REGIONAL_ACCESS_BOUNDARY_LOOKUP_ENABLED": "1",
        "STORAGE_EMULATOR_HOST": "http://127.0.0.1:1",
        "GCE_METADATA_HOST": "127.0.0.1:1",
        "NETRC": str(netrc),
        "REQUESTS_CA_BUNDLE": "/no/such/file",
        "CURL_CA_BUNDLE": "/no/such/file",
        "SSL_CERT_FILE": "/no/such/file",
        "HTTP_PROXY": "http://127.0.0.1:1",
        "http_proxy": "http://127.0.0.1:1",
        "all_proxy": "http://127.0.0.1:1",
    }.items():
        monkeypatch.setenv(name, value)
    assert cloud.open(bad.url, prefix).get("config") == TEN


def test_another_machine_is_reached_through_the_proxy_that_the_environment_names(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked to connect there, and refuses. S3's library says no more than that."""
    with BadObjectStore(cloud.url()) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        with pytest.raises(StoreUnavailable, match=r"501|to proxy URL"):
            cloud.open_elsewhere().get("config")
        assert proxy.opened == 1
