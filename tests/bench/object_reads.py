"""What a ranged read of an object store costs, by its length and by the client: `python -m tests.bench.object_reads`.

CPU is this process's alone, from a real server on loopback. obstore is measured if it is installed, which nothing else
needs. docs/decisions has the figures.
"""

from __future__ import annotations

import random
import secrets
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import import_module
from typing import Any, Final

import urllib3
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotoCredentials

from imaging.storage.s3 import S3Store
from tests.lab.s3_server import BUCKET, S3Server, running

_OBJECT_BYTES: Final = 16 << 20
_OBJECTS: Final = 8
_CHUNK_BYTES: Final = 64 << 10
_LENGTHS: Final = (64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20)
_TOTAL_BYTES: Final = 64 << 20

Read = Callable[[str, int, int], bytes]


def main() -> int:
    server = running()
    prefix = f"{secrets.token_hex(8)}/"
    store = S3Store(server.bucket(prefix), server.credentials)
    names = [f"packs/aa/{number}" for number in range(_OBJECTS)]
    content = secrets.token_bytes(_OBJECT_BYTES)
    began, cpu = time.perf_counter(), time.process_time()
    for name in names:
        store.put(name, [content])
    took, spent = time.perf_counter() - began, time.process_time() - cpu
    rate, each = _OBJECTS * 16 / took, spent / _OBJECTS * 1e3
    print(f"{datetime.now(UTC):%Y-%m-%d}: put of 16 MiB: {rate:.0f} MiB/s, {each:.0f} ms CPU")
    for label, read in _clients(server, store, prefix).items():
        for length in _LENGTHS if label == "S3Store" else (_CHUNK_BYTES,):
            print(f"{label:28} {length >> 10:6} KiB  {_measure(read, names, content, length)}", flush=True)
    return 0


def _measure(read: Read, names: list[str], content: bytes, length: int) -> str:
    count = max(8, min(1000, _TOTAL_BYTES // length))
    choose = random.Random(length)
    wanted = [(choose.choice(names), choose.randrange(0, _OBJECT_BYTES - length + 1)) for _ in range(count)]
    for name, first in wanted[:5]:
        assert read(name, first, length) == content[first : first + length]
    took: list[float] = []
    cpu = time.process_time()
    for name, first in wanted:
        began = time.perf_counter()
        read(name, first, length)
        took.append(time.perf_counter() - began)
    each = (time.process_time() - cpu) / count
    took.sort()
    chunks = length / _CHUNK_BYTES
    return f"{each * 1e3:6.2f} ms CPU ({each / chunks * 1e3:.2f} for each 64 KiB), p50 {took[count // 2] * 1e3:.1f} ms"


def _clients(server: S3Server, store: S3Store, prefix: str) -> dict[str, Read]:
    client = store._client
    pool = urllib3.PoolManager()
    signer = S3SigV4Auth(
        BotoCredentials(server.credentials.access_key, server.credentials.secret_key), "s3", "us-east-1"
    )

    def bare(name: str, first: int, length: int) -> bytes:
        answer = client.get_object(Bucket=BUCKET, Key=prefix + name, Range=f"bytes={first}-{first + length - 1}")
        data: bytes = answer["Body"].read()
        return data

    def signed(name: str, first: int, length: int) -> bytes:
        headers = {"Range": f"bytes={first}-{first + length - 1}"}
        request = AWSRequest("GET", f"{server.url}/{BUCKET}/{prefix}{name}", headers=headers)
        signer.add_auth(request)
        return pool.request("GET", request.url, headers=dict(request.headers), retries=False).data

    clients: dict[str, Read] = {"S3Store": store.get, "boto3": bare, "urllib3, botocore's signer": signed}
    try:
        obstore: Any = import_module("obstore")
        stores: Any = import_module("obstore.store")
    except ImportError:
        return clients
    other = stores.S3Store(
        BUCKET,
        endpoint=server.url,
        region="us-east-1",
        access_key_id=server.credentials.access_key,
        secret_access_key=server.credentials.secret_key,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )
    clients["obstore"] = lambda name, first, length: bytes(
        obstore.get_range(other, prefix + name, start=first, length=length)
    )
    return clients


if __name__ == "__main__":
    sys.exit(main())
