"""Small sealed objects of an open repository: written once, read by name and type.

Rule: an object is opened with the key of its type under its own name, so neither another type's nor another's place
ever passes.
"""

from __future__ import annotations

from dataclasses import dataclass

from imaging import canonical
from imaging.canonical import Fields
from imaging.envelope import ObjectType, hash_of, open_sealed, parse, seal
from imaging.errors import Damaged, WrongVersion
from imaging.keys import Keys
from imaging.object_cache import ObjectCache
from imaging.storage.contract import Store


@dataclass(frozen=True, slots=True)
class Opened:
    """An object's body, and the hash of its bytes."""

    body: bytes
    hash: bytes


class SealedObjects:
    """Borrows the store and the cache, if there is one."""

    def __init__(self, store: Store, keys: Keys, cache: ObjectCache | None) -> None:
        self.store = store
        self.keys = keys
        self._cache = cache

    def uncached(self) -> SealedObjects:
        """The same objects, for whoever must believe nothing but the store."""
        return SealedObjects(self.store, self.keys, None)

    def create(self, kind: ObjectType, name: str, body: bytes, clear: bytes = b"", keep: bool = False) -> bytes:
        """Seals and creates; returns the hash of the object's bytes. `keep`: it will be read again. ObjectExists."""
        data = seal(kind, name, self.key_of(kind), self.keys.repository_id, body, clear)
        self.store.create(name, [data])
        if keep and self._cache is not None:
            self._cache.put(name, data)
        return hash_of(data)

    def replace(self, kind: ObjectType, name: str, body: bytes) -> None:
        """As create, for the few objects that a later finding may replace, whole and at once."""
        self.store.put(name, [seal(kind, name, self.key_of(kind), self.keys.repository_id, body)])

    def create_json(self, kind: ObjectType, name: str, values: dict[str, object]) -> bytes:
        return self.create(kind, name, canonical.encode(values))

    def read(self, kind: ObjectType, name: str) -> Opened:
        """From the store. ObjectMissing, Damaged, WrongVersion."""
        return self.open(kind, name, self.store.get(name))

    def read_kept(self, kind: ObjectType, name: str) -> Opened:
        """From the cache, if there are good bytes of it, else from the store; for objects that never change."""
        if self._cache is None:
            return self.read(kind, name)
        kept = self._cache.get(name)
        if kept is not None:
            try:
                return self.open(kind, name, kept)
            except (Damaged, WrongVersion):
                self._cache.forget(name)
        data = self.store.get(name)
        opened = self.open(kind, name, data)
        self._cache.put(name, data)
        return opened

    def remembered(self, kind: ObjectType, name: str) -> bytes | None:
        """The cache's bytes of an object that never changes, if they are good."""
        data = None if self._cache is None else self._cache.get(name)
        if data is not None:
            try:
                self.open(kind, name, data)
            except (Damaged, WrongVersion):
                return None
        return data

    def read_json(self, kind: ObjectType, name: str) -> Fields:
        return Fields.parse(self.read(kind, name).body, name)

    def open(self, kind: ObjectType, name: str, data: bytes, bound_name: str | None = None) -> Opened:
        """What these bytes hold, if they are the object of this name and type. `bound_name` is the name that it was
        sealed under, where that is not its own. Damaged, WrongVersion."""
        envelope = parse(data, name, kind)
        if envelope.repository_id != self.keys.repository_id:
            raise Damaged(name, "it belongs to another repository")
        return Opened(open_sealed(envelope, self.key_of(kind), bound_name), hash_of(data))

    def key_of(self, kind: ObjectType) -> bytes:
        if kind == ObjectType.INDEX:
            return self.keys.index
        if kind == ObjectType.MANIFEST:
            return self.keys.manifest
        if kind == ObjectType.CONFIG:
            return self.keys.configuration
        if kind == ObjectType.KEY_SLOT:
            raise ValueError("a key slot is opened by its own secret")
        return self.keys.control
