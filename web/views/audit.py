"""The audit: what was done by whom, whether it is what was written, and as a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from flask import Blueprint, Response, current_app, render_template, request, stream_with_context

from appliance.audit import Result
from appliance.catalog.audit import Filter
from appliance.services.access import Act
from appliance.services.access.audits import AuditService, json_line
from web.acts import act
from web.current import appliance
from web.forms import choice, whole
from web.guarding import performing

blueprint = Blueprint("audit", __name__)
_LIMIT: Final = 50


@blueprint.get("/audit")
@act(Act.AUDIT_SEE)
def page() -> str:
    result = choice(request.args, "result", Result)
    wanted = Filter(
        act=choice(request.args, "act", Act) or None,
        actor=request.args.get("actor") or None,
        machine=request.args.get("machine") or None,
        result=result.value if result is not None else None,
    )
    before = whole(request.args, "before", 1, 1 << 62)
    entries = AuditService(appliance()).newest(wanted, before=before, limit=_LIMIT + 1)
    arguments = {name: value for name, value in request.args.items() if name != "before" and value}
    return render_template(
        "audit/page.html", entries=entries[:_LIMIT], more=len(entries) > _LIMIT, arguments=arguments, before=before,
        acts=Act, results=Result, wanted=wanted, title="Audit",
    )  # fmt: skip


@blueprint.post("/audit/verify")
@act(Act.AUDIT_SEE)
def verify() -> str:
    return render_template("audit/verdict.html", verdict=AuditService(appliance()).verify(), title="Audit")


@blueprint.post("/audit/export")
@act(Act.AUDIT_EXPORT)
def export() -> Response:
    """JSON lines, from the first entry on."""
    with performing(Act.AUDIT_EXPORT, details={"form": "json"}):
        entries = AuditService(appliance()).export()

    def lines() -> Iterator[str]:
        for entry in entries:
            yield f"{json_line(entry)}\n"

    response = current_app.response_class(stream_with_context(lines()), mimetype="application/x-ndjson")
    response.headers["Content-Disposition"] = 'attachment; filename="strongroom-audit.jsonl"'
    return response
