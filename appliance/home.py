"""The home folder: made with the right modes, its secrets written so that a crash leaves the old file or the new.

The rule: this module alone writes the machine key, the catalogs' keys and the settings file.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import tomllib
from pathlib import Path

from appliance.errors import StrongroomError
from appliance.setting_sections import DEFAULT_REPOSITORY
from appliance.settings import Settings
from imaging.storage.locations import BucketPrefix, ContainerPrefix, Folder, GcsPrefix, Location, encode_location

MACHINE_KEY_BYTES = 32
_PRIVATE, _TRAVERSABLE = 0o700, 0o711
_SOCKET_PATH_BYTES_MAX = 107  # what the kernel's sockaddr_un has room for
_SOCKET_IN_RUN = "x0123456789ab.999"  # the longest that exports, recoveries and image servers are given
_SOCKET_IN_SCRATCH = "run-0123456789ab/nbd"


class HomeUnusable(StrongroomError):
    """The home cannot be made, read or written."""

    def __init__(self, path: Path, reason: str, *, hint: str = "") -> None:
        super().__init__(
            f"{path}: {reason}",
            hint=hint or "Run as the user who owns it (usually root), or set STRONGROOM_HOME to another folder.",
            path=str(path),
        )


class PathTooLong(HomeUnusable):
    """Sockets in the folder would have longer paths than there can be."""

    def __init__(self, folder: Path, most_bytes: int, setting: str) -> None:
        length = len(os.fsencode(folder))
        super().__init__(
            folder,
            f"the path has {length} bytes, and sockets in this folder leave it {most_bytes} at most",
            hint=f"Set {setting} to a folder with a shorter path.",
        )


class MachineKeyRejected(StrongroomError):
    def __init__(self, key_file: Path, repository: str) -> None:
        super().__init__(
            f"the machine key {key_file} does not open the repository in {repository}: its key slot was removed or is"
            " lost",
            hint=(
                f"Move {key_file} away, then take the repository over again with its passphrase or recovery key:"
                f" strongroom repository adopt {shlex.quote(repository)}"
            ),
            key_file=str(key_file),
        )


class NoHome(StrongroomError):
    exit_code = 2

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is no home of Strongroom", hint="Give the folder that holds its strongroom.toml.")


class HomeInUse(StrongroomError):
    def __init__(self, home: Path) -> None:
        super().__init__(
            f"{home} is in use: it has a machine key that opens a repository",
            hint="See 'strongroom repository info'. For another repository, set STRONGROOM_HOME to another folder.",
            home=str(home),
        )


class RepositoryPathConflict(StrongroomError):
    exit_code = 2

    def __init__(self, set_to: str, location: str) -> None:
        super().__init__(
            f"the settings say that the repository is {set_to}, not {location}",
            hint="Leave the path away, or change repository.path, s3.bucket, azure.container or gcs.bucket in"
            " strongroom.toml (or STRONGROOM_REPOSITORY_PATH, STRONGROOM_S3_BUCKET, STRONGROOM_AZURE_CONTAINER or"
            " STRONGROOM_GCS_BUCKET).",
            set_to=set_to,
            location=location,
        )


class TwoPlaces(StrongroomError):
    exit_code = 2

    def __init__(self, one: str, other: str) -> None:
        super().__init__(
            f"the settings name two places of the repository: {one} and {other}",
            hint="Remove one of them from strongroom.toml or the environment.",
            settings=[one, other],
        )


class NoRepositoryYet(StrongroomError):
    def __init__(self, home: Path) -> None:
        super().__init__(
            f"{home} has no repository yet",
            hint="Make one with 'strongroom init', or take one over with 'strongroom repository adopt PATH'.",
            home=str(home),
        )


def prepare(settings: Settings) -> None:
    """Make the home's folders, with their modes; harmless again. HomeUnusable says which one cannot be made, or has too
    long a path for the sockets in it.
    """
    for folder, socket, setting in (
        (settings.run_directory, _SOCKET_IN_RUN, "STRONGROOM_HOME"),
        (settings.scratch.directory, _SOCKET_IN_SCRATCH, "STRONGROOM_HOME, or scratch.directory,"),
    ):
        most_bytes = _SOCKET_PATH_BYTES_MAX - len(f"/{socket}")
        if len(os.fsencode(folder)) > most_bytes:
            raise PathTooLong(folder, most_bytes, setting)
    folders = [
        (settings.home, _TRAVERSABLE),
        (settings.machine_key_file.parent, _PRIVATE),
        (settings.cache_directory, _PRIVATE),
        (settings.run_directory, _TRAVERSABLE),
        (settings.log_directory, _PRIVATE),
        (settings.scratch.directory, _TRAVERSABLE),
        (settings.overlays.directory, _TRAVERSABLE),
        (settings.machines_directory, _TRAVERSABLE),
    ]
    for folder, mode in folders:
        try:
            made = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            # A folder that an admin made keeps the mode that it was given, unless it holds secrets.
            if made or mode == _PRIVATE:
                folder.chmod(mode)
        except OSError as err:
            raise HomeUnusable(folder, f"it cannot be made: {err.strerror}") from err


def in_use(settings: Settings) -> bool:
    return os.path.lexists(settings.machine_key_file)


def read_machine_key(settings: Settings) -> bytes:
    """32 bytes; NoRepositoryYet when there is none."""
    path = settings.machine_key_file
    key = _read_secret(path)
    if key is None:
        raise NoRepositoryYet(settings.home)
    if len(key) != MACHINE_KEY_BYTES:
        raise HomeUnusable(
            path,
            "it is not a machine key (it must be 32 bytes)",
            hint="Move it away, then take the repository over again with 'strongroom repository adopt PATH'.",
        )
    return key


def _read_secret(path: Path) -> bytes | None:
    """At most one byte more than a key has; None: there is no such file. HomeUnusable, also if others may read it."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            secret = file.read(MACHINE_KEY_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as err:
        raise HomeUnusable(path, f"it cannot be read: {err.strerror}") from err
    if mode & 0o077:
        raise HomeUnusable(path, f"others may read it (mode {mode & 0o777:04o})", hint=f"chmod 0600 {path}")
    return secret


