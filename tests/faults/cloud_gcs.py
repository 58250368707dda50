"""Google Cloud Storage as cloud_cases want it described: an emulator, and how Google's goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from email.message import Message
from urllib.parse import parse_qs, urlsplit

from imaging.storage.cloud import CloudStore
from imaging.storage.gcs import Bucket, GcsClient, endpoint_of
from imaging.storage.gcs_key import ServiceAccount
from imaging.storage.wire import Limits
from tests.faults.bad_object_store import (
    Answer,
    Reaction,
    broken,
    broken_after_success,
    changed,
    cut_short,
    silent,
    silent_after_success,
    slow,
)
from tests.faults.cloud_cases import (
    CALLS,
    LOGIN,
    LONG,
    SEVENTY,
    TEN,
    WRONG,
    Cloud,
    Failure,
    Refusal,
    after_success,
    answered,
    half,
    without,
)
from tests.lab.gcs_server import BUCKET, running


def open_store(place: Bucket, account: ServiceAccount, limits: Limits = LONG) -> CloudStore:
    return CloudStore(GcsClient(place, account, limits))


def open_at(url: str, prefix: str, limits: Limits = LONG, *, ca_file: str | None = None) -> CloudStore:
    return open_store(replace(running().bucket(prefix, url=url), ca_file=ca_file), running().account, limits)


def open_elsewhere() -> CloudStore:
    return open_store(Bucket(endpoint_of(), BUCKET), running().account)


def operation_of(method: str, path: str, headers: Message) -> str:
    query = parse_qs(urlsplit(path).query)
    if method == "POST":
        return "token" if path == "/token" else "create" if "ifGenerationMatch" in query else "put"
    if method == "DELETE":
        return "delete"
    return "get" if query.get("alt") == ["media"] else "head" if query.get("maxResults") == ["1"] else "list"


def refused(status: int, reason: str, message: str = "as the test wants it", **headers: str) -> Reaction:
    """Nothing is carried out. Without a reason, not in Google's form."""
    told = {"code": status, "message": message, "errors": [{"domain": "global", "reason": reason, "message": message}]}
    body = json.dumps({"error": told}).encode() if reason else b"<html>no</html>"
    kind = "application/json; charset=UTF-8" if reason else "text/html"
    return lambda exchange: exchange.reply(Answer(status, {"Content-Type": kind, **headers}, body))


def told(body: bytes) -> Reaction:
    return answered(body, "application/json")


def items(change: Callable[[dict[str, object]], object]) -> Reaction:
    """A listing with each of its objects changed."""

    def rewritten(answer: Answer) -> Answer:
        page = json.loads(answer.body)
        for each in page["items"]:
            change(each)
        return replace(answer, body=json.dumps(page).encode())

    return changed(rewritten)


PASSING: Mapping[str, Failure] = {
    "500": Failure(refused(500, "internalError")),
    "502 of a proxy": Failure(refused(502, "")),
    "503": Failure(refused(503, "backendError")),
    "429": Failure(refused(429, "rateLimitExceeded")),
    "403 of too many": Failure(refused(403, "userRateLimitExceeded")),
    "409": Failure(refused(409, "conflict")),
    # What is not written has no digest.
    "400 digest": Failure(
        refused(400, "invalid", 'Provided CRC32C "AAAAAA==" doesn\'t match calculated CRC32C "KAwGng==".'),
        ("put", "create"),
    ),
    "silence": Failure(silent(), ("get", "list")),
    "a broken connection": Failure(broken()),
}

LOST: Mapping[str, Failure] = {
    "silence after success": Failure(silent_after_success(), ("create", "delete")),
    "500 after success": Failure(after_success(refused(500, "internalError"))),
    "a broken connection after success": Failure(broken_after_success()),
}

REFUSALS: Mapping[str, Refusal] = {
    "no rights": Refusal(refused(403, "forbidden"), "rights"),
    "403 without a reason": Refusal(refused(403, ""), "rights"),
    "412 of something else": Refusal(refused(412, ""), "endpoint"),
    "a retention policy": Refusal(refused(403, "retentionPolicyNotMet"), "policy"),
    "a hold": Refusal(refused(403, "objectUnderActiveHold"), "hold"),
    "a project that does not pay": Refusal(refused(403, "accountDisabled"), "disabled"),
    "400": Refusal(refused(400, "invalid"), "endpoint"),
    "elsewhere": Refusal(refused(307, ""), "endpoint"),
    "not here": Refusal(refused(501, "notImplemented"), "endpoint"),
}
"""401 and 404 are tried apart: the token may have ended, and a listing is asked whether it is there."""

NO_LISTING: Mapping[str, Reaction] = {
    "nothing": told(b""),
    "no JSON": told(b"Welcome"),
    "an empty object": told(b"{}"),
    "null": told(b"null"),
    "no number": told(b"17"),
    "deep": told(b"[" * 200_000),
    "half of it": cut_short(),
    "half of it, as if whole": changed(half),
    "of another kind": changed(without(rb"storage#objects", b"storage#buckets")),
    "objects that are none": told(b'{"kind": "storage#objects", "items": [17]}'),
    "sizes that are none": items(lambda each: each.update(size="m")),
    "objects without a size": items(lambda each: each.pop("size")),
    "objects without a name": items(lambda each: each.pop("name")),
    "of other objects": items(lambda each: each.update(name="another/config")),
    "a next page that is none": changed(without(rb"\A{", b'{"nextPageToken": ["a"], ')),
}

GCS = Cloud(
    url=lambda: running().url,
    open=open_at,
    open_elsewhere=open_elsewhere,
    calls=CALLS,
    passing=PASSING,
    lost=LOST,
    refusals=REFUSALS,
    redirected=lambda status, url: refused(status, "", Location=url),
    full={"507": refused(507, "insufficientStorage")},
    rude=refused(400, "\x9b31minvalid", "\x9b31m" + "x" * 5000),
    strangers={
        "a login page": Failure(LOGIN),
        "an empty object": Failure(told(b"{}")),
        "an empty list": Failure(told(b"[]")),
    },
    wrong={
        **WRONG,
        "no range at all": answered(SEVENTY[100:60_100], "application/octet-stream"),
        "not there, but listed": refused(404, "notFound"),
        "a trickle": slow(0.02),
    },
    endless=Answer(
        206,
        {"Content-Type": "application/octet-stream", "Content-Range": f"bytes 0-{(1 << 27) - 1}/{1 << 40}"},
        TEN,
    ),
    no_listing=NO_LISTING,
    empty_listing=told(b'{"kind": "storage#objects"}'),
    operation_of=operation_of,
)
