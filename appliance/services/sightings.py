"""Looking at hosts, and keeping what was seen.

The rule: hosts are looked at several at a time, and what one tells is kept at once, so that one that hangs until its
time-out hides nothing of the others. What could not be asked is kept too: since when, and why.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from appliance.errors import StrongroomError
from appliance.hypervisor.errors import HypervisorError
from appliance.inventory import seen

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from appliance.hypervisor.protocol import MachineInfo
    from appliance.models import HostRecord

_log = logging.getLogger(__name__)
_AT_ONCE: Final = 8
_SHARE: Final = 5  # between two looks it rests this many times as long as the last one took, at least


@dataclass(frozen=True, slots=True)
class Sighting:
    """`error`: why the host did not tell; `machines` is empty then."""

    host: HostRecord
    asked_utc: datetime
    machines: tuple[MachineInfo, ...] = ()
    error: HypervisorError | None = None


class SightingService:
    """Borrows the appliance; connects to a host for one look and closes it again."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance

    def look(self, hosts: Sequence[HostRecord]) -> tuple[Sighting, ...]:
        """At these hosts, in their order; all that they tell is kept in the catalog. CatalogError."""
        found = {}
        for sighting in self._as_they_answer(hosts):
            self._keep(sighting)
            found[sighting.host.name] = sighting
        return tuple(found[host.name] for host in hosts)

    def refresh(self) -> tuple[Sighting, ...]:
        """As `look`, at all hosts of this appliance."""
        return self.look(self._appliance.catalog.hosts.list())

    def keep_looking(self, stop: threading.Event) -> None:
        """At all hosts every `inventory.refresh_s`, until `stop`. A problem is logged once, as long as it lasts."""
        clock, told = self._appliance.clock, frozenset[str]()
        while not stop.is_set():
            began_s = clock.monotonic_s()
            try:
                problems = frozenset(str(each.error) for each in self.refresh() if each.error is not None)
            except StrongroomError as err:
                problems = frozenset({str(err)})
            for problem in sorted(problems - told):
                _log.warning("inventory: %s", problem)
            told = problems
            took_s = clock.monotonic_s() - began_s
            stop.wait(max(self._appliance.settings.inventory.refresh_s, _SHARE * took_s))

    def _as_they_answer(self, hosts: Sequence[HostRecord]) -> Iterator[Sighting]:
        waiting: queue.SimpleQueue[HostRecord] = queue.SimpleQueue()
        answers: queue.SimpleQueue[Sighting | BaseException] = queue.SimpleQueue()
        for host in hosts:
            waiting.put(host)

        def work() -> None:
            try:
                while True:
                    answers.put(self._look_at(waiting.get_nowait()))
            except queue.Empty:
                return
            except BaseException as err:  # noqa: BLE001  (whoever waits for the answers raises it)
                answers.put(err)

        # Daemons: a process that is told to end does not wait for a host that hangs.
        for number in range(min(_AT_ONCE, len(hosts))):
            threading.Thread(target=work, name=f"look-{number}", daemon=True).start()
        for _ in hosts:
            answer = answers.get()
            if isinstance(answer, BaseException):
                raise answer
            yield answer

    def _look_at(self, host: HostRecord) -> Sighting:
        asked = self._appliance.clock.now_utc()
        try:
            with self._appliance.connect_to(host.config) as hypervisor:
                return Sighting(host, asked, hypervisor.machines.list())
        except HypervisorError as err:
            return Sighting(host, asked, error=err)

    def _keep(self, sighting: Sighting) -> None:
        inventory, host = self._appliance.catalog.inventory, sighting.host.name
        if sighting.error is not None:
            inventory.failed(host, str(sighting.error), sighting.error.hint, sighting.asked_utc)
            return
        now = self._appliance.clock.now_utc()
        machines = (seen(host, machine, now) for machine in sighting.machines)
        inventory.answered(host, machines, sighting.asked_utc, now)
