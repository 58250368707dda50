"""Storage pools: where a machine's disks may be put, and what a volume's path is."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import libvirt

from appliance.hypervisor.calls import Handle, Refused
from appliance.hypervisor.connection import Connection
from appliance.hypervisor.errors import HypervisorError, StorageNotFound
from appliance.hypervisor.protocol import PoolInfo

_MISSING = frozenset({libvirt.VIR_ERR_NO_STORAGE_POOL, libvirt.VIR_ERR_NO_STORAGE_VOL})


class LibvirtStorage:
    """Implements protocol.Storage. Borrows the connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def pools(self) -> tuple[PoolInfo, ...]:
        connection = self._connection.handle()
        found = (self._describe(connection.sub(raw)) for raw in connection.call("listAllStoragePools", 0))
        return tuple(sorted(found, key=lambda pool: pool.name))

    def pool(self, name: str) -> PoolInfo:
        return self._describe(self._pool(name))

    def volume_path(self, pool: str, volume: str) -> str:
        found = self._pool(pool)
        return str(found.sub(self._volume(found, pool, volume)).call("path"))

    def create_volume(self, pool: str, volume: str, size_bytes: int, format: str) -> str:
        root = ET.Element("volume")
        ET.SubElement(root, "name").text = volume
        ET.SubElement(root, "capacity", unit="bytes").text = str(size_bytes)
        if format == "raw":
            ET.SubElement(root, "allocation", unit="bytes").text = "0"
        target = ET.SubElement(root, "target")
        ET.SubElement(target, "format", type=format)
        if format == "qcow2":
            # libvirt's default is 0.10, which can hold no bitmap: every later backup would read everything.
            ET.SubElement(target, "compat").text = "1.1"
        found = self._pool(pool)
        try:
            made = found.call("createXML", ET.tostring(root, encoding="unicode"), 0)
        except Refused as error:
            if error.code == libvirt.VIR_ERR_STORAGE_VOL_EXIST:
                raise HypervisorError(
                    f"pool {pool} has a volume {volume!r} already", hint="Choose another name, or delete that volume."
                ) from error
            raise
        return str(found.sub(made).call("path"))

    def delete_volume(self, pool: str, volume: str) -> None:
        found = self._pool(pool)
        found.sub(self._volume(found, pool, volume)).call("delete", 0)

    def _pool(self, name: str) -> Handle:
        connection = self._connection.handle()
        try:
            return connection.sub(connection.call("storagePoolLookupByName", name))
        except Refused as error:
            if error.code in _MISSING:
                raise StorageNotFound(self._connection.host, f"storage pool {name!r}") from error
            raise

    def _volume(self, pool: Handle, pool_name: str, volume: str) -> Any:
        try:
            return pool.call("storageVolLookupByName", volume)
        except Refused as error:
            if error.code in _MISSING:
                raise StorageNotFound(self._connection.host, f"volume {volume!r} in pool {pool_name!r}") from error
            if error.code == libvirt.VIR_ERR_OPERATION_INVALID:
                raise StorageNotFound(self._connection.host, f"active storage pool {pool_name!r}") from error
            raise

    def _describe(self, pool: Handle) -> PoolInfo:
        # Written by libvirtd, which the appliance has to trust.
        root = ET.fromstring(pool.call("XMLDesc", 0))  # noqa: S314
        path = root.findtext("target/path")
        return PoolInfo(
            name=root.findtext("name") or "",
            kind=root.get("type", ""),
            path=path or None,
            active=bool(pool.call("isActive")),
            available_bytes=int(root.findtext("available") or 0),
        )
