"""What is tried with every object store behind HTTP: what a server is described by, calls and wrong answers that all
have, and fixtures of a store behind a bad proxy. Whoever imports these has a fixture `cloud`, that says which server.
"""

from __future__ import annotations

import random
import re
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.message import Message
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from imaging.clock import SystemClock
from imaging.errors import StoreUnavailable
from imaging.storage.contract import Store
from imaging.storage.retrying import Patience, RetryingStore
from imaging.storage.wire import Limits
from tests.faults.bad_object_store import Answer, BadObjectStore, Reaction, changed, cut_short, then

TEN = b"0123456789"
SEVENTY = secrets.token_bytes(70_000)

# Where nothing is shown by being short of patience, a busy machine has the time that the product gives.
LONG = Limits(connections=4)
HASTY = Limits(connections=4, silence_s=2.0)
# What only who is hasty is tried with.
SLOW = ("silence", "silence after success", "a trickle")


@dataclass(frozen=True, slots=True)
class Call:
    """`operation` is the request that a fault meets; `requests`, how many it takes at the most where none is repeated.
    Of what fill() puts there, `gone` is gone after it, and `made` is there as well."""

    operation: str
    act: Callable[[Store], object]
    requests: int = 1
    made: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Failure:
    """Of these calls, or of any."""

    reaction: Reaction
    calls: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """With what is said of the way out."""

    reaction: Reaction
    hint: str


class Opening(Protocol):
    def __call__(self, url: str, prefix: str, limits: Limits = LONG, *, ca_file: str | None = None) -> Store: ...


@dataclass(frozen=True, slots=True)
class Cloud:
    """A real server of this process, started when it is first asked for, the store for it, and how it goes wrong."""

    url: Callable[[], str]
    open: Opening
    open_elsewhere: Callable[[], Store]
    """At the address that the provider has, or might have: none of this machine."""
    calls: Mapping[str, Call]
    passing: Mapping[str, Failure]
    """Nothing is carried out, as far as the client can tell."""
    lost: Mapping[str, Failure]
    """It is carried out, and the answer is lost."""
    refusals: Mapping[str, Refusal]
    redirected: Callable[[int, str], Reaction]
    """By a status, to an address."""
    full: Mapping[str, Reaction]
    rude: Reaction
    """A refusal in which a terminal would find more than text."""
    strangers: Mapping[str, Failure]
    """Success, told by somebody else."""
    wrong: Mapping[str, Reaction]
    """Of a read."""
    endless: Answer
    """To a read of a whole object, whose announced length is beyond all bounds."""
    no_listing: Mapping[str, Reaction]
    empty_listing: Reaction
    """Well formed, whatever there is."""
    operation_of: Callable[[str, str, Message], str] | None = None
    """See BadObjectStore."""

    def cases(self, failures: Mapping[str, Failure]) -> Iterator[tuple[str, str]]:
        """A call, and what befalls it."""
        for call in self.calls:
            for fault, failure in failures.items():
                if not failure.calls or call in failure.calls:
                    yield call, fault


CALLS: Mapping[str, Call] = {
    "put": Call("put", lambda store: store.put("keys/aa", [TEN]), made=frozenset({"keys/aa"})),
    "create": Call("create", lambda store: store.create("leases/aa/end", [b"mine"]), made=frozenset({"leases/aa/end"})),
    "get": Call("get", lambda store: store.get("config")),
    "get a range": Call("get", lambda store: store.get("packs/aa/seventy", 100, 60_000)),
    "exists": Call("head", lambda store: store.exists("config")),
    "list": Call("list", lambda store: list(store.list(""))),
    "delete": Call("delete", lambda store: store.delete("config"), gone=frozenset({"config"})),
    "delete_many": Call(
        "delete",
        lambda store: store.delete_many(["config", "packs/aa/seventy"]),
        requests=2,
        gone=frozenset({"config", "packs/aa/seventy"}),
    ),
}


def fill(store: Store) -> None:
    store.delete_many([listed.name for listed in store.list("")])
    store.put("config", [TEN])
    store.put("packs/aa/seventy", [SEVENTY])


