"""What every command gets: where the home is, and the appliance, opened when first asked for.

The rule: a command opens nothing that it does not use, and what was opened is closed whatever happens.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import click

from appliance.cli.acting import Acting

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.bootstrap import Appliance
    from appliance.progress import Progress
    from appliance.remote.client import Client
    from appliance.remote.files import RemoteFiles
    from appliance.remote.services import (
        RemoteInventory,
        RemotePlanning,
        RemotePoints,
        RemotePolicies,
        RemoteQueue,
        RemoteRecoveries,
    )
    from appliance.services.files.service import FilesService
    from appliance.services.inventory import InventoryService
    from appliance.services.planning import PlanningService
    from appliance.services.points import PointService
    from appliance.services.policies import PolicyService
    from appliance.services.queue.service import QueueService
    from appliance.services.recovery import RecoveryService
    from appliance.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")

EXIT_FAILED = 1
EXIT_PARTLY = 3
_ONLY_HERE = ("ask", "dismiss")  # options of commands that otherwise go with --url


@dataclass(slots=True)
class Session:
    """`wait`: as `appliance.bootstrap.Appliance` takes it. `url`: of the appliance that is meant instead of the one of
    this machine; commands that go there too ask for their services here, and all others end with OnlyHere."""

    wait: Callable[[float], bool]
    debug: bool = False
    home: str | None = None
    url: str | None = None
    ca_file: Path | None = None
    token_file: Path | None = None
    limit_bytes_s: int | None = None
    acting: Acting | None = None
    closing: ExitStack = field(default_factory=ExitStack)
    _appliance: Appliance | None = None
    _progress: Progress | None = None
    _client: Client | None = None

    @property
    def client(self) -> Client:
        """AddressUnfit, TokenMissing."""
        if self._client is None:
            from appliance.remote.client import Client, token_from

            assert self.url is not None
            self._client = Client(self.url, token_from(os.environ, self.token_file), self.ca_file)
            self.closing.callback(self._client.close)
        return self._client

    def queue(self) -> QueueService | RemoteQueue:
        if self.url is not None:
            from appliance.remote.services import RemoteQueue

            return RemoteQueue(self.client)
        from appliance.services.queue.service import QueueService

        return QueueService(self.appliance)

    def points(self) -> PointService | RemotePoints:
        if self.url is not None:
            from appliance.remote.services import RemotePoints

            return RemotePoints(self.client)
        from appliance.services.points import PointService

        return PointService(self.appliance)

    def files(self) -> FilesService | RemoteFiles:
        if self.url is not None:
            from appliance.remote.files import RemoteFiles

            return RemoteFiles(self.client)
        from appliance.services.files.service import FilesService
        from appliance.services.files.sessions import Sessions

        return FilesService(self.appliance, self.closing.enter_context(closing(Sessions(self.appliance))))

    def inventory(self) -> InventoryService | RemoteInventory:
        if self.url is not None:
            from appliance.remote.services import RemoteInventory

            return RemoteInventory(self.client)
        from appliance.services.inventory import InventoryService

        return InventoryService(self.appliance)

    def recoveries(self) -> RecoveryService | RemoteRecoveries:
        if self.url is not None:
            from appliance.remote.services import RemoteRecoveries

            return RemoteRecoveries(self.client, self.wait)
        from appliance.services.recovery import RecoveryService

        return RecoveryService(self.appliance)

    def policies(self) -> PolicyService | RemotePolicies:
        if self.url is not None:
            from appliance.remote.services import RemotePolicies

            return RemotePolicies(self.client)
        from appliance.services.policies import PolicyService

        return PolicyService(self.appliance)

    def planning(self) -> PlanningService | RemotePlanning:
        if self.url is not None:
            from appliance.remote.services import RemotePlanning

            return RemotePlanning(self.client)
        from appliance.services.planning import PlanningService

        return PlanningService(self.appliance)

    def members(self) -> tuple[str, Mapping[str, str]]:
        """The id of the appliance that is meant, and what to call each that shares its catalog, by id."""
        if self.url is not None:
            found = self.client.get("/appliances")
            return str(found["me"]), {str(each["id"]): str(each["name"]) for each in found["items"]}
        from appliance.services.fleet import FleetService

        return self.appliance.catalog.me, FleetService(self.appliance).names()

    def settings(self) -> Settings:
        """Of the home. OnlyHere."""
        from appliance.settings import load

        if self.url is not None:
            from appliance.remote.errors import OnlyHere

            context = click.get_current_context()
            given = [f" --{name}" for name in _ONLY_HERE if context.params.get(name) is not None]
            raise OnlyHere(context.command_path + "".join(given))
        environment = dict(os.environ)
        if self.home is not None:
            environment["STRONGROOM_HOME"] = os.path.abspath(self.home)
        settings = load(environment)
        if self.limit_bytes_s is not None:
            settings = replace(settings, limits=replace(settings.limits, bandwidth_bytes_s=self.limit_bytes_s))
        return settings

    @property
    def appliance(self) -> Appliance:
        if self._appliance is None:
            from appliance.bootstrap import Appliance

            self._appliance = self.closing.enter_context(Appliance(self.settings(), wait=self.wait))
            if not gc.get_freeze_count():  # once in a process: what is garbage by then stays for ever
                gc.freeze()  # what was imported stays: it is not looked through again
        if self.acting is not None:
            self.acting.opened(self._appliance)
        return self._appliance

    @property
    def progress(self) -> Progress:
        if self._progress is None:
            from appliance.cli.progress import make_progress

            progress = self._progress = make_progress()
            self.closing.callback(progress.close)
        return self._progress


def pass_session(command: Callable[Concatenate[Session, P], T]) -> Callable[P, T]:
    """Hand the session to a command as its first argument; the command is an act from when it opens the appliance."""

    def with_session(*args: P.args, **kwargs: P.kwargs) -> T:
        context = click.get_current_context()
        session = context.find_object(Session)
        assert session is not None
        session.acting = Acting(context)
        with session.acting.until_its_end():
            return command(session, *args, **kwargs)

    return update_wrapper(with_session, command)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--json", "as_json", is_flag=True, help="Print JSON for scripts: sizes in bytes, times in UTC."
    )(command)


def yes_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--yes", is_flag=True, help="Do not ask for confirmation.")(command)


def queue_option(command: Callable[..., Any]) -> Callable[..., Any]:
    text = "Only ask for it: a worker of 'strongroom serve' does it."
    return click.option("--queue", "queued", is_flag=True, help=text)(command)


def limit_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """For commands that move much data; the session's appliance then keeps to it."""
    return click.option(
        "--limit",
        metavar="SIZE",
        expose_value=False,
        callback=_limit,
        help="Move at most so much a second to and from repositories, such as 20MB.",
    )(command)


def _limit(context: click.Context, _option: click.Parameter, value: str | None) -> None:
    from appliance.setting_values import parse_size

    if value is None:
        return
    try:
        rate = parse_size(value.removesuffix("/s"))
    except ValueError as err:
        raise click.BadParameter(str(err)) from err
    if rate == 0:
        raise click.BadParameter("it must be more than 0")
    session = context.find_object(Session)
    assert session is not None
    session.limit_bytes_s = rate


def point_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--point",
        required=True,
        metavar="ID|latest|TIME",
        help=(
            "A point's id or a unique beginning of it; 'latest'; or a time (the newest point at or before it):"
            " 2026-11-23, '2026-11-23 14:00', 2026-11-23T14:00:00Z. UTC, unless the time names a zone."
        ),
    )(command)


def exit_with(code: int) -> None:
    """End the command with an exit code other than 0."""
    if code:
        click.get_current_context().exit(code)
