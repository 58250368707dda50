"""Settings: every value checked, every unknown name refused, the environment over the file over the defaults."""

from __future__ import annotations

import dataclasses
import socket
import stat
from pathlib import Path

import pytest

from appliance import home
from appliance.settings import DEFAULT_HOME, Settings, SettingsError, load
from imaging.errors import Damaged
from imaging.storage.locations import Folder, GcsPrefix, read_location


def settings_of(folder: Path, toml: str = "", **environment: str) -> Settings:
    if toml:
        (folder / "strongroom.toml").touch(mode=0o600)
        (folder / "strongroom.toml").write_text(toml, "utf-8")
    return load({"STRONGROOM_HOME": str(folder)} | environment)


@pytest.mark.parametrize(
    ("toml", "named"),
    [
        ('[s3]\naccess_key = "a"\nsecret_key = "hush"\n', "s3.secret_key"),
        ('[azure]\naccount_key = "aHVzaA=="\n', "azure.account_key"),
        ('[catalog]\nurl = "postgresql+psycopg://me:hush@db/strongroom"\n', "catalog.url"),
        ('[notices.targets]\nops = "mailtos://me:hush@mail.example.org"\n', "notices.targets"),
    ],
)
def test_a_file_with_credentials_is_its_owners_alone(tmp_path: Path, toml: str, named: str) -> None:
    file = tmp_path / "strongroom.toml"
    file.write_text(toml, "utf-8")
    file.chmod(0o640)
    with pytest.raises(SettingsError, match=f"others may read it .*{named}") as caught:
        settings_of(tmp_path)
    assert "hush" not in str(caught.value)
    assert f"chmod 0600 {file}" in caught.value.hint
    file.chmod(0o600)
    settings_of(tmp_path)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("s3", "access_key", "a"), ("catalog", "url", "postgresql+psycopg:///strongroom")],
)
def test_a_file_without_any_may_be_read_by_all(tmp_path: Path, section: str, key: str, value: str) -> None:
    (tmp_path / "strongroom.toml").write_text(f'[{section}]\n{key} = "{value}"\n', "utf-8")
    (tmp_path / "strongroom.toml").chmod(0o644)
    assert getattr(getattr(settings_of(tmp_path), section), key) == value


def test_defaults_stay_inside_the_home(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    paths = [
        settings.repository.path,
        settings.scratch.directory,
        settings.overlays.directory,
        settings.catalog_file,
        settings.machine_key_file,
        settings.cache_directory,
        settings.run_directory,
        settings.log_directory,
        settings.file,
    ]
    assert all(path.is_relative_to(tmp_path) for path in paths)


def test_without_a_home_the_usual_one_is_meant() -> None:
    assert load({}).home == DEFAULT_HOME


def test_file_then_environment(tmp_path: Path) -> None:
    toml = '[scratch]\nlimit_bytes = "3 GiB"\ndirectory = "/mnt/scratch"\n[limits]\nworkers = 3\n'
    settings = settings_of(tmp_path, toml, STRONGROOM_LIMITS_WORKERS="5")
    assert settings.scratch.limit_bytes == 3 * 1024**3
    assert settings.scratch.directory == Path("/mnt/scratch")
    assert settings.limits.workers == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [("10", 10), ("1 kB", 1000), ("1KiB", 1024), ("2 GiB", 2 * 1024**3), ("3 TB", 3 * 1000**4), ("7 B", 7)],
)
def test_sizes(tmp_path: Path, text: str, expected: int) -> None:
    assert settings_of(tmp_path, STRONGROOM_SCRATCH_LIMIT_BYTES=text).scratch.limit_bytes == expected


