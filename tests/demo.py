"""`make demo`: a real machine is protected, lost, run again out of the repository, moved to storage while it runs,
and compared.

The rule: everything goes through the command line that an admin uses; what the guest holds, the guest itself says; a
claim that does not hold ends the demo with an error. It leaves a repository and its recovery key to play with, no
machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.lab import Lab, LabGuest

FOLDER = Path("/var/tmp/strongroom-demo")
MACHINE = "strongroom-demo"
RECOVERED = "strongroom-demo-recovered"
LETTER = "written between the full backup and the incremental one"
MIB = 1 << 20


class DemoFailed(Exception):
    """Something that the demo claims did not hold."""


class Demo:
    """One pass. Owns the folder; borrows the lab."""

    def __init__(self, lab: Lab, console: Console) -> None:
        self.lab = lab
        self.console = console
        self.rows: list[tuple[str, float, str]] = []
        self.environment = os.environ | {
            "STRONGROOM_HOME": str(FOLDER / "home"),
            "STRONGROOM_PASSPHRASE": "correct horse battery staple",
        }

    def strongroom(self, *arguments: str) -> Any:
        """Run the command line; what it printed as JSON, or None."""
        command = [str(Path(sys.executable).with_name("strongroom")), *arguments]
        self.console.print(f"[dim]$ strongroom {' '.join(arguments)}[/dim]", highlight=False, soft_wrap=True)
        as_json = "--json" in arguments
        done = subprocess.run(
            command, env=self.environment, stdout=subprocess.PIPE if as_json else None, text=True, check=False
        )
        if done.returncode != 0:
            raise DemoFailed(f"'strongroom {' '.join(arguments)}' ended with {done.returncode}")
        return json.loads(done.stdout) if as_json else None

    @contextmanager
    def step(self, title: str) -> Iterator[list[str]]:
        """Time a step; what the body appends becomes the row's remark."""
        self.console.print(f"[bold]{title}[/bold]")
        remarks: list[str] = []
        started = time.monotonic()
        yield remarks
        self.rows.append((title, time.monotonic() - started, "; ".join(remarks)))

    def run(self) -> None:
        guest = self.prepare()
        reference = self.protect(guest)
        self.lose(guest)
        self.recover()
        self.restore(reference)
        self.show()

    def prepare(self) -> LabGuest:
        """A repository, a host, and a machine that runs."""
        with self.step("Make a repository"):
            self.strongroom("init", "--repository", str(FOLDER / "repository"),
                            "--recovery-key-file", str(FOLDER / "recovery.key"))  # fmt: skip
            self.strongroom("host", "add", "here", "qemu:///system")
        with self.step("Boot the test machine (emulated, no KVM)"):
            disk = self.lab.ext4_disk("vda", 2048 * MIB, name="demo-vda")
            guest = self.lab.machine(MACHINE, disks=[disk], agent=True)
            guest.start()
            guest.wait_agent()
            guest.fill("/mnt/vda/data", 192)
        return guest

    def protect(self, guest: LabGuest) -> Path:
        """A full and an incremental backup; returns a copy of the disk as it was at the second."""
        with self.step("Full backup of the running machine") as remarks:
            point = self.strongroom("backup", MACHINE, "--json")
            expect(
                point["kind"] == "full" and point["consistency"] == "application", f"a frozen full point, not {point}"
            )
            remarks.append(read_and_stored(point))
        with self.step("The guest writes"):
            guest.write("/mnt/vda/letter", LETTER)
            guest.fill("/mnt/vda/news", 4)
            guest.sync()
        # paused from before the backup to its end, so that the lost disk can be compared bit for bit
        guest.domain.suspend()
        with self.step("Incremental backup (paused meanwhile, so that its disk can be compared)") as remarks:
            point = self.strongroom("backup", MACHINE, "--json")
            expect(point["kind"] == "incremental", f"an incremental point, not {point}")
            remarks.append(read_and_stored(point))
        self.strongroom("point", "list")
        reference = FOLDER / "lost-disk.qcow2"
        guest.kill()
        shutil.copyfile(guest.disk_paths["vda"], reference)
        return reference

    def lose(self, guest: LabGuest) -> None:
        with self.step("Disaster: the machine is killed, its disk deleted"):
            disk = guest.disk_paths["vda"]
            guest.remove()
            disk.unlink()

    def recover(self) -> None:
        """Instant recovery, migration, and the end of the export."""
        with self.step("Instant recovery, until the machine is started") as remarks:
            recovery = self.strongroom("recovery", "start", MACHINE, "--point", "latest", "--as", RECOVERED, "--json")
            remarks.append("request to domain started, command included")
        with self.step("… until the guest itself reports its data") as remarks:
            guest = self.lab.adopt(RECOVERED)
            guest.wait_ready()
            found = guest.read("/mnt/vda/letter")
            expect(found == LETTER, f"the letter reads {found!r}")
            remarks.append(f"it reads: {found!r}")
        guest.write("/mnt/vda/reply", "written while it ran out of the repository")
        with self.step("Migrate it to storage while it runs"):
            self.strongroom("recovery", "migrate", recovery["id"])
            state = {item["id"]: item["state"] for item in self.strongroom("recovery", "list", "--json")}
            expect(state.get(recovery["id"], "migrated") == "migrated", f"it is {state}")
        with self.step("The export is gone, the guest runs on and writes") as remarks:
            servers = subprocess.run(["pgrep", "-f", f"nbdkit.*{FOLDER}"], capture_output=True, text=True, check=False)
            expect(servers.stdout.strip() == "", "no nbdkit of this demo runs any more")
            guest.write("/mnt/vda/more", "written after the migration")
            expect(guest.read("/mnt/vda/reply").startswith("written while"), "what it wrote before is there")
            expect(guest.running, "the machine runs")
            remarks.append(f"overlay: {guest.disk_paths['vda']}")
        guest.remove()

    def restore(self, reference: Path) -> None:
        target = FOLDER / "restored.qcow2"
        with self.step("Restore the disk to qcow2"):
            self.strongroom("restore", MACHINE, "--point", "latest", "--disk", "vda", "--to", str(target),
                            "--format", "qcow2")  # fmt: skip
        with self.step("Compare it with the disk that was lost") as remarks:
            done = subprocess.run(["qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", str(target), str(reference)],
                                  capture_output=True, text=True, check=False)  # fmt: skip
            expect(done.returncode == 0, f"qemu-img compare says: {done.stdout}{done.stderr}")
            remarks.append(done.stdout.strip())
        reference.unlink()

    def show(self) -> None:
        table = Table(title="Strongroom, the main job", title_justify="left")
        table.add_column("step")
        table.add_column("seconds", justify="right")
        table.add_column("what came of it", overflow="fold")
        for title, seconds, remark in self.rows:
            table.add_row(title, f"{seconds:.1f}", remark)
        info = self.strongroom("repository", "info", "--json")
        self.console.print(table)
        self.console.print(
            f"The repository holds both points in {size(disk_usage(FOLDER / 'repository'))}"
            f" ({info['points']} points).\n\n"
            "[bold]What to try next[/bold]\n"
            f"  export STRONGROOM_HOME={FOLDER}/home\n"
            "  .venv/bin/strongroom point list\n"
            f"  .venv/bin/strongroom mount {MACHINE} --point latest /mnt        every disk as a raw file\n"
            f"  .venv/bin/strongroom export serve {MACHINE} --point latest      over NBD\n"
            "  .venv/bin/strongroom repository verify --read-data\n"
            f"With nothing but the repository and its key, on any machine:\n"
            f"  .venv/bin/strongroom --home /tmp/elsewhere repository adopt {FOLDER}/repository"
            f" --recovery-key-file {FOLDER}/recovery.key\n"
            f"Remove it all: rm -rf {FOLDER}",
            highlight=False,
        )


def expect(held: bool, claim: str) -> None:
    if not held:
        raise DemoFailed(claim)


def size(count: int) -> str:
    return f"{count / MIB:.1f} MiB"


def disk_usage(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def read_and_stored(point: dict[str, Any]) -> str:
    return f"{size(point['read_bytes'])} read, {size(point['stored_bytes'])} stored"


def remove_earlier(lab: Lab) -> None:
    """What an earlier demo left: its machines, if it was cut off, and its folder."""
    for name in (MACHINE, RECOVERED):
        lab.adopt(name).remove()
    if FOLDER.exists():
        shutil.rmtree(FOLDER)


def main() -> int:
    console = Console()
    with Lab(exact_names=True) as lab:
        remove_earlier(lab)
        FOLDER.mkdir(mode=0o755)
        try:
            Demo(lab, console).run()
        except DemoFailed as err:
            console.print(f"[red]The demo failed: {err}[/red]", highlight=False)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
