"""Instant recoveries: machines that run straight out of the repository."""

from __future__ import annotations

from typing import Final, Literal

from flask import Response, url_for
from pydantic import Field

from appliance.models import RecoveryDisk, RecoveryRecord
from appliance.services.access import Act
from appliance.services.recovery import RecoveryService
from web.acts import act
from web.api.callers import appliance, browsing, looking, performing, subjects, visible
from web.api.paging import Paged, send_page
from web.api.points import meant
from web.api.resources import PLACE, Id, PlainName, resource
from web.api.schemas import In, page_of, schema_of, send

resources = resource("recoveries", "Instant recovery: machines that run straight out of the repository.")
_Disk: Final = schema_of(
    RecoveryDisk, "RecoveryDisk", leave_out=frozenset({"socket", "host_socket", "pulled_in", "flushing"})
)
Recovery: Final = schema_of(
    RecoveryRecord,
    "Recovery",
    leave_out=frozenset({"manifest_name", "hold", "definition_xml", "final_xml", "folder"}),
    change={"disks": list[_Disk]},  # type: ignore[valid-type]
)
RecoveryPage: Final = page_of(Recovery)


class NewRecovery(In):
    machine: PlainName = Field(min_length=1, max_length=1024, description="A name, a UUID, or vm:NAME.")
    point: str = Field("latest", min_length=1, max_length=64, description="An id, 'latest', or a time.")
    host: str | None = Field(None, min_length=1, max_length=64, description="Default: where it was backed up from.")
    new_name: PlainName | None = Field(None, min_length=1, max_length=200, pattern="^[^/]+$")
    network: PlainName | None = Field(None, min_length=1, max_length=64, description="none, keep, or a network's name.")
    memory_bytes: int | None = Field(None, ge=1 << 20, le=1 << 50)
    vcpus: int | None = Field(None, ge=1, le=4096)


class Migration(In):
    to: PlainName | None = Field(None, min_length=1, max_length=1024, description=PLACE)
    format: Literal["qcow2", "raw"] = Field("qcow2", description="With `to`.")


class RecoveryQuery(Paged):
    active: bool = Field(False, description="Only those that have not ended.")


@resources.get("/recoveries", summary="Recoveries, newest first", responses={200: RecoveryPage})
@act(Act.RECOVERY_SEE)
def list_recoveries(query: RecoveryQuery) -> Response:
    may_see = visible()
    ended = False if query.active else None
    page = browsing().recoveries(ended=ended, after=query.after, limit=query.limit, may_see=may_see)
    return send_page(RecoveryPage, page)


@resources.post("/recoveries", summary="Start a machine out of a restore point", responses={201: Recovery})
@act(Act.RECOVERY_START)
def start_recovery(body: NewRecovery) -> Response:
    """It answers when the machine is started, seconds later. What fails leaves nothing behind."""
    point = meant(body.machine, body.point)
    given = body.model_dump(include={"host", "new_name", "network", "memory_bytes", "vcpus"}, exclude_none=True)
    subject = subjects().point(point)
    with performing(subject, **given) as doing:
        record = RecoveryService(appliance()).start(body.machine, point.id, **given)
        doing.note(recovery=record.id)
    where = {"Location": url_for("api_recoveries.show_recovery", id=record.id)}
    return send(Recovery, record, 201, where)


@resources.get("/recoveries/<id>", summary="A recovery, and how it stands", responses={200: Recovery})
@act(Act.RECOVERY_SEE)
def show_recovery(path: Id) -> Response:
    record = RecoveryService(appliance()).show(path.id)
    looking(subjects().recovery(record))
    return send(Recovery, record)


@resources.post(
    "/recoveries/<id>/migrate", summary="Move it to production storage while it runs", responses={202: Recovery}
)
@act(Act.RECOVERY_MIGRATE)
def migrate_recovery(path: Id, body: Migration) -> Response:
    """It is begun, and goes on by itself: its state tells when it is done. Without `to`, the disks stay where the
    overlays are."""
    service = RecoveryService(appliance())
    record = service.show(path.id)
    with performing(subjects().recovery(record), to=body.to, format=body.format):
        return send(Recovery, service.begin_migration(record.id, to=body.to, image_format=body.format), 202)


@resources.post("/recoveries/<id>/discard", summary="End a recovery", responses={200: Recovery})
@act(Act.RECOVERY_DISCARD)
def discard_recovery(path: Id) -> Response:
    """The machine and everything that it wrote since are removed. The restore point stays."""
    service = RecoveryService(appliance())
    record = service.show(path.id)
    with performing(subjects().recovery(record)):
        return send(Recovery, service.discard(record.id))