@pytest.mark.parametrize(
    ("toml", "names"),
    [
        ("[repozitory]\npath = 'x'\n", ["repozitory", "repository"]),
        ("[scratch]\nlimit = 1\n", ["limit", "limit_bytes"]),
        ("repository = 'x'\n", ["[repository]"]),
        ("[scratch]\nlimit_bytes = 'lots'\n", ["scratch.limit_bytes", "lots"]),
        ("[scratch]\nlimit_bytes = 0\n", ["scratch.limit_bytes", "0"]),
        ("[scratch]\nlimit_bytes = -5\n", ["scratch.limit_bytes", "-5"]),
        ("[limits]\nworkers = true\n", ["limits.workers", "whole number"]),
        ("[limits]\nworkers = 1.5\n", ["limits.workers", "whole number"]),
        ("[agent]\nlongest_freeze_s = 'soon'\n", ["agent.longest_freeze_s"]),
        ("[limits]\nmemory_bytes = 1\n", ["limits", "memory_bytes"]),  # what nothing obeys cannot be set
        ("[limits]\ntool_memory_bytes = 1\n", ["limits", "tool_memory_bytes"]),
        ("[limits]\ntool_cpu_s = 1\n", ["limits", "tool_cpu_s"]),
        ("[recovery]\nnetwork = 'a b'\n", ["recovery.network"]),
        ("[restore]\nfolders = ['vms']\n", ["restore.folders", "begin with /"]),
        ("[restore]\nfolders = ['/srv/../etc']\n", ["restore.folders", "'..'"]),
        ("[restore]\nfolders = 1\n", ["restore.folders", "list of folders"]),
        ("[repository]\npath = ''\n", ["repository.path"]),
        ("[repository\n", ["not TOML"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, toml: str, names: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        settings_of(tmp_path, toml)
    said = f"{caught.value} {caught.value.hint}"
    assert "strongroom.toml" in said
    assert all(name in said for name in names), said


def test_folders_come_from_a_list_or_the_environment(tmp_path: Path) -> None:
    assert settings_of(tmp_path).restore.folders == ("/var/lib/libvirt/images",)
    toml = "[restore]\nfolders = ['/srv/a b', '/srv/vms/']\n"
    assert settings_of(tmp_path, toml).restore.folders == ("/srv/a b", "/srv/vms")
    assert settings_of(tmp_path, STRONGROOM_RESTORE_FOLDERS="/srv/vms, /data").restore.folders == ("/srv/vms", "/data")
    assert settings_of(tmp_path, STRONGROOM_RESTORE_FOLDERS="").restore.folders == ()


def test_a_mistyped_variable_is_an_error_and_foreign_ones_are_not(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="STRONGROOM_SCRATCH_LIMIT"):
        settings_of(tmp_path, STRONGROOM_SCRATCH_LIMIT="1 GiB")
    settings_of(tmp_path, STRONGROOM_PASSPHRASE="x", STRONGROOM_RECOVERY_KEY_FILE="y", STRONGROOM_DEBUG="1")


def test_a_relative_home_is_refused() -> None:
    with pytest.raises(SettingsError, match="absolute"):
        load({"STRONGROOM_HOME": "var"})


def test_settings_are_frozen(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.limits.workers = 9  # type: ignore[misc]


def test_modes_of_the_home(tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "home")
    home.prepare(settings)
    home.write_machine_key(settings, home.new_machine_key())
    modes = {
        settings.home: 0o711,
        settings.machine_key_file.parent: 0o700,
        settings.machine_key_file: 0o600,
        settings.cache_directory: 0o700,
        settings.run_directory: 0o711,
        settings.scratch.directory: 0o711,
    }
    assert {path: stat.S_IMODE(path.stat().st_mode) for path in modes} == modes


def test_a_home_whose_sockets_would_have_too_long_paths_is_refused(tmp_path: Path) -> None:
    """As the kernel has it: a home at the limit can have every socket that is made in it."""
    scratch = {"STRONGROOM_SCRATCH_DIRECTORY": str(tmp_path / "s")}

    def home_of(length: int) -> Path:
        return tmp_path / ("h" * (length - len(str(tmp_path)) - 1))

    longest = 107 - len("/run/x0123456789ab.999")
    with pytest.raises(home.HomeUnusable, match=f"{longest + 1 + len('/run')} bytes") as refused:
        home.prepare(settings_of(home_of(longest + 1), **scratch))
    assert "STRONGROOM_HOME" in refused.value.hint
    assert not home_of(longest + 1).exists()
    settings = settings_of(home_of(longest), **scratch)
    home.prepare(settings)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(settings.run_directory / "x0123456789ab.999"))
    with pytest.raises(home.HomeUnusable, match=r"sockets in this folder") as refused:
        home.prepare(settings_of(home_of(longest)))
    assert "scratch.directory" in refused.value.hint


def test_the_machine_key_is_written_once_and_read_back(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    home.prepare(settings)
    with pytest.raises(home.NoRepositoryYet):
        home.read_machine_key(settings)
    key = home.new_machine_key()
    home.write_machine_key(settings, key)
    with pytest.raises(home.HomeInUse):
        home.write_machine_key(settings, home.new_machine_key())
    assert home.read_machine_key(settings) == key
    assert sorted(path.name for path in settings.machine_key_file.parent.iterdir()) == ["machine.key"]


def test_a_machine_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    home.prepare(settings)
    home.write_machine_key(settings, home.new_machine_key())
    settings.machine_key_file.chmod(0o644)
    with pytest.raises(home.HomeUnusable, match="others may read"):
        home.read_machine_key(settings)


def test_a_short_machine_key_is_refused(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    home.prepare(settings)
    home.write_machine_key(settings, b"short")
    with pytest.raises(home.HomeUnusable, match="not a machine key"):
        home.read_machine_key(settings)


def test_remembering_the_repository_keeps_what_an_admin_wrote(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "# mine\n[limits]\nworkers = 3  # two are busy\n")
    home.remember_repository(settings, Folder(Path("/srv/backup")))
    text = settings.file.read_text("utf-8")
    assert "# mine" in text
    assert "# two are busy" in text
    again = settings_of(tmp_path)
    assert again.repository.path == Path("/srv/backup")
    assert again.limits.workers == 3
    home.remember_repository(again, Folder(Path("/srv/backup")))
    assert settings.file.read_text("utf-8") == text


@pytest.mark.parametrize(
    "before",
    [
        "",
        "[repository]\ncompression_level = 3\n",
        "[ repository ] # here\n",
        "# [repository]\n",
        "[limits]\nworkers = 1",
    ],
)
@pytest.mark.parametrize("location", ["/srv/back up", '/srv/"quoted"', "/srv/\u00e9\u2028\\n"])
def test_the_repository_is_remembered_whatever_the_file_says(tmp_path: Path, before: str, location: str) -> None:
    settings = settings_of(tmp_path, before)
    home.remember_repository(settings, Folder(Path(location)))
    assert settings_of(tmp_path).repository.path == Path(location)


def test_another_repository_than_the_settings_say_is_refused(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "[repository]\npath = '/srv/a'\n")
    assert (
        home.chosen_location(settings, Path("/srv/a")) == Folder(Path("/srv/a")) == home.chosen_location(settings, None)
    )
    with pytest.raises(home.RepositoryPathConflict, match=r"/srv/a.*/srv/b"):
        home.chosen_location(settings, Path("/srv/b"))


S3 = "[s3]\nbucket = 'backups'\nendpoint = 'https://s3.example.com'\naccess_key = 'AKIA'\nsecret_key = 'hush'\n"


def test_with_a_bucket_the_repository_is_there(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, S3)
    location = home.chosen_location(settings, None)
    assert str(location) == "s3://backups/ at https://s3.example.com"
    with pytest.raises(home.RepositoryPathConflict, match=r"s3://backups/.*/srv/b"):
        home.chosen_location(settings, Path("/srv/b"))
    before = settings.file.read_text()
    home.remember_repository(settings, location)
    assert settings.file.read_text() == before
    assert "hush" not in repr(settings)
    assert "hush" not in repr(location)


AZURE = "[azure]\ncontainer = 'backups'\naccount = 'acme'\naccount_key = 'aHVzaA=='\nprefix = 'home/'\n"


def test_with_a_container_the_repository_is_there(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, AZURE)
    location = home.chosen_location(settings, None)
    assert str(location) == "azure://acme/backups/home/"
    with pytest.raises(home.RepositoryPathConflict, match=r"azure://acme/backups/.*/srv/b"):
        home.chosen_location(settings, Path("/srv/b"))
    assert "aHVzaA" not in repr(settings) + repr(location)
    with pytest.raises(home.TwoPlaces, match=r"s3\.bucket and azure\.container"):
        home.location_of(settings_of(tmp_path, AZURE + S3))


GCS = "[gcs]\nbucket = 'backups'\nprefix = 'home/'\n"


def test_with_a_bucket_of_google_the_repository_is_there(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, GCS)
    location = home.chosen_location(settings, None)
    assert str(location) == "gs://backups/home/"
    assert location == GcsPrefix("backups", "home/", str(tmp_path / "keys" / "google.json"))
    with pytest.raises(home.RepositoryPathConflict, match=r"gs://backups/.*/srv/b"):
        home.chosen_location(settings, Path("/srv/b"))
    for other, named in ((S3, r"s3\.bucket and gcs\.bucket"), (AZURE, r"azure\.container and gcs\.bucket")):
        with pytest.raises(home.TwoPlaces, match=named):
            home.location_of(settings_of(tmp_path, GCS + other))


@pytest.mark.parametrize("toml", [S3, AZURE, GCS])
def test_where_the_repository_is_can_be_read_by_its_owner_alone(tmp_path: Path, toml: str) -> None:
    settings = settings_of(tmp_path, toml)
    (tmp_path / "keys").mkdir()
    path = home.write_location(settings)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_location(path) == home.location_of(settings)
    written = path.stat().st_ino
    assert home.write_location(settings).stat().st_ino == written, "it says so already"
    path.chmod(0o644)
    with pytest.raises(Damaged, match="others may read it"):
        read_location(path)
    home.write_location(settings)
    assert read_location(path) == home.location_of(settings)
    path.write_bytes(b"{}")
    with pytest.raises(Damaged, match="does not say"):
        read_location(path)


@pytest.mark.parametrize("name", ["access_key", "secret_key", "session_token"])
def test_a_secret_that_cannot_be_used_is_not_shown(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=rf"s3\.{name} is not usable") as refused:
        settings_of(tmp_path, f'[s3]\n{name} = "hu\\u0000sh"\n')
    assert "hu" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_targets_of_notices_come_from_a_table_or_the_environment(tmp_path: Path) -> None:
    toml = '[notices]\ndigest_at = "06:30"\nzone = "Europe/Berlin"\ndigest_to = ["ops"]\n'
    toml += '[notices.targets]\nops = "mailtos://me:hush@mail"\nchat = "slack://hush/hush"\n'
    notices = settings_of(tmp_path, toml).notices
    assert [(each.name, each.kind) for each in notices.targets] == [("ops", "mailtos"), ("chat", "slack")]
    assert [each.name for each in notices.of(notices.digest_to)] == ["ops"]
    assert [each.name for each in notices.of(notices.alerts_to)] == ["ops", "chat"]
    assert "hush" not in repr(settings_of(tmp_path))
    given = settings_of(tmp_path, STRONGROOM_NOTICES_TARGETS=" ops=json://hush/x\n b=xml://y ")
    assert [(each.name, each.url) for each in given.notices.targets] == [("ops", "json://hush/x"), ("b", "xml://y")]


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ('[notices.targets]\n"a b" = "json://hush"\n', "the name of target 1 must be"),
        ('[notices.targets]\nops = "hush"\n', "the URL of ops must be KIND://"),
        ('[notices.targets]\nops = "json://hush\\u0007"\n', "the URL of ops must be KIND://"),
        ("[notices.targets]\nops = 5\n", "the URL of ops must be KIND://"),
        ("[notices]\ntargets = 5\n", "a table with a URL for each name"),
        ('[notices]\ndigest_to = ["ops"]\n', "notices.targets has no 'ops'"),
        ('[notices]\ndigest_at = "7"\n', "a time of the day such as 07:00"),
        ('[notices]\nzone = "localtime"\n', "the name of a time zone"),
        ('[notices]\nzone = "../../etc/passwd"\n', "the name of a time zone"),
        ('[notices]\nalerts_to = "a b,c d"\n', "notices.targets has no 'a'"),
    ],
)
def test_wrong_notice_settings_are_told_without_their_secrets(tmp_path: Path, toml: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told) as caught:
        settings_of(tmp_path, toml)
    assert "hush" not in str(caught.value)
