"""Restores, through the queue: a whole machine under a new name or in place, or one disk to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from flask import Response
from pydantic import Field

from appliance.acts import Act
from appliance.services.queue.service import QueueService
from web.acts import act
from web.api.callers import appliance, only_admins, performing, subjects
from web.api.points import meant
from web.api.resources import PLACE, PlainName, resource
from web.api.runs import Key, RunAsked, limit_field, once, send_asked
from web.api.schemas import In

resources = resource("restores", "Restores: each is a run of the queue.")


class _Restore(In):
    machine: PlainName = Field(min_length=1, max_length=1024, description="A name, a UUID, vm:NAME or image:NAME.")
    point: str = Field("latest", min_length=1, max_length=64, description="An id, 'latest', or a time.")
    limit_bytes_s: int | None = limit_field()


class NewRestore(_Restore):
    host: str = Field(min_length=1, max_length=64)
    new_name: PlainName = Field(min_length=1, max_length=200, pattern="^[^/]+$")
    storage: PlainName | None = Field(None, min_length=1, max_length=1024, description=PLACE)


class InPlace(_Restore):
    host: str = Field(min_length=1, max_length=64)


class DiskRestore(_Restore):
    disk: str | None = Field(None, min_length=1, max_length=64, description="Not needed when there is only one.")
    target: PlainName = Field(min_length=2, max_length=4096, pattern="^/", description="A new file of the appliance.")
    format: Literal["qcow2", "raw", "vmdk", "vhdx", "vpc"] = "qcow2"


@resources.post("/restores", summary="Restore under a new name", responses={201: RunAsked, 200: RunAsked})
@act(Act.RESTORE_START)
def restore_machine(body: NewRestore, header: Key) -> Response:
    point = meant(body.machine, body.point)
    details = body.model_dump(include={"host", "new_name", "storage", "limit_bytes_s"})
    with performing(subjects().point(point), **details) as doing:
        asked = QueueService(appliance()).ask_restore(body.machine, point.id, key=once(header), **details)
        doing.note(run=asked.run.id)
    return send_asked(asked)


@resources.post("/restores/in-place", summary="Restore over what is there", responses={201: RunAsked, 200: RunAsked})
@act(Act.RESTORE_OVERWRITE)
def restore_in_place(body: InPlace, header: Key) -> Response:
    """The machine has to be off. Where its old disks are still there, only blocks that differ are written."""
    point = meant(body.machine, body.point)
    with performing(subjects().point(point), host=body.host, limit_bytes_s=body.limit_bytes_s) as doing:
        asked = QueueService(appliance()).ask_restore(
            body.machine, point.id, body.host, force=True, limit_bytes_s=body.limit_bytes_s, key=once(header)
        )
        doing.note(run=asked.run.id)
    return send_asked(asked)


@resources.post("/restores/disk", summary="Restore a disk to a file", responses={201: RunAsked, 200: RunAsked})
@act(Act.RESTORE_START)
def restore_disk(body: DiskRestore, header: Key) -> Response:
    """For admins: it names a file of the appliance. One that is there stays as it is."""
    only_admins("name a file of the appliance")
    point = meant(body.machine, body.point)
    details = body.model_dump(include={"disk", "target", "format", "limit_bytes_s"})
    with performing(subjects().point(point), **details) as doing:
        asked = QueueService(appliance()).ask_restore_disk(
            body.machine, point.id, body.disk, Path(body.target), body.format, limit_bytes_s=body.limit_bytes_s,
            key=once(header),
        )  # fmt: skip
        doing.note(run=asked.run.id)
    return send_asked(asked)
