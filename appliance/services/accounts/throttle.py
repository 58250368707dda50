"""How long whoever failed to sign in, or to sign as a person of the guard, waits. Pure.

The rule: failures are counted by address, by name, and by both together. Waiting grows, and ends: nobody is locked out
for good. Whoever signs in from an address that their account was used from lately does not wait for what others did
to the name from elsewhere. An attacker who has many addresses tries one password a minute for a name, beside the codes.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

_FREE: Final = 5
_FREE_OF_ADDRESS: Final = 20  # many may come from one, as behind a proxy
_NAME_MOST_S: Final = 60.0
_PAIR_MOST_S: Final = 60.0
_ADDRESS_MOST_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Keys:
    """What an attempt is counted under. `name` is None where the address is known for it."""

    pair: str
    address: str
    name: str | None

    @property
    def forgotten(self) -> tuple[str, ...]:
        """After a success."""
        return (self.pair,) if self.name is None else (self.pair, self.name)

    def delays(self) -> Mapping[str, Callable[[int], float]]:
        delays: dict[str, Callable[[int], float]] = {
            self.pair: lambda failures: delay_s(failures, _FREE, _PAIR_MOST_S),
            self.address: lambda failures: delay_s(failures, _FREE_OF_ADDRESS, _ADDRESS_MOST_S),
        }
        if self.name is not None:
            delays[self.name] = lambda failures: delay_s(failures, _FREE, _NAME_MOST_S)
        return delays


def place_of(address: str) -> str:
    """An IPv6 address counts as its network of 64 bits: whoever has one has them all."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


def keys(name: str, place: str, *, known: bool) -> Keys:
    """Hashes: what people type into the field of a name is sometimes a password. `place`: see `place_of`."""
    return Keys(
        pair=_hash("pair", name, place),
        address=_hash("address", place),
        name=None if known else _hash("name", name),
    )


def delay_s(failures: int, free: int, most_s: float) -> float:
    """After so many failures: none of the free ones, then 1 s, and twice as long each time."""
    if failures < free:
        return 0.0
    return min(most_s, 2.0 ** min(failures - free, 30))


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