def read_catalog_key(settings: Settings, id: str) -> bytes | None:
    """What the file has, whatever that is; None: this home has none of this id. HomeUnusable."""
    return _read_secret(settings.catalog_key_file(id))


def write_catalog_key(settings: Settings, id: str, key: bytes) -> None:
    """In place of a file that is there already. HomeUnusable."""
    write_private(settings.catalog_key_file(id), key, replace=True)


def other_catalog_keys(settings: Settings, id: str) -> tuple[str, ...]:
    """The ids of those that this home has for other catalogs."""
    files = settings.catalog_key_file("*")
    found = (path.name.removeprefix("catalog-").removesuffix(".key") for path in files.parent.glob(files.name))
    return tuple(sorted(each for each in found if each != id))


def new_machine_key() -> bytes:
    return secrets.token_bytes(MACHINE_KEY_BYTES)


def write_machine_key(settings: Settings, key: bytes) -> None:
    """From now on the home is in use. HomeInUse when it is already."""
    write_private(settings.machine_key_file, key, replace=False, taken=HomeInUse(settings.home))


def location_of(settings: Settings) -> Location:
    """Where the settings say that the repository is. TwoPlaces."""
    s3, azure, gcs = settings.s3, settings.azure, settings.gcs
    named = {"s3.bucket": s3.bucket, "azure.container": azure.container, "gcs.bucket": gcs.bucket}
    said = [key for key, name in named.items() if name]
    if len(said) > 1:
        raise TwoPlaces(*said[:2])
    if gcs.bucket:
        return GcsPrefix(
            bucket=gcs.bucket, prefix=gcs.prefix, key_file=str(gcs.key_file), endpoint=gcs.endpoint,
            ca_file=None if gcs.ca_file is None else str(gcs.ca_file), connections=gcs.connections,
        )  # fmt: skip
    if azure.container:
        return ContainerPrefix(
            endpoint=azure.endpoint, account=azure.account, container=azure.container, prefix=azure.prefix,
            account_key=azure.account_key or None, sas_token=azure.sas_token or None,
            ca_file=None if azure.ca_file is None else str(azure.ca_file), connections=azure.connections,
        )  # fmt: skip
    if not s3.bucket:
        return Folder(settings.repository.path)
    return BucketPrefix(
        endpoint=s3.endpoint, bucket=s3.bucket, prefix=s3.prefix, region=s3.region, access_key=s3.access_key,
        secret_key=s3.secret_key, session_token=s3.session_token or None,
        ca_file=None if s3.ca_file is None else str(s3.ca_file), allow_plain=s3.allow_plain,
        connections=s3.connections, lock_mode=s3.lock_mode, lock_days=s3.lock_days if s3.lock_mode else 0,
        lock_extra_days=s3.lock_extra_days if s3.lock_mode else 0,
    )  # fmt: skip


