"""The SSH key that a host shows, so that an admin can compare it before it is trusted.

The rule: a key is only ever trusted because a person said so of its fingerprint: what is kept is the key of that
fingerprint and no other, whatever the host shows by then. It goes to a file of the home, one for each host.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from appliance.errors import StrongroomError
from appliance.home import write_private
from appliance.hypervisor.protocol import HostConfig
from appliance.hypervisor.uri import check_host

if TYPE_CHECKING:
    from appliance.bootstrap import Appliance

_KINDS: Final = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")
_LINE: Final = re.compile(r"(\S+) (\S+) ([A-Za-z0-9+/=]{16,8192})", re.ASCII)
_OUTPUT_BYTES_MAX: Final = 1 << 16
_PATIENCE_S: Final = 5


class HostKeyNotShown(StrongroomError):
    retryable = True

    def __init__(self, hostname: str, port: int, reason: str) -> None:
        super().__init__(
            f"{hostname}, port {port}, shows no SSH key: {reason}",
            hint="See that the host is on, that its name is right, and that its SSH server can be reached from here.",
            hostname=hostname,
        )


class HostKeyIsAnother(StrongroomError):
    def __init__(self, hostname: str, fingerprint: str) -> None:
        super().__init__(
            f"{hostname} does not show the key {fingerprint} any more",
            hint="Look at the key that it shows now. If nobody has changed it, somebody may be in between.",
            hostname=hostname,
        )


@dataclass(frozen=True, slots=True)
class HostKey:
    """`line`: as a file of known hosts has it."""

    kind: str
    fingerprint: str  # as ssh shows it: "SHA256:…"
    line: str


class HostKeyService:
    """Borrows the appliance. `scan`: what asks a host; tests pass one that says what they want."""

    def __init__(self, appliance: Appliance, scan: Callable[[str, int], str] | None = None) -> None:
        self._appliance = appliance
        self._scan = scan or _scan

    def shown(self, config: HostConfig) -> tuple[HostKey, ...]:
        """Those that the host shows now, the strongest kind first. HostFieldRefused, HostKeyNotShown."""
        check_host(config)
        keys = read_keys(self._scan(config.hostname, config.port))
        if not keys:
            raise HostKeyNotShown(config.hostname, config.port, "it does not answer as an SSH server")
        return keys

    def trust(self, config: HostConfig, fingerprint: str) -> HostConfig:
        """The host with the key of this fingerprint as its known one. HostKeyIsAnother, HostKeyNotShown, HomeUnusable;
        HostFieldRefused."""
        key = next((each for each in self.shown(config) if each.fingerprint == fingerprint), None)
        if key is None:
            raise HostKeyIsAnother(config.hostname, fingerprint)
        name = hashlib.sha256(config.name.encode()).hexdigest()[:16]
        path = self._appliance.settings.machine_key_file.parent / f"host-{name}.known"
        write_private(path, f"{key.line}\n".encode("ascii"), replace=True)
        return replace(config, known_hosts=str(path))


def read_keys(output: str) -> tuple[HostKey, ...]:
    """What `ssh-keyscan` printed, each kind once. Pure; anything that is no key is passed over."""
    found: dict[str, HostKey] = {}
    for line in output.splitlines():
        match = _LINE.fullmatch(line.strip())
        if match is None or match[2] not in _KINDS or match[2] in found:
            continue
        try:
            blob = base64.b64decode(match[3], validate=True)
        except binascii.Error:
            continue
        digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
        found[match[2]] = HostKey(match[2], f"SHA256:{digest}", match[0])
    return tuple(found[kind] for kind in _KINDS if kind in found)


def _scan(hostname: str, port: int) -> str:
    words = ["ssh-keyscan", "-T", str(_PATIENCE_S), "-p", str(port), "--", hostname]
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=4 * _PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise HostKeyNotShown(hostname, port, "it does not answer") from None
    except OSError as err:
        raise HostKeyNotShown(hostname, port, f"ssh-keyscan cannot be run: {err.strerror}") from err
    return done.stdout[:_OUTPUT_BYTES_MAX].decode("ascii", "replace")
