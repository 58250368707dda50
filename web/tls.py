"""The console's certificate: an admin's own, or one that is made at the first start.

The rule: a certificate of our own is for the names and addresses by which this machine is reached, is made again before
it ends, and its fingerprint is told, so that an admin can compare it with what the browser shows.
"""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.clock import Clock
from appliance.errors import StrongroomError
from appliance.home import write_private
from appliance.setting_sections import WebSettings
from appliance.settings import Settings
from web.security import names_of

# Browsers refuse certificates for longer than 825 days, whoever signed them.
_VALID = timedelta(days=820)
_RENEW_BEFORE = timedelta(days=30)
_SKEW = timedelta(days=1)


class CertificateUnusable(StrongroomError):
    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"the console's certificate {path} cannot be used: {reason}",
            hint="Correct web.certificate and web.certificate_key, or leave both away: one is made then.",
            path=str(path),
        )


@dataclass(frozen=True, slots=True)
class Certificate:
    file: Path
    key_file: Path
    fingerprint: str  # SHA-256, as browsers show it


def certificate(settings: Settings, clock: Clock) -> Certificate:
    """The one to use; made, if it is ours to make and there is none that fits. CertificateUnusable, HomeUnusable."""
    web = settings.web
    if web.certificate is not None:
        if web.certificate_key is None:
            raise CertificateUnusable(web.certificate, "web.certificate_key does not say where its key is")
        return Certificate(web.certificate, web.certificate_key, _fingerprint(_read(web.certificate)))
    folder = settings.machine_key_file.parent
    file, key_file = folder / "web.crt", folder / "web.key"
    if not _fits(file, key_file, web, clock.now_utc()):
        made, key = _make(web, clock.now_utc())
        write_private(key_file, key, replace=True)
        write_private(file, made, replace=True)
    return Certificate(file, key_file, _fingerprint(_read(file)))


def _read(file: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except OSError as err:
        raise CertificateUnusable(file, err.strerror or str(err)) from err
    except ValueError as err:
        raise CertificateUnusable(file, "it is not a certificate in PEM") from err


def _fingerprint(found: x509.Certificate) -> str:
    return found.fingerprint(hashes.SHA256()).hex(":").upper()


def _fits(file: Path, key_file: Path, web: WebSettings, now: datetime) -> bool:
    try:
        found = _read(file)
        key = serialization.load_pem_private_key(key_file.read_bytes(), None)
        alternatives = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (CertificateUnusable, OSError, ValueError, x509.ExtensionNotFound):
        return False
    return (
        key.public_key() == found.public_key()
        and found.not_valid_after_utc - _RENEW_BEFORE > now
        and set(_names(web)) <= set(alternatives.get_values_for_type(x509.DNSName))
    )


def _names(web: WebSettings) -> list[str]:
    return sorted(names_of(web))


def _addresses(web: WebSettings) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    found = {ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1"), ipaddress.ip_address(web.listen)}
    if ipaddress.ip_address(web.listen).is_unspecified:
        with suppress(OSError):  # a machine whose own name has no address: it is reached by another one
            found |= {ipaddress.ip_address(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)}
    return sorted((address for address in found if not address.is_unspecified), key=str)


def _make(web: WebSettings, now: datetime) -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Strongroom on {socket.gethostname()}"[:64])])
    alternatives = [
        *(x509.DNSName(each) for each in _names(web)),
        *(x509.IPAddress(each) for each in _addresses(web)),
    ]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _VALID)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return made.public_bytes(serialization.Encoding.PEM), secret
