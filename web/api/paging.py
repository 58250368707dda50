"""Pages of a list: what is asked, and where the next one is.

The rule: a list is read page by page with the cursor that the page before gave, in its body and as a Link header
(RFC 8288); what a cursor holds is nobody's business.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from flask import Response, request
from pydantic import BaseModel, ConfigDict, Field

from appliance.paging import LIMIT, LIMIT_MAX, Page
from web.api.schemas import Out, send


class Paged(BaseModel):
    """The query of every list; those with filters add theirs."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(LIMIT, ge=1, le=LIMIT_MAX, description="So many at most on a page.")
    after: str | None = Field(None, max_length=8192, description="`next` of the page before.")


def send_page(schema: type[Out], page: Page[Any]) -> Response:
    """`schema`: of the page."""
    links = [_link("first", None)]
    if page.next is not None:
        links.append(_link("next", page.next))
    return send(schema, page, headers={"Link": ", ".join(links)})


def _link(relation: str, after: str | None) -> str:
    """Relative to the server: a proxy's name is not known here."""
    query = [(name, value) for name, value in request.args.items(multi=True) if name != "after"]
    query += [] if after is None else [("after", after)]
    return f'<{request.path}{"?" + urlencode(query) if query else ""}>; rel="{relation}"'
