"""Azure Blob Storage as cloud_cases want it described: Microsoft's emulator, and how it goes wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from imaging.storage.azure import AzureClient, Container, Credentials, endpoint_of
from imaging.storage.cloud import CloudStore
from imaging.storage.wire import Limits
from tests.faults.bad_object_store import (
    Answer,
    Reaction,
    broken,
    broken_after_success,
    changed,
    cut_short,
    failed_after_success,
    refused,
    silent,
    silent_after_success,
    slow,
)
from tests.faults.cloud_cases import CALLS, LOGIN, LONG, TEN, WRONG, Cloud, Failure, Refusal, half, without
from tests.lab.azurite import ACCOUNT, CONTAINER, running


def open_store(place: Container, credentials: Credentials, limits: Limits = LONG) -> CloudStore:
    return CloudStore(AzureClient(place, credentials, limits))


def open_at(url: str, prefix: str, limits: Limits = LONG, *, ca_file: str | None = None) -> CloudStore:
    return open_store(replace(running().container(prefix, url=url), ca_file=ca_file), running().credentials, limits)


def open_elsewhere() -> CloudStore:
    return open_store(Container(endpoint_of(ACCOUNT), ACCOUNT, CONTAINER), running().credentials)


def coded(status: int, code: str) -> Reaction:
    return refused(status, code, **{"x-ms-error-code": code})


def emptied(answer: Answer) -> Answer:
    return replace(answer, body=re.sub(rb"<Blob>.*</Blob>", b"", answer.body, flags=re.DOTALL))


PASSING: Mapping[str, Failure] = {
    "500": Failure(refused(500, "InternalError")),
    "502 of a proxy": Failure(refused(502, "")),
    "503": Failure(refused(503, "ServerBusy")),
    "429": Failure(refused(429, "TooManyRequests")),
    "409": Failure(refused(409, "OperationInProgress")),
    # A HEAD has no body that could say so.
    "400 digest": Failure(refused(400, "Md5Mismatch"), [call for call in CALLS if call != "exists"]),
    "silence": Failure(silent(), ("get", "list")),
    "a broken connection": Failure(broken()),
}

LOST: Mapping[str, Failure] = {
    "silence after success": Failure(silent_after_success(), ("create", "delete")),
    "500 after success": Failure(failed_after_success(500, "OperationTimedOut")),
    "a broken connection after success": Failure(broken_after_success()),
}

REFUSALS: Mapping[str, Refusal] = {
    "wrong key": Refusal(coded(403, "AuthenticationFailed"), "key"),
    "no rights": Refusal(coded(403, "AuthorizationPermissionMismatch"), "rights"),
    "403 without a code": Refusal(refused(403, ""), "rights"),
    "401": Refusal(coded(401, "NoAuthenticationInformation"), "key"),
    "no container": Refusal(coded(404, "ContainerNotFound"), "container"),
    "404 of something else": Refusal(refused(404, ""), "endpoint"),
    "a container that goes": Refusal(coded(409, "ContainerBeingDeleted"), "container"),
    "a policy": Refusal(coded(409, "BlobImmutableDueToPolicy"), "policy"),
    "an archive": Refusal(coded(409, "BlobArchived"), "archive"),
    "a lease": Refusal(coded(412, "LeaseIdMissing"), "lease"),
    "elsewhere": Refusal(refused(307, ""), "endpoint"),
    "not here": Refusal(coded(501, "NotImplemented"), "endpoint"),
}

NO_LISTING: Mapping[str, Reaction] = {
    "nothing": changed(lambda answer: replace(answer, body=b"")),
    "no XML": changed(lambda answer: replace(answer, body=b"Welcome")),
    "an empty element": changed(lambda answer: replace(answer, body=b"<EnumerationResults/>")),
    "half of it": cut_short(),
    "half of it, as if whole": changed(half),
    "of another container": changed(without(rb'ContainerName="[^"]*"', b'ContainerName="another"')),
    "of another prefix": changed(without(rb"<Prefix>.*?</Prefix>", b"<Prefix>another/</Prefix>")),
    "sizes that are none": changed(
        without(rb"<Content-Length>.*?</Content-Length>", b"<Content-Length>m</Content-Length>")
    ),
    "objects without a size": changed(without(rb"<Content-Length>.*?</Content-Length>")),
    "objects without a name": changed(without(rb"<Name>.*?</Name>")),
    "of other objects": changed(without(rb"<Name>.*?</Name>", b"<Name>another/config</Name>")),
}

AZURE = Cloud(
    url=lambda: running().url,
    open=open_at,
    open_elsewhere=open_elsewhere,
    calls=CALLS,
    passing=PASSING,
    lost=LOST,
    refusals=REFUSALS,
    redirected=lambda status, url: refused(status, "", Location=url),
    full={"507": refused(507, "InsufficientStorage")},
    rude=refused(400, "InvalidHeaderValue", "&#x9b;31m" + "x" * 5000),
    strangers={"a login page": Failure(LOGIN, ("put", "create", "get", "get a range", "list"))},
    wrong={**WRONG, "a trickle": slow(0.02)},
    endless=Answer(
        206,
        {"Content-Type": "application/octet-stream", "Content-Range": f"bytes 0-{(1 << 27) - 1}/{1 << 40}"},
        TEN,
    ),
    no_listing=NO_LISTING,
    empty_listing=changed(emptied),
)
