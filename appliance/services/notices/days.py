"""What the daily digest tells, gathered."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final

from appliance.home import TwoPlaces
from appliance.models import RunRecord, RunState
from appliance.notices.daily import Day, Space

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from appliance.services.notices.observing import Observer

_NAMED: Final = 200


def day_since(appliance: Appliance, observer: Observer, since_utc: datetime, now_utc: datetime) -> Day:
    """Of all appliances that share the catalog. CatalogError."""
    catalog = appliance.catalog
    history = catalog.history
    made = history.points_made(since_utc, now_utc)
    verified = [each for each in catalog.proofs.verifications() if since_utc <= each.ended_utc < now_utc]
    bad = history.runs((RunState.FAILED, RunState.INTERRUPTED), since_utc, now_utc, _NAMED)
    known = [each for each in catalog.inventory.machines(own=False) if not each.recovered]
    return Day(
        since_utc=since_utc,
        until_utc=now_utc,
        runs=history.runs_by_state(since_utc, now_utc),
        failed=_names(bad),
        partial=_names(history.runs((RunState.PARTIAL,), since_utc, now_utc, _NAMED)),
        points=made.points,
        read_bytes=made.read_bytes,
        stored_bytes=made.stored_bytes,
        machines=sum(machine.last_point is not None for machine in catalog.points.machines()),
        unprotected=[each.seen.name for each in known if not each.protected],
        verified=len(verified),
        damaged=sum(bool(each.problems or each.affected) for each in verified),
        space=_space(observer, now_utc),
        concerns=[each for each in catalog.notices.concerns() if each.lasting],
        lost=sorted({each.target for each in catalog.notices.given_up(since_utc)}),
    )


def _space(observer: Observer, now_utc: datetime) -> Space | None:
    """None as well where it cannot be reached: that is a concern by itself."""
    try:
        return observer.space(now_utc)
    except (OSError, TwoPlaces):
        return None


def _names(runs: Sequence[RunRecord]) -> list[str]:
    return list(dict.fromkeys(run.name for run in runs))
