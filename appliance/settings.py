"""What an admin may set: one TOML file in the home, and environment variables over it.

The rule: every value is checked when it is read, an unknown section or key is an error that names it (a typing mistake
must never mean "the default"), and the result is frozen. Order: defaults, then strongroom.toml, then
STRONGROOM_<SECTION>_<KEY>. Relative paths are relative to the home. Nothing is written outside the home, unless a
path set here leads out of it.

    STRONGROOM_HOME           mode   what
      strongroom.toml         0600   this file
      catalog.sqlite          0600   the catalog, unless it is a shared one (rebuilt by `repository adopt`)
      queue.sqlite            0600   what wakes the workers: the catalog has the runs (may be deleted at any time)
      appliance.id            0600   who this appliance is
      audit.head              0600   the newest entry of the audit that this home knows of
      audit/                  0700   acts under way, until the audit has them
      keys/machine.key        0600   opens the repository unattended
      keys/catalog-*.key      0600   what second factors are sealed with in the catalog
      keys/web.*              0600   the console's certificate, its key, and what its forms are signed with
      keys/location.json      0600   where the repository is, for the servers of its disks
      keys/google.json        0600   the key of a service account, put there by the admin (only with [gcs])
      cache/                  0700   chunk index and manifests: may be deleted at any time
      run/                    0711   sockets and locks
      scratch/ overlays/      0711   what guests overwrite during a backup; what recovered guests write
      machines/               0711   disks of restored machines
      logs/                   0700

What has mode 0711 may be traversed but not listed by others: QEMU runs as a user of its own and has to reach its
sockets and overlays. Secrets are readable by their owner alone.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from appliance import setting_values as v
from appliance.errors import StrongroomError
from appliance.notices.targets import NoticeTarget, read_clock_time, read_names, read_targets, read_zone

DEFAULT_HOME = Path("/var/lib/strongroom")
SETTINGS_FILE = "strongroom.toml"
DEFAULT_REPOSITORY = Path("repository")
PREFIX = "STRONGROOM_"


class SettingsError(StrongroomError):
    """A setting that cannot be used; `where` is the file or the environment variable."""

    def __init__(self, where: str, what: str, *, hint: str = "") -> None:
        super().__init__(f"{where}: {what}", hint=hint or "Correct the setting, then try again.", where=where)
        self.where = where


# What an admin wrote is checked by the function in its field's annotation; its ValueError says what is wrong.


@dataclass(frozen=True, slots=True)
class RepositorySettings:
    path: Annotated[Path, v.path] = DEFAULT_REPOSITORY
    compression_level: Annotated[int, v.count(1, 19)] = 1  # zstd's; used when a repository is made


@dataclass(frozen=True, slots=True)
class S3Settings:
    """With a bucket, the repository is there and not in repository.path. The environment of the machine and ~/.aws
    decide nothing."""

    bucket: Annotated[str, v.text(r".{0,63}", "the name of a bucket")] = ""
    endpoint: Annotated[str, v.text(r"\S{0,300}", "a URL")] = ""  # https://host[:port]
    prefix: Annotated[str, v.text(r"\S{0,200}", "a prefix")] = ""  # of all names, ending in a slash
    region: Annotated[str, v.text(r"\S{0,63}", "a region")] = "us-east-1"
    access_key: Annotated[str, v.secret] = field(default="", repr=False)
    secret_key: Annotated[str, v.secret] = field(default="", repr=False)
    session_token: Annotated[str, v.secret] = field(default="", repr=False)
    ca_file: Annotated[Path | None, v.path] = None  # certificates to check the endpoint's against, if not public ones
    allow_plain: Annotated[bool, v.switch] = False  # http:// also to other machines
    connections: Annotated[int, v.count(1, 128)] = 16
    lock_mode: Annotated[str, v.text("|governance|compliance", "governance or compliance, or nothing")] = ""
    lock_days: Annotated[int, v.count(1, 3650)] = 30  # what 'repository lock' leaves every restore point with, at least
    lock_extra_days: Annotated[int, v.count(1, 365)] = 7  # beyond that, so that not every lock is renewed every night


@dataclass(frozen=True, slots=True)
class CatalogSettings:
    """Without a URL, the catalog is a file in the home; with one, appliances share it."""

    url: Annotated[str, v.catalog_url] = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class AzureSettings:
    """With a container, the repository is there and not in repository.path. The environment of the machine decides
    nothing."""

    container: Annotated[str, v.text(r".{0,63}", "the name of a container")] = ""
    account: Annotated[str, v.text(r".{0,24}", "the name of a storage account")] = ""
    endpoint: Annotated[str, v.text(r"\S{0,300}", "a URL")] = ""  # https://host[:port], if not the public cloud's
    prefix: Annotated[str, v.text(r"\S{0,200}", "a prefix")] = ""  # of all names, ending in a slash
    account_key: Annotated[str, v.secret] = field(default="", repr=False)
    sas_token: Annotated[str, v.secret] = field(default="", repr=False)
    ca_file: Annotated[Path | None, v.path] = None  # certificates to check the endpoint's against, if not public ones
    connections: Annotated[int, v.count(1, 128)] = 16


@dataclass(frozen=True, slots=True)
class GcsSettings:
    """With a bucket, the repository is there and not in repository.path. The environment of the machine, its metadata
    server and gcloud's own files decide nothing."""

    bucket: Annotated[str, v.text(r".{0,222}", "the name of a bucket")] = ""
    prefix: Annotated[str, v.text(r"\S{0,200}", "a prefix")] = ""  # of all names, ending in a slash
    key_file: Annotated[Path, v.path] = Path("keys/google.json")  # of a service account, its owner's alone
    endpoint: Annotated[str, v.text(r"\S{0,300}", "a URL")] = ""  # https://host[:port], if not the public cloud's
    ca_file: Annotated[Path | None, v.path] = None  # certificates to check the endpoint's against, if not public ones
    connections: Annotated[int, v.count(1, 128)] = 16


