"""The tools that are compared, as commands.

The rule: each is run as its own documentation advises for disk images, encrypted where it can encrypt, and restores to
a file that is compared byte by byte. Braces are filled in by `disk`: {root} the tool's own folder, {repository},
{source} the folder with disk.raw, {out} where it restores to, {tag} day0, day1 or other, {name} the machine.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.bench.strongroom import COMMAND

PASSPHRASE = "correct horse battery staple"

Command = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tool:
    """`backup` and `init` run in {source}, `restore` and `verify` in {out}."""

    name: str
    init: Command
    backup: Command
    restore: Command
    verify: Command | None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def installed(self) -> bool:
        return shutil.which(self.init[0]) is not None and shutil.which(self.backup[0]) is not None


def _shell(script: str, *arguments: str) -> Command:
    return ("bash", "-ec", script, "bash", *arguments)


def until_durable(restore: Command) -> Command:
    """A restore is over when the disk would outlive a power cut: some tools leave that to the kernel."""
    return _shell('"$@" && sync -f .', *restore)


def _restic() -> Tool:
    # Debian 12's restic writes sparse files only when it has the option.
    sparse: Command = ()
    if shutil.which("restic"):
        options = subprocess.run(["restic", "restore", "--help"], capture_output=True, text=True, check=False).stdout
        sparse = ("--sparse",) if "--sparse" in options else ()
    return Tool(
        "restic",
        init=("restic", "init", "-q", "--repository-version", "2", "-r", "{repository}"),
        backup=("restic", "backup", "-q", "-r", "{repository}", "disk.raw"),
        restore=("restic", "restore", "-q", *sparse, "latest", "-r", "{repository}", "--target", "{out}"),
        verify=("restic", "check", "-q", "--read-data", "-r", "{repository}"),
        environment={"RESTIC_PASSWORD": PASSPHRASE, "RESTIC_CACHE_DIR": "{root}/cache"},
    )


def _borg(name: str, *options: str) -> Tool:
    archive = "{repository}::{tag}"
    return Tool(
        name,
        init=("borg", "init", "-e", "repokey-blake2", "{repository}"),
        backup=("borg", "create", "-C", "zstd,1", *options, "--files-cache", "disabled", archive, "disk.raw"),
        restore=("borg", "extract", "--sparse", archive),
        verify=("borg", "check", "--verify-data", "{repository}"),
        environment={"BORG_PASSPHRASE": PASSPHRASE, "BORG_BASE_DIR": "{root}/base"},
    )


def all_tools() -> tuple[Tool, ...]:
    copy = 'cp --sparse=always "$1" "$2" && sync "$2"'
    convert = ("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd")
    return (
        Tool(
            "copy",
            init=("mkdir", "{repository}"),
            backup=_shell(copy, "disk.raw", "{repository}/{tag}.raw"),
            restore=_shell(copy, "{repository}/{tag}.raw", "disk.raw"),
            verify=None,
        ),
        Tool(
            "qemu-img",
            init=("mkdir", "{repository}"),
            backup=(*convert, "disk.raw", "{repository}/{tag}.qcow2"),
            restore=("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "{repository}/{tag}.qcow2", "disk.raw"),
            verify=None,
        ),
        _restic(),
        _borg("borg"),
        _borg("borg-fixed", "--sparse", "--chunker-params", "fixed,4194304"),
        Tool(
            "strongroom",
            init=(COMMAND, "init", "--repository", "{repository}", "--recovery-key-file", "{root}/recovery.key"),
            backup=(COMMAND, "backup", "--image", "{source}/disk.raw", "--format", "raw", "--name", "{name}"),
            restore=(COMMAND, "restore", "{name}", "--point", "latest", "--disk", "disk", "--to", "{out}/disk.raw",
                     "--format", "raw"),
            verify=(COMMAND, "repository", "verify", "--read-data"),
            environment={"STRONGROOM_HOME": "{root}/home", "STRONGROOM_PASSPHRASE": PASSPHRASE},
        ),
    )  # fmt: skip
