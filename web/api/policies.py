"""Policies: which machines are backed up when, and what is kept of them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final

from flask import Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from appliance.policy.policies import Policy, read_policy
from appliance.policy.previews import Chosen, Preview
from appliance.policy.retention import Candidate
from appliance.services.access import Act, Subject
from appliance.services.policies import KnownPolicy, PolicyService
from web.acts import act
from web.api.callers import appliance, looking, performing
from web.api.machines import Which
from web.api.resources import Name, resource
from web.api.schemas import Out, list_of, schema_of, send

_Candidate: Final = schema_of(
    Candidate, "PointInQuestion", change={"uses": Annotated[list[str], BeforeValidator(sorted)]}
)
resources = resource("policies", "Which machines are backed up when, and what is kept of them.")


class Document(BaseModel):
    """A policy as docs/policies.md has it; what is wrong with it is told by the field's name."""

    model_config = ConfigDict(extra="allow", strict=True)

    version: int = Field(description="Of the form: 1.")
    name: str = Field(max_length=64)
    select: dict[str, Any] = Field(examples=[{"include": [{"all": True}]}])
    schedule: dict[str, Any] = Field(examples=[{"cron": "0 22 * * *", "zone": "Europe/Berlin"}])


class KnownOut(Out):
    """`version` grows with every change."""

    name: str
    version: int
    since_utc: datetime
    changed_utc: datetime
    paused_utc: datetime | None
    document: dict[str, Any]


PolicyAll: Final = list_of(KnownOut)


class ChosenOut(Out):
    machine: Which  # type: ignore[valid-type]
    clause: dict[str, Any] = Field(description="Of the policy: the one that fits.")
    others: list[str] = Field(description="Other policies that select it too.")


class PreviewOut(Out):
    selected: list[ChosenOut]
    excluded: list[ChosenOut]
    words: str = Field(description="The schedule in words.")
    due_utc: list[datetime]
    remarks: list[str] = Field(description="What may not be meant.")


class LosingOut(Out):
    """Restore points of a machine, oldest first."""

    machine: Which  # type: ignore[valid-type]
    points: list[_Candidate]  # type: ignore[valid-type]


LosingAll: Final = list_of(LosingOut)


class Version(BaseModel):
    if_version: int | None = Field(None, ge=1, le=1 << 31, description="Only if it is of that version still.")


"""The version as a query and not as If-Match: a command line shows it and asks for it by the same number."""


@resources.get("/policies", summary="Policies, by name", responses={200: PolicyAll})
@act(Act.POLICY_SEE)
def list_policies() -> Response:
    """What cannot be read here (a newer program wrote it) does nothing, and is not among them."""
    looking()
    return send(PolicyAll, {"items": [_known(each) for each in PolicyService(appliance()).list().readable]})


@resources.post("/policies", summary="Add a policy", responses={201: KnownOut})
@act(Act.POLICY_SAVE)
def add_policy(body: Document) -> Response:
    policy = _read(body)
    with performing(_subject(policy.name), policy=policy.to_json()):
        return send(KnownOut, _known(PolicyService(appliance()).add(policy)), 201)


@resources.post("/policies/preview", summary="What a policy would do", responses={200: PreviewOut})
@act(Act.POLICY_SEE)
def preview_policy(body: Document) -> Response:
    looking()
    return send(PreviewOut, _preview(PolicyService(appliance()).preview(_read(body))))


@resources.get("/policies/<name>", summary="A policy", responses={200: KnownOut})
@act(Act.POLICY_SEE)
def show_policy(path: Name) -> Response:
    looking()
    return send(KnownOut, _known(PolicyService(appliance()).get(path.name)))


@resources.put("/policies/<name>", summary="Change a policy", responses={200: KnownOut})
@act(Act.POLICY_SAVE)
def replace_policy(path: Name, query: Version, body: Document) -> Response:
    policy = _read(body)
    with performing(_subject(path.name), policy=policy.to_json()):
        found = PolicyService(appliance()).replace(path.name, policy, seen=query.if_version)
    return send(KnownOut, _known(found))


@resources.post("/policies/<name>/losing", summary="What would go by a change", responses={200: LosingAll})
@act(Act.POLICY_SEE)
def points_lost_by_change(path: Name, body: Document) -> Response:
    """Restore points that stay by the policies as they are, and would go, at the next pruning, if the policy of this
    name were this one. It asks the repository what is in use."""
    looking()
    return send(LosingAll, {"items": PolicyService(appliance()).losing(path.name, _read(body))})


@resources.get("/policies/<name>/losing", summary="What would go if it were removed", responses={200: LosingAll})
@act(Act.POLICY_SEE)
def points_lost_by_removal(path: Name) -> Response:
    looking()
    return send(LosingAll, {"items": PolicyService(appliance()).losing(path.name, None)})


@resources.delete("/policies/<name>", summary="Remove a policy", responses={204: None})
@act(Act.POLICY_REMOVE)
def remove_policy(path: Name, query: Version) -> Response:
    """Its restore points stay."""
    with performing(_subject(path.name)):
        PolicyService(appliance()).remove(path.name, seen=query.if_version)
    return Response(status=204)


@resources.post("/policies/<name>/pause", summary="Begin no run by it", responses={200: KnownOut})
@act(Act.POLICY_PAUSE)
def pause_policy(path: Name) -> Response:
    with performing(_subject(path.name)):
        return send(KnownOut, _known(PolicyService(appliance()).pause(path.name)))


@resources.post("/policies/<name>/resume", summary="Begin runs by it again", responses={200: KnownOut})
@act(Act.POLICY_RESUME)
def resume_policy(path: Name) -> Response:
    with performing(_subject(path.name)):
        return send(KnownOut, _known(PolicyService(appliance()).resume(path.name)))


def _subject(name: str) -> Subject:
    return Subject("policy", name, name)


def _read(body: Document) -> Policy:
    return read_policy(body.model_dump())


def _known(found: KnownPolicy) -> dict[str, Any]:
    return {
        "name": found.name,
        "version": found.version,
        "since_utc": found.since_utc,
        "changed_utc": found.changed_utc,
        "paused_utc": found.paused_utc,
        "document": found.policy.to_json(),
    }


def _preview(found: Preview) -> dict[str, Any]:
    return {
        "selected": [_chosen(each) for each in found.selected],
        "excluded": [_chosen(each) for each in found.excluded],
        "words": found.words,
        "due_utc": found.due_utc,
        "remarks": found.remarks,
    }


def _chosen(found: Chosen) -> dict[str, Any]:
    return {"machine": found.machine, "clause": found.clause.to_json(), "others": found.others}
