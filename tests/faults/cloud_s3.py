"""An S3-compatible server as cloud_cases want it described: SeaweedFS, and how one goes wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from imaging.storage.endpoints import parse_endpoint
from imaging.storage.s3 import Bucket, Credentials, S3Store
from imaging.storage.s3 import Limits as S3Limits
from imaging.storage.wire import Limits
from tests.faults.bad_object_store import (
    Answer,
    Reaction,
    broken,
    broken_after_success,
    changed,
    cut_short,
    empty_listing,
    failed_after_success,
    refused,
    silent,
    silent_after_success,
)
from tests.faults.cloud_cases import CALLS, LOGIN, LONG, TEN, WRONG, Call, Cloud, Failure, Refusal, half, without
from tests.lab.s3_server import running


def open_store(place: Bucket, credentials: Credentials, limits: Limits = LONG) -> S3Store:
    return S3Store(place, credentials, S3Limits(limits.connections, limits.connect_s, limits.silence_s))


def open_at(url: str, prefix: str, limits: Limits = LONG, *, ca_file: str | None = None) -> S3Store:
    return open_store(replace(running().bucket(prefix, url=url), ca_file=ca_file), running().credentials, limits)


def open_elsewhere() -> S3Store:
    return open_store(Bucket(parse_endpoint("https://s3.example.org"), "bucket"), Credentials("a", "b"))


S3_CALLS: Mapping[str, Call] = {
    **CALLS,
    "get nothing": Call("get", lambda store: store.get("config", 3, 0)),
    "exists": replace(CALLS["exists"], operation="get"),
    "look before delete": replace(CALLS["delete"], operation="get"),
    "delete": replace(CALLS["delete"], requests=2),
    "delete_many": replace(CALLS["delete_many"], operation="delete_many", requests=1),
}

PASSING: Mapping[str, Failure] = {
    "500": Failure(refused(500, "InternalError")),
    "500 without a body": Failure(refused(500, "")),
    "502 of a proxy": Failure(refused(502, "")),
    "503": Failure(refused(503, "SlowDown")),
    "429": Failure(refused(429, "TooManyRequests")),
    "409": Failure(refused(409, "OperationAborted")),
    "400 time-out": Failure(refused(400, "RequestTimeout")),
    "400 digest": Failure(refused(400, "BadDigest")),
    "silence": Failure(silent()),
    "a broken connection": Failure(broken()),
}

LOST: Mapping[str, Failure] = {
    "silence after success": Failure(silent_after_success()),
    "500 after success": Failure(failed_after_success(500, "InternalError")),
    "a broken connection after success": Failure(broken_after_success()),
}

REFUSALS: Mapping[str, Refusal] = {
    "expired": Refusal(refused(403, "ExpiredToken"), "expired"),
    "expired, by 400": Refusal(refused(400, "ExpiredToken"), "expired"),
    "unknown key": Refusal(refused(403, "InvalidAccessKeyId"), "access key"),
    "wrong secret": Refusal(refused(403, "SignatureDoesNotMatch"), "secret"),
    "no rights": Refusal(refused(403, "AccessDenied"), "rights"),
    "403 without a body": Refusal(refused(403, ""), "rights"),
    "401": Refusal(refused(401, "Unauthorized"), "rights"),
    "wrong clock": Refusal(refused(403, "RequestTimeTooSkewed"), "clock"),
    "no bucket": Refusal(refused(404, "NoSuchBucket"), "bucket"),
    "404 of something else": Refusal(refused(404, ""), "endpoint"),
    "wrong region": Refusal(refused(400, "AuthorizationHeaderMalformed"), "region"),
    "elsewhere": Refusal(refused(301, "PermanentRedirect"), "region"),
    "not here": Refusal(refused(501, "NotImplemented"), "endpoint"),
    "wrong method": Refusal(refused(405, "MethodNotAllowed"), "endpoint"),
}

NO_LISTING: Mapping[str, Reaction] = {
    "nothing": changed(lambda answer: replace(answer, body=b"")),
    "a page of another server": changed(lambda answer: replace(answer, body=b"<html><body>Welcome</body></html>")),
    "no XML": changed(lambda answer: replace(answer, body=b"Welcome")),
    "an empty element": changed(lambda answer: replace(answer, body=b"<ListBucketResult/>")),
    "half of it": cut_short(),
    "half of it, as if whole": changed(half),
    "without its end": changed(without(rb"<IsTruncated>.*?</IsTruncated>")),
    "of another bucket": changed(without(rb"<Name>.*?</Name>", b"<Name>another</Name>")),
    "of another prefix": changed(without(rb"<Prefix>.*?</Prefix>", b"<Prefix>another/</Prefix>")),
    "one object less than it counts": changed(without(rb"<Contents>.*?</Contents>")),
    "more to come and no way to it": changed(without(rb"false", b"true")),
    "sizes that are none": changed(without(rb"<Size>.*?</Size>", b"<Size>many</Size>")),
    "objects without a name": changed(without(rb"<Key>.*?</Key>")),
    "of other objects": changed(without(rb"<Key>.*?</Key>", b"<Key>another/config</Key>")),
}

S3 = Cloud(
    url=lambda: running().url,
    open=open_at,
    open_elsewhere=open_elsewhere,
    calls=S3_CALLS,
    passing=PASSING,
    lost=LOST,
    refusals=REFUSALS,
    redirected=lambda status, url: refused(
        status, "PermanentRedirect", Location=url, **{"x-amz-bucket-region": "eu-west-1"}
    ),
    full={
        "507": refused(507, "InsufficientStorage"),
        "a quota": refused(403, "QuotaExceeded"),
        "507 of MinIO": refused(507, "XMinioStorageFull"),
    },
    rude=refused(400, "InvalidRequest", "&#x9b;31m" + "x" * 5000),
    strangers={"a login page": Failure(LOGIN, ("put", "create"))},
    wrong=WRONG,
    endless=Answer(200, {"Content-Type": "application/octet-stream"}, TEN),
    no_listing=NO_LISTING,
    empty_listing=empty_listing(),
)
