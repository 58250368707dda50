"""Hosts that run virtual machines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, Literal

from flask import Response
from pydantic import BaseModel, Field, model_validator

from appliance.hypervisor.protocol import Accelerator, HostConfig, HostFacts, Transport
from appliance.hypervisor.uri import check_host, parse_host
from appliance.models import HostRecord
from appliance.services.access import Act, Subject
from appliance.services.inventory import HostReport, InventoryService
from web.acts import act
from web.api.callers import appliance, looking, performing
from web.api.resources import Name, resource
from web.api.schemas import In, list_of, schema_of, send, values_of

resources = resource("hosts", "Hosts that run virtual machines.")
_Config: Final = schema_of(HostConfig, "HostConfig")
Host: Final = schema_of(HostRecord, "Host", change={"config": _Config}, add={"name": str})
HostList: Final = list_of(Host)


_Facts: Final = schema_of(HostFacts, "HostFacts")
Report: Final = schema_of(HostReport, "HostReport", leave_out=frozenset({"config"}), change={"facts": _Facts})


class HostAdded(Host):  # type: ignore[misc,valid-type]
    answered: Report | None = Field(description="What it answered; null: it was not asked.")  # type: ignore[valid-type]


class NewHost(In):
    """As a URI, or as fields; everything is checked, as a URI can name a command to run."""

    name: str = Field(min_length=1, max_length=64)
    uri: str | None = Field(None, max_length=1000, examples=["qemu:///system", "qemu+ssh://backup@rack2/system"])
    hostname: str | None = Field(None, min_length=1, max_length=255, description="Reach it over SSH.")
    user: str | None = Field(None, max_length=64)
    port: int | None = Field(None, ge=1, le=65535)
    keyfile: str | None = Field(None, max_length=1000, description="A private key, on the appliance.")
    known_hosts: str | None = Field(None, max_length=1000)
    socket: str | None = Field(None, max_length=1000)
    session: bool = False
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    timeout_s: float | None = Field(None, ge=1, le=600)
    test: bool = Field(True, description="It is kept once it has answered; false: although it may not answer now.")

    @model_validator(mode="after")
    def _one(self) -> NewHost:
        if self.uri is not None and (self.fields or self.session):
            raise ValueError("give a URI or single fields, not both")
        if self.port is not None and self.hostname is None:
            raise ValueError("port goes with hostname")
        return self

    @property
    def fields(self) -> dict[str, Any]:
        return self.model_dump(
            include={"hostname", "user", "port", "keyfile", "known_hosts", "socket"}, exclude_none=True
        )


class Force(BaseModel):
    force: bool = Field(False, description="It is gone for good: what is owed to it is given up.")


@resources.get("/hosts", summary="Hosts", responses={200: HostList})
@act(Act.HOST_SEE)
def list_hosts() -> Response:
    looking()
    return send(HostList, {"items": InventoryService(appliance()).hosts()})


@resources.post("/hosts", summary="Add a host", responses={201: HostAdded})
@act(Act.HOST_ADD)
def add_host(body: NewHost) -> Response:
    config = _config(body)
    with performing(Subject("host", body.name, body.name), test=body.test):
        report = InventoryService(appliance()).add_host(config, test=body.test)
    added = next(each for each in InventoryService(appliance()).hosts() if each.name == body.name)
    return send(HostAdded, values_of(Host, added) | {"answered": report}, 201)


@resources.post("/hosts/<name>/test", summary="Ask a host whether it answers", responses={200: Report})
@act(Act.HOST_TEST)
def test_host(path: Name) -> Response:
    with performing(Subject("host", path.name, path.name)):
        return send(Report, InventoryService(appliance()).test_host(path.name))


@resources.delete("/hosts/<name>", summary="Forget how to reach a host", responses={204: None})
@act(Act.HOST_REMOVE)
def remove_host(path: Name, query: Force) -> Response:
    """Its restore points stay."""
    with performing(Subject("host", path.name, path.name), force=query.force) as doing:
        dropped = InventoryService(appliance()).remove_host(path.name, force=query.force)
        doing.note(dropped=list(dropped))
    return Response(status=204)


def _config(body: NewHost) -> HostConfig:
    """HostFieldRefused."""
    accelerator = Accelerator(body.accelerator)
    timeout_s = body.timeout_s or appliance().settings.limits.host_timeout_s
    if body.uri is not None:
        return replace(parse_host(body.name, body.uri, timeout_s=timeout_s), accelerator=accelerator)
    transport = Transport.LOCAL if body.hostname is None else Transport.SSH
    return check_host(
        HostConfig(
            body.name, transport, session=body.session, accelerator=accelerator, timeout_s=timeout_s, **body.fields
        )
    )
