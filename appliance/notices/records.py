"""What there is to tell, what was told, and whether it arrived: plain frozen values, kept in the catalog.

A concern is one thing that somebody should know; a notice is a message made of one or many; a delivery is a notice on
its way to one target. Targets are known by name alone: no URL is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Kind(StrEnum):
    """Concerns of one kind make one notice."""

    FAILED = "failed"  # backups that made no point
    WORK = "work"  # other runs that failed: restores, verifications, copies
    VERIFICATION = "verification"  # damage that a verification found, and verifications that failed
    THAW = "thaw"  # guests that may be frozen
    RPO = "rpo"  # machines without a point as young as their policies want
    FILLING = "filling"  # of the repository
    AWAY = "away"  # hosts and repositories that do not answer, recoveries that need somebody
    UNUSUAL = "unusual"  # what may be an attack, or a mistake
    OVER = "over"  # what was told and is no longer so
    DIGEST = "digest"
    TEST = "test"


class Urgency(StrEnum):
    """As apprise has it: colours and icons hang on it."""

    FAILURE = "failure"
    WARNING = "warning"
    INFO = "info"
    SUCCESS = "success"


@dataclass(frozen=True, slots=True)
class Concern:
    """`key` tells it from others of its kind, as long as it lasts. `subject` is what it is about, `detail` what is the
    matter; both hold names that strangers chose. `lasting`: it is there until it is over; else it has happened.
    `told_utc`: of a lasting one, when it was told."""

    id: str
    kind: Kind
    key: str
    subject: str
    detail: str
    lasting: bool
    seen_utc: datetime
    told_utc: datetime | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """`title` and `body` are neutral text (`wording`). `concerns`: how many it tells of."""

    id: str
    kind: Kind
    urgency: Urgency
    created_utc: datetime
    title: str
    body: str
    concerns: int = 1


class DeliveryState(StrEnum):
    WAITING = "waiting"  # to be sent, or to be sent again
    SENT = "sent"
    GIVEN_UP = "given up"


@dataclass(frozen=True, slots=True)
class Delivery:
    notice: str
    target: str
    state: DeliveryState
    attempts: int
    next_utc: datetime  # not before; of one that is over, when that was
    error: str | None = None
