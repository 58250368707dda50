"""Restores: a whole machine, under a new name or in place, or one of its disks to a file. Each is a run of the queue.

The rule: nothing is asked of the queue that would be refused as everything is now; what stands in the way is told on
the form, beside the answer that has to be another.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from flask import Blueprint, make_response, redirect, render_template, request, url_for
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Response

from appliance.acts import Role
from appliance.doing import Subject
from appliance.services.access import Act
from appliance.services.access.errors import NotAllowed, PlaceNotAllowed
from appliance.services.access.places import folder_of
from appliance.services.browsing import MachineRow, TimePoint
from appliance.services.queue.service import QueueService
from appliance.services.restore.errors import Asked, NotPossible
from appliance.services.restore.foreseeing import FORMATS, ForeseeingService, Foreseen
from web.acts import act
from web.current import appliance, browsing
from web.forms import FormWrong, choice, required, text
from web.guarding import access, actor, check, performing, sees
from web.stretches import stretch_of
from web.views.machines import named
from web.views.recoveries import chosen_machine, which_machine

blueprint = Blueprint("restores", __name__)
_WHOLE, _DISK = "whole", "disk:"
_ANSWERS: Final = ("place", "host", "name", "storage", "target", "format")
_TARGET_CHARACTERS_MAX: Final = 4096


class Place(StrEnum):
    NEW = "new"
    IN_PLACE = "in-place"
    FILE = "file"


@blueprint.get("/restore")
@act(Act.RESTORE_START)
def form() -> Response | str:
    """What, when, where, review: each step has the answers of those before it in its address."""
    row = chosen_machine(Act.RESTORE_START)
    if row is None or not row.last_point:
        rows = [each for each in browsing().fleet(sees()).rows if each.last_point]
        return which_machine(rows, "restores.form", "restores/machines.html", "Restore")
    point = browsing().point(row, request.args.get("point", ""))
    chosen = None if point is None else browsing().checked(point)
    newest = point or browsing().point(row, row.last_point or "")
    shown: dict[str, Any] = {"row": row, "chosen": chosen, "title": "Restore"}
    disks = () if newest is None else newest.disks
    what = _what(request.args)
    if what is None:
        return render_template("restores/what.html", disks=disks, files=_may_name_files(), step=1, **shown)
    shown["what"], shown["disk"] = what, _disk(what)
    if chosen is None or (_disk(what) is not None and _disk(what) not in {disk.name for disk in chosen.point.disks}):
        wanted = _disk(what)
        stretch = stretch_of(row, lambda point: wanted in (None, *(disk.name for disk in point.disks)))
        return render_template("restores/when.html", stretch=stretch, step=2, **shown)
    if request.args.get("step") != "review":
        return _where(row, chosen, request.args)
    try:
        foreseen = _foresee(row, chosen, request.args)
    except (NotPossible, FormWrong, PlaceNotAllowed) as err:
        return _refused(row, chosen, request.args, err)
    return _review(row, chosen, foreseen, request.args)


@blueprint.post("/restores")
@act(Act.RESTORE_START)
def start() -> Response:
    """Under a new name."""
    return _asked(Place.NEW, Act.RESTORE_START)


@blueprint.post("/restores/in-place")
@act(Act.RESTORE_OVERWRITE)
def overwrite() -> Response:
    return _asked(Place.IN_PLACE, Act.RESTORE_OVERWRITE)


@blueprint.post("/restores/disk")
@act(Act.RESTORE_START)
def disk() -> Response:
    return _asked(Place.FILE, Act.RESTORE_START)


def _asked(place: Place, which: Act) -> Response:
    given = MultiDict(request.form.items())
    given["place"] = place.value
    row = named(required(given, "machine"), which).row
    found = browsing().point(row, given.get("point", ""))
    if found is None or row.series is None:
        raise NotFound
    chosen = browsing().checked(found)
    subject = _subject(row, chosen)
    check(which, subject)
    try:
        foreseen = _foresee(row, chosen, given)
    except (NotPossible, FormWrong, PlaceNotAllowed) as err:
        return _refused(row, chosen, given, err)
    if place is Place.IN_PLACE and given.get("typed", "").strip() != foreseen.name:
        wrong = FormWrong("typed", f"type {foreseen.name}, to the letter")
        return make_response(_review(row, chosen, foreseen, given, wrong), 400)
    queue, series, point = QueueService(appliance()), row.series, chosen.point.id
    with performing(which, subject, {"point": point}) as doing:
        if place is Place.FILE:
            target = Path(required(given, "target", most=_TARGET_CHARACTERS_MAX))
            image_format = required(given, "format")
            run = queue.ask_restore_disk(series, point, _disk(given.get("what", "")), target, image_format).run
        elif place is Place.IN_PLACE:
            run = queue.ask_restore(series, point, required(given, "host"), force=True).run
        else:
            storage = text(given, "storage") or None
            host = required(given, "host")
            run = queue.ask_restore(series, point, host, new_name=foreseen.name, storage=storage).run
        doing.note(run=run.id)
    return redirect(url_for("runs.page", id=run.id))


def _subject(row: MachineRow, chosen: TimePoint) -> Subject:
    return Subject("point", chosen.point.id, chosen.point.name, row.machine)


def _foresee(row: MachineRow, chosen: TimePoint, given: MultiDict[str, str]) -> Foreseen:
    """FormWrong, NotPossible, NotAllowed."""
    place = choice(given, "place", Place)
    service, point, disk = ForeseeingService(appliance()), chosen.point.id, _disk(given.get("what", ""))
    if (place is Place.FILE) is (disk is None):
        raise FormWrong("place", "choose where it shall go")
    if place is Place.FILE:
        if not _may_name_files():
            raise NotAllowed(f"user {actor().name}", Act.RESTORE_START, "only an admin may name a file here")
        target = required(given, "target", most=_TARGET_CHARACTERS_MAX)
        if not target.startswith("/") or not target.isprintable() or target.endswith("/"):
            raise FormWrong("target", "it must be the whole path of a file, from / on")
        return service.disk(point, disk, Path(target), required(given, "format"))
    host = required(given, "host")
    if place is Place.IN_PLACE:
        return service.in_place(point, host)
    name, storage = required(given, "name"), text(given, "storage") or None
    access().check_place(actor(), Act.RESTORE_START, _subject(row, chosen), folder_of(storage, name))
    return service.new(point, host, name, storage)


_Wrong = NotPossible | FormWrong | PlaceNotAllowed


def _refused(row: MachineRow, chosen: TimePoint, given: MultiDict[str, str], wrong: _Wrong) -> Response:
    status = 403 if isinstance(wrong, PlaceNotAllowed) else 400
    return make_response(_where(row, chosen, given, wrong), status)


def _where(row: MachineRow, chosen: TimePoint, given: MultiDict[str, str], wrong: _Wrong | None = None) -> str:
    told: dict[str, str] = {}
    if isinstance(wrong, NotPossible):
        told[wrong.part.value] = str(wrong)
    elif isinstance(wrong, PlaceNotAllowed):
        told[Asked.STORAGE.value] = f"{wrong}. {wrong.hint}"
    elif wrong is not None:
        told[wrong.field] = str(wrong)
    what = _what(given) or _WHOLE
    hosts = [host.name for host in ForeseeingService(appliance()).hosts()] if what == _WHOLE else []
    return render_template(
        "restores/where.html", row=row, chosen=chosen, what=what, disk=_disk(what), answers=_answers(given), wrong=told,
        hosts=hosts, formats=FORMATS, step=3, title="Restore",
    )  # fmt: skip


def _review(
    row: MachineRow, chosen: TimePoint, foreseen: Foreseen, given: MultiDict[str, str], wrong: FormWrong | None = None
) -> str:
    what = _what(given) or _WHOLE
    return render_template(
        "restores/review.html", row=row, chosen=chosen, foreseen=foreseen, what=what, disk=_disk(what),
        answers=_answers(given), wrong="" if wrong is None else str(wrong), step=4, title="Restore",
    )  # fmt: skip


def _answers(given: MultiDict[str, str]) -> dict[str, str]:
    return {name: given[name].strip() for name in _ANSWERS if given.get(name, "").strip()}


def _what(given: MultiDict[str, str]) -> str | None:
    what = given.get("what", "")
    return what if what == _WHOLE or (what.startswith(_DISK) and len(what) > len(_DISK)) else None


def _disk(what: str) -> str | None:
    """None: it is the whole machine."""
    return what.removeprefix(_DISK) if what.startswith(_DISK) else None


def _may_name_files() -> bool:
    """Whoever names a path on the appliance can do there what root can."""
    return actor().role is Role.ADMIN
