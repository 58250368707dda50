"""Gathering what the monthly report tells.

The rule: all of it is from the catalog, so that it can be made at any time and again; what is only known as it is now
(policies, what selects a machine, which points are kept) is told as that, and not as if it had been so in the month.
Who may see some machines only has a report of those, with no trace of the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from appliance.audit import AuditEntry, Head
from appliance.catalog.browsing import histories
from appliance.models import RunRecord, RunState
from appliance.planning.habits import NO_POINTS
from appliance.policy.retention import Rules
from appliance.proofs import Proof
from appliance.reports.compliance import (
    AuditState,
    ChangeLine,
    FailedRun,
    MachineLine,
    PolicyLine,
    ProofLine,
    Report,
    VerificationLine,
)
from appliance.reports.months import Month, exposure
from appliance.services.access.audits import AuditService
from appliance.services.browsing.fleet import MachineRow, Standing
from appliance.services.browsing.service import BrowsingService, MaySee
from appliance.services.fleet import FleetService
from appliance.services.made_points import MadePoints
from appliance.services.policies.service import KnownPolicy, PolicyService

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

_LISTED: Final = 500
_LOOKED_FOR: Final = timedelta(days=1)
_FAILED: Final = (RunState.FAILED, RunState.INTERRUPTED)
_EVER: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LOOK_BACK: Final = timedelta(days=100)  # for the last backup before the month
# What changes what is kept and who may do what; looking, backing up and recovering are in the audit itself.
_CHANGES: Final = (
    "policy.", "point.", "machine.", "host.", "guard.", "request.", "key.", "hold.", "repository.", "user.", "token.",
    "settings.", "appliance.", "audit.accept",
)  # fmt: skip
_RULES: Final = ("last", "hourly", "daily", "weekly", "monthly", "yearly")


class ReportService:
    """Borrows the appliance. Worth keeping: for a day it remembers up to where the audit was looked at, and what points
    there are, for as long as they are so. Safe to use from threads."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance
        self._points = MadePoints(appliance)
        self._looked: tuple[datetime, Head] | None = None

    def month(self, month: Month, *, may_see: MaySee | None = None) -> Report:
        """CatalogError."""
        audit = self._audit() if may_see is None else None
        with self._appliance.catalog.database.reading():
            return self._month(month, audit, may_see)

    def _month(self, month: Month, audit: AuditState | None, may_see: MaySee | None) -> Report:
        catalog, now = self._appliance.catalog, self._appliance.clock.now_utc()
        begin, end = month.begin_utc, month.end_utc
        fleet = BrowsingService(self._appliance).fleet(may_see)
        rows = [row for row in fleet.rows if row.standing is not Standing.RECOVERED]
        policies = PolicyService(self._appliance).list().readable
        keys, serieses = (None, None) if may_see is None else (fleet.keys, fleet.serieses)
        if keys is not None:
            selecting = {name for row in rows for name in row.policies}
            policies = tuple(each for each in policies if each.name in selecting)
        made = catalog.history.points_made(begin, end, serieses)
        ended = catalog.history.runs_by_machine(begin, end)
        runs = _added_up(ended if keys is None else {key: ended[key] for key in histories(keys) if key in ended})
        repository = catalog.repository() if keys is None else None
        sizes = () if repository is None else catalog.proofs.sizes(repository.id, begin.date())
        changes, count = self._changes(begin, end, keys)
        proofs = [each for each in catalog.proofs.between(begin, end) if serieses is None or each.series in serieses]
        return Report(
            month=str(month),
            zone=month.zone,
            begin_utc=begin,
            end_utc=end,
            made_utc=now,
            appliance=FleetService(self._appliance).name(catalog.me),
            repository=None if repository is None else repository.id,
            over=now >= end,
            policies=tuple(_policy(each, sum(each.name in row.policies for row in rows)) for each in policies),
            machines=self._machines(rows, policies, ended, begin, min(end, now)),
            runs={state.value: count for state, count in runs.items()},
            read_bytes=made.read_bytes,
            stored_bytes=made.stored_bytes,
            used_bytes=next((size.used_bytes for size in reversed(sizes) if size.taken_utc < end), None),
            verifications=self._verifications(begin, end, serieses),
            proofs=self._proofs(proofs, rows),
            failed=tuple(_failed(run) for run in catalog.history.runs(_FAILED, begin, end, _LISTED, keys)),
            failed_count=sum(runs.get(state, 0) for state in _FAILED),
            changes=changes,
            changes_count=count,
            audit=audit,
            partial=keys is not None,
        )

    def _machines(
        self,
        rows: list[MachineRow],
        policies: tuple[KnownPolicy, ...],
        runs: Mapping[str, Mapping[RunState, int]],
        begin: datetime,
        end: datetime,
    ) -> tuple[MachineLine, ...]:
        history = self._appliance.catalog.history
        successes = history.successes(begin, end, begin - _LOOK_BACK)
        points = self._points.all()
        proven = {each.series: each.proven_utc for each in self._appliance.catalog.proofs.between(_EVER, end)}
        known = {
            each.machine.key: each.seen.known_utc for each in self._appliance.catalog.inventory.machines(own=False)
        }
        since = {each.name: each.since_utc for each in policies}
        lines = []
        for row in rows:
            watched = row.watched
            times = successes.get(row.key, ())
            longest = missed = None
            if times or watched is not None:
                began = max(begin, known.get(row.machine.key, begin))
                if watched is not None:  # nobody wanted anything before
                    began = max(began, since.get(watched.policy, began))
                found = exposure(times, min(began, end), end, None if watched is None else watched.rpo)
                longest = int(found.longest.total_seconds())
                missed = None if watched is None else int(found.missed.total_seconds())
            span = points.get(row.series or "", NO_POINTS).span(begin, end)
            lines.append(
                MachineLine(
                    name=row.machine.name,
                    kind=row.machine.kind.value,
                    id=row.machine.id,
                    host=row.machine.host,
                    standing=row.standing.value,
                    policies=row.policies,
                    rpo_s=None if watched is None else int(watched.rpo.total_seconds()),
                    runs={state.value: count for state, count in runs.get(row.key, {}).items()},
                    made=span.made,
                    kept=span.kept,
                    oldest_utc=span.oldest_utc,
                    newest_utc=span.newest_utc,
                    longest_s=longest,
                    missed_s=missed,
                    proven_utc=proven.get(row.series or ""),
                )
            )
        return tuple(lines)

    def _verifications(
        self, begin: datetime, end: datetime, serieses: frozenset[str] | None
    ) -> tuple[VerificationLine, ...]:
        catalog = self._appliance.catalog
        lines = []
        for each in reversed(catalog.proofs.verifications()):
            if not begin <= each.ended_utc < end:
                continue
            read, problems, affected = each.read_bytes, each.problems, len(each.affected)
            whole = serieses is None
            if serieses is not None:
                affected = sum(point.series in serieses for point in catalog.history.points_of(each.affected))
            lines.append(
                VerificationLine(
                    each.ended_utc, each.reading.value, each.every_days, read if whole else None,
                    problems if whole else None, affected,
                )
            )  # fmt: skip
        return tuple(lines)

    def _proofs(self, proofs: Iterable[Proof], rows: list[MachineRow]) -> tuple[ProofLine, ...]:
        names = {row.series: row.machine.name for row in rows if row.series is not None}
        return tuple(ProofLine(each.proven_utc, names.get(each.series), each.point, each.took_ms) for each in proofs)

    def _changes(
        self, begin: datetime, end: datetime, keys: frozenset[str] | None
    ) -> tuple[tuple[ChangeLine, ...], int]:
        """The oldest ones, and how many there are."""
        found = [
            entry
            for entry in self._appliance.catalog.audit.between(begin, end, _CHANGES)
            if not entry.act.endswith(".see") and (keys is None or entry.machine in keys)
        ]
        return tuple(_change(entry) for entry in found[:_LISTED]), len(found)

    def _audit(self) -> AuditState:
        head = self._appliance.catalog.audit.head()
        if head is None:
            return AuditState(None, ())
        service, now, looked = AuditService(self._appliance), self._appliance.clock.now_utc(), self._looked
        if looked is None or not timedelta(0) <= now - looked[0] < _LOOKED_FOR:
            looked, verdict = None, service.verify()
        else:
            verdict = service.verify_since(looked[1])
        if verdict.flaws or verdict.head is None:
            self._looked = None
        elif looked is None:
            self._looked = (now, verdict.head)
        flaws = tuple(f"entry {flaw.number}: {flaw.what}" for flaw in verdict.flaws)
        state = AuditState(0 if verdict.head is None else verdict.head.number, flaws)
        return state if looked is None else replace(state, looked=looked[1].number, looked_utc=looked[0])