@dataclass(frozen=True, slots=True)
class ScratchSettings:
    """Where what a guest overwrites during its backup is kept until the run ends."""

    directory: Annotated[Path, v.path] = Path("scratch")
    limit_bytes: Annotated[int, v.positive_size] = 10 * 1024**3  # of one run: it is ended before the scratch fills
    reserve_bytes: Annotated[int, v.parse_size] = 512 * 1024**2  # of its file system, left free: a run ends before that


@dataclass(frozen=True, slots=True)
class OverlaySettings:
    directory: Annotated[Path, v.path] = Path("overlays")


@dataclass(frozen=True, slots=True)
class BackupSettings:
    sample_chunks: Annotated[int, v.count(0, 1_000_000)] = 64  # chunks that the bitmap calls clean, read again each run
    connections: Annotated[int, v.count(1, 16)] = 4  # NBD connections to one disk


@dataclass(frozen=True, slots=True)
class RecoverySettings:
    network: Annotated[str, v.text(r"[^\s/\x00-\x1f]{1,64}", "'none', 'keep' or the name of a network")] = "none"
    cache_bytes: Annotated[int, v.positive_size] = 64 * 1024**2  # of one disk's export
    export_start_timeout_s: Annotated[float, v.seconds(1, 600)] = 15.0
    supervise_interval_s: Annotated[float, v.seconds(0.05, 60)] = 0.5
    migrate_bandwidth_bytes_s: Annotated[int, v.parse_size] = 0  # 0: unlimited


@dataclass(frozen=True, slots=True)
class AgentSettings:
    freeze_timeout_s: Annotated[int, v.count(1, 600)] = 10  # for the agent to answer; a busy guest may need more
    thaw_timeout_s: Annotated[int, v.count(1, 600)] = 5
    longest_freeze_s: Annotated[float, v.seconds(1, 600)] = 30.0  # then the watchdog thaws, whatever else happens
    thaw_retry_s: Annotated[float, v.seconds(0.1, 600)] = 2.0


@dataclass(frozen=True, slots=True)
class LimitSettings:
    workers: Annotated[int, v.count(1, 64)] = 2  # threads that hash, compress and seal
    host_timeout_s: Annotated[float, v.seconds(1, 600)] = 10.0
    bandwidth_bytes_s: Annotated[int, v.parse_size] = 0  # of all that a command reads from and writes to repositories
    chunk_cache_bytes: Annotated[int, v.parse_size] = 10 * 1024**3  # of a repository in an object store, on local disk


