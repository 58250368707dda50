"""Requests of a guarded repository. To confirm one is for persons: a token is none, and the console asks for it."""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal

from flask import Response
from pydantic import BaseModel, Field, model_validator

from appliance.acts import Act
from appliance.services.access import Subject
from appliance.services.guard import GuardService, Told
from appliance.services.signing import SigningService, What
from web.acts import act
from web.api.callers import answering, appliance, looking, performing
from web.api.resources import Id, resource
from web.api.schemas import In, Out, list_of, send

resources = resource("requests", "What the repository's guard lets go only when two persons agree, and after a delay.")


class Request(Out):
    id: str
    standing: str = Field(description="asked, waiting, due, released, done, refused, expired or void.")
    words: str = Field(description="What is asked for.")
    subjects: list[str] = Field(description="What it is about, as the repository has it now; in lists: nothing.")
    asked_by: str
    reason: str
    created_utc: datetime
    expires_utc: datetime
    confirmed_by: list[str]
    remaining_s: float | None = Field(description="Of the delay; null while nobody has confirmed.")


class Question(In):
    what: Literal["point", "protection", "key", "unkept"] = Field(
        description="To delete a restore point, lift its protection, remove a key slot, or delete what no policy keeps."
    )
    id: str | None = Field(None, pattern="^[0-9a-f]{4,32}$", description="Of the restore point or key slot.")
    person: str = Field(min_length=1, max_length=100, description="Who signs: a person of the guard.")
    passphrase: str = Field(min_length=1, max_length=1000, description="Of that person.")
    reason: str = Field("", max_length=1000)

    @model_validator(mode="after")
    def _one(self) -> Question:
        if (self.id is None) is not (self.what == "unkept"):
            raise ValueError("give id, but not with unkept")
        return self


class Reason(In):
    reason: str = Field("", max_length=1000)


class All(BaseModel):
    all: bool = Field(False, description="Also those that are over.")


class Carried(Out):
    id: str
    problems: list[str] = Field(description="What could not be done, and stays for the next time.")


RequestList: Final = list_of(Request)
CarriedList: Final = list_of(Carried)


@resources.get("/requests", summary="Requests, oldest first", responses={200: RequestList})
@act(Act.REQUEST_SEE)
def list_requests(query: All) -> Response:
    looking()
    told, _ = GuardService(appliance()).requests(closed=query.all)
    return send(RequestList, {"items": [request_out(each) for each in told]})


@resources.get("/requests/<id>", summary="A request, and what it is about", responses={200: Request})
@act(Act.REQUEST_SEE)
def show_request(path: Id) -> Response:
    looking()
    return send(Request, request_out(GuardService(appliance()).request(path.id)))


@resources.post("/requests", summary="Ask for something", responses={201: RequestList})
@act(Act.REQUEST_ASK)
def ask_request(body: Question) -> Response:
    """Signed by a person of the guard. Another person confirms it, in the console or on the command line; when the
    delay is over, `strongroom serve` carries it out."""
    service = SigningService(appliance())
    question = service.question(What(body.what), body.id or "")
    with performing(Subject("request"), to=list(question.words)):
        made = service.ask(answering(), question, body.person, body.passphrase, body.reason)
    return send(RequestList, {"items": [request_out(each) for each in made]}, 201)


@resources.post("/requests/<id>/refuse", summary="Refuse a request, for ever", responses={200: Request})
@act(Act.REQUEST_REFUSE)
def refuse_request(path: Id, body: Reason) -> Response:
    service = GuardService(appliance())
    with performing(Subject("request", path.id)):
        told = service.refuse(path.id, body.reason)
    return send(Request, request_out(told))


@resources.post("/requests/<id>/apply", summary="Carry out a request that is due", responses={200: CarriedList})
@act(Act.REQUEST_APPLY)
def apply_request(path: Id) -> Response:
    with performing(Subject("request", path.id)) as doing:
        done = GuardService(appliance()).apply([path.id])
        problems = [problem for each in done for problem in each.problems]
        if problems:
            doing.partly("; ".join(problems))
    items = [{"id": each.told.request.id, "problems": each.problems} for each in done]
    return send(CarriedList, {"items": items})


def request_out(told: Told) -> dict[str, object]:
    request = told.request
    return {
        "id": request.id, "standing": request.standing.value, "words": request.ask.act.describe(),
        "subjects": told.subjects, "asked_by": told.asked_by, "reason": request.ask.reason,
        "created_utc": request.ask.created_utc, "expires_utc": request.ask.expires_utc,
        "confirmed_by": told.confirmed_by, "remaining_s": request.remaining_s,
    }  # fmt: skip
