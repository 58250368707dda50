"""Makes the Flask application: what protects it, its pages, its errors.

The rule: every part of the console is a blueprint, every route states its act, and a view parses, calls one service and
renders. What the application needs of the appliance it is given.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from flask import Flask, request
from flask_wtf import CSRFProtect
from werkzeug.middleware.proxy_fix import ProxyFix

from appliance.home import write_private
from web import assets, rendering, sessions
from web.acts import refuse_unstated
from web.api import application as api
from web.current import Parts
from web.errors import show_errors
from web.guarding import guard
from web.security import protect
from web.server import Streams
from web.views import (
    account,
    audit,
    files,
    hosts,
    machines,
    metrics,
    notices,
    overview,
    plan,
    points,
    policies,
    public,
    recoveries,
    reports,
    repository,
    requests,
    restores,
    runs,
    screens,
    search,
    settings,
    sign_in,
    users,
)

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from appliance.settings import Settings

_SECRET_BYTES = 32
_VIEWS = (
    public, metrics, sign_in, account, overview, machines, points, files, runs, recoveries, restores, screens,
    policies, hosts, repository, requests, plan, search, audit, users, settings, notices, reports,
)  # fmt: skip


def create_app(appliance: Appliance, *, streams: Streams | None = None) -> Flask:
    """Borrows the appliance, which must outlive it. UnstatedRoutes if a route states no act (our own mistake)."""
    web = appliance.settings.web
    app = Flask("web", static_folder=None)
    app.config["SECRET_KEY"] = form_secret(appliance.settings)
    app.extensions["strongroom"] = Parts(appliance, streams or Streams())
    app.jinja_options = {"trim_blocks": True, "lstrip_blocks": True, "undefined": rendering.NotGiven}
    if web.behind_proxy:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1)  # type: ignore[method-assign]
    protect(app, web)
    show_errors(app)
    csrf = CSRFProtect(app)
    guard(app, sessions.authenticate)
    sessions.set_up(app)
    assets.serve(app)
    rendering.set_up(app, appliance.clock)
    app.context_processor(lambda: {"theme": _theme()})
    for views in _VIEWS:
        app.register_blueprint(views.blueprint)
    api.serve(app, csrf)
    refuse_unstated(app)
    return app


def _theme() -> str:
    chosen = request.cookies.get("theme", "")
    return chosen if chosen in ("light", "dark") else ""


def form_secret(settings: Settings) -> bytes:
    """What forms and the cookie that goes with them are signed with: the same as before a restart. HomeUnusable."""
    file = settings.machine_key_file.parent / "web.secret"
    try:
        secret = file.read_bytes()
    except OSError:
        secret = b""
    if len(secret) != _SECRET_BYTES:
        secret = secrets.token_bytes(_SECRET_BYTES)
        write_private(file, secret, replace=True)
    return secret
