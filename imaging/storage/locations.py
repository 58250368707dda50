"""Where a repository is, and the store that is there.

The rule: a location with a secret in it is handed on in a file that its owner alone can read, never as an argument.
"""

from __future__ import annotations

import json
import os
import random
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from imaging.errors import Damaged
from imaging.storage.pace import FAR, NEAR, Pace

if TYPE_CHECKING:
    from imaging.storage.contract import Store

_FILE_BYTES_MAX: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Folder:
    """On a local or NFS file system."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class BucketPrefix:
    """In a bucket of an S3 object store. `prefix` is empty or ends in a slash."""

    endpoint: str
    bucket: str
    prefix: str
    region: str
    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    allow_plain: bool = False
    connections: int = 16

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix} at {self.endpoint}"


Location: TypeAlias = Folder | BucketPrefix


def open_store(location: Location, *, make: bool = False) -> Store:
    """The store that is there; nothing is read yet. With `make`, a folder is made where it is missing.

    AddressRefused, StoreError. Not to be used on both sides of a fork.
    """
    if isinstance(location, Folder):
        from imaging.storage.local import LocalStore

        return LocalStore.make(location.path) if make else LocalStore(location.path)
    from imaging.clock import SystemClock
    from imaging.storage.endpoints import parse_endpoint
    from imaging.storage.retrying import RetryingStore
    from imaging.storage.s3 import Bucket, Credentials, Limits, S3Store  # boto3 takes a third of a second to load

    endpoint = parse_endpoint(location.endpoint, allow_plain=location.allow_plain)
    bucket = Bucket(endpoint, location.bucket, location.prefix, location.region, location.ca_file)
    credentials = Credentials(location.access_key, location.secret_key, location.session_token)
    store = S3Store(bucket, credentials, Limits(connections=location.connections))
    return RetryingStore(store, SystemClock(), time.sleep, random.random)


def pace_of(location: Location, cache_bytes: int) -> Pace:
    """How the store there wants to be used; of one that is far away up to `cache_bytes` are kept on local disk."""
    return NEAR if isinstance(location, Folder) else replace(FAR, cache_bytes=cache_bytes)


def encode_location(location: Location) -> bytes:
    """For a file of mode 0600."""
    if isinstance(location, Folder):
        return json.dumps({"folder": str(location.path)}).encode()
    return json.dumps({"bucket": asdict(location)}).encode()


def read_location(path: Path) -> Location:
    """Damaged, also where others could read the file; OSError."""
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        data = file.read(_FILE_BYTES_MAX)
    if mode & 0o077:
        raise Damaged(str(path), f"others may read it (mode {mode & 0o777:04o})", hint=f"chmod 0600 {path}")
    try:
        found = json.loads(data)
        return Folder(Path(found["folder"])) if "folder" in found else BucketPrefix(**found["bucket"])
    except (ValueError, KeyError, TypeError) as error:
        hint = "remove it: the next command that serves a disk writes it again"
        raise Damaged(str(path), "it does not say where a repository is", hint=hint) from error
