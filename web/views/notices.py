"""Notices: whether a target works."""

from __future__ import annotations

from flask import Blueprint, flash, redirect, url_for
from werkzeug.wrappers import Response

from appliance.services.access import Act, Subject
from appliance.services.notices import NoticeService
from web.acts import act
from web.current import appliance
from web.guarding import performing

blueprint = Blueprint("notices", __name__)


@blueprint.post("/settings/notices/<name>/test")
@act(Act.NOTICE_TEST)
def test(name: str) -> Response:
    with performing(Act.NOTICE_TEST, Subject("target", name, name)) as doing:
        (tested,) = NoticeService(appliance()).test([name])
        if tested.error is not None:
            doing.failed("it was not taken")
    if tested.error is None:
        flash(f"{name} took the message.", "good")
    else:
        flash(f"{name} did not take the message: {tested.error}", "bad")
    return redirect(url_for("settings.page"))
