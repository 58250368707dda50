"""What an object store's refusals and failures mean to a repository.

The rule: everything that the client library raises becomes an error of ours, and only what says "not here" is taken
for an object that is missing. Whatever may pass (an overloaded server, a broken connection, an answer that makes no
sense) is StoreUnavailable, whatever needs an admin names what to do. What a server says is quoted shortened, and
without control characters.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError, SSLError
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from imaging.errors import ImagingError, NoSpace, ObjectExists, ObjectMissing, StoreError, StoreUnavailable

FAILURES: Final = (ClientError, BotoCoreError, ResponseParserError, HTTPError, OSError)
"""What a call may raise; of OSError what the body of an answer is read with."""

CREATE: Final = "create"
"""The operation that a refused condition means "taken" for."""

_AGAIN: Final = "try again; if it stays so, look at the object store and the way to it"
_SIGN_OF_S3: Final = "x-amz-request-id"
"""An object store that sends this also says what is wrong; where that is not to be found, the answer was cut short."""

_TOLD_BY_STATUS: Final = frozenset({412, 507})
_SAID_CHARACTERS: Final = 200
_RANGE_STATUS: Final = 416

_MISSING_OBJECT: Final = frozenset({"NoSuchKey", "NoSuchVersion"})
_MISSING_BUCKET: Final = frozenset({"NoSuchBucket", "InvalidBucketName"})
_FULL: Final = frozenset(
    {
        "InsufficientStorage",
        "QuotaExceeded",
        "StorageFull",
        "StorageQuotaExceeded",
        "XMinioAdminBucketQuotaExceeded",
        "XMinioStorageFull",
    }
)
_FULL_STATUS: Final = 507
_PASSING: Final = frozenset(
    {
        "BadDigest",  # the bytes changed on their way
        "BandwidthLimitExceeded",
        "ConditionalRequestConflict",
        "IncompleteBody",
        "InternalError",
        "OperationAborted",
        "RequestLimitExceeded",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "SlowDownRead",
        "SlowDownWrite",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "XAmzContentSHA256Mismatch",
    }
)
_PASSING_STATUS: Final = frozenset({408, 409, 425, 429})
_NEVER_STATUS: Final = frozenset({501, 505})
"""Server errors that no repetition mends: it cannot do what was asked for."""

_HINTS: Final[Mapping[str, str]] = {
    "AccountProblem": "look at the account of the object store",
    "AuthorizationHeaderMalformed": "set the region of the bucket",
    "ExpiredToken": "the credentials have expired: set new ones",
    "InvalidAccessKeyId": "check the access key: the object store does not know it",
    "InvalidToken": "check the session token, or set credentials that need none",
    "PermanentRedirect": "check endpoint and region: the bucket is elsewhere",
    "RequestTimeTooSkewed": "set the clock of this machine: it differs too much from the object store's",
    "SignatureDoesNotMatch": "check the secret key, and the region",
    "TemporaryRedirect": "check endpoint and region: the bucket is elsewhere",
    "TokenRefreshRequired": "the credentials have expired: set new ones",
}
_BUCKET_HINT: Final = "make the bucket first, and check its name, the endpoint and the region"
_RIGHTS_HINT: Final = "give these credentials the rights to list the bucket and to read, write and delete its objects"
_ENDPOINT_HINT: Final = "check the endpoint: this may be no object store, or one that cannot do this"


def translated(operation: str, name: str, error: Exception) -> ImagingError:
    """The error of ours for what a call raised; `operation` is a verb, as in StoreError."""
    if isinstance(error, ClientError):
        return _answered(operation, name, error)
    if isinstance(error, SSLError) and _is_distrust(error):
        hint = "check the endpoint, and the file of certificates that it is checked against"
        return StoreError(operation, name, _shortened(str(error)), hint=hint)
    if isinstance(error, ResponseParserError):
        return StoreUnavailable(operation, name, "the answer is none of an object store", hint=_AGAIN)
    return StoreUnavailable(operation, name, _shortened(str(error) or type(error).__name__), hint=_AGAIN)


def outside_range(error: Exception) -> bool:
    """Whether it says that the object ends before the range begins."""
    return isinstance(error, ClientError) and _status(error) == _RANGE_STATUS


def header_of(error: Exception, name: str) -> str:
    headers = _metadata(error).get("HTTPHeaders", {}) if isinstance(error, ClientError) else {}
    return str(headers.get(name, ""))


def of_one_key(operation: str, name: str, code: str, message: str) -> ImagingError:
    """What a server said of one of many objects that were asked for at once."""
    return _meaning(operation, name, code, 0, message)


def _answered(operation: str, name: str, error: ClientError) -> ImagingError:
    said = error.response.get("Error", {})
    code, status = str(said.get("Code", "")), _status(error)
    if code == str(status) and status not in _TOLD_BY_STATUS and header_of(error, _SIGN_OF_S3):
        return StoreUnavailable(operation, name, f"the object store says {status}, and nothing else", hint=_AGAIN)
    return _meaning(operation, name, code, status, str(said.get("Message", "")))


def _meaning(operation: str, name: str, code: str, status: int, message: str) -> ImagingError:
    said = _shortened(" ".join(dict.fromkeys(part for part in (str(status or ""), code, message) if part)))
    detail = f"the object store says {said}"
    if code in _MISSING_OBJECT:
        return ObjectMissing(name)
    if operation == CREATE and status == 412:
        return ObjectExists(name)
    if code in _FULL or status == _FULL_STATUS:
        return NoSpace(operation, name, detail)
    if code in _MISSING_BUCKET:
        return StoreError(operation, name, detail, hint=_BUCKET_HINT)
    if code in _HINTS:
        return StoreError(operation, name, detail, hint=_HINTS[code])
    if code in _PASSING or status in _PASSING_STATUS or (status >= 500 and status not in _NEVER_STATUS):
        return StoreUnavailable(operation, name, detail, hint=_AGAIN)
    hint = _RIGHTS_HINT if status in (401, 403) or code == "AccessDenied" else _ENDPOINT_HINT
    return StoreError(operation, name, detail, hint=hint)


def _status(error: ClientError) -> int:
    return int(_metadata(error).get("HTTPStatusCode", 0))


def _metadata(error: ClientError) -> Mapping[str, Any]:
    found: Mapping[str, Any] = error.response.get("ResponseMetadata", {})
    return found


def _is_distrust(error: SSLError) -> bool:
    """A certificate that is not trusted, or no TLS at all: the same next time. A connection that broke is not."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        cause = cause.__cause__ or cause.__context__
    return "WRONG_VERSION_NUMBER" in str(error) or "CERTIFICATE_VERIFY_FAILED" in str(error)


def _shortened(said: str) -> str:
    shown = "".join(each if each.isprintable() else "?" for each in said[: _SAID_CHARACTERS + 1])
    return shown if len(shown) <= _SAID_CHARACTERS else shown[:_SAID_CHARACTERS] + "…"
