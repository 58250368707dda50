"""libvirt as a hypervisor: puts the parts together, and answers what the host itself can do.

The rule: KVM is probed, never assumed; what cannot be learned of a host is said, not guessed.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from appliance.hypervisor.agents import LibvirtAgents
from appliance.hypervisor.backups import LibvirtBackups
from appliance.hypervisor.bitmaps import Qcow2Bitmaps
from appliance.hypervisor.block_jobs import LibvirtBlockJobs
from appliance.hypervisor.calls import Handle, Refused
from appliance.hypervisor.checkpoints import LibvirtCheckpoints
from appliance.hypervisor.connection import Connection
from appliance.hypervisor.errors import HypervisorError
from appliance.hypervisor.local_files import LocalFiles
from appliance.hypervisor.machines import LibvirtMachines
from appliance.hypervisor.overlays import Qcow2Overlays
from appliance.hypervisor.protocol import (
    Accelerator,
    HostConfig,
    HostFacts,
    HostFiles,
    Hypervisor,
    QemuIdentity,
    Transport,
)
from appliance.hypervisor.ssh import SshHost, SshTools
from appliance.hypervisor.ssh_files import SshFiles
from appliance.hypervisor.storage import LibvirtStorage
from appliance.hypervisor.tools import LocalTools, Tools
from appliance.hypervisor.uri import check_host, libvirt_uri


def connect(config: HostConfig, *, runtime: Path | None = None, handle: type[Handle] = Handle) -> LibvirtHypervisor:
    """A connected host, to be closed by the caller (`with`). HostUnreachable when it does not answer in time.

    `runtime`: a folder with a short path, for sockets carried from a host over SSH. `handle`: how libvirt
    objects are called; tests pass one that fails calls.
    """
    hypervisor = LibvirtHypervisor(config, runtime=runtime, handle=handle)
    try:
        hypervisor.check()
    except BaseException:
        hypervisor.close()
        raise
    return hypervisor


class LibvirtHypervisor:
    """Implements protocol.Hypervisor. Owns its connection."""

    def __init__(self, config: HostConfig, *, runtime: Path | None = None, handle: type[Handle] = Handle) -> None:
        self.host = check_host(config)
        self._resources = ExitStack()
        self.files: HostFiles
        tools: Tools
        if config.transport is Transport.SSH:
            remote = self._resources.enter_context(SshHost(config, runtime))
            self.files, tools = SshFiles(remote, self._identify), SshTools(remote)
            address = remote.libvirt_address
        else:
            self.files, tools = LocalFiles(self._identify), LocalTools()

            def address() -> str:
                return libvirt_uri(config)

        self._connection = Connection(
            config.name, address, config.timeout_s, keepalive=config.transport is not Transport.TEST, handle=handle
        )
        self._resources.callback(self._connection.close)
        self.storage = LibvirtStorage(self._connection)
        self.machines = LibvirtMachines(self._connection, self.files, self.storage.volume_path)
        self.bitmaps = Qcow2Bitmaps(tools, self.files)
        self.overlays = Qcow2Overlays(tools, self.files)
        self.checkpoints = LibvirtCheckpoints(self._connection, self.machines, self.bitmaps)
        self.backups = LibvirtBackups(self._connection, self.machines, self.files)
        self.agents = LibvirtAgents(self._connection)
        self.block_jobs = LibvirtBlockJobs(self._connection)

    def check(self) -> None:
        """That the host answers."""
        self._connection.handle().call("getLibVersion")

    def facts(self) -> HostFacts:
        connection = self._connection.handle()
        root = ET.fromstring(connection.call("getCapabilities"))  # noqa: S314 - libvirtd's own words
        architecture = root.findtext("host/cpu/arch") or ""
        # libvirt only names a virtual type that it found usable: no kvm here means that guests would not start.
        types = {
            domain.get("type", "")
            for guest in root.findall("guest")
            for domain in guest.findall("arch/domain")
            if (arch := guest.find("arch")) is not None and arch.get("name") == architecture
        }
        kvm = "kvm" in types and self._kvm_usable(connection, architecture)
        tcg = "qemu" in types
        preferred = self.host.accelerator
        if preferred is Accelerator.AUTO:
            preferred = Accelerator.KVM if kvm else Accelerator.TCG
        return HostFacts(
            hostname=str(connection.call("getHostname")),
            libvirt_version=_version(connection.call("getLibVersion")),
            hypervisor=str(connection.call("getType")),
            hypervisor_version=_version(connection.call("getVersion")),
            architecture=architecture,
            kvm=kvm,
            tcg=tcg,
            accelerator=preferred,
        )

    def _kvm_usable(self, connection: Handle, architecture: str) -> bool:
        try:
            connection.call("getDomainCapabilities", None, architecture, None, "kvm", 0)
        except Refused:
            return False
        return True

    def _identify(self) -> QemuIdentity:
        """Who QEMU runs as: the base label of libvirt's own access control, like +64055:+64055."""
        root = ET.fromstring(self._connection.handle().call("getCapabilities"))  # noqa: S314 - libvirtd's own words
        for model in root.findall("host/secmodel"):
            label = model.findtext("baselabel") or ""
            if model.findtext("model") == "dac" and label:
                uid, _, gid = label.partition(":")
                return QemuIdentity(int(uid.lstrip("+")), int(gid.lstrip("+")))
        raise HypervisorError(
            f"host {self.host.name} does not tell which user its machines run as",
            hint="Set user and group in /etc/libvirt/qemu.conf there, and keep security_driver with dac.",
        )

    def close(self) -> None:
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _version(number: int) -> str:
    major, rest = divmod(int(number), 1_000_000)
    minor, release = divmod(rest, 1000)
    return f"{major}.{minor}.{release}"


def _conforms(hypervisor: LibvirtHypervisor) -> Hypervisor:
    """Never called: where mypy proves that the driver keeps the protocol."""
    return hypervisor


__all__ = ["LibvirtHypervisor", "connect"]
