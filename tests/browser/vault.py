"""A home with a real repository, for the pages that ask it: files of restore points, and requests of its guard."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from unittest import mock

from appliance.bootstrap import Appliance
from appliance.cli import main
from appliance.services.guard import GuardService
from appliance.services.signing import SigningService, What
from appliance.settings import load
from tests.browser.console import Person, set_up_admin
from tests.lab.filesystems import make_ext

PERSONS: Final = ("alice", "bob", "carol")
FIRST_DAY: Final = {"first-overview": "/", "first-recover": "/recover"}
"""What is seen before `protect`, as nothing is there."""

NAMES: Final = (
    *FIRST_DAY, "requests-no-guard", "files-volumes", "files-folder", "requests", "request", "request-new"
)  # fmt: skip

_FILES: Final = {
    "etc/hostname": "office\n", "etc/fstab": "/dev/vda1 / ext4 defaults 0 1\n",
    "srv/letters/to the tax office.txt": "…\n", "srv/letters/Grüße aus Köln.txt": "…\n",
    "srv/accounts.csv": "day;sum\n" * 4000, "readme": "Ask bob first.\n",
}  # fmt: skip


def seed_vault(home: Path) -> Person:
    """A repository, and an admin."""
    folder = home.parent / "vault"
    folder.mkdir()
    _command(home, "init", "--repository", str(folder / "repository"), "--recovery-key-file", str(home.parent / "key"))
    with _opened(home) as appliance:
        return set_up_admin(appliance)


def protect(home: Path) -> dict[str, str]:
    """Two restore points of one image. Returns the pages of their files, and of a repository without a guard."""
    folder = home.parent / "vault"
    tree = folder / "tree"
    for name, text in _FILES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    (tree / "srv" / "current").symlink_to("letters")
    image = make_ext(folder / "office.raw", tree)
    for _ in range(2):
        _command(home, "backup", "--image", str(image), "--format", "raw", "--name", "office")
    with _opened(home) as appliance:
        files = f"/points/{appliance.repository.points()[-1].id}/files"
    return {"requests-no-guard": "/requests", "files-volumes": files, "files-folder": f"{files}?place=disk:/srv"}


def guard(home: Path) -> dict[str, str]:
    """Turns it on: a request waits for a second person, one for its delay, and one was refused. Returns their pages."""
    for name in PERSONS:
        _command(home, "repository", "guard", "enrol", name, STRONGROOM_NEW_PASSPHRASE=_words(name))
    _command(home, "repository", "guard", "on", *PERSONS, "--yes")
    with _opened(home) as appliance:
        older, newest = (each.id for each in appliance.repository.points())
        service, signing = GuardService(appliance), SigningService(appliance)

        def ask(point: str, person: str, reason: str) -> str:
            (act,) = signing.question(What.POINT, point).acts
            return service.ask(act, person, _words(person), reason).request.id

        service.refuse(ask(newest, "bob", "out of space"), "there is a new disk on Monday")
        service.confirm(ask(older, "bob", "has what the customer wants gone"), "carol", _words("carol"))
        asked = ask(newest, "carol", "has what the customer wants gone")
    return {
        "requests": "/requests", "request": f"/requests/{asked}", "request-new": f"/requests/new?what=point&id={newest}"
    }  # fmt: skip


def _words(name: str) -> str:
    return f"only {name} knows"


def _opened(home: Path) -> Appliance:
    return Appliance(load(_environment(home)))


def _environment(home: Path) -> Mapping[str, str]:
    others = {name: value for name, value in os.environ.items() if not name.startswith("STRONGROOM_")}
    return others | {"STRONGROOM_HOME": str(home), "STRONGROOM_PASSPHRASE": "the words of the vault"}


def _command(home: Path, *words: str, **more: str) -> None:
    said = io.StringIO()
    with (
        mock.patch.dict(os.environ, {**_environment(home), **more}, clear=True),
        contextlib.redirect_stdout(said), contextlib.redirect_stderr(said),
    ):  # fmt: skip
        before = os.umask(0o077)  # as the command sets it, for its process
        try:
            code = main(words)
        finally:
            os.umask(before)
    assert code == 0, said.getvalue()
