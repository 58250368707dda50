"""The sections of what an admin may set, with every key, its default and its unit.

The rule: a key's annotation names the function that checks what an admin wrote for it; its ValueError says what is
wrong. Relative paths are relative to the home.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from appliance import setting_values as v
from appliance.notices.targets import NoticeTarget, read_clock_time, read_names, read_targets, read_zone

DEFAULT_REPOSITORY = Path("repository")


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
class RestoreSettings:
    # besides storage pools, the places where disks may go that somebody asks for who is no admin; none: pools alone
    folders: Annotated[tuple[str, ...], v.folders] = ("/var/lib/libvirt/images",)


@dataclass(frozen=True, slots=True)
class RecoverySettings:
    network: Annotated[str, v.text(r"[^\s/\x00-\x1f]{1,64}", "'none', 'keep' or the name of a network")] = "none"
    cache_bytes: Annotated[int, v.positive_size] = 64 * 1024**2  # of one disk's export
    export_start_timeout_s: Annotated[float, v.seconds(1, 600)] = 60.0
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
