"""Freeze a guest's file systems for the moment of a backup's begin, and see to it that they are thawed.

The rule: a freeze is a debt, written down before it is asked for and paid only when the agent confirms. A timer thaws
if the begin hangs; the watchdog of the capture thaws if this process dies; a process of its own asks again and again
when the agent does not answer, for a freeze that timed out may still happen; and the next start pays what is owed even
then.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from appliance.catalog.errors import CatalogError
from appliance.hypervisor.protocol import FreezeOutcome, Hypervisor, MachineInfo, MachineState
from appliance.ownership import own
from appliance.services import spawning
from appliance.services.cleaning import freezing

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

CONSISTENCY_APPLICATION = "application"
CONSISTENCY_CRASH = "crash"
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Quiesced:
    """What came of it: the consistency of what was begun meanwhile, and notes for the point."""

    consistency: str = CONSISTENCY_CRASH
    notes: list[str] = field(default_factory=list)


class Quiescer:
    """Freezes and thaws the machines of one host, unless it is `wanted` otherwise. Borrows everything."""

    def __init__(self, appliance: Appliance, hypervisor: Hypervisor, *, wanted: bool = True) -> None:
        self._appliance = appliance
        self._hypervisor = hypervisor
        self._wanted = wanted
        self._settings = appliance.settings.agent

    @contextmanager
    def frozen(self, machine: MachineInfo) -> Iterator[Quiesced]:
        """Freeze, run the body, thaw. A guest without an agent, or whose agent fails, is not frozen, and that is
        noted. To be called under `spawning.watchdog`.
        """
        result = Quiesced()
        if not self._wanted or not machine.agent_channel or machine.state is not MachineState.RUNNING:
            yield result
            return
        try:
            lock = self._appliance.settings.run_directory / f"{freezing(machine.uuid)}.lock"
            with (
                own(lock, f"the guest agent of {machine.name}", wait=True),
                self._appliance.catalog.database.exclusively(freezing(machine.uuid), wait=True) as nobody_else,
            ):
                if nobody_else:
                    yield from self._frozen(machine, result)
                else:
                    result.notes.append("the guest was not frozen: another appliance is at work with its agent")
                    yield result
        finally:
            if self._may_be_owed(machine):
                spawning.pay_debts(self._appliance.settings)

    def _frozen(self, machine: MachineInfo, result: Quiesced) -> Iterator[Quiesced]:
        owed_before = self._is_owed(machine)
        catalog, host = self._appliance.catalog, self._hypervisor.host.name
        catalog.thaws.owe(machine.uuid, host, machine.name, self._appliance.clock.now_utc())
        limit = _Limit(self._settings.longest_freeze_s, lambda: self._thaw(machine, result))
        may_be_frozen = True
        try:
            freeze = self._hypervisor.agents.freeze(machine.uuid, self._settings.freeze_timeout_s)
            may_be_frozen = freeze.thaw_owed or owed_before
            if freeze.outcome is FreezeOutcome.FROZEN:
                result.consistency = CONSISTENCY_APPLICATION
            else:
                result.notes.append(f"the guest was not frozen: {freeze.outcome}: {freeze.detail}")
            yield result
        finally:
            if limit.end():
                result.consistency = CONSISTENCY_CRASH
                result.notes.append(
                    f"the guest was thawed before the backup had begun, which took longer than"
                    f" {self._settings.longest_freeze_s:g} s"
                )
            if may_be_frozen:
                self._thaw(machine, result)
            else:
                self._note(lambda: catalog.thaws.paid(machine.uuid, host))

    def _is_owed(self, machine: MachineInfo) -> bool:
        wanted = (machine.uuid, self._hypervisor.host.name)
        return any((debt.machine_uuid, debt.host) == wanted for debt in self._appliance.catalog.thaws.list())

    def _may_be_owed(self, machine: MachineInfo) -> bool:
        try:
            return self._is_owed(machine)
        except CatalogError:
            return True

    def _thaw(self, machine: MachineInfo, result: Quiesced) -> None:
        """Thaw once; what is not confirmed stays owed."""
        thaws, host = self._appliance.catalog.thaws, self._hypervisor.host.name
        thaw = self._hypervisor.agents.thaw(machine.uuid, self._settings.thaw_timeout_s)
        if thaw.confirmed:
            self._note(lambda: thaws.paid(machine.uuid, host))
        else:
            self._note(lambda: thaws.failed(machine.uuid, host, thaw.detail))
            result.notes.append(f"the guest agent has not confirmed the thaw, which is retried: {thaw.detail}")

    def _note(self, act: Callable[[], None]) -> None:
        """Write down how a thaw went. A catalog that went away keeps the debt: one more thaw than is needed, later, and
        no reason to end a backup whose guest runs again."""
        try:
            act()
        except CatalogError as err:
            _log.warning("the thaw is still recorded as owed: %s", err)


class _Limit:
    """Calls `act` from a thread of its own after `limit_s`, unless it was ended before."""

    def __init__(self, limit_s: float, act: Callable[[], None]) -> None:
        self._act = act
        self._reached = False
        self._timer = threading.Timer(limit_s, self._fire)
        self._timer.daemon = True
        self._timer.start()

    def _fire(self) -> None:
        self._reached = True
        self._act()

    def end(self) -> bool:
        """Whether it was reached; what it then did is over."""
        self._timer.cancel()
        self._timer.join()
        return self._reached
