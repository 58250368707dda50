"""An object store that keeps everything twice: SeaweedFS as one process of master, filer and S3, and three volume
servers with replication 001 (a copy on another server of the same rack), on loopback and nowhere else.

    with ReplicatedServer() as server:
        store = S3Store(server.bucket("some-test/"), server.credentials)
        server.kill(server.fullest())
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar, Final

from tests.lab.s3_server import START_TIMEOUT_S, S3Server

VOLUME_SERVERS: Final = ("volume1", "volume2", "volume3")


class ReplicatedServer(S3Server):
    """Owns the processes."""

    services: ClassVar[tuple[str, ...]] = ("master", "filer", "s3", *VOLUME_SERVERS)

    def __init__(self, parent: Path = Path("/var/tmp")) -> None:
        super().__init__(parent)
        self._volumes: dict[str, subprocess.Popen[bytes]] = {}

    def _spawn(self) -> subprocess.Popen[bytes]:
        data = Path(tempfile.mkdtemp(prefix="data-", dir=self.folder))
        ports = [f"-{service}.port={self.ports[service]}" for service in ("master", "filer", "s3")]
        server = self._run(
            "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume=false", "-filer", "-s3", *ports,
            "-master.defaultReplication=001", "-filer.defaultReplicaPlacement=001", "-master.telemetry=false",
            "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false", f"-s3.config={self._config()}",
        )  # fmt: skip
        for name in VOLUME_SERVERS:
            (data / name).mkdir()
            self._volumes[name] = self._run(
                "volume", f"-dir={data / name}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-port={self.ports[name]}",
                f"-master=127.0.0.1:{self.ports['master']}", "-max=100",
            )  # fmt: skip
        return server

    def _wait(self) -> None:
        """All three have to be there before the first object is written, or only two would ever be."""
        until = time.monotonic() + START_TIMEOUT_S
        while len(self.known()) < len(VOLUME_SERVERS):
            if time.monotonic() > until or any(each.poll() is not None for each in self._volumes.values()):
                raise RuntimeError(f"the volume servers do not come up: {self.log()}")
            time.sleep(0.05)
        super()._wait()

    def _end(self) -> None:
        for name in tuple(self._volumes):
            self.kill(name)
        super()._end()

    def kill(self, name: str) -> None:
        """One of the volume servers, for good; harmless again."""
        process = self._volumes.pop(name, None)
        if process is not None:
            process.kill()
            process.wait(timeout=60)

    def known(self) -> set[str]:
        """The volume servers that the master believes to be there."""
        try:
            topology = self._told("master", "/dir/status")["Topology"]
        except (OSError, HTTPException):
            return set()
        racks = [rack for center in topology.get("DataCenters") or () for rack in center.get("Racks") or ()]
        urls = {str(node["Url"]) for rack in racks for node in rack.get("DataNodes") or ()}
        return {name for name in VOLUME_SERVERS if f"127.0.0.1:{self.ports[name]}" in urls}

    def held(self) -> dict[str, set[int]]:
        """The volumes with something in them, by the living server that has them."""
        return {
            name: {
                int(each["Id"]) for each in self._told(name, "/status").get("Volumes") or () if int(each["FileCount"])
            }
            for name in self._volumes
        }

    def fullest(self) -> str:
        held = self.held()
        return max(held, key=lambda name: len(held[name]))

    def _told(self, service: str, path: str) -> Any:
        """OSError while nobody answers."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[service]}{path}", timeout=30) as answer:
            return json.load(answer)
