"""Microsoft's emulator of Azure Blob Storage for tests, from the npm package azurite, on loopback and nowhere else.

The rule: it is started once per process, when it is first asked for, keeps everything in memory, and ends with that
process, however that ends. `.ci/setup --test` installs it.

    store = CloudStore(AzureClient(running().container("some-test/"), running().credentials))
"""

from __future__ import annotations

import atexit
import base64
import functools
import os
import re
import secrets
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from azure.core.credentials import AzureNamedKeyCredential
from azure.storage.blob import ContainerClient

from imaging.storage.azure import AzureClient, Container, Credentials
from imaging.storage.cloud import CloudStore
from imaging.storage.endpoints import parse_endpoint

ACCOUNT: Final = "strongroomlab"
CONTAINER: Final = "strongroom-lab"
_SCRIPT: Final = Path(__file__).parents[2] / ".cache/azurite/node_modules/azurite/dist/src/blob/main.js"
_READY: Final = re.compile(rb"successfully listens on (http://127\.0\.0\.1:\d+)\s")


class Azurite:
    """Owns the process."""

    def __init__(self) -> None:
        self._key = base64.b64encode(secrets.token_bytes(32)).decode("ascii")
        self.credentials: Final = Credentials(account_key=self._key)
        self._owner = os.getpid()
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "node", _SCRIPT, "--blobHost", "127.0.0.1", "--blobPort", "0",
             "--inMemoryPersistence", "--silent", "--disableTelemetry", "--skipApiVersionCheck"],
            env={"PATH": os.environ["PATH"], "AZURITE_ACCOUNTS": f"{ACCOUNT}:{self._key}"},
            cwd=tempfile.gettempdir(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.url: Final = self._wait()
        self.make_container(CONTAINER)

    def _wait(self) -> str:
        """Until it says that it is ready, or ends."""
        assert self._process.stdout is not None
        said = b""
        for line in self._process.stdout:
            said += line
            if found := _READY.search(said):
                return found[1].decode("ascii")
        raise RuntimeError(f"azurite does not come up: {said.decode(errors='replace')}")

    def container(self, prefix: str = "", *, name: str = CONTAINER, url: str = "") -> Container:
        """A place in it; `url` leads there through a proxy."""
        return Container(parse_endpoint(url or self.url), ACCOUNT, name, prefix)

    def make_container(self, name: str) -> None:
        self.raw(name).create_container()

    def raw(self, name: str = CONTAINER) -> ContainerClient:
        """Microsoft's own client, for what ours cannot do."""
        return ContainerClient(
            f"{self.url}/{ACCOUNT}", name, credential=AzureNamedKeyCredential(ACCOUNT, self._key), retry_total=0
        )

    def close(self) -> None:
        """Ends it, unless this is a fork of the process that started it."""
        if os.getpid() != self._owner:
            return
        self._process.kill()
        self._process.wait(timeout=60)
        if self._process.stdout is not None:
            self._process.stdout.close()


@functools.cache
def running() -> Azurite:
    """The emulator of this process."""
    emulator = Azurite()
    atexit.register(emulator.close)
    return emulator


def fresh_azure_store() -> CloudStore:
    """Below a prefix of its own."""
    return CloudStore(AzureClient(running().container(f"{secrets.token_hex(8)}/"), running().credentials))
