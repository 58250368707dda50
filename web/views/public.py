"""What everybody may ask: whether the console is alive."""

from __future__ import annotations

from flask import Blueprint, Response

from web.acts import public

blueprint = Blueprint("public", __name__)


@blueprint.get("/alive")
@public
def alive() -> Response:
    """For load balancers and tests: it answers, and says nothing."""
    return Response("alive\n", mimetype="text/plain")
