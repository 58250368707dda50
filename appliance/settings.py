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

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from appliance.errors import StrongroomError
from appliance.setting_sections import (
    AccountSettings,
    AgentSettings,
    AzureSettings,
    BackupSettings,
    CatalogSettings,
    GcsSettings,
    InventorySettings,
    LimitSettings,
    NoticeSettings,
    OverlaySettings,
    PolicySettings,
    QueueSettings,
    RecoverySettings,
    RepositorySettings,
    RestoreSettings,
    S3Settings,
    ScratchSettings,
    WebSettings,
)

DEFAULT_HOME = Path("/var/lib/strongroom")
SETTINGS_FILE = "strongroom.toml"
PREFIX = "STRONGROOM_"


class SettingsError(StrongroomError):
    """A setting that cannot be used; `where` is the file or the environment variable."""

    def __init__(self, where: str, what: str, *, hint: str = "") -> None:
        super().__init__(f"{where}: {what}", hint=hint or "Correct the setting, then try again.", where=where)
        self.where = where


@dataclass(frozen=True, slots=True)
class Settings:
    home: Path
    repository: RepositorySettings = field(default_factory=RepositorySettings)
    scratch: ScratchSettings = field(default_factory=ScratchSettings)
    overlays: OverlaySettings = field(default_factory=OverlaySettings)
    backup: BackupSettings = field(default_factory=BackupSettings)
    restore: RestoreSettings = field(default_factory=RestoreSettings)
    recovery: RecoverySettings = field(default_factory=RecoverySettings)
    agent: AgentSettings = field(default_factory=AgentSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    s3: S3Settings = field(default_factory=S3Settings)
    azure: AzureSettings = field(default_factory=AzureSettings)
    gcs: GcsSettings = field(default_factory=GcsSettings)
    catalog: CatalogSettings = field(default_factory=CatalogSettings)
    queue: QueueSettings = field(default_factory=QueueSettings)
    inventory: InventorySettings = field(default_factory=InventorySettings)
    web: WebSettings = field(default_factory=WebSettings)
    notices: NoticeSettings = field(default_factory=NoticeSettings)
    policies: PolicySettings = field(default_factory=PolicySettings)
    accounts: AccountSettings = field(default_factory=AccountSettings)

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


_SECTIONS: dict[str, type[Any]] = {name: kind for name, kind in get_type_hints(Settings).items() if name != "home"}
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
