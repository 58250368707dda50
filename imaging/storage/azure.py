"""A container of Azure Blob Storage, below a prefix, as a Client of cloud.py.

The rule: Microsoft's library signs and parses, and sends nothing itself: each request goes over our Wire, once. What
the environment says decides nothing: where data go, and whose credentials they are, is said by who makes the client.
"""

from __future__ import annotations

import base64
import binascii
import io
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import requests
import urllib3
from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential
from azure.core.exceptions import AzureError
from azure.core.pipeline.transport import RequestsTransport
from azure.storage.blob import ContainerClient
from requests.adapters import BaseAdapter

from imaging.errors import AddressRefused, InvalidName
from imaging.storage.azure_errors import translated
from imaging.storage.cloud import UNANSWERED, range_told
from imaging.storage.contract import OBJECT_BYTES_MAX, check_prefix
from imaging.storage.endpoints import Endpoint, parse_endpoint
from imaging.storage.wire import Answer, Distrusted, Limits, Unanswered, Wire

T = TypeVar("T")

_ACCOUNT: Final = re.compile(r"[a-z0-9]{3,24}")
_CONTAINER: Final = re.compile(r"(?=.{3,63}\Z)[a-z0-9]+(?:-[a-z0-9]+)*")
_RANGE: Final = re.compile(r"bytes=(\d{1,19})-(\d{1,19})")
_NUMBERED: Final = re.compile(r"[0-9.]+|\[[0-9a-f:]+\]|localhost")
_PUBLIC: Final = "https://{account}.blob.core.windows.net"
_SHOWN_AT_ONCE: Final = 5000
_FAILURES: Final = (AzureError, Unanswered, Distrusted, AttributeError, KeyError, TypeError, ValueError)
"""What a call may raise; the last four of an answer in which something is missing, or no number."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """The account's key, or a shared access signature; one of them."""

    account_key: str | None = field(default=None, repr=False)
    sas_token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """AddressRefused, which does not repeat them."""
        if (self.account_key is None) == (self.sas_token is None):
            hint = "set either the key of the storage account, or a shared access signature"
            raise AddressRefused("the credential", "there must be one, and one only", hint=hint)
        if self.account_key is not None:
            try:
                base64.b64decode(self.account_key, validate=True)
            except (binascii.Error, ValueError):
                hint = "copy the whole key of the storage account"
                raise AddressRefused("the key of the storage account", "it is not base64", hint=hint) from None
        elif not re.search(r"(?:\A\??|&)sig=[^&]", self.sas_token or ""):
            hint = "copy the whole token: it has several parts, sig=… among them"
            raise AddressRefused("the shared access signature", "it has no signature", hint=hint)


@dataclass(frozen=True, slots=True)
class Container:
    """Where the objects are. `prefix` is empty or ends in a slash."""

    endpoint: Endpoint
    account: str
    name: str
    prefix: str = ""
    ca_file: str | None = None

    def __post_init__(self) -> None:
        """AddressRefused."""
        if not _ACCOUNT.fullmatch(self.account):
            hint = "a storage account has 3 to 24 characters: a-z and 0-9"
            raise AddressRefused(f"the account {self.account!r}", "no account has such a name", hint=hint)
        if not _CONTAINER.fullmatch(self.name):
            hint = "a container has 3 to 63 characters: a-z, 0-9 and single dashes"
            raise AddressRefused(f"the container {self.name!r}", "no container has such a name", hint=hint)
        try:
            check_prefix(self.prefix)
        except InvalidName as error:
            hint = "a prefix has parts of a-z, 0-9, dots and dashes, and a slash after each"
            raise AddressRefused(f"the prefix {self.prefix!r}", "nothing can be kept below it", hint=hint) from error

    @property
    def account_url(self) -> str:
        """A server that is no name of the account's (Azurite, an address in numbers) has the account in its paths."""
        host = self.endpoint.url.partition("://")[2]
        host = host if host.startswith("[") and host.endswith("]") else re.sub(r":\d+\Z", "", host)
        return f"{self.endpoint}/{self.account}" if _NUMBERED.fullmatch(host) else self.endpoint.url

    def __str__(self) -> str:
        return f"azure://{self.account}/{self.name}/{self.prefix} at {self.endpoint}"


def endpoint_of(account: str, url: str = "") -> Endpoint:
    """`url`, or where the account is in the public cloud. AddressRefused."""
    if not url and not _ACCOUNT.fullmatch(account):
        raise AddressRefused(f"the account {account!r}", "no account has such a name", hint="set the account's name")
    return parse_endpoint(url or _PUBLIC.format(account=account))


