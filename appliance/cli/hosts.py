"""`strongroom host`: hypervisors, reached through libvirt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from appliance.cli.output import confirm, emit_json, facts, moment, say, table, tell, warn
from appliance.cli.session import EXIT_PARTLY, Session, exit_with, json_option, pass_session, yes_option

if TYPE_CHECKING:
    from appliance.hypervisor.protocol import HostConfig
    from appliance.services.inventory import HostReport


@click.group()
def host() -> None:
    """Hosts that run virtual machines."""


@host.command()
@click.argument("name")
@click.argument("uri", required=False)
@click.option("--hostname", metavar="NAME", help="Reach the host over SSH, under this name or address.")
@click.option("--user", metavar="USER", help="The user to log in as (SSH).")
@click.option("--port", metavar="PORT", type=int, help="The SSH port.")
@click.option("--keyfile", metavar="PATH", help="The private key to log in with (SSH).")
@click.option("--known-hosts", metavar="PATH", help="The file with the host's public key (SSH).")
@click.option("--socket", metavar="PATH", help="libvirtd's socket on the host, if it is not at the usual place.")
@click.option("--session", "user_session", is_flag=True, help="The user's own libvirtd instead of the system's.")
@click.option(
    "--accelerator",
    type=click.Choice(["auto", "kvm", "tcg"]),
    default="auto",
    show_default=True,
    help="How recovered machines run there; tcg where KVM is offered but does not work.",
)
@click.option("--timeout", "timeout_s", type=float, metavar="SECONDS", help="How long the host may take to answer.")
@click.option("--no-test", is_flag=True, help="Keep it although it may not answer now.")
@json_option
@pass_session
def add(session: Session, /, name: str, uri: str | None, no_test: bool, as_json: bool, **given: Any) -> None:
    """Add a host, after it has answered.

    It is given as a libvirt URI (qemu:///system, or qemu+ssh://USER@HOST/system, with no parameters but keyfile,
    known_hosts and socket), or as its fields. Everything is checked: a URI can name a command to run, and none is.

    \b
    Examples:
      strongroom host add here qemu:///system
      strongroom host add rack2 --hostname rack2.example.org --user backup --keyfile /root/.ssh/backup
    """
    from appliance.services.inventory import InventoryService

    config = _config(session, name, uri, given)
    report = InventoryService(session.appliance).add_host(config, test=not no_test)
    if as_json:
        emit_json(_json(config) | ({"answered": _report_json(report)} if report else {"answered": None}))
        return
    if report is not None:
        _show(report)
    say(f"Host {name} is added.")


def _config(session: Session, name: str, uri: str | None, given: dict[str, Any]) -> HostConfig:
    from dataclasses import replace

    from appliance.hypervisor.protocol import Accelerator, HostConfig, Transport
    from appliance.hypervisor.uri import check_host, parse_host

    timeout_s = given["timeout_s"] or session.settings().limits.host_timeout_s
    accelerator = Accelerator(given["accelerator"])
    fields = {
        key: given[key]
        for key in ("hostname", "user", "port", "keyfile", "known_hosts", "socket")
        if given[key] is not None
    }
    if uri is not None:
        if fields or given["user_session"]:
            raise click.UsageError("Give a URI or single fields, not both.")
        return replace(parse_host(name, uri, timeout_s=timeout_s), accelerator=accelerator)
    transport = Transport.SSH if "hostname" in fields else Transport.LOCAL
    if transport is Transport.LOCAL and "port" in fields:
        raise click.UsageError("--port goes with --hostname.")
    return check_host(
        HostConfig(
            name, transport, session=given["user_session"], accelerator=accelerator, timeout_s=timeout_s, **fields
        )
    )


@host.command("list")
@json_option
@pass_session
def list_hosts(session: Session, as_json: bool) -> None:
    """List the hosts that are known.

    \b
    Example:
      strongroom host list --json
    """
    from appliance.services.inventory import InventoryService

    records = InventoryService(session.appliance).hosts()
    if as_json:
        emit_json([_json(record.config) | {"added_utc": record.added_utc} for record in records])
        return
    table(
        ["name", "transport", "address", "accelerator", "added"],
        [(r.name, r.config.transport, _address(r.config), r.config.accelerator, moment(r.added_utc)) for r in records],
        empty="No host is known: add one with 'strongroom host add NAME qemu:///system'.",
    )


def _address(config: HostConfig) -> str:
    where = config.socket or ("session" if config.session else "system")
    if not config.hostname:
        return where
    user = f"{config.user}@" if config.user else ""
    return f"{user}{config.hostname}:{config.port} {where}"


def _json(config: HostConfig) -> dict[str, object]:
    return {
        "name": config.name,
        "transport": config.transport.value,
        "hostname": config.hostname or None,
        "user": config.user or None,
        "port": config.port if config.hostname else None,
        "keyfile": config.keyfile or None,
        "known_hosts": config.known_hosts or None,
        "socket": config.socket or None,
        "session": config.session,
        "accelerator": config.accelerator.value,
        "timeout_s": config.timeout_s,
    }


@host.command()
@click.argument("name")
@json_option
@pass_session
def test(session: Session, name: str, as_json: bool) -> None:
    """Connect to a host, and show what it is.

    \b
    Example:
      strongroom host test here
    """
    from appliance.services.inventory import InventoryService

    report = InventoryService(session.appliance).test_host(name)
    if as_json:
        emit_json({"name": name} | _report_json(report))
        return
    _show(report)


def _show(report: HostReport) -> None:
    found = report.facts
    facts(
        [
            ("host", f"{report.config.name} ({found.hostname}, {found.architecture})"),
            ("libvirt", found.libvirt_version),
            ("hypervisor", f"{found.hypervisor} {found.hypervisor_version}"),
            ("machines run with", found.accelerator.value),
            ("machines", report.machines),
            ("answered in", f"{report.answered_s * 1000:.0f} ms"),
        ]
    )


def _report_json(report: HostReport) -> dict[str, object]:
    found = report.facts
    return {
        "hostname": found.hostname,
        "architecture": found.architecture,
        "libvirt_version": found.libvirt_version,
        "hypervisor": found.hypervisor,
        "hypervisor_version": found.hypervisor_version,
        "kvm": found.kvm,
        "accelerator": found.accelerator.value,
        "machines": report.machines,
        "answered_ms": round(report.answered_s * 1000),
    }


@host.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Also give up what is owed to it: for a host that is gone for good.")
@yes_option
@pass_session
def remove(session: Session, name: str, force: bool, yes: bool) -> None:
    """Forget a host. Its machines and all restore points stay.

    Refused while a machine runs on it out of the repository, or something is still to be thawed or cleaned up there.
    With --force that is named and given up: exports end, restore points are let go of, and nothing on the host is
    touched, nor what recovered machines wrote.

    \b
    Examples:
      strongroom host remove rack2 --yes
      strongroom host remove burnt-down --force
    """
    from appliance.services.inventory import InventoryService

    service = InventoryService(session.appliance)
    debts = service.debts(name)
    if force:
        for debt in debts:
            warn(debt)
    also = ", and give up for good what is named above" if force and debts else ""
    confirm(f"Forget how to reach host {name}{also}?", yes)
    service.remove_host(name, force=force)
    say(f"Host {name} is removed.")
    if also:
        tell("What recovered machines wrote is left where it is: 'strongroom recovery list' names the folders.")


@host.command("forget-checkpoints")
@click.argument("vm", metavar="VM")
@click.option("--host", "host_name", metavar="HOST", help="The host that runs it, if several have one of that name.")
@click.option("--others", is_flag=True, help="Also those of other backup tools, which then read everything too.")
@yes_option
@pass_session
def forget_checkpoints(session: Session, vm: str, host_name: str | None, others: bool, yes: bool) -> None:
    """Delete the change tracking of a machine, so that its internal snapshots can be reverted.

    libvirt cannot revert an internal snapshot while a dirty bitmap exists, and leaves the machine off. The next backup
    reads the machine in full; what is in the repository already is not stored again. What other backup tools made
    stays, unless --others is given.

    \b
    Examples:
      strongroom host forget-checkpoints web-1
      strongroom host forget-checkpoints web-1 --others
    """
    from appliance.services.inventory import InventoryService

    whose = "everybody's change tracking" if others else "the change tracking"
    confirm(f"Delete {whose} of {vm}? Its next backup reads everything.", yes)
    done = InventoryService(session.appliance).forget_checkpoints(vm, host_name, others=others)
    say(f"{vm}: {len(done.deleted)} checkpoint{'' if len(done.deleted) == 1 else 's'} deleted.")
    for name in done.deleted:
        tell(f"  {name}")
    if done.left:
        warn(
            f"other tools still track {vm}, so that its snapshots cannot be reverted: {', '.join(done.left)} (--others)"
        )
        exit_with(EXIT_PARTLY)
