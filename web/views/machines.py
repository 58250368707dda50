"""Machines and images, and what is done with one: protect, back up."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from flask import Blueprint, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from appliance.models import RunRecord
from appliance.services.access import Act, Subject
from appliance.services.browsing import MachineFilter, MachinePage, MachineRow, RunFilter, Sort, Standing
from appliance.services.queue.service import QueueService
from web.acts import act
from web.current import appliance, browsing
from web.forms import choice, flag
from web.guarding import looking, performing, sees
from web.months import months
from web.stretches import stretch_of

blueprint = Blueprint("machines", __name__)
_LIMIT: Final = 50
_RUNS: Final = 8
_TIME_LINE: Final = timedelta(days=92)


@blueprint.get("/vms")
@act(Act.MACHINE_SEE)
def listing() -> str:
    standing = choice(request.args, "standing", Standing)
    only = request.args.get("only", "")
    sort = choice(request.args, "sort", Sort) or Sort.NAME
    wanted = MachineFilter(
        text=request.args.get("text", ""),
        host=request.args.get("host") or None,
        tag=request.args.get("tag") or None,
        policy=request.args.get("policy") or None,
        standings=frozenset({standing}) if standing else frozenset(),
        missed=only == "missed",
        failed=only == "failed",
    )
    fleet = browsing().fleet(sees())
    falling = flag(request.args, "falling")
    page = fleet.page(wanted, sort, falling=falling, after=request.args.get("after"), limit=_LIMIT)
    arguments = {name: value for name, value in request.args.items() if name != "after" and value}
    template = "machines/rows.html" if request.headers.get("HX-Target") == "rows" else "machines/listing.html"
    return render_template(
        template, page=page, hosts=fleet.hosts, arguments=arguments, standings=Standing, standing=standing, only=only,
        sort=sort, falling=falling, any=bool(fleet.rows), title="VMs",
    )  # fmt: skip


@blueprint.get("/vms/<path:key>")
@act(Act.MACHINE_SEE)
def page(key: str) -> str:
    found = named(key, Act.MACHINE_SEE)
    now = appliance().clock.now_utc()
    days = browsing().time_line(found.row, now - _TIME_LINE, now + timedelta(days=1))
    runs = browsing().runs(RunFilter(machine=key), limit=_RUNS, may_see=sees())
    return render_template(
        "machines/page.html", found=found, row=found.row, months=months(days, now.date()),
        stretch=stretch_of(found.row), runs=runs.items, title=found.row.machine.name,
    )  # fmt: skip


@blueprint.post("/vms/<path:key>/back-up")
@act(Act.RUN_START)
def back_up(key: str) -> Response:
    row = named(key, Act.RUN_START).row
    full = flag(request.form, "full")
    with performing(Act.RUN_START, subject_of(row), {"full": full}) as doing:
        run = asked(row, full=full)
        doing.note(run=run.id)
    return redirect(url_for("runs.page", id=run.id))


def asked(row: MachineRow, *, full: bool) -> RunRecord:
    """A run of it in the queue; of an image, what its last run read."""
    queue = QueueService(appliance())
    if row.machine.host is not None:
        return queue.ask_machine(row.machine.id, row.machine.host, full=full).run
    last = row.last_run
    return queue.again(last.id if last is not None else row.machine.name).run


def subject_of(row: MachineRow) -> Subject:
    return Subject.of_machine(row.machine)


def named(key: str, which: Act) -> MachinePage:
    """The machine that a request names, which is about to have this done to it. RecordMissing, NotAllowed."""
    found = browsing().machine(key)
    looking(which, subject_of(found.row))
    return found


@blueprint.get("/points/<id>")
@act(Act.POINT_SEE)
def by_point(id: str) -> Response:
    """The page of its machine, where the point is."""
    where: dict[str, Any] = {
        "key": with_point(id, Act.POINT_SEE).key,
        "from": id,
        "_anchor": f"point-{id[:12]}",
    }
    return redirect(url_for("machines.page", **where))


@blueprint.get("/points/<id>/restore")
@act(Act.RESTORE_START)
def restore_point(id: str) -> Response:
    """The form of it."""
    return redirect(url_for("restores.form", machine=with_point(id, Act.RESTORE_START).key, point=id))


def with_point(id: str, which: Act) -> MachineRow:
    """The machine of the point that a request names. RecordMissing, NotAllowed."""
    row = browsing().row_of_point(id)
    looking(which, subject_of(row))
    return row