def patiently(store: Store) -> RetryingStore:
    return RetryingStore(store, SystemClock(), lambda seconds: None, random.random, Patience(0.01, 0.1, 90.0))


# A real server, and what is before it


@pytest.fixture(scope="module")
def proxy(cloud: Cloud) -> Iterator[BadObjectStore]:
    with BadObjectStore(cloud.url(), operation_of=cloud.operation_of) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def prefix(cloud: Cloud) -> str:
    return f"{secrets.token_hex(8)}/"


@pytest.fixture(scope="module")
def direct(cloud: Cloud, prefix: str) -> Store:
    """The same objects, past the proxy."""
    return cloud.open(cloud.url(), prefix, Limits())


@pytest.fixture(scope="module")
def through(cloud: Cloud, proxy: BadObjectStore, prefix: str) -> Store:
    """One for all tests, as a client may take a fifth of a second to make."""
    return cloud.open(proxy.url, prefix)


@pytest.fixture(scope="module")
def hasty(cloud: Cloud, proxy: BadObjectStore, prefix: str) -> Store:
    """Who soon takes silence for one."""
    hasty = cloud.open(proxy.url, prefix, HASTY)
    patiently(hasty).exists("config")  # has a token that counts, where there are tokens
    return hasty


@pytest.fixture
def bad(proxy: BadObjectStore) -> Iterator[BadObjectStore]:
    proxy.begin()
    yield proxy
    proxy.forgive()


@pytest.fixture
def store(bad: BadObjectStore, through: Store, direct: Store) -> Store:
    fill(direct)
    assert through.exists("config"), "its token counts, where there are tokens"
    return through


@pytest.fixture
def patient(store: Store) -> RetryingStore:
    return patiently(store)


def check_that_it_passes(bad: BadObjectStore, client: Store, direct: Store, call: Call, reaction: Reaction) -> None:
    bad.fail(call.operation, reaction)
    with pytest.raises(StoreUnavailable) as caught:
        call.act(client)
    assert caught.value.retryable
    assert caught.value.hint
    assert caught.value.name in str(caught.value)

    bad.forgive()
    fill(direct)
    bad.fail(call.operation, reaction)
    call.act(patiently(client))
    bad.settle()
    assert {listed.name for listed in direct.list("")} == ({"config", "packs/aa/seventy"} | call.made) - call.gone


# Ways to be bad


def after_success(reaction: Reaction) -> Reaction:
    return then(lambda exchange, answer: reaction(exchange))


def shorter(answer: Answer) -> Answer:
    return replace(answer, body=answer.body[:-1])


def longer(answer: Answer) -> Answer:
    return replace(answer, body=answer.body + b"!")


def half(answer: Answer) -> Answer:
    return replace(answer, body=answer.body[: len(answer.body) // 2])


def without(pattern: bytes, instead: bytes = b"") -> Callable[[Answer], Answer]:
    def change(answer: Answer) -> Answer:
        body, count = re.subn(pattern, instead, answer.body, flags=re.DOTALL)
        assert count, answer.body
        return replace(answer, body=body)

    return change


def ranged(said: str, length: int = 60_000) -> Callable[[Answer], Answer]:
    """As a cache that mixes up two requests."""
    return lambda answer: replace(answer, headers={**answer.headers, "Content-Range": said}, body=answer.body[:length])


def answered(body: bytes, kind: str) -> Reaction:
    return lambda exchange: exchange.reply(Answer(200, {"Content-Type": kind}, body))


LOGIN = answered(b"<html>Please log in</html>", "text/html")
"""Of some network."""

WRONG: Mapping[str, Reaction] = {
    "cut short": cut_short(),
    "a byte less": changed(shorter),
    "a byte more": changed(longer),
    "another range": changed(ranged("bytes 200-60199/70000")),
    "a shorter range": changed(ranged("bytes 100-59999/70000", 59_900)),
    "a range that is none": changed(ranged("bytes all of them")),
}
"""Of a read of 60,000 bytes from the 100th on."""


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
