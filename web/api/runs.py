"""Runs: backups that wait, that are under way and that are over."""

from __future__ import annotations

import hashlib
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

from flask import Response, request, url_for
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from appliance.catalog.once import Once
from appliance.models import RunKind, RunRecord, RunState
from appliance.services.access import Act, Subject
from appliance.services.access.repeats import act_to_repeat, check_repeat
from appliance.services.browsing import RunFilter
from appliance.services.queue.service import Asked, QueueService, Seen
from appliance.services.runlogs import RunLog, read_run_log
from appliance.services.status import StatusService
from web.acts import act
from web.api.callers import appliance, browsing, caller, looking, only_admins, performing, subjects, visible
from web.api.paging import Paged, send_page
from web.api.resources import Id, aware, resource
from web.api.schemas import In, Out, page_of, schema_of, send, values_of

resources = resource("runs", "Backups that wait, that are under way and that are over.")
Run: Final = schema_of(RunRecord, "Run", add={"machine": str})
RunPage: Final = page_of(Run)
RunLogOut: Final = schema_of(RunLog, "RunLog")


class Progress(Out):
    """Of the disk that is being read."""

    label: str
    done_bytes: int
    total_bytes: int | None


class RunSeen(Run):  # type: ignore[misc,valid-type]
    """With what is known of a run of this appliance while it goes on."""

    alive: bool | None
    progress: Progress | None


class RunAsked(Run):  # type: ignore[misc,valid-type]
    new: bool = Field(description="It was queued by this; else one of the same machine waited already.")
    worker: bool | None = Field(description="A worker lives that takes it; null: it is another appliance's.")


class RunCancelled(Run):  # type: ignore[misc,valid-type]
    left: list[str] = Field(
        description="What a repository that does not answer leaves to `strongroom serve`, in words."
    )


def limit_field() -> Any:
    return Field(None, ge=1024, le=1 << 50, description="Move at most so much a second.")


class Image(In):
    path: str = Field(min_length=1, max_length=4096, pattern="^/", description="On the appliance.")
    format: str = Field(pattern="^(raw|qcow2|vmdk|vhdx|vdi|vpc)$")
    name: str = Field(min_length=1, max_length=200, description="The name under which it is protected.")


class NewRun(In):
    machine: str | None = Field(None, min_length=1, max_length=1024, description="A name or a UUID.")
    host: str | None = Field(None, min_length=1, max_length=64, description="If several have one of that name.")
    image: Image | None = Field(None, description="Instead of a machine. For admins: it names a file of the appliance.")
    full: bool = Field(False, description="Read everything.")
    limit_bytes_s: int | None = limit_field()

    @model_validator(mode="after")
    def _one(self) -> NewRun:
        if (self.machine is None) == (self.image is None):
            raise ValueError("give machine or image, and not both")
        if self.image is not None and (self.host is not None or self.full):
            raise ValueError("host and full go with machine")
        return self


class Key(BaseModel):
    model_config = ConfigDict(extra="ignore")

    idempotency_key: str | None = Field(
        None, alias="Idempotency-Key", min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$",
        description="Asked again with the same key within a day, it is the same run.",
    )  # fmt: skip


class RunQuery(Paged):
    kind: list[RunKind] = Field([], description="Only those; may be given several times.")
    state: list[RunState] = Field([], description="Only those; may be given several times.")
    machine: str | None = Field(None, max_length=600, description="Of this one: vm:UUID or image:NAME.")
    host: str | None = Field(None, max_length=64)
    since_utc: Annotated[datetime, AfterValidator(aware)] | None = None
    until_utc: Annotated[datetime, AfterValidator(aware)] | None = None


@resources.get("/runs", summary="Runs, newest first", responses={200: RunPage})
@act(Act.RUN_SEE)
def list_runs(query: RunQuery) -> Response:
    may_see = visible()
    wanted = RunFilter(
        states=frozenset(query.state), kinds=frozenset(query.kind), machine=query.machine, host=query.host,
        since_utc=query.since_utc, until_utc=query.until_utc,
    )  # fmt: skip
    return send_page(RunPage, browsing().runs(wanted, after=query.after, limit=query.limit, may_see=may_see))


