"""Freezing and thawing guests through the guest agent.

The rule: a freeze is a debt until the agent itself says that the guest is thawed. A freeze that timed out may still
happen (an agent that was stopped and goes on executes what waits in its channel), so TIMED_OUT owes a thaw exactly
like FROZEN; only a machine that is off needs none.
"""

from __future__ import annotations

import contextlib
from types import TracebackType

import libvirt

from appliance.hypervisor.calls import Domain, Refused
from appliance.hypervisor.connection import Connection
from appliance.hypervisor.domain_xml import parse_machine
from appliance.hypervisor.errors import HostUnreachable, HypervisorError, MachineBusy, MachineNotFound
from appliance.hypervisor.protocol import FreezeOutcome, FreezeResult, ThawOutcome, ThawResult

_ABSENT = frozenset({libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED, libvirt.VIR_ERR_OPERATION_INVALID})


class LibvirtAgents:
    """Implements protocol.Agents. Borrows the connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def freeze(self, machine: str, timeout_s: int) -> FreezeResult:
        domain = self._connection.domain(machine)
        reason = _why_no_agent(domain)
        if reason:
            return FreezeResult(FreezeOutcome.NO_AGENT, reason)
        try:
            with _Timeout(domain, timeout_s):
                return FreezeResult(FreezeOutcome.FROZEN, "", filesystems=domain.freeze())
        except Refused as error:
            if error.code in _ABSENT:
                return FreezeResult(FreezeOutcome.NO_AGENT, error.words)
            if error.code == libvirt.VIR_ERR_AGENT_UNRESPONSIVE:
                return FreezeResult(FreezeOutcome.TIMED_OUT, error.words)
            return FreezeResult(FreezeOutcome.REFUSED, error.words)
        except (MachineBusy, HostUnreachable) as error:
            # Whether the request went out is not known: owed, as after any other silence.
            return FreezeResult(FreezeOutcome.TIMED_OUT, str(error))

    def thaw(self, machine: str, timeout_s: int) -> ThawResult:
        try:
            domain = self._connection.domain(machine)
            if not domain.active():
                return ThawResult(ThawOutcome.MOOT, "the machine is off")
            with _Timeout(domain, timeout_s):
                domain.thaw()
        except MachineNotFound:
            return ThawResult(ThawOutcome.MOOT, "the machine is gone")
        except HypervisorError as error:
            return ThawResult(ThawOutcome.NOT_CONFIRMED, error.words if isinstance(error, Refused) else str(error))
        return ThawResult(ThawOutcome.THAWED, "")


def _why_no_agent(domain: Domain) -> str:
    if not domain.active():
        return "the machine is off"
    definition = parse_machine(domain.xml(0))
    if not definition.agent_channel:
        return "the machine has no guest agent channel"
    return "" if definition.agent_connected else "no agent is connected in the guest"


class _Timeout:
    """How long libvirt waits for the agent. Put back to libvirt's default afterwards, for others who ask the agent."""

    def __init__(self, domain: Domain, timeout_s: int) -> None:
        self._domain = domain
        self._timeout_s = timeout_s

    def __enter__(self) -> None:
        self._domain.agent_timeout(max(1, self._timeout_s))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The agent's answer, or its silence, is what counts: a machine that went away since needs no setting.
        with contextlib.suppress(HypervisorError):
            self._domain.agent_timeout(libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK)
