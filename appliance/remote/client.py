"""Requests to another appliance's API: over TLS, with a token, and each failure as a sentence.

The rule: the token goes to the one address that was given and nowhere else: no redirect is followed, certificates are
checked, and without TLS only this machine is spoken to. What comes back is bounded, and read as what it must be.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import ssl
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlencode, urlsplit

import urllib3
from pydantic import TypeAdapter, ValidationError
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, SSLError

from appliance.remote.errors import (
    AddressUnfit,
    AuthoritiesUnusable,
    RemoteRefused,
    RemoteUnknown,
    RemoteUnreachable,
    RemoteUntrusted,
    TokenMissing,
)

Value = TypeVar("Value")
_TIMEOUT: Final = urllib3.Timeout(connect=10, read=180)  # a machine is started while we wait
_ANSWER_BYTES_MAX: Final = 64 << 20
_PIECE_BYTES: Final = 1 << 20
_PAGE: Final = 500
_PROBLEM: Final = "application/problem+json"
_AWAY: Final = (
    "'strongroom serve' has to run there, and [web] listen in its settings be an address that is reached from here"
    " (127.0.0.1 is not)."
)
_BEGUN: Final = "What was asked for may be done all the same: look before you ask for it again."
_CUT_OFF: Final = "It broke off within what was asked for: the log of 'strongroom serve' and the audit there say why."
_UNAUTHORIZED: Final = (
    "'strongroom token add' there makes another, 'token list' tells until when each is good; it goes into"
    " STRONGROOM_TOKEN, or the file of --token-file."
)
_SELF_MADE: Final = "If it has made its certificate itself: --ca-file with a copy of keys/web.crt from its home."
_UNKNOWN_ISSUER: Final = (18, 19, 20, 21)  # of OpenSSL: self-signed, or signed by nobody who is known
_OTHER_NAME: Final = (62, 64)  # of a host, of an address


class Client:
    """Owns its connections."""

    def __init__(self, url: str, token: str, ca_file: Path | None = None) -> None:
        """`url`: of the console; `ca_file`: who is trusted, instead of the system's authorities. AddressUnfit,
        AuthoritiesUnusable."""
        self.url = _checked(url)
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        # It checks certificates and names, by the system's authorities where no file is given.
        self._pool = urllib3.PoolManager(timeout=_TIMEOUT, retries=False, ssl_context=_trusting(ca_file))

    def get(self, path: str, query: Mapping[str, object] | None = None) -> Any:
        return self._ask("GET", path, query)

    def post(self, path: str, document: Mapping[str, object] | None = None) -> Any:
        return self._ask("POST", path, None, document)

    def put(
        self, path: str, document: Mapping[str, object] | None = None, query: Mapping[str, object] | None = None
    ) -> Any:
        return self._ask("PUT", path, query, document)

    def delete(self, path: str, query: Mapping[str, object] | None = None) -> Any:
        return self._ask("DELETE", path, query)

    def items(self, path: str, query: Mapping[str, object], most: int | None = None) -> Iterator[Any]:
        """Of a list, page by page."""
        after: str | None = None
        while most is None or most > 0:
            limit = _PAGE if most is None else min(most, _PAGE)
            page = self.get(path, {**query, "limit": limit} | ({} if after is None else {"after": after}))
            yield from page["items"]
            most = None if most is None else most - len(page["items"])
            after = page["next"]
            if after is None:
                return

    def read(self, kind: type[Value], document: object) -> Value:
        """A value of the services, of what the API told. RemoteUnknown."""
        try:
            return TypeAdapter(kind).validate_python(document)
        except ValidationError as err:
            raise RemoteUnknown(
                self.url, f"{kind.__name__}: {err.error_count()} fields are not as they must be"
            ) from err

    def close(self) -> None:
        self._pool.clear()

    def _ask(
        self, method: str, path: str, query: Mapping[str, object] | None, document: Mapping[str, object] | None = None
    ) -> Any:
        """RemoteRefused, RemoteUntrusted, RemoteUnreachable, RemoteUnknown."""
        address = self._address(path, query)
        headers, body = self._headers, None
        if document is not None:
            headers, body = {**headers, "Content-Type": "application/json"}, json.dumps(document).encode()
        with self._failing(method):
            answer = self._pool.request(
                method, address, body=body, headers=headers, redirect=False, preload_content=False
            )
            try:
                data = answer.read(_ANSWER_BYTES_MAX + 1)
            finally:
                answer.release_conn()
        return self._read_answer(method, path, answer.status, answer.headers.get("Content-Type", ""), data)

    @contextmanager
    def stream(self, path: str, query: Mapping[str, object]) -> Iterator[tuple[Mapping[str, str], Iterator[bytes]]]:
        """What is no JSON, piece by piece: its headers, and pieces of which none is lacking at their end. As `get`."""
        with ExitStack() as closing:
            with self._failing("GET"):
                answer = self._pool.request(
                    "GET", self._address(path, query), headers=self._headers, redirect=False, preload_content=False
                )
                closing.callback(answer.close)
                data = b"" if answer.status == 200 else answer.read(_ANSWER_BYTES_MAX + 1)
            if answer.status != 200:
                self._read_answer("GET", path, answer.status, answer.headers.get("Content-Type", ""), data)
                raise RemoteUnknown(self.url, f"status {answer.status} where a file was asked for")
            yield answer.headers, self._pieces(answer)

    def _pieces(self, answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        with self._failing("GET", _CUT_OFF):
            yield from answer.stream(_PIECE_BYTES)

    def _address(self, path: str, query: Mapping[str, object] | None) -> str:
        stated = {name: value for name, value in (query or {}).items() if value is not None}
        told = urlencode(stated, doseq=True, errors="surrogateescape")  # names of files are not all text
        return f"{self.url}/api/v1{path}" + (f"?{told}" if told else "")

    @contextmanager
    def _failing(self, method: str, hint: str = "") -> Iterator[None]:
        """RemoteUntrusted, RemoteUnreachable, for what fails on the way."""
        try:
            yield
        except SSLError as err:
            raise RemoteUntrusted(self.url, _reason(err), _certificate_hint(err)) from err
        except HTTPError as err:
            sent = not isinstance(err, (NewConnectionError, ConnectTimeoutError))
            hint = hint or (_BEGUN if sent and method != "GET" else _AWAY)
            raise RemoteUnreachable(self.url, _reason(err), hint) from err

    def _read_answer(self, method: str, path: str, status: int, mime_type: str, data: bytes) -> Any:
        """RemoteRefused, RemoteUnknown."""
        if len(data) > _ANSWER_BYTES_MAX:
            raise RemoteUnknown(self.url, "its answer is too large")
        if status == 204:
            return None
        if mime_type.partition(";")[0] not in ("application/json", _PROBLEM):
            raise RemoteUnknown(self.url, f"status {status}, and no JSON")
        try:
            document = json.loads(data, object_hook=lambda found: _Told(self.url, found))
        except (ValueError, RecursionError) as err:
            raise RemoteUnknown(self.url, "its answer is no JSON") from err
        if not isinstance(document, dict):
            raise RemoteUnknown(self.url, "its answer is no JSON object")
        if status >= 400:
            detail, hint = str(document.get("detail", f"status {status}")), str(document.get("hint", ""))
            fields = [
                f"{each['where']}: {each['reason']}" for each in document.get("errors", ()) if isinstance(each, dict)
            ]
            kind = str(document.get("type", "")).rpartition(":")[2]
            if status in (404, 405) and kind == "blank":  # no error of ours: there is no such route
                raise RemoteUnknown(self.url, f"it does not know what is asked for ({method} {path})")
            raise RemoteRefused(" ".join([detail, *fields]), _UNAUTHORIZED if status == 401 else hint, status, kind)
        return document


def _trusting(ca_file: Path | None) -> ssl.SSLContext:
    """AuthoritiesUnusable."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError as err:
        raise AuthoritiesUnusable(ca_file, "it has no certificate in PEM") from err
    except OSError as err:
        raise AuthoritiesUnusable(ca_file, err.strerror or str(err)) from err


