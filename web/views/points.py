"""Restore points: delete one, protect one. What the repository's guard keeps becomes a request."""

from __future__ import annotations

from flask import Blueprint, flash, redirect, render_template, url_for
from werkzeug.wrappers import Response

from appliance.services.access import Act, Subject
from appliance.services.access.subjects import Subjects
from appliance.services.point_records import record_of
from appliance.services.points import PointDetails, PointService
from appliance.services.signing import SigningService, What
from web.acts import act
from web.current import appliance
from web.guarding import check, looking, performing

blueprint = Blueprint("points", __name__)


@blueprint.get("/points/<id>/delete")
@act(Act.POINT_DELETE)
def deleting(id: str) -> Response | str:
    details, subject = _found(id)
    looking(Act.POINT_DELETE, subject)
    question = SigningService(appliance()).question(What.POINT, details.point.id)
    if question.why:
        return redirect(url_for("requests.new", what=What.POINT, id=details.point.id))
    return render_template(
        "points/delete.html", point=record_of(details.point), holds=details.holds, machine=subject.machine,
        title="Delete a restore point",
    )  # fmt: skip


@blueprint.post("/points/<id>/delete")
@act(Act.POINT_DELETE)
def delete(id: str) -> Response:
    details, subject = _found(id)
    with performing(Act.POINT_DELETE, subject):
        PointService(appliance()).delete(details.point.id)
    flash("The restore point is deleted. Its space is given back when the repository is collected.", "good")
    return _back(subject)


@blueprint.post("/points/<id>/protect")
@act(Act.POINT_PROTECT)
def protect(id: str) -> Response:
    details, subject = _found(id)
    with performing(Act.POINT_PROTECT, subject):
        PointService(appliance()).protect(details.point.id)
    flash("It is protected: nothing deletes it until that is lifted.", "good")
    return redirect(url_for("points.deleting", id=details.point.id))


@blueprint.post("/points/<id>/unprotect")
@act(Act.POINT_UNPROTECT)
def unprotect(id: str) -> Response:
    details, subject = _found(id)
    check(Act.POINT_UNPROTECT, subject)
    if SigningService(appliance()).question(What.PROTECTION, details.point.id).why:
        return redirect(url_for("requests.new", what=What.PROTECTION, id=details.point.id))
    with performing(Act.POINT_UNPROTECT, subject):
        PointService(appliance()).unprotect(details.point.id)
    flash("It is protected no more.", "good")
    return redirect(url_for("points.deleting", id=details.point.id))


def _found(id: str) -> tuple[PointDetails, Subject]:
    """PointNotFound."""
    details = PointService(appliance()).details(id)
    return details, Subjects(appliance()).point(record_of(details.point))


def _back(subject: Subject) -> Response:
    if subject.machine is None:
        return redirect(url_for("machines.listing"))
    return redirect(url_for("machines.page", key=subject.machine.key))