@resources.post("/runs", summary="Queue a backup", responses={201: RunAsked, 200: RunAsked})
@act(Act.RUN_START)
def start_run(body: NewRun, header: Key) -> Response:
    """A machine or image waits in the queue once: asked for again, it is the same run."""
    service, key = QueueService(appliance()), once(header)
    if body.image is not None:
        return _start_image(service, body.image, body.limit_bytes_s, key)
    machine = subjects().to_back_up(caller(), body.machine or "", body.host)
    with performing(Subject.of_machine(machine), full=body.full, limit_bytes_s=body.limit_bytes_s) as doing:
        asked = service.ask_machine(machine.id, machine.host, full=body.full, limit_bytes_s=body.limit_bytes_s, key=key)
        doing.note(run=asked.run.id)
    return send_asked(asked)


def _start_image(service: QueueService, image: Image, limit_bytes_s: int | None, key: Once | None) -> Response:
    """Whoever names a file of the appliance could read all that root can: that is an admin's to do."""
    only_admins("name a file of the appliance")
    subject = subjects().machine("image", None, image.name, None)
    with performing(subject, image=image.path, format=image.format, limit_bytes_s=limit_bytes_s) as doing:
        asked = service.ask_image(Path(image.path), image.format, image.name, limit_bytes_s=limit_bytes_s, key=key)
        doing.note(run=asked.run.id)
    return send_asked(asked)


@resources.get("/runs/<id>", summary="A run, and how far it is", responses={200: RunSeen})
@act(Act.RUN_SEE)
def show_run(path: Id) -> Response:
    seen = QueueService(appliance()).run(path.id)
    looking(subjects().run(seen.run))
    return send(RunSeen, _seen(seen))


@resources.get("/runs/<id>/log", summary="What a run said, and how fast it went", responses={200: RunLogOut})
@act(Act.RUN_SEE)
def show_run_log(path: Id) -> Response:
    """Of all its attempts, oldest first; `samples` of the last. Empty: it has said nothing yet, it was another
    appliance's, or it is too long ago."""
    run = QueueService(appliance()).run(path.id).run
    looking(subjects().run(run))
    return send(RunLogOut, read_run_log(appliance().settings, run.id))


@resources.post("/runs/<id>/cancel", summary="Cancel a run", responses={200: RunCancelled})
@act(Act.RUN_CANCEL)
def cancel_run(path: Id) -> Response:
    """One that waits is not begun; one that runs ends in order within seconds, and makes no point."""
    service = QueueService(appliance())
    run = service.run(path.id).run
    left: list[str] = []
    with performing(subjects().run(run)):
        found = service.cancel(run.id, left.append)
    return send(RunCancelled, values_of(Run, found) | {"left": left})


@resources.post("/runs/<id>/retry", summary="Queue the same once more", responses={201: RunAsked, 200: RunAsked})
@act(Act.RUN_RETRY)
def retry_run(path: Id, header: Key) -> Response:
    """What a run that is over was about, as a new run; one that waits for its next attempt waits no longer. Whoever may
    not do what it does may not have it done once more either."""
    service = QueueService(appliance())
    run = service.run(path.id).run
    with performing(subjects().run(run), act_to_repeat(run)) as doing:
        check_repeat(caller(), run)
        asked = service.again(run.id, key=once(header))
        doing.note(run=asked.run.id)
    return send_asked(asked)


@resources.post("/runs/<id>/dismiss", summary="It needs no eye any more", responses={200: Run})
@act(Act.RUN_DISMISS)
def dismiss_run(path: Id) -> Response:
    """Of the last run of a machine, that failed: it is told no more, until one fails again."""
    run = QueueService(appliance()).run(path.id).run
    with performing(subjects().run(run)):
        StatusService(appliance()).dismiss(run.id)
    return send(Run, QueueService(appliance()).run(run.id).run)


def once(header: Key) -> Once | None:
    """What is asked is the path and the body, to the byte."""
    if header.idempotency_key is None:
        return None
    asked = hashlib.sha256(f"{request.path}\n".encode() + request.get_data()).hexdigest()
    actor = f"{caller().kind}:{caller().id}"
    return Once(actor, header.idempotency_key, asked, appliance().clock.now_utc())


def _seen(seen: Seen) -> dict[str, Any]:
    return values_of(Run, seen.run) | {"alive": seen.alive, "progress": seen.far}


def send_asked(asked: Asked) -> Response:
    answer = values_of(Run, asked.run) | {"new": asked.new, "worker": asked.worker}
    where = {"Location": url_for("api_runs.show_run", id=asked.run.id)}
    return send(RunAsked, answer, 201 if asked.new else 200, where)
