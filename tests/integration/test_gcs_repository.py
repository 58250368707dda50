"""A repository in Google Cloud Storage, as an admin has it: settings in the home, and every command as ever."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.services.exports import ExportService
from appliance.services.points import PointService
from tests.integration.backing_up import MIB, Rig, rig
from tests.integration.protected import command_lines, nbd_copy, patchwork
from tests.integration.recovering import no_supervisor, strongroom
from tests.integration.test_object_repository import run_init
from tests.lab.gcs_server import BUCKET, GcsServer, running

__all__ = ["no_supervisor"]

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("no_supervisor")]

SIZE = 6 * MIB + 4096


@pytest.fixture(scope="module")
def server() -> GcsServer:
    return running()


def settings_for(server: GcsServer, prefix: str, key_file: Path) -> dict[str, str]:
    return {
        "STRONGROOM_GCS_ENDPOINT": server.url,
        "STRONGROOM_GCS_BUCKET": BUCKET,
        "STRONGROOM_GCS_PREFIX": prefix,
        "STRONGROOM_GCS_KEY_FILE": str(key_file),
        "STRONGROOM_LIMITS_WORKERS": "1",
        "STRONGROOM_LIMITS_CHUNK_CACHE_BYTES": "32 MiB",  # tests look into every file of the home
    }


@pytest.fixture
def made(server: GcsServer, tmp_path: Path) -> Iterator[Rig]:
    """Its first command line has made the repository already."""
    with rig(settings_for(server, f"home-{secrets.token_hex(4)}/", server.tokens.key_file(tmp_path))) as strongroom:
        yield strongroom


def test_an_image_goes_into_a_bucket_comes_back_and_outlives_its_home(made: Rig) -> None:
    content = patchwork(SIZE)
    image, back, key = made.home / "disk.raw", made.home / "back.raw", made.home.parent / "recovery.key"
    image.write_bytes(content)
    strongroom(made, "backup", "--image", image, "--format", "raw", "--name", "img")
    content = content[:MIB] + secrets.token_bytes(5000) + content[MIB + 5000 :]
    image.write_bytes(content)
    strongroom(made, "backup", "--image", image, "--format", "raw", "--name", "img")
    strongroom(made, "prune", "--keep-last", "1", "--yes")
    assert strongroom(made, "repository", "collect", "--json").json()
    assert strongroom(made, "repository", "verify", "--read-data", "--json").json()["damaged"] == []
    assert strongroom(made, "repository", "info", "--json").json()["location"].startswith(f"gs://{BUCKET}/home-")
    assert list((made.home / "repository").glob("*")) == [], "nothing went into a folder"
    refused = strongroom(made, "repository", "lock", expect=1).err
    assert f"Nothing can be locked in gs://{BUCKET}/home-" in refused, "Object Lock is S3's alone"

    strongroom(made, "repository", "key", "add", "--recovery", "--recovery-key-file", key)
    made.close()
    shutil.rmtree(made.home)
    strongroom(made, "repository", "adopt", "--recovery-key-file", key)
    strongroom(made, "restore", "img", "--point", "latest", "--to", back, "--format", "raw")
    assert back.read_bytes() == content


def test_a_disk_is_served_out_of_a_bucket_and_no_secret_shows(made: Rig, server: GcsServer) -> None:
    content = patchwork(SIZE, seed=2)
    image = made.home / "disk.raw"
    image.write_bytes(content)
    strongroom(made, "backup", "--image", image, "--format", "raw", "--name", "img")
    point = PointService(made.appliance).resolve("latest", "img")
    entry = point.manifest.disk("disk")
    assert entry is not None
    secret = server.tokens.private_key.splitlines()[1].encode()
    with ExportService(made.appliance).serve_point(point, entry, purpose="export") as served:
        assert nbd_copy(served.uri, made.home / "copy.raw") == content
        words = command_lines()
        assert b"export_plugin" in words
        assert secret not in words
    kept = [path.read_bytes() for path in made.home.rglob("*") if path.is_file()]
    assert not [data for data in kept if secret in data], "it stays where the admin has put it"
    assert not [data for data in kept for token in server.tokens.lent if token.encode() in data]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"STRONGROOM_GCS_KEY_FILE": "google.json"}, "others may read it"),
        ({"STRONGROOM_GCS_KEY_FILE": "/no/such/file"}, "cannot be read"),
        ({"STRONGROOM_GCS_BUCKET": "no-such-bucket"}, "make the bucket first"),
        ({"STRONGROOM_GCS_ENDPOINT": "http://169.254.169.254"}, "metadata"),
        ({"STRONGROOM_GCS_ENDPOINT": "http://192.0.2.1:9000"}, "plain http"),
        ({"STRONGROOM_AZURE_CONTAINER": "backups"}, "two places"),
    ],
)
def test_what_cannot_be_reached_is_said_and_the_home_stays_free(
    server: GcsServer, tmp_path: Path, changed: dict[str, str], said: str
) -> None:
    home = tmp_path / "home"
    home.mkdir(0o700)
    (home / "google.json").write_text('{"type": "service_account", "private_key": "hush"}')
    (home / "google.json").chmod(0o644)
    environment = settings_for(server, "wrong/", server.tokens.key_file(tmp_path))
    done = run_init(environment | {"STRONGROOM_HOME": str(home)} | changed)
    assert done.returncode == (2 if said == "two places" else 1), done.stderr
    assert said in done.stderr
    assert "hush" not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert not (home / "keys" / "machine.key").exists()


def test_the_key_may_lie_where_it_is_looked_for(server: GcsServer, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "keys").mkdir(mode=0o700, parents=True)
    server.tokens.key_file(tmp_path).rename(home / "keys" / "google.json")
    environment = settings_for(server, f"home-{secrets.token_hex(4)}/", Path()) | {"STRONGROOM_HOME": str(home)}
    del environment["STRONGROOM_GCS_KEY_FILE"]
    done = run_init(environment)
    assert done.returncode == 0, done.stderr
    assert (home / "keys" / "machine.key").exists()
