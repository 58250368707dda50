"""Who a bucket of Google's is opened as: a service account, by its key, for which tokens are lent.

The rule: who that is, and where tokens come from, is said by the key's file, and by nothing else that this machine, its
environment or a metadata server holds. Google's library signs and reads; what it sends goes over a Wire, once.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from google.auth.exceptions import GoogleAuthError
from google.oauth2 import service_account

from imaging.errors import AddressRefused
from imaging.storage.cloud import UNANSWERED
from imaging.storage.endpoints import Endpoint, parse_endpoint
from imaging.storage.wire import Limits, Unanswered, Wire

_SCOPE: Final = "https://www.googleapis.com/auth/devstorage.read_write"
_UNIVERSE: Final = "googleapis.com"
_FILE_BYTES_MAX: Final = 64 << 10
_TOKEN: Final = re.compile(r"[!-~]{1,8192}")
_REMEMBERED: Final = 64
_HINT: Final = "name the file of a service account's key, as Google makes it (JSON), in gcs.key_file"


class TokenRefused(Exception):
    """The server of tokens has answered, and lends none."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{status} {code} {message}")
        self.status = status
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """`tokens` is the server that `token_url` is on."""

    email: str
    token_url: str
    tokens: Endpoint
    key_id: str = field(repr=False)
    private_key: str = field(repr=False)

    def __post_init__(self) -> None:
        """AddressRefused."""
        try:
            self.library().sign_bytes(b"")  # only a key of RSA signs
        except (GoogleAuthError, UnsupportedAlgorithm, ValueError, TypeError) as error:
            raise AddressRefused("the key of the service account", "its private key is none", hint=_HINT) from error

    def library(self) -> Any:
        """As Google's library knows it; nothing is sent."""
        told = {
            "client_email": self.email, "token_uri": self.token_url,
            "private_key_id": self.key_id, "private_key": self.private_key,
        }  # fmt: skip
        return service_account.Credentials.from_service_account_info(told, scopes=[_SCOPE])


def read_key(path: Path) -> ServiceAccount:
    """AddressRefused, which repeats nothing of what is in the file, also where others could read it."""
    where = f"the key file {path}"
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_FILE_BYTES_MAX)
    except OSError as error:
        raise AddressRefused(where, f"it cannot be read: {error.strerror}", hint=_HINT) from error
    if mode & 0o077:
        raise AddressRefused(where, f"others may read it (mode {mode & 0o777:04o})", hint=f"chmod 0600 {path}")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise AddressRefused(where, "it is not JSON", hint=_HINT) from None
    if not isinstance(found, dict) or found.get("type") != "service_account":
        raise AddressRefused(where, "it is not the key of a service account", hint=_HINT)
    if found.get("universe_domain", _UNIVERSE) != _UNIVERSE:
        raise AddressRefused(where, "it is of another cloud than Google's public one", hint=_HINT)
    email, url, key_id, key = (
        found.get(name) for name in ("client_email", "token_uri", "private_key_id", "private_key")
    )
    if not (isinstance(email, str) and isinstance(url, str) and isinstance(key_id, str) and isinstance(key, str)):
        hint = "copy the whole file: client_email, token_uri, private_key_id and private_key are needed"
        raise AddressRefused(where, "something is missing in it", hint=hint)
    return ServiceAccount(email, url, _server_of(url), key_id, key)


def _server_of(url: str) -> Endpoint:
    """AddressRefused where no tokens may come from."""
    parts = re.fullmatch(r"([a-z]+://[^/]*)/[A-Za-z0-9._/-]*", url)
    if parts is None:
        raise AddressRefused("the token_uri of the key file", "it is no URL of a server of tokens", hint=_HINT)
    return parse_endpoint(parts[1])


class Tokens:
    """Each is lent for an hour or so, and fetched before that is over, by one thread for all that wait for it.
    Thread-safe."""

    def __init__(self, account: ServiceAccount, limits: Limits | None = None, ca_file: str | None = None) -> None:
        self._library = account.library()
        self._wire = Wire(account.tokens, limits, ca_file)
        self._lock = threading.Lock()
        self._failures = 0
        self._failure: Exception | None = None
        self._accepted = ""
        self._never_taken: deque[str] = deque(maxlen=_REMEMBERED)

    def token(self) -> str:
        """TokenRefused, Unanswered, Distrusted; also where another thread's attempt failed while this one waited."""
        failures = self._failures
        with self._lock:
            if not self._library.valid:
                if self._failure is not None and self._failures != failures:
                    raise self._failure
                try:
                    self._fetch()
                except Exception as error:
                    self._failures += 1
                    self._failure = error
                    raise
            return str(self._library.token)

    def accepted(self, token: str) -> None:
        """The object store has answered to it."""
        self._accepted = token

    def refused(self, token: str) -> bool:
        """The object store does not take it: the next is another. Whether that may help: it took this one before, or
        somebody has replaced it meanwhile, and not because it was never taken."""
        with self._lock:
            if self._library.token == token:
                self._library.token = None
                if token != self._accepted:
                    self._never_taken.append(token)
            return token not in self._never_taken

    def _fetch(self) -> None:
        try:
            self._library.refresh(self._ask)
        except (GoogleAuthError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise Unanswered(UNANSWERED) from error
        if not isinstance(self._library.token, str) or not _TOKEN.fullmatch(self._library.token):
            self._library.token = None
            raise Unanswered(UNANSWERED)

    def _ask(
        self, url: str, method: str = "GET", body: bytes | None = None, headers: Mapping[str, str] | None = None,
        **_: object,
    ) -> _Lent:  # fmt: skip
        """What the library sends by. It sees success only: on anything else it would wait, and ask again."""
        answer = self._wire.ask(method, url, headers or {}, body or b"")
        if answer.status != 200:
            raise TokenRefused(answer.status, *_said(answer.body))
        return _Lent(answer.status, answer.headers, answer.body)


@dataclass(frozen=True, slots=True)
class _Lent:
    """An answer, as the library wants it."""

    status: int
    headers: Mapping[str, str]
    data: bytes = field(repr=False)


def _said(body: bytes) -> tuple[str, str]:
    """The code and the description of a refusal (RFC 6749, 5.2), empty where it is none."""
    try:
        found = json.loads(body)
        return str(found.get("error", "")), str(found.get("error_description", ""))
    except (ValueError, AttributeError, RecursionError):
        return "", ""
