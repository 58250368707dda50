"""Which addresses an object store may have, in every spelling that a resolver understands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imaging.errors import AddressRefused
from imaging.storage.endpoints import Endpoint, parse_endpoint


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("https://s3.example.org", Endpoint("https://s3.example.org", False, True)),
        ("https://S3.Example.ORG:443/", Endpoint("https://s3.example.org", False, True)),
        ("HTTPS://s3.example.org.:9000", Endpoint("https://s3.example.org:9000", False, True)),
        ("https://10.1.2.3:8333", Endpoint("https://10.1.2.3:8333", False, True)),
        ("https://[fd12::5]:8333", Endpoint("https://[fd12::5]:8333", False, True)),
        ("http://127.0.0.1:8333", Endpoint("http://127.0.0.1:8333", True, False)),
        ("http://127.9.9.9", Endpoint("http://127.9.9.9", True, False)),
        ("http://localhost:8333/", Endpoint("http://localhost:8333", True, False)),
        ("http://[::1]:8333", Endpoint("http://[::1]:8333", True, False)),
        ("http://[::ffff:127.0.0.1]", Endpoint("http://[::ffff:7f00:1]", True, False)),
        ("http://2130706433:80", Endpoint("http://127.0.0.1", True, False)),
        ("https://127.0.0.1", Endpoint("https://127.0.0.1", True, True)),
    ],
)
def test_an_endpoint_is_a_server_in_one_spelling(url: str, wanted: Endpoint) -> None:
    assert parse_endpoint(url) == wanted
    assert parse_endpoint(wanted.url) == wanted
    assert str(wanted) == wanted.url


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "169.254.169.254.",
        "169.254.170.2",
        "169.254.1",
        "2852039166",
        "0xa9fea9fe",
        "0XA9FEA9FE",
        "0xa9.0xfe.0xa9.0xfe",
        "025177524776",
        "0251.0376.0251.0376",
        "169.254.43518",
        "169.0xfea9fe",
        "[::ffff:169.254.169.254]",
        "[::ffff:a9fe:a9fe]",
        "[0:0:0:0:0:FFFF:A9FE:A9FE]",
        "[::169.254.169.254]",
        "[64:ff9b::169.254.169.254]",
        "[2002:a9fe:a9fe::1]",
        "[fd00:ec2::254]",
        "[fd00:0ec2:0000:0000:0000:0000:0000:0254]",
        "[FD00:EC2:0:0::254]",
        "[fd20:ce::254]",
        "[fd00:42::42]",
        "[fe80::1]",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "metadata.google.internal",
        "METADATA.google.internal.",
        "metadata",
        "instance-data",
    ],
)
@pytest.mark.parametrize("shape", ["https://{}", "https://{}:443/", "http://{}:80"])
def test_what_hands_out_credentials_is_no_endpoint_however_it_is_spelled(host: str, shape: str) -> None:
    with pytest.raises(AddressRefused) as caught:
        parse_endpoint(shape.format(host), allow_plain=True)
    assert "metadata" in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "s3.example.org",
        "//s3.example.org",
        "https:",
        "https://",
        "https:///bucket",
        "https://:8333",
        "ftp://s3.example.org",
        "file:///etc/passwd",
        "s3://bucket",
        "https://s3.example.org/bucket",
        "https://s3.example.org//",
        "https://s3.example.org/?a=b",
        "https://s3.example.org?",
        "https://s3.example.org#x",
        "https://s3.example.org/#",
        "https://s3.example.org:0",
        "https://s3.example.org:65536",
        "https://s3.example.org:",
        "https://s3.example.org:-1",
        "https://s3.example.org:8x",
        "https://s3..example.org",
        "https://.example.org",
        "https://-s3.example.org",
        "https://s3-.example.org",
        f"https://{'a' * 64}.example.org",
        f"https://{'a.' * 130}org",
        "https://s3.example.org\\@10.0.0.1",
        "https://s3.example.org%00.evil.org",
        "https://s3.exa mple.org",
        " https://s3.example.org",
        "https://s3.example.org\n",
        "https://s3.exa\tmple.org",
        "https://s3.exämple.org",
        "https://169。254。169。254",
        "https://①⑥⑨.254.169.254",
        "https://1.2.3.4.5",
        "https://256.1.1.1",
        "https://1.2.3.0x",
        "https://0xa9fea9fe.0x",
        "https://99999999999999",
        "https://example.123",
        "https://[::1",
        "https://[::1]x",
        "https://[fe80::1%25eth0]",
        "https://[v1.x]",
        "https://[127.0.0.1]",
        "https://::1",
        "https://0.0.0.0",
        "https://0",
        "https://[::]",
        "https://224.0.0.1",
        "https://[ff02::1]",
        "https://255.255.255.255",
    ],
)
def test_what_is_no_server_is_refused(url: str) -> None:
    with pytest.raises(AddressRefused) as caught:
        parse_endpoint(url, allow_plain=True)
    assert caught.value.hint


@pytest.mark.parametrize(
    "url", ["http://s3.example.org", "http://10.1.2.3:8333", "http://[fd12::5]", "http://[::127.0.0.1]",
            "http://[2002:7f00:1::1]", "http://localhost.example.org", "http://127.0.0.1.example.org"]
)  # fmt: skip
def test_plain_http_to_another_machine_is_said_explicitly(url: str) -> None:
    with pytest.raises(AddressRefused, match="plain http"):
        parse_endpoint(url)
    found = parse_endpoint(url, allow_plain=True)
    assert not found.encrypted
    assert not found.loopback


@pytest.mark.parametrize(
    "url",
    ["https://user:hunter2@s3.example.org", "https://hunter2@s3.example.org", "https://s3.example.org?key=hunter2",
     "https://u:hunter2@[::1", "ftp://u:hunter2@host", "https://u:hunter2@host:99999", "https://u:hunter2@ho st"],
)  # fmt: skip
def test_a_password_in_an_address_is_refused_and_never_repeated(url: str) -> None:
    with pytest.raises(AddressRefused) as caught:
        parse_endpoint(url)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in caught.value.hint


@given(st.text(max_size=40) | st.text(max_size=40).map("https://".__add__))
def test_any_text_is_an_endpoint_or_refused(url: str) -> None:
    try:
        found = parse_endpoint(url)
    except AddressRefused:
        return
    assert parse_endpoint(found.url) == found


@given(st.integers(0, 2**32 - 1))
def test_every_number_is_told_by_its_address(number: int) -> None:
    dotted = ".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0))
    outcomes: list[bool | None] = []
    for host in (dotted, str(number), hex(number), f"[::ffff:{dotted}]"):
        try:
            outcomes.append(parse_endpoint(f"https://{host}").loopback)
        except AddressRefused:
            outcomes.append(None)
    assert len(set(outcomes)) == 1, outcomes