class AzureClient:
    """See cloud.Client."""

    def __init__(self, container: Container, credentials: Credentials, limits: Limits | None = None) -> None:
        self._place = container
        # The library finds each request worth a dozen lines, and warns of what becomes an error of ours.
        logging.getLogger("azure").setLevel(logging.ERROR)
        session = requests.Session()
        session.trust_env = False  # neither ~/.netrc nor REQUESTS_CA_BUNDLE
        adapter = _Adapter(Wire(container.endpoint, limits, container.ca_file))
        for scheme in ("https://", "http://"):
            session.mount(scheme, adapter)
        self._container = ContainerClient(
            container.account_url,
            container.name,
            credential=_credential(container, credentials),
            transport=RequestsTransport(
                session=session,
                session_owner=False,
                use_env_settings=False,
                connection_data_block_size=OBJECT_BYTES_MAX,  # what is in memory already comes in one piece
            ),
            retry_total=0,
            permit_redirects=False,
            max_single_get_size=OBJECT_BYTES_MAX,
            max_single_put_size=OBJECT_BYTES_MAX,
        )

    def describe(self) -> str:
        return str(self._place)

    def write(self, name: str, data: bytes, *, create: bool) -> None:
        """Without "overwrite" the library sends If-None-Match: *; with "validate_content", Content-MD5."""

        def send() -> None:
            blob = self._container.get_blob_client(self._key(name))
            answer = blob.upload_blob(data, length=len(data), overwrite=not create, validate_content=True)
            if not answer.get("etag"):
                raise Unanswered(UNANSWERED)

        self._call("create" if create else "write", name, send)

    def read(self, name: str, first: int, wanted: int) -> tuple[bytes, int]:
        def send() -> tuple[bytes, int] | None:
            try:
                got = self._container.download_blob(self._key(name), offset=first, length=wanted, max_concurrency=1)
            except AzureError as error:
                if getattr(error, "status_code", None) == 416:
                    return None
                raise
            told = got.properties.content_range or ""
            return got.readall(), int(told.rpartition("/")[2])

        return self._call("read", name, send) or (b"", self.size(name, "read"))

    def size(self, name: str, operation: str) -> int:
        """The refusal of a HEAD has its code in a header: an object that is missing is told from a container."""
        blob = self._container.get_blob_client(self._key(name))
        return self._call(operation, name, lambda: int(blob.get_blob_properties().size))

    def pages(self, prefix: str) -> Iterator[Sequence[tuple[str, int]]]:
        what = prefix or "the repository"
        wanted = self._key(prefix)
        pages = self._container.list_blobs(name_starts_with=wanted, results_per_page=_SHOWN_AT_ONCE).by_page()
        seen: set[str] = set()

        def following() -> list[tuple[str, int]] | None:
            entries = next(pages, None)
            if entries is None:
                return None
            shown = list(entries)
            told: Any = pages
            marker = told.continuation_token or ""
            if told.container != self._place.name or (told.prefix or "") != wanted or marker in seen:
                raise Unanswered(UNANSWERED)
            seen.update([marker] if marker else [])
            if not all(str(each.name).startswith(wanted) for each in shown):
                raise Unanswered(UNANSWERED)
            return [(str(each.name)[len(self._place.prefix) :], int(each.size)) for each in shown]

        while (page := self._call("list", what, following)) is not None:
            yield page

    def remove(self, name: str) -> None:
        """With its snapshots, that somebody may have made: while there are any, nothing can be deleted."""
        blob = self._container.get_blob_client(self._key(name))
        self._call("delete", name, lambda: blob.delete_blob(delete_snapshots="include"))

    def _key(self, name: str) -> str:
        return self._place.prefix + name

    def _call(self, operation: str, name: str, send: Callable[[], T]) -> T:
        try:
            return send()
        except _FAILURES as error:
            raise translated(operation, name, error) from error


def _credential(container: Container, credentials: Credentials) -> AzureNamedKeyCredential | AzureSasCredential:
    if credentials.account_key is not None:
        return AzureNamedKeyCredential(container.account, credentials.account_key)
    return AzureSasCredential((credentials.sas_token or "").removeprefix("?"))


class _Adapter(BaseAdapter):
    """What the library's requests go through. Borrows `wire`."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: object = None,
        verify: object = True,
        cert: object = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """The arguments after the first are the library's wishes: Wire knows better."""
        body: Any = request.body or b""
        whole = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else body.read()
        answer = self._wire.ask(str(request.method), str(request.url), dict(request.headers), whole)
        _check_range(request.headers.get("x-ms-range"), answer)
        response = requests.Response()
        response.status_code = answer.status
        response.headers.update(answer.headers)
        response.raw = urllib3.HTTPResponse(
            io.BytesIO(answer.body),
            answer.headers,
            answer.status,
            preload_content=False,
            decode_content=False,
            request_method=request.method,
        )
        response.url = str(request.url)
        response.request = request
        return response

    def close(self) -> None:
        """Connections close with the Wire."""


def _check_range(asked: str | bytes | None, answer: Answer) -> None:
    """Unanswered unless the bytes are those that were asked for."""
    wanted = _RANGE.fullmatch(str(asked))
    if wanted is not None and answer.status < 300:
        range_told(int(wanted[1]), int(wanted[2]), answer)
