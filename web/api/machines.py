"""Machines and images: found on hosts, protected or not; and pauses of them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Final

from flask import Response
from pydantic import BaseModel, BeforeValidator, Field, PlainSerializer

from appliance.hypervisor.protocol import MachineState
from appliance.policy.selectors import Kind, Machine
from appliance.policy.stored import MachinePause
from appliance.proofs import Proof
from appliance.services.access import Act, Subject
from appliance.services.browsing import MachineFilter, MachinePage, MachineRow, Sort, Standing
from appliance.services.inventory import InventoryService, KnownMachines
from appliance.services.policies import PolicyService
from appliance.services.sightings import Sighting, SightingService
from web.acts import act
from web.api.callers import appliance, browsing, looking, performing, subjects, visible
from web.api.paging import Paged, send_page
from web.api.resources import resource
from web.api.schemas import In, Out, list_of, page_of, schema_of, send

resources = resource("machines", "Machines and images, found on hosts, protected or not.")
Which: Final = schema_of(Machine, "Machine", change={"tags": Annotated[list[str], BeforeValidator(sorted)]})


class WatchedOut(Out):
    """How old its newest restore point may be, by the strictest of its policies."""

    policy: str
    rpo_s: Annotated[timedelta, PlainSerializer(lambda rpo: rpo // timedelta(seconds=1), return_type=int)] = Field(
        validation_alias="rpo"
    )
    since_utc: datetime
    misses_utc: datetime
    has_point: bool
    paused: bool


MachineListed: Final = schema_of(
    MachineRow, "ListedMachine", change={"machine": Which, "watched": WatchedOut | None}, add={"key": str}
)
MachineListedPage: Final = page_of(MachineListed)
MachineSeen: Final = schema_of(MachinePage, "MachineSeen", change={"row": MachineListed}, names={"Proof": Proof})
Inventory: Final = schema_of(KnownMachines, "Inventory")


class LookOut(Out):
    """How asking a host went."""

    host: str
    asked_utc: datetime
    machines: int
    error: str | None = Field(description="Why it did not tell; what was last seen stays then.")


LookList: Final = list_of(LookOut)
Pause: Final = schema_of(MachinePause, "Pause")
PauseList: Final = list_of(Pause)


class Key(BaseModel):
    key: str = Field(min_length=1, max_length=600, description="vm:UUID or image:NAME.")


class MachineQuery(Paged):
    text: str = Field("", max_length=200, description="In the name, or the beginning of the UUID.")
    host: str | None = Field(None, max_length=64)
    kind: Kind | None = None
    tag: str | None = Field(None, max_length=200)
    policy: str | None = Field(None, max_length=64)
    standing: list[Standing] = Field([], description="Only those; may be given several times.")
    state: MachineState | None = None
    missed: bool = Field(False, description="Only those that have missed their RPO.")
    failed: bool = Field(False, description="Only those whose last run failed.")
    sort: Sort = Sort.NAME
    falling: bool = False


class OfHost(BaseModel):
    host: str | None = Field(None, max_length=64)


class NewPause(In):
    machine: str = Field(min_length=1, max_length=1024, description="A name, a UUID, vm:UUID or image:NAME.")
    host: str | None = Field(None, min_length=1, max_length=64)


@resources.get("/machines", summary="Machines and images", responses={200: MachineListedPage})
@act(Act.MACHINE_SEE)
def list_machines(query: MachineQuery) -> Response:
    wanted = MachineFilter(
        query.text, query.host, query.kind, query.tag, query.policy, frozenset(query.standing), query.state,
        query.missed, query.failed,
    )  # fmt: skip
    page = browsing().machines(
        wanted, query.sort, falling=query.falling, after=query.after, limit=query.limit, may_see=visible()
    )
    return send_page(MachineListedPage, page)


@resources.get("/machines/<path:key>", summary="A machine", responses={200: MachineSeen})
@act(Act.MACHINE_SEE)
def show_machine(path: Key) -> Response:
    """One that who asks may not see is not there."""
    found = browsing().machine(path.key)
    looking(Subject.of_machine(found.row.machine))
    return send(MachineSeen, found)


@resources.get("/inventory", summary="Machines as hosts were last seen, with their disks", responses={200: Inventory})
@act(Act.MACHINE_SEE)
def show_inventory(query: OfHost) -> Response:
    """Of this appliance's hosts; none is asked now. `looks`: how that went, by host."""
    may_see = visible()
    found = InventoryService(appliance()).known(query.host)
    if may_see is not None:
        machines = tuple(each for each in found.machines if may_see(each.machine))
        hosts = {each.seen.host for each in machines}
        found = KnownMachines(machines, tuple(look for look in found.looks if look.host in hosts))
    return send(Inventory, found)


@resources.post("/inventory/refresh", summary="Ask all hosts now", responses={200: LookList})
@act(Act.INVENTORY_REFRESH)
def refresh_inventory() -> Response:
    """It waits for them, those that do not answer until their time-out. `strongroom serve` asks by itself, too."""
    with performing():
        found = SightingService(appliance()).refresh()
    return send(LookList, {"items": [_look(each) for each in found]})


@resources.get("/pauses", summary="Machines of which no policy begins a run", responses={200: PauseList})
@act(Act.POLICY_SEE)
def list_pauses() -> Response:
    looking()
    return send(PauseList, {"items": PolicyService(appliance()).pauses()})


@resources.post("/pauses", summary="Pause a machine", responses={201: Which})
@act(Act.MACHINE_PAUSE)
def pause_machine(body: NewPause) -> Response:
    with performing(subjects().called(body.machine, body.host)):
        return send(Which, PolicyService(appliance()).pause_machine(body.machine, body.host), 201)


@resources.delete("/pauses/<path:key>", summary="Let a machine go on", responses={204: None})
@act(Act.MACHINE_RESUME)
def resume_machine(path: Key, query: OfHost) -> Response:
    """It catches up once. `key` may be a name, too; `host` says of which host, where several have it."""
    with performing(subjects().called(path.key, query.host)):
        PolicyService(appliance()).resume_machine(path.key, query.host)
    return Response(status=204)


def _look(found: Sighting) -> dict[str, object]:
    error = None if found.error is None else str(found.error)
    return {
        "host": found.host.name, "asked_utc": found.asked_utc, "machines": len(found.machines), "error": error
    }  # fmt: skip
