"""What refusals and failures of Google Cloud Storage mean to a repository.

The rule: everything that a call raises becomes an error of ours. That an object is missing is never read out of a
refusal (Google's says "not found" of a bucket, too, and a proxy's of anything), but out of a listing; that a name is
taken only out of a refusal in Google's own form. Whatever may pass is StoreUnavailable, whatever needs an admin names
what to do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from imaging.errors import Damaged, ImagingError, NoSpace, ObjectExists, StoreError, StoreUnavailable
from imaging.storage.cloud import AGAIN, UNANSWERED, shortened
from imaging.storage.gcs_key import TokenRefused
from imaging.storage.wire import Answer, Distrusted, TooMuch, Unanswered

_TAKEN_STATUS: Final = 412
_FULL_STATUS: Final = 507
_PASSING_STATUS: Final = frozenset({408, 409, 425, 429})
_NEVER_STATUS: Final = frozenset({501, 505})
_PASSING: Final = frozenset({"quotaExceeded", "rateLimitExceeded", "userRateLimitExceeded"})
"""Also said with 403."""

_BUCKET_HINT: Final = "make the bucket first, and check its name and the endpoint"
_KEY_HINT: Final = "check the key of the service account (it may be deleted or disabled), and this machine's clock"
_RIGHTS_HINT: Final = (
    "give the service account the rights to list the bucket and to read, write and delete objects in it:"
    " the role Storage Object User"
)
_ENDPOINT_HINT: Final = "check the endpoint: this may be no Google Cloud Storage, or one that cannot do this"
_KEPT_HINT: Final = (
    "a retention policy or a hold keeps this object: a repository must be able to delete and replace its own"
)
_TRUST_HINT: Final = "check the endpoint, and the file of certificates that it is checked against"

_HINTS: Final[Mapping[str, str]] = {
    "accountDisabled": "look at the project: its account is disabled",
    "objectUnderActiveHold": _KEPT_HINT,
    "retentionPolicyNotMet": _KEPT_HINT,
}


class Refused(Exception):
    """The object store has answered, and says no. `expired` is of a token that it took before."""

    def __init__(self, answer: Answer, *, expired: bool = False) -> None:
        super().__init__(str(answer.status))
        self.status = answer.status
        self.expired = expired
        self.is_googles, self.reason, self.message = _said(answer)


def translated(operation: str, name: str, error: Exception) -> ImagingError:
    """The error of ours for what a call raised; `operation` is a verb, as in StoreError."""
    if isinstance(error, Distrusted):
        return StoreError(operation, name, shortened(str(error)), hint=_TRUST_HINT)
    if isinstance(error, TooMuch) and operation == "read":
        return Damaged(name, f"{shortened(str(error))}, more than any object")
    if isinstance(error, Unanswered):
        return StoreUnavailable(operation, name, shortened(str(error)), hint=AGAIN)
    if isinstance(error, TokenRefused):
        return _no_token(operation, name, error)
    if isinstance(error, Refused):
        return _refused(operation, name, error)
    return StoreUnavailable(operation, name, UNANSWERED, hint=AGAIN)


def _no_token(operation: str, name: str, error: TokenRefused) -> ImagingError:
    detail = f"the server of tokens says {_line(error.status, error.code, error.message)}"
    if _passes(error.status):
        return StoreUnavailable(operation, name, detail, hint=AGAIN)
    return StoreError(operation, name, detail, hint=_KEY_HINT)


def _refused(operation: str, name: str, error: Refused) -> ImagingError:
    if operation == "create" and error.status == _TAKEN_STATUS and error.is_googles:
        return ObjectExists(name)
    detail = f"the object store says {_line(error.status, error.reason, error.message)}"
    if error.status == _FULL_STATUS:
        return NoSpace(operation, name, detail)
    if error.reason in _HINTS:
        return StoreError(operation, name, detail, hint=_HINTS[error.reason])
    # A digest that does not fit has no reason of its own, and nothing was written.
    wrong_digest = error.status == 400 and "crc32c" in error.message.lower()
    if error.expired or wrong_digest or error.reason in _PASSING or _passes(error.status):
        return StoreUnavailable(operation, name, detail, hint=AGAIN)
    return StoreError(operation, name, detail, hint=_hint(error))


def _hint(error: Refused) -> str:
    if error.status == 404 and error.is_googles:
        return _BUCKET_HINT
    return {401: _KEY_HINT, 403: _RIGHTS_HINT}.get(error.status, _ENDPOINT_HINT)


def _passes(status: int) -> bool:
    return status in _PASSING_STATUS or (status >= 500 and status not in _NEVER_STATUS)


def _line(status: int, reason: str, message: str) -> str:
    return shortened(" ".join(shortened(part) for part in (str(status), reason, message) if part))


def _said(answer: Answer) -> tuple[bool, str, str]:
    """Whether it has the form of Google's refusals; its first reason, and what it says to people."""
    try:
        found = json.loads(answer.body)["error"]
        reasons = [str(each.get("reason", "")) for each in found.get("errors", [])]
        return found["code"] == answer.status, (reasons or [""])[0], str(found.get("message", ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False, "", ""
