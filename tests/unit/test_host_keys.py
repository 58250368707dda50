"""SSH keys that hosts show: read as ssh reads them, and trusted by their fingerprint alone."""

from __future__ import annotations

import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.bootstrap import Appliance
from appliance.hypervisor.errors import HostFieldRefused
from appliance.hypervisor.protocol import HostConfig, Transport
from appliance.services.host_keys import HostKeyIsAnother, HostKeyNotShown, HostKeyService, read_keys
from appliance.settings import load


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Appliance]:
    with Appliance(load({"STRONGROOM_HOME": str(tmp_path / "home")})) as appliance:
        yield appliance


def reached(name: str, hostname: str, port: int = 22) -> HostConfig:
    return HostConfig(name, Transport.SSH, hostname, "backup", port)


def made(folder: Path, kind: str, name: str = "key") -> tuple[str, str]:
    """A real key: as a host shows it, and its fingerprint in ssh's words."""
    path = folder / f"{name}-{kind}"
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", path], check=True)
    listed = subprocess.run(["ssh-keygen", "-lf", path], check=True, capture_output=True, text=True).stdout
    kind_word, blob, *_ = path.with_suffix(".pub").read_text().split()
    return f"rack1 {kind_word} {blob}", listed.split()[1]


def test_keys_are_read_as_ssh_reads_them_and_all_else_is_passed_over(tmp_path: Path) -> None:
    (ecdsa, of_ecdsa), (ed25519, of_ed25519) = (made(tmp_path, kind) for kind in ("ecdsa", "ed25519"))
    other, _ = made(tmp_path, "ed25519", "other")
    blob = ed25519.split()[2]
    output = "\n".join(
        (
            "# rack1:22 SSH-2.0-OpenSSH_9.2", "", ecdsa, ed25519, other, f"rack1 ssh-dss {blob}",
            f"rack1 ssh-rsa {'A' * 17}", f"rack1 ssh-rsa {blob}\x1b[31m", f"rack1 ssh-rsa {blob} extra", "\udcff",
        )
    )  # fmt: skip
    found = read_keys(output)
    assert [(key.kind, key.fingerprint) for key in found] == [
        ("ssh-ed25519", of_ed25519), ("ecdsa-sha2-nistp256", of_ecdsa),
    ], "the strongest first, and of each kind what was shown first"  # fmt: skip
    assert [key.line for key in found] == [ed25519, ecdsa]


def test_the_key_of_that_fingerprint_is_trusted_and_no_other(appliance: Appliance, tmp_path: Path) -> None:
    (line, fingerprint), (ecdsa, _) = made(tmp_path, "ed25519"), made(tmp_path, "ecdsa")
    another, _ = made(tmp_path, "ed25519", "another")
    shows = [f"{ecdsa}\n{line}\n"]
    service = HostKeyService(appliance, lambda hostname, port: shows[0])
    config = reached("rack", "rack1")
    trusted = service.trust(config, fingerprint)
    assert trusted.known_hosts is not None
    file = Path(trusted.known_hosts)
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == (f"{line}\n", 0o600)
    subprocess.run(["ssh-keygen", "-F", "rack1", "-f", file], check=True, capture_output=True)
    shows[0] = f"{another}\n"  # somebody is in between by now
    with pytest.raises(HostKeyIsAnother, match="does not show the key"):
        service.trust(config, fingerprint)
    assert file.read_text() == f"{line}\n"
    shows[0] = f"{line}\n"
    assert service.trust(reached("rack2", "rack1"), fingerprint).known_hosts != trusted.known_hosts


def test_a_host_that_shows_nothing_is_told_and_no_option_is_passed_for_a_name(appliance: Appliance) -> None:
    asked: list[str] = []

    def nothing(hostname: str, port: int) -> str:
        asked.append(hostname)
        return "# nothing\n"

    with pytest.raises(HostKeyNotShown) as silent:
        HostKeyService(appliance, nothing).shown(reached("rack", "rack1"))
    assert (silent.value.retryable, asked) == (True, ["rack1"])
    with pytest.raises(HostFieldRefused):
        HostKeyService(appliance, nothing).shown(reached("rack", "-oProxyCommand=x"))
    assert asked == ["rack1"]
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(HostKeyNotShown, match="does not answer as an SSH server"):
        HostKeyService(appliance).shown(reached("rack", "127.0.0.1", port))
