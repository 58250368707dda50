"""A store in a bucket of an S3 object store, below a prefix.

Rules: one call is one request, or a few; nothing is repeated here (storage/retrying.py does that), and all that goes
wrong is translated by s3_errors.py. An answer is taken only if it is what was asked for: bytes are counted, ranges and
listings compared with the request. What the environment or ~/.aws say decides nothing: where data go, and whose
credentials they are, is said by who makes the store.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import botocore.session
from botocore.config import Config
from botocore.handlers import add_expect_header
from botocore.loaders import Loader
from botocore.parsers import ResponseParserError

from imaging.errors import AddressRefused, Damaged, InvalidName, ObjectMissing, StoreUnavailable
from imaging.storage.contract import OBJECT_BYTES_MAX, Buffer, Listed, check_name, check_prefix
from imaging.storage.endpoints import Endpoint
from imaging.storage.object_lock import Locking, is_locked
from imaging.storage.s3_errors import CREATE, FAILURES, header_of, of_one_key, outside_range, translated
from imaging.storage.sending import Sent, whole
from imaging.storage.witnesses import Witnesses

Answer: TypeAlias = Mapping[str, Any]

_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")
_NO_RANGE: Final = re.compile(r"bytes \*/(\d{1,19})")
_DELETED_AT_ONCE: Final = 1000
"""So many a request may name."""

_PIECE_BYTES: Final = 1 << 20
_SLOWEST_BYTES_PER_S: Final = 64 << 10
_UNANSWERED: Final = "the answer is not what was asked for"


@dataclass(frozen=True, slots=True)
class Credentials:
    """`session_token` comes with credentials that are lent for a time."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where the objects are. `prefix` is empty or ends in a slash; `ca_file` has the certificates that the endpoint's
    is checked against, if they are not the public ones."""

    endpoint: Endpoint
    name: str
    prefix: str = ""
    region: str = "us-east-1"
    ca_file: str | None = None

    def __post_init__(self) -> None:
        """AddressRefused."""
        if not _BUCKET.fullmatch(self.name) or ".." in self.name:
            hint = "a bucket has 3 to 63 characters: a-z, 0-9, dots and dashes"
            raise AddressRefused(f"the bucket {self.name!r}", "no bucket has such a name", hint=hint)
        try:
            check_prefix(self.prefix)
        except InvalidName as error:
            hint = "a prefix has parts of a-z, 0-9, dots and dashes, and a slash after each"
            raise AddressRefused(f"the prefix {self.prefix!r}", "nothing can be kept below it", hint=hint) from error
        if not re.fullmatch(r"[a-z0-9-]{1,63}", self.region):
            raise AddressRefused(f"the region {self.region!r}", "no region has such a name", hint="check the region")

    def __str__(self) -> str:
        return f"s3://{self.name}/{self.prefix} at {self.endpoint}"


@dataclass(frozen=True, slots=True)
class Limits:
    """`silence_s`: so long may the server say nothing. An answer as a whole may take as long again as its bytes take at
    64 KiB/s."""

    connections: int = 16
    connect_s: float = 10.0
    silence_s: float = 20.0


class S3Store:
    """Thread-safe; not to be used on both sides of a fork. Holds at most `limits.connections` connections."""

    def __init__(
        self,
        bucket: Bucket,
        credentials: Credentials,
        limits: Limits | None = None,
        locking: Locking | None = None,
    ) -> None:
        """With `locking`, what restore points are made of is locked as it is written."""
        self._bucket = bucket
        self._locking = locking
        self._limits = limits or Limits()
        self._witnesses = Witnesses()
        self._slots = threading.BoundedSemaphore(self._limits.connections)
        self._client = _make_client(bucket, credentials, self._limits)
        if locking is not None:
            locking.listen(self._client.meta.events)

    def describe(self) -> str:
        return str(self._bucket)

    def free_bytes(self) -> int | None:
        return None

    # Writing

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        self._write("write", name, data)

    def create(self, name: str, data: Sequence[Buffer]) -> None:
        self._write(CREATE, name, data, IfNoneMatch="*")

    def _write(self, operation: str, name: str, data: Sequence[Buffer], **conditions: str) -> None:
        check_name(name)
        sent = whole(data)
        answer = self._ask(
            operation,
            name,
            self._client.put_object,
            Key=self.key(name),
            Body=Sent(sent),  # in pieces, each with its own time-out
            ContentMD5=_md5(sent),
            **conditions,
            **self._lock_of(name),
        )
        if "ETag" not in answer:
            raise StoreUnavailable(operation, name, _UNANSWERED)
        self._witnesses.saw(name)

    def _lock_of(self, name: str) -> dict[str, Any]:
        if self._locking is None or not is_locked(name):
            return {}
        if not self._locking.time.is_known:
            self.exists(name)  # any answer tells the time
        return self._locking.parameters()

    # Reading

    def get(self, name: str, offset_bytes: int = 0, length_bytes: int | None = None) -> bytes:
        return self._get(name, offset_bytes, length_bytes)

    def get_version(self, name: str, version_id: str) -> bytes:
        """A version of an object, whole, whether it is the newest or not."""
        return self._get(name, 0, None, VersionId=version_id)

    def _get(self, name: str, offset_bytes: int, length_bytes: int | None, **version: str) -> bytes:
        check_name(name)
        if offset_bytes < 0 or (length_bytes is not None and not 0 < length_bytes <= OBJECT_BYTES_MAX):
            return self._nothing(name, offset_bytes, length_bytes, self._size(name))
        # Of a whole object too, as only the answer to a range tells the object's size beside its own.
        wanted = f"bytes={offset_bytes}-{'' if length_bytes is None else offset_bytes + length_bytes - 1}"
        with self._slots:
            try:
                answer = self._call(self._client.get_object, Key=self.key(name), Range=wanted, **version)
                with answer["Body"] as body:
                    data = self._read(name, answer, body, offset_bytes, length_bytes)
                if not version:
                    self._witnesses.saw(name)
                return data
            except FAILURES as error:
                if not outside_range(error):
                    raise translated("read", name, error) from error
                size = _NO_RANGE.fullmatch(header_of(error, "content-range"))
        return self._nothing(name, offset_bytes, length_bytes, int(size[1]) if size else self._size(name))

    def _read(self, name: str, answer: Answer, body: Any, offset_bytes: int, length_bytes: int | None) -> bytes:
        """`body` is urllib3's response."""
        first, size, sent = _extent(name, answer)
        last = size if length_bytes is None else offset_bytes + length_bytes
        if offset_bytes > size or last > size:
            raise Damaged(name, f"it has {size} bytes where {offset_bytes} to {last} are wanted")
        if last - offset_bytes > OBJECT_BYTES_MAX or sent > OBJECT_BYTES_MAX:
            raise Damaged(name, f"it has {size} bytes, more than any object")
        if first > offset_bytes or first + sent < last:
            raise StoreUnavailable("read", name, f"{_UNANSWERED}: bytes {first} to {first + sent}")
        data = self._receive(name, body, sent)
        # A server that knows no ranges sends everything.
        return data if sent == last - offset_bytes else data[offset_bytes - first : last - first]

    def _receive(self, name: str, body: Any, wanted: int) -> bytes:
        until = time.monotonic() + self._limits.silence_s + wanted / _SLOWEST_BYTES_PER_S
        parts: list[bytes] = []
        left = wanted
        while left:
            part = body.read1(min(left, _PIECE_BYTES))
            if not part:
                raise StoreUnavailable("read", name, f"the answer ended {left} bytes early")
            parts.append(part)
            left -= len(part)
            if left and time.monotonic() > until:
                raise StoreUnavailable("read", name, f"the answer is too slow: {left} bytes are still to come")
        if body.read(1):
            raise StoreUnavailable("read", name, f"{_UNANSWERED}: it has more than {wanted} bytes")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _nothing(self, name: str, offset_bytes: int, length_bytes: int | None, size: int) -> bytes:
        """For a range that has no bytes, or ends behind the object."""
        wanted = size - offset_bytes if length_bytes is None else length_bytes
        if wanted == 0 and 0 <= offset_bytes <= size:
            return b""
        raise Damaged(name, f"it has {size} bytes where {offset_bytes} to {offset_bytes + wanted} are wanted")

    def exists(self, name: str) -> bool:
        check_name(name)
        try:
            self._size(name, "look for")
        except ObjectMissing:
            return False
        self._witnesses.saw(name)
        return True

    def _size(self, name: str, operation: str = "read") -> int:
        """By reading a byte: the answer to HEAD does not tell an object that is missing from a bucket that is."""
        with self._slots:
            try:
                answer = self._call(self._client.get_object, Key=self.key(name), Range="bytes=0-0")
                with answer["Body"] as body:
                    _, size, sent = _extent(name, answer)
                    if sent <= 1:
                        self._receive(name, body, sent)  # so that the connection can be used again
                    return size
            except FAILURES as error:
                if outside_range(error):
                    return 0
                raise translated(operation, name, error) from error

    # Listing

    def list(self, prefix: str) -> Iterator[Listed]:
        check_prefix(prefix)
        return self._listing(prefix)

    def _listing(self, prefix: str) -> Iterator[Listed]:
        """Shown when it is complete, as not every server sorts by name: SeaweedFS shows a/b before a-b. That takes some
        200 bytes for each object."""
        witnesses = self._witnesses.below(prefix)
        found: dict[str, int] = {}
        token = ""
        seen = set()
        while True:
            page = self._page(prefix, token)
            for entry in page.get("Contents", ()):
                name = self.name(prefix, str(entry["Key"]))
                if name is not None:
                    found[name] = int(entry["Size"])
            if not page["IsTruncated"]:
                break
            token = str(page.get("NextContinuationToken", ""))
            if not token or token in seen:
                raise StoreUnavailable("list", prefix or "the repository", "the listing goes in circles")
            seen.add(token)
        if not found:
            self._hear(witnesses, prefix)
        for name in sorted(found):
            yield Listed(name, found[name])

    def _hear(self, witnesses: Iterable[str], prefix: str) -> None:
        for name in witnesses:
            if self.exists(name):
                raise StoreUnavailable("list", prefix or "the repository", f"no object is shown, and {name} is there")
            self._witnesses.lost(name)

    def _page(self, prefix: str, token: str) -> Answer:
        what = prefix or "the repository"
        wanted = self._bucket.prefix + prefix
        going_on = {"ContinuationToken": token} if token else {}
        page = self._ask("list", what, self._client.list_objects_v2, Prefix=wanted, **going_on)
        shown = page.get("Contents", ())
        if (
            not isinstance(page.get("IsTruncated"), bool)
            or page.get("Name") != self._bucket.name
            or page.get("Prefix", "") != wanted
            or page.get("KeyCount", len(shown)) != len(shown)
            or not all("Key" in entry and "Size" in entry for entry in shown)
        ):
            raise StoreUnavailable("list", what, _UNANSWERED)
        return page

    def name(self, prefix: str, key: str) -> str | None:
        """None for what is no object of ours."""
        if not key.startswith(self._bucket.prefix + prefix):
            raise StoreUnavailable("list", prefix or "the repository", _UNANSWERED)
        name = key[len(self._bucket.prefix) :]
        try:
            check_name(name)
        except InvalidName:
            return None
        return name

    # Removing

    def delete(self, name: str) -> None:
        check_name(name)
        self._size(name, "delete")  # S3 does not tell whether there was anything
        self._delete(name)

    def _delete(self, name: str) -> None:
        self._witnesses.lost(name)
        self._ask("delete", name, self._client.delete_object, Key=self.key(name))

    def delete_many(self, names: Iterable[str]) -> None:
        wanted = list(dict.fromkeys(names))
        for name in wanted:
            check_name(name)
        for first in range(0, len(wanted), _DELETED_AT_ONCE):
            self._delete_batch(wanted[first : first + _DELETED_AT_ONCE])

    def _delete_batch(self, names: Sequence[str]) -> None:
        for name in names:
            self._witnesses.lost(name)
        keys = {self.key(name): name for name in names}
        doomed = {"Objects": [{"Key": key} for key in keys], "Quiet": False}
        what = names[0] if len(names) == 1 else f"{len(names)} objects from {names[0]} on"
        answer = self._ask("delete", what, self._client.delete_objects, Delete=doomed)
        for entry in answer.get("Errors", ()):
            name = keys.get(str(entry.get("Key", "")), what)
            refused = of_one_key("delete", name, str(entry.get("Code", "")), str(entry.get("Message", "")))
            if not isinstance(refused, ObjectMissing):
                raise refused
        told = {str(entry.get("Key", "")) for entry in (*answer.get("Deleted", ()), *answer.get("Errors", ()))}
        for key, name in keys.items():
            if key not in told:
                self._delete(name)

    # Requests

    @property
    def bucket_name(self) -> str:
        return self._bucket.name

    def key(self, name: str) -> str:
        return self._bucket.prefix + name

    def request(self, operation: str, name: str, call: str, **parameters: Any) -> Answer:
        """A request that no store makes, by its name in botocore; an error's cause is what botocore raised."""
        return self._ask(operation, name, getattr(self._client, call), **parameters)

    def _ask(self, operation: str, name: str, method: Callable[..., Answer], **parameters: Any) -> Answer:
        with self._slots:
            try:
                return self._call(method, **parameters)
            except FAILURES as error:
                raise translated(operation, name, error) from error

    def _call(self, method: Callable[..., Answer], **parameters: Any) -> Answer:
        try:
            return method(Bucket=self._bucket.name, **parameters)
        except (KeyError, TypeError, ValueError) as error:  # in the answer is a number or a time that is none
            raise ResponseParserError(str(error)) from error


