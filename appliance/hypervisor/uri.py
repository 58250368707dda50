"""How a host is addressed: checked fields in, a URI out.

The rule: no URI that a person typed reaches libvirt. `qemu+ext://…?command=` and `qemu+ssh://…?command=` run that
command, and other parameters choose programs, files and proxies; so a URI is only ever *built*, from fields that are
checked here, and a typed one (`parse_host`) is taken apart into the same fields, refusing every parameter not known.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import PurePosixPath
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from appliance.hypervisor.errors import HostFieldRefused
from appliance.hypervisor.protocol import HostConfig, Transport

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_SCOPE = re.compile(r"[A-Za-z0-9_.-]+")  # the interface of a link-local address; `ipaddress` takes any text for one
_PATH = re.compile(r"/[A-Za-z0-9._/@+-]{1,250}")
_MAX_PORT = 65535
_MAX_HOSTNAME = 253
_MAX_TIMEOUT_S = 600
_PARAMETERS = frozenset({"keyfile", "known_hosts", "socket"})


def check_host(config: HostConfig) -> HostConfig:
    """The same configuration, or HostFieldRefused naming the first field that may not be so."""
    if not _NAME.fullmatch(config.name):
        raise HostFieldRefused("name", config.name, "letters, digits, dot, dash and underscore, at most 63")
    for field in ("keyfile", "known_hosts", "socket"):
        _check_path(field, getattr(config, field))
    if not 0 < config.timeout_s <= _MAX_TIMEOUT_S:
        raise HostFieldRefused("timeout_s", str(config.timeout_s), f"more than 0, at most {_MAX_TIMEOUT_S} seconds")
    if config.transport is Transport.SSH:
        _check_hostname(config.hostname)
        if config.user and not _USER.fullmatch(config.user):
            raise HostFieldRefused("user", config.user, "a login name: small letters, digits, dash and underscore")
        if not 1 <= config.port <= _MAX_PORT:
            raise HostFieldRefused("port", str(config.port), f"a number from 1 to {_MAX_PORT}")
        return config
    for field in ("hostname", "user", "keyfile", "known_hosts"):
        if getattr(config, field):
            raise HostFieldRefused(field, getattr(config, field), f"only for hosts over SSH, not {config.transport}")
    return config


def _check_path(field: str, value: str) -> None:
    if not value:
        return
    if not _PATH.fullmatch(value) or ".." in PurePosixPath(value).parts:
        raise HostFieldRefused(field, value, "an absolute path of plain characters, without '..'")


def _check_hostname(hostname: str) -> None:
    if len(hostname) > _MAX_HOSTNAME or not (_is_address(hostname) or _is_name(hostname)):
        raise HostFieldRefused("hostname", hostname, "a host name or an IP address, nothing else")


def _is_address(text: str) -> bool:
    address, percent, scope = text.partition("%")
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return not percent or (":" in address and _SCOPE.fullmatch(scope) is not None)


def _is_name(text: str) -> bool:
    return all(_LABEL.fullmatch(label) for label in text.split("."))


def libvirt_uri(config: HostConfig, socket: str | None = None) -> str:
    """The URI for libvirt. A host over SSH is reached through its libvirtd socket, carried here: pass its local path.

    libvirt's own SSH transport is not used: it knows no time-out, and its parameters run commands.
    """
    check_host(config)
    if config.transport is Transport.TEST:
        return "test:///default"
    base = "qemu:///session" if config.session else "qemu:///system"
    where = socket if config.transport is Transport.SSH else (config.socket or None)
    if config.transport is Transport.SSH and where is None:
        raise HostFieldRefused("socket", "", "a host over SSH needs its carried socket")
    return f"{base}?{urlencode({'socket': where}, quote_via=quote, safe='/')}" if where else base


def parse_host(name: str, uri: str, *, timeout_s: float = 10.0) -> HostConfig:
    """A URI that somebody typed, as checked fields: qemu:// here or over SSH, with the parameters known here only."""
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError as error:
        raise HostFieldRefused("uri", uri, f"not a URI ({error})") from error
    if parts.fragment or parts.password is not None:
        raise HostFieldRefused("uri", uri, "no password and no fragment; keys are given with keyfile=")
    if parts.scheme == "test" and uri == "test:///default":
        return check_host(HostConfig(name, Transport.TEST, timeout_s=timeout_s))
    if parts.scheme not in ("qemu", "qemu+unix", "qemu+ssh"):
        raise HostFieldRefused("uri", uri, "it must be qemu:///system, or qemu+ssh://USER@HOST/system")
    if parts.path not in ("/system", "/session"):
        raise HostFieldRefused("uri", uri, "its path must be /system or /session")
    fields = _parameters(uri, parts.query)
    ssh = parts.scheme == "qemu+ssh"
    if ssh != bool(parts.hostname):
        raise HostFieldRefused("uri", uri, "a host name goes with qemu+ssh, and with nothing else")
    return check_host(
        HostConfig(
            name,
            Transport.SSH if ssh else Transport.LOCAL,
            hostname=parts.hostname or "",
            user=parts.username or "",
            port=port or 22,
            session=parts.path == "/session",
            timeout_s=timeout_s,
            keyfile=fields.get("keyfile", ""),
            known_hosts=fields.get("known_hosts", ""),
            socket=fields.get("socket", ""),
        )
    )


def _parameters(uri: str, query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, max_num_fields=8) if query else []
    except ValueError as error:
        raise HostFieldRefused("uri", uri, f"its parameters do not parse ({error})") from error
    fields: dict[str, str] = {}
    for key, value in pairs:
        if key not in _PARAMETERS or key in fields:
            known = ", ".join(sorted(_PARAMETERS))
            raise HostFieldRefused("uri", uri, f"parameter {key[:40]!r} is not allowed (only {known}, once each)")
        fields[key] = value
    return fields
