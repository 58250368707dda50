"""The audit's entries, and the chain that shows what was done to them afterwards. Pure.

The rule: each entry's hash is over the hash of the one before and the canonical bytes of the entry, its number among
them. So an entry that was changed, removed, inserted or moved shows, unless all that follow were made anew; that shows
to whoever kept a later hash, as the homes of appliances do, and as does the end of a chain that was cut off.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from typing import Final

from appliance.clock import format_utc

_BEFORE_THE_FIRST: Final = hashlib.sha256(b"strongroom audit 1").hexdigest()
_TEXT_CHARACTERS_MAX: Final = 2000
_NAME_CHARACTERS_MAX: Final = 500  # what is searched for: an index takes no longer ones
_ITEMS_MAX: Final = 200
_DEPTH_MAX: Final = 6


class Result(StrEnum):
    OK = "ok"
    PARTLY = "partly"  # done, but for something that the details or other commands tell
    FAILED = "failed"
    REFUSED = "refused"  # nothing was begun
    INTERRUPTED = "interrupted"  # its process ended before it could say what became of it


@dataclass(frozen=True, slots=True)
class Draft:
    """An act that is not in the chain yet. `id`: 32 hex digits; what has it is in the chain once.

    `at_utc`: when it began; `ended_utc`: None if nobody knows. `machine`: the key of the machine that it was about
    (policy.selectors.Machine.key). `appliance`: "" means whichever adds it. `details`: plain JSON, no secrets. Texts
    may be anything that somebody else chose.
    """

    id: str
    at_utc: datetime
    ended_utc: datetime | None
    appliance: str
    act: str
    result: Result
    error: str
    actor_kind: str
    actor_id: str
    actor_name: str
    actor_role: str
    via: str
    address: str
    subject_kind: str
    subject_id: str
    subject_name: str
    machine: str | None
    details: dict[str, object]


@dataclass(frozen=True, slots=True)
class AuditEntry(Draft):
    """An entry of the chain. `number`: from 1, without gaps. `hash`: 64 hex digits."""

    number: int
    hash: str


@dataclass(frozen=True, slots=True)
class Head:
    """The newest entry that somebody knows of: so many entries there are at least."""

    number: int
    hash: str


@dataclass(frozen=True, slots=True)
class Flaw:
    """What is wrong with the chain, at this number."""

    number: int
    what: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a look at the whole chain found. `head`: None if it is empty. `flaws`: the first ones."""

    head: Head | None
    flaws: tuple[Flaw, ...]

    @property
    def good(self) -> bool:
        return not self.flaws


def chained(draft: Draft, before: Head | None) -> AuditEntry:
    """The entry that follows `before`; every text as both engines of the catalog keep it."""
    values: dict[str, object] = {item.name: getattr(draft, item.name) for item in fields(Draft)}
    values = {
        name: _clean_text(value, _NAME_CHARACTERS_MAX) if isinstance(value, str) else value
        for name, value in values.items()
    } | {"result": draft.result, "error": _clean_text(draft.error), "details": clean(draft.details)}
    number = 1 if before is None else before.number + 1
    unsigned = AuditEntry(**values, number=number, hash="")  # type: ignore[arg-type]
    return AuditEntry(**values, number=number, hash=_hash(unsigned, before))  # type: ignore[arg-type]


def head_of(entry: AuditEntry) -> Head:
    return Head(entry.number, entry.hash)


def check(
    entries: Iterable[AuditEntry], known: Iterable[Head] = (), *, since: Head | None = None, flaws_max: int = 20
) -> Verdict:
    """Of all entries, in the order of their numbers; or of those after `since`, up to which all were looked at before.
    `known`: what the chain was seen to have."""
    kept = {head.number: head.hash for head in known if since is None or head.number > since.number}
    flaws = _Flaws(flaws_max)
    head = since
    for entry in entries:
        expected = 1 if head is None else head.number + 1
        if entry.number != expected:
            flaws.add(expected, _missing(expected, entry.number - 1))
            # What follows a gap cannot be checked against what was there: its own hash is taken.
        elif entry.hash != _hash(entry, head):
            flaws.add(entry.number, f"entry {entry.number} is not the one that was written, or not in its place")
        if kept.pop(entry.number, entry.hash) != entry.hash:
            flaws.add(entry.number, f"entry {entry.number} is another one than was here once: the chain was made anew")
        head = head_of(entry)
    last = 0 if head is None else head.number
    if beyond := [number for number in kept if number > last]:
        flaws.add(last + 1, _missing(last + 1, max(beyond)))
    return Verdict(head, flaws.found())


@dataclass(slots=True)
class _Flaws:
    most: int
    _found: list[Flaw] = field(default_factory=list)

    def add(self, number: int, what: str) -> None:
        if len(self._found) < self.most:
            self._found.append(Flaw(number, what))

    def found(self) -> tuple[Flaw, ...]:
        return tuple(self._found)


def _missing(first: int, last: int) -> str:
    return f"entry {first} is missing" if last <= first else f"entries {first} to {last} are missing"


def _hash(entry: AuditEntry, before: Head | None) -> str:
    previous = _BEFORE_THE_FIRST if before is None else before.hash
    return hashlib.sha256(previous.encode() + b"\n" + canonical(entry)).hexdigest()


def canonical(entry: AuditEntry) -> bytes:
    """What is hashed: JSON of ASCII characters, keys in order, without the hash."""
    document = entry_json(entry)
    del document["hash"]
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def entry_json(entry: AuditEntry) -> dict[str, object]:
    """As it is exported: field by field, moments in ISO 8601."""
    document: dict[str, object] = {}
    for item in _ordered():
        value = getattr(entry, item)
        document[item] = format_utc(value) if isinstance(value, datetime) else value
    return document


def _ordered() -> Iterator[str]:
    yield "number"
    yield from (item.name for item in fields(Draft))
    yield "hash"


def clean(value: object, depth: int = 0) -> object:
    """The value as plain JSON that every engine keeps as it is: no NUL, nothing that is no character, bounded."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, str):
        return _clean_text(value)
    if isinstance(value, datetime):
        return format_utc(value)
    if depth >= _DEPTH_MAX:
        return "…"
    if isinstance(value, Mapping):
        items = list(value.items())
        cleaned = {_clean_text(str(name)): clean(item, depth + 1) for name, item in items[:_ITEMS_MAX]}
        return cleaned if len(items) <= _ITEMS_MAX else cleaned | {"…": f"{len(items) - _ITEMS_MAX} more"}
    if isinstance(value, (list, tuple, set, frozenset)):
        listed = sorted(value, key=str) if isinstance(value, (set, frozenset)) else list(value)
        shown = [clean(item, depth + 1) for item in listed[:_ITEMS_MAX]]
        return shown if len(listed) <= _ITEMS_MAX else [*shown, f"… {len(listed) - _ITEMS_MAX} more"]
    return _clean_text(str(value))


def _clean_text(text: str, most: int = _TEXT_CHARACTERS_MAX) -> str:
    plain = text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")
    return plain if len(plain) <= most else plain[: most - 1] + "…"
