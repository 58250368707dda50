"""Restore points: what there is to go back to."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final

from flask import Response
from pydantic import AfterValidator, BaseModel, Field

from appliance.models import MachineRecord, PointRecord
from appliance.paging import Page
from appliance.proofs import Checked
from appliance.services.access import Act, Subject
from appliance.services.browsing import PointFilter
from appliance.services.choosing import NotProtected
from appliance.services.point_records import record_of
from appliance.services.points import PointDetails, PointService
from web.acts import act
from web.api.callers import appliance, browsing, caller, looking, performing, subjects, visible
from web.api.paging import Paged, send_page
from web.api.resources import Id, aware, resource
from web.api.schemas import Out, page_of, schema_of, send, values_of

resources = resource("points", "Restore points: each is complete on its own.")
_Point: Final = schema_of(PointRecord, "Point")
_Checked: Final = schema_of(Checked, "Checked")


class ListedPoint(_Point):  # type: ignore[misc,valid-type]
    checked: _Checked = Field(description="What verifications have found of it.")  # type: ignore[valid-type]


class Hold(Out):
    id: str
    purpose: str
    owner: str
    created_utc: datetime


class PointSeen(_Point):  # type: ignore[misc,valid-type]
    holds: list[Hold] = Field(description="What keeps it from being deleted.")


PointPage: Final = page_of(ListedPoint)


class PointQuery(Paged):
    machine: str | None = Field(None, max_length=600, description="Of this one: vm:UUID or image:NAME.")
    host: str | None = Field(None, max_length=64)
    since_utc: Annotated[datetime, AfterValidator(aware)] | None = None
    until_utc: Annotated[datetime, AfterValidator(aware)] | None = None


class Meant(BaseModel):
    machine: str = Field(min_length=1, max_length=1024, description="A name, a UUID, vm:NAME or image:NAME.")
    point: str = Field("latest", min_length=1, max_length=64, description="An id, 'latest', or a time.")


class Allowed(BaseModel):
    request: str | None = Field(
        None, pattern="^[0-9a-f]{4,32}$", description="The request of a guarded repository that allows it."
    )


@resources.get("/points", summary="Restore points, newest first", responses={200: PointPage})
@act(Act.POINT_SEE)
def list_points(query: PointQuery) -> Response:
    series = None
    if query.machine is not None:
        row = browsing().machine(query.machine).row
        looking(Subject.of_machine(row.machine))
        series = row.series
        if series is None:
            return send_page(PointPage, Page((), None, 0))
    wanted = PointFilter(series, query.host, since_utc=query.since_utc, until_utc=query.until_utc)
    page = browsing().points(wanted, after=query.after, limit=query.limit, may_see=visible())
    items = tuple(values_of(_Point, each.point) | {"checked": each.checked} for each in page.items)
    return send_page(PointPage, Page(items, page.next, page.total))


@resources.get("/points/meant", summary="The restore point that is meant", responses={200: _Point})
@act(Act.POINT_SEE)
def meant_point(query: Meant) -> Response:
    """If that is damaged, it is an error: no older one is given instead."""
    point = meant(query.machine, query.point)
    looking(subjects().point(point))
    return send(_Point, point)


@resources.get("/points/<id>", summary="A restore point, and what keeps it", responses={200: PointSeen})
@act(Act.POINT_SEE)
def show_point(path: Id) -> Response:
    details = PointService(appliance()).details(path.id)
    looking(subjects().point(record_of(details.point)))
    return send(PointSeen, _seen(details))


@resources.delete("/points/<id>", summary="Delete a restore point", responses={204: None})
@act(Act.POINT_DELETE)
def delete_point(path: Id, query: Allowed) -> Response:
    """The space is given back when the repository is collected. What a hold keeps, or the repository's guard, stays."""
    service = PointService(appliance())
    point = service.details(path.id).point
    with performing(subjects().point(record_of(point))):
        service.delete(record_of(point).id, query.request)
    return Response(status=204)


@resources.put("/points/<id>/protection", summary="Keep it from being deleted", responses={200: PointSeen})
@act(Act.POINT_PROTECT)
def protect_point(path: Id) -> Response:
    service = PointService(appliance())
    point = record_of(service.details(path.id).point)
    with performing(subjects().point(point)):
        service.protect(point.id)
    return send(PointSeen, _seen(service.details(point.id)))


@resources.delete("/points/<id>/protection", summary="Lift its protection", responses={200: PointSeen})
@act(Act.POINT_UNPROTECT)
def unprotect_point(path: Id) -> Response:
    service = PointService(appliance())
    point = record_of(service.details(path.id).point)
    with performing(subjects().point(point)):
        service.unprotect(point.id)
    return send(PointSeen, _seen(service.details(point.id)))


def meant(machine: str, wanted: str) -> PointRecord:
    """As `PointService.resolve`, among what was granted: nothing is told of the points of others. NotGranted, audited,
    if none of those machines is called so."""
    service = PointService(appliance())
    if not caller().limited:
        return record_of(service.resolve(wanted, machine))
    try:
        return record_of(service.resolve(wanted, machine, among=_granted))
    except NotProtected:
        looking(subjects().called(machine))
        raise


def _granted(record: MachineRecord) -> bool:
    found = subjects().machine(record.kind, record.uuid, record.name, record.host).machine
    return found is not None and caller().granted(found)


def _seen(details: PointDetails) -> dict[str, Any]:
    return values_of(_Point, record_of(details.point)) | {"holds": details.holds}
