"""Metrics for a monitoring system, which shows a token and has no session."""

from __future__ import annotations

from flask import Blueprint, Response

from appliance.services.access import Access, Act
from appliance.services.metrics import CONTENT_TYPE
from web.acts import public
from web.api.callers import identify
from web.current import appliance, metrics

blueprint = Blueprint("metrics", __name__)


@blueprint.get("/metrics")
@public  # to sessions; whose token may see metrics is asked here
def page() -> Response:
    Access(appliance()).check(identify(), Act.METRICS_SEE)
    return Response(metrics().text(), content_type=CONTENT_TYPE, headers={"Cache-Control": "no-store"})
