"""Life cycle of machines.

The rule: what is so already is not an error (off, undefined), what cannot be done now says why, and nothing is ever
undefined together with its disks.
"""

from __future__ import annotations

import builtins
import os
import socket
from collections.abc import Callable

import libvirt

from appliance.hypervisor.calls import Domain, Refused
from appliance.hypervisor.connection import Connection
from appliance.hypervisor.domain_xml import parse_xml
from appliance.hypervisor.errors import HypervisorError, MachineInState, MachineNotFound, ScreenUnavailable
from appliance.hypervisor.inventory import VolumePath, read_machine, read_state, unreadable_machine
from appliance.hypervisor.protocol import Attached, DiskError, HostFiles, MachineInfo, Screenshot, StateInfo

_MAX_SCREENSHOT_BYTES = 64 * 1024 * 1024


class LibvirtMachines:
    """Implements protocol.Machines. Borrows all it is given."""

    def __init__(self, connection: Connection, files: HostFiles, volume_path: VolumePath) -> None:
        self._connection = connection
        self._files = files
        self._volume_path = volume_path

    def list(self) -> tuple[MachineInfo, ...]:
        found: builtins.list[MachineInfo] = []
        for domain in self._connection.patiently(self._connection.domains):
            try:
                found.append(self._read(domain))
            except MachineNotFound:
                continue  # it went away while the others were looked at
        return tuple(sorted(found, key=lambda machine: machine.name))

    def _read(self, domain: Domain) -> MachineInfo:
        """Whatever is wrong with one machine hides no other."""
        try:
            return read_machine(domain, self._files, self._volume_path)
        except MachineNotFound:
            raise
        except HypervisorError as error:
            return unreadable_machine(domain, str(error))

    def get(self, machine: str) -> MachineInfo:
        return self._connection.patiently(
            lambda: read_machine(self._connection.domain(machine), self._files, self._volume_path)
        )

    def exists(self, machine: str) -> bool:
        try:
            self._connection.patiently(lambda: self._connection.domain(machine))
        except MachineNotFound:
            return False
        return True

    def state(self, machine: str) -> StateInfo:
        return self._connection.patiently(lambda: read_state(self._connection.domain(machine)))

    def define(self, xml: str) -> str:
        parse_xml(xml)
        connection = self._connection.handle()
        # Not validated against libvirt's schema: a recovery must not fail of what an older or newer libvirt wrote.
        raw = connection.call("defineXML", xml)
        return str(raw.UUIDString())

    def undefine(self, machine: str, *, keep_nvram: bool = False) -> None:
        try:
            domain = self._connection.domain(machine)
        except MachineNotFound:
            return
        if not domain.persistent():
            return
        flags = (
            libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
            | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
            | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        )
        keep, drop = libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM, libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
        flags |= keep if keep_nvram else drop
        keep, drop = libvirt.VIR_DOMAIN_UNDEFINE_KEEP_TPM, libvirt.VIR_DOMAIN_UNDEFINE_TPM
        tpm = keep if keep_nvram else drop
        try:
            domain.undefine(flags | tpm)
        except Refused as error:
            # libvirt before 8.9 knows no TPM flag.
            if error.code not in (libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED):
                raise
            domain.undefine(flags)

    def attached(self, machine: str) -> Attached:
        domain = self._connection.domain(machine)
        return Attached(tuple(sorted(domain.snapshot_names())), domain.has_saved_state())

    def start(self, machine: str, *, paused: bool = False) -> None:
        flags = libvirt.VIR_DOMAIN_START_PAUSED if paused else 0
        self._change(machine, "start", lambda: self._connection.domain(machine).start(flags))

    def resume(self, machine: str) -> None:
        self._change(machine, "resume", self._connection.domain(machine).resume)

    def suspend(self, machine: str) -> None:
        self._change(machine, "suspend", self._connection.domain(machine).suspend)

    def shutdown(self, machine: str) -> None:
        self._change(machine, "shut down", self._connection.domain(machine).shutdown)

    def destroy(self, machine: str) -> None:
        domain = self._connection.domain(machine)
        try:
            domain.destroy()
        except Refused as error:
            if error.code != libvirt.VIR_ERR_OPERATION_INVALID or domain.active():
                raise  # otherwise it was off already

    def _change(self, machine: str, operation: str, change: Callable[[], None]) -> None:
        try:
            change()
        except Refused as error:
            if error.code == libvirt.VIR_ERR_OPERATION_INVALID:
                raise MachineInState(machine, operation, error.words) from error
            raise

    def set_autostart(self, machine: str, autostart: bool) -> None:
        self._connection.domain(machine).set_autostart(autostart)

    def disk_errors(self, machine: str) -> tuple[DiskError, ...]:
        found = self._connection.patiently(lambda: self._connection.domain(machine).disk_errors())
        return tuple(
            DiskError(target, no_space=kind == libvirt.VIR_DOMAIN_DISK_ERROR_NO_SPACE)
            for target, kind in sorted(found.items())
        )

    def screenshot(self, machine: str) -> Screenshot:
        connection = self._connection.handle()
        stream = connection.call("newStream", 0)
        data = bytearray()

        def take(_stream: object, block: bytes, _opaque: object) -> None:
            if len(data) + len(block) > _MAX_SCREENSHOT_BYTES:
                raise HypervisorError(f"the screenshot of {machine} is larger than {_MAX_SCREENSHOT_BYTES} bytes")
            data.extend(block)

        mime_type = self._connection.domain(machine).screenshot(stream, 0)
        receiving = connection.sub(stream)
        receiving.call("recvAll", take, None)
        receiving.call("finish")
        return Screenshot(mime_type, bytes(data))

    def open_screen(self, machine: str) -> socket.socket:
        if not self._files.local:
            raise ScreenUnavailable(machine, f"host {self._connection.host} is reached over SSH")
        domain = self._connection.domain(machine)
        if not domain.active():
            raise MachineInState(machine, "opening its screen", "it is off")
        kinds = [graphics.get("type") for graphics in parse_xml(domain.xml(0)).findall("devices/graphics")]
        if "vnc" not in kinds:
            raise ScreenUnavailable(machine, "it has none that speaks VNC")
        try:
            opened = domain.open_graphics(kinds.index("vnc"), libvirt.VIR_DOMAIN_OPEN_GRAPHICS_SKIPAUTH)
        except Refused as error:
            raise ScreenUnavailable(machine, error.words) from error
        try:
            return socket.socket(fileno=opened)
        except OSError as error:
            os.close(opened)
            raise ScreenUnavailable(machine, "what libvirt opened is no socket") from error