def _added_up(ended: Mapping[str, Mapping[RunState, int]]) -> Mapping[RunState, int]:
    found: Counter[RunState] = Counter()
    for counts in ended.values():
        found.update(counts)
    return found


def _policy(known: KnownPolicy, machines: int) -> PolicyLine:
    policy = known.policy
    return PolicyLine(
        name=policy.name,
        schedule=policy.schedule.words,
        zone=policy.schedule.zone,
        retention=_retention(policy.retention),
        rpo_s=None if policy.rpo is None else int(policy.rpo.total_seconds()),
        verify_every_days=policy.verify_every_days,
        copies=policy.copies,
        machines=machines,
        paused=known.paused_utc is not None,
    )


def _retention(rules: Rules) -> dict[str, int]:
    found = {rule: getattr(rules, rule) for rule in _RULES if getattr(rules, rule)}
    return found if rules.within is None else found | {"within_hours": rules.within // timedelta(hours=1)}


def _failed(run: RunRecord) -> FailedRun:
    return FailedRun(
        run.id, run.kind.value, run.name, run.host, run.state.value, run.started_utc, run.error or "it was interrupted"
    )


def _change(entry: AuditEntry) -> ChangeLine:
    subject = " ".join(word for word in (entry.subject_kind, entry.subject_name or entry.subject_id) if word)
    return ChangeLine(
        entry.at_utc, entry.act, entry.actor_name, entry.via, entry.address, subject, entry.result.value, entry.error
    )
