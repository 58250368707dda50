"""Who is told what, what was told, and whether a target works."""

from __future__ import annotations

from typing import Annotated, Any, Final

from flask import Response
from pydantic import BaseModel, Field, WithJsonSchema

from appliance.notices.records import Delivery, Kind, Notice
from appliance.services.access import Act, Subject
from appliance.services.notices import NoticeService
from appliance.services.notices.service import TargetState, Tested
from web.acts import act
from web.api.callers import appliance, looking, performing
from web.api.resources import Name, resource
from web.api.schemas import list_of, schema_of, send, values_of

resources = resource("notices", "Who is told what. No answer has the address of a target.")
_Delivery: Final = schema_of(Delivery, "Delivery")
# In place, as the document has one "Kind" already, of machines.
_Kind = Annotated[Kind, WithJsonSchema({"type": "string", "enum": [each.value for each in Kind]})]
_Notice: Final = schema_of(Notice, "Notice", change={"kind": _Kind})
TargetList: Final = list_of(schema_of(TargetState, "Target", change={"last": _Delivery | None}))
TestedOut: Final = schema_of(Tested, "TestedTarget")


class ToldOut(_Notice):  # type: ignore[misc,valid-type]
    deliveries: list[_Delivery]  # type: ignore[valid-type]


ToldList: Final = list_of(ToldOut)


class Last(BaseModel):
    last: int = Field(50, ge=1, le=500, description="The newest so many.")


@resources.get("/notices", summary="What was told, newest first", responses={200: ToldList})
@act(Act.NOTICE_SEE)
def list_notices(query: Last) -> Response:
    looking()
    items: list[dict[str, Any]] = [
        values_of(_Notice, each.notice) | {"deliveries": each.deliveries}
        for each in NoticeService(appliance()).told(query.last)
    ]
    return send(ToldList, {"items": items})


@resources.get("/notices/targets", summary="Who is told", responses={200: TargetList})
@act(Act.NOTICE_SEE)
def list_targets() -> Response:
    looking()
    return send(TargetList, {"items": NoticeService(appliance()).targets()})


@resources.post("/notices/targets/<name>/test", summary="Send a target a message", responses={200: TestedOut})
@act(Act.NOTICE_TEST)
def test_target(path: Name) -> Response:
    """`error`: why it was not taken."""
    with performing(Subject("target", path.name, path.name)) as doing:
        (tested,) = NoticeService(appliance()).test([path.name])
        if tested.error is not None:
            doing.failed("it was not taken")
    return send(TestedOut, tested)
