"""Secrets that a person gives: passphrases and recovery keys.

The rule: a secret is never a command-line argument (the process list shows those): it comes from
STRONGROOM_PASSPHRASE, from a file, or from a prompt that does not echo; and it is never printed back. A recovery key
is written once, to a file of mode 0600 that did not exist, or to the terminal.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from appliance.cli.output import is_terminal, safe, tell
from appliance.errors import StrongroomError

VARIABLE = "STRONGROOM_PASSPHRASE"
NEW_VARIABLE = "STRONGROOM_NEW_PASSPHRASE"
PERSON_VARIABLE = "STRONGROOM_PERSON_PASSPHRASE"
_LEAST_CHARACTERS = 8
_KEY_FILE_BYTES_MAX = 4096


class SecretRefused(StrongroomError):
    """A secret that cannot be used as it was given."""


def passphrase(prompt: str = "Passphrase") -> str:
    """The one that opens the repository."""
    given = os.environ.get(VARIABLE)
    if given is not None:
        return _checked(given, VARIABLE)
    _need_terminal(VARIABLE)
    answer: str = click.prompt(prompt, hide_input=True, err=True)
    return answer


def person_passphrase(name: str) -> str:
    """The one by which a person of the guard signs."""
    given = os.environ.get(PERSON_VARIABLE)
    if given is not None:
        return _checked(given, PERSON_VARIABLE)
    _need_terminal(PERSON_VARIABLE)
    answer: str = click.prompt(f"Passphrase of {safe(name)}", hide_input=True, err=True)
    return answer


def new_passphrase(variable: str = VARIABLE) -> str:
    """One that is being set: asked twice, and not too short."""
    given = os.environ.get(variable)
    if given is None:
        _need_terminal(variable)
        given = click.prompt("New passphrase", hide_input=True, confirmation_prompt="The same again", err=True)
    given = _checked(given, variable)
    if len(given) < _LEAST_CHARACTERS:
        raise SecretRefused(
            f"the passphrase has {len(given)} characters, and {_LEAST_CHARACTERS} are the least",
            hint="Several words that nobody else would put together are better still.",
        )
    return given


def _checked(given: str, variable: str) -> str:
    if not given:
        raise SecretRefused(f"{variable} is empty", hint="Set it to the passphrase, or unset it to be asked.")
    try:
        given.encode("utf-8")
    except UnicodeEncodeError as err:
        raise SecretRefused(f"{variable} is not UTF-8", hint="Set it in a UTF-8 locale.") from err
    return given


def _need_terminal(variable: str) -> None:
    if not is_terminal(sys.stdin):
        raise SecretRefused(
            "a passphrase is needed, and there is no terminal to ask on", hint=f"Set {variable} in the environment."
        )


def read_key_file(path: Path) -> str:
    """The text of a recovery key."""
    try:
        with path.open("rb") as file:
            data = file.read(_KEY_FILE_BYTES_MAX + 1)
        text = data.decode("ascii")
    except OSError as err:
        raise SecretRefused(
            f"{path} cannot be read: {err.strerror}", hint="Check the path of the recovery key."
        ) from err
    except UnicodeDecodeError as err:
        raise SecretRefused(f"{path} is not a recovery key", hint="It is one line that begins with SR1-.") from err
    if len(data) > _KEY_FILE_BYTES_MAX:
        raise SecretRefused(f"{path} is too long for a recovery key", hint="It is one line that begins with SR1-.")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return "".join(lines)


class KeySink:
    """Where a new recovery key goes. Made before the key, so that a file that cannot be written stops everything."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._descriptor: int | None = None
        if path is not None:
            try:
                self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileExistsError as err:
                raise SecretRefused(
                    f"{path} exists already, and a recovery key overwrites nothing", hint="Give another file."
                ) from err
            except OSError as err:
                raise SecretRefused(f"{path} cannot be made: {err.strerror}", hint="Give another file.") from err

    def deliver(self, text: str) -> None:
        """Write the key, or print it. If the file fails now, it is printed: a key that nobody has is lost."""
        if self._descriptor is not None and self._path is not None:
            try:
                with os.fdopen(self._descriptor, "w", encoding="ascii") as file:
                    self._descriptor = None
                    file.write(text + "\n")
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as err:
                tell(
                    f"warning: {self._path} cannot be written ({err.strerror}), so the recovery key is printed instead"
                )
            else:
                tell(
                    f"The recovery key is in {self._path} (mode 0600). Print it, keep it away from this machine, and"
                    " remove the file: with it and the repository everything can be restored, by you or anybody else."
                )
                return
        tell("Recovery key, shown only this once. Print it, and keep it away from this machine:\n")
        click.echo(f"    {text}\n")
        tell("With it and the repository everything can be restored, by you or by anybody else who has it.")

    def cancel(self) -> None:
        """No key came: take the empty file away."""
        if self._descriptor is not None and self._path is not None:
            os.close(self._descriptor)
            self._descriptor = None
            self._path.unlink(missing_ok=True)
