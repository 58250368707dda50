"""The audit: every act, by whom, from where, on what, with what result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from flask import Response, stream_with_context
from pydantic import BaseModel, Field

from appliance.audit import AuditEntry, Verdict
from appliance.catalog.audit import Filter
from appliance.paging import Page, read_key, write_key
from appliance.services.access import Act
from appliance.services.access.audits import AuditService, json_line
from web.acts import act
from web.api.callers import appliance, looking, performing
from web.api.paging import Paged, send_page
from web.api.resources import resource
from web.api.schemas import page_of, schema_of, send

resources = resource("audit", "Every act, by whom, from where, on what, with what result.")
Entry: Final = schema_of(AuditEntry, "AuditEntry", change={"details": dict[str, Any]})
EntryPage: Final = page_of(Entry)
VerdictOut: Final = schema_of(Verdict, "Verdict", add={"good": bool})
_ORDER: Final = "audit"
_LINES: Final = "application/x-ndjson"


class AuditQuery(Paged):
    act: str | None = Field(None, max_length=64, description="An act, or the beginning of some: 'run.'.")
    actor: str | None = Field(None, max_length=200, description="The name of who did it.")


class After(BaseModel):
    after: int = Field(0, ge=0, le=1 << 62, description="Only entries beyond this number.")


@resources.get("/audit", summary="The audit, newest first", responses={200: EntryPage})
@act(Act.AUDIT_SEE)
def list_audit(query: AuditQuery) -> Response:
    looking()
    before: int | None = None
    if query.after is not None:
        (at,) = read_key(_ORDER, query.after, (int,))
        assert isinstance(at, int)
        before = at
    wanted = Filter(act=query.act, actor=query.actor)
    found = AuditService(appliance()).newest(wanted, before=before, limit=query.limit + 1)
    shown = found[: query.limit]
    more = len(found) > query.limit
    return send_page(EntryPage, Page(shown, write_key(_ORDER, (shown[-1].number,)) if more else None))


@resources.get("/audit/verdict", summary="Whether the audit is what was written", responses={200: VerdictOut})
@act(Act.AUDIT_SEE)
def verify_audit() -> Response:
    """It reads every entry."""
    looking()
    return send(VerdictOut, AuditService(appliance()).verify())


@resources.post(
    "/audit/export",
    summary="The audit as JSON lines, oldest first",
    responses={200: {"content": {_LINES: {"schema": {"type": "string"}}}}},
)
@act(Act.AUDIT_EXPORT)
def export_audit(query: After) -> Response:
    """Each line is what the hash of its entry is made of, and the hash."""
    with performing(form="json", after=query.after):
        entries = AuditService(appliance()).export(query.after)

    def lines() -> Iterator[str]:
        for entry in entries:
            yield f"{json_line(entry)}\n"

    return Response(stream_with_context(lines()), mimetype=_LINES)