def _extent(name: str, answer: Answer) -> tuple[int, int, int]:
    """Where the bytes of an answer begin, how long the object is, and how many bytes there are to read."""
    told = answer.get("ContentRange")
    length = answer.get("ContentLength")
    if told is None and length is not None:
        return 0, int(length), int(length)
    found = _RANGE.fullmatch(str(told))
    if found is not None:
        first, last, size = int(found[1]), int(found[2]), int(found[3])
        sent = last + 1 - first
        if 0 < sent <= size - first and length in (None, sent):
            return first, size, sent
    raise StoreUnavailable("read", name, f"{_UNANSWERED}: {str(told)[:60]!r} in {length} bytes")


def _md5(data: Buffer) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode("ascii")


def _make_client(bucket: Bucket, credentials: Credentials, limits: Limits) -> Any:
    if bucket.ca_file is not None and not os.path.isfile(bucket.ca_file):
        hint = "name the file of certificates, or leave it away where a public authority signed the endpoint's"
        raise AddressRefused(str(bucket.endpoint), f"{bucket.ca_file} is no file of certificates", hint=hint)
    known = botocore.session.Session.SESSION_VARIABLES.items()
    session = botocore.session.Session(
        {
            **{name: (in_file, None, default, convert) for name, (in_file, _, default, convert) in known},
            "config_file": (None, None, os.devnull, None),
            "credentials_file": (None, None, os.devnull, None),
        }
    )
    session.register_component("data_loader", _descriptions())
    client: Any = session.create_client(
        "s3",
        region_name=bucket.region,
        endpoint_url=bucket.endpoint.url,
        aws_access_key_id=credentials.access_key,
        aws_secret_access_key=credentials.secret_key,
        aws_session_token=credentials.session_token,
        verify=bucket.ca_file or True,
        config=Config(
            signature_version="s3v4",
            # What is sent has a Content-MD5, which is signed; SHA-256 over it as well, on plain HTTP alone, costs time.
            s3={"addressing_style": "path", "payload_signing_enabled": False},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=limits.connect_s,
            read_timeout=limits.silence_s,
            max_pool_connections=limits.connections,
            tcp_keepalive=True,
            proxies={} if bucket.endpoint.loopback else None,
        ),
    )
    # Some servers never answer "100 Continue", and each write then waits a second for it.
    client.meta.events.unregister("before-call.s3", add_expect_header)
    client.meta.events.register("before-call.s3", _follow_nobody)
    for operation in ("DeleteObjects", "PutObjectRetention"):
        client.meta.events.register(f"before-call.s3.{operation}", _digest_of_body)
    return client


@functools.cache
def _descriptions() -> Any:
    """Of services and regions, as botocore ships them: all clients of a process go by what the first one has read."""
    return Loader(include_default_search_paths=False, extra_search_paths=[Loader.BUILTIN_DATA_PATH])


def _follow_nobody(params: dict[str, Any], **_: object) -> None:
    """A bucket that is said to be in another region is not looked for there: the client takes this for the second
    time."""
    params["context"].setdefault("s3_redirect", {})["redirected"] = True


def _digest_of_body(params: dict[str, Any], **_: object) -> None:
    """Content-MD5, which every server understands, in place of the CRC-32 that only some do."""
    body = params["body"]
    params["headers"]["Content-MD5"] = _md5(body if isinstance(body, bytes) else str(body).encode())
    params["context"].get("checksum", {}).pop("request_algorithm", None)
