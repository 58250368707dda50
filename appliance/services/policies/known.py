"""The machines and images that policies can select, as the catalog knows them: no host is asked.

The rule: a machine is selected by what was last seen of it, also while its host is away. What has restore points is
known for as long as it has them, also when its machine is gone, so that its retention goes on, though without tags. A
machine that runs out of the repository is none to be backed up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.catalog.machines import SeenRow, SeriesRow
from appliance.models import MachineRecord
from appliance.policy.selectors import Kind, Machine

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance


def known_machines(appliance: Appliance) -> tuple[Machine, ...]:
    """Of all appliances that share the catalog, each once. CatalogError."""
    return _known(appliance, None)


def known_machine(appliance: Appliance, key: str) -> Machine | None:
    """The one of this key, if it is known. CatalogError."""
    return next(iter(_known(appliance, key)), None)


def _known(appliance: Appliance, key: str | None) -> tuple[Machine, ...]:
    seen, series = appliance.catalog.machines.selectable(key)
    there = {machine_of_host(each): each.recovered for each in seen}
    recovered = {machine.key for machine, is_recovered in there.items() if is_recovered}
    found = [*(machine_of(each) for each in series), *there]
    return tuple({machine.key: machine for machine in found if machine.key not in recovered}.values())


def machine_of_host(seen: SeenRow) -> Machine:
    return Machine(Kind.VM, seen.uuid, seen.name, seen.host, frozenset(seen.tags))


def machine_of(record: MachineRecord | SeriesRow) -> Machine:
    """A series of restore points as what can be selected; its tags are not known by that."""
    if record.kind == Kind.IMAGE:
        return Machine(Kind.IMAGE, record.name, record.name)
    return Machine(Kind.VM, record.uuid or record.name, record.name, record.host, tags_known=False)
