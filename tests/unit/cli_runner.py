"""Runs the command line for tests: as its users do (a process of its own), or in this process, which is quicker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from appliance.cli import main

PROJECT = Path(__file__).parents[2]
PASSPHRASE = "correct horse battery staple"


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)

    def error(self) -> str:
        """What went wrong: checked to be sentences, and no traceback."""
        lines = self.err.splitlines()
        told = [line for line in lines if line.startswith(("error: ", "hint: "))]
        assert any(line.startswith("error: ") for line in told), self.err
        assert "Traceback" not in self.err
        assert "mistake in strongroom itself" not in self.err
        return "\n".join(told)


@dataclass
class CommandLine:
    """A home and a repository below `folder`, and commands on them."""

    folder: Path
    capsys: pytest.CaptureFixture[str]
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.environment = {
            "STRONGROOM_HOME": str(self.home),
            "STRONGROOM_PASSPHRASE": PASSPHRASE,
            "PATH": os.environ["PATH"],
        }

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def repository(self) -> Path:
        return self.folder / "repository"

    @property
    def key_file(self) -> Path:
        return self.folder / "recovery.key"

    def __call__(self, *arguments: str, **environment: str) -> Ran:
        """In this process. No terminal: standard input is empty, output is captured."""
        self.capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            for name in list(os.environ):
                if name.startswith("STRONGROOM_"):
                    patch.delenv(name)
            for name, value in (self.environment | environment).items():
                patch.setenv(name, value)
            before = os.umask(0o077)
            try:
                code = main(arguments)
            finally:
                os.umask(before)
        out, err = self.capsys.readouterr()
        return Ran(code, out, err)

    def process(self, *arguments: str, stdin: str = "", **environment: str) -> Ran:
        """As a process of its own."""
        done = subprocess.run(
            [sys.executable, "-m", "appliance.cli", *arguments],
            cwd=PROJECT,
            env=self.environment | environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    @classmethod
    def new(cls, folder: Path, capsys: pytest.CaptureFixture[str]) -> Self:
        """With a home and a repository below a new folder."""
        folder.mkdir()
        line = cls(folder, capsys)
        line.init()
        return line

    def init(self) -> None:
        done = self("init", "--repository", str(self.repository), "--recovery-key-file", str(self.key_file))
        assert done.code == 0, done.err

    def backup(self, data: bytes, name: str = "disk-1") -> dict[str, Any]:
        """Back up a raw image with this content; returns the point."""
        image = self.folder / "image.raw"
        image.write_bytes(data)
        done = self("backup", "--image", str(image), "--format", "raw", "--name", name, "--json")
        assert done.code == 0, done.err
        point: dict[str, Any] = done.json()
        return point
