"""What Azure's refusals and failures mean to a repository.

The rule: everything that the client library raises becomes an error of ours, and only what says "no such blob" is taken
for an object that is missing. Whatever may pass is StoreUnavailable, whatever needs an admin names what to do. Of what
a server says, its code and its first line are quoted: what follows there may repeat a request, with its signature.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from azure.core.exceptions import HttpResponseError

from imaging.errors import Damaged, ImagingError, NoSpace, ObjectExists, ObjectMissing, StoreError, StoreUnavailable
from imaging.storage.cloud import AGAIN, UNANSWERED, shortened
from imaging.storage.wire import Distrusted, TooMuch, Unanswered

_MISSING: Final = "BlobNotFound"
_TAKEN: Final = frozenset({"BlobAlreadyExists", "ConditionNotMet", "TargetConditionNotMet"})
_PASSING: Final = frozenset({"Md5Mismatch", "OperationTimedOut"})
_PASSING_STATUS: Final = frozenset({408, 409, 425, 429})
_NEVER_STATUS: Final = frozenset({501, 505})
_FULL_STATUS: Final = 507

_CONTAINER_HINT: Final = "make the container first, and check its name, the account and the endpoint"
_CREDENTIAL_HINT: Final = (
    "check the account, its key or the shared access signature (it may have expired), and this machine's clock"
)
_RIGHTS_HINT: Final = "give these credentials the rights to list the container and to read, write and delete blobs"
_ENDPOINT_HINT: Final = "check the endpoint: this may be no Azure Blob Storage, or one that cannot do this"
_KEPT_HINT: Final = "a policy of the container keeps its blobs: a repository must be able to delete and replace its own"
_ARCHIVED_HINT: Final = "bring the blob back to the hot or cool tier, and let no rule move blobs to the archive"
_LEASED_HINT: Final = "somebody holds a lease on this blob in Azure: break it"
_TRUST_HINT: Final = "check the endpoint, and the file of certificates that it is checked against"

_HINTS: Final[Mapping[str, str]] = {
    "AccountIsDisabled": "look at the storage account: it is disabled",
    "AuthenticationFailed": _CREDENTIAL_HINT,
    "AuthorizationFailure": f"{_CREDENTIAL_HINT}; then what it has rights to, and the account's firewall",
    "BlobArchived": _ARCHIVED_HINT,
    "BlobBeingRehydrated": _ARCHIVED_HINT,
    "BlobImmutableDueToLegalHold": _KEPT_HINT,
    "BlobImmutableDueToPolicy": _KEPT_HINT,
    "ContainerBeingDeleted": _CONTAINER_HINT,
    "ContainerDisabled": _CONTAINER_HINT,
    "ContainerNotFound": _CONTAINER_HINT,
    "InvalidAuthenticationInfo": _CREDENTIAL_HINT,
    "KeyBasedAuthenticationNotPermitted": "allow keys on the storage account, or use a shared access signature",
    "LeaseIdMissing": _LEASED_HINT,
    "NoAuthenticationInformation": _CREDENTIAL_HINT,
    "ResourceNotFound": _CONTAINER_HINT,
}


def translated(operation: str, name: str, error: Exception) -> ImagingError:
    """The error of ours for what a call raised; `operation` is a verb, as in StoreError."""
    if isinstance(error, Distrusted):
        return StoreError(operation, name, shortened(str(error)), hint=_TRUST_HINT)
    if isinstance(error, TooMuch) and operation == "read":
        return Damaged(name, f"{shortened(str(error))}, more than any object")
    if isinstance(error, Unanswered):
        return StoreUnavailable(operation, name, shortened(str(error)), hint=AGAIN)
    status = getattr(error, "status_code", None)
    if not isinstance(error, HttpResponseError) or not isinstance(status, int) or status < 300:
        return StoreUnavailable(operation, name, UNANSWERED, hint=AGAIN)
    return _refused(operation, name, status, _code_of(error), str(error.message or ""))


def _code_of(error: HttpResponseError) -> str:
    told = getattr(error, "error_code", None)
    headers = getattr(error.response, "headers", {})
    return str(getattr(told, "value", told) or headers.get("x-ms-error-code", ""))


def _refused(operation: str, name: str, status: int, code: str, message: str) -> ImagingError:
    if code == _MISSING:
        return ObjectMissing(name)
    if operation == "create" and code in _TAKEN:
        return ObjectExists(name)
    said = " ".join(shortened(part) for part in (str(status), code, message) if part)
    detail = f"the object store says {shortened(said)}"
    if status == _FULL_STATUS:
        return NoSpace(operation, name, detail)
    if code in _HINTS:
        return StoreError(operation, name, detail, hint=_HINTS[code])
    if code in _PASSING or status in _PASSING_STATUS or (status >= 500 and status not in _NEVER_STATUS):
        return StoreUnavailable(operation, name, detail, hint=AGAIN)
    return StoreError(operation, name, detail, hint=_RIGHTS_HINT if status in (401, 403) else _ENDPOINT_HINT)
