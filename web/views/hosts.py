"""Hosts: what they answer, adding one with its key shown, testing and removing."""

from __future__ import annotations

from typing import Final

from flask import Blueprint, flash, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from appliance.catalog.errors import RecordExists
from appliance.errors import StrongroomError
from appliance.hypervisor.errors import HypervisorError
from appliance.hypervisor.protocol import Accelerator, HostConfig, Transport
from appliance.services.access import Act, Subject
from appliance.services.host_keys import HostKey, HostKeyIsAnother, HostKeyNotShown, HostKeyService
from appliance.services.inventory import InventoryService
from appliance.services.sightings import SightingService
from web.acts import act
from web.current import appliance, browsing
from web.forms import FormWrong, choice, required, text, whole
from web.guarding import performing, sees

blueprint = Blueprint("hosts", __name__)
_ABOUT_FORM: Final = (FormWrong, HypervisorError, RecordExists, HostKeyNotShown, HostKeyIsAnother)


@blueprint.get("/hosts")
@act(Act.HOST_SEE)
def listing() -> str:
    fleet = browsing().fleet(sees())
    counts: dict[str | None, int] = {}
    for row in fleet.rows:
        counts[row.machine.host] = counts.get(row.machine.host, 0) + 1
    looks = {host.name: host for host in fleet.hosts}
    records = InventoryService(appliance()).hosts()
    return render_template("hosts/listing.html", records=records, looks=looks, counts=counts, title="Hosts")


@blueprint.get("/host/new")
@act(Act.HOST_ADD)
def form() -> str:
    return _form()


@blueprint.post("/hosts")
@act(Act.HOST_ADD)
def add() -> Response | str:
    try:
        config = _config()
        if config.transport is Transport.SSH and not config.known_hosts and not request.form.get("fingerprint"):
            return _form(keys=HostKeyService(appliance()).shown(config))
        with performing(Act.HOST_ADD, Subject("host", config.name, config.name), {"hostname": config.hostname}):
            if config.transport is Transport.SSH and not config.known_hosts:
                config = HostKeyService(appliance()).trust(config, request.form["fingerprint"])
            report = InventoryService(appliance()).add_host(config)
    except _ABOUT_FORM as err:
        return _form(err)
    found = "" if report is None else f" It answered in {report.answered_s:.1f} s and has {_machines(report.machines)}."
    flash(f"Host {config.name} is added.{found}", "good")
    return redirect(url_for("hosts.listing"))


@blueprint.post("/hosts/look")
@act(Act.INVENTORY_REFRESH)
def look() -> Response:
    with performing(Act.INVENTORY_REFRESH):
        found = SightingService(appliance()).refresh()
    away = [each.host.name for each in found if each.error is not None]
    if away:
        flash(f"{', '.join(away)} did not answer.", "warn")
    else:
        flash("All hosts answered.", "good")
    return redirect(url_for("machines.listing"))


@blueprint.post("/hosts/<name>/test")
@act(Act.HOST_TEST)
def test(name: str) -> Response:
    with performing(Act.HOST_TEST, Subject("host", name, name)):
        report = InventoryService(appliance()).test_host(name)
    facts = report.facts
    flash(
        f"{name} answered in {report.answered_s:.1f} s: {facts.hostname}, {_machines(report.machines)}; what is"
        f" recovered there runs by {facts.accelerator}.", "good",
    )  # fmt: skip
    return redirect(url_for("hosts.listing"))


@blueprint.post("/hosts/<name>/remove")
@act(Act.HOST_REMOVE)
def remove(name: str) -> Response:
    with performing(Act.HOST_REMOVE, Subject("host", name, name)):
        InventoryService(appliance()).remove_host(name)
    flash(f"Host {name} is removed; restore points of its machines stay.", "good")
    return redirect(url_for("hosts.listing"))


def _machines(many: int) -> str:
    return f"{many} machine{'' if many == 1 else 's'}"


def _form(wrong: StrongroomError | None = None, keys: tuple[HostKey, ...] = ()) -> str:
    """`keys`: those that the host shows, of which one is to be trusted."""
    given = request.form if request.method == "POST" else {"name": "here", "where": "local"}
    return render_template(
        "hosts/form.html", given=given, wrong=wrong, keys=keys, accelerators=Accelerator, title="New host"
    )


def _config() -> HostConfig:
    """HostFieldRefused is told by the service; FormWrong."""
    given = request.form
    name = required(given, "name", most=100)
    timeout_s = appliance().settings.limits.host_timeout_s
    accelerator = choice(given, "accelerator", Accelerator) or Accelerator.AUTO
    if given.get("where") != "ssh":
        return HostConfig(name, Transport.LOCAL, accelerator=accelerator, timeout_s=timeout_s)
    port = whole(given, "port", 1, 65535)
    return HostConfig(
        name, Transport.SSH, hostname=required(given, "hostname", most=300), user=text(given, "user", most=100),
        port=22 if port is None else port, keyfile=text(given, "keyfile"), known_hosts=text(given, "known_hosts"),
        accelerator=accelerator, timeout_s=timeout_s,
    )  # fmt: skip