def chosen_location(settings: Settings, path: Path | None) -> Location:
    """Where a repository is to be made or taken over: `path`, if given, or what the settings say.

    RepositoryPathConflict when they name another place: theirs would win at the next command.
    """
    set_to = location_of(settings)
    if path is None:
        return set_to
    chosen = Folder(path)
    if set_to not in (chosen, Folder(settings.home / DEFAULT_REPOSITORY)):
        raise RepositoryPathConflict(str(set_to), str(chosen))
    return chosen


def write_location(settings: Settings) -> Path:
    """The file that tells servers of disks where the repository is; unchanged if it says so already."""
    data = encode_location(location_of(settings))
    path = settings.location_file
    try:
        if path.read_bytes() == data and not path.stat().st_mode & 0o077:
            return path
    except OSError:
        pass  # not there, or not readable: it is written
    write_private(path, data, replace=True)
    return path


def remember_repository(settings: Settings, chosen: Location) -> None:
    """Put repository.path into strongroom.toml, if it does not say so already; everything else in it stays as it is."""
    if location_of(settings) == chosen or not isinstance(chosen, Folder):
        return
    location = chosen.path
    try:
        text = settings.file.read_text("utf-8")
    except FileNotFoundError:
        text = "# Strongroom's settings: docs/operations.md has all keys and their defaults.\n"
    line = f"path = {json.dumps(str(location), ensure_ascii=False)}"  # a JSON string is a TOML string
    changed, found = re.subn(
        r"(?m)^([ \t]*\[[ \t]*repository[ \t]*\].*)$", lambda head: f"{head[1]}\n{line}", text, count=1
    )
    if not found:
        changed = f"{text.rstrip()}\n\n[repository]\n{line}\n"
    try:
        as_read = tomllib.loads(changed)["repository"]["path"]
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as err:
        raise HomeUnusable(settings.file, f"repository.path cannot be added: {err}", hint=f"Add it: {line}") from err
    if as_read != str(location):
        raise HomeUnusable(settings.file, "repository.path cannot be added", hint=f"Add it: {line}")
    write_private(settings.file, changed.encode("utf-8"), replace=True)


def write_private(path: Path, data: bytes, *, replace: bool, taken: Exception | None = None) -> None:
    """Write a small file with mode 0600: temporary → fsync → rename (or link, which never replaces) → fsync folder."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                temporary.rename(path)
            else:
                os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError as err:
        raise taken or HomeUnusable(path, "it exists already", hint="Choose another name, or move it away.") from err
    except OSError as err:
        raise HomeUnusable(path, f"it cannot be written: {err.strerror}") from err
