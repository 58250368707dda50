"""The repository: how large it is and grows; verifying it, and giving space back. Both go through the queue."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

from flask import Response
from pydantic import BeforeValidator, Field, model_validator

from appliance.acts import Act
from appliance.doing import Subject
from appliance.services.browsing import Growth
from appliance.services.queue.service import QueueService
from appliance.services.repositories import RepositoryInfo, RepositoryService
from web.acts import act
from web.api.callers import appliance, browsing, looking, only_admins, performing
from web.api.resources import Id, resource
from web.api.runs import Key, RunAsked, limit_field, once, send_asked
from web.api.schemas import In, Out, list_of, schema_of, send

resources = resource("repository", "The repository: its size, its growth, and what is done to all of it.")
GrowthOut: Final = schema_of(Growth, "Growth")


class KeySlot(Out):
    id: str
    kind: str
    label: str
    created_utc: datetime


KeyList: Final = list_of(KeySlot)


class DamagedPoint(Out):
    id: str
    error: Annotated[str, BeforeValidator(str)]


Info: Final = schema_of(
    RepositoryInfo, "Repository", change={"damaged": list[DamagedPoint]}, names={"DamagedPoint": object}
)


class Verification(In):
    read_data: bool = Field(False, description="Open every chunk; else that everything is there is looked at.")
    hashes_only: bool = Field(False, description="Read the bytes of everything, without opening it.")
    every_days: int | None = Field(None, ge=2, le=3650, description="With either: a share, all of it in so many runs.")
    limit_bytes_s: int | None = limit_field()

    @model_validator(mode="after")
    def _fits(self) -> Verification:
        if self.read_data and self.hashes_only:
            raise ValueError("give read_data or hashes_only, not both")
        if self.every_days is not None and not (self.read_data or self.hashes_only):
            raise ValueError("every_days goes with read_data or hashes_only")
        return self


class Copy(In):
    home: str = Field(min_length=2, max_length=4096, pattern="^/", description="Whose repository it goes to.")
    machines: list[Annotated[str, Field(min_length=1, max_length=1024)]] = Field([], max_length=1000)
    limit_bytes_s: int | None = limit_field()


@resources.get("/repository", summary="What it holds", responses={200: Info})
@act(Act.REPOSITORY_SEE)
def show_repository() -> Response:
    """It lists every object: of a large repository that takes a while. /repository/growth does not."""
    looking()
    return send(Info, RepositoryService(appliance()).info())


@resources.get("/repository/growth", summary="How it grows, and when it is full", responses={200: GrowthOut})
@act(Act.REPOSITORY_SEE)
def show_growth() -> Response:
    looking()
    return send(GrowthOut, browsing().growth())


@resources.post("/repository/verify", summary="Queue a verification", responses={201: RunAsked, 200: RunAsked})
@act(Act.REPOSITORY_VERIFY)
def verify_repository(body: Verification, header: Key) -> Response:
    details: dict[str, Any] = body.model_dump()
    with performing(**details) as doing:
        asked = QueueService(appliance()).ask_verify(**details, key=once(header))
        doing.note(run=asked.run.id)
    return send_asked(asked)


@resources.post("/repository/collect", summary="Queue giving space back", responses={201: RunAsked, 200: RunAsked})
@act(Act.REPOSITORY_COLLECT)
def collect_repository(header: Key) -> Response:
    """Of restore points that were deleted."""
    with performing() as doing:
        asked = QueueService(appliance()).ask_collect(key=once(header))
        doing.note(run=asked.run.id)
    return send_asked(asked)


@resources.post("/repository/copy", summary="Queue copying points elsewhere", responses={201: RunAsked, 200: RunAsked})
@act(Act.REPOSITORY_COPY)
def copy_repository(body: Copy, header: Key) -> Response:
    """Into the repository of another home of this machine. For admins: it names a folder of the appliance."""
    only_admins("name a folder of the appliance")
    with performing(home=body.home, machines=body.machines, limit_bytes_s=body.limit_bytes_s) as doing:
        asked = QueueService(appliance()).ask_copy(
            Path(body.home), body.machines, limit_bytes_s=body.limit_bytes_s, key=once(header)
        )
        doing.note(run=asked.run.id)
    return send_asked(asked)


@resources.get("/keys", summary="Its key slots", responses={200: KeyList})
@act(Act.REPOSITORY_SEE)
def list_keys() -> Response:
    looking()
    return send(KeyList, {"items": RepositoryService(appliance()).keys()})


@resources.delete("/keys/<id>", summary="Remove a key slot", responses={204: None})
@act(Act.KEY_REMOVE)
def remove_key(path: Id) -> Response:
    """What the repository's guard keeps has to be asked for: POST /requests."""
    service = RepositoryService(appliance())
    slot = service.find_key(path.id)
    with performing(Subject("key", slot.id, slot.label)):
        service.remove_key(slot)
    return Response(status=204)
