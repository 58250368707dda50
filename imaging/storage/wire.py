"""One request over HTTP and its whole answer, for the stores whose client libraries leave the sending to us.

Rules: an answer is taken whole or not at all, as its bytes are counted and both its silence and its length in time are
bounded (of its headers, which the library reads at one go, the silence and the length in bytes alone); nobody is
followed elsewhere; nothing is sent twice. Of the environment only proxies count, and not for this machine.
"""

from __future__ import annotations

import io
import logging
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.request import getproxies_environment, proxy_bypass

import certifi
import urllib3
from urllib3.exceptions import HTTPError, SSLError
from urllib3.util import Timeout, make_headers, parse_url

from imaging.errors import AddressRefused
from imaging.storage.contract import OBJECT_BYTES_MAX
from imaging.storage.endpoints import Endpoint

_PIECE_BYTES: Final = 1 << 20
_SENT_BYTES: Final = 256 << 10
"""Each piece that is sent has a time-out of its own."""

_SLOWEST_BYTES_PER_S: Final = 64 << 10
_ANSWER_BYTES_MAX: Final = OBJECT_BYTES_MAX + (1 << 20)


class Unanswered(Exception):
    """No answer, or none that can be taken; whether the request was carried out is not known."""


class TooMuch(Unanswered):
    """The answer has, or announces, more bytes than any that is of use."""


class Distrusted(Exception):
    """Whoever answers is not who it should be, or speaks no TLS: the same next time."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`silence_s`: so long may the server say nothing. An answer as a whole may take as long again as its bytes take at
    64 KiB/s."""

    connections: int = 16
    connect_s: float = 10.0
    silence_s: float = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    """`headers` has names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


class Wire:
    """To one server, and to those that its credentials come from. Thread-safe; not to be used on both sides of a fork.
    Holds at most `limits.connections` connections to each."""

    def __init__(self, endpoint: Endpoint, limits: Limits | None = None, ca_file: str | None = None) -> None:
        """AddressRefused where there is no such file."""
        if ca_file is not None and not os.path.isfile(ca_file):
            hint = "name the file of certificates, or leave it away where a public authority signed the endpoint's"
            raise AddressRefused(str(endpoint), f"{ca_file} is no file of certificates", hint=hint)
        logging.getLogger("urllib3.connectionpool").addFilter(_without_query)  # harmless again
        self._limits = limits or Limits()
        self._slots = threading.BoundedSemaphore(self._limits.connections)
        self._pool = _make_pool(endpoint, self._limits, ca_file or certifi.where())

    def ask(self, method: str, url: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
        """Unanswered, Distrusted."""
        sent = {name: value for name, value in headers.items() if name.lower() != "content-length"}
        if body or method in ("PUT", "POST"):
            sent["Content-Length"] = str(len(body))
        with self._slots:
            try:
                response = self._pool.request(
                    method,
                    url,
                    body=io.BytesIO(body) if body else None,
                    headers=sent,
                    redirect=False,
                    retries=False,
                    preload_content=False,
                    decode_content=False,
                    timeout=Timeout(connect=self._limits.connect_s, read=self._limits.silence_s),
                )
                try:
                    data = b"" if method == "HEAD" else self._receive(response)
                except BaseException:
                    response.close()
                    raise
                response.release_conn()
            except (HTTPError, OSError) as error:
                if _is_distrust(error):
                    raise Distrusted(_said(error)) from error
                raise Unanswered(_said(error)) from error
        return Answer(response.status, {name.lower(): value for name, value in response.headers.items()}, data)

    def _receive(self, response: urllib3.BaseHTTPResponse) -> bytes:
        announced = response.headers.get("Content-Length", "")
        left = int(announced) if announced.isdecimal() else None
        if left is not None and left > _ANSWER_BYTES_MAX:
            raise TooMuch(f"the answer has {left} bytes")
        until = time.monotonic() + self._limits.silence_s
        parts: list[bytes] = []
        received = 0
        while part := response.read1(_PIECE_BYTES):
            parts.append(part)
            received += len(part)
            if received > _ANSWER_BYTES_MAX:
                raise TooMuch(f"the answer has more than {_ANSWER_BYTES_MAX} bytes")
            if received != left and time.monotonic() > until + received / _SLOWEST_BYTES_PER_S:
                raise Unanswered(f"the answer is too slow: {received} bytes have come")
        if left is not None and received != left:
            raise Unanswered(f"the answer ended {left - received} bytes early")
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _make_pool(endpoint: Endpoint, limits: Limits, ca_file: str) -> urllib3.PoolManager:
    host = parse_url(endpoint.url).host or ""
    proxies = getproxies_environment()
    proxy = proxies.get("https" if endpoint.encrypted else "http") or proxies.get("all")
    options: dict[str, Any] = {
        "maxsize": limits.connections,
        "cert_reqs": ssl.CERT_REQUIRED,
        "ca_certs": ca_file,
        "blocksize": _SENT_BYTES,
        "socket_options": [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)],
    }
    if proxy is None or endpoint.loopback or proxy_bypass(host):
        return urllib3.PoolManager(**options)
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    if parse_url(proxy).scheme not in ("http", "https"):
        hint = "name one in https_proxy, or this host in no_proxy"
        raise AddressRefused("the proxy that the environment names", "it is no HTTP proxy", hint=hint)
    credentials = parse_url(proxy).auth
    headers = make_headers(proxy_basic_auth=credentials) if credentials else None
    return urllib3.ProxyManager(proxy, proxy_headers=headers, **options)


def _without_query(record: logging.LogRecord) -> bool:
    """At its most talkative the library logs addresses, in which there may be a signature."""
    record.msg, record.args = re.sub(r"\?\S+", "?…", record.getMessage()), ()
    return True


def _said(error: Exception) -> str:
    """Without the address that was asked for: a signature may be in it."""
    reason = getattr(error, "reason", None)
    told = reason if isinstance(reason, Exception) else error
    if isinstance(told, urllib3.exceptions.ReadTimeoutError):
        return "the server does not answer in time"
    cause = told.__cause__ or told.__context__
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return type(told).__name__ if "://" in str(told) else str(told) or type(told).__name__


def _is_distrust(error: BaseException | None) -> bool:
    """A certificate that is not trusted, or no TLS at all. A connection that broke is none."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        if isinstance(error, (SSLError, ssl.SSLError)) and "WRONG_VERSION_NUMBER" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