@dataclass(frozen=True, slots=True)
class QueueSettings:
    workers: Annotated[int, v.count(0, 64)] = 2  # runs at a time that `strongroom serve` takes from the queue; 0: none
    restores: Annotated[int, v.count(0, 64)] = 8  # at a time for which no worker is waited; more wait for a worker
    attempts: Annotated[int, v.count(1, 100)] = 5  # at a run, as long as what went wrong may pass
    retry_s: Annotated[float, v.seconds(0.1, 86_400)] = 60.0  # before the second attempt; then twice as long each time
    end_s: Annotated[float, v.seconds(0, 3600)] = 30.0  # what runs under way are given when `strongroom serve` ends


@dataclass(frozen=True, slots=True)
class NoticeSettings:
    """Who is told what by `strongroom serve`; without targets, nobody is told anything."""

    targets: Annotated[tuple[NoticeTarget, ...], read_targets] = field(default=(), repr=False)
    alerts_to: Annotated[tuple[str, ...], read_names] = ()  # those that are told what is wrong; none named: all
    digest_to: Annotated[tuple[str, ...], read_names] = ()  # those that get the daily digest; none named: all
    digest_at: Annotated[str, read_clock_time] = "07:00"  # "": there is none
    zone: Annotated[str, read_zone] = "UTC"
    look_s: Annotated[float, v.seconds(1, 3600)] = 15.0
    wait_s: Annotated[float, v.seconds(0, 3600)] = 30.0  # for more of the same, before the first of a kind is told
    interval_s: Annotated[float, v.seconds(0, 86_400)] = 300.0  # between two messages of one kind
    free_percent: Annotated[int, v.count(0, 99)] = 10  # of the repository's file system: less is told
    full_days: Annotated[int, v.count(0, 3650)] = 14  # a repository that will be full sooner is told
    thaw_s: Annotated[float, v.seconds(10, 86_400)] = 300.0  # an owed thaw that stays for longer is told
    host_s: Annotated[float, v.seconds(60, 604_800)] = 900.0  # so is a host that does not answer
    larger_times: Annotated[int, v.count(2, 1_000_000)] = 5  # than the median of a machine's last incremental backups
    larger_bytes: Annotated[int, v.parse_size] = 1024**3  # and no less than this
    deleted_points: Annotated[int, v.count(1, 1_000_000)] = 20  # within a day,
    deleted_percent: Annotated[int, v.count(1, 100)] = 20  # if it is also so much of all

    def of(self, names: tuple[str, ...]) -> tuple[NoticeTarget, ...]:
        return tuple(target for target in self.targets if not names or target.name in names)


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """What follows backups by policy."""

    follow_at: Annotated[str, read_clock_time] = "06:00"  # when points are pruned, verified and copied; "": never
    zone: Annotated[str, read_zone] = "UTC"  # where that is the time
    copies: Annotated[tuple[tuple[str, Path], ...], v.homes] = ()  # homes whose repositories get copies, by name


@dataclass(frozen=True, slots=True)
class InventorySettings:
    refresh_s: Annotated[float, v.seconds(5, 86_400)] = 60.0  # between two looks of `strongroom serve` at the hosts


@dataclass(frozen=True, slots=True)
class WebSettings:
    """The console that `strongroom serve` shows."""

    listen: Annotated[str, v.address] = "127.0.0.1"
    port: Annotated[int, v.count(0, 65535)] = 8443  # 0: no console
    names: Annotated[tuple[str, ...], v.host_names] = ()  # under which browsers reach it, besides this machine's own
    certificate: Annotated[Path | None, v.path] = None  # with its chain, PEM; without one, it makes one of its own
    certificate_key: Annotated[Path | None, v.path] = None
    tls: Annotated[bool, v.switch] = True  # without it, it listens on this machine alone: for a proxy in front of it
    behind_proxy: Annotated[bool, v.switch] = False  # X-Forwarded-* of a proxy on this machine is believed

    @property
    def loopback(self) -> bool:
        return ipaddress.ip_address(self.listen).is_loopback

    @property
    def url(self) -> str:
        """Where this machine's own browser finds it."""
        address = ipaddress.ip_address(self.listen)
        host = "localhost" if address.is_unspecified else f"[{address}]" if address.version == 6 else str(address)
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}/"


