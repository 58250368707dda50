"""Second factors: codes by time (RFC 6238), and recovery codes.

The rule: a code is good for its 30 seconds and those beside them, once. Recovery codes have 80 random bits, so their
plain hashes cannot be tried through.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import pyotp
from pyotp.exceptions import OTPVerificationError

RECOVERY_CODES: Final = 10
STEP_S: Final = 30
_ISSUER: Final = "Strongroom"
_RECOVERY_BYTES: Final = 10
_CODE = re.compile(r"[0-9]{6}", re.ASCII)
_RECOVERY = re.compile(r"[A-Z2-7]{16}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Proof:
    """What a given code comes to: the step of the one by time, or the hash of a recovery code; neither: it is wrong."""

    step: int | None
    now_step: int
    recovery_hash: str | None

    @property
    def possible(self) -> bool:
        return self.step is not None or self.recovery_hash is not None


def new_secret() -> str:
    """160 bits, in base32."""
    return pyotp.random_base32()


def uri(secret: str, name: str, place: str) -> str:
    """What an app reads from the QR code. `place`: tells this appliance from others."""
    return pyotp.TOTP(secret).provisioning_uri(name=f"{name}@{place}" if place else name, issuer_name=_ISSUER)


def read_code(given: str, secret: str | None, now_utc: datetime) -> Proof:
    """Whether a code by time is good now; a recovery code is only read: the catalog knows."""
    plain = re.sub(r"[\s-]", "", given[:100]).upper()
    now_step = int(now_utc.timestamp()) // STEP_S
    if _RECOVERY.fullmatch(plain):
        return Proof(None, now_step, recovery_hash(plain))
    # Of nobody, a code is checked too: that takes the same time.
    totp = pyotp.TOTP(secret or "A" * 32)
    try:
        step = totp.verify_and_get_timecode(plain, for_time=now_utc, valid_window=1) if _CODE.fullmatch(plain) else None
    except OTPVerificationError:
        step = None
    return Proof(step if secret else None, now_step, None)


def new_recovery_codes() -> tuple[str, ...]:
    """In groups of four, to be written down."""
    made = []
    for _ in range(RECOVERY_CODES):
        plain = base64.b32encode(secrets.token_bytes(_RECOVERY_BYTES)).decode("ascii")
        made.append("-".join(plain[at : at + 4] for at in range(0, len(plain), 4)))
    return tuple(made)


def recovery_hash(code: str) -> str:
    plain = code.replace("-", "").upper()
    return hashlib.sha256(b"strongroom recovery code " + plain.encode("ascii")).hexdigest()
