"""Where a repository is, and the store that is there.

The rule: a location with a secret in it is handed on in a file that its owner alone can read, never as an argument.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from imaging.errors import AddressRefused, Damaged
from imaging.storage.pace import FAR, NEAR, Pace

if TYPE_CHECKING:
    from imaging.storage.contract import Store
    from imaging.storage.object_lock import Locking
    from imaging.storage.retrying import RetryingStore
    from imaging.storage.s3 import S3Store
    from imaging.storage.versions import Versions

_FILE_BYTES_MAX: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class Folder:
    """On a local or NFS file system."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class BucketPrefix:
    """In a bucket of an S3 object store. `prefix` is empty or ends in a slash; with a `lock_mode` (object_lock.MODES),
    what restore points are made of is locked against deletion."""

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
    lock_mode: str = ""
    lock_days: int = 0
    lock_extra_days: int = 0

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix} at {self.endpoint}"


@dataclass(frozen=True, slots=True)
class ContainerPrefix:
    """In a container of Azure Blob Storage. `prefix` is empty or ends in a slash; of the credentials there is one."""

    endpoint: str
    account: str
    container: str
    prefix: str
    account_key: str | None = field(default=None, repr=False)
    sas_token: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    connections: int = 16

    def __str__(self) -> str:
        return f"azure://{self.account}/{self.container}/{self.prefix}" + (f" at {self.endpoint}" * bool(self.endpoint))


@dataclass(frozen=True, slots=True)
class GcsPrefix:
    """In a bucket of Google Cloud Storage. `prefix` is empty or ends in a slash; `key_file` is a service account's."""

    bucket: str
    prefix: str
    key_file: str
    endpoint: str = ""
    ca_file: str | None = None
    connections: int = 16

    def __str__(self) -> str:
        return f"gs://{self.bucket}/{self.prefix}" + (f" at {self.endpoint}" * bool(self.endpoint))


Location: TypeAlias = Folder | BucketPrefix | ContainerPrefix | GcsPrefix
_KINDS: Final[Mapping[str, type[BucketPrefix | ContainerPrefix | GcsPrefix]]] = {
    "bucket": BucketPrefix,
    "container": ContainerPrefix,
    "gcs": GcsPrefix,
}
"""By the word that stands for them in a file."""


def open_store(location: Location, *, make: bool = False) -> Store:
    """The store that is there; nothing is read yet. With `make`, a folder is made where it is missing.

    AddressRefused, StoreError. Not to be used on both sides of a fork.
    """
    if isinstance(location, Folder):
        from imaging.storage.local import LocalStore

        return LocalStore.make(location.path) if make else LocalStore(location.path)
    if isinstance(location, ContainerPrefix):
        return _patient(_open_container(location))
    if isinstance(location, GcsPrefix):
        return _patient(_open_gcs(location))
    return _patient(_in_bucket(location, _locking(location)))


def open_versions(location: Location) -> Versions | None:
    """What a bucket keeps of its objects' past, and its locks; None where nothing is locked. As open_store."""
    locking = _locking(location)
    if locking is None or not isinstance(location, BucketPrefix):
        return None
    from imaging.storage.s3_versions import S3Versions

    store = _in_bucket(location, locking)
    return S3Versions(store, locking, _patient(store))


def _in_bucket(location: BucketPrefix, locking: Locking | None) -> S3Store:
    from imaging.storage.endpoints import parse_endpoint
    from imaging.storage.s3 import Bucket, Credentials, Limits, S3Store  # botocore takes a tenth of a second to load

    endpoint = parse_endpoint(location.endpoint, allow_plain=location.allow_plain)
    bucket = Bucket(endpoint, location.bucket, location.prefix, location.region, location.ca_file)
    credentials = Credentials(location.access_key, location.secret_key, location.session_token)
    return S3Store(bucket, credentials, Limits(connections=location.connections), locking)


def _patient(store: Store) -> RetryingStore:
    from imaging.clock import SystemClock
    from imaging.storage.retrying import RetryingStore

    return RetryingStore(store, SystemClock(), time.sleep, random.random)


def _open_container(location: ContainerPrefix) -> Store:
    try:
        from imaging.storage.azure import AzureClient, Container, Credentials, endpoint_of
        from imaging.storage.cloud import CloudStore
        from imaging.storage.wire import Limits
    except ModuleNotFoundError as error:
        raise _not_installed(location, error) from error

    endpoint = endpoint_of(location.account, location.endpoint)
    container = Container(endpoint, location.account, location.container, location.prefix, location.ca_file)
    credentials = Credentials(location.account_key, location.sas_token)
    return CloudStore(AzureClient(container, credentials, Limits(connections=location.connections)))


def _open_gcs(location: GcsPrefix) -> Store:
    try:
        from imaging.storage.cloud import CloudStore
        from imaging.storage.gcs import Bucket, GcsClient, endpoint_of
        from imaging.storage.gcs_key import read_key
        from imaging.storage.wire import Limits
    except ModuleNotFoundError as error:
        raise _not_installed(location, error) from error

    bucket = Bucket(endpoint_of(location.endpoint), location.bucket, location.prefix, location.ca_file)
    account = read_key(Path(location.key_file))
    return CloudStore(GcsClient(bucket, account, Limits(connections=location.connections)))


def _not_installed(location: Location, error: ModuleNotFoundError) -> AddressRefused:
    """The libraries of these object stores are an extra of the package."""
    hint = "install Strongroom with its extra for other clouds: pip install 'strongroom[clouds]'"
    return AddressRefused(str(location), f"the library {error.name} is not installed", hint=hint)


def pace_of(location: Location, cache_bytes: int) -> Pace:
    """How the store there wants to be used; of one that is far away up to `cache_bytes` are kept on local disk."""
    return NEAR if isinstance(location, Folder) else replace(FAR, cache_bytes=cache_bytes)


def _locking(location: Location) -> Locking | None:
    if not isinstance(location, BucketPrefix) or not location.lock_mode:
        return None
    from imaging.storage.object_lock import Lock, Locking

    return Locking(Lock(location.lock_mode, location.lock_days, location.lock_extra_days))


def encode_location(location: Location) -> bytes:
    """For a file of mode 0600."""
    if isinstance(location, Folder):
        return json.dumps({"folder": str(location.path)}).encode()
    kind = next(word for word, kind in _KINDS.items() if isinstance(location, kind))
    return json.dumps({kind: asdict(location)}).encode()


def read_location(path: Path) -> Location:
    """Damaged, also where others could read the file; OSError."""
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        data = file.read(_FILE_BYTES_MAX)
    if mode & 0o077:
        raise Damaged(str(path), f"others may read it (mode {mode & 0o777:04o})", hint=f"chmod 0600 {path}")
    try:
        found = json.loads(data)
        ((kind, told),) = found.items()
        return Folder(Path(told)) if kind == "folder" else _KINDS[kind](**told)
    except (AttributeError, ValueError, KeyError, TypeError) as error:
        hint = "remove it: the next command that serves a disk writes it again"
        raise Damaged(str(path), "it does not say where a repository is", hint=hint) from error
