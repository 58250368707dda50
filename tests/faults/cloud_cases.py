"""What is tried with every object store behind HTTP: two objects, answers that are wrong, a certificate."""

from __future__ import annotations

import random
import re
import secrets
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from imaging.clock import SystemClock
from imaging.storage.contract import Store
from imaging.storage.retrying import Patience, RetryingStore
from tests.faults.bad_object_store import Answer

TEN = b"0123456789"
SEVENTY = secrets.token_bytes(70_000)


def fill(store: Store) -> None:
    store.delete_many([listed.name for listed in store.list("")])
    store.put("config", [TEN])
    store.put("packs/aa/seventy", [SEVENTY])


def patiently(store: Store) -> RetryingStore:
    return RetryingStore(store, SystemClock(), lambda seconds: None, random.random, Patience(0.01, 0.1, 90.0))


def shorter(answer: Answer) -> Answer:
    return replace(answer, body=answer.body[:-1])


def longer(answer: Answer) -> Answer:
    return replace(answer, body=answer.body + b"!")


def without(pattern: bytes, instead: bytes = b"") -> Callable[[Answer], Answer]:
    def change(answer: Answer) -> Answer:
        body, count = re.subn(pattern, instead, answer.body, flags=re.DOTALL)
        assert count, answer.body
        return replace(answer, body=body)

    return change


def own_certificate(path: Path) -> Path:
    """Of 127.0.0.1, signed by itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lab")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(secret + made.public_bytes(Encoding.PEM))
    return path
