"""The command line's root: global options, and how anything that goes wrong becomes one or two sentences.

The rule: exit code 0 is done, 1 failed, 2 wrong usage, 3 done in part (a disk was skipped, or something needs an
admin's eyes), 143 and 129 ended by SIGTERM and SIGHUP. An error is a sentence and, where there is one, a way out, both
on standard error; a traceback only with --debug.
"""

from __future__ import annotations

import gc
import io
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.lazily import LazyGroup
from appliance.cli.output import safe_lines, tell
from appliance.cli.session import EXIT_FAILED, Session
from appliance.cli.signals import Ending, ending_in_order

if TYPE_CHECKING:
    from imaging.errors import WrongKey

_COMMANDS = {
    "init": "initialise:init",
    "host": "hosts:host",
    "vm": "machines:vm",
    "backup": "backup:backup",
    "point": "points:point",
    "prune": "maintenance:prune",
    "run": "runs:run",
    "policy": "policies:policy",
    "restore": "restore:restore",
    "recovery": "recovery:recovery",
    "export": "exports:export",
    "files": "files:files",
    "mount": "exports:mount",
    "umount": "exports:umount",
    "repository": "repository:repository",
    "request": "requests:request",
    "status": "status:status",
    "notice": "notices:notice",
    "metrics": "metrics:metrics",
    "report": "reports:report",
    "plan": "plans:plan",
    "appliance": "appliances:appliance",
    "audit": "audit:audit",
    "user": "users:user",
    "token": "tokens:token",
    "serve": "daemon:serve",
    "supervise": "daemon:supervise",
}
_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(
    cls=LazyGroup, lazy={name: f"appliance.cli.{place}" for name, place in _COMMANDS.items()}, context_settings=_HELP
)
@click.option("--debug", is_flag=True, envvar="STRONGROOM_DEBUG", help="Print a traceback when something fails.")
@click.option(
    "--home",
    metavar="DIR",
    type=click.Path(),
    help="Where settings, catalog, keys and cache are (default: $STRONGROOM_HOME, else /var/lib/strongroom).",
)
@click.option(
    "--url",
    metavar="URL",
    help="Ask this appliance, over its API, instead of the one of this machine: https://backup.example.org:8443. The"
    " token is in STRONGROOM_TOKEN, or in --token-file.",
)
@click.option("--ca-file", metavar="FILE", type=click.Path(path_type=Path), help="With --url: certificates to trust.")
@click.option("--token-file", metavar="FILE", type=click.Path(path_type=Path), help="With --url: where the token is.")
@click.version_option(package_name="strongroom", message="strongroom %(version)s")
@click.pass_context
def strongroom(
    context: click.Context,
    debug: bool,
    home: str | None,
    url: str | None,
    ca_file: Path | None,
    token_file: Path | None,
) -> None:
    """Backup and instant recovery of virtual machines and disk images.

    Every backup reads only what changed, every restore point is complete on its own, and a lost machine can be started
    straight out of the repository.

    \b
    First steps:
      strongroom init --repository /srv/backup --recovery-key-file key.txt
      strongroom host add here qemu:///system
      strongroom backup web-1
      strongroom point list
      strongroom recovery start web-1 --point latest

    \b
    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done in part (see the warnings), 143 ended by SIGTERM, 129 by SIGHUP.
    Environment: STRONGROOM_HOME, STRONGROOM_PASSPHRASE, STRONGROOM_TOKEN (with --url), and
    STRONGROOM_<SECTION>_<KEY> for every setting.
    """
    session = context.ensure_object(Session)
    session.debug = session.debug or debug
    session.home = home if home is not None else session.home
    if url is None and (ca_file is not None or token_file is not None):
        raise click.UsageError("--ca-file and --token-file go with --url.")
    if url is not None and home is not None:
        raise click.UsageError("Give --home or --url, not both.")
    session.url, session.ca_file, session.token_file = url, ca_file, token_file


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (the console script exits with it)."""
    os.umask(0o077)
    gc.set_threshold(200_000, 50, 50)  # importing makes no garbage; looking for it is a sixth of a command's start
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the locale cannot write is no reason to fail
    with ending_in_order() as ending:
        return _run(arguments, ending)


def _run(arguments: Sequence[str] | None, ending: Ending) -> int:
    session = Session(wait=ending.wait)
    try:
        with session.closing:
            code = strongroom.main(
                args=None if arguments is None else list(arguments),
                prog_name="strongroom",
                standalone_mode=False,
                obj=session,
            )
    except click.exceptions.Exit as err:
        return err.exit_code
    except click.ClickException as err:
        _usage(err)
        return err.exit_code
    except (click.Abort, KeyboardInterrupt):
        tell(f"error: interrupted{f' by {ending.signal.name}' if ending.signal else ''}")
        return ending.exit_code or EXIT_FAILED
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`); nothing more can be said there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as err:  # noqa: BLE001  (the edge: everything becomes a sentence here)
        return _failed(err, session)
    return code if isinstance(code, int) else 0


def _usage(err: click.ClickException) -> None:
    if isinstance(err, click.exceptions.NoArgsIsHelpError):
        tell(err.format_message())  # the help itself
    elif isinstance(err, click.UsageError) and err.ctx is not None:
        tell(err.ctx.get_usage())
        tell(f"error: {err.format_message()}")
        tell(f"hint: '{err.ctx.command_path} --help' tells more")
    else:
        tell(f"error: {err.format_message()}")


def _failed(err: Exception, session: Session) -> int:
    from appliance.errors import StrongroomError
    from imaging.errors import ImagingError, WrongKey

    if session.debug:
        click.echo(safe_lines("".join(traceback.format_exception(err))), err=True)
    if isinstance(err, WrongKey):
        err = _named(err, session)
    if isinstance(err, (StrongroomError, ImagingError)):
        tell(f"error: {err}")
        if err.hint:
            tell(f"hint: {err.hint}")
        return getattr(err, "exit_code", EXIT_FAILED)
    if isinstance(err, OSError) and err.strerror:
        where = f"{err.filename}: " if err.filename else ""
        tell(f"error: {where}{err.strerror}")
        return EXIT_FAILED
    tell(f"error: this is a mistake in strongroom itself: {type(err).__name__}: {err}")
    tell("hint: run it again as 'strongroom --debug COMMAND' (the option comes first), and report what it prints")
    return EXIT_FAILED


def _named(err: WrongKey, session: Session) -> Exception:
    """A repository knows no home: where the machine key is that it refuses, is told here."""
    from appliance.home import MachineKeyRejected
    from imaging.configuration import MachineKeyRefused

    if isinstance(err, MachineKeyRefused):
        return MachineKeyRejected(session.settings().machine_key_file, err.where)
    return err
