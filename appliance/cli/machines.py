"""`strongroom vm`: the machines on the hosts."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from appliance.cli.output import emit_json, moment, size, table, tell, warn
from appliance.cli.session import EXIT_FAILED, EXIT_PARTLY, Session, exit_with, json_option, pass_session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.hypervisor.protocol import MachineState
    from appliance.inventory import KnownMachine
    from appliance.services.inventory import HostedMachine, KnownMachines


@click.group()
def vm() -> None:
    """Virtual machines on the hosts."""


@vm.command("list")
@click.option("--host", metavar="HOST", help="Of this host only.")
@click.option("--known", is_flag=True, help="As last seen, with tags; no host is asked.")
@json_option
@pass_session
def list_machines(session: Session, host: str | None, known: bool, as_json: bool) -> None:
    """List the virtual machines of all hosts, or of one, as they answer now.

    What they tell is kept: --known shows it at any time, also of a host that is away; with --url, that is shown always.
    A machine whose definition cannot be read is listed with the reason. Ends with exit code 3 when there is one or some
    host did not answer, and 1 when none did. Without any host, --json prints [].

    \b
    Examples:
      strongroom vm list
      strongroom vm list --known
      strongroom vm list --host rack2 --json
    """
    from appliance.services.inventory import InventoryService, NoHosts

    service = session.inventory()
    try:
        if known or not isinstance(service, InventoryService):
            _show_known(service.known(host), as_json)
            return
        found = service.list_machines(host)
    except NoHosts as err:
        if not as_json:
            raise
        emit_json([])
        tell(f"hint: {err}. {err.hint}")
        return
    if as_json:
        emit_json([_answered_json(item) for item in found.machines])
    else:
        _show_answered(found.machines)
    unreadable = [item for item in found.machines if item.machine.unreadable]
    for item in unreadable:
        warn(f"{item.machine.name} on {item.host} cannot be read: {item.machine.unreadable}")
    for problem in found.problems:
        warn(problem.error)
    if found.problems:
        exit_with(EXIT_PARTLY if len(found.problems) < len(session.appliance.catalog.hosts.list()) else EXIT_FAILED)
    exit_with(EXIT_PARTLY if unreadable else 0)


def _answered_json(item: HostedMachine) -> dict[str, object]:
    """The form that scripts rely on."""
    return {
        "name": item.machine.name,
        "uuid": item.machine.uuid,
        "host": item.host,
        "state": item.machine.state.value,
        "memory_bytes": item.machine.memory_bytes,
        "vcpus": item.machine.vcpus,
        "agent": item.machine.agent_connected,
        "tags": sorted(item.machine.tags),
        "unreadable": item.machine.unreadable,
        "disks": [
            {
                "name": disk.target,
                "device": disk.device.value,
                "source": disk.source.description,
                "format": disk.format,
                "size_bytes": disk.size_bytes,
                "incremental": disk.can_hold_bitmap,
                "skip_reason": disk.skip_reason,
            }
            for disk in item.machine.disks
        ],
        "last_point": item.protected.last_point if item.protected else None,
        "last_point_utc": item.protected.last_point_utc if item.protected else None,
    }


def _show_answered(machines: Sequence[HostedMachine]) -> None:
    table(
        ["name", "host", "state", "disks", "size", "agent", "last point"],
        [
            (
                item.machine.name,
                item.host,
                _state(item.machine.state, item.machine.unreadable),
                " ".join(disk.target for disk in item.machine.disks),
                size(sum(disk.size_bytes or 0 for disk in item.machine.disks)),
                "yes" if item.machine.agent_connected else "no",
                moment(item.protected.last_point_utc) if item.protected else "never",
            )
            for item in machines
        ],
        right=["size"],
        empty="The hosts have no virtual machine.",
    )


def _state(state: MachineState, unreadable: str | None) -> str:
    return state.value if unreadable is None else f"{state.value}, unreadable"


def _show_known(found: KnownMachines, as_json: bool) -> None:
    """Exit codes as when they are asked: what is shown of a host that is away may be old."""
    if as_json:
        emit_json([_known_json(item) for item in found.machines])
    else:
        table(
            ["name", "host", "state", "disks", "size", "tags", "last point", "seen"],
            [
                (
                    item.seen.name,
                    item.seen.host,
                    _state(item.seen.state, item.seen.unreadable),
                    " ".join(disk.name for disk in item.seen.disks),
                    size(item.seen.size_bytes),
                    " ".join(item.seen.tags),
                    "recovered" if item.recovered else moment(item.last_point_utc) if item.protected else "never",
                    moment(item.seen_utc),
                )
                for item in found.machines
            ],
            right=["size"],
            empty="No virtual machine was seen: 'strongroom vm list' asks the hosts.",
        )
    unreadable = [item.seen for item in found.machines if item.seen.unreadable]
    for seen in unreadable:
        warn(f"{seen.name} on {seen.host} cannot be read: {seen.unreadable}")
    for look in found.away:
        warn(f"{look.error} (since {moment(look.failing_since_utc)})")
    if found.away:
        exit_with(EXIT_PARTLY if len(found.away) < len(found.looks) else EXIT_FAILED)
    exit_with(EXIT_PARTLY if unreadable else 0)


def _known_json(item: KnownMachine) -> dict[str, object]:
    return {
        "name": item.seen.name,
        "uuid": item.seen.uuid,
        "host": item.seen.host,
        "state": item.seen.state.value,
        "memory_bytes": item.seen.memory_bytes,
        "vcpus": item.seen.vcpus,
        "agent": item.seen.agent,
        "tags": list(item.seen.tags),
        "unreadable": item.seen.unreadable,
        "size_bytes": item.seen.size_bytes,
        "disks": [asdict(disk) for disk in item.seen.disks],
        "known_utc": item.seen.known_utc,
        "seen_utc": item.seen_utc,
        "last_point": item.last_point,
        "last_point_utc": item.last_point_utc,
        "recovered": item.recovered,
    }
