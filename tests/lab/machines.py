"""The Lab: a folder, and the machines defined in it.

The rule: the folder lies where QEMU's user can reach it, and closing the Lab removes it and every machine that bears
its token, whatever state the tests left them in; what could not be removed is raised, after all else was tried. What a
Lab left whose process was killed, the next process with a Lab removes.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import libvirt

from tests.lab import private_libvirtd
from tests.lab.disks import LabDisk, make_blank_disk, make_ext4_disk
from tests.lab.domain import MachineSpec, Ports, machine_xml
from tests.lab.guest import LabGuest
from tests.lab.image import GuestImage, guest_image
from tests.lab.owned import PARENT, OwnedFolder, swept

MIB = 1 << 20
SYSTEM = "qemu:///system"
_FOLDER = "strongroom-lab-"
_TOKEN = "strongroom-test-"


class Lab:
    """Owns its connection, its folder and its machines.

    `uri` may be a private libvirtd's. `virt_type` is QEMU's own emulation unless said otherwise: /dev/kvm may exist
    and still not work. With `exact_names` machines are called what they are called; else a token comes before.
    """

    def __init__(
        self,
        *,
        uri: str = SYSTEM,
        parent: Path = PARENT,
        virt_type: str = "qemu",
        exact_names: bool = False,
    ) -> None:
        # libvirt prints every error to standard error by itself, also those that are expected and handled.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        self.uri = uri
        self._virt_type = virt_type
        self._image: GuestImage | None = None
        self._connected: Any = None
        self._guests: list[LabGuest] = []
        if uri == SYSTEM:
            sweep_once()
        token = secrets.token_hex(3)
        self.token = "" if exact_names else f"{_TOKEN}{token}-"
        self._owned = OwnedFolder(f"{_FOLDER}{token}-", parent)
        self.folder = self._owned.path
        self.folder.chmod(0o755)
        self._given_out: set[Path] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def guests(self) -> Sequence[LabGuest]:
        return tuple(self._guests)

    def connection(self) -> Any:
        """An open virConnect; opened again when the daemon was restarted."""
        if self._connected is not None:
            try:
                if self._connected.isAlive():
                    self._connected.getLibVersion()
                    return self._connected
            except libvirt.libvirtError:
                pass
            with contextlib.suppress(libvirt.libvirtError):
                self._connected.close()
            self._connected = None
        try:
            self._connected = libvirt.open(self.uri)
        except libvirt.libvirtError as err:
            raise RuntimeError(f"{self.uri} does not answer; start it with .ci/services: {err}") from err
        return self._connected

    # --- disks ---------------------------------------------------------------------------------------------------

    def data_disk(self, target: str = "vda", *, name: str | None = None, serial: str | None = None) -> LabDisk:
        """A copy of the recipe's disk: 256 MiB, ext4, about 17 MiB of files, marker "as-built"."""
        path = self.path(f"{name or target}.qcow2")
        shutil.copyfile(self._files().data_disk, path)
        return LabDisk(path, target, serial=serial)

    def ext4_disk(
        self,
        target: str,
        size_bytes: int,
        files: Mapping[str, bytes] | None = None,
        *,
        format: str = "qcow2",
        compat: str | None = None,
        name: str | None = None,
    ) -> LabDisk:
        """A disk of any size with an ext4 file system; without `files`, only a marker "empty"."""
        path = self.path(f"{name or target}.{format}")
        make_ext4_disk(
            path, size_bytes, {"marker": b"empty\n"} if files is None else files, format=format, compat=compat
        )
        return LabDisk(path, target, format)

    def blank_disk(
        self,
        target: str,
        size_bytes: int,
        *,
        format: str = "qcow2",
        compat: str | None = None,
        name: str | None = None,
    ) -> LabDisk:
        """A disk without a file system; the guest can write to /dev/TARGET."""
        path = self.path(f"{name or target}.{format}")
        make_blank_disk(path, size_bytes, format=format, compat=compat)
        return LabDisk(path, target, format)

    def path(self, name: str) -> Path:
        """A path in the folder that was not given out before and that nothing lies at: ask once, keep the answer."""
        path = self.folder / name
        at = 2
        while path in self._given_out or path.exists():
            path = self.folder / f"{at}-{name}"
            at += 1
        self._given_out.add(path)
        return path

    # --- machines ------------------------------------------------------------------------------------------------

    def machine(
        self,
        name: str = "guest",
        *,
        disks: Sequence[LabDisk] | None = None,
        agent: bool = False,
        memory_mib: int = 192,
        cpus: int = 1,
        edit: Callable[[ET.Element], None] | None = None,
    ) -> LabGuest:
        """Define a persistent machine, switched off. Without `disks` it has one data disk, vda.

        `edit` may change the definition (an ElementTree of libvirt's domain XML) before libvirt sees it.
        """
        full_name = self.token + name
        ports = Ports(self.path(f"{name}.console"), self.path(f"{name}.commands"))
        spec = MachineSpec(
            name=full_name,
            kernel=self._shared_copy(self._files().kernel),
            initrd=self._shared_copy(self._files().agent_initrd if agent else self._files().initrd),
            serial_log=ports.serial_log,
            command_socket=ports.command_socket,
            disks=[self.data_disk(name=f"{name}-vda")] if disks is None else disks,
            agent=agent,
            memory_mib=memory_mib,
            cpus=cpus,
            virt_type=self._virt_type,
        )
        definition = machine_xml(spec)
        if edit is not None:
            edit(definition)
        self.connection().defineXML(ET.tostring(definition, encoding="unicode"))
        return self._keep(LabGuest(self.connection, full_name, ports))

    def adopt(self, name: str) -> LabGuest:
        """A machine that the product under test defined from one of ours (recovered, restored); removed on close."""
        return self._keep(LabGuest(self.connection, name))

    def close(self) -> None:
        """Remove every machine, then the folder. Raises what failed, after all was tried."""
        failures: list[Exception] = []
        for find in (lambda: reversed(self._guests), self._others):
            try:
                guests = tuple(find())
            except (libvirt.libvirtError, RuntimeError) as err:
                failures.append(err)
                continue
            for guest in guests:
                try:
                    guest.remove()
                except (libvirt.libvirtError, RuntimeError) as err:
                    failures.append(err)
        self._guests.clear()
        if self._connected is not None:
            with contextlib.suppress(libvirt.libvirtError):
                self._connected.close()
            self._connected = None
        self._owned.remove()
        if failures:
            raise ExceptionGroup("machines of the lab could not be removed", failures)

    def _others(self) -> list[LabGuest]:
        """What the product made of a machine of ours under a name that begins as ours do, and no test came to adopt."""
        if not (self.token and self._guests):
            return []
        names = [domain.name() for domain in self.connection().listAllDomains()]
        return [LabGuest(self.connection, name) for name in names if name.startswith(self.token)]

    def _keep(self, guest: LabGuest) -> LabGuest:
        self._guests.append(guest)
        return guest

    def _files(self) -> GuestImage:
        if self._image is None:
            self._image = guest_image()
        return self._image

    def _shared_copy(self, source: Path) -> Path:
        """In the lab's folder: the project itself may lie in a home that QEMU's user cannot enter."""
        copy = self.folder / source.name
        if not copy.exists():
            shutil.copyfile(source, copy)
        return copy


@functools.cache
def sweep_once() -> None:
    """In this process: it takes a look at every process of the machine where something is left."""
    sweep()


def sweep() -> None:
    """Remove what labs and homes of dead processes have left: their machines first, of the machine's own libvirtd."""
    swept(_FOLDER, before=_remove_machines)
    swept(private_libvirtd.PREFIX)
    swept("strongroom-rig-")


def _remove_machines(folder: Path) -> None:
    token = f"{_TOKEN}{folder.name.removeprefix(_FOLDER).split('-')[0]}-"
    connection = libvirt.open(SYSTEM)
    try:
        for domain in connection.listAllDomains():
            if domain.name().startswith(token):
                with contextlib.suppress(libvirt.libvirtError):  # it has just gone
                    LabGuest(lambda: connection, domain.name()).remove()
    finally:
        connection.close()
