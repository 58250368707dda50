"""A bucket of Google Cloud Storage, below a prefix, as a Client of cloud.py.

The rule: its JSON API, asked over our Wire, one request for each call; Google's libraries do what needs a secret or a
polynomial (tokens, CRC32C). What the environment says decides nothing.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar
from urllib.parse import quote, urlencode

import google_crc32c

from imaging.errors import AddressRefused, InvalidName, ObjectMissing, StoreUnavailable
from imaging.storage.cloud import AGAIN, UNANSWERED, range_told
from imaging.storage.contract import check_prefix
from imaging.storage.endpoints import Endpoint, parse_endpoint
from imaging.storage.gcs_errors import Refused, translated
from imaging.storage.gcs_key import ServiceAccount, TokenRefused, Tokens
from imaging.storage.wire import Answer, Distrusted, Limits, Unanswered, Wire

T = TypeVar("T")

_BUCKET: Final = re.compile(r"(?=.{3,222}\Z)(?!.*\.\.)[a-z0-9][a-z0-9._-]*[a-z0-9]")
_PUBLIC: Final = "https://storage.googleapis.com"
_SHOWN_AT_ONCE: Final = 1000
_FAILURES: Final = (
    Refused, TokenRefused, Unanswered, Distrusted,
    AttributeError, KeyError, RecursionError, TypeError, ValueError,
)  # fmt: skip
"""What a call may raise; the second line of an answer that is none, or in which something is missing."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where the objects are. `prefix` is empty or ends in a slash."""

    endpoint: Endpoint
    name: str
    prefix: str = ""
    ca_file: str | None = None

    def __post_init__(self) -> None:
        """AddressRefused."""
        if not _BUCKET.fullmatch(self.name):
            hint = "a bucket has 3 characters or more: a-z, 0-9, dots, dashes and underscores"
            raise AddressRefused(f"the bucket {self.name!r}", "no bucket has such a name", hint=hint)
        try:
            check_prefix(self.prefix)
        except InvalidName as error:
            hint = "a prefix has parts of a-z, 0-9, dots and dashes, and a slash after each"
            raise AddressRefused(f"the prefix {self.prefix!r}", "nothing can be kept below it", hint=hint) from error

    def __str__(self) -> str:
        return f"gs://{self.name}/{self.prefix} at {self.endpoint}"


def endpoint_of(url: str = "") -> Endpoint:
    """`url`, or where Google's public cloud is. AddressRefused."""
    return parse_endpoint(url or _PUBLIC)


