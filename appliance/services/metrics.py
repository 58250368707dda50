"""What a monitoring system asks for: how everything stands, as Prometheus' text.

The rule: it is read from the catalog alone, and no more often than every few seconds, however many ask. Each metric has
few label values, or one for each machine or host, of which there are at most so many as said here; a machine beyond is
in the counts. What is not known is left out and never told as 0.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from appliance.models import RecoveryState, RunState
from appliance.notices.wording import neutral
from appliance.services.browsing.fleet import Fleet, Standing
from appliance.services.browsing.overview import Overview
from appliance.services.browsing.service import BrowsingService

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
MACHINES_MAX: Final = 5000  # that have a metric of their own: those with the oldest points
HOSTS_MAX: Final = 500
_CACHED_S: Final = 10.0
_NAME_CHARACTERS: Final = 100
_DAY: Final = timedelta(days=1)


class MetricsService:
    """Borrows the appliance. Worth keeping: it remembers what it told for some seconds. Safe to use from threads."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance
        self._browsing = BrowsingService(appliance)
        self._lock = threading.Lock()
        self._text = b""
        self._until_s = float("-inf")

    def text(self) -> bytes:
        """In the form `CONTENT_TYPE`. CatalogError."""
        clock = self._appliance.clock
        with self._lock:
            if clock.monotonic_s() >= self._until_s:
                registry = CollectorRegistry(auto_describe=False)
                registry.register(_Collected(list(self._metrics())))
                self._text = generate_latest(registry)
                self._until_s = clock.monotonic_s() + _CACHED_S
            return self._text

    def _metrics(self) -> Iterator[Metric]:
        catalog, now = self._appliance.catalog, self._appliance.clock.now_utc()
        overview, fleet = self._browsing.overview(), self._browsing.fleet()
        yield InfoMetricFamily("strongroom_build", "The program.", {"version": version("strongroom")})
        yield _one("strongroom_collected_timestamp_seconds", "When these values were gathered.", _seconds(now))
        yield from _machines(overview, fleet)
        yield from _runs(overview)
        yield from _hosts(overview)
        yield from self._repository(overview)
        waiting = len(catalog.notices.waiting())
        yield _one("strongroom_notices_waiting", "Notices that have not reached a target yet.", waiting)
        lost = len(catalog.notices.given_up(now - _DAY))
        yield _one("strongroom_notices_given_up_last_day", "Notices that were given up within a day.", lost)

    def _repository(self, overview: Overview) -> Iterator[Metric]:
        catalog, growth = self._appliance.catalog, overview.growth
        assert growth is not None  # it is nobody's overview but the monitoring's, which may see all
        points, stored = catalog.browsing.totals()
        yield _one("strongroom_restore_points", "Restore points.", points)
        yield _one("strongroom_restore_points_stored_bytes", "What restore points stored when they were made.", stored)
        for name, what, value in (
            ("used_bytes", "What the repository holds, as looked at once a day.", growth.used_bytes),
            ("free_bytes", "What is free on its file system, as looked at every hour.", growth.free_bytes),
            ("growth_bytes_per_day", "How much it grows in a day; less than 0: it shrinks.", growth.day_bytes),
            ("full_in_days", "When it is full, if that goes on.", growth.full_in_days),
        ):
            if value is not None:
                yield _one(f"strongroom_repository_{name}", what, value)
        if growth.sizes:
            taken = _seconds(growth.sizes[-1].taken_utc)
            yield _one("strongroom_repository_size_timestamp_seconds", "When its size was looked at.", taken)
        ended = GaugeMetricFamily(
            "strongroom_verification_timestamp_seconds", "When the last verification ended, by what it read.",
            labels=["reading"],
        )  # fmt: skip
        found = GaugeMetricFamily(
            "strongroom_verification_problems", "Damaged or missing objects it found.", labels=["reading"]
        )
        newest = {each.reading: each for each in reversed(catalog.proofs.verifications())}
        for reading, each in newest.items():
            ended.add_metric([reading.value], _seconds(each.ended_utc))
            found.add_metric([reading.value], each.problems)
        yield from (ended, found)


class _Collected(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return iter(self._metrics)


def _machines(overview: Overview, fleet: Fleet) -> Iterator[Metric]:
    standings = GaugeMetricFamily("strongroom_machines", "Machines and images, by how they stand.", labels=["standing"])
    for standing in Standing:
        standings.add_metric([standing.value], overview.standings.get(standing, 0))
    yield standings
    for name, what, value in (
        ("rpo_missed", "Machines without a point as young as their policies want.", overview.missed.count),
        ("last_run_failed", "Machines whose last run failed, and nobody has dismissed it.", overview.failing.count),
        ("proven", "Machines that were started out of a point within 90 days.", overview.proven.machines),
        ("provable", "Machines with restore points.", overview.proven.of),
    ):
        yield _one(f"strongroom_machines_{name}", what, value)
    points = GaugeMetricFamily(
        "strongroom_machine_last_point_timestamp_seconds", "When the newest restore point of a machine was made.",
        labels=["kind", "machine", "id", "host"],
    )  # fmt: skip
    made = [(row.last_point_utc, row.key, row) for row in fleet.rows if row.last_point_utc is not None]
    for moment, _, row in sorted(made, key=lambda each: each[:2])[:MACHINES_MAX]:
        machine = row.machine
        names = [machine.name, machine.id, machine.host or ""]
        points.add_metric([machine.kind.value, *(neutral(name, _NAME_CHARACTERS) for name in names)], _seconds(moment))
    yield points


def _runs(overview: Overview) -> Iterator[Metric]:
    states = GaugeMetricFamily("strongroom_runs_last_day", "Runs that began within a day, by state.", labels=["state"])
    for state in RunState:
        states.add_metric([state.value], overview.last_day.states.get(state, 0))
    yield states
    yield _one("strongroom_runs_running", "Runs that are under way, 100 at most.", len(overview.running))
    yield _one("strongroom_machines_queued", "Machines of which a run waits.", overview.queued)
    yield _one("strongroom_workers_alive", "1: this appliance takes runs from the queue.", int(overview.workers))
    recoveries = GaugeMetricFamily("strongroom_recoveries", "Instant recoveries under way, by state.", labels=["state"])
    for recovery in RecoveryState:
        if not recovery.ended:
            recoveries.add_metric([recovery.value], sum(each.state is recovery for each in overview.recoveries))
    yield recoveries
    yield _one("strongroom_owed_thaws", "Guests that may be frozen.", len(overview.debts.thaws))
    yield _one("strongroom_cleanups_pending", "What dead runs left to be undone.", len(overview.debts.cleanups))


def _hosts(overview: Overview) -> Iterator[Metric]:
    yield _one("strongroom_hosts", "Hosts.", len(overview.hosts))
    yield _one("strongroom_hosts_away", "Hosts that do not answer.", len(overview.away))
    up = GaugeMetricFamily("strongroom_host_up", "1: the host answered at the last look.", labels=["host"])
    looked = [host for host in overview.hosts if host.answered_utc is not None or host.failing_since_utc is not None]
    for host in sorted(looked, key=lambda each: (each.failing_since_utc is None, each.name))[:HOSTS_MAX]:
        up.add_metric([neutral(host.name, _NAME_CHARACTERS)], int(host.failing_since_utc is None))
    yield up


def _one(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(name, what, value=value)


def _seconds(moment: datetime) -> float:
    return moment.timestamp()
