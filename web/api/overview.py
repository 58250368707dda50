"""How everything stands, in one answer; and what is found by a few characters."""

from __future__ import annotations

from typing import Final

from flask import Response
from pydantic import BaseModel, Field

from appliance.services.access import Act
from appliance.services.browsing import Found, Overview
from appliance.services.browsing.overview import Debts, LastDay, Proven, Some, Under
from appliance.services.fleet import FleetService
from web.acts import act
from web.api.callers import appliance, browsing, visible
from web.api.machines import MachineListed
from web.api.recoveries import Recovery
from web.api.repository import GrowthOut
from web.api.resources import resource
from web.api.runs import Run
from web.api.schemas import Out, schema_of, send

resources = resource("overview", "How everything stands.")
_Some: Final = schema_of(Some, "SomeMachines", change={"rows": list[MachineListed]})  # type: ignore[valid-type]
_Proven: Final = schema_of(Proven, "Proven", change={"longest": list[MachineListed]})  # type: ignore[valid-type]
_Under: Final = schema_of(Under, "RunUnderWay", change={"run": Run})
_LastDay: Final = schema_of(LastDay, "LastDay", change={"failed": list[Run]})  # type: ignore[valid-type]
_Debts: Final = schema_of(Debts, "Debts")
OverviewOut: Final = schema_of(
    Overview,
    "Overview",
    change={
        "unprotected": _Some,
        "missed": _Some,
        "failing": _Some,
        "proven": _Proven,
        "last_day": _LastDay,
        "running": list[_Under],  # type: ignore[valid-type]
        "recoveries": list[Recovery],  # type: ignore[valid-type]
        "debts": _Debts,
        "growth": GrowthOut | None,
    },
    add={"fine": bool, "concerns": list[str]},
)
FoundOut: Final = schema_of(
    Found,
    "Found",
    change={"machines": list[MachineListed], "runs": list[Run]},  # type: ignore[valid-type]
)


class Text(BaseModel):
    q: str = Field(max_length=200, description="A part of a name, or the beginning of an id: four digits at least.")


@resources.get("/overview", summary="Whether everything is fine, and what needs eyes", responses={200: OverviewOut})
@act(Act.OVERVIEW_SEE)
def show_overview() -> Response:
    """From the catalog alone: it asks no host and no repository."""
    return send(OverviewOut, browsing().overview(may_see=visible()))


@resources.get("/search", summary="Machines, hosts, policies, points and runs", responses={200: FoundOut})
@act(Act.OVERVIEW_SEE)
def search(query: Text) -> Response:
    return send(FoundOut, browsing().search(query.q, may_see=visible()))


class Appliance(Out):
    id: str
    name: str


class ApplianceList(Out):
    me: str = Field(description="The id of the one that answers.")
    items: list[Appliance] = Field(description="All that share its catalog.")


@resources.get("/appliances", summary="The appliances that share the catalog", responses={200: ApplianceList})
@act(Act.OVERVIEW_SEE)
def list_appliances() -> Response:
    """By their names and ids: runs and recoveries tell of which one they are."""
    visible()
    names = FleetService(appliance()).names()
    return send(ApplianceList, {"me": appliance().id, "items": [{"id": k, "name": v} for k, v in names.items()]})