class GcsClient:
    """See cloud.Client."""

    def __init__(self, bucket: Bucket, account: ServiceAccount, limits: Limits | None = None) -> None:
        self._place = bucket
        self._wire = Wire(bucket.endpoint, limits, bucket.ca_file)
        self._tokens = Tokens(account, limits, bucket.ca_file)

    def describe(self) -> str:
        return str(self._place)

    def write(self, name: str, data: bytes, *, create: bool) -> None:
        """The digest goes along, for Google to compare; its answer's is compared here, for those who do not."""
        digest = base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()
        described = {"name": self._key(name), "crc32c": digest, "cacheControl": "no-store"}
        query = {"uploadType": "multipart", "fields": "name,size,crc32c"}

        def send() -> None:
            kind, body = _multipart(described, data)
            asked = query | ({"ifGenerationMatch": "0"} if create else {})
            made = json.loads(self._ask("POST", "/upload", "", asked, {"Content-Type": kind}, body).body)
            if (made["name"], int(made["size"]), made["crc32c"]) != (described["name"], len(data), digest):
                raise Unanswered(UNANSWERED)

        self._call("create" if create else "write", name, send)

    def read(self, name: str, first: int, wanted: int) -> tuple[bytes, int]:
        last = first + wanted - 1

        def send() -> tuple[bytes, int] | None:
            headers = {"Range": f"bytes={first}-{last}"}
            try:
                answer = self._ask("GET", "", self._key(name), {"alt": "media"}, headers)
            except Refused as error:
                if error.status == 416:
                    return None
                raise
            return answer.body, range_told(first, last, answer)

        return self._call_of_object("read", name, send) or (b"", self.size(name, "read"))

    def size(self, name: str, operation: str) -> int:
        """Told by a listing, which of names that begin alike shows the shortest first: unlike a refusal, what it does
        not show is known not to be there."""
        for page in self._pages(operation, name, self._key(name), 1):
            for shown, size in page:
                if shown == name:
                    return size
                raise ObjectMissing(name)
        raise ObjectMissing(name)

    def pages(self, prefix: str) -> Iterator[Sequence[tuple[str, int]]]:
        return self._pages("list", prefix or "the repository", self._key(prefix), _SHOWN_AT_ONCE)

    def remove(self, name: str) -> None:
        def send() -> None:
            answer = self._ask("DELETE", "", self._key(name), {})
            if answer.body.strip() not in (b"", b"null"):
                raise Unanswered(UNANSWERED)

        self._call_of_object("delete", name, send)

    def _pages(self, operation: str, name: str, wanted: str, at_once: int) -> Iterator[Sequence[tuple[str, int]]]:
        query = {"prefix": wanted, "maxResults": str(at_once), "fields": "kind,nextPageToken,items(name,size)"}
        following: str | None = ""
        seen: set[str] = set()

        def send() -> tuple[list[tuple[str, int]], str | None]:
            page = json.loads(self._ask("GET", "", "", query | ({"pageToken": following} if following else {})).body)
            entries = [(str(each["name"]), int(each["size"])) for each in page.get("items", [])]
            token = page.get("nextPageToken") or None
            if (
                page["kind"] != "storage#objects"
                or token in seen
                or not all(key.startswith(wanted) for key, _ in entries)
            ):
                raise Unanswered(UNANSWERED)
            return [(key[len(self._place.prefix) :], size) for key, size in entries], token

        while following is not None:
            entries, following = self._call(operation, name, send)
            seen.update([following] if following else [])
            yield entries

    def _key(self, name: str) -> str:
        return self._place.prefix + name

    def _ask(
        self, method: str, service: str, key: str, query: Mapping[str, str],
        headers: Mapping[str, str] | None = None, body: bytes = b"",
    ) -> Answer:  # fmt: skip
        """An answer that says yes. Refused, TokenRefused, Unanswered, Distrusted."""
        path = f"{service}/storage/v1/b/{self._place.name}/o" + (f"/{quote(key, safe='')}" if key else "")
        url = f"{self._place.endpoint}{path}?{urlencode({**query, 'prettyPrint': 'false'})}"
        token = self._tokens.token()
        answer = self._wire.ask(method, url, {"Authorization": f"Bearer {token}", **(headers or {})}, body)
        if answer.status == 401:
            raise Refused(answer, expired=self._tokens.refused(token))
        if answer.status >= 300:
            raise Refused(answer)
        self._tokens.accepted(token)
        return answer

    def _call_of_object(self, operation: str, name: str, send: Callable[[], T]) -> T:
        """As _call, for what is asked of one object: whether that is missing, a listing tells."""
        try:
            return send()
        except _FAILURES as error:
            if not isinstance(error, Refused) or error.status != 404:
                raise translated(operation, name, error) from error
            self.size(name, operation)
            detail = "the object store says 404, and shows it in a listing"
            raise StoreUnavailable(operation, name, detail, hint=AGAIN) from error

    def _call(self, operation: str, name: str, send: Callable[[], T]) -> T:
        try:
            return send()
        except _FAILURES as error:
            raise translated(operation, name, error) from error


def _multipart(described: Mapping[str, str], data: bytes) -> tuple[str, bytes]:
    """What an upload's Content-Type is, and its body."""
    boundary = secrets.token_hex(16)
    head = (
        f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{json.dumps(described)}\r\n"
        f"--{boundary}\r\nContent-Type: application/octet-stream\r\n\r\n"
    )
    body = b"".join((head.encode(), data, f"\r\n--{boundary}--\r\n".encode()))
    return f"multipart/related; boundary={boundary}", body
