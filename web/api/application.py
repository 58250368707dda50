"""The API as a whole: its document, and its resources.

The rule: the document is made from the views, and there is no view that is not in it.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

from flask import Flask, Response, jsonify
from flask_openapi3.models.info import Info
from flask_openapi3.openapi import OpenAPI
from flask_wtf import CSRFProtect

from web.acts import public
from web.api import (
    accounts,
    audit,
    files,
    hosts,
    machines,
    notices,
    outlooks,
    overview,
    points,
    policies,
    problems,
    recoveries,
    repository,
    requests,
    restores,
    runs,
    standing,
)
from web.api.resources import resource
from web.errors import tell_otherwise

_DESCRIPTION: Final = """\
Everything that the console does. Ask with `Authorization: Bearer TOKEN`; `strongroom token add` makes one.

Moments are ISO 8601 in UTC, sizes are bytes, ids are 32 hex digits, of which a unique beginning is enough. Lists come
in pages: follow `next`, or the `Link` header. Every error is problem+json (RFC 9457). Within v1, fields are added, and
none is taken away.
"""
_INVALID: Final = "validation_error_callback"  # what flask-openapi3 asks the application for
_OBJECT: Final = {"application/json": {"schema": {"type": "object"}}}
_RESOURCES: Final = (
    overview.resources,
    machines.resources,
    points.resources,
    files.resources,
    runs.resources,
    recoveries.resources,
    restores.resources,
    policies.resources,
    hosts.resources,
    repository.resources,
    requests.resources,
    accounts.resources,
    audit.resources,
    standing.resources,
    notices.resources,
    outlooks.resources,
)


def serve(app: Flask, csrf: CSRFProtect) -> None:
    """The API, with its document, below /api/v1. No cookie counts there, so nothing can be forged with one."""
    described = OpenAPI(  # is never served: what it gathers is the document
        "api",
        info=Info(title="Strongroom", version=version("strongroom"), description=_DESCRIPTION),
        security_schemes={"token": {"type": "http", "scheme": "bearer"}},
        validation_error_model=problems.Problem,
        doc_ui=False,
    )
    setattr(app, _INVALID, problems.invalid)
    tell_otherwise(app, "/api/", problems.of_page)
    about = resource("document", "This document.", open=True)

    @about.get("/openapi.json", summary="The API in the form of OpenAPI 3.1", responses={200: {"content": _OBJECT}})
    @public
    def document() -> Response:
        return jsonify(described.api_doc)

    for each in (*_RESOURCES, about):
        csrf.exempt(each)
        described.register_api(each)
        app.register_blueprint(each)
