"""Every libvirt call the appliance makes, and the translation of what libvirt says when it refuses.

The rule: a libvirt object is only touched through `Handle.call`, so that one place translates errors and a test can
fail any call by its name (`Connection(..., handle=FailingHandle)`). `Domain` lists the calls on a machine; a call not
listed there is not made.
"""

from __future__ import annotations

from typing import Any

import libvirt

from appliance.hypervisor.errors import HostUnreachable, HypervisorError, MachineBusy, MachineNotFound

# The connection itself broke: whatever was asked may or may not have happened.
_BROKEN = frozenset(
    {
        libvirt.VIR_ERR_NO_CONNECT,
        libvirt.VIR_ERR_INVALID_CONN,
        libvirt.VIR_ERR_RPC,
        libvirt.VIR_ERR_AUTH_UNAVAILABLE,
        libvirt.VIR_ERR_AUTH_FAILED,
    }
)
# What the server could not put into a message: a definition is kept although it is larger than one may be.
_TOO_LARGE = "encode message payload"


class Refused(HypervisorError):
    """libvirt said no; `code` is for this package's own decisions, `words` are libvirt's."""

    def __init__(self, subject: str, call: str, code: int, words: str) -> None:
        super().__init__(
            f"{subject}: libvirt refused {call}: {words}",
            hint="The hypervisor's log (libvirtd, and /var/log/libvirt/qemu/MACHINE.log) has the details.",
            call=call,
            code=code,
        )
        self.code = code
        self.words = words


def words_of(error: libvirt.libvirtError) -> str:
    text = error.get_error_message() or str(error)
    return " ".join(text.split())


def translate(error: libvirt.libvirtError, host: str, subject: str, call: str, alive: bool) -> HypervisorError:
    """libvirt's error as one of ours. `alive`: whether the connection still stands."""
    code = error.get_error_code() or 0
    words = words_of(error)
    if alive and code == libvirt.VIR_ERR_RPC and _TOO_LARGE in words:
        return Refused(subject, call, code, f"the answer is larger than libvirt can send ({words})")
    if not alive or code in _BROKEN or error.get_error_domain() == libvirt.VIR_FROM_RPC:
        return HostUnreachable(host, words)
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return MachineNotFound(host, subject)
    if code == libvirt.VIR_ERR_OPERATION_TIMEOUT and "state change lock" in words:
        return MachineBusy(subject, words)
    return Refused(subject, call, code, words)


class Handle:
    """A libvirt object that is called by name, with its errors translated. Borrows the object."""

    def __init__(self, raw: Any, host: str, subject: str) -> None:
        self._raw = raw
        self._host = host
        self._subject = subject

    def call(self, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self._raw, name)(*arguments)
        except libvirt.libvirtError as error:
            raise translate(error, self._host, self._subject, name, self._alive()) from error

    def sub(self, raw: Any) -> Handle:
        """Another object that came out of a call on this one, in the same dress."""
        return type(self)(raw, self._host, self._subject)

    @property
    def raw(self) -> Any:
        return self._raw

    def _alive(self) -> bool:
        connection = self._raw if isinstance(self._raw, libvirt.virConnect) else self._raw.connect()
        try:
            return bool(connection.isAlive())
        except libvirt.libvirtError:
            return False


class Domain:
    """The calls made on a machine. Arguments and results are libvirt's."""

    def __init__(self, handle: Handle) -> None:
        self._call = handle.call
        self._sub = handle.sub
        self._raw = handle.raw

    # inventory
    def uuid(self) -> str:
        return str(self._call("UUIDString"))

    def name(self) -> str:
        return str(self._call("name"))

    def xml(self, flags: int) -> str:
        return str(self._call("XMLDesc", flags))

    def state(self) -> tuple[int, int]:
        state, reason = self._call("state", 0)
        return int(state), int(reason)

    def active(self) -> bool:
        return bool(self._call("isActive"))

    def id(self) -> int:
        """As of when it was looked up; -1: off."""
        return int(self._call("ID"))

    def persistent(self) -> bool:
        return bool(self._call("isPersistent"))

    def autostart(self) -> bool:
        return bool(self._call("autostart"))

    def snapshot_names(self) -> list[str]:
        return [str(name) for name in self._call("snapshotListNames", 0)]

    def has_saved_state(self) -> bool:
        return bool(self._call("hasManagedSaveImage", 0))

    def disk_size(self, target: str) -> int:
        return int(self._call("blockInfo", target, 0)[0])

    def disk_errors(self) -> dict[str, int]:
        return dict(self._call("diskErrors", 0))

    def screenshot(self, stream: Any, screen: int) -> str:
        return str(self._call("screenshot", stream, screen, 0))

    def open_graphics(self, number: int, flags: int) -> int:
        return int(self._call("openGraphicsFD", number, flags))

    # life cycle
    def start(self, flags: int) -> None:
        self._call("createWithFlags", flags)

    def resume(self) -> None:
        self._call("resume")

    def suspend(self) -> None:
        self._call("suspend")

    def shutdown(self) -> None:
        self._call("shutdown")

    def destroy(self) -> None:
        self._call("destroy")

    def undefine(self, flags: int) -> None:
        self._call("undefineFlags", flags)

    def set_autostart(self, on: bool) -> None:
        self._call("setAutostart", int(on))

    # jobs
    def job_type(self) -> int:
        return int(self._call("jobInfo")[0])

    def job_stats(self) -> dict[str, int]:
        return dict(self._call("jobStats", 0))

    def abort_job(self) -> None:
        self._call("abortJob")

    def backup_begin(self, backup_xml: str, checkpoint_xml: str | None) -> None:
        # Its scratch files are there, as QEMU must not make them: see blank_images.
        flags = libvirt.VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL
        self._call("backupBegin", backup_xml, checkpoint_xml, flags)

    def backup_xml(self) -> str:
        return str(self._call("backupGetXMLDesc", 0))

    # checkpoints
    def checkpoint_create(self, xml: str, flags: int) -> None:
        self._call("checkpointCreateXML", xml, flags)

    def checkpoints(self) -> list[Handle]:
        return [self._sub(raw) for raw in self._call("listAllCheckpoints", 0)]

    def checkpoint(self, name: str) -> Handle:
        return self._sub(self._call("checkpointLookupByName", name, 0))

    # block jobs
    def block_pull(self, disk: str, bandwidth: int, flags: int) -> None:
        self._call("blockPull", disk, bandwidth, flags)

    def block_copy(self, disk: str, destination_xml: str, parameters: dict[str, int], flags: int) -> None:
        self._call("blockCopy", disk, destination_xml, parameters, flags)

    def block_job_info(self, disk: str, flags: int) -> dict[str, int]:
        return dict(self._call("blockJobInfo", disk, flags) or {})

    def block_job_abort(self, disk: str, flags: int) -> None:
        self._call("blockJobAbort", disk, flags)

    def block_job_speed(self, disk: str, bandwidth: int, flags: int) -> None:
        self._call("blockJobSetSpeed", disk, bandwidth, flags)

    # guest agent
    def agent_timeout(self, seconds: int) -> None:
        self._call("agentSetResponseTimeout", seconds, 0)

    def freeze(self) -> int:
        return int(self._call("fsFreeze"))

    def thaw(self) -> int:
        return int(self._call("fsThaw"))
