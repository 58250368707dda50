"""`strongroom vm`: the machines on the hosts."""

from __future__ import annotations

import click

from appliance.cli.output import emit_json, moment, size, table, tell, warn
from appliance.cli.session import EXIT_FAILED, EXIT_PARTLY, Session, exit_with, json_option, pass_session


@click.group()
def vm() -> None:
    """Virtual machines on the hosts."""


@vm.command("list")
@click.option("--host", metavar="HOST", help="Of this host only.")
@json_option
@pass_session
def list_machines(session: Session, host: str | None, as_json: bool) -> None:
    """List the virtual machines of all hosts, or of one.

    Ends with exit code 3 when some host did not answer, and 1 when none did. Without any host, --json prints [].

    \b
    Examples:
      strongroom vm list
      strongroom vm list --host rack2 --json
    """
    from appliance.services.inventory import InventoryService, NoHosts

    try:
        found = InventoryService(session.appliance).list_machines(host)
    except NoHosts as err:
        if not as_json:
            raise
        emit_json([])
        tell(f"hint: {err}. {err.hint}")
        return
    if as_json:
        emit_json(
            [
                {
                    "name": item.machine.name,
                    "uuid": item.machine.uuid,
                    "host": item.host,
                    "state": item.machine.state.value,
                    "memory_bytes": item.machine.memory_bytes,
                    "vcpus": item.machine.vcpus,
                    "agent": item.machine.agent_connected,
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
                for item in found.machines
            ]
        )
    else:
        table(
            ["name", "host", "state", "disks", "size", "agent", "last point"],
            [
                (
                    item.machine.name,
                    item.host,
                    item.machine.state,
                    " ".join(disk.target for disk in item.machine.disks),
                    size(sum(disk.size_bytes or 0 for disk in item.machine.disks)),
                    "yes" if item.machine.agent_connected else "no",
                    moment(item.protected.last_point_utc) if item.protected else "never",
                )
                for item in found.machines
            ],
            right=["size"],
            empty="The hosts have no virtual machine.",
        )
    for problem in found.problems:
        warn(problem.error)
    if found.problems:
        exit_with(EXIT_PARTLY if len(found.problems) < len(session.appliance.catalog.hosts.list()) else EXIT_FAILED)
