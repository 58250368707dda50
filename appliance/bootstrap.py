"""Puts an appliance together from its settings; the one place that chooses implementations.

The rule: everything is opened when it is first asked for and closed with the appliance, so that a command pays only for
what it uses. Services take an `Appliance` and reach clock, catalog, repository and hosts through it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Self

from appliance import home
from appliance.clock import Clock, SystemClock
from appliance.ownership import is_owned, own
from appliance.settings import Settings, load

if TYPE_CHECKING:
    from appliance.catalog import Catalog
    from appliance.hypervisor.protocol import HostConfig, Hypervisor
    from appliance.models import ApplianceRecord
    from imaging.repository import Appliance as Identity
    from imaging.repository import Repository
    from imaging.throttle import Throttle


class Appliance:
    """Owns the catalog, the repository and every connection that it handed out and nobody closed.

    `connector` is what makes a `Hypervisor` of a `HostConfig`; tests pass one that fails where they want.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        connector: Callable[[HostConfig], Hypervisor] | None = None,
        throttle: Throttle | None = None,
    ) -> None:
        """`throttle` is what all transfers to and from the repository share with others, besides the limit that the
        settings have."""
        self.settings = settings
        self.clock: Clock = clock or SystemClock()
        self._connector = connector
        self._shared_throttle = throttle
        self._closing = ExitStack()
        home.prepare(settings)

    @classmethod
    def from_environment(cls) -> Appliance:
        return cls(load(os.environ))

    @cached_property
    def catalog(self) -> Catalog:
        from appliance.catalog import Catalog

        catalog = Catalog.open(self.settings.catalog_file, self.settings.run_directory / "catalog.lock")
        self._closing.callback(catalog.close)
        return catalog

    @cached_property
    def record(self) -> ApplianceRecord:
        """Who this appliance is, as the catalog keeps it."""
        return self.catalog.appliance(self.clock)

    @cached_property
    def identity(self) -> Identity:
        """Who this appliance is in the repository's leases."""
        from imaging.repository import Appliance as Identity

        return Identity(id=bytes.fromhex(self.record.id), host=socket.gethostname())

    @cached_property
    def throttle(self) -> Throttle | None:
        """What limits the transfers of this process by the settings, if anything does."""
        from imaging.throttle import Throttle

        rate = self.settings.limits.bandwidth_bytes_s
        return Throttle(rate, self.clock, time.sleep) if rate else None

    @cached_property
    def repository(self) -> Repository:
        """Opened with the machine key. NoRepositoryYet; ImagingError."""
        from imaging.repository import Repository
        from imaging.slots import MachineKey
        from imaging.storage.limited import LimitedStore
        from imaging.storage.locations import open_store, pace_of

        secret = MachineKey(home.read_machine_key(self.settings))
        location = home.location_of(self.settings)
        store = open_store(location)
        for throttle in (self.throttle, self._shared_throttle):
            if throttle is not None:
                store = LimitedStore(store, throttle)
        repository = Repository.open(
            store,
            secret,
            cache=self.settings.cache_directory,
            appliance=self.identity,
            pace=pace_of(location, self.settings.limits.chunk_cache_bytes),
        )
        self._closing.callback(repository.close)
        return repository

    def use_repository(self, repository: Repository) -> None:
        """Take one that was opened otherwise (with a passphrase, or just made); the caller closes it."""
        self.__dict__["repository"] = repository

    def connect(self, host: str) -> Hypervisor:
        """A new connection to a host of the catalog; the caller closes it (`with`). RecordMissing, HypervisorError."""
        return self.connect_to(self.catalog.hosts.get(host).config)

    def connect_to(self, config: HostConfig) -> Hypervisor:
        if self._connector is not None:
            return self._connector(config)
        from appliance.hypervisor.libvirt_driver import connect

        return connect(config, runtime=self.settings.run_directory)

    @contextmanager
    def own(self, owner: str, what: str) -> Iterator[None]:
        """Be at work as `owner` ("run-ID") until the end of the `with` or of the process. InUse names `what`."""
        with own(self.settings.run_directory / f"{owner}.lock", what):
            yield

    def alive(self, owner: str) -> bool:
        """Whether a living process is at work as `owner`."""
        return is_owned(self.settings.run_directory / f"{owner}.lock")

    def close(self) -> None:
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
