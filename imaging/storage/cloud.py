"""A store over the few calls that every object store of a cloud has, whatever its client is called.

Rules: one call is one request, or a few; nothing is repeated here (storage/retrying.py does that). An answer is taken
only if it is what was asked for: bytes are counted, and listings looked at. What differs from one cloud to the next
(addresses, signatures, what its errors mean) is its Client's business.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

from imaging.errors import Damaged, InvalidName, ObjectMissing, StoreUnavailable
from imaging.storage.contract import OBJECT_BYTES_MAX, Buffer, Listed, check_name, check_prefix
from imaging.storage.wire import Answer, Unanswered
from imaging.storage.witnesses import Witnesses

UNANSWERED: Final = "the answer is not what was asked for"
AGAIN: Final = "try again; if it stays so, look at the object store and the way to it"
_DELETED_AT_ONCE: Final = 16
_SENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")
_SAID_CHARACTERS: Final = 200


class Client(Protocol):
    """Names are without the prefix. Each raises what the method of Store of the same meaning does. Thread-safe."""

    def write(self, name: str, data: bytes, *, create: bool) -> None:
        """With `create`, ObjectExists where there is one, told by the server itself."""

    def read(self, name: str, first: int, wanted: int) -> tuple[bytes, int]:
        """The bytes from `first` on, `wanted` (at least one) of them or as many as there are, and the size of the whole
        object."""

    def size(self, name: str, operation: str) -> int:
        """ObjectMissing; `operation` is a verb, as in StoreError."""

    def pages(self, prefix: str) -> Iterator[Sequence[tuple[str, int]]]:
        """Everything whose name begins with `prefix`, ours or not, in any order, with its size."""

    def remove(self, name: str) -> None:
        """ObjectMissing."""

    def describe(self) -> str:
        """Where this is, for messages."""


class CloudStore:
    """Thread-safe; not to be used on both sides of a fork. Borrows `client`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._witnesses = Witnesses()

    def describe(self) -> str:
        return self._client.describe()

    def free_bytes(self) -> int | None:
        return None

    def put(self, name: str, data: Sequence[Buffer]) -> None:
        self._write(name, data, create=False)

    def create(self, name: str, data: Sequence[Buffer]) -> None:
        self._write(name, data, create=True)

    def _write(self, name: str, data: Sequence[Buffer], *, create: bool) -> None:
        check_name(name)
        self._client.write(name, b"".join(data), create=create)
        self._witnesses.saw(name)

    def get(self, name: str, offset_bytes: int = 0, length_bytes: int | None = None) -> bytes:
        check_name(name)
        if offset_bytes < 0 or (length_bytes is not None and not 0 < length_bytes <= OBJECT_BYTES_MAX):
            data, size = b"", self._client.size(name, "read")
        else:
            data, size = self._client.read(name, offset_bytes, length_bytes or OBJECT_BYTES_MAX)
        end = size if length_bytes is None else offset_bytes + length_bytes
        if offset_bytes < 0 or not offset_bytes <= end <= size:
            raise Damaged(name, f"it has {size} bytes where {offset_bytes} to {end} are wanted")
        if end - offset_bytes > OBJECT_BYTES_MAX:
            raise Damaged(name, f"it has {size} bytes, more than any object")
        if len(data) != end - offset_bytes:
            raise StoreUnavailable("read", name, f"{UNANSWERED}: {len(data)} of {end - offset_bytes} bytes", hint=AGAIN)
        self._witnesses.saw(name)
        return data

    def exists(self, name: str) -> bool:
        check_name(name)
        try:
            self._client.size(name, "look for")
        except ObjectMissing:
            return False
        self._witnesses.saw(name)
        return True

    def list(self, prefix: str) -> Iterator[Listed]:
        check_prefix(prefix)
        return self._listing(prefix)

    def _listing(self, prefix: str) -> Iterator[Listed]:
        """Shown when it is complete, as nobody promises an order. That takes some 200 bytes for each object."""
        witnesses = self._witnesses.below(prefix)
        found: dict[str, int] = {}
        for page in self._client.pages(prefix):
            for name, size in page:
                if not name.startswith(prefix):
                    raise StoreUnavailable("list", prefix or "the repository", UNANSWERED, hint=AGAIN)
                if _is_ours(name):
                    found[name] = size
        if not found:
            self._hear(witnesses, prefix)
        for name in sorted(found):
            yield Listed(name, found[name])

    def _hear(self, witnesses: Iterable[str], prefix: str) -> None:
        for name in witnesses:
            if self.exists(name):
                raise StoreUnavailable("list", prefix or "the repository", f"no object is shown, and {name} is there")
            self._witnesses.lost(name)

    def delete(self, name: str) -> None:
        check_name(name)
        self._witnesses.lost(name)
        self._client.remove(name)

    def delete_many(self, names: Iterable[str]) -> None:
        wanted = list(dict.fromkeys(names))
        for name in wanted:
            check_name(name)
        for name in wanted:
            self._witnesses.lost(name)
        if len(wanted) < 2:
            for name in wanted:
                self._gone(name)
            return
        with ThreadPoolExecutor(min(_DELETED_AT_ONCE, len(wanted)), thread_name_prefix="delete") as workers:
            for _ in workers.map(self._gone, wanted):
                pass  # the first error of any

    def _gone(self, name: str) -> None:
        try:
            self._client.remove(name)
        except ObjectMissing:
            return


def range_told(first: int, last: int, answer: Answer) -> int:
    """The size of the whole object. Unanswered unless the bytes are those from `first` to `last`, or as many as there
    are."""
    sent = _SENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
    if sent is None:
        raise Unanswered(UNANSWERED)
    begin, end, size = (int(each) for each in sent.groups())
    if begin != first or end != min(last, size - 1) or len(answer.body) != end + 1 - begin:
        raise Unanswered(f"{UNANSWERED}: bytes {begin} to {end + 1} of {size}, in {len(answer.body)}")
    return size


def shortened(said: str) -> str:
    """What a server said, for a message: one line that a terminal can be shown."""
    line = said.strip().partition("\n")[0]
    shown = "".join(each if each.isprintable() else "?" for each in line[: _SAID_CHARACTERS + 1])
    return shown if len(shown) <= _SAID_CHARACTERS else shown[:_SAID_CHARACTERS] + "…"


def _is_ours(name: str) -> bool:
    try:
        check_name(name)
    except InvalidName:
        return False
    return True
