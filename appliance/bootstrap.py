"""Puts an appliance together from its settings; the one place that chooses implementations.

The rule: everything is opened when it is first asked for and closed with the appliance, so that a command pays only for
what it uses. Services take an `Appliance` and reach clock, catalog, repository and hosts through it.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from appliance import home, identity
from appliance.clock import Clock, SystemClock
from appliance.models import ApplianceRecord, RepositoryRecord, new_id
from appliance.ownership import is_owned, own
from appliance.settings import Settings, load

if TYPE_CHECKING:
    from appliance.catalog import Catalog
    from appliance.catalog.database import Database
    from appliance.catalog_keys import CatalogKeys
    from appliance.hypervisor.protocol import HostConfig, Hypervisor
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
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        """`throttle` is what all transfers to and from the repository share with others, besides the limit that the
        settings have. `wait` waits so many seconds for the latter, and says whether it was ended before."""
        self.settings = settings
        self.clock: Clock = clock or SystemClock()
        self._connector = connector
        self._shared_throttle = throttle
        self._wait = wait or _wait
        self._closing = ExitStack()
        self._repository: Repository | None = None
        self._opening = threading.RLock()
        home.prepare(settings)

    @classmethod
    def from_environment(cls) -> Appliance:
        return cls(load(os.environ))

    @cached_property
    def catalog(self) -> Catalog:
        """The home's own, or the one that the settings share with other appliances. CatalogError."""
        from appliance.catalog import Catalog
        from appliance.catalog.database import Database
        from appliance.catalog.schema import upgrade

        url = self.settings.catalog.url
        database = Database.shared(url) if url else Database.at(self.settings.catalog_file)
        self._closing.callback(database.close)
        migrated = upgrade(database, self.settings.run_directory / "catalog.lock")
        catalog = Catalog(database, self._identified(database))
        catalog.appliances.join(self._as_seen(catalog.me), str(self.settings.identity_file))
        if migrated:
            from appliance.catalog_keys import CatalogKeys

            CatalogKeys(self.settings, catalog, self.clock).settle()
        return catalog

    @cached_property
    def catalog_keys(self) -> CatalogKeys:
        """What seals secrets in the catalog."""
        from appliance.catalog_keys import CatalogKeys

        return CatalogKeys(self.settings, self.catalog, self.clock)

    @cached_property
    def id(self) -> str:
        """Who this appliance is, in the catalog and in the repository: 32 hex digits. The catalog need not answer."""
        return identity.read_id(self.settings) or self.catalog.me

    @cached_property
    def identity(self) -> Identity:
        """Who this appliance is in the repository's leases."""
        from imaging.repository import Appliance as Identity

        return Identity(id=bytes.fromhex(self.id), host=socket.gethostname())

    def _identified(self, database: Database) -> str:
        """The id of this home; one that is older than its file is known to its catalog."""
        from appliance.catalog.appliances import only_appliance

        found = identity.read_id(self.settings)
        if found is None:
            earlier = None if database.is_shared else only_appliance(database)
            try:
                found = identity.keep_id(self.settings, earlier or new_id())
            except home.HomeUnusable:
                if earlier is None:
                    raise
                found = earlier  # a home that is full still has to give back space
        return found

    def _as_seen(self, id: str) -> ApplianceRecord:
        now = self.clock.now_utc()
        return ApplianceRecord(
            id, now, socket.gethostname(), str(self.settings.home), identity.place(self.settings), now
        )

    @cached_property
    def throttle(self) -> Throttle | None:
        """What limits the transfers of this process by the settings, if anything does."""
        from imaging.throttle import Throttle

        rate = self.settings.limits.bandwidth_bytes_s
        return Throttle(rate, self.clock, self._wait) if rate else None

    @property
    def repository(self) -> Repository:
        """Opened with the machine key. NoRepositoryYet; ImagingError."""
        if self._repository is None:
            with self._opening:  # this one alone: cached_property's lock is one for all, and a store may hang
                if self._repository is None:
                    self._repository = self._open_repository()
        return self._repository

    def _open_repository(self) -> Repository:
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
        self._repository = repository

    def attach(self) -> None:
        """See that the catalog is that of this repository, before anything of it is written there; and that the
        repository keeps the catalog's key. CatalogOfAnotherRepository."""
        repository = self.repository
        known, id = self.catalog.repository(), repository.id.hex()
        if known is None or known.id != id:
            location = str(home.location_of(self.settings))
            self.catalog.attach_repository(RepositoryRecord(id, location, self.clock.now_utc()))
        self.catalog_keys.share(repository)

    def connect(self, host: str) -> Hypervisor:
        """A new connection to a host of the catalog; the caller closes it (`with`). RecordMissing, HypervisorError."""
        return self.connect_to(self.catalog.hosts.get(host).config)

    def connect_to(self, config: HostConfig) -> Hypervisor:
        if self._connector is not None:
            return self._connector(config)
        from appliance.hypervisor.libvirt_driver import connect

        return connect(config, runtime=self.settings.run_directory)

    def of_home(self, folder: Path) -> Appliance:
        """The appliance of another home, as its own settings say: what the environment sets is of this home alone. What
        moves to and from its repository shares this one's limit. The caller closes it (`with`). NoHome."""
        if not folder.is_dir():
            raise home.NoHome(folder)
        settings = load({"STRONGROOM_HOME": str(folder.absolute())})
        return Appliance(settings, clock=self.clock, throttle=self.throttle, wait=self._wait)

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


def _wait(seconds: float) -> bool:
    """To the end: nobody is there who could be told to end earlier."""
    time.sleep(seconds)
    return False
