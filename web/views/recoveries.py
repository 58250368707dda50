"""Instant recovery: the wizard, what runs out of the repository, its console, and its two ends."""

from __future__ import annotations

from typing import Any, Final

from flask import Blueprint, flash, make_response, redirect, render_template, request, url_for
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Response

from appliance.bootstrap import Appliance
from appliance.catalog.errors import RecordMissing
from appliance.hypervisor.errors import HostUnreachable, HypervisorError
from appliance.models import RecoveryRecord
from appliance.paging import LIMIT_MAX
from appliance.policy.selectors import Kind
from appliance.services.access import Access, Act, PlaceNotAllowed, Subject
from appliance.services.access.subjects import Subjects
from appliance.services.browsing import Fleet, MachineRow
from appliance.services.recovery import RecoveryService
from appliance.services.recovery.errors import HostIsRemote, NameTaken
from appliance.services.restore.foreseeing import ForeseeingService
from web.acts import act
from web.current import appliance, browsing, parts
from web.forms import required, text, whole
from web.guarding import actor, check, looking, performing, sees
from web.jobs import Job
from web.stretches import stretch_of
from web.views.machines import named

blueprint = Blueprint("recoveries", __name__)
_SHOWN: Final = 60
_MIB: Final = 1 << 20
_ANSWERS: Final = ("host", "network", "name", "memory", "cpus")


@blueprint.get("/recoveries")
@act(Act.RECOVERY_SEE)
def listing() -> str:
    """What is under way, at once: each is a machine that runs. What is over, page by page."""
    may_see = sees()
    page = browsing().recoveries(ended=True, after=request.args.get("after"), may_see=may_see)
    live = browsing().recoveries(ended=False, limit=LIMIT_MAX, may_see=may_see).items
    return render_template("recoveries/listing.html", live=live, page=page, title="Recovery")


# --- the wizard -------------------------------------------------------------------------------------------------------


@blueprint.get("/recover")
@act(Act.RECOVERY_START)
def form() -> Response | str:
    """What, when, where, review: each step has the answers of those before it in its address."""
    row = chosen_machine(Act.RECOVERY_START)
    fleet = browsing().fleet(sees())
    if row is None or not row.last_point or row.machine.kind is not Kind.VM:
        rows = [each for each in fleet.rows if each.last_point and each.machine.kind is Kind.VM]
        return which_machine(rows, "recoveries.form", "recoveries/what.html", "Recover")
    point = browsing().point(row, request.args.get("point", ""))
    if point is None:
        return render_template("recoveries/when.html", row=row, stretch=stretch_of(row), step=2, title="Recover")
    chosen = browsing().checked(point)
    answers = {name: request.args[name] for name in _ANSWERS if request.args.get(name)}
    step = 4 if request.args.get("step") == "review" and "host" in answers and "name" in answers else 3
    wrong = _in_the_way(answers["host"], answers["name"]) if step == 4 else {}
    if wrong:
        step = 3
    answers.setdefault("name", _free_name(row, fleet))
    page = render_template(
        "recoveries/review.html" if step == 4 else "recoveries/where.html", row=row, chosen=chosen, answers=answers,
        hosts=[host.name for host in ForeseeingService(appliance()).hosts()], step=step, wrong=wrong,
        network=appliance().settings.recovery.network, title="Recover",
    )  # fmt: skip
    return make_response(page, 400 if wrong else 200)


def _in_the_way(host: str, name: str) -> dict[str, str]:
    """By field: what would keep it from being started there. A host that does not answer may, by then."""
    try:
        RecoveryService(appliance()).foresee(host, name)
    except HostUnreachable:
        return {}
    except NameTaken as err:
        return {"name": str(err)}
    except (RecordMissing, HostIsRemote, HypervisorError) as err:
        return {"host": str(err)}
    return {}


def _free_name(row: MachineRow, fleet: Fleet) -> str:
    """That no machine has, as far as is known: the first recovery may still be there."""
    taken = {each.machine.name for each in fleet.rows}
    names = (f"{row.machine.name}-recovered{suffix}" for suffix in ("", *(f"-{number}" for number in range(2, 1000))))
    return next(name for name in names if name not in taken)


def chosen_machine(which: Act) -> MachineRow | None:
    """The one that the address of a wizard names. None: none yet. RecordMissing, NotAllowed."""
    key = request.args.get("machine")
    return named(key, which).row if key else None


def which_machine(rows: list[MachineRow], endpoint: str, page: str, title: str) -> str:
    """The first step of a wizard, or what of it changes while a name is typed."""
    wanted = request.args.get("text", "").casefold()
    fitting = [each for each in rows if wanted in each.machine.name.casefold()]
    template = "recoveries/choices.html" if request.headers.get("HX-Target") == "choices" else page
    return render_template(
        template, rows=fitting[:_SHOWN], more=len(fitting) > _SHOWN, endpoint=endpoint, step=1, title=title
    )