@dataclass(frozen=True, slots=True)
class AccountSettings:
    session_idle_s: Annotated[float, v.seconds(60, 86_400)] = 1800.0  # without a request, a session ends
    session_s: Annotated[float, v.seconds(60, 30 * 86_400)] = 43_200.0  # after this it ends in any case


@dataclass(frozen=True, slots=True)
class Settings:
    home: Path
    repository: RepositorySettings = RepositorySettings()
    scratch: ScratchSettings = ScratchSettings()
    overlays: OverlaySettings = OverlaySettings()
    backup: BackupSettings = BackupSettings()
    recovery: RecoverySettings = RecoverySettings()
    agent: AgentSettings = AgentSettings()
    limits: LimitSettings = LimitSettings()
    s3: S3Settings = S3Settings()
    azure: AzureSettings = AzureSettings()
    gcs: GcsSettings = GcsSettings()
    catalog: CatalogSettings = CatalogSettings()
    queue: QueueSettings = QueueSettings()
    inventory: InventorySettings = InventorySettings()
    web: WebSettings = WebSettings()
    notices: NoticeSettings = NoticeSettings()
    policies: PolicySettings = PolicySettings()
    accounts: AccountSettings = AccountSettings()

    @property
    def location_file(self) -> Path:
        """Where the repository is, for exports, which outlive the command that knows it."""
        return self.home / "keys" / "location.json"

    @property
    def file(self) -> Path:
        return self.home / SETTINGS_FILE

    @property
    def catalog_file(self) -> Path:
        """Of this home alone; not used while the settings name a shared one."""
        return self.home / "catalog.sqlite"

    @property
    def queue_file(self) -> Path:
        """What wakes the workers of this home; not used with a shared catalog. May be deleted at any time."""
        return self.home / "queue.sqlite"

    @property
    def identity_file(self) -> Path:
        return self.home / "appliance.id"

    @property
    def audit_head_file(self) -> Path:
        """The newest entry of the audit that this home knows of; of a shared catalog's audit, one of its own."""
        return self.home / ("audit.shared.head" if self.catalog.url else "audit.head")

    @property
    def audit_directory(self) -> Path:
        """Acts under way, until the audit has them."""
        return self.home / "audit"

    @property
    def machine_key_file(self) -> Path:
        return self.home / "keys" / "machine.key"

    def catalog_key_file(self, id: str) -> Path:
        """What second factors are sealed with in the catalog that names this key."""
        return self.home / "keys" / f"catalog-{id}.key"

    @property
    def cache_directory(self) -> Path:
        return self.home / "cache"

    @property
    def machines_directory(self) -> Path:
        """Disks of restored machines, unless the admin names another place."""
        return self.home / "machines"

    @property
    def run_directory(self) -> Path:
        return self.home / "run"

    @property
    def log_directory(self) -> Path:
        return self.home / "logs"


_SECTIONS: dict[str, type[Any]] = {
    "repository": RepositorySettings,
    "scratch": ScratchSettings,
    "overlays": OverlaySettings,
    "backup": BackupSettings,
    "recovery": RecoverySettings,
    "agent": AgentSettings,
    "limits": LimitSettings,
    "s3": S3Settings,
    "azure": AzureSettings,
    "gcs": GcsSettings,
    "catalog": CatalogSettings,
    "queue": QueueSettings,
    "inventory": InventorySettings,
    "web": WebSettings,
    "notices": NoticeSettings,
    "policies": PolicySettings,
    "accounts": AccountSettings,
}
_SECRETS = ("access_key", "secret_key", "session_token", "account_key", "sas_token", "url", "targets")


def home_from(environment: Mapping[str, str]) -> Path:
    text = environment.get("STRONGROOM_HOME", "")
    home = Path(text) if text else DEFAULT_HOME
    if not home.is_absolute():
        raise SettingsError(
            "STRONGROOM_HOME", f"{text!r} is not an absolute path", hint="Give a path that begins with /."
        )
    return home


