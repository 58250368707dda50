"""What every command gets: where the home is, and the appliance, opened when first asked for.

The rule: a command opens nothing that it does not use, and what was opened is closed whatever happens.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import click

from appliance.cli.acting import Acting

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance
    from appliance.progress import Progress
    from appliance.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")

EXIT_FAILED = 1
EXIT_PARTLY = 3


@dataclass(slots=True)
class Session:
    """`wait`: as `appliance.bootstrap.Appliance` takes it."""

    wait: Callable[[float], bool]
    debug: bool = False
    home: str | None = None
    limit_bytes_s: int | None = None
    acting: Acting | None = None
    closing: ExitStack = field(default_factory=ExitStack)
    _appliance: Appliance | None = None
    _progress: Progress | None = None

    def settings(self) -> Settings:
        from appliance.settings import load

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
    from appliance.settings import parse_size

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
