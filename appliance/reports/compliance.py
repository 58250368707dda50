"""The monthly report, as values: which machines are protected how, what was proven, what was not as it should be.

`…_utc` are aware moments, `…_s` seconds, `…_bytes` bytes; names are as hosts and people gave them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class PolicyLine:
    """A policy as it is now. `retention`: rule → how many, of those that keep anything; empty: nothing is pruned."""

    name: str
    schedule: str
    zone: str
    retention: dict[str, int]
    rpo_s: int | None
    verify_every_days: int | None
    copies: tuple[str, ...]
    machines: int
    paused: bool


@dataclass(frozen=True, slots=True)
class MachineLine:
    """`standing` and `policies` as they are now; `runs`: state → how many ended in the month; `made`: points made in
    the month that are still kept, `kept`: all that were made before its end and are. `longest_s`: the longest time in
    the month without a successful run, `missed_s`: for how long the newest was older than the RPO; None: the machine
    has no policy that wants one. `proven_utc`: when it was last started out of a point, within the month or before."""

    name: str
    kind: str
    id: str
    host: str | None
    standing: str
    policies: tuple[str, ...]
    rpo_s: int | None
    runs: dict[str, int]
    made: int
    kept: int
    oldest_utc: datetime | None
    newest_utc: datetime | None
    longest_s: int | None
    missed_s: int | None
    proven_utc: datetime | None


@dataclass(frozen=True, slots=True)
class FailedRun:
    id: str
    kind: str
    name: str
    host: str | None
    state: str
    started_utc: datetime
    error: str


@dataclass(frozen=True, slots=True)
class VerificationLine:
    """`read_bytes`, `problems`: of the whole repository; None: this is for one who may see some machines only.
    `affected`: points of those machines."""

    ended_utc: datetime
    reading: str
    every_days: int
    read_bytes: int | None
    problems: int | None
    affected: int


@dataclass(frozen=True, slots=True)
class ProofLine:
    """A machine was started out of a point. `name`: None: nothing of it is known any more."""

    proven_utc: datetime
    name: str | None
    point: str
    took_ms: int


@dataclass(frozen=True, slots=True)
class ChangeLine:
    """An act out of the audit: by whom, on what, with what result."""

    at_utc: datetime
    act: str
    actor: str
    via: str
    address: str
    subject: str
    result: str
    error: str


@dataclass(frozen=True, slots=True)
class AuditState:
    """`entries`: None: there is no audit. `flaws`: what is wrong with its chain. `looked_utc`: the first `looked`
    entries were looked at then, those after them when the report was made; None: all of them were."""

    entries: int | None
    flaws: tuple[str, ...]
    looked: int = 0
    looked_utc: datetime | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """`failed_count` and `changes_count` may be more than what is listed. `partial`: it is of the machines that
    somebody may see, and tells nothing of others, nor of the repository; `audit` is None then."""

    month: str
    zone: str
    begin_utc: datetime
    end_utc: datetime
    made_utc: datetime
    appliance: str
    repository: str | None
    over: bool  # the month, when this was made
    policies: tuple[PolicyLine, ...]
    machines: tuple[MachineLine, ...]
    runs: dict[str, int]
    read_bytes: int
    stored_bytes: int
    used_bytes: int | None
    verifications: tuple[VerificationLine, ...]
    proofs: tuple[ProofLine, ...]
    failed: tuple[FailedRun, ...]
    failed_count: int
    changes: tuple[ChangeLine, ...]
    changes_count: int
    audit: AuditState | None
    partial: bool = False

    @property
    def unprotected(self) -> tuple[MachineLine, ...]:
        return tuple(line for line in self.machines if line.standing in ("unprotected", "waiting"))

    @property
    def missed(self) -> tuple[MachineLine, ...]:
        """Those that were older than their RPO at any time, the longest first."""
        return tuple(sorted((line for line in self.machines if line.missed_s), key=lambda line: -(line.missed_s or 0)))

    @property
    def damaged(self) -> tuple[VerificationLine, ...]:
        return tuple(line for line in self.verifications if line.problems or line.affected)
