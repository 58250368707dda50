"""A URI is only ever built from checked fields: nothing that runs a command gets through."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.hypervisor.errors import HostFieldRefused
from appliance.hypervisor.protocol import HostConfig, Transport
from appliance.hypervisor.uri import check_host, libvirt_uri, parse_host

SSH = HostConfig("rack2", Transport.SSH, hostname="rack2.example.org", user="backup", keyfile="/root/.ssh/backup")


@pytest.mark.parametrize(
    "uri",
    [
        "qemu+ext:///system?command=/bin/sh",
        "qemu+ssh://host/system?command=/bin/sh",
        "qemu+ssh://host/system?keyfile=/k&command=/bin/sh",
        "qemu+ssh://host/system?%63ommand=/bin/sh",
        "qemu+ssh://host/system?netcat=/bin/sh",
        "qemu+ssh://host/system?no_verify=1",
        "qemu+ssh://host/system?sshauth=agent",
        "qemu+ssh://host/system?proxy=netcat",
        "qemu+ssh://host/system?keyfile=/a&keyfile=/b",
        "qemu+ssh://host/system?keyfile=/a;command=b",
        "qemu+ssh://host/system?keyfile=relative",
        "qemu+ssh://host/system?keyfile=/etc/../root/key",
        "qemu+ssh://-oProxyCommand=sh/system",
        "qemu+ssh://user:password@host/system",
        "qemu+ssh://user%20-oProxyCommand=sh@host/system",
        "qemu+ssh://ho$(id)st/system",
        "qemu+ssh://host:99999/system",
        "qemu+ssh:///system",
        "qemu+libssh2://host/system?command=x",
        "qemu+tcp://host/system",
        "qemu+tls://host/system",
        "qemu://host/system",
        "qemu:///system#fragment",
        "qemu:///embed?root=/tmp",
        "qemu:///system?command=/bin/sh",
        "qemu:///system?socket",
        "qemu:///system?socket=/run/x%0Acommand",
        "lxc:///",
        "esx://host/?no_verify=1",
        "test:///etc/passwd",
        "file:///etc/passwd",
        "qemu+ssh://[::1/system",
        "",
    ],
)
def test_hostile_uri_is_refused_with_a_rule(uri: str) -> None:
    with pytest.raises(HostFieldRefused) as refused:
        parse_host("rack2", uri)
    assert "is refused: " in str(refused.value)
    assert refused.value.exit_code == 2
    assert refused.value.hint


def test_known_forms_become_fields() -> None:
    assert parse_host("here", "qemu:///system") == HostConfig("here")
    assert parse_host("mine", "qemu:///session") == HostConfig("mine", session=True)
    assert parse_host("odd", "qemu+unix:///system?socket=/run/odd/libvirt-sock").socket == "/run/odd/libvirt-sock"
    assert parse_host("t", "test:///default").transport is Transport.TEST
    found = parse_host("rack2", "qemu+ssh://backup@rack2.example.org:2222/system?keyfile=/root/.ssh/backup")
    assert found == replace(SSH, port=2222)
    assert parse_host("six", "qemu+ssh://[::1]/system").hostname == "::1"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "../up"),
        ("name", "a" * 64),
        ("name", "new\nline"),
        ("hostname", ""),
        ("hostname", "-oProxyCommand=id"),
        ("hostname", "host;id"),
        ("hostname", "host name"),
        ("hostname", "a." * 200),
        ("hostname", "fe80::1%x;touch y"),
        ("hostname", "fe80::1%x y"),
        ("hostname", "fe80::1%$(id)"),
        ("hostname", "fe80::1%"),
        ("hostname", "fe80::1%" + "x" * 300),
        ("hostname", "192.0.2.1%eth0"),
        ("user", "-l"),
        ("user", "root@other"),
        ("user", "Root;id"),
        ("port", 0),
        ("port", 65536),
        ("keyfile", "~/.ssh/id"),
        ("keyfile", "/root/a b"),
        ("keyfile", "/root/\x00"),
        ("known_hosts", "/etc/%h"),
        ("socket", "/run/s?x=1"),
        ("timeout_s", 0.0),
        ("timeout_s", float("nan")),
        ("timeout_s", 1e9),
    ],
)
def test_hostile_field_is_named(field: str, value: object) -> None:
    with pytest.raises(HostFieldRefused) as refused:
        check_host(replace(SSH, **{field: value}))  # type: ignore[arg-type]
    assert refused.value.field == field


def test_address_of_a_link_names_its_interface() -> None:
    for hostname in ("fe80::1%eth0", "fe80::1%br-lan.20", "fe80::1%3", "fe80::1", "192.0.2.1"):
        assert check_host(replace(SSH, hostname=hostname)).hostname == hostname


def test_fields_of_another_transport_are_refused() -> None:
    for field in ("hostname", "user", "keyfile", "known_hosts"):
        with pytest.raises(HostFieldRefused):
            check_host(replace(HostConfig("here"), **{field: "/x" if field != "hostname" else "x"}))  # type: ignore[arg-type]


def test_uri_is_libvirts_local_one_whatever_the_transport() -> None:
    assert libvirt_uri(HostConfig("here")) == "qemu:///system"
    assert libvirt_uri(HostConfig("here", session=True)) == "qemu:///session"
    assert libvirt_uri(HostConfig("here", socket="/run/x/sock")) == "qemu:///system?socket=/run/x/sock"
    assert libvirt_uri(HostConfig("t", Transport.TEST)) == "test:///default"
    assert libvirt_uri(SSH, "/run/strongroom/rack2.sock") == "qemu:///system?socket=/run/strongroom/rack2.sock"
    with pytest.raises(HostFieldRefused):
        libvirt_uri(SSH)


@given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=60))
def test_no_text_makes_another_parameter(hostname: str, user: str, socket: str) -> None:
    """Whatever the fields hold: refused, or a URI whose only parameter is the socket as given."""
    for config in (HostConfig("h", socket=socket), HostConfig("h", Transport.SSH, hostname=hostname, user=user)):
        try:
            uri = libvirt_uri(config, "/carried/socket")
        except HostFieldRefused:
            continue
        parts = urlsplit(uri)
        assert (parts.scheme, parts.netloc, parts.path) == ("qemu", "", "/system")
        assert set(parse_qs(parts.query)) <= {"socket"}


@given(st.text(max_size=120))
def test_any_typed_text_is_taken_apart_or_refused(text: str) -> None:
    for uri in (text, f"qemu+ssh://{text}", f"qemu+ssh://host/system?{text}"):
        try:
            config = parse_host("h", uri)
        except HostFieldRefused:
            continue
        assert check_host(config) == config
