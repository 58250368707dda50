"""Strongroom as an admin has it: through its command, in a home and a repository of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.services import repositories
from appliance.settings import load
from tests.bench.measure import BenchError, Measured, measure

COMMAND = str(Path(sys.prefix) / "bin" / "strongroom")
_PASSPHRASE = "correct horse battery staple"
_PARTLY = 3
_STOP_S = 10.0
_PACK_TYPE_AT = 10  # docs/format.md, section 7: u8 blob type
_PACK_OF_NODES = 1


@dataclass(frozen=True, slots=True)
class Appliance:
    """`settle`: whether what others left to be written is written before each command. `settings`, as environment
    variables, say where its repository is, if that is not a folder."""

    root: Path
    settle: bool
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def repository(self) -> Path:
        return self.root / "repository"

    @property
    def environment(self) -> dict[str, str]:
        return {"STRONGROOM_HOME": str(self.home), "STRONGROOM_PASSPHRASE": _PASSPHRASE, **self.settings}

    def call(self, *arguments: str, prefix: Sequence[str] = ()) -> Measured:
        """One command. "Done in part" is accepted: what it warned of is in the point's notes."""
        return measure(
            [*prefix, COMMAND, *arguments], environment=self.environment, accepted=(0, _PARTLY), settle=self.settle
        )

    def backup(self, *arguments: str) -> tuple[Measured, dict[str, Any]]:
        """A backup, and its restore point as `backup --json` prints it."""
        measured = self.call("backup", *arguments, "--json")
        return measured, json.loads(measured.output)

    def objects(self) -> dict[str, tuple[str, int]]:
        """Kind and size of each object of the repository, by name; a pack's kind is `chunks` or `map`."""
        found = {}
        for path in self.repository.rglob("*"):
            if path.is_file():
                name = str(path.relative_to(self.repository))
                kind = name.partition("/")[0]
                if kind == "packs":
                    with path.open("rb") as pack:
                        kind = "map" if pack.read(_PACK_TYPE_AT + 1)[-1] == _PACK_OF_NODES else "chunks"
                found[name] = kind, path.stat().st_size
        return found


@contextlib.contextmanager
def appliance(root: Path, *, settle: bool, settings: Mapping[str, str] | None = None) -> Iterator[Appliance]:
    """A new appliance, made in this process, as nobody asks here what `init` costs; at the end its recoveries are
    discarded, its servers ended, and the folder removed."""
    if not Path(COMMAND).exists():
        raise BenchError(f"{COMMAND} is missing: run 'make setup'")
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    root.chmod(0o711)  # QEMU's user has to reach overlays and scratch files
    made = Appliance(root, settle, settings or {})
    try:
        repositories.init(
            load({**os.environ, **made.environment}), None if settings else made.repository, _PASSPHRASE, lambda _: None
        )
        yield made
    finally:
        _end_servers(made)
        shutil.rmtree(root)


def _end_servers(made: Appliance) -> None:
    """End the processes that this appliance started and that outlived their command: their command lines name its
    home.
    """
    deadline = time.monotonic() + _STOP_S
    number = signal.SIGTERM
    while found := [pid for pid in _pids() if os.fsencode(made.home) in _command_line(pid)]:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        time.sleep(0.1)
        if time.monotonic() > deadline:
            number = signal.SIGKILL


def _pids() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdigit() and int(entry) != os.getpid())


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
