"""Requests to another appliance's API: over TLS, with a token, and each failure as a sentence.

The rule: the token goes to the one address that was given and nowhere else: no redirect is followed, certificates are
checked, and without TLS only this machine is spoken to. What comes back is bounded, and read as what it must be.
"""

from __future__ import annotations

import ipaddress
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlencode, urlsplit

import urllib3
from pydantic import TypeAdapter, ValidationError
from urllib3.exceptions import HTTPError, SSLError

from appliance.remote.errors import AddressUnfit, RemoteRefused, RemoteUnknown, RemoteUnreachable, TokenMissing

Value = TypeVar("Value")
_TIMEOUT: Final = urllib3.Timeout(connect=10, read=180)  # a machine is started while we wait
_ANSWER_BYTES_MAX: Final = 64 << 20
_PAGE: Final = 500
_PROBLEM: Final = "application/problem+json"


class Client:
    """Owns its connections."""

    def __init__(self, url: str, token: str, ca_file: Path | None = None) -> None:
        """`url`: of the console. AddressUnfit."""
        self.url = _checked(url)
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        # urllib3 checks certificates and names, by the system's authorities where no file is given.
        self._pool = urllib3.PoolManager(
            timeout=_TIMEOUT, retries=False, ca_certs=None if ca_file is None else str(ca_file)
        )

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
        """RemoteRefused, RemoteUnreachable, RemoteUnknown."""
        stated = {name: value for name, value in (query or {}).items() if value is not None}
        address = f"{self.url}/api/v1{path}" + (f"?{urlencode(stated, doseq=True)}" if stated else "")
        headers, body = self._headers, None
        if document is not None:
            headers, body = {**headers, "Content-Type": "application/json"}, json.dumps(document).encode()
        try:
            answer = self._pool.request(
                method, address, body=body, headers=headers, redirect=False, preload_content=False
            )
            try:
                data = answer.read(_ANSWER_BYTES_MAX + 1)
            finally:
                answer.release_conn()
        except SSLError as err:
            raise RemoteUnreachable(
                self.url, _reason(err),
                "If it has made its certificate itself: --ca-file with a copy of keys/web.crt from its home.",
            ) from err  # fmt: skip
        except HTTPError as err:
            raise RemoteUnreachable(self.url, _reason(err)) from err
        if len(data) > _ANSWER_BYTES_MAX:
            raise RemoteUnknown(self.url, "its answer is too large")
        return self._read_answer(answer.status, answer.headers.get("Content-Type", ""), data)

    def _read_answer(self, status: int, kind: str, data: bytes) -> Any:
        if status == 204:
            return None
        if kind.partition(";")[0] not in ("application/json", _PROBLEM):
            raise RemoteUnknown(self.url, f"status {status}, and no JSON")
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as err:
            raise RemoteUnknown(self.url, "its answer is no JSON") from err
        if not isinstance(document, dict):
            raise RemoteUnknown(self.url, "its answer is no JSON object")
        if status >= 400:
            detail, hint = str(document.get("detail", f"status {status}")), str(document.get("hint", ""))
            fields = [
                f"{each['where']}: {each['reason']}" for each in document.get("errors", ()) if isinstance(each, dict)
            ]
            raise RemoteRefused(
                " ".join([detail, *fields]), hint, status, str(document.get("type", "")).rpartition(":")[2]
            )
        return document


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


def _reason(err: HTTPError) -> str:
    inner = err.args[-1] if err.args else err
    return " ".join(str(getattr(inner, "reason", None) or inner).split())[:300]