def load(environment: Mapping[str, str] | None = None) -> Settings:
    """Settings of the home that the environment names; the file need not exist. SettingsError, else."""
    environment = os.environ if environment is None else environment
    home = home_from(environment)
    given = _from_file(home / SETTINGS_FILE)
    for (section, key), value in _from_environment(environment).items():
        given[section, key] = value
    sections: dict[str, Any] = {}
    for name, kind in _SECTIONS.items():
        values = {}
        hints = get_type_hints(kind, include_extras=True)
        for option in fields(kind):
            where, value = given.get((name, option.name), ("", option.default))
            if where:
                try:
                    value = hints[option.name].__metadata__[0](value)
                except ValueError as err:
                    shown = "not usable" if option.name in _SECRETS else repr(value)
                    raise SettingsError(where, f"{_label(where, name, option.name)} is {shown}: {err}") from None
            values[option.name] = home / value if isinstance(value, Path) else value
        sections[name] = kind(**values)
    _check_private(home / SETTINGS_FILE, given)
    _check_targets(sections["notices"], given)
    return Settings(home=home, **sections)


def _check_targets(notices: NoticeSettings, given: Mapping[tuple[str, str], tuple[str, object]]) -> None:
    known = {target.name for target in notices.targets}
    for key, names in (("alerts_to", notices.alerts_to), ("digest_to", notices.digest_to)):
        if unknown := sorted(set(names) - known):
            where = given["notices", key][0]
            raise SettingsError(where, f"{_label(where, 'notices', key)}: notices.targets has no {unknown[0]!r}")


def _check_private(path: Path, given: Mapping[tuple[str, str], tuple[str, object]]) -> None:
    """A file with credentials is its owner's alone: others may pass through the home."""
    held = {key for key, (where, value) in given.items() if where == str(path) and value}
    url = str(given.get(("catalog", "url"), ("", ""))[1])
    if "@" not in url and "password" not in url:
        held.discard(("catalog", "url"))
    credentials = sorted(f"{section}.{key}" for section, key in held if key in _SECRETS and key != "access_key")
    if credentials and (mode := path.stat().st_mode) & 0o077:
        raise SettingsError(
            str(path), f"others may read it (mode {mode & 0o777:04o}), and it holds {', '.join(credentials)}",
            hint=f"chmod 0600 {path}",
        )  # fmt: skip


def _label(where: str, section: str, key: str) -> str:
    return "the value" if where.startswith(PREFIX) else f"{section}.{key}"


def _from_file(path: Path) -> dict[tuple[str, str], tuple[str, object]]:
    try:
        document = tomllib.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as err:
        raise SettingsError(
            str(path), f"it cannot be read: {err.strerror}", hint="Run as the user who owns it."
        ) from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise SettingsError(str(path), f"it is not TOML: {err}") from err
    given: dict[tuple[str, str], tuple[str, object]] = {}
    for section, table in document.items():
        if section not in _SECTIONS:
            raise SettingsError(
                str(path), f"there is no section {section!r}", hint=f"Sections: {', '.join(_SECTIONS)}."
            )
        if not isinstance(table, dict):
            raise SettingsError(str(path), f"{section} must be a section: [{section}]")
        known = [option.name for option in fields(_SECTIONS[section])]
        for key, value in table.items():
            if key not in known:
                raise SettingsError(
                    str(path), f"section {section!r} has no key {key!r}", hint=f"Keys of {section}: {', '.join(known)}."
                )
            given[section, key] = (str(path), value)
    return given


def _from_environment(environment: Mapping[str, str]) -> dict[tuple[str, str], tuple[str, object]]:
    given: dict[tuple[str, str], tuple[str, object]] = {}
    for name, value in environment.items():
        if not name.startswith(PREFIX):
            continue
        section, _, key = name.removeprefix(PREFIX).lower().partition("_")
        # STRONGROOM_RECOVERY_KEY_FILE is the command line's word for an option, not a setting.
        if section not in _SECTIONS or not key or name == "STRONGROOM_RECOVERY_KEY_FILE":
            continue
        known = [option.name for option in fields(_SECTIONS[section])]
        if key not in known:
            wanted = ", ".join(f"{PREFIX}{section}_{known_key}".upper() for known_key in known)
            raise SettingsError(name, f"section {section!r} has no key {key!r}", hint=f"Known: {wanted}.")
        given[section, key] = (name, value)
    return given
