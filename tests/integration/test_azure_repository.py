"""A repository in Azure Blob Storage, as an admin has it: settings in the home, and every command as ever."""

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
from tests.lab.azurite import ACCOUNT, CONTAINER, Azurite, running

__all__ = ["no_supervisor"]

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("no_supervisor")]

SIZE = 6 * MIB + 4096


@pytest.fixture(scope="module")
def server() -> Azurite:
    return running()


def settings_for(server: Azurite, prefix: str) -> dict[str, str]:
    return {
        "STRONGROOM_AZURE_ENDPOINT": server.url,
        "STRONGROOM_AZURE_ACCOUNT": ACCOUNT,
        "STRONGROOM_AZURE_CONTAINER": CONTAINER,
        "STRONGROOM_AZURE_PREFIX": prefix,
        "STRONGROOM_AZURE_ACCOUNT_KEY": server.credentials.account_key or "",
        "STRONGROOM_LIMITS_WORKERS": "1",
        "STRONGROOM_LIMITS_CHUNK_CACHE_BYTES": "32 MiB",  # tests look into every file of the home
    }


@pytest.fixture
def made(server: Azurite) -> Iterator[Rig]:
    """Its first command line has made the repository already."""
    with rig(settings_for(server, f"home-{secrets.token_hex(4)}/")) as strongroom:
        yield strongroom


def test_an_image_goes_into_a_container_comes_back_and_outlives_its_home(made: Rig, server: Azurite) -> None:
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
    assert list((made.home / "repository").glob("*")) == [], "nothing went into a folder"

    strongroom(made, "repository", "key", "add", "--recovery", "--recovery-key-file", key)
    made.close()
    shutil.rmtree(made.home)
    strongroom(made, "repository", "adopt", "--recovery-key-file", key)
    strongroom(made, "restore", "img", "--point", "latest", "--to", back, "--format", "raw")
    assert back.read_bytes() == content


def test_a_disk_is_served_out_of_a_container_and_no_secret_shows(made: Rig, server: Azurite) -> None:
    content = patchwork(SIZE, seed=2)
    image = made.home / "disk.raw"
    image.write_bytes(content)
    strongroom(made, "backup", "--image", image, "--format", "raw", "--name", "img")
    point = PointService(made.appliance).resolve("latest", "img")
    entry = point.manifest.disk("disk")
    assert entry is not None
    secret = (server.credentials.account_key or "").encode()
    with ExportService(made.appliance).serve_point(point, entry, purpose="export") as served:
        assert nbd_copy(served.uri, made.home / "copy.raw") == content
        words = command_lines()
        assert b"export_plugin" in words
        assert secret not in words
    kept = [path for path in made.home.rglob("*") if path.is_file() and secret in path.read_bytes()]
    assert kept == [made.settings.location_file]
    assert kept[0].stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"STRONGROOM_AZURE_ACCOUNT_KEY": "aHVzaA=="}, "shared access signature"),
        ({"STRONGROOM_AZURE_ACCOUNT_KEY": "hush?"}, "not base64"),
        ({"STRONGROOM_AZURE_CONTAINER": "no-such-container"}, "make the container first"),
        ({"STRONGROOM_AZURE_ENDPOINT": "http://169.254.169.254"}, "metadata"),
        ({"STRONGROOM_AZURE_ENDPOINT": "http://192.0.2.1:9000"}, "plain http"),
        ({"STRONGROOM_S3_BUCKET": "backups"}, "two places"),
    ],
)
def test_what_cannot_be_reached_is_said_and_the_home_stays_free(
    server: Azurite, tmp_path: Path, changed: dict[str, str], said: str
) -> None:
    environment = settings_for(server, "wrong/") | {"STRONGROOM_HOME": str(tmp_path / "home")} | changed
    done = run_init(environment)
    assert done.returncode == (2 if said == "two places" else 1), done.stderr
    assert said in done.stderr
    assert "hush" not in done.stderr + done.stdout
    assert "aHVzaA" not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "home" / "keys" / "machine.key").exists()
