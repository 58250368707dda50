"""How the appliance itself stands: what is under way, what is owed, what is held; and its settings."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from datetime import datetime
from typing import Any, Final

from flask import Response
from pydantic import Field

from appliance.models import CleanupRecord, ExportRecord, OwedThaw
from appliance.services.access import Act
from appliance.services.locks import LockState
from appliance.services.status import RepositoryState, Status, StatusService
from web.acts import act
from web.api.callers import appliance, looking
from web.api.points import Hold
from web.api.recoveries import Recovery
from web.api.requests import Request, request_out
from web.api.resources import resource
from web.api.runs import Run
from web.api.schemas import Out, schema_of, send, values_of

resources = resource("standing", "The appliance itself.")
_Lock: Final = schema_of(LockState, "LockState")
_Repository: Final = schema_of(RepositoryState, "RepositoryState", change={"lock": _Lock | None})
_Export: Final = schema_of(ExportRecord, "Export", leave_out=frozenset({"manifest_name", "hold", "sockets"}))
_Cleanup: Final = schema_of(CleanupRecord, "Cleanup", leave_out=frozenset({"paths"}))


class ActiveRunOut(Run):  # type: ignore[misc,valid-type]
    alive: bool | None = Field(description="false: its process is dead, the next run cleans up; null: another's.")


class ActiveExportOut(_Export):  # type: ignore[misc,valid-type]
    alive: bool | None = Field(description="null: it is another appliance's.")


class SchedulerOut(Out):
    alive: bool
    looked_utc: datetime | None
    selected: int = Field(description="Machines that a policy selects.")
    missed: int = Field(description="Those without a restore point as young as their policy wants.")
    problems: list[str]


class StatusOut(Out):
    me: str = Field(description="The id of this appliance.")
    home: str
    repository: _Repository  # type: ignore[valid-type]
    hosts: list[str]
    workers: bool = Field(description="Somebody here takes runs from the queue.")
    scheduler: SchedulerOut
    runs: list[ActiveRunOut]
    waiting: list[Run] = Field(description="In the queue, oldest first.")  # type: ignore[valid-type]
    failed: list[Run] = Field(  # type: ignore[valid-type]
        description="Last runs of machines, that made no point and that nobody has dismissed."
    )
    recoveries: list[Recovery] = Field(description="Those that have not ended.")  # type: ignore[valid-type]
    exports: list[ActiveExportOut]
    holds: list[Hold]
    requests: list[Request]
    owed_thaws: list[OwedThaw] = Field(description="Guests that may be frozen.")
    cleanups: list[_Cleanup] = Field(description="What dead processes left.")  # type: ignore[valid-type]
    problems: list[str]


class SettingsOut(Out):
    file: str
    sections: dict[str, dict[str, str | None]] = Field(description="Values as text; null: it is a secret.")


@resources.get("/status", summary="What is under way, owed and held", responses={200: StatusOut})
@act(Act.APPLIANCE_SEE)
def show_status() -> Response:
    """It asks the repository, and no host. /overview tells of machines and asks neither."""
    looking()
    return send(StatusOut, _status(StatusService(appliance()).status()))


@resources.get("/settings", summary="Settings as they hold, without secrets", responses={200: SettingsOut})
@act(Act.SETTINGS_SEE)
def show_settings() -> Response:
    """They are changed in their file, by whoever may write it."""
    looking()
    settings = appliance().settings
    sections = {
        section.name: {
            item.name: str(getattr(value, item.name)) if item.repr else None for item in fields(value)
        }
        for section in fields(settings)
        if is_dataclass(value := getattr(settings, section.name))
    }  # fmt: skip
    return send(SettingsOut, {"file": str(settings.file), "sections": sections})


def _status(found: Status) -> dict[str, Any]:
    same = ("me", "home", "repository", "workers", "waiting", "recoveries", "holds", "owed_thaws", "cleanups")
    policies = found.policies
    return {name: getattr(found, name) for name in same} | {
        "hosts": [host.name for host in found.hosts],
        "scheduler": {
            "alive": policies.alive, "looked_utc": policies.looked_utc, "selected": policies.selected,
            "missed": len(policies.missed), "problems": policies.problems,
        },
        "runs": [values_of(Run, each.run) | {"alive": each.alive} for each in found.runs],
        "failed": found.failed_runs,
        "exports": [values_of(_Export, each.export) | {"alive": each.alive} for each in found.exports],
        "requests": [request_out(each) for each in found.requests],
        "problems": found.problems,
    }  # fmt: skip