@blueprint.post("/recoveries")
@act(Act.RECOVERY_START)
def start() -> Response:
    row = named(required(request.form, "machine"), Act.RECOVERY_START).row
    point = required(request.form, "point")
    host, name = required(request.form, "host"), required(request.form, "name", most=200)
    network = text(request.form, "network") or None
    memory, cpus = whole(request.form, "memory", 16, 1 << 24), whole(request.form, "cpus", 1, 1024)
    subject, who = Subject.of_machine(row.machine), actor()
    check(Act.RECOVERY_START, subject)
    details = {"point": point, "host": host, "name": name, "network": network}

    def work(own: Appliance, job: Job) -> RecoveryRecord:
        with Access(own).performing(who, Act.RECOVERY_START, subject, details) as doing:
            job.told = doing.told
            record = RecoveryService(own).start(
                row.series or row.key, point, host=host, new_name=name, network=network,
                memory_bytes=None if memory is None else memory * _MIB, vcpus=cpus, progress=job,
            )  # fmt: skip
            doing.note(recovery=record.id)
            return record

    answers: dict[str, Any] = {each: request.form[each] for each in _ANSWERS if request.form.get(each)}
    again = url_for("recoveries.form", machine=row.key, point=point, **answers)
    job = parts().jobs.begin(name, who.id, again, work)
    return redirect(url_for("recoveries.starting", id=job.id))


@blueprint.get("/recoveries/starting/<id>")
@act(Act.RECOVERY_START)
def starting(id: str) -> Response | str:
    """Live, until it runs; then its own page."""
    job = parts().jobs.find(id, actor().id)
    if job is None:
        raise NotFound
    if isinstance(job.result, RecoveryRecord):
        address = url_for("recoveries.page", id=job.result.id)
        if request.headers.get("HX-Request"):
            return Response(status=204, headers={"HX-Redirect": address})
        return redirect(address)
    recovery = job.told.get("recovery")
    record = next((each for each in RecoveryService(appliance()).list() if each.id == recovery), None)
    template = "recoveries/starting_now.html" if request.headers.get("HX-Request") else "recoveries/starting.html"
    return render_template(template, job=job, record=record, now=appliance().clock.now_utc(), title="Recovering")


# --- one of them ------------------------------------------------------------------------------------------------------


@blueprint.get("/recoveries/<id>")
@act(Act.RECOVERY_SEE)
def page(id: str) -> str:
    record = found(id, Act.RECOVERY_SEE)
    return _shown(record)


def _shown(record: RecoveryRecord, to: str = "", wrong: str = "") -> str:
    """`to`: what the form to migrate it was sent with, if there is something wrong with that."""
    template = "recoveries/now.html" if request.headers.get("HX-Request") else "recoveries/page.html"
    machine = subject_of(record).machine
    return render_template(template, record=record, machine=machine, title=record.machine_name, to=to, wrong=wrong)


@blueprint.get("/recoveries/<id>/console")
@act(Act.CONSOLE_OPEN)
def console(id: str) -> str:
    record = found(id, Act.CONSOLE_OPEN)
    return render_template("recoveries/console.html", record=record, title=f"Console of {record.machine_name}")


@blueprint.post("/recoveries/<id>/migrate")
@act(Act.RECOVERY_MIGRATE)
def migrate(id: str) -> Response:
    record = found(id, Act.RECOVERY_MIGRATE)
    to = text(request.form, "to") or None
    try:
        with performing(Act.RECOVERY_MIGRATE, subject_of(record), {"recovery": record.id, "to": to}):
            RecoveryService(appliance()).begin_migration(record.id, to=to)
    except PlaceNotAllowed as err:
        return make_response(_shown(record, to or "", f"{err}. {err.hint}"), 403)
    return redirect(url_for("recoveries.page", id=record.id))


@blueprint.post("/recoveries/<id>/discard")
@act(Act.RECOVERY_DISCARD)
def discard(id: str) -> Response:
    record = found(id, Act.RECOVERY_DISCARD)
    with performing(Act.RECOVERY_DISCARD, subject_of(record), {"recovery": record.id}):
        RecoveryService(appliance()).discard(record.id)
    flash("The machine and all that it wrote is gone.", "good")
    return redirect(url_for("recoveries.listing"))


def found(id: str, wanted: Act) -> RecoveryRecord:
    """Of a machine with which whoever asks may do this. RecordMissing, NotAllowed."""
    record = RecoveryService(appliance()).show(id)
    looking(wanted, subject_of(record))
    return record


def subject_of(record: RecoveryRecord) -> Subject:
    """The machine that was protected, as grants go by it: the one of its point, whatever others are called."""
    return Subjects(appliance()).recovery(record)