def token_from(environment: Mapping[str, str], file: Path | None) -> str:
    """From the file, or STRONGROOM_TOKEN: never from an argument, which everybody on the machine can see.
    TokenMissing."""
    if file is None:
        token = environment.get("STRONGROOM_TOKEN", "").strip()
        if not token:
            raise TokenMissing("neither STRONGROOM_TOKEN nor --token-file is given")
    else:
        try:
            with file.open("rb") as opened:
                mode = os.fstat(opened.fileno()).st_mode
                data = opened.read(4096)
        except OSError as err:
            raise TokenMissing(f"{file}: {err.strerror}") from err
        if stat.S_ISREG(mode) and mode & 0o077:
            raise TokenMissing(f"others may read {file}: chmod 0600 {file}")
        token = data.decode("ascii", "replace").strip()
    if not token.isascii() or not token.isprintable() or " " in token or not token:
        raise TokenMissing("what is given is no token")
    return token


def _checked(url: str) -> str:
    """AddressUnfit."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as err:
        raise AddressUnfit(url, str(err)) from err
    if parts.scheme not in ("https", "http") or not host:
        raise AddressUnfit(url, "it must begin with https://")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise AddressUnfit(url, "it has more than a host and a port")
    if parts.path.strip("/"):
        raise AddressUnfit(url, "it has a path")
    if parts.scheme == "http" and not _here(host):
        raise AddressUnfit(url, "without TLS the token would travel in the clear")
    return f"{parts.scheme}://{parts.netloc}"


def _here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Told(dict[str, Any]):
    """A JSON object: one that lacks what it must have is no answer of an appliance that this program knows."""

    def __init__(self, url: str, found: Mapping[str, Any]) -> None:
        super().__init__(found)
        self._url = url

    def __missing__(self, name: str) -> Any:
        raise RemoteUnknown(self._url, f"its answer has no {name!r}")


def _reason(err: HTTPError) -> str:
    """In words: of the system's error where that is behind it, else without urllib3's names for connections."""
    cause = err.__cause__
    if isinstance(cause, OSError) and cause.strerror and not isinstance(err, SSLError):
        return cause.strerror
    inner = err.args[-1] if err.args else err
    verified = getattr(inner, "verify_message", None)
    if verified:
        return f"its certificate is not trusted: {verified}"
    text = " ".join(str(getattr(inner, "reason", None) or inner).split())
    return re.sub(r"^HTTPS?Connection(Pool)?\([^)]*\): ", "", text)[:300]


def _certificate_hint(err: SSLError) -> str:
    inner = err.args[-1] if err.args else err
    if not isinstance(inner, ssl.SSLCertVerificationError):
        return "Is that the address and port of the console, and does it speak TLS?"
    if inner.verify_code in _UNKNOWN_ISSUER:
        return _SELF_MADE
    if inner.verify_code in _OTHER_NAME:
        return (
            "Give an address that its certificate is for; names and addresses under which it is reached are [web] names"
            " and listen in its settings."
        )
    return "See to the certificate there, and to the clocks of both machines."
