"""What an admin asks about notices: where they go, what was told, and whether a target works.

The rule: nothing here shows a URL, or any part of one but its kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.errors import StrongroomError
from appliance.models import new_id
from appliance.notices.records import Delivery, Kind, Notice, Urgency
from appliance.notices.targets import NoticeTarget
from appliance.notices.wording import titled
from appliance.services.fleet import FleetService

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from appliance.services.notices.sending import Sender


class NoTargets(StrongroomError):
    def __init__(self) -> None:
        super().__init__(
            "nobody is told anything: there is no target",
            hint="Set one, as notices.targets in the settings: see 'Notices' in docs/operations.md.",
        )


class TargetUnknown(StrongroomError):
    exit_code = 2

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"there is no target {name[:40]!r}", hint=f"There are: {', '.join(known)}.", name=name[:40])


@dataclass(frozen=True, slots=True)
class TargetState:
    """`last`: the last delivery to it that is over. `waiting`: how many are not."""

    name: str
    kind: str
    alerts: bool
    digest: bool
    last: Delivery | None
    waiting: int


@dataclass(frozen=True, slots=True)
class Tested:
    """`error`: why the message did not arrive."""

    target: str
    error: str | None


@dataclass(frozen=True, slots=True)
class Told:
    notice: Notice
    deliveries: tuple[Delivery, ...]


class NoticeService:
    """Borrows the appliance."""

    def __init__(self, appliance: Appliance, sender: Sender | None = None) -> None:
        self._appliance = appliance
        self._settings = appliance.settings.notices
        self._sender = sender

    def targets(self) -> tuple[TargetState, ...]:
        """In the order of the settings."""
        notices, settings = self._appliance.catalog.notices, self._settings
        last = notices.last_deliveries()
        waiting = [delivery.target for _, delivery in notices.waiting()]
        alerts, digest = settings.of(settings.alerts_to), settings.of(settings.digest_to)
        return tuple(
            TargetState(
                each.name,
                each.kind,
                each in alerts,
                each in digest and bool(settings.digest_at),
                last.get(each.name),
                waiting.count(each.name),
            )
            for each in settings.targets
        )

    def told(self, limit: int) -> tuple[Told, ...]:
        """Newest first."""
        return tuple(Told(notice, deliveries) for notice, deliveries in self._appliance.catalog.notices.list(limit))

    def test(self, names: Sequence[str] = ()) -> tuple[Tested, ...]:
        """Send a message to these targets, or to all, now, once, and say of each whether it was taken. NoTargets,
        TargetUnknown."""
        if self._sender is None:
            from appliance.services.notices.sending import AppriseSender

            self._sender = AppriseSender()
        chosen = self._chosen(names)
        me = FleetService(self._appliance).name(self._appliance.catalog.me)
        notice = Notice(
            new_id(), Kind.TEST, Urgency.INFO, self._appliance.clock.now_utc(), titled(me, "a test"),
            "Somebody asked Strongroom to send this, to see whether notices arrive here. They do.",
        )  # fmt: skip
        return tuple(Tested(target.name, self._sender.send(target, notice)) for target in chosen)

    def _chosen(self, names: Sequence[str]) -> Sequence[NoticeTarget]:
        targets = {target.name: target for target in self._settings.targets}
        if not targets:
            raise NoTargets
        for name in names:
            if name not in targets:
                raise TargetUnknown(name, list(targets))
        return [targets[name] for name in dict.fromkeys(names)] or list(targets.values())
