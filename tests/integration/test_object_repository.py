"""A repository in an object store, as an admin has it: settings in the home, and every command as ever."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.models import RecoveryState
from appliance.services.exports import ExportService
from appliance.services.points import PointService
from appliance.services.recovery import RecoveryService
from tests.integration.backing_up import MIB, Rig, plain, rig
from tests.integration.protected import command_lines, nbd_copy, patchwork
from tests.integration.recovering import (
    assert_export_gone,
    exports_of,
    kill_exports,
    look,
    no_supervisor,
    protect,
    reads_right,
    strongroom,
    wait_until,
)
from tests.lab import Lab
from tests.lab.s3_server import S3Server, running

__all__ = ["no_supervisor"]

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("no_supervisor")]

SIZE = 24 * MIB + 4096


@pytest.fixture(scope="module")
def server() -> S3Server:
    return running()


def settings_for(server: S3Server, prefix: str) -> dict[str, str]:
    return {
        "STRONGROOM_S3_ENDPOINT": server.url,
        "STRONGROOM_S3_BUCKET": server.bucket().name,
        "STRONGROOM_S3_PREFIX": prefix,
        "STRONGROOM_S3_ACCESS_KEY": server.credentials.access_key,
        "STRONGROOM_S3_SECRET_KEY": server.credentials.secret_key,
        "STRONGROOM_LIMITS_WORKERS": "1",
        "STRONGROOM_LIMITS_CHUNK_CACHE_BYTES": "64 MiB",  # tests look into every file of the home
    }


@pytest.fixture
def made(server: S3Server) -> Iterator[Rig]:
    """Its first command line has made the repository already."""
    with rig(settings_for(server, f"home-{secrets.token_hex(4)}/")) as strongroom:
        yield strongroom


def test_an_image_goes_into_a_bucket_and_comes_back_whole(made: Rig, server: S3Server) -> None:
    content = patchwork(SIZE)
    image, back = made.home / "disk.raw", made.home / "back.raw"
    image.write_bytes(content)
    strongroom(made, "backup", "--image", image, "--format", "raw", "--name", "img")
    content = content[:MIB] + secrets.token_bytes(5000) + content[MIB + 5000 :]
    image.write_bytes(content)
    strongroom(made, "backup", "--image", image, "--format", "raw", "--name", "img")
    assert len(strongroom(made, "point", "list", "--json").json()) == 2
    assert strongroom(made, "repository", "verify", "--read-data", "--json").json()["damaged"] == []
    info = strongroom(made, "repository", "info", "--json").json()
    assert info["location"].startswith(f"s3://{server.bucket().name}/home-")
    strongroom(made, "restore", "img", "--point", "latest", "--to", back, "--format", "raw")
    assert back.read_bytes() == content
    strongroom(made, "prune", "--keep-last", "1", "--yes")
    strongroom(made, "repository", "collect")
    assert strongroom(made, "repository", "verify", "--read-data", "--json").json()["damaged"] == []
    assert list((made.home / "repository").glob("*")) == [], "nothing went into a folder"


def test_a_disk_is_served_out_of_a_bucket_and_no_secret_shows(made: Rig, server: S3Server) -> None:
    content = patchwork(SIZE, seed=2)
    image = made.home / "disk.raw"
    image.write_bytes(content)
    strongroom(made, "backup", "--image", image, "--format", "raw", "--name", "img")
    service = ExportService(made.appliance)
    point = PointService(made.appliance).resolve("latest", "img")
    entry = point.manifest.disk("disk")
    assert entry is not None
    secret = server.credentials.secret_key.encode()
    with service.serve_point(point, entry, purpose="export") as served:
        assert nbd_copy(served.uri, made.home / "copy.raw") == content
        words = command_lines()
        assert b"export_plugin" in words
        assert secret not in words
    kept = [path for path in made.home.rglob("*") if path.is_file() and secret in path.read_bytes()]
    assert kept == [made.settings.location_file]
    assert kept[0].stat().st_mode & 0o777 == 0o600


def test_a_machine_runs_out_of_a_bucket_and_moves_while_it_runs(made: Rig) -> None:
    with Lab() as lab:
        protected = protect(made, lab, "bucket", [24 * MIB])
        service = RecoveryService(made.appliance)
        record = service.start(protected.name, "latest", new_name=f"{lab.token}again")
        guest = lab.adopt(record.machine_name)
        assert reads_right(guest, protected.disks[0])
        kill_exports(made, record)
        look(made).look()
        assert len(exports_of(made, record)) == 1, "the supervisor knows where the repository is"

        def reads_again() -> bool:
            """QEMU may only now notice that it lost the old export; then the machine stops, and the next look lets it
            go on."""
            look(made).look()
            return reads_right(guest, protected.disks[0])

        wait_until(reads_again, "the machine reads out of the new export")
        assert service.migrate(record.id).state is RecoveryState.MIGRATED
        assert_export_gone(made, record)
        path = guest.disk_paths["vda"]
        guest.remove()
        assert plain(path) == protected.disks[0].truth


def test_a_lost_home_is_made_again_from_the_bucket_and_the_recovery_key(server: S3Server) -> None:
    settings = settings_for(server, f"lost-{secrets.token_hex(4)}/")
    content = patchwork(SIZE, seed=3)
    with rig(settings) as first:
        image, key = first.home / "disk.raw", first.home.parent / "recovery.key"
        image.write_bytes(content)
        strongroom(first, "backup", "--image", image, "--format", "raw", "--name", "img")
        strongroom(first, "repository", "key", "add", "--recovery", "--recovery-key-file", key)
        first.close()
        shutil.rmtree(first.home)
        strongroom(first, "repository", "adopt", "--recovery-key-file", key)
        back = first.home / "back.raw"
        strongroom(first, "restore", "img", "--point", "latest", "--to", back, "--format", "raw")
        assert back.read_bytes() == content


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"STRONGROOM_S3_SECRET_KEY": "hush-wrong"}, "check the secret key"),
        ({"STRONGROOM_S3_BUCKET": "no-such-bucket"}, "make the bucket first"),
        ({"STRONGROOM_S3_ENDPOINT": "http://169.254.169.254"}, "metadata"),
        ({"STRONGROOM_S3_ENDPOINT": "http://192.0.2.1:9000"}, "plain http"),
        ({"STRONGROOM_S3_ENDPOINT": "https://user:hush@example.com"}, "user or a password"),
    ],
)
def test_what_cannot_be_reached_is_said_and_the_home_stays_free(
    server: S3Server, tmp_path: Path, changed: dict[str, str], said: str
) -> None:
    environment = settings_for(server, "wrong/") | {"STRONGROOM_HOME": str(tmp_path / "home")} | changed
    done = run_init(environment)
    assert done.returncode == 1, done.stderr
    assert said in done.stderr
    assert "hush" not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "home" / "keys" / "machine.key").exists()


def test_a_folder_beside_a_bucket_is_refused(server: S3Server, tmp_path: Path) -> None:
    environment = settings_for(server, "twice/") | {"STRONGROOM_HOME": str(tmp_path / "home")}
    done = run_init(environment, "--repository", "/srv/x")
    assert done.returncode == 2
    assert "s3.bucket" in done.stderr


def run_init(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("strongroom")), "init", *arguments]
    key = Path(environment["STRONGROOM_HOME"]).with_suffix(".key")
    return subprocess.run(
        [*command, "--recovery-key-file", str(key)],
        env={**os.environ, "STRONGROOM_PASSPHRASE": secrets.token_urlsafe(16), **environment},
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
