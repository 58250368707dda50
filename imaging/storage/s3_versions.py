"""Versions and locks of the objects in a bucket of an S3 object store.

Rules: as those of storage/s3.py, whose connections it uses. That a lock holds is judged by trying to break it, and by
what is there afterwards; never by what the store says of itself alone.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from botocore.exceptions import ClientError

from imaging.errors import ImagingError, ObjectMissing, StoreError, StoreUnavailable
from imaging.storage.contract import check_name, check_prefix
from imaging.storage.object_lock import MODES, Lock, Locking, is_locked
from imaging.storage.retrying import RetryingStore
from imaging.storage.s3 import S3Store
from imaging.storage.versions import LockUnsuitable, Retention, Version

_log = logging.getLogger(__name__)
_UNANSWERED: Final = "the answer is not what was asked for"
_PARTS: Final = (
    "claims/", "config", "damaged/", "epochs/", "guard.copy/", "guard/", "holds/", "index/", "keys.copy/", "keys/",
    "leases/", "manifests/", "persons/", "requests/",
    "packs/", "rollcalls/", "tombstones/",
)  # fmt: skip
"""A repository is listed in parts: SeaweedFS goes through folders (keys/ before keys.copy/), and then leaves out of the
next page whatever sorts before the last one's end by bytes (keys.copy/ before keys/)."""
_PROBED_FOR: Final = timedelta(minutes=5)
_NO_LOCK: Final = frozenset({"ObjectLockConfigurationNotFoundError", "NoSuchObjectLockConfiguration"})
"""What a bucket without Object Lock says, and a version without retention (SeaweedFS says the first of both)."""

_RIGHTS: Final = (
    "give these credentials the rights that docs/operations.md lists under 'Object Lock': beside reading, writing and"
    " deleting, s3:GetObjectRetention, s3:PutObjectRetention, s3:ListBucketVersions, s3:GetObjectVersion,"
    " s3:GetBucketVersioning and s3:GetBucketObjectLockConfiguration"
)
_MAKE_ANOTHER: Final = "make a bucket with Object Lock (which also keeps versions), and put the repository there"


class S3Versions:
    """Borrows the store, which locks what it writes, and its patience."""

    def __init__(self, store: S3Store, locking: Locking, patience: RetryingStore, *, page: int = 1000) -> None:
        """`page`: so many versions are asked for at once."""
        self._page_versions = page
        self._store = store
        self._locking = locking
        self._patience = patience

    @property
    def lock(self) -> Lock:
        return self._locking.lock

    def now_utc(self) -> datetime:
        if not self._locking.time.is_known:
            self._patience.exists("config")  # any answer tells the time
        return self._locking.time.now_utc()

    # Is it what it must be?

    def check(self) -> None:
        where = self._store.describe()
        try:
            found = self._ask("look at", "the bucket's Object Lock", "get_object_lock_configuration")
        except StoreError as error:
            if _code(error) not in _NO_LOCK:
                raise
            raise LockUnsuitable(where, "the bucket has no Object Lock", hint=_MAKE_ANOTHER) from error
        said = found.get("ObjectLockConfiguration", {})
        if said.get("ObjectLockEnabled") != "Enabled":
            raise LockUnsuitable(where, "the bucket has no Object Lock", hint=_MAKE_ANOTHER)
        if "Rule" in said:
            raise LockUnsuitable(
                where,
                "the bucket has a default retention, which locks also what comes and goes by the minute (leases)",
                hint="take the bucket's default retention away: Strongroom locks each object that has to be",
            )
        if self._ask("look at", "the bucket's versions", "get_bucket_versioning").get("Status") != "Enabled":
            raise LockUnsuitable(where, "the bucket keeps no versions", hint=_MAKE_ANOTHER)

    def prove(self) -> None:
        self.check()
        where, name, content = self._store.describe(), f"probes/{secrets.token_hex(16)}", b"locked"
        wanted = Retention(self.lock.mode, (self.now_utc() + _PROBED_FOR).replace(microsecond=0))
        self._patience.create(name, [content])
        try:
            version = next((version for version in self.list("probes/") if version.name == name), None)
            if version is None or not version.id:
                raise LockUnsuitable(where, "an object that was just written has no version", hint=_MAKE_ANOTHER)
            self.retain(name, version.id, wanted)
            self._attack(version)
            kept = self.retention(name, version.id)
            if self.get(version) != content or kept is None or kept.until_utc < wanted.until_utc:
                raise LockUnsuitable(where, "a locked object could be changed, or its lock shortened")
        except ObjectMissing as error:
            hint = "take s3:BypassGovernanceRetention from these credentials, or set lock_mode to compliance"
            raise LockUnsuitable(where, "these credentials can destroy a locked object", hint=hint) from error
        finally:
            with contextlib.suppress(ImagingError):  # a probe that stays harms nobody, and hides no verdict
                self._patience.delete_many([name])

    def _attack(self, version: Version) -> None:
        """All that could end a lock; what is refused is as it should be. StoreUnavailable: it could not be tried."""
        soon = {"Mode": self.lock.mode.upper(), "RetainUntilDate": self.now_utc() + timedelta(seconds=5)}
        one = {"Key": self._store.key(version.name), "VersionId": version.id}
        attempts: tuple[tuple[str, dict[str, Any]], ...] = (
            ("put_object_retention", {**one, "Retention": soon}),
            ("put_object_retention", {**one, "Retention": soon, "BypassGovernanceRetention": True}),
            ("delete_object", one),
            ("delete_object", {**one, "BypassGovernanceRetention": True}),
        )
        for call, parameters in attempts:
            try:
                self._request("attack", version.name, call, **parameters)
            except StoreUnavailable:
                raise
            except StoreError as refused:
                _log.debug("as it should be: %s", refused)
            except ObjectMissing:
                return  # it is destroyed already

    # Versions

    def list(self, prefix: str = "") -> Iterator[Version]:
        check_prefix(prefix)
        for part in (prefix,) if prefix else _PARTS:
            yield from self._list(part)

    def _list(self, prefix: str) -> Iterator[Version]:
        marks: dict[str, str] = {}
        seen = set()
        while True:
            page = self._page(prefix, marks)
            for kind in ("Versions", "DeleteMarkers"):
                for entry in page.get(kind, ()):
                    name = self._store.name("", str(entry["Key"]))
                    if name is not None:
                        yield _version(name, entry, kind == "DeleteMarkers")
            if not page["IsTruncated"]:
                return
            marks = {"KeyMarker": str(page.get("NextKeyMarker", ""))}
            if page.get("NextVersionIdMarker"):
                marks["VersionIdMarker"] = str(page["NextVersionIdMarker"])
            if not marks["KeyMarker"] or tuple(marks.values()) in seen:
                raise StoreUnavailable("list", prefix or "the repository", "the listing of versions goes in circles")
            seen.add(tuple(marks.values()))

    def _page(self, prefix: str, marks: Mapping[str, Any]) -> Mapping[str, Any]:
        what, wanted = prefix or "the repository", self._store.key(prefix)

        def check(page: Mapping[str, Any]) -> None:
            entries = (*page.get("Versions", ()), *page.get("DeleteMarkers", ()))
            if (
                not isinstance(page.get("IsTruncated"), bool)
                or page.get("Name") != self._store.bucket_name
                or page.get("Prefix", "") != wanted
                or not all(isinstance(entry.get("LastModified"), datetime) and entry.get("Key") for entry in entries)
            ):
                raise StoreUnavailable("list", what, _UNANSWERED)

        return self._ask(
            "list", what, "list_object_versions", check, Prefix=wanted, MaxKeys=self._page_versions, **marks
        )

    def get(self, version: Version) -> bytes:
        return self._patience.patiently(lambda again: self._store.get_version(version.name, version.id))

    def bring_back(self, version: Version) -> None:
        key = self._store.key(version.name)
        source = {"Bucket": self._store.bucket_name, "Key": key, "VersionId": version.id}
        until = self.lock.fresh_until(self.now_utc())
        locked = is_locked(version.name)
        lock = {"ObjectLockMode": self.lock.mode.upper(), "ObjectLockRetainUntilDate": until} if locked else {}
        self._ask("bring back", version.name, "copy_object", Key=key, CopySource=source, **lock)
        if locked:  # some servers copy the old version's lock, whatever they were asked for
            self.retain(version.name, "", Retention(self.lock.mode, until))

    # Locks

    def retention(self, name: str, id: str = "") -> Retention | None:
        check_name(name)
        try:
            found = self._ask(
                "look at the lock of", name, "get_object_retention", _check_retention, **self._one(name, id)
            )
        except StoreError as error:
            if _code(error) in _NO_LOCK:
                return None
            raise
        return Retention(found["Retention"]["Mode"].lower(), found["Retention"]["RetainUntilDate"].astimezone(UTC))

    def retain(self, name: str, id: str, retention: Retention) -> None:
        check_name(name)
        said = {"Mode": retention.mode.upper(), "RetainUntilDate": retention.until_utc}
        self._ask("lock", name, "put_object_retention", **self._one(name, id), Retention=said)

    def _one(self, name: str, id: str) -> dict[str, str]:
        return {"Key": self._store.key(name), **({"VersionId": id} if id else {})}

    def _ask(
        self, operation: str, name: str, call: str, check: Callable[[Mapping[str, Any]], None] | None = None, /,
        **parameters: Any,
    ) -> Mapping[str, Any]:  # fmt: skip
        try:
            return self._request(operation, name, call, check, **parameters)
        except StoreError as error:
            if _code(error) in ("AccessDenied", "403"):
                raise StoreError(operation, name, error.detail, hint=_RIGHTS) from error.__cause__
            raise

    def _request(
        self, operation: str, name: str, call: str, check: Callable[[Mapping[str, Any]], None] | None = None, /,
        **parameters: Any,
    ) -> Mapping[str, Any]:  # fmt: skip
        """`check` raises StoreUnavailable for an answer that is none: then it is asked again."""

        def attempt(again: bool) -> Mapping[str, Any]:
            answer = self._store.request(operation, name, call, **parameters)
            if check is not None:
                check(answer)
            return answer

        return self._patience.patiently(attempt)


def _check_retention(answer: Mapping[str, Any]) -> None:
    said = answer.get("Retention", {})
    if str(said.get("Mode", "")).lower() not in MODES or not isinstance(said.get("RetainUntilDate"), datetime):
        raise StoreUnavailable("look at", "a lock", _UNANSWERED)


def _version(name: str, entry: Mapping[str, Any], is_marker: bool) -> Version:
    return Version(
        name=name,
        id=str(entry.get("VersionId", "")),
        size_bytes=int(entry.get("Size", 0)),
        etag=str(entry.get("ETag", "")).strip('"'),
        modified_utc=entry["LastModified"].astimezone(UTC),
        is_latest=bool(entry.get("IsLatest", False)),
        is_marker=is_marker,
    )


def _code(error: StoreError) -> str:
    """What the store called what it refused."""
    cause = error.__cause__
    return str(cause.response.get("Error", {}).get("Code", "")) if isinstance(cause, ClientError) else ""
